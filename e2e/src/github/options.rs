//! How a simulated GitHub behaves; the defaults are quick, not GitHub's own minutes, where a test has to wait for them.

use std::time::Duration;

use super::limits::Limits;
use crate::runner::wire::Conflict;

/// How a simulated GitHub behaves.
#[derive(Clone, Debug)]
pub struct GithubOptions {
    /// How long a runner's poll is held (GitHub: 50 s). A removed registration is noticed at the next poll.
    pub poll: Duration,
    /// Silence after which a runner shows as offline.
    pub offline_after: Duration,
    /// How long an assigned job waits for its runner to take it (GitHub: 60 s); then the job is queued again.
    pub acquire_within: Duration,
    /// How long a job of a dead runner stays in progress, its runner busy (GitHub: 10 to 15 minutes).
    pub lost_after: Duration,
    /// How long a registration may stay without a connection (GitHub: a day).
    pub unused_after: Duration,
    /// What a second listener of one registration is told.
    pub conflict: Conflict,
    /// Rate limits.
    pub limits: Limits,
    /// Whether traffic is checked against GitHub's published description.
    pub checked: bool,
    /// Base URL written into JIT configs; what the API was called by when absent.
    pub runner_url: Option<String>,
}

impl Default for GithubOptions {
    fn default() -> Self {
        Self {
            poll: Duration::from_secs(10),
            offline_after: Duration::from_secs(2),
            acquire_within: Duration::from_secs(60),
            lost_after: Duration::from_secs(600),
            unused_after: Duration::from_secs(86_400),
            conflict: Conflict::default(),
            limits: Limits::default(),
            checked: true,
            runner_url: None,
        }
    }
}
