//! Gathers what many ask for within a moment, so that it goes out in one call.
//!
//! A batch waits for a short window, and until the one before it is a pace old: what comes while a call may be under way
//! goes in the next. So the number of calls is bounded by time, however many ask.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};

/// Those who wait for each key.
pub(super) type Waiting<K, R> = BTreeMap<K, Vec<oneshot::Sender<R>>>;

/// How long a batch is gathered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// From its first key on, at least.
    pub(super) window: Duration,
    /// From the batch before it on, at least.
    pub(super) between: Duration,
}

/// What was asked for and not sent yet. The same key twice is one entry with two waiters.
#[derive(Debug)]
pub(super) struct Gather<K, R>(Mutex<Batch<K, R>>);

#[derive(Debug)]
struct Batch<K, R> {
    waiting: Waiting<K, R>,
    /// When this one goes out; of an empty one, when the last went.
    goes: Option<Instant>,
}

impl<K, R> Default for Gather<K, R> {
    fn default() -> Self {
        Self(Mutex::new(Batch { waiting: BTreeMap::new(), goes: None }))
    }
}

/// When a batch goes out whose first key comes now.
fn departure(now: Instant, last: Option<Instant>, pace: Pace) -> Instant {
    let soonest = now + pace.window;
    last.map_or(soonest, |last| soonest.max(last + pace.between))
}

impl<K: Ord, R: Clone> Gather<K, R> {
    /// Adds a key. The first of a batch is told when it goes out: who gets that must see to it that it is taken then.
    pub(super) fn add(&self, key: K, pace: Pace) -> (oneshot::Receiver<R>, Option<Instant>) {
        let (sender, receiver) = oneshot::channel();
        let mut batch = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let first = batch.waiting.is_empty();
        batch.waiting.entry(key).or_default().push(sender);
        if first {
            batch.goes = Some(departure(Instant::now(), batch.goes, pace));
        }
        (receiver, batch.goes.filter(|_| first))
    }

    /// Takes the batch.
    pub(super) fn take(&self) -> Waiting<K, R> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner).waiting)
    }
}

/// Tells all who wait for `key`. Who stopped waiting is not missed: the answer is in the cloud.
pub(super) fn answer<K: Ord, R: Clone>(waiting: &mut Waiting<K, R>, key: &K, result: &R) {
    for sender in waiting.remove(key).unwrap_or_default() {
        drop(sender.send(result.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Pace = Pace { window: Duration::from_millis(50), between: Duration::from_millis(500) };

    #[test]
    fn a_batch_waits_for_its_window_and_for_its_distance_from_the_one_before() {
        let now = Instant::now();
        let ago = |milliseconds| now.checked_sub(Duration::from_millis(milliseconds));
        assert_eq!(departure(now, None, PACE) - now, Duration::from_millis(50));
        assert_eq!(departure(now, ago(100), PACE) - now, Duration::from_millis(400));
        assert_eq!(departure(now, ago(10_000), PACE) - now, Duration::from_millis(50));
    }

    #[test]
    fn only_the_first_of_a_batch_has_to_take_it() {
        let gather: Gather<_, ()> = Gather::default();
        assert!(gather.add('a', PACE).1.is_some());
        assert!(gather.add('b', PACE).1.is_none());
        assert_eq!(gather.take().len(), 2);
        assert!(gather.add('c', PACE).1.is_some());
    }
}
