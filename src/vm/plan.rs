//! What to do about a VM next: a pure function of a view and a time.
//!
//! ```text
//!   Launching ──> Booting ──> Registering ──> Idle ──> Busy
//!       │            │             │            │        │     life.rs: forward, or an end with its reason
//!       └────────────┴─────────────┴────────────┴────────┴──> the object is deleted
//!                                                                  │
//!   Draining ──> Terminating ──> gone                              │     drain.rs: registration first, then the
//!                                                    <─────────────┘     instance, then the finalizer
//! ```
//!
//! A plan is one step and when to look again. The status it leads to is derived in `status.rs` from the same view. A
//! step that must be remembered (asking for an instance, taking a runner's name) is written down before it is taken.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::view::{Timing, VmView};
use crate::{
    compute::{DeleteTarget, ErrorClass},
    forge::Run,
    gateway::sessions::AgentView,
};

mod drain;
mod life;
mod orders;

pub use life::VERSION_REFUSED;
pub use life::silent;
pub use orders::{LOG_LEVEL_SECONDS, Order, Topic, drain_deadline};

/// A runner ends within a moment of its job, and one write tells both. A result that is not written is not acked, and
/// lost with its machine: it does not wait for longer.
const RESULT_PAUSE: Duration = Duration::from_secs(1);

/// What to do, and when to look again if nothing else happens.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The one thing to do now.
    pub step: Step,
    /// When to look again.
    pub again: Duration,
    /// Where a drain is held up, for the conditions.
    pub wait: Option<Wait>,
}

/// One effect.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Nothing.
    Wait,
    /// Mark the creation, then ask the group for the instance.
    Create,
    /// Ask the forge for a registration under this attempt's name, note its id, send it down the session.
    Register {
        /// Number of the attempt, which its name ends in.
        attempt: i32,
    },
    /// Remove whatever is registered under the current name: its reply was lost before anything was sent.
    ClearName {
        /// The name.
        name: String,
    },
    /// Look the registration up by id.
    Look {
        /// The forge's id.
        id: i64,
    },
    /// Ask the forge which of this run's jobs the runner has: once, and nothing depends on it.
    FindJob(Run),
    /// Make sure the credential still sees the scope.
    CheckScope,
    /// Remove the registration.
    Deregister {
        /// The forge's id.
        id: i64,
    },
    /// Note that the registration is proven gone.
    NoteRegistrationGone,
    /// Tell the agent something, or the user what it answered.
    Tell(Order),
    /// Ask what a VM that never called in has to say.
    AskLastWords,
    /// Ask the group to delete the instance.
    DeleteInstance(DeleteTarget),
    /// Delete the object, which starts its drain.
    End(End),
    /// Everything is gone: let the object go.
    Release {
        /// A registration that could not be removed.
        left_behind: bool,
    },
}

/// Why a VM's life ends.
#[derive(Clone, Debug, PartialEq)]
pub struct End {
    /// CamelCase reason.
    pub reason: &'static str,
    /// What happened, for people.
    pub message: String,
    /// The group should be left alone for a while.
    pub back_off: Option<(ErrorClass, String)>,
    /// It certainly never had an instance: the mark is taken back.
    pub never_created: bool,
}

impl End {
    /// An end without side conditions.
    #[must_use]
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), back_off: None, never_created: false }
    }
}

/// What a drain waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// CamelCase reason.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

impl Plan {
    fn act(step: Step) -> Self {
        Self { step, again: Duration::ZERO, wait: None }
    }

    fn wait(again: Duration) -> Self {
        Self { step: Step::Wait, again, wait: None }
    }
}

/// What to do about this VM at this time.
#[must_use]
pub fn plan(view: &VmView, now: Timestamp, timing: &Timing) -> Plan {
    let mut plan = match view.deletion_requested() {
        Some(requested) => drain::plan(view, requested, now, timing),
        None => life::plan(view, now, timing),
    };
    if let Some(due) = view.agent.as_ref().and_then(result_due).filter(|due| now < *due) {
        plan.again = plan.again.min(until(due, now));
    }
    if plan.step == Step::Wait {
        let (order, look) = orders::next(view, now);
        let look = look.into_iter().chain(orders::renewal(view, now)).min();
        plan.again = look.map_or(plan.again, |look| look.min(plan.again));
        plan.step = order.map_or(Step::Wait, Step::Tell);
    }
    plan.again = plan.again.max(Duration::from_millis(20));
    plan
}

/// When a job's result is written without its runner's end.
#[must_use]
pub fn result_due(agent: &AgentView) -> Option<Timestamp> {
    agent.result_since.map(|since| later(since, RESULT_PAUSE))
}

/// `time` plus `duration`, as late as it gets.
#[must_use]
pub fn later(time: Timestamp, duration: Duration) -> Timestamp {
    SignedDuration::try_from(duration).ok().and_then(|d| time.checked_add(d).ok()).unwrap_or(Timestamp::MAX)
}

/// `time` plus `seconds`.
#[must_use]
pub fn later_by(time: Timestamp, seconds: i32) -> Timestamp {
    later(time, Duration::from_secs(u64::try_from(seconds).unwrap_or_default()))
}

/// How long until `deadline`; zero when it has passed.
#[must_use]
pub fn until(deadline: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(deadline.duration_since(now)).unwrap_or_default()
}

#[cfg(test)]
pub(super) mod tests;
