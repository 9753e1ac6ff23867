//! How a pool's latest VMs fared: whether new ones register at all, and when to try again when they do not.
//!
//! Kept in memory: after a restart a broken image costs one more VM, not a flood, because the back-off starts with the
//! first failure.

use std::{collections::VecDeque, time::Duration};

use jiff::Timestamp;

use crate::vm::plan::{VERSION_REFUSED, later};

/// Outcomes remembered.
const KEPT: usize = 4;

/// Reasons that say a VM came up but its runner did not.
const FAILURES: [&str; 5] =
    ["RegistrationTimeout", "RunnerFailed", VERSION_REFUSED, "RunnerExitedWithoutJob", "DeliveryLost"];

/// The latest outcomes of one pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    outcomes: VecDeque<bool>,
    in_a_row: u32,
    last_failure: Option<Timestamp>,
    /// Reason of the latest failure.
    pub last_reason: String,
    /// What happened then, in words.
    pub last_message: String,
}

impl History {
    /// A VM's runner became idle.
    pub fn registered(&mut self) {
        self.in_a_row = 0;
        self.push(true);
    }

    /// Whether a VM that never had an idle runner and ended for this reason failed to register.
    #[must_use]
    pub fn is_failure(reason: &str) -> bool {
        FAILURES.contains(&reason)
    }

    /// A VM failed to register.
    pub fn failed(&mut self, (reason, message): (&str, &str), now: Timestamp) {
        self.in_a_row = self.in_a_row.saturating_add(1);
        self.last_failure = Some(now);
        reason.clone_into(&mut self.last_reason);
        message.clone_into(&mut self.last_message);
        self.push(false);
    }

    /// Until when nothing should be created: longer with every failure in a row.
    #[must_use]
    pub fn back_off_until(&self, first: Duration) -> Option<Timestamp> {
        let most = Duration::from_mins(10);
        let growth = 2_u32.saturating_pow(self.in_a_row.checked_sub(1)?);
        Some(later(self.last_failure?, first.saturating_mul(growth).min(most)))
    }

    /// Whether new VMs register: `None` before anything is known.
    #[must_use]
    pub fn healthy(&self) -> Option<bool> {
        let failed = self.outcomes.iter().filter(|ok| !**ok).count();
        (!self.outcomes.is_empty()).then_some(failed * 2 < self.outcomes.len())
    }

    /// Failures in a row.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.in_a_row
    }

    fn push(&mut self, outcome: bool) {
        self.outcomes.push_back(outcome);
        if self.outcomes.len() > KEPT {
            self.outcomes.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_latest_failing_is_unhealthy() {
        let mut history = History::default();
        assert_eq!(history.healthy(), None);
        history.registered();
        assert_eq!(history.healthy(), Some(true));
        history.failed(("RegistrationTimeout", ""), Timestamp::UNIX_EPOCH);
        assert_eq!((history.failures(), history.healthy()), (1, Some(false)));
    }

    #[test]
    fn the_back_off_grows_with_failures_and_ends_with_a_success() {
        let mut history = History::default();
        let first = Duration::from_secs(10);
        assert_eq!(history.back_off_until(first), None);
        for _ in 0..3 {
            history.failed(("RegistrationTimeout", ""), Timestamp::UNIX_EPOCH);
        }
        assert_eq!(history.back_off_until(first), Some(later(Timestamp::UNIX_EPOCH, Duration::from_secs(40))));
        history.registered();
        assert_eq!(history.back_off_until(first), None);
    }
}
