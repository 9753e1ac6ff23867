//! The registration's way from the agent to the shim: one connection to a socket that only root can reach, once. Neither
//! a file nor an argument nor the environment of a process that stays holds it.

use std::{io, path::Path, time::Duration};

use secrecy::SecretString;
use tokio::{io::AsyncReadExt, net::UnixListener, time::timeout};

use super::server::{accept, listen};

/// A JIT config is about 4 kB.
const LIMIT: u64 = 256 * 1024;
/// The agent writes it at once.
const DEADLINE: Duration = Duration::from_secs(30);

/// The JIT config; `None` when it did not arrive whole.
pub(super) async fn receive(path: &Path) -> io::Result<Option<SecretString>> {
    let listener = listen(path)?;
    let received = timeout(DEADLINE, read(&listener)).await;
    std::fs::remove_file(path).ok();
    Ok(received.ok().flatten())
}

/// It ends with a newline: an agent that died while writing must not start a runner with half a registration.
async fn read(listener: &UnixListener) -> Option<SecretString> {
    let stream = loop {
        if let Some(stream) = accept(listener, None).await {
            break stream;
        }
    };
    let mut text = String::new();
    stream.take(LIMIT).read_to_string(&mut text).await.ok()?;
    let jit = text.strip_suffix('\n')?;
    (!jit.is_empty()).then(|| SecretString::from(jit))
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;
    use tokio::{io::AsyncWriteExt, net::UnixStream};

    use super::*;

    async fn after(text: &str) -> Option<String> {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("handover.sock");
        let listener = listen(&path).expect("listening");
        let agent = async {
            let mut stream = UnixStream::connect(&path).await.expect("connected");
            stream.write_all(text.as_bytes()).await.expect("written");
        };
        let (jit, ()) = tokio::join!(read(&listener), agent);
        jit.map(|jit| jit.expose_secret().to_owned())
    }

    #[tokio::test]
    async fn only_a_whole_registration_is_taken() {
        assert_eq!(after("abc=\n").await.as_deref(), Some("abc="));
        for broken in ["", "\n", "abc"] {
            assert_eq!(after(broken).await, None, "{broken:?}");
        }
    }
}
