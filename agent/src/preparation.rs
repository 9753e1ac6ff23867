//! What must be there before the agent says it is ready: a runner that can run, and what keeps its jobs in their place. A
//! machine without would use up its one registration for nothing; this way it calls in, says what is missing,
//! and is given none.
//!
//! What a flag, a variable or the file on this machine says is prepared at once; anything else once the operator has
//! said what it wants.

use std::{path::PathBuf, sync::Arc};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::{sync::mpsc, time::sleep};

use crate::{
    backoff::Backoff,
    error::in_full,
    installation::{InstallError, Installation, Linker},
    machine::{Jobs, Machine},
    metadata::Metadata,
    plan::Input,
    session::tell,
};

/// A runner that can be started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepared {
    /// Its directory.
    pub dir: PathBuf,
    /// Its version; empty when nobody asked for one.
    pub version: String,
}

/// The port to whatever provides runners. Its real form is [`Installer`]; measurements put a simulated one in its place.
#[async_trait]
pub trait Provider: Send + Sync {
    /// A runner, fetched if there is no other way.
    async fn provide(&self, installation: &Installation) -> Result<Prepared, InstallError>;
}

/// The image's runner, or one that is fetched.
#[derive(Clone, Copy, Debug, Default)]
pub struct Installer;

#[async_trait]
impl Provider for Installer {
    async fn provide(&self, installation: &Installation) -> Result<Prepared, InstallError> {
        let installed = installation.install(&Linker::default(), true).await?;
        let version = installed.version.map(|version| version.to_string()).unwrap_or_default();
        Ok(Prepared { dir: installed.dir, version })
    }
}

/// What is prepared, and with what.
pub struct Preparation {
    /// Where runners come from.
    pub runners: Arc<dyn Provider>,
    /// What keeps jobs in their place.
    pub machine: Arc<dyn Machine>,
    /// Which runner.
    pub installation: Installation,
    /// Which place.
    pub jobs: Jobs,
    /// Where failures are told besides: there may never be a session.
    pub metadata: Metadata,
}

impl Preparation {
    /// Prepares until there is a runner and its jobs are confined, however long it takes; tells of every failure.
    pub async fn run(self, inputs: mpsc::Sender<Input>) {
        let (mut backoff, mut told) = (Backoff::default(), String::new());
        loop {
            match self.prepare().await {
                Ok(prepared) => {
                    tracing::info!(dir = %prepared.dir.display(), version = prepared.version, "runner ready");
                    // Nobody listens when the agent ends.
                    inputs.send(Input::Prepared(prepared)).await.ok();
                    return;
                }
                Err(error) => {
                    let wait = backoff.wait();
                    tracing::warn!(error, retry_in_ms = wait.as_millis(), "no runner");
                    if inputs.send(Input::Unprepared { error: error.clone() }).await.is_err() {
                        return;
                    }
                    tokio::join!(sleep(wait), tell(&self.metadata, &mut told, error));
                }
            }
        }
    }

    async fn prepare(&self) -> Result<Prepared, String> {
        self.machine.confine(&self.jobs).await.map_err(|error| in_full(&error))?;
        self.runners.provide(&self.installation).await.map_err(|error| in_full(&error))
    }
}
