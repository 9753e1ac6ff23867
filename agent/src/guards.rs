//! Limits of a machine: first a warning, then an end. Pure.
//!
//! | what | warns | acts |
//! | --- | --- | --- |
//! | how long a job runs | at nine tenths of the limit | at the limit |
//! | disk, memory | at `warn` percent | at `act` percent, in two looks in a row |
//!
//! Disk and memory only warn unless somebody asks for more: a job that fills either fails by itself, and a figure alone
//! does not say that this one would not have managed. The default for the time is the longest that GitHub lets a job run.

use std::time::Duration;

use tokio::time::Instant;

/// Looks in a row that show the same before it counts: a linker takes its gigabytes for a second.
const LOOKS: u8 = 2;

/// The limits, each off where 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Guards {
    /// How long a job may run.
    pub runtime: Duration,
    /// Disk in use.
    pub disk: Thresholds,
    /// Memory in use.
    pub memory: Thresholds,
}

/// Percentages, each off where 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Thresholds {
    /// A warning from here on.
    pub warn: u8,
    /// The end from here on.
    pub act: u8,
}

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A job's time.
    Runtime,
    /// The disk.
    Disk,
    /// The memory.
    Memory,
}

/// A limit that was neared or passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alarm {
    /// Which.
    pub kind: Kind,
    /// Passed, not only neared.
    pub acted: bool,
    /// Figures, for people.
    pub detail: String,
}

/// Use in percent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Of the disk where the runner works.
    pub disk: u8,
    /// Of the memory.
    pub memory: u8,
    /// The runner's disk takes no writes.
    pub read_only: bool,
}

/// What was seen so far.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    disk: Streak,
    memory: Streak,
    /// The worst so far, and of those the first.
    alarm: Option<Alarm>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Streak {
    warn: u8,
    act: u8,
}

impl Watch {
    /// The worst so far.
    #[must_use]
    pub fn alarm(&self) -> Option<&Alarm> {
        self.alarm.as_ref()
    }

    /// Takes a look at the figures into account.
    pub fn look(&mut self, guards: &Guards, figures: Figures) {
        if let Some(acted) = self.disk.look(guards.disk, figures.disk) {
            self.raise(Kind::Disk, acted, || format!("{} % of the runner's disk are in use", figures.disk));
        }
        if let Some(acted) = self.memory.look(guards.memory, figures.memory) {
            self.raise(Kind::Memory, acted, || format!("{} % of the memory are in use", figures.memory));
        }
    }

    /// Takes the time into account: since when a job runs, if one does.
    pub fn time(&mut self, guards: &Guards, job_since: Option<Instant>, now: Instant) {
        let Some(since) = job_since.filter(|_| !guards.runtime.is_zero()) else { return };
        let seconds = guards.runtime.as_secs();
        if now >= since + guards.runtime {
            self.raise(Kind::Runtime, true, || format!("the job ran for {seconds} s"));
        } else if now >= since + warning(guards.runtime) {
            self.raise(Kind::Runtime, false, || format!("the job has run for nine tenths of its {seconds} s"));
        }
    }

    /// When time alone changes something next.
    #[must_use]
    pub fn next(&self, guards: &Guards, job_since: Option<Instant>, now: Instant) -> Option<Instant> {
        let since = job_since.filter(|_| !guards.runtime.is_zero())?;
        [since + warning(guards.runtime), since + guards.runtime].into_iter().find(|at| *at > now)
    }

    fn raise(&mut self, kind: Kind, acted: bool, detail: impl FnOnce() -> String) {
        if self.alarm.as_ref().is_none_or(|alarm| acted && !alarm.acted) {
            self.alarm = Some(Alarm { kind, acted, detail: detail() });
        }
    }
}

impl Streak {
    /// Whether it is enough for a warning (false) or for the end (true).
    fn look(&mut self, thresholds: Thresholds, percent: u8) -> Option<bool> {
        let next = |streak: u8, limit: u8| if limit > 0 && percent >= limit { streak.saturating_add(1) } else { 0 };
        (self.warn, self.act) = (next(self.warn, thresholds.warn), next(self.act, thresholds.act));
        match (self.act >= LOOKS, self.warn >= LOOKS) {
            (true, _) => Some(true),
            (false, true) => Some(false),
            (false, false) => None,
        }
    }
}

fn warning(limit: Duration) -> Duration {
    limit / 10 * 9
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GUARDS: Guards = Guards {
        runtime: Duration::from_secs(100),
        disk: Thresholds { warn: 80, act: 95 },
        memory: Thresholds { warn: 90, act: 0 },
    };

    fn after(looks: &[(u8, u8)]) -> Option<(Kind, bool)> {
        let mut watch = Watch::default();
        for (disk, memory) in looks {
            watch.look(&GUARDS, Figures { disk: *disk, memory: *memory, ..Figures::default() });
        }
        watch.alarm().map(|alarm| (alarm.kind, alarm.acted))
    }

    #[test]
    fn one_look_is_none_and_two_in_a_row_count() {
        assert_eq!(after(&[(96, 0)]), None);
        assert_eq!(after(&[(85, 0), (10, 0), (85, 0)]), None);
        assert_eq!(after(&[(85, 0), (96, 0)]), Some((Kind::Disk, false)));
        assert_eq!(after(&[(96, 0), (95, 0)]), Some((Kind::Disk, true)));
    }

    #[test]
    fn what_is_off_never_acts_and_a_warning_gives_way_to_an_end_only() {
        assert_eq!(after(&[(0, 100), (0, 100), (0, 100)]), Some((Kind::Memory, false)));
        assert_eq!(after(&[(0, 91), (0, 91), (85, 0), (85, 0)]), Some((Kind::Memory, false)));
        assert_eq!(after(&[(0, 91), (0, 91), (99, 0), (99, 0), (0, 0)]), Some((Kind::Disk, true)));
    }

    #[test]
    fn a_job_is_warned_about_at_nine_tenths_and_ends_at_its_limit() {
        let (start, mut watch) = (Instant::now(), Watch::default());
        let mut at = |seconds| {
            let now = start + Duration::from_secs(seconds);
            watch.time(&GUARDS, Some(start), now);
            let next = watch.next(&GUARDS, Some(start), now).map(|at| (at - start).as_secs());
            (watch.alarm().map(|alarm| alarm.acted), next)
        };
        assert_eq!(at(0), (None, Some(90)));
        assert_eq!(at(90), (Some(false), Some(100)));
        assert_eq!(at(100), (Some(true), None));
    }

    proptest! {
        #[test]
        fn an_end_is_never_taken_back_and_guards_that_are_off_raise_nothing(
            looks in proptest::collection::vec((0u8..=100, 0u8..=100), 0..40),
        ) {
            let (mut watch, mut off, mut acted) = (Watch::default(), Watch::default(), false);
            for (disk, memory) in looks {
                let figures = Figures { disk, memory, ..Figures::default() };
                watch.look(&GUARDS, figures);
                off.look(&Guards::default(), figures);
                let now = watch.alarm().is_some_and(|alarm| alarm.acted);
                prop_assert!(now || !acted);
                acted = now;
            }
            prop_assert!(off.alarm().is_none());
        }
    }
}
