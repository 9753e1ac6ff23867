//! `miglet drain`: no new work on this machine, and back when its runner has ended.
//!
//! It asks the agent. Where none answers, as in a shutdown that has taken the agent already, it asks the runner's
//! supervisor itself: an idle listener is stopped, a job has until the deadline.

use std::{
    io,
    path::Path,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::{sleep, timeout},
};

use crate::{
    paths::Paths,
    shim::Order,
    status::{Request, Status},
};

/// How long an agent that is being restarted is waited for: its unit starts it anew after 2 s.
const RESTART: Duration = Duration::from_secs(10);
/// Between two tries.
const RETRY: Duration = Duration::from_millis(200);
/// Beyond the deadline: what an interrupted job may take to end, and its supervisor to kill it.
const AFTERMATH: Duration = Duration::from_secs(60);

/// How a drain ended.
#[derive(Debug)]
pub enum Drained {
    /// The agent says that its runner has ended, or that there was none.
    Told(Box<Status>),
    /// There is no agent; the runner's supervisor is gone.
    WithoutAgent,
    /// Neither is here: nothing runs.
    Nothing,
}

/// The drain did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum DrainError {
    /// The runner outlived every deadline.
    #[error("the runner still runs {} s after the deadline", AFTERMATH.as_secs())]
    Overdue,
    /// Somebody listens, but does not let us speak.
    #[error("could not ask {path} for a drain: are you root?")]
    Refused {
        /// Whose socket.
        path: String,
        /// Why not.
        source: io::Error,
    },
}

/// Asks for a drain and waits for its end; without a deadline as long as the job takes.
///
/// # Errors
/// When nobody may be asked, or the runner does not end.
pub async fn drain(paths: &Paths, id: String, deadline: Option<Duration>) -> Result<Drained, DrainError> {
    let wait = ask(paths, id, deadline);
    match deadline {
        Some(deadline) => timeout(deadline + AFTERMATH, wait).await.unwrap_or(Err(DrainError::Overdue)),
        None => wait.await,
    }
}

async fn ask(paths: &Paths, id: String, deadline: Option<Duration>) -> Result<Drained, DrainError> {
    let asked = Instant::now();
    let left = || deadline.map(|deadline| deadline.saturating_sub(asked.elapsed()));
    let mut absent_since = None;
    loop {
        let deadline_ms = left().map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX));
        let request = Request::Drain { id: id.clone(), deadline_ms };
        match exchange(&paths.agent_socket(), &request).await {
            // An agent of an earlier version answers a request that came slowly as one for the status.
            Ok(status) if status.active => absent_since = None,
            Ok(status) => return Ok(Drained::Told(Box::new(status))),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(DrainError::Refused { path: paths.agent_socket().display().to_string(), source: error });
            }
            // It ended while we waited (an upgrade), or was never here. The same id again is the same request.
            Err(_) => {
                let since = *absent_since.get_or_insert_with(Instant::now);
                let patience = left().map_or(RESTART, |left| RESTART.min(left));
                if since.elapsed() >= patience || !is_expected(paths) {
                    return without_agent(&paths.shim_socket(), left()).await;
                }
            }
        }
        sleep(RETRY).await;
    }
}

/// Whether an agent that does not answer may only be between two lives: it leaves its socket behind.
fn is_expected(paths: &Paths) -> bool {
    paths.agent_socket().exists() || paths.shim_socket().exists()
}

async fn exchange(path: &Path, request: &Request) -> io::Result<Status> {
    let mut stream = UnixStream::connect(path).await?;
    stream.write_all(&serde_json::to_vec(request)?).await?;
    stream.shutdown().await?;
    let mut text = Vec::new();
    stream.read_to_end(&mut text).await?;
    Ok(serde_json::from_slice(&text)?)
}

async fn without_agent(path: &Path, deadline: Option<Duration>) -> Result<Drained, DrainError> {
    let mut stream = match UnixStream::connect(path).await {
        Ok(stream) => stream,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(DrainError::Refused { path: path.display().to_string(), source: error });
        }
        Err(_) => return Ok(Drained::Nothing),
    };
    let (mut reader, mut writer) = stream.split();
    let patience = async {
        // A supervisor that is gone has nothing left to be told.
        order(&mut writer, Order::InterruptIfIdle).await.ok();
        if let Some(deadline) = deadline {
            sleep(deadline).await;
            order(&mut writer, Order::Interrupt).await.ok();
        }
        std::future::pending::<()>().await;
    };
    let ended = async {
        let mut buffer = [0; 4096];
        while reader.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
    };
    tokio::select! { () = patience => {}, () = ended => {} }
    Ok(Drained::WithoutAgent)
}

async fn order(writer: &mut (impl AsyncWriteExt + Unpin), order: Order) -> io::Result<()> {
    let mut line = serde_json::to_vec(&order)?;
    line.push(b'\n');
    writer.write_all(&line).await
}

#[cfg(test)]
mod tests;
