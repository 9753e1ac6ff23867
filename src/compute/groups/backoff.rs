//! How long a group is left alone after a failure: pure.
//!
//! A failure while the group is already left alone for the same reason changes nothing: hundreds of VMs report one
//! stockout. The next failure after the pause doubles it. Only [`super::Groups::recovered`] (or a long silence) forgets.

use std::time::Duration;

use jiff::Timestamp;

use crate::compute::ErrorClass;

/// A pause that doubles.
#[derive(Clone, Copy, Debug)]
pub struct Pause {
    /// The first.
    pub base: Duration,
    /// The longest.
    pub max: Duration,
}

impl Pause {
    const fn of(base: u64, max: u64) -> Self {
        Self { base: Duration::from_secs(base), max: Duration::from_secs(max) }
    }

    /// The pause after `strikes` earlier ones.
    fn after(self, strikes: u32) -> Duration {
        self.base.saturating_mul(2_u32.saturating_pow(strikes)).min(self.max)
    }
}

/// The pauses of every class.
#[derive(Clone, Copy, Debug)]
pub struct Pauses {
    /// Stockouts.
    pub capacity: Pause,
    /// Quotas.
    pub quota: Pause,
    /// What only a person can mend.
    pub config: Pause,
    /// What may be better in a moment.
    pub transient: Pause,
    /// The period in which Google counts calls: a pause lasts until the next one starts.
    pub rate_limit: Duration,
}

impl Default for Pauses {
    fn default() -> Self {
        Self {
            capacity: Pause::of(30, 600),
            quota: Pause::of(120, 1800),
            config: Pause::of(60, 600),
            transient: Pause::of(1, 60),
            rate_limit: Duration::from_secs(60),
        }
    }
}

impl Pauses {
    fn of(&self, class: ErrorClass) -> Pause {
        match class {
            ErrorClass::Capacity => self.capacity,
            ErrorClass::Quota => self.quota,
            ErrorClass::Config | ErrorClass::NotFound => self.config,
            ErrorClass::RateLimit => Pause { base: self.rate_limit, max: self.rate_limit },
            ErrorClass::AlreadyExists | ErrorClass::Transient => self.transient,
        }
    }

    fn length(&self, class: ErrorClass, strikes: u32, now: Timestamp, jitter: f64) -> Duration {
        let pause = self.of(class).after(strikes);
        match class {
            ErrorClass::RateLimit => to_next(now, self.rate_limit) + self.rate_limit.mul_f64(jitter / 6.0),
            _ => pause + pause.mul_f64(jitter / 10.0),
        }
    }
}

/// How long until the next whole period starts.
fn to_next(now: Timestamp, period: Duration) -> Duration {
    let period = u64::try_from(period.as_millis()).unwrap_or(u64::MAX).max(1);
    let now = u64::try_from(now.as_millisecond()).unwrap_or(0);
    Duration::from_millis(period - now % period)
}

/// A group that is left alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackOff {
    /// Until when.
    pub until: Timestamp,
    /// Why.
    pub class: ErrorClass,
    /// What the cloud said.
    pub message: String,
}

/// A pause and how many came before it.
#[derive(Clone, Debug)]
pub(super) struct Strike {
    pub(super) back_off: BackOff,
    strikes: u32,
}

/// What the group's pause becomes after a failure. `jitter` is in `0.0..1.0`.
pub(super) fn struck(
    before: Option<&Strike>,
    class: ErrorClass,
    message: &str,
    (now, jitter): (Timestamp, f64),
    pauses: &Pauses,
) -> Strike {
    if let Some(same) = before.filter(|b| b.back_off.class == class && now < b.back_off.until) {
        return same.clone();
    }
    let strikes = before.filter(|b| b.back_off.class == class && !stale(b, now, pauses)).map_or(0, |b| b.strikes + 1);
    let until = now.saturating_add(pauses.length(class, strikes, now, jitter)).unwrap_or(Timestamp::MAX);
    match before {
        // A short trouble does not end a long one.
        Some(longer) if until <= longer.back_off.until => longer.clone(),
        _ => Strike { back_off: BackOff { until, class, message: message.to_owned() }, strikes },
    }
}

/// Whether a pause is so long over that it says nothing about now.
fn stale(strike: &Strike, now: Timestamp, pauses: &Pauses) -> bool {
    let horizon = strike.back_off.until.saturating_add(pauses.of(strike.back_off.class).max);
    horizon.is_ok_and(|horizon| now > horizon)
}

#[cfg(test)]
mod tests {
    use jiff::ToSpan;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn strike(before: Option<&Strike>, class: ErrorClass, now: Timestamp) -> Strike {
        struck(before, class, "why", (now, 0.0), &Pauses::default())
    }

    #[test]
    fn a_stockout_reported_by_hundreds_of_machines_counts_once() {
        let first = strike(None, ErrorClass::Capacity, at(1000));
        let mut again = first.clone();
        for _ in 0..500 {
            again = strike(Some(&again), ErrorClass::Capacity, at(1001));
        }
        assert_eq!(again.back_off, first.back_off);
        assert_eq!(first.back_off.until, at(1030));
    }

    #[test]
    fn each_failed_probe_doubles_the_pause_up_to_the_longest() {
        let mut lengths = Vec::new();
        let mut now = at(0);
        let mut last: Option<Strike> = None;
        for _ in 0..7 {
            let next = strike(last.as_ref(), ErrorClass::Capacity, now);
            lengths.push(next.back_off.until.duration_since(now).as_secs());
            now = next.back_off.until;
            last = Some(next);
        }
        assert_eq!(lengths, [30, 60, 120, 240, 480, 600, 600]);
    }

    #[test]
    fn a_rate_limit_ends_with_the_minute() {
        assert_eq!(strike(None, ErrorClass::RateLimit, at(615)).back_off.until, at(660));
        let late = struck(None, ErrorClass::RateLimit, "", (at(615), 0.999), &Pauses::default());
        assert!(late.back_off.until > at(660) && late.back_off.until < at(671));
    }

    #[test]
    fn a_short_trouble_does_not_end_a_long_one_but_a_longer_takes_over() {
        let quota = strike(None, ErrorClass::Quota, at(0));
        assert_eq!(strike(Some(&quota), ErrorClass::Transient, at(1)).back_off.class, ErrorClass::Quota);
        let transient = strike(None, ErrorClass::Transient, at(0));
        assert_eq!(strike(Some(&transient), ErrorClass::Capacity, at(0)).back_off.class, ErrorClass::Capacity);
    }

    #[test]
    fn after_a_long_silence_the_count_starts_again() {
        let first = strike(None, ErrorClass::Capacity, at(0));
        let second = strike(Some(&first), ErrorClass::Capacity, at(0) + 2.hours());
        assert_eq!(second.back_off.until, at(7230));
    }
}
