//! Rate limits, counted per credential: a primary budget per window, and the secondary limit's points per minute.
//!
//! Both are off unless asked for: most tests are about something else. The headers are there either way.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use http::{Method, StatusCode};
use serde::{Deserialize, Serialize};

use super::refusal::Refusal;

/// What an unlimited credential is told it has.
const GENEROUS: u32 = 15_000;
/// One window of the primary limit.
const HOUR: Duration = Duration::from_secs(3600);

/// Rate limits in force.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Limits {
    /// Requests per window and credential.
    pub primary: Option<u32>,
    /// Length of the window.
    pub window_seconds: u64,
    /// Points per minute and credential (GitHub: 900; a GET is 1, a write is 5).
    pub secondary: Option<u32>,
    /// `Retry-After` of the secondary limit.
    pub retry_after_seconds: u64,
    /// 403 or 429: GitHub uses both.
    pub status: u16,
}

impl Default for Limits {
    fn default() -> Self {
        Self { primary: None, window_seconds: HOUR.as_secs(), secondary: None, retry_after_seconds: 60, status: 403 }
    }
}

/// What one credential has used.
#[derive(Debug)]
struct Used {
    resets: i64,
    requests: u32,
    minute: Instant,
    points: u32,
}

/// The figures of the `x-ratelimit-*` headers and of `GET /rate_limit`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    pub(crate) limit: u32,
    pub(crate) remaining: u32,
    pub(crate) used: u32,
    pub(crate) reset: i64,
}

/// Counts requests by credential.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    pub(crate) limits: Limits,
    used: HashMap<String, Used>,
}

impl Meter {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, used: HashMap::new() }
    }

    /// New limits, with everyone's count at zero.
    pub(crate) fn set(&mut self, limits: Limits) {
        *self = Self::new(limits);
    }

    /// What this credential has left; `seconds` is the wall clock.
    pub(crate) fn budget(&mut self, who: &str, seconds: i64) -> Budget {
        let limit = self.limits.primary.unwrap_or(GENEROUS);
        let limited = self.limits.primary.is_some();
        let used = self.entry(who, seconds);
        let requests = if limited { used.requests.min(limit) } else { 0 };
        Budget { limit, remaining: limit - requests, used: requests, reset: used.resets }
    }

    /// Counts one request, or says why it is refused.
    pub(crate) fn charge(&mut self, who: &str, method: &Method, seconds: i64) -> Result<(), Refusal> {
        let limits = self.limits.clone();
        let used = self.entry(who, seconds);
        if limits.primary.is_some_and(|limit| used.requests >= limit) {
            return Err(Refusal::new(status(limits.status), format!("API rate limit exceeded for {who}.")));
        }
        let points = if *method == Method::GET { 1 } else { 5 };
        if limits.secondary.is_some_and(|limit| used.points + points > limit) {
            let text = "You have exceeded a secondary rate limit. Please wait a few minutes before you try again.";
            let after = limits.retry_after_seconds.to_string();
            return Err(Refusal::new(status(limits.status), text).header("retry-after", after));
        }
        used.requests += 1;
        used.points += points;
        Ok(())
    }

    fn entry(&mut self, who: &str, seconds: i64) -> &mut Used {
        let resets = seconds + i64::try_from(self.limits.window_seconds).unwrap_or(i64::MAX / 2);
        let now = Instant::now();
        let used = self.used.entry(who.to_owned()).or_insert(Used { resets, requests: 0, minute: now, points: 0 });
        // At the second it told everybody, not a part of one later.
        if seconds >= used.resets {
            (used.resets, used.requests) = (resets, 0);
        }
        if now.duration_since(used.minute) >= Duration::from_secs(60) {
            (used.minute, used.points) = (now, 0);
        }
        used
    }
}

fn status(code: u16) -> StatusCode {
    StatusCode::from_u16(code).unwrap_or(StatusCode::FORBIDDEN)
}
