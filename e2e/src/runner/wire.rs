//! What the runner stand-in and the simulator say to each other under `/_runner/`.
//!
//! The real wire (broker, run service, tenant URLs) is unpublished; this one is ours. It has the same moments: open a
//! session, poll for messages, acquire a job, complete it, delete the session.
//!
//! ```text
//!   POST   /_runner/sessions                  201 Session | 401 registration unknown | 409 Conflict | 412 clock | 426 deprecated
//!   GET    /_runner/sessions/S/messages       200 Message | 202 nothing yet | 404 the runner is gone
//!   DELETE /_runner/sessions/S                204
//!   POST   /_runner/sessions/S/jobs/N/acquire 200 Order | 404 not yours (any more)
//!   POST   /_runner/sessions/S/jobs/N/result  204
//! ```

use serde::{Deserialize, Serialize};

/// What a runner says when it opens a session.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Opening {
    /// Version of the runner software.
    pub version: String,
    /// `linux`, as the REST API shows it.
    pub os: String,
    /// Its clock.
    pub unix_seconds: i64,
}

/// An open session.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Session {
    /// Its id.
    pub id: String,
}

/// Another listener holds the session: how long to try again.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Conflict {
    /// Pause between attempts.
    pub retry_millis: u64,
    /// When to give up.
    pub limit_millis: u64,
}

impl Default for Conflict {
    fn default() -> Self {
        Self { retry_millis: 30_000, limit_millis: 240_000 }
    }
}

/// What a poll brings.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// A job was assigned.
    Job(u64),
    /// The running job was cancelled by a user.
    Cancel(u64),
    /// A newer runner version has to be installed.
    Update(String),
}

/// An acquired job: everything the worker needs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    /// Job id.
    pub id: u64,
    /// Workflow run id.
    pub run_id: u64,
    /// `owner/name`.
    pub repository: String,
    /// Numeric id of the repository.
    pub repository_id: u64,
    /// Name of the workflow.
    pub workflow: String,
    /// Key of the job in the workflow file.
    pub key: String,
    /// Display name.
    pub name: String,
    /// Shell script.
    pub steps: String,
    /// Where the API is.
    pub api_url: String,
    /// What goes wrong.
    #[serde(default)]
    pub fault: Option<JobFault>,
}

/// Faults of the runner while it runs a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum JobFault {
    /// The listener exits with 2 after the job and leaves its files.
    RetryableExit,
    /// The worker process dies in the middle of the steps.
    WorkerCrash,
    /// The listener prints this many diagnostic lines.
    Flood(u32),
    /// A process that holds the listener's stdout outlives it by this many seconds.
    Daemon(u32),
}

/// How a job ended, in the runner's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Conclusion {
    /// Every step exited with zero.
    Succeeded,
    /// A step, a hook or the runner failed.
    Failed,
    /// A user cancelled it.
    Canceled,
}

impl Conclusion {
    /// The word in "completed with result: ...".
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
            Self::Canceled => "Canceled",
        }
    }

    /// What is added to 100 with `ACTIONS_RUNNER_RETURN_JOB_RESULT_FOR_HOSTED`.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Succeeded => 0,
            Self::Failed => 2,
            Self::Canceled => 3,
        }
    }
}

/// The end of a job.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// How it ended.
    pub conclusion: Conclusion,
    /// Tail of what hooks and steps wrote.
    pub output: String,
}
