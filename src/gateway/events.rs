//! What happened on a VM, told at least once by its agent, and up to where it is dealt with.
//!
//! ```text
//!  event --> heard --> no effect: acked at once. It was logged and counted; told again it would be no more than that.
//!                '---> an effect on the RunnerVM's status: waits for a write that has it, then acked
//! ```
//!
//! Acks are cumulative, so what has no effect waits behind what has one. An effect only moves a report forward: to hear
//! an event twice changes nothing, and an ack that was lost costs a message. So the status keeps the acked number only
//! with writes that happen anyway. In an open session an event comes before the report of the same, so that its number is
//! in the write of its effect. After a reconnect the hello's report may be written first: then the events it is about are
//! acked when they come, and their number is in the next write.

use jiff::Timestamp;

use super::report::{Exit, Job};

/// Events of one VM, replays apart. An honest agent tells some ten, and at most a few hundred errors.
const EVENT_LIMIT: u32 = 1000;
/// What the RunnerVM's status takes as a number: the largest whole one that JSON keeps.
const SEQUENCE_LIMIT: u64 = 9_007_199_254_740_991;

/// Something that happened on a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its number: grows within a boot.
    pub sequence: u64,
    /// What it is about.
    pub kind: EventKind,
    /// When, by the VM's clock.
    pub happened: Option<Timestamp>,
    /// The job, if it is about one.
    pub job: Option<Job>,
    /// How the runner ended, if it is about that.
    pub exit: Option<Exit>,
    /// In words.
    pub detail: String,
}

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// The agent runs.
    VmStarted,
    /// GitHub knows the runner.
    RunnerRegistered,
    /// The runner was given a job.
    JobStarted,
    /// The job ended.
    JobCompleted,
    /// The runner ended other than by itself or by a drain.
    RunnerCrashed,
    /// The cloud takes the machine away.
    Preempted,
    /// The agent turns the machine off.
    VmShuttingDown,
    /// Something went wrong.
    Error,
    /// Something a newer agent tells.
    Other,
}

impl EventKind {
    /// For logs and the label of a metric.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::VmStarted => "vm_started",
            Self::RunnerRegistered => "runner_registered",
            Self::JobStarted => "job_started",
            Self::JobCompleted => "job_completed",
            Self::RunnerCrashed => "runner_crashed",
            Self::Preempted => "preempted",
            Self::VmShuttingDown => "vm_shutting_down",
            Self::Error => "error",
            Self::Other => "other",
        }
    }

    /// Whether the RunnerVM's status must show it before it is acked.
    fn has_effect(self) -> bool {
        matches!(self, Self::JobStarted | Self::JobCompleted | Self::RunnerCrashed | Self::Preempted)
    }
}

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// It is news.
    New,
    /// It was heard before, here or by the operator before this one.
    Replayed,
    /// There are more than any agent has to tell.
    TooMany,
    /// Its number is none.
    Bad,
    /// The session was replaced, or its VM is gone.
    Gone,
}

impl Heard {
    /// For the label of a metric.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::New => "New",
            Self::Replayed => "Replayed",
            Self::TooMany | Self::Bad => "Refused",
            Self::Gone => "Gone",
        }
    }
}

/// Where one VM's events stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    heard: u64,
    acked: u64,
    count: u32,
    waiting: Vec<(u64, EventKind)>,
}

impl Ledger {
    /// The number up to which everything is dealt with.
    #[must_use]
    pub fn acked(&self) -> u64 {
        self.acked
    }

    /// What waits for a write.
    pub fn waiting(&self) -> impl Iterator<Item = EventKind> {
        self.waiting.iter().map(|(_, kind)| *kind)
    }

    /// What the RunnerVM's status says to be dealt with.
    pub(crate) fn resume(&mut self, acked: u64) {
        self.heard = self.heard.max(acked);
        self.acked = self.acked.max(acked);
        self.waiting.retain(|(sequence, _)| *sequence > acked);
    }

