//! What must be there before the agent says it is ready: a runner that can run. A machine without one would use up its one
//! registration for nothing; this way it calls in, says what is missing, and is given none.
//!
//! What a flag, a variable or the file on this machine says is prepared at once; anything else once the operator has
//! said what it wants.

use std::path::PathBuf;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::{sync::mpsc, time::sleep};

use crate::{
    backoff::Backoff,
    error::in_full,
    installation::{InstallError, Installation, Linker},
    plan::Input,
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

/// Prepares a runner, however long it takes, and tells of every failure.
pub async fn prepare(provider: &dyn Provider, installation: Installation, inputs: mpsc::Sender<Input>) {
    let mut backoff = Backoff::default();
    loop {
        match provider.provide(&installation).await {
            Ok(prepared) => {
                tracing::info!(dir = %prepared.dir.display(), version = prepared.version, "runner ready");
                // Nobody listens when the agent ends.
                inputs.send(Input::Prepared(prepared)).await.ok();
                return;
            }
            Err(error) => {
                let (error, wait) = (in_full(&error), backoff.wait());
                tracing::warn!(error, retry_in_ms = wait.as_millis(), "no runner");
                if inputs.send(Input::Unprepared { error }).await.is_err() {
                    return;
                }
                sleep(wait).await;
            }
        }
    }
}
