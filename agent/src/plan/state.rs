//! All the agent knows, and where it stands by that.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;
use tracing::level_filters::LevelFilter;

use super::{Answer, Wanted};
use crate::{
    guards::{Guards, Watch},
    leaving::Leaving,
    notice::Notice,
    preparation::Prepared,
    runner::{ExitKind, Phase, Runner},
    supervisor::{Launch, Registration},
};

/// Ended by nobody: a job that writes fails by itself, and one that does not may still succeed.
pub const READ_ONLY: &str = "the runner's disk is read-only: the machine's kernel log says why";

/// All the agent knows.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Whether a session is open.
    pub connected: bool,
    /// The RunnerVM this machine is, from the Welcome.
    pub vm_name: String,
    /// The registration this instance was given.
    pub registration: Option<Registration>,
    /// What its runner does.
    pub runner: Option<Runner>,
    /// Take no new work.
    pub draining: bool,
    /// Power off once no runner runs.
    pub shutdown: bool,
    /// The last error, for people.
    pub error: String,
    /// What is wrong with the operator's newest settings; empty when nothing is.
    pub unsound: String,
    /// Why there is no runner to start yet, for people.
    pub unprepared: String,
    /// The runner's disk takes no writes: its file system has found itself damaged.
    pub read_only: bool,
    /// The runner that can be started, once there is one.
    pub prepared: Option<Prepared>,
    /// Which of the operator's settings are in effect; empty when none are.
    pub settings_revision: String,
    /// The machine goes off.
    pub off: bool,
    /// Why events are not, or not all, on the disk; empty while they are.
    pub spool_error: String,
    /// What the settings limit.
    pub limits: Limits,
    /// What the settings have logged; as it was at the start while unset.
    pub settings_level: Option<LevelFilter>,
    /// What is logged instead, and until when.
    pub(crate) level: Option<(LevelFilter, Instant)>,
    /// What the operator's heartbeat is while its settings name none.
    pub(crate) heartbeat: Option<String>,
    /// What the operator said last.
    pub(crate) wanted: Wanted,
    /// Came before there was a runner to start.
    pub(crate) waiting: Option<Launch>,
    /// The cloud takes the machine away.
    pub notice: Option<Notice>,
    /// What limits are near or passed.
    pub watch: Watch,
    pub(crate) leaving: Leaving,
    /// The drain that somebody on this machine asked for.
    pub(crate) local_drain: Option<String>,
    pub(crate) job_since: Option<Instant>,
    pub(crate) ended_at: Option<Instant>,
    pub(crate) disconnected_at: Option<Instant>,
    pub(crate) answers: VecDeque<Answer>,
}

/// What the settings limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Of the job and its machine.
    pub guards: Guards,
    /// How long a machine whose runner has ended waits for its operator; for ever where 0.
    pub orphan: Duration,
}

/// Where the agent stands, in the protocol's nine states.
pub use miglet_proto::v1::AgentState as Standing;

impl State {
    /// At the start: what an earlier agent on this instance has left.
    #[must_use]
    pub fn new(registration: Option<Registration>, runner: Option<Runner>, limits: Limits) -> Self {
        // Whoever was registered has had its runner.
        let prepared = registration.as_ref().map(|registration| registration.runner.clone());
        Self { registration, runner, limits, prepared, ..Self::default() }
    }

    /// Derived, never stored.
    #[must_use]
    pub fn standing(&self) -> Standing {
        match &self.runner {
            Some(Runner { exit: Some(_), .. }) if self.shutdown => Standing::ShuttingDown,
            Some(Runner { exit: Some(exit), .. }) if exit.kind == ExitKind::Failed => Standing::Error,
            Some(Runner { exit: Some(_), .. }) => Standing::ShuttingDown,
            Some(runner) if runner.is_busy() => Standing::JobRunning,
            Some(_) if self.stops() => Standing::Draining,
            Some(Runner { phase: Phase::Listening, .. }) => Standing::Idle,
            Some(_) => Standing::RegisteringRunner,
            None if self.registration.is_some() => Standing::RegisteringRunner,
            None if self.shutdown => Standing::ShuttingDown,
            None if self.draining || self.leaving.is_leaving() => Standing::Draining,
            None if self.connected && self.prepared.is_none() => Standing::Initializing,
            None if self.connected => Standing::Ready,
            None => Standing::Connecting,
        }
    }

    /// What is wrong now, for people.
    #[must_use]
    pub fn trouble(&self) -> String {
        let disk = if self.read_only { READ_ONLY } else { "" };
        let troubles = [self.unprepared.as_str(), &self.unsound, &self.error, &self.spool_error, disk];
        troubles.into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join("; ")
    }

    /// Whether a runner runs, or is about to.
    #[must_use]
    pub fn has_live_runner(&self) -> bool {
        self.registration.is_some() && self.runner.as_ref().is_none_or(|runner| runner.exit.is_none())
    }

    /// Whether a registration would be refused: after one there is never another.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.registration.is_some() || self.stops()
    }

    /// Whether the machine was told to take no new work.
    pub(super) fn stops(&self) -> bool {
        self.draining || self.shutdown || self.leaving.is_leaving()
    }

    /// What is logged now.
    #[must_use]
    pub fn log_level(&self) -> LevelFilter {
        self.level.map(|(level, _)| level).or(self.settings_level).unwrap_or(LevelFilter::INFO)
    }

    pub(super) fn is_busy(&self) -> bool {
        self.runner.as_ref().is_some_and(Runner::is_busy)
    }

    /// When time alone changes something next.
    #[must_use]
    pub fn wake_at(&self, now: Instant) -> Option<Instant> {
        let live = self.has_live_runner();
        let leaving = live.then(|| self.leaving.next(self.is_busy())).flatten();
        let guard = self.watch.next(&self.limits.guards, self.job_since.filter(|_| live), now);
        [leaving, guard, self.orphaned_at(), self.level.map(|(_, until)| until)].into_iter().flatten().min()
    }

    /// When the machine goes off by itself: its runner has ended, and nobody was there to tell it for long enough.
    pub(super) fn orphaned_at(&self) -> Option<Instant> {
        let waited = (!self.limits.orphan.is_zero() && !self.connected).then_some(self.limits.orphan)?;
        Some(self.ended_at?.max(self.disconnected_at?) + waited)
    }
}
