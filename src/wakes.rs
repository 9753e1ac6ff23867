//! Wakes a controller for one object, from outside: any number of wakes before it looks are one.
//!
//! kube's own debounce starts over with every event, so a pool whose VMs always have news would never be looked at
//! (kube-runtime 5.0.0, `scheduler.rs`). Here the first wake goes through at once, and the next of the same object after
//! an interval.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{Stream, stream};
use tokio::{sync::Notify, time::Instant};

/// Namespace and name of an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Key {
    /// A key.
    #[must_use]
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A set of objects somebody should look at; clones share it. Bounded by the number of objects.
#[derive(Clone, Debug, Default)]
pub struct Wakes(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    pending: Mutex<BTreeSet<Key>>,
    notify: Notify,
}

impl Wakes {
    /// Asks for a look at `key`.
    pub fn wake(&self, key: Key) {
        self.0.pending.lock().unwrap_or_else(PoisonError::into_inner).insert(key);
        self.0.notify.notify_one();
    }

    /// The objects to look at: each at most once in `interval`, the first time at once.
    pub fn stream(&self, interval: Duration) -> impl Stream<Item = Key> + Send + 'static {
        let recent = Recent { interval, looked: HashMap::new() };
        stream::unfold((self.clone(), recent), |(wakes, mut recent)| async move {
            let key = wakes.next(&mut recent).await;
            Some((key, (wakes, recent)))
        })
    }

    async fn next(&self, recent: &mut Recent) -> Key {
        loop {
            let news = self.0.notify.notified();
            let soonest = match self.take(recent) {
                Ok(key) => return key,
                Err(soonest) => soonest,
            };
            match soonest {
                Some(at) => drop(tokio::time::timeout_at(at, news).await),
                None => news.await,
            }
        }
    }

    /// A pending key that may be looked at now, or when the first one may.
    fn take(&self, recent: &mut Recent) -> Result<Key, Option<Instant>> {
        let mut pending = self.0.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        recent.looked.retain(|_, at| *at + recent.interval > now);
        let due = pending.iter().find(|key| !recent.looked.contains_key(key)).cloned();
        let Some(key) = due else {
            return Err(pending.iter().filter_map(|key| recent.looked.get(key)).min().map(|at| *at + recent.interval));
        };
        pending.remove(&key);
        if !recent.interval.is_zero() {
            recent.looked.insert(key.clone(), now);
        }
        Ok(key)
    }
}

/// What was looked at within the interval.
#[derive(Debug)]
struct Recent {
    interval: Duration,
    looked: HashMap<Key, Instant>,
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn constant_news_of_one_object_neither_starves_it_nor_floods_its_controller() {
        let wakes = Wakes::default();
        let mut looks = Box::pin(wakes.stream(Duration::from_secs(1)));
        let start = Instant::now();
        let ringing = tokio::spawn({
            let wakes = wakes.clone();
            async move {
                loop {
                    wakes.wake(Key::new("ci", "linux"));
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        });
        for second in 0..4 {
            assert_eq!(looks.next().await, Some(Key::new("ci", "linux")));
            assert_eq!(start.elapsed().as_secs(), second);
        }
        ringing.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn objects_do_not_wait_for_each_other() {
        let wakes = Wakes::default();
        let mut looks = Box::pin(wakes.stream(Duration::from_secs(60)));
        for name in ["a", "b"] {
            wakes.wake(Key::new("ci", name));
        }
        let start = Instant::now();
        let seen = [looks.next().await, looks.next().await];
        assert_eq!(seen, [Some(Key::new("ci", "a")), Some(Key::new("ci", "b"))]);
        assert!(start.elapsed().is_zero());
    }
}
