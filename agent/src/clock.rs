//! The only place that reads the wall clock; decisions take the time as data. And how wrong it is, by an HTTP Date header.

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since the Unix epoch; 0 when the clock stands before it.
#[must_use]
#[allow(clippy::disallowed_methods, reason = "the one reader of the wall clock")]
pub fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// How many seconds a clock that shows this time is ahead of a Date header; `None` when that tells no time.
#[must_use]
pub fn seconds_ahead(now_unix_ms: i64, date: Option<&str>) -> Option<i64> {
    let date = httpdate::parse_http_date(date?).ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some(now_unix_ms / 1000 - i64::try_from(date.as_secs()).ok()?)
}
