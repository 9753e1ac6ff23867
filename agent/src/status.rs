//! The agent's local socket: what it knows, and orders from somebody on this machine, who must be root.
//!
//! A client sends one request and closes its side; the answer to each is a status. A drain is answered once no new work is
//! taken and the runner has ended. What is no request is not answered: whoever asks for a drain takes the answer for its
//! end.

use std::{fmt, io, path::Path, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::{mpsc, watch},
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};

use crate::{
    notice::Notice,
    plan::{Input, State},
    runner::{Runner, TEXT_LIMIT, clean},
    settings::Sourced,
};

const TIMEOUT: Duration = Duration::from_secs(5);
const REQUEST_LIMIT: u64 = 1024;
/// Clients at once.
const CLIENTS: usize = 16;

/// What a client may ask for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// What is known.
    Status,
    /// No new work; the answer comes when the runner has ended.
    Drain {
        /// The same request again is not another one.
        id: String,
        /// How long a job may still run.
        deadline_ms: Option<u64>,
    },
}

/// What there is to know.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    /// The agent's version.
    pub version: String,
    /// One of the protocol's states.
    pub state: String,
    /// Whether a session is open.
    pub connected: bool,
    /// The RunnerVM this machine is.
    pub vm_name: String,
    /// The runner, once there is one.
    pub runner: Option<Runner>,
    /// Whether the runner runs, or is about to.
    #[serde(default)]
    pub active: bool,
    /// Whether a registration would be refused.
    #[serde(default)]
    pub closed: bool,
    /// Why the machine is about to stop working; empty when nothing says so.
    #[serde(default)]
    pub warning: String,
    /// The last error.
    pub error: String,
    /// The settings and where they came from.
    pub settings: Vec<Sourced>,
}

/// No status to be had.
#[derive(Debug, thiserror::Error)]
#[error("could not ask the agent at {path}: is miglet running here, and are you root?")]
pub struct StatusError {
    path: String,
    source: io::Error,
}

impl Status {
    /// Of this state.
    #[must_use]
    pub fn of(state: &State, settings: &[Sourced]) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state: state.standing().as_str_name().trim_start_matches("AGENT_STATE_").to_lowercase(),
            connected: state.connected,
            vm_name: state.vm_name.clone(),
            runner: state.runner.clone(),
            active: state.has_live_runner(),
            closed: state.is_closed(),
            warning: warning(state),
            error: state.trouble(),
            settings: settings.to_vec(),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_none = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
        writeln!(f, "State:    {}", self.state)?;
        writeln!(f, "Operator: {}", if self.connected { "connected" } else { "not connected" })?;
        writeln!(f, "RunnerVM: {}", or_none(&self.vm_name))?;
        if let Some(runner) = &self.runner {
            writeln!(f, "Runner:   {} ({:?})", runner.name, runner.phase)?;
        }
        if let Some(job) = self.runner.as_ref().and_then(|runner| runner.job.as_ref()) {
            let result = job.result.map_or_else(|| "running".to_owned(), |result| format!("{result:?}"));
            writeln!(f, "Job:      {} {} ({result})", job.identity.repository, job.name)?;
        }
        if let Some(exit) = self.runner.as_ref().and_then(|runner| runner.exit.as_ref()) {
            writeln!(f, "Ended:    {:?}, code {} {}", exit.kind, exit.code, exit.detail)?;
        }
        if !self.warning.is_empty() {
            writeln!(f, "Warning:  {}", self.warning)?;
        }
        writeln!(f, "Error:    {}", or_none(&self.error))?;
        for Sourced { key, value, source } in &self.settings {
            writeln!(f, "  {key} = {value} ({source})")?;
        }
        write!(f, "Agent:    {}", self.version)
    }
}

fn warning(state: &State) -> String {
    let notice = state.notice.map(|notice| match notice {
        Notice::Preempted => "the cloud preempts this machine".to_owned(),
        Notice::Maintenance => "the cloud stops this machine for maintenance".to_owned(),
    });
    let alarm = state.watch.alarm().map(|alarm| alarm.detail.clone());
    notice.into_iter().chain(alarm).collect::<Vec<_>>().join("; ")
}

/// Serves whoever connects, which in the state directory only root can.
///
/// # Errors
/// When the socket cannot be made.
pub fn serve(path: &Path, status: watch::Receiver<Status>, inputs: mpsc::Sender<Input>) -> io::Result<JoinHandle<()>> {
    std::fs::remove_file(path).or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) })?;
    let listener = UnixListener::bind(path)?;
    Ok(tokio::spawn(async move {
        let mut clients = JoinSet::new();
        loop {
            while clients.try_join_next().is_some() {}
            match listener.accept().await {
                Ok((stream, _)) if clients.len() < CLIENTS && is_ours(&stream) => {
                    clients.spawn(answer(stream, status.clone(), inputs.clone()));
                }
                // Let go without an answer.
                Ok(_) => {}
                // Out of descriptors: not in a busy loop.
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    }))
}

/// From root, or from the user this agent runs as.
fn is_ours(stream: &UnixStream) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == rustix::process::geteuid().as_raw())
}

async fn answer(mut stream: UnixStream, mut status: watch::Receiver<Status>, inputs: mpsc::Sender<Input>) {
    let Some(request) = request(&mut stream).await else { return };
    if let Request::Drain { id, deadline_ms } = request {
        let deadline = deadline_ms.map(Duration::from_millis);
        if inputs.send(Input::Drain { id: clean(&id, TEXT_LIMIT), deadline }).await.is_err() {
            return;
        }
        // Until the drain itself is taken in, a registration may still come.
        if status.wait_for(|status| status.closed && !status.active).await.is_err() {
            return;
        }
    }
    let text = serde_json::to_vec(&*status.borrow()).unwrap_or_default();
    // Whoever asked may be gone.
    timeout(TIMEOUT, stream.write_all(&text)).await.ok();
}

/// All of it; `None` when it does not come in time, or is none.
async fn request(stream: &mut UnixStream) -> Option<Request> {
    let mut text = Vec::new();
    let mut limited = stream.take(REQUEST_LIMIT);
    timeout(TIMEOUT, limited.read_to_end(&mut text)).await.ok()?.ok()?;
    serde_json::from_slice(&text).ok()
}

/// Asks the agent.
///
/// # Errors
/// When there is none, or it may not be asked.
pub async fn ask(path: &Path) -> Result<Status, StatusError> {
    let exchange = async {
        let (mut stream, mut text) = (UnixStream::connect(path).await?, Vec::new());
        stream.write_all(&serde_json::to_vec(&Request::Status)?).await?;
        stream.shutdown().await?;
        stream.read_to_end(&mut text).await?;
        serde_json::from_slice(&text).map_err(io::Error::from)
    };
    let answer = timeout(TIMEOUT, exchange).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    answer.map_err(|source| StatusError { path: path.display().to_string(), source })
}

#[cfg(test)]
mod tests;
