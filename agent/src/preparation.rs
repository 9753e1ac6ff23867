//! What must be there before the operator is called: a runner that can run, and what keeps its jobs in their place. A
//! machine without would use up its one registration for nothing; this way it just never calls in, and the reason
//! stands where the operator looks for it.

use std::path::PathBuf;

use tokio::time::sleep;

use crate::{
    backoff::Backoff,
    error::in_full,
    installation::{Linker, Version},
    machine::Machine,
    metadata::Metadata,
    session::tell,
    settings::Settings,
};

/// The directory of the runner to use, however long it takes to get one and to confine its jobs. A machine that was
/// registered before has used its runner, so nothing is looked for there.
pub async fn runner_dir(settings: &Settings, machine: &dyn Machine) -> PathBuf {
    if settings.paths.registration().exists() {
        return settings.paths.runner.clone();
    }
    let metadata = Metadata::new(settings.metadata_host.clone());
    let (mut backoff, mut told) = (Backoff::default(), String::new());
    loop {
        match prepare(settings, machine).await {
            Ok(dir) => return dir,
            Err(error) => {
                let wait = backoff.wait();
                tracing::warn!(error, retry_in_ms = wait.as_millis(), "no runner");
                tokio::join!(sleep(wait), tell(&metadata, &mut told, error));
            }
        }
    }
}

async fn prepare(settings: &Settings, machine: &dyn Machine) -> Result<PathBuf, String> {
    machine.confine(&settings.jobs).await.map_err(|error| in_full(&error))?;
    let installed = settings.installation.install(&Linker::default(), true).await.map_err(|error| in_full(&error))?;
    announce(&installed.dir, settings.installation.wanted.as_ref().map(|wanted| wanted.version));
    Ok(installed.dir)
}

fn announce(dir: &std::path::Path, wanted: Option<Version>) {
    let wanted = wanted.map(|version| version.to_string());
    tracing::info!(dir = %dir.display(), wanted, "runner ready");
}