    /// Takes an event in.
    pub(crate) fn hear(&mut self, event: &Event) -> Heard {
        if event.sequence == 0 || event.sequence > SEQUENCE_LIMIT {
            return Heard::Bad;
        }
        if event.sequence <= self.heard {
            return Heard::Replayed;
        }
        if self.count >= EVENT_LIMIT {
            return Heard::TooMany;
        }
        self.count += 1;
        self.heard = event.sequence;
        if event.kind.has_effect() {
            self.waiting.push((event.sequence, event.kind));
        }
        self.settle(|_| false);
        Heard::New
    }

    /// Up to where everything would be dealt with if these effects were in the status.
    #[must_use]
    pub fn settled(&self, is_written: impl Fn(EventKind) -> bool) -> u64 {
        let unwritten = self.waiting.iter().find(|(_, kind)| !is_written(*kind));
        unwritten.map_or(self.heard, |(sequence, _)| sequence.saturating_sub(1)).max(self.acked)
    }

    /// These effects are in the status. True when more is acked now.
    pub(super) fn settle(&mut self, is_written: impl Fn(EventKind) -> bool) -> bool {
        let acked = self.settled(is_written);
        let more = acked > self.acked;
        self.resume(acked);
        more
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(sequence: u64, kind: EventKind) -> Event {
        Event { sequence, kind, happened: None, job: None, exit: None, detail: String::new() }
    }

    #[test]
    fn an_event_without_effect_is_acked_at_once_and_one_with_an_effect_waits_for_its_write() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.hear(&event(10, EventKind::VmStarted)), Heard::New);
        assert_eq!(ledger.acked(), 10);
        ledger.hear(&event(20, EventKind::JobStarted));
        ledger.hear(&event(30, EventKind::Error));
        ledger.hear(&event(40, EventKind::JobCompleted));
        assert_eq!(ledger.acked(), 19, "acks are cumulative");
        assert_eq!(ledger.settled(|kind| kind == EventKind::JobStarted), 39);
        assert!(ledger.settle(|kind| kind == EventKind::JobStarted));
        assert_eq!((ledger.acked(), ledger.waiting().collect::<Vec<_>>()), (39, vec![EventKind::JobCompleted]));
        assert!(!ledger.settle(|kind| kind == EventKind::JobStarted), "nothing more");
        assert!(ledger.settle(|_| true));
        assert_eq!((ledger.acked(), ledger.waiting().count()), (40, 0));
    }

    #[test]
    fn what_was_acked_by_the_operator_before_is_a_replay() {
        let mut ledger = Ledger::default();
        ledger.resume(40);
        assert_eq!(ledger.hear(&event(40, EventKind::JobCompleted)), Heard::Replayed);
        assert_eq!((ledger.acked(), ledger.waiting().count()), (40, 0));
        assert_eq!(ledger.hear(&event(41, EventKind::JobCompleted)), Heard::New);
        ledger.resume(12);
        assert_eq!(ledger.acked(), 40, "an older status takes nothing back");
    }

    #[test]
    fn a_million_events_cost_no_more_than_a_thousand() {
        let mut ledger = Ledger::default();
        let heard: Vec<_> = (1..=1_000_000).map(|n| ledger.hear(&event(n, EventKind::JobStarted))).collect();
        assert_eq!(heard.iter().filter(|heard| **heard == Heard::New).count(), 1000);
        assert_eq!((heard.last(), ledger.waiting().count()), (Some(&Heard::TooMany), 1000));
    }

    #[test]
    fn numbers_that_no_status_can_keep_are_refused() {
        let mut ledger = Ledger::default();
        for sequence in [0, SEQUENCE_LIMIT + 1, u64::MAX] {
            assert_eq!(ledger.hear(&event(sequence, EventKind::Error)), Heard::Bad);
        }
        assert_eq!(ledger.hear(&event(SEQUENCE_LIMIT, EventKind::Error)), Heard::New);
    }
}
