//! Who may act: at most one process, the holder of a Lease.
//!
//! ```text
//!   Elector ── get/update, every renewal ──> Lease        (own client, own short timeouts)
//!      │ term: start of the last renewal that was answered
//!      v
//!   Leadership ── may_act(), may_create() ──> every effect asks first
//! ```
//!
//! A Lease does not fence a paused process: one that was stopped for a minute and woken still believes it leads. So the
//! answer is never a flag somebody must update: it is computed from the *start of the request* that renewed the lease
//! last, by two clocks. The monotonic one is not fooled by a wall clock that is set back; the wall clock goes on while a
//! machine sleeps, which the monotonic one need not.
//!
//! The other half of the fence: what a holder sent just before its lease ran out may still be on its way. After a
//! take-over from a holder that did not release, nothing is created until one request timeout has passed.
//!
//! Written on `Api<Lease>` because kube-lease-manager 0.13 keeps the expiry to itself, computes it from the server's
//! record by the wall clock alone, and clears an expired holder before it takes the lease, so that a take-over from a
//! crashed holder cannot be told from a release.

mod elector;

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio::sync::watch;

pub use elector::{Elector, ElectorError, LeaseSettings};

use crate::clock::Clock;

/// One moment by both clocks.
#[derive(Clone, Copy, Debug)]
struct Moment {
    monotonic: Instant,
    wall: Timestamp,
}

impl Moment {
    fn now(clock: &dyn Clock) -> Self {
        Self { monotonic: Instant::now(), wall: clock.now() }
    }

    /// Time since `earlier` by the clock that says more: a lease that one of them says is over is over.
    fn since(self, earlier: Self) -> Duration {
        let monotonic = self.monotonic.saturating_duration_since(earlier.monotonic);
        let wall = Duration::try_from(self.wall.duration_since(earlier.wall)).unwrap_or_default();
        monotonic.max(wall)
    }
}

/// A term of leadership.
#[derive(Clone, Copy, Debug)]
struct Term {
    /// When the last answered renewal was sent.
    renewed: Moment,
    /// How long one renewal lasts.
    duration: Duration,
    /// When the lease was taken.
    taken: Instant,
    /// How long to wait, from then on, before anything is created.
    settle: Duration,
}

impl Term {
    fn may_act(&self, now: Moment) -> Result<(), NotLeading> {
        if now.since(self.renewed) < self.duration { Ok(()) } else { Err(NotLeading::Expired) }
    }

    fn may_create(&self, now: Moment) -> Result<(), NotLeading> {
        self.may_act(now)?;
        let led = now.monotonic.saturating_duration_since(self.taken);
        if led < self.settle { Err(NotLeading::Settling { remaining: self.settle - led }) } else { Ok(()) }
    }
}

/// Why an effect must not happen now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotLeading {
    /// Another process holds the lease, or nobody does yet.
    #[error("this process does not hold the lease")]
    Standby,
    /// This process held the lease, and did not renew it in time.
    #[error("the lease of this process ran out before it was renewed")]
    Expired,
    /// The holder before did not release the lease: its last requests may still arrive.
    #[error("the lease was taken from a holder that did not release it: nothing is created for {remaining:?}")]
    Settling {
        /// When to ask again.
        remaining: Duration,
    },
}

/// Whether this process may act; clones share it.
#[derive(Clone)]
pub struct Leadership {
    term: Arc<RwLock<Option<Term>>>,
    leading: watch::Receiver<bool>,
    /// `None`: always leading.
    clock: Option<Arc<dyn Clock>>,
}

impl Leadership {
    /// A process that leads whatever happens: for tests and for a single process without a lease.
    #[must_use]
    pub fn always() -> Self {
        // A receiver keeps the last value when its sender is gone.
        Self { term: Arc::default(), leading: watch::channel(true).1, clock: None }
    }

    /// Whether an effect may happen now. Ask right before each one: the answer is true for this moment only.
    ///
    /// # Errors
    /// Why it may not.
    pub fn may_act(&self) -> Result<(), NotLeading> {
        self.check(Term::may_act)
    }

    /// Whether something may be created now, outside or in Kubernetes.
    ///
    /// # Errors
    /// Why it may not.
    pub fn may_create(&self) -> Result<(), NotLeading> {
        self.check(Term::may_create)
    }

    /// True while the lease is held. It says when to begin and when to end; whether to act, only `may_act` knows.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<bool> {
        self.leading.clone()
    }

    fn check(&self, rule: fn(&Term, Moment) -> Result<(), NotLeading>) -> Result<(), NotLeading> {
        let Some(clock) = &self.clock else { return Ok(()) };
        let term = *self.term.read().unwrap_or_else(PoisonError::into_inner);
        rule(&term.ok_or(NotLeading::Standby)?, Moment::now(clock.as_ref()))
    }
}

impl fmt::Debug for Leadership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leadership").field("leading", &*self.leading.borrow()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use jiff::ToSpan;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn start() -> Moment {
        Moment { monotonic: Instant::now(), wall: "2026-01-01T00:00:00Z".parse().unwrap() }
    }

    fn later(moment: Moment, monotonic: u32, wall: i64) -> Moment {
        Moment { monotonic: moment.monotonic + SECOND * monotonic, wall: moment.wall + wall.seconds() }
    }

    fn term(renewed: Moment, settle: Duration) -> Term {
        Term { renewed, duration: SECOND * 15, taken: renewed.monotonic, settle }
    }

    #[test]
    fn a_term_lasts_until_its_duration_after_the_last_renewal_was_sent() {
        let start = start();
        let term = term(start, Duration::ZERO);
        assert_eq!(term.may_act(later(start, 14, 14)), Ok(()));
        assert_eq!(term.may_act(later(start, 15, 15)), Err(NotLeading::Expired));
    }

    #[test]
    fn either_clock_alone_ends_a_term() {
        let start = start();
        let term = term(start, Duration::ZERO);
        assert_eq!(term.may_act(later(start, 1, 60)), Err(NotLeading::Expired), "the machine slept");
        assert_eq!(term.may_act(later(start, 60, -3600)), Err(NotLeading::Expired), "the wall clock was set back");
    }

    #[test]
    fn after_an_unclean_take_over_acting_is_allowed_at_once_and_creating_only_later() {
        let start = start();
        let term = term(start, SECOND * 10);
        assert_eq!(term.may_act(later(start, 3, 3)), Ok(()));
        assert_eq!(term.may_create(later(start, 3, 3)), Err(NotLeading::Settling { remaining: SECOND * 7 }));
        assert_eq!(term.may_create(later(start, 10, 10)), Ok(()));
        assert_eq!(term.may_create(later(start, 15, 15)), Err(NotLeading::Expired));
    }

    #[test]
    fn a_process_without_a_lease_always_leads() {
        let leadership = Leadership::always();
        assert_eq!(leadership.may_act(), Ok(()));
        assert_eq!(leadership.may_create(), Ok(()));
        assert!(*leadership.watch().borrow());
    }
}
