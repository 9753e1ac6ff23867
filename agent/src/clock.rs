//! The only place that reads the machine's clocks; decisions take the time as data. And how wrong the wall clock is, by
//! an HTTP Date header.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// Now, for decisions: on the clock that deadlines are kept on, and on the one that an earlier agent has kept times on.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Means nothing to another process.
    pub instant: Instant,
    /// Milliseconds since the boot.
    pub boot_ms: u64,
}

impl Now {
    /// This moment.
    #[must_use]
    pub fn read() -> Self {
        Self { instant: Instant::now(), boot_ms: boot_ms() }
    }

    /// The instant of an earlier time since the boot; this one for a later time.
    #[must_use]
    pub fn instant_of(&self, boot_ms: u64) -> Instant {
        let ago = Duration::from_millis(self.boot_ms.saturating_sub(boot_ms));
        self.instant.checked_sub(ago).unwrap_or(self.instant)
    }
}

/// When something happened, by both clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Moment {
    /// What people read.
    pub unix_ms: i64,
    /// Milliseconds since the boot: never goes back, whatever becomes of the agent, its disk and the wall clock.
    pub boot_ms: u64,
}

impl Moment {
    /// Now.
    #[must_use]
    pub fn now() -> Self {
        Self { unix_ms: unix_ms(), boot_ms: boot_ms() }
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
