//! One simulator alone, for people who write clients.

use std::{process::ExitCode, sync::Arc};

use super::{say, signals};
use crate::{compute, compute::NoMachines, github, world::Trouble};

/// Compute, with instances that boot into nothing.
pub(super) async fn compute() -> Result<ExitCode, Trouble> {
    let (_simulator, endpoint) = compute::standalone(Arc::new(NoMachines), None).await?;
    say(&serde_json::to_string(&endpoint)?);
    signals::told_to_end().await;
    Ok(ExitCode::SUCCESS)
}

/// GitHub, with one organisation, repository, App and token.
pub(super) async fn github() -> Result<ExitCode, Trouble> {
    let standalone = github::standalone().await?;
    say(&serde_json::to_string(&standalone)?);
    signals::told_to_end().await;
    Ok(ExitCode::SUCCESS)
}
