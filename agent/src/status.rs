//! `miglet status`: what the agent on this machine knows, over a local socket.

use std::{fmt, io, path::Path, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::{plan::State, runner::Runner, settings::Sourced};

const TIMEOUT: Duration = Duration::from_secs(5);

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
        writeln!(f, "Error:    {}", or_none(&self.error))?;
        for Sourced { key, value, source } in &self.settings {
            writeln!(f, "  {key} = {value} ({source})")?;
        }
        write!(f, "Agent:    {}", self.version)
    }
}

/// Tells whoever connects, which in the state directory only root can.
///
/// # Errors
/// When the socket cannot be made.
pub fn serve(path: &Path, status: watch::Receiver<Status>) -> io::Result<JoinHandle<()>> {
    std::fs::remove_file(path).or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) })?;
    let listener = UnixListener::bind(path)?;
    Ok(tokio::spawn(async move {
        loop {
            let Ok((mut stream, _)) = listener.accept().await else {
                sleep(Duration::from_millis(50)).await;
                continue;
            };
            let text = serde_json::to_vec(&*status.borrow()).unwrap_or_default();
            // Whoever asked may be gone.
            timeout(TIMEOUT, stream.write_all(&text)).await.ok();
        }
    }))
}

/// Asks the agent.
///
/// # Errors
/// When there is none, or it may not be asked.
pub async fn ask(path: &Path) -> Result<Status, StatusError> {
    let exchange = async {
        let mut text = Vec::new();
        UnixStream::connect(path).await?.read_to_end(&mut text).await?;
        serde_json::from_slice(&text).map_err(io::Error::from)
    };
    let answer = timeout(TIMEOUT, exchange).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    answer.map_err(|source| StatusError { path: path.display().to_string(), source })
}
