//! What must be there before the operator is called: a runner that can run. A machine without one would use up its one
//! registration for nothing; this way it just never calls in, and the reason stands where the operator looks for it.

use std::path::PathBuf;

use tokio::time::sleep;

use crate::{
    backoff::Backoff,
    error::in_full,
    installation::{Linker, Version},
    metadata::Metadata,
    session::tell,
    settings::Settings,
};

/// The directory of the runner to use, however long it takes to get one. A machine that was registered before has used
/// its runner, so nothing is looked for there.
pub async fn runner_dir(settings: &Settings) -> PathBuf {
    if settings.paths.registration().exists() {
        return settings.paths.runner.clone();
    }
    let metadata = Metadata::new(settings.metadata_host.clone());
    let (mut backoff, mut told) = (Backoff::default(), String::new());
    loop {
        match settings.installation.install(&Linker::default(), true).await {
            Ok(installed) => {
                let version = settings.installation.wanted.as_ref().map(|wanted| wanted.version);
                announce(&installed.dir, version);
                return installed.dir;
            }
            Err(error) => {
                let (error, wait) = (in_full(&error), backoff.wait());
                tracing::warn!(error, retry_in_ms = wait.as_millis(), "no runner");
                tokio::join!(sleep(wait), tell(&metadata, &mut told, error));
            }
        }
    }
}

fn announce(dir: &std::path::Path, wanted: Option<Version>) {
    let wanted = wanted.map(|version| version.to_string());
    tracing::info!(dir = %dir.display(), wanted, "runner ready");
}
