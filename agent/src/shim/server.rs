//! The shim's two sockets: snapshots and orders for the agent, one short message for hooks.

use std::{io, path::Path, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::supervision::Shared;
use crate::{hook, lines::Lines, runner::Runner};

/// An honest hook writes at once; nobody else may hold the socket.
const HOOK_DEADLINE: Duration = Duration::from_millis(500);
/// An agent that does not read is not waited for.
const AGENT_DEADLINE: Duration = Duration::from_secs(5);

/// What an agent may ask of the shim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// SIGINT to the listener, unless it has a job.
    InterruptIfIdle,
    /// SIGINT to the listener, whatever it does: its job fails, and the forge learns so at once.
    Interrupt,
    /// Kill everything: the machine goes off.
    Kill,
}

/// The agents' side.
pub(super) struct Agents {
    accepting: JoinHandle<()>,
    served: mpsc::Receiver<()>,
}

impl Agents {
    /// Waits until every connected agent was sent the last snapshot, which is once its publisher is gone.
    pub(super) async fn drained(mut self) {
        self.accepting.abort();
        while self.served.recv().await.is_some() {}
    }
}

/// Opens the agent's socket, in a directory that only root can enter.
pub(super) fn serve_agents(
    path: &Path,
    snapshots: watch::Receiver<Runner>,
    orders: mpsc::Sender<Order>,
) -> io::Result<Agents> {
    let listener = listen(path)?;
    let (serving, served) = mpsc::channel(1);
    let accepting = tokio::spawn(async move {
        loop {
            let Some(stream) = accept(&listener, None).await else { continue };
            let (snapshots, orders, serving) = (snapshots.clone(), orders.clone(), serving.clone());
            tokio::spawn(async move {
                // The agent went away: it will come back.
                serve_agent(stream, snapshots, orders).await.ok();
                drop(serving);
            });
        }
    });
    Ok(Agents { accepting, served })
}

async fn serve_agent(
    mut stream: UnixStream,
    mut snapshots: watch::Receiver<Runner>,
    orders: mpsc::Sender<Order>,
) -> io::Result<()> {
    let (mut lines, mut buffer) = (Lines::new(256), [0; 256]);
    let (mut reader, mut writer) = stream.split();
    snapshots.mark_changed();
    loop {
        tokio::select! {
            changed = snapshots.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                let mut line = serde_json::to_vec(&*snapshots.borrow_and_update())?;
                line.push(b'\n');
                timeout(AGENT_DEADLINE, writer.write_all(&line)).await??;
            }
            count = reader.read(&mut buffer) => {
                let bytes = buffer.get(..count?).filter(|b| !b.is_empty()).ok_or(io::ErrorKind::UnexpectedEof)?;
                let mut asked: Vec<Order> = Vec::new();
                lines.feed(bytes, |line| asked.extend(serde_json::from_slice::<Order>(line).ok()));
                for order in asked {
                    orders.send(order).await.map_err(|_| io::ErrorKind::BrokenPipe)?;
                }
            }
        }
    }
}

/// Opens the hooks' socket. One after the other, each within half a second: a job that floods it costs its own time.
pub(super) fn serve_hooks(path: &Path, uid: Option<u32>, shared: Shared) -> io::Result<JoinHandle<()>> {
    let listener = listen(path)?;
    std::os::unix::fs::chown(path, uid, None)?;
    Ok(tokio::spawn(async move {
        loop {
            let Some(mut stream) = accept(&listener, uid).await else { continue };
            if let Ok(Some(message)) = timeout(HOOK_DEADLINE, read_hook(&mut stream)).await {
                shared.identify(message.job);
            }
        }
    }))
}

async fn read_hook(stream: &mut UnixStream) -> Option<hook::Message> {
    let mut bytes = Vec::new();
    stream.take(hook::MESSAGE_LIMIT as u64 + 1).read_to_end(&mut bytes).await.ok()?;
    hook::Message::parse(&bytes).ok()
}

/// A fresh socket, for this user only.
pub(super) fn listen(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => UnixListener::bind(path),
    }
}

/// The next connection from a process of this very user, of root, or of that other one.
pub(super) async fn accept(listener: &UnixListener, other: Option<u32>) -> Option<UnixStream> {
    let Ok((stream, _)) = listener.accept().await else {
        // Out of descriptors: not in a busy loop.
        sleep(Duration::from_millis(50)).await;
        return None;
    };
    let uid = stream.peer_cred().ok()?.uid();
    let own = rustix::process::geteuid().as_raw();
    (uid == 0 || uid == own || Some(uid) == other).then_some(stream)
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt, time::Instant};

    use rustix::{process::Uid, thread::set_thread_uid};

    use super::*;

    const NOBODY: u32 = 65534;

    /// Connects as somebody else. Credentials are a thread's, so they end with it.
    fn call(path: &Path, uid: u32) -> std::thread::JoinHandle<io::Result<std::os::unix::net::UnixStream>> {
        let path = path.to_owned();
        std::thread::spawn(move || {
            set_thread_uid(Uid::from_raw(uid))?;
            std::os::unix::net::UnixStream::connect(path)
        })
    }

    #[tokio::test]
    async fn only_the_agents_and_the_runners_users_are_listened_to() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: only root can be somebody else");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let path = folder.path().join("hook.sock");
        let listener = listen(&path).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o777)).unwrap();
        for (caller, other, heard) in
            [(0, None, true), (NOBODY, None, false), (NOBODY, Some(NOBODY), true), (1, Some(NOBODY), false)]
        {
            let calling = call(&path, caller);
            let begun = Instant::now();
            let accepted = accept(&listener, other).await;
            assert_eq!(accepted.is_some(), heard, "{caller} {other:?}, after {:?}", begun.elapsed());
            calling.join().unwrap().unwrap();
        }
    }
}
