//! A root shell on a VM, over a virtio port: what its administrator, or fate, does to it. Never in a shipped image.

use std::{io, path::PathBuf, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
    time::timeout,
};

/// The port's name in the VM.
pub(super) const PORT: &str = "test";
/// What serves it in the VM. Commands come a line each; output ends with a NUL, the exit code and a NUL.
/// While nobody is connected, reading ends at once instead of waiting.
pub(super) const SERVER: &str = "#!/bin/bash
exec 3<>/dev/virtio-ports/test
while :; do
  if read -r line <&3; then
    bash -c \"$line\" </dev/null >&3 2>&1
    printf '\\0%d\\0' $? >&3
  else
    sleep 0.2
  fi
done
";

/// What a command said and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Output and errors.
    pub text: String,
    /// Exit code.
    pub code: i32,
}

/// The way into one VM.
#[derive(Clone, Debug)]
pub struct Shell {
    pub(super) socket: PathBuf,
}

impl Shell {
    /// Runs one line of bash as root, once the VM has come so far.
    ///
    /// # Errors
    /// When the VM is gone, or does not answer in time.
    pub async fn run(&self, line: &str, limit: Duration) -> io::Result<Said> {
        timeout(limit, self.exchange(line)).await.unwrap_or_else(|_| {
            Err(io::Error::new(io::ErrorKind::TimedOut, format!("the VM's shell did not answer {line:?}")))
        })
    }

    async fn exchange(&self, line: &str) -> io::Result<Said> {
        let mut stream = BufReader::new(UnixStream::connect(&self.socket).await?);
        stream.write_all(format!("{line}\n").as_bytes()).await?;
        let (text, code) = (part(&mut stream).await?, part(&mut stream).await?);
        Ok(Said { text, code: code.parse().map_err(io::Error::other)? })
    }
}

async fn part(stream: &mut BufReader<UnixStream>) -> io::Result<String> {
    let mut bytes = Vec::new();
    stream.read_until(0, &mut bytes).await?;
    if bytes.pop() != Some(0) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
