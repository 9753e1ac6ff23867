//! Jobs: what a test queues, and what became of it.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::runner::wire::{Conclusion, JobFault};

/// Identifies a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(pub u64);

/// A job to be run.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Job {
    /// `owner/name`.
    pub repository: String,
    /// Name of the workflow.
    pub workflow: String,
    /// Display name of the job.
    pub name: String,
    /// `runs-on`.
    pub labels: Vec<String>,
    /// Runner group it must run in; any when absent.
    pub group: Option<String>,
    /// Shell script, run by bash with `-e`.
    pub steps: String,
    /// What goes wrong in the runner.
    pub fault: Option<JobFault>,
}

impl Default for Job {
    fn default() -> Self {
        Self {
            repository: "acme/app".to_owned(),
            workflow: "ci".to_owned(),
            name: "build".to_owned(),
            labels: vec!["self-hosted".to_owned()],
            group: None,
            steps: "true".to_owned(),
            fault: None,
        }
    }
}

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobStatus {
    /// No runner has it.
    Queued,
    /// A runner has it.
    InProgress,
    /// It ended.
    Completed,
}

/// A job and what became of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JobState {
    /// Its id.
    pub id: JobId,
    /// Id of the workflow run.
    pub run_id: u64,
    /// What was queued.
    pub job: Job,
    /// Where it stands.
    pub status: JobStatus,
    /// How it ended.
    pub conclusion: Option<Conclusion>,
    /// Its runner died: nobody reported an end.
    pub lost: bool,
    /// Times a runner took it: above one, somebody ran it twice.
    pub attempts: u32,
    /// Runner it was assigned to.
    pub runner_id: Option<u64>,
    /// That runner's name.
    pub runner_name: Option<String>,
    /// Tail of what its hooks and steps wrote.
    pub output: String,
}

impl JobState {
    pub(crate) fn new(id: u64, job: Job) -> Self {
        Self {
            id: JobId(id),
            run_id: 9_000_000_000 + id,
            job,
            status: JobStatus::Queued,
            conclusion: None,
            lost: false,
            attempts: 0,
            runner_id: None,
            runner_name: None,
            output: String::new(),
        }
    }

    /// The shape of the REST API. When exactly it began and ended is not kept: `at` stands for both.
    pub(crate) fn json(&self, base: &str, origin: &str, at: &str) -> Value {
        let (id, run, repository) = (self.id.0, self.run_id, &self.job.repository);
        let api = format!("{base}/repos/{repository}");
        let status = match self.status {
            JobStatus::Queued => "queued",
            JobStatus::InProgress => "in_progress",
            JobStatus::Completed => "completed",
        };
        let conclusion = self.conclusion.map(|conclusion| match conclusion {
            Conclusion::Succeeded => "success",
            Conclusion::Failed => "failure",
            Conclusion::Canceled => "cancelled",
        });
        json!({
            "id": id, "run_id": run, "run_attempt": 1, "node_id": format!("J_{id}"), "name": self.job.name,
            "run_url": format!("{api}/actions/runs/{run}"), "url": format!("{api}/actions/jobs/{id}"),
            "html_url": format!("{origin}/{repository}/actions/runs/{run}/job/{id}"),
            "check_run_url": format!("{api}/check-runs/{id}"),
            "head_sha": "0123456789abcdef0123456789abcdef01234567", "head_branch": "main",
            "workflow_name": self.job.workflow, "labels": self.job.labels,
            "status": status, "conclusion": conclusion,
            "created_at": at, "started_at": at, "completed_at": conclusion.map(|_| at),
            "runner_id": self.runner_id, "runner_name": self.runner_name,
            "runner_group_id": self.runner_id.map(|_| 1), "runner_group_name": self.runner_id.map(|_| "Default"),
        })
    }

    pub(crate) fn requeue(&mut self) {
        (self.status, self.runner_id, self.runner_name) = (JobStatus::Queued, None, None);
    }
}
