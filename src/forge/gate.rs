//! The gate in front of one credential.
//!
//! GitHub counts calls by credential, and refuses bursts. So calls of one credential share a budget and a bounded number of
//! places; while they wait, DELETE goes before POST before reads: giving back comes before asking for more. A call that
//! would wait too long is told so instead, with the time to come back. A call that is only nice to have never waits, and
//! leaves the last part of the budget to the others.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::oneshot;

use super::limits::{Budget, Signs};
use crate::clock::Clock;

/// How urgent a call is; the smallest goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Urgency {
    Delete,
    Post,
    Read,
    /// Nobody needs the answer.
    Spare,
}

/// What spare calls leave of the budget to the others.
const RESERVE: u64 = 500;

/// The bounds of a gate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Calls at once.
    pub(super) places: usize,
    /// The longest a call waits here.
    pub(super) patience: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { places: 8, patience: Duration::from_secs(20) }
    }
}

/// A gate; clones share it.
#[derive(Clone, Debug)]
pub(super) struct Gate(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    clock: Arc<dyn Clock>,
    bounds: Bounds,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    budget: Budget,
    running: usize,
    arrivals: u64,
    waiting: BTreeMap<(Urgency, u64), oneshot::Sender<Place>>,
}

/// A place in front of GitHub, given back when dropped.
#[derive(Debug)]
pub(super) struct Place(Gate);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.state(|state| state.running = state.running.saturating_sub(1));
        self.0.admit();
    }
}

/// The call would wait too long: come back after this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Busy(pub(super) Duration);

impl Gate {
    pub(super) fn new(clock: Arc<dyn Clock>, bounds: Bounds) -> Self {
        Self(Arc::new(Inner { clock, bounds, state: Mutex::default() }))
    }

    /// Waits for a place.
    pub(super) async fn enter(&self, urgency: Urgency) -> Result<Place, Busy> {
        let wait = self.wait();
        if wait > self.0.bounds.patience || (urgency == Urgency::Spare && !self.has_room()) {
            return Err(Busy(wait));
        }
        let (sender, mut receiver) = oneshot::channel();
        self.state(|state| {
            state.arrivals += 1;
            state.waiting.insert((urgency, state.arrivals), sender);
        });
        let deadline = tokio::time::Instant::now() + self.0.bounds.patience;
        loop {
            self.admit();
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            let nap = Some(self.wait()).filter(|wait| !wait.is_zero()).map_or(left, |wait| wait.min(left));
            match tokio::time::timeout(nap, &mut receiver).await {
                Ok(place) => return place.map_err(|_| self.busy()),
                Err(_) if left <= nap => return Err(self.busy()),
                Err(_) => {}
            }
        }
    }

    /// Tells the gate what an answer said.
    pub(super) fn answered(&self, signs: Signs) {
        let now = self.0.clock.now();
        let hopeless = self.state(|state| {
            state.budget.answered(signs, now);
            let hopeless = state.budget.wait(now) > self.0.bounds.patience;
            if hopeless { std::mem::take(&mut state.waiting) } else { BTreeMap::new() }
        });
        drop(hopeless);
    }

    /// How long the credential is blocked.
    pub(super) fn wait(&self) -> Duration {
        let now = self.0.clock.now();
        self.state(|state| state.budget.wait(now))
    }

    /// Whether a place is free, and more is left of the budget than the others may need.
    fn has_room(&self) -> bool {
        let now = self.0.clock.now();
        self.state(|state| {
            let free = state.running < self.0.bounds.places && state.waiting.is_empty();
            free && state.budget.wait(now).is_zero() && state.budget.has_more_than(RESERVE)
        })
    }

    fn busy(&self) -> Busy {
        Busy(self.wait().max(Duration::from_secs(1)))
    }

    /// Lets in who may go. Places are handed over outside the lock: one that nobody takes comes back here.
    fn admit(&self) {
        while let Some(sender) = self.next() {
            drop(sender.send(Place(self.clone())));
        }
    }

