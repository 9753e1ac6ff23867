//! Gathers what many ask for within a moment, so that it goes out in one call.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use tokio::sync::oneshot;

/// Those who wait for each key.
pub(super) type Waiting<K, R> = BTreeMap<K, Vec<oneshot::Sender<R>>>;

/// What was asked for and not sent yet. The same key twice is one entry with two waiters.
#[derive(Debug)]
pub(super) struct Gather<K, R>(Mutex<Waiting<K, R>>);

impl<K, R> Default for Gather<K, R> {
    fn default() -> Self {
        Self(Mutex::new(BTreeMap::new()))
    }
}

impl<K: Ord, R: Clone> Gather<K, R> {
    /// Adds a key. True for the first of a batch: who gets it must see to it that the batch is taken.
    pub(super) fn add(&self, key: K) -> (oneshot::Receiver<R>, bool) {
        let (sender, receiver) = oneshot::channel();
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let first = waiting.is_empty();
        waiting.entry(key).or_default().push(sender);
        (receiver, first)
    }

    /// Takes the batch.
    pub(super) fn take(&self) -> Waiting<K, R> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Tells all who wait for `key`. Who stopped waiting is not missed: the answer is in the cloud.
pub(super) fn answer<K: Ord, R: Clone>(waiting: &mut Waiting<K, R>, key: &K, result: &R) {
    for sender in waiting.remove(key).unwrap_or_default() {
        drop(sender.send(result.clone()));
    }
}
