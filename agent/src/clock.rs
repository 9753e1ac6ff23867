//! The only place that reads the machine's clocks; decisions take the time as data. And how wrong the wall clock is, by
//! an HTTP Date header.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// One moment: deadlines are kept on the clock that never jumps, a job's start comes from the wall clock.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Never jumps.
    pub instant: Instant,
    /// Milliseconds since the Unix epoch.
    pub unix_ms: i64,
}

impl Now {
    /// This moment.
    #[must_use]
    pub fn read() -> Self {
        Self { instant: Instant::now(), unix_ms: unix_ms() }
    }

    /// The instant of an earlier time of the wall clock; this one for a later time, or one before the machine's start.
    #[must_use]
    pub fn instant_of(&self, unix_ms: i64) -> Instant {
        let ago = u64::try_from(self.unix_ms.saturating_sub(unix_ms)).unwrap_or(0);
        self.instant.checked_sub(Duration::from_millis(ago)).unwrap_or(self.instant)
    }
}

/// Milliseconds since the Unix epoch; 0 when the clock stands before it.
#[must_use]
#[allow(clippy::disallowed_methods, reason = "the one reader of the wall clock")]
pub fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Milliseconds since the machine's boot, time asleep included: the one clock that nobody sets.
#[must_use]
pub fn boot_ms() -> u64 {
    let since = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let ms = since.tv_sec * 1000 + since.tv_nsec / 1_000_000;
    u64::try_from(ms).unwrap_or_default()
}

/// How many seconds a clock that shows this time is ahead of a Date header; `None` when that tells no time.
#[must_use]
pub fn seconds_ahead(now_unix_ms: i64, date: Option<&str>) -> Option<i64> {
    let date = httpdate::parse_http_date(date?).ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some(now_unix_ms / 1000 - i64::try_from(date.as_secs()).ok()?)
}
