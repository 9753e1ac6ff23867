//! What is known of one agent.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;

use crate::gateway::{
    diagnostics::Diagnostics,
    events::Ledger,
    report::{Ack, Report},
};

/// What the VM controller sees of an agent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AgentView {
    /// Whether its stream is open now.
    pub connected: bool,
    /// When it was last heard, by our clock.
    pub last_heard: Timestamp,
    /// Since when it says that it has no job, in the same state, while it does.
    pub idle_since: Option<Timestamp>,
    /// Since when its job has a result.
    pub result_since: Option<Timestamp>,
    /// Where its events stand.
    pub events: Ledger,
    /// Version it runs.
    pub version: String,
    /// Minor version of the protocol it speaks.
    pub minor: u32,
    /// What it answered to commands, by their ids.
    pub acks: BTreeMap<String, Ack>,
    /// What it was asked for last, as far as it has come.
    pub diagnostics: Option<Arc<Diagnostics>>,
    /// What it last said, moved forward only.
    pub report: Report,
}

/// Since when the agent says that it has no job: a state that changed starts anew.
pub(super) fn idle_since(before: Option<&AgentView>, report: &Report, now: Timestamp) -> Option<Timestamp> {
    let kept = before.filter(|view| view.report.state == report.state).and_then(|view| view.idle_since);
    report.jobless().then(|| kept.unwrap_or(now))
}

/// Since when the agent tells its job's result.
pub(super) fn result_since(before: Option<&AgentView>, report: &Report, now: Timestamp) -> Option<Timestamp> {
    let told = report.job.as_ref().is_some_and(|job| !job.result.is_empty());
    told.then(|| before.and_then(|view| view.result_since).unwrap_or(now))
}

/// What of a report can change a decision. The rest can change with every message: an agent that makes it so must not
/// keep the controller, or GitHub, busy.
pub(super) fn matter(report: &Report) -> Report {
    Report { health: None, error: String::new(), ..report.clone() }
}
