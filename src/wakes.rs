//! Wakes a controller for one object, from outside: any number of wakes before it looks are one.

use std::{
    collections::BTreeSet,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use futures::{Stream, stream};
use tokio::sync::Notify;

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

    /// The objects to look at, as they come.
    pub fn stream(&self) -> impl Stream<Item = Key> + Send + 'static {
        stream::unfold(self.clone(), |wakes| async move {
            let key = wakes.next().await;
            Some((key, wakes))
        })
    }

    async fn next(&self) -> Key {
        loop {
            if let Some(key) = self.0.pending.lock().unwrap_or_else(PoisonError::into_inner).pop_first() {
                return key;
            }
            self.0.notify.notified().await;
        }
    }
}
