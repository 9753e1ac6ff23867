//! What GitHub says about its rate limits, and what follows: pure.

use std::time::Duration;

use http::HeaderMap;
use jiff::Timestamp;

/// The pause after a secondary limit that names none; doubles while they go on.
const SECONDARY: Duration = Duration::from_secs(60);
/// The shortest pause after a refusal, whatever it says: clocks differ, and a reset that has passed here may not have
/// there. Doubles while refusals go on.
const SHORTEST: Duration = Duration::from_secs(1);
/// The longest such pause.
const LONGEST: Duration = Duration::from_secs(900);

/// What an answer says about limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Signs {
    pub(super) remaining: Option<u64>,
    pub(super) reset: Option<Timestamp>,
    pub(super) retry_after: Option<Duration>,
    /// Whether the call was refused because of a limit.
    pub(super) refused: bool,
}

/// Reads an answer. A 403 is a limit only when it says so: otherwise it is a matter of permissions.
pub(super) fn signs(status: u16, headers: &HeaderMap, message: &str) -> Signs {
    let number =
        |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).and_then(|v| v.trim().parse::<u64>().ok());
    let remaining = number("x-ratelimit-remaining");
    let retry_after = number("retry-after").map(Duration::from_secs);
    let said = message.to_ascii_lowercase();
    let limited = retry_after.is_some()
        || remaining == Some(0)
        || said.contains("secondary rate limit")
        || said.contains("rate limit exceeded")
        || said.contains("abuse detection");
    let refused = status == 429 || (status == 403 && limited);
    // Some calls have a budget of their own: it must not be taken for that of all the others.
    let core = headers.get("x-ratelimit-resource").is_none_or(|resource| resource == "core");
    let reset = number("x-ratelimit-reset").and_then(|s| Timestamp::from_second(i64::try_from(s).ok()?).ok());
    Signs {
        remaining: remaining.filter(|_| core || refused),
        reset: reset.filter(|_| core || refused),
        retry_after,
        refused,
    }
}

/// What is left of a credential's budget.
#[derive(Clone, Debug, Default)]
pub(super) struct Budget {
    remaining: Option<u64>,
    reset: Option<Timestamp>,
    blocked_until: Option<Timestamp>,
    refusals: u32,
}

impl Budget {
    /// How long to wait before the next call; zero when it may go.
    pub(super) fn wait(&self, now: Timestamp) -> Duration {
        let empty = self.reset.filter(|_| self.remaining == Some(0));
        let until = [empty, self.blocked_until].into_iter().flatten().max();
        until.map_or(Duration::ZERO, |until| Duration::try_from(until.duration_since(now)).unwrap_or_default())
    }

    /// Whether more than so many calls are left, as far as is known.
    pub(super) fn has_more_than(&self, calls: u64) -> bool {
        self.remaining.is_none_or(|left| left > calls)
    }

    /// A call goes out: calls under way together must not overdraw.
    pub(super) fn spend(&mut self, now: Timestamp) {
        if self.reset.is_some_and(|reset| reset <= now) {
            (self.remaining, self.reset) = (None, None);
        }
        self.remaining = self.remaining.map(|left| left.saturating_sub(1));
    }

    /// An answer came.
    pub(super) fn answered(&mut self, signs: Signs, now: Timestamp) {
        if let (Some(remaining), Some(reset)) = (signs.remaining, signs.reset) {
            let older = self.reset.is_some_and(|known| known > reset);
            let same = self.reset == Some(reset);
            // Answers overtake each other: within one window only the smallest number is true.
            let left = self.remaining.filter(|_| same).map_or(remaining, |known| known.min(remaining));
            if !older {
                (self.remaining, self.reset) = (Some(left), Some(reset));
            }
        }
        if signs.refused {
            self.refused(signs, now);
        } else if self.blocked_until.is_none_or(|until| until <= now) {
            (self.blocked_until, self.refusals) = (None, 0);
        }
    }

