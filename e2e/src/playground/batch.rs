//! `--jobs N`: so many jobs, then the pool's deletion, then the figures.

use std::{process::ExitCode, time::Duration};

use serde::Serialize;

use super::{
    say,
    stage::{Stage, delete_pool},
};
use crate::{
    github::{Job, JobStatus},
    runner::wire::Conclusion,
    world::{LABELS, REPOSITORY, Trouble, World},
};

/// Setting up a runner and running a short job takes a few seconds; this is the bound for one.
const PER_JOB: Duration = Duration::from_secs(60);

/// What became of it all.
#[derive(Debug, Serialize)]
struct Summary {
    jobs: u32,
    succeeded: usize,
    lost: usize,
    vms_created: usize,
    leaked_instances: usize,
    leaked_runners: usize,
    writes_per_vm: f64,
}

/// Success only when nothing was lost or leaked.
pub(super) async fn run(stage: &Stage, jobs: u32) -> Result<ExitCode, Trouble> {
    let world = stage.world()?;
    let ids: Vec<_> = (1..=jobs).map(|number| world.github.queue_job(job(number))).collect();
    say(&format!("{jobs} jobs queued"));
    for id in ids {
        // One that does not end in time counts as lost.
        world.github.wait_job(id, PER_JOB).await.ok();
    }
    say("deleting the pool");
    let deleted = delete_pool(world).await;
    let summary = summary(world, jobs);
    say(&serde_json::to_string(&summary)?);
    deleted?;
    let good = summary.lost + summary.leaked_instances + summary.leaked_runners == 0;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn job(number: u32) -> Job {
    Job {
        repository: REPOSITORY.to_owned(),
        workflow: "CI".to_owned(),
        name: format!("build-{number}"),
        labels: LABELS.map(str::to_owned).to_vec(),
        steps: format!("echo job {number}; sleep 0.2"),
        ..Job::default()
    }
}

fn summary(world: &World, jobs: u32) -> Summary {
    let ended = world.github.jobs();
    // Twice is as bad as never: its steps ran twice.
    let succeeded = ended.iter().filter(|job| {
        let once = job.attempts == 1 && !job.lost && job.status == JobStatus::Completed;
        once && job.conclusion == Some(Conclusion::Succeeded)
    });
    let (succeeded, vms_created) = (succeeded.count(), world.compute.created());
    let writes = f64::from(u32::try_from(world.operator_writes()).unwrap_or(u32::MAX));
    let vms = f64::from(u32::try_from(vms_created).unwrap_or(u32::MAX)).max(1.0);
    Summary {
        jobs,
        succeeded,
        lost: usize::try_from(jobs).unwrap_or(usize::MAX).saturating_sub(succeeded),
        vms_created,
        leaked_instances: world.compute.all_instances().len(),
        leaked_runners: world.github.runners().len(),
        writes_per_vm: (writes / vms * 10.0).round() / 10.0,
    }
}
