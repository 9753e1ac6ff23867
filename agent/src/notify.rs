//! What systemd is told of the agent: one datagram a message to the socket in `NOTIFY_SOCKET`. Own lines, because the
//! crates for it bring more than these.

use std::{
    ffi::OsStr,
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
};

/// Something systemd acts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Start-up is done.
    Ready,
    /// The watchdog is fed.
    Alive,
}

impl State {
    fn text(self) -> &'static [u8] {
        match self {
            Self::Ready => b"READY=1",
            Self::Alive => b"WATCHDOG=1",
        }
    }
}

/// Tells systemd, if it started this process and wants to know.
pub fn tell(state: State) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(&socket, state) {
        tracing::warn!(%error, ?state, "systemd was not told");
    }
}

fn send(socket: &OsStr, state: State) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    let datagram = UnixDatagram::unbound()?;
    // A systemd that reads nothing must not stop the agent.
    datagram.set_nonblocking(true)?;
    datagram.send_to_addr(state.text(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn systemd_is_told_over_a_path_and_over_an_abstract_name() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("notify.sock");
        let name = format!("miglet-notify-{}", std::process::id());
        let abstract_name = SocketAddr::from_abstract_name(&name).expect("name");
        for (receiver, socket) in [
            (UnixDatagram::bind(&path), path.into_os_string()),
            (UnixDatagram::bind_addr(&abstract_name), format!("@{name}").into()),
        ] {
            let receiver = receiver.expect("bound");
            receiver.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
            for (state, text) in [(State::Ready, "READY=1"), (State::Alive, "WATCHDOG=1")] {
                send(&socket, state).expect("sent");
                let mut buffer = [0; 64];
                let count = receiver.recv(&mut buffer).expect("received");
                assert_eq!(&buffer[..count], text.as_bytes());
            }
        }
    }
}