    fn refused(&mut self, signs: Signs, now: Timestamp) {
        // Calls that were under way together are one refusal.
        if self.blocked_until.is_none_or(|until| until <= now) {
            self.refusals += 1;
        }
        let grown =
            |first: Duration| first.saturating_mul(2_u32.saturating_pow(self.refusals.saturating_sub(1))).min(LONGEST);
        let reset = signs.reset.filter(|_| signs.remaining == Some(0));
        let until = match (signs.retry_after, reset) {
            (Some(after), _) => now.saturating_add(after).ok(),
            (None, Some(reset)) => Some(reset),
            (None, None) => now.saturating_add(grown(SECONDARY)).ok(),
        };
        let soonest = now.saturating_add(grown(SHORTEST)).ok();
        self.blocked_until = self.blocked_until.max(until).max(soonest);
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(k, v)| (HeaderName::from_static(k), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn a_403_is_a_limit_only_when_it_says_so() {
        let none = headers(&[]);
        assert!(!signs(403, &headers(&[("x-ratelimit-remaining", "4000")]), "Resource not accessible").refused);
        assert!(signs(403, &headers(&[("x-ratelimit-remaining", "0")]), "").refused);
        assert!(signs(403, &headers(&[("retry-after", "7")]), "").refused);
        assert!(signs(403, &none, "You have exceeded a secondary rate limit.").refused);
        assert!(signs(429, &none, "").refused);
        assert!(!signs(200, &headers(&[("x-ratelimit-remaining", "0")]), "").refused);
    }

    #[test]
    fn an_empty_budget_waits_for_its_reset_and_then_goes_on() {
        let mut budget = Budget::default();
        let last = signs(200, &headers(&[("x-ratelimit-remaining", "1"), ("x-ratelimit-reset", "1000")]), "");
        budget.answered(last, at(900));
        assert_eq!(budget.wait(at(900)), Duration::ZERO);
        budget.spend(at(900));
        assert_eq!(budget.wait(at(900)), Duration::from_secs(100));
        assert_eq!(budget.wait(at(1000)), Duration::ZERO);
        budget.spend(at(1000));
        assert_eq!(budget.wait(at(1000)), Duration::ZERO, "the old window says nothing about the new one");
    }

    #[test]
    fn answers_that_overtake_each_other_never_raise_the_budget() {
        let mut budget = Budget::default();
        let sign = |left, reset| Signs { remaining: Some(left), reset: Some(at(reset)), ..Signs::default() };
        budget.answered(sign(0, 1000), at(900));
        budget.answered(sign(5, 1000), at(901));
        assert_eq!(budget.wait(at(901)), Duration::from_secs(99));
        budget.answered(sign(4999, 4600), at(902));
        assert_eq!(budget.wait(at(902)), Duration::ZERO);
    }

    #[test]
    fn secondary_limits_without_a_time_wait_longer_each_time() {
        let mut budget = Budget::default();
        let refused = Signs { refused: true, ..Signs::default() };
        budget.answered(refused, at(0));
        budget.answered(refused, at(1));
        assert_eq!(budget.wait(at(1)), Duration::from_secs(60), "two calls under way together are one refusal");
        budget.answered(refused, at(100));
        assert_eq!(budget.wait(at(100)), Duration::from_secs(120));
        budget.answered(Signs::default(), at(300));
        budget.answered(refused, at(301));
        assert_eq!(budget.wait(at(301)), Duration::from_secs(60));
    }

    #[test]
    fn a_refusal_whose_reset_has_passed_by_our_clock_still_makes_a_pause() {
        let mut budget = Budget::default();
        let refused = Signs { remaining: Some(0), reset: Some(at(1000)), refused: true, ..Signs::default() };
        budget.answered(refused, at(1000));
        assert_eq!(budget.wait(at(1000)), Duration::from_secs(1));
        budget.answered(refused, at(1001));
        assert_eq!(budget.wait(at(1001)), Duration::from_secs(2));
    }

    #[test]
    fn the_budget_of_another_resource_is_not_taken_for_ours() {
        let mut budget = Budget::default();
        let empty = [("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "1000")];
        let other = [&empty[..], &[("x-ratelimit-resource", "actions_runner_registration")]].concat();
        budget.answered(signs(200, &headers(&other), ""), at(900));
        assert_eq!(budget.wait(at(900)), Duration::ZERO);
        let core = [&empty[..], &[("x-ratelimit-resource", "core")]].concat();
        budget.answered(signs(200, &headers(&core), ""), at(900));
        assert_eq!(budget.wait(at(900)), Duration::from_secs(100));
    }

    #[test]
    fn retry_after_is_obeyed() {
        let mut budget = Budget::default();
        budget.answered(signs(403, &headers(&[("retry-after", "7")]), ""), at(0));
        assert_eq!(budget.wait(at(0)), Duration::from_secs(7));
    }
}
