//! The simulator's wall clock, which can be set wrong on purpose.

use std::sync::atomic::{AtomicI64, Ordering};

use jiff::Timestamp;

/// The wall clock plus a skew.
#[derive(Debug, Default)]
pub(crate) struct Clock(AtomicI64);

impl Clock {
    /// Seconds since 1970, as this server believes.
    #[allow(clippy::disallowed_methods, reason = "this is the simulated service's own clock, not the product's")]
    pub(crate) fn seconds(&self) -> i64 {
        Timestamp::now().as_second() + self.0.load(Ordering::Relaxed)
    }

    /// Sets how far it is ahead.
    pub(crate) fn skew(&self, seconds: i64) {
        self.0.store(seconds, Ordering::Relaxed);
    }
}

/// RFC 3339 in UTC, the form of the REST API.
pub(crate) fn rfc3339(seconds: i64) -> String {
    Timestamp::from_second(seconds).unwrap_or_default().to_string()
}
