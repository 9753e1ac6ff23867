//! How a machine stops working before anybody deletes it. Pure.
//!
//! ```text
//!   notice of preemption ----- at once --.
//!   guard that acts ---------- at once --+--> busy: the job is interrupted when its time is up
//!   `miglet drain` -- at its deadline, --+--> idle: the operator removes the registration first and sends a Drain;
//!                     or when repeated   |          silent for 3 s, the listener is stopped all the same
//!   notice of maintenance ----- never ---'
//! ```
//!
//! Stopping an idle listener without its registration removed can lose a job that is on its way; so it comes second.
//! Maintenance can be an hour away: a job goes on, and the machine's shutdown interrupts it when it comes.

use std::time::Duration;

use tokio::time::Instant;

/// How long the operator has to remove the registration of an idle runner.
const OPERATOR_FIRST: Duration = Duration::from_secs(3);

/// Whether and how the machine stops working.
#[derive(Clone, Debug, Default)]
pub struct Leaving {
    since: Option<Instant>,
    /// A job may run until then.
    job_until: Option<Instant>,
    interrupted: bool,
    stopped: bool,
}

/// What follows for the runner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Interrupt the job.
    Job,
    /// Stop the listener, unless it has a job by now.
    Idle,
}

impl Leaving {
    /// Takes no new work from now on; a job may run until then, or as long as it takes.
    pub fn leave(&mut self, now: Instant, job_until: Option<Instant>) {
        self.since.get_or_insert(now);
        self.job_until = self.job_until.into_iter().chain(job_until).min();
    }

    /// Whether no new work is taken.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        self.since.is_some()
    }

    /// What is due for a live runner. Each comes once.
    pub fn due(&mut self, busy: bool, now: Instant) -> Option<Stop> {
        if busy {
            let due = !self.interrupted && self.job_until.is_some_and(|until| now >= until);
            self.interrupted |= due;
            return due.then_some(Stop::Job);
        }
        let due = !self.stopped && self.since.is_some_and(|since| now >= since + OPERATOR_FIRST);
        self.stopped |= due;
        due.then_some(Stop::Idle)
    }

    /// When time alone changes something next.
    #[must_use]
    pub fn next(&self, busy: bool) -> Option<Instant> {
        if busy {
            return self.job_until.filter(|_| !self.interrupted);
        }
        self.since.filter(|_| !self.stopped).map(|since| since + OPERATOR_FIRST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn an_idle_listener_is_stopped_once_and_only_after_the_operators_turn() {
        let (start, mut leaving) = (Instant::now(), Leaving::default());
        assert_eq!((leaving.due(false, start), leaving.next(false)), (None, None));
        leaving.leave(start, Some(start));
        assert_eq!(leaving.due(false, at(start, 2)), None);
        assert_eq!(leaving.next(false), Some(at(start, 3)));
        assert_eq!(leaving.due(false, at(start, 3)), Some(Stop::Idle));
        assert_eq!((leaving.due(false, at(start, 4)), leaving.next(false)), (None, None));
    }

    #[test]
    fn a_job_has_its_time_and_the_earliest_end_counts() {
        let (start, mut leaving) = (Instant::now(), Leaving::default());
        leaving.leave(start, None);
        assert_eq!((leaving.due(true, at(start, 100_000)), leaving.next(true)), (None, None));
        leaving.leave(start, Some(at(start, 20)));
        leaving.leave(start, Some(at(start, 60)));
        assert_eq!(leaving.due(true, at(start, 19)), None);
        assert_eq!(leaving.due(true, at(start, 20)), Some(Stop::Job));
        assert_eq!(leaving.due(true, at(start, 21)), None, "once");
    }

    #[test]
    fn a_job_that_came_in_the_last_moment_is_interrupted_too() {
        let (start, mut leaving) = (Instant::now(), Leaving::default());
        leaving.leave(start, Some(start));
        assert_eq!(leaving.due(false, start), None);
        assert_eq!(leaving.due(true, at(start, 1)), Some(Stop::Job));
    }
}
