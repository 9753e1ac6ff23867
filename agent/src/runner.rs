//! What is known about the one runner of this machine: the vocabulary shared by shim, agent and state file.
//!
//! A [`Runner`] is a whole snapshot, never a change: the shim writes it to disk before it tells anyone, and sends it
//! whole to whoever connects. Phases only move forward.

use serde::{Deserialize, Serialize};

use crate::process::Process;

/// Longest text kept of anything a runner or a job says.
pub const TEXT_LIMIT: usize = 256;

/// The runner, as its shim sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runner {
    /// The command that asked for it.
    pub command_id: String,
    /// Its name at the forge.
    pub name: String,
    /// The supervising process.
    pub shim: Option<Process>,
    /// The listener; unset before it is started.
    pub listener: Option<Process>,
    /// When the listener was started last.
    pub started_unix_ms: i64,
    /// How far it has come.
    pub phase: Phase,
    /// The job it was given.
    pub job: Option<Job>,
    /// How it ended.
    pub exit: Option<Exit>,
    /// It was offered a job that was gone, so it waits for ever: its registration is used up. A hint.
    #[serde(default)]
    pub ghost: bool,
    /// Its version, as it says itself; empty until then.
    #[serde(default)]
    pub version: String,
    /// The listener's last lines.
    pub lines: Vec<String>,
}

/// How far a runner has come; the order is the order of life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Phase {
    /// Started, not yet connected to the forge.
    #[default]
    Starting,
    /// Waits for a job.
    Listening,
    /// Has a job, or had one.
    Busy,
    /// The process has ended for good.
    Exited,
}

/// The job a runner was given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Display name from the listener's line.
    pub name: String,
    /// What the hook said; a hint, because a job can say it too.
    pub identity: Identity,
    /// When the listener announced it.
    pub started_unix_ms: i64,
    /// The same in milliseconds since the boot: nobody sets that clock. None in a record of a shim that kept none.
    pub started_boot_ms: Option<u64>,
    /// When the listener told its result; 0 before.
    pub completed_unix_ms: i64,
    /// The result, once told.
    pub result: Option<JobResult>,
}

/// A job's identity in its workflow, from the hook's environment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// owner/name.
    pub repository: String,
    /// Workflow name.
    pub workflow: String,
    /// Workflow run.
    pub run_id: u64,
    /// Attempt of that run.
    pub run_attempt: u32,
    /// The job's key in the workflow file.
    pub key: String,
}

/// A job's result in the runner's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the runner's own words")]
pub enum JobResult {
    Succeeded,
    SucceededWithIssues,
    Failed,
    Canceled,
    Skipped,
    Abandoned,
}

impl JobResult {
    /// Reads the word the listener prints.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "Succeeded" => Self::Succeeded,
            "SucceededWithIssues" => Self::SucceededWithIssues,
            "Failed" => Self::Failed,
            "Canceled" => Self::Canceled,
            "Skipped" => Self::Skipped,
            "Abandoned" => Self::Abandoned,
            _ => return None,
        })
    }
}

/// How a runner ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code, or 128 + signal.
    pub code: i32,
    /// What it means.
    pub kind: ExitKind,
    /// Words that explain it.
    pub detail: String,
}

/// What a runner's end means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitKind {
    /// One job ran and the runner ended.
    JobDone,
    /// It ended without a job.
    WithoutJob,
    /// Anything else.
    Failed,
}

impl Runner {
    /// Whether a job is running now, as far as the listener's lines tell.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.phase == Phase::Busy
    }

    /// Marks it as failed by what happened around it, not by its own exit.
    #[must_use]
    pub fn failed(mut self, detail: &str) -> Self {
        self.phase = Phase::Exited;
        self.exit = Some(Exit { code: -1, kind: ExitKind::Failed, detail: clean(detail, TEXT_LIMIT * 4) });
        self
    }
}

/// Cuts `text` to `limit` bytes at a character boundary and drops control characters: what comes from a runner ends in
/// terminals and status fields.
#[must_use]
pub fn clean(text: &str, limit: usize) -> String {
    let mut out = String::with_capacity(text.len().min(limit));
    for c in text.chars().filter(|c| !c.is_control()) {
        if out.len() + c.len_utf8() > limit {
            break;
        }
        out.push(c);
    }
    out
}
