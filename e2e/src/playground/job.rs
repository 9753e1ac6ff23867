//! `job`: queues one in the running playground and follows it.

use std::{process::ExitCode, time::Duration};

use reqwest::Method;
use serde_json::json;
use tokio::time::Instant;

use super::{cli, http, say, state::Running};
use crate::{
    github::{Job, JobState, JobStatus},
    runner::wire::Conclusion,
    world::{LABELS, REPOSITORY, Trouble},
};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);

/// Success only when the job succeeded.
pub(super) async fn run(running: &Running, job: cli::Job) -> Result<ExitCode, Trouble> {
    let labels = if job.labels.is_empty() { LABELS.map(str::to_owned).to_vec() } else { job.labels };
    let (repository, workflow) = (REPOSITORY.to_owned(), "CI".to_owned());
    let job = Job { repository, workflow, name: job.name, labels, steps: job.steps, ..Job::default() };
    let jobs = format!("{}/_fake/jobs", running.github);
    let id = http::call(Method::POST, &jobs, Some(&json!(job))).await?;
    let id = id.get("id").and_then(serde_json::Value::as_u64).ok_or("the job was not queued")?;
    say(&format!("queued     {REPOSITORY} · {}, job {id}", job.name));
    follow(&format!("{jobs}/{id}")).await
}

async fn follow(url: &str) -> Result<ExitCode, Trouble> {
    let queued = Instant::now();
    let mut started = None;
    loop {
        let job: JobState = serde_json::from_value(http::call(Method::GET, url, None).await?)?;
        if started.is_none() && job.status != JobStatus::Queued {
            say(&format!("running    on {}", job.runner_name.clone().unwrap_or_default()));
            started = Some(Instant::now());
        }
        if job.status == JobStatus::Completed {
            let seconds = started.unwrap_or(queued).elapsed().as_secs_f64();
            return Ok(tell(&job, seconds));
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn tell(job: &JobState, seconds: f64) -> ExitCode {
    for line in job.output.lines() {
        say(&format!("         | {line}"));
    }
    let (word, code) = match job.conclusion {
        _ if job.lost => ("lost", ExitCode::FAILURE),
        Some(Conclusion::Succeeded) => ("succeeded", ExitCode::SUCCESS),
        Some(Conclusion::Failed) => ("failed", ExitCode::FAILURE),
        Some(Conclusion::Canceled) | None => ("cancelled", ExitCode::FAILURE),
    };
    say(&format!("{word:<10} after {seconds:.1} s"));
    code
}
