//! The port to whatever runs the runner. Its real form is [`Shim`]; measurements put a simulated one in its place.

mod orphan;
mod shim;

use async_trait::async_trait;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{hook::Scripts, preparation::Prepared, runner::Runner};

pub use shim::Shim;

/// The one registration this instance was given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// The command that brought it.
    pub command_id: String,
    /// The runner's name at the forge.
    pub runner_name: String,
    /// The runner that was started for it.
    #[serde(default)]
    pub runner: Prepared,
}

/// A runner to start.
#[derive(Clone, Debug)]
pub struct Launch {
    /// Whose runner.
    pub registration: Registration,
    /// The encoded JIT config.
    pub jit_config: SecretString,
    /// The user's own around each job, as they are wanted when it starts.
    pub scripts: Scripts,
}

/// The runner could not be started.
#[derive(Debug, thiserror::Error)]
#[error("could not {action}")]
pub struct SupervisorError {
    /// What was tried.
    pub action: &'static str,
    /// Why not.
    pub source: std::io::Error,
}

/// Starts the one runner and tells how it fares.
#[async_trait]
pub trait Supervisor: Send + Sync {
    /// The runner's snapshots, newest only; `None` until there is a runner.
    fn snapshots(&self) -> watch::Receiver<Option<Runner>>;

    /// Starts the runner.
    async fn start(&self, launch: Launch) -> Result<(), SupervisorError>;

    /// Finds the runner that an earlier agent started; what is known of it has a snapshot when this returns.
    async fn resume(&self, registration: Registration);

    /// Asks the listener to end, unless it has a job.
    async fn stop_idle(&self);

    /// Asks the listener to end, and its job with it.
    async fn interrupt(&self);

    /// Ends everything that was started, for the machine goes off.
    async fn kill(&self);
}