    fn next(&self) -> Option<oneshot::Sender<Place>> {
        let now = self.0.clock.now();
        self.state(|state| {
            state.waiting.retain(|_, sender| !sender.is_closed());
            if state.running >= self.0.bounds.places || !state.budget.wait(now).is_zero() {
                return None;
            }
            let (_, sender) = state.waiting.pop_first()?;
            state.running += 1;
            state.budget.spend(now);
            Some(sender)
        })
    }

    fn state<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.0.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use jiff::{SignedDuration, Timestamp};
    use tokio::time::Instant;

    use super::*;

    #[derive(Debug)]
    struct TestClock(Instant);

    impl Clock for TestClock {
        fn now(&self) -> Timestamp {
            Timestamp::from_second(1_800_000_000).unwrap() + SignedDuration::try_from(self.0.elapsed()).unwrap()
        }
    }

    fn gate(places: usize) -> Gate {
        Gate::new(Arc::new(TestClock(Instant::now())), Bounds { places, ..Bounds::default() })
    }

    fn blocked(seconds: u64) -> Signs {
        Signs { retry_after: Some(Duration::from_secs(seconds)), refused: true, ..Signs::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn deletes_go_before_posts_before_reads() {
        let gate = gate(1);
        let first = gate.enter(Urgency::Read).await.unwrap();
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = tokio::task::JoinSet::new();
        for urgency in [Urgency::Read, Urgency::Post, Urgency::Delete, Urgency::Read, Urgency::Delete] {
            let (gate, order) = (gate.clone(), order.clone());
            tasks.spawn(async move {
                let _place = gate.enter(urgency).await.unwrap();
                order.lock().unwrap().push(urgency);
            });
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        drop(first);
        tasks.join_all().await;
        use Urgency::*;
        assert_eq!(*order.lock().unwrap(), [Delete, Delete, Post, Read, Read]);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_calls_than_places_at_once_and_a_place_of_the_impatient_comes_back() {
        let gate = gate(2);
        let (a, _b) = (gate.enter(Urgency::Read).await.unwrap(), gate.enter(Urgency::Read).await.unwrap());
        let third = tokio::time::timeout(Duration::from_secs(1), gate.enter(Urgency::Read)).await;
        assert!(third.is_err());
        drop(a);
        assert!(tokio::time::timeout(Duration::from_secs(1), gate.enter(Urgency::Read)).await.unwrap().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_spare_call_never_waits_and_leaves_the_rest_of_the_budget_alone() {
        let gate = gate(1);
        let place = gate.enter(Urgency::Spare).await.unwrap();
        let start = Instant::now();
        assert!(gate.enter(Urgency::Spare).await.is_err());
        drop(place);
        let reset = Some(gate.0.clock.now() + SignedDuration::from_secs(3600));
        for (remaining, admitted) in [(501, true), (500, false)] {
            gate.answered(Signs { remaining: Some(remaining), reset, ..Signs::default() });
            assert_eq!(gate.enter(Urgency::Spare).await.is_ok(), admitted, "{remaining} left");
        }
        assert!(gate.enter(Urgency::Read).await.is_ok());
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_short_block_is_waited_for_and_a_long_one_is_told() {
        let gate = gate(8);
        gate.answered(blocked(10));
        let start = Instant::now();
        drop(gate.enter(Urgency::Post).await.unwrap());
        assert!(start.elapsed() >= Duration::from_secs(10));
        gate.answered(blocked(3600));
        let start = Instant::now();
        assert_eq!(gate.enter(Urgency::Delete).await.unwrap_err(), Busy(Duration::from_secs(3600)));
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn who_already_waits_is_told_at_once_when_a_long_block_comes() {
        let gate = gate(1);
        let _place = gate.enter(Urgency::Read).await.unwrap();
        let waiting = tokio::spawn({
            let gate = gate.clone();
            async move { gate.enter(Urgency::Post).await.map(drop) }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        let start = Instant::now();
        gate.answered(blocked(3600));
        assert!(waiting.await.unwrap().is_err());
        assert!(start.elapsed() < Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_longer_than_the_patience_for_a_place() {
        let gate = gate(1);
        let _place = gate.enter(Urgency::Read).await.unwrap();
        let start = Instant::now();
        assert!(gate.enter(Urgency::Delete).await.is_err());
        assert_eq!(start.elapsed(), Duration::from_secs(20));
    }
}
