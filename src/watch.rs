//! Watches one kind of object into a cache, and survives objects that cannot be read.
//!
//! The list is read through kube's `DeserializeGuard`: one object that no longer parses (it was stored under an older
//! schema, say) is reported and left out, instead of stopping the watch for all others.

use std::fmt::Debug;

use futures::{Stream, StreamExt};
use kube::{
    Api, Resource,
    core::{DeserializeGuard, ObjectMeta},
    runtime::{
        WatchStreamExt,
        reflector::{self, Store},
        watcher::{self, Event},
    },
};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::kubernetes::PAGE;

/// An object that cannot be read: who it is, and why not.
#[derive(Clone, Debug)]
pub struct Unreadable {
    /// Its metadata.
    pub metadata: ObjectMeta,
    /// What is wrong.
    pub error: String,
}

/// A cache of all readable objects of a kind.
pub struct Watched<K, S>
where
    K: Resource<DynamicType = ()> + 'static,
{
    /// The cache.
    pub store: Store<K>,
    /// The stream that keeps it: somebody must poll it.
    pub objects: S,
    /// True once the cache holds the first list.
    ///
    /// Not kube's `Store::wait_until_ready`: it keeps the waker of one waiter only (a oneshot receiver shared by all), so
    /// of two that wait, as the controller does, the other is never woken (kube 5.0.0, `delayed_init.rs`).
    pub ready: watch::Receiver<bool>,
}

/// Watches all readable objects. `seen` is called for every change, deletions included; `unreadable` for every object
/// that is left out.
pub fn objects<K>(
    api: Api<DeserializeGuard<K>>,
    seen: impl Fn(&K) + Send + 'static,
    unreadable: impl Fn(Unreadable) + Send + 'static,
) -> Watched<K, impl Stream<Item = Result<K, watcher::Error>> + Send>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + Sync + 'static,
{
    let (store, writer) = reflector::store();
    let (filled, ready) = watch::channel(false);
    let objects = watcher::watcher(api, watcher::Config::default().page_size(PAGE))
        .default_backoff()
        .filter_map(move |event| std::future::ready(readable(event, &unreadable)))
        .inspect(move |event| {
            if let Ok(Event::Apply(object) | Event::InitApply(object) | Event::Delete(object)) = event {
                seen(object);
            }
        })
        .modify(|object: &mut K| object.meta_mut().managed_fields = None)
        .reflect(writer)
        .inspect(move |event| {
            if matches!(event, Ok(Event::InitDone)) {
                filled.send_replace(true);
            }
        })
        .applied_objects();
    Watched { store, objects, ready }
}

/// The event with its object, unless that cannot be read.
fn readable<K>(
    event: Result<Event<DeserializeGuard<K>>, watcher::Error>,
    unreadable: &impl Fn(Unreadable),
) -> Option<Result<Event<K>, watcher::Error>> {
    let open = |guard: DeserializeGuard<K>| match guard.0 {
        Ok(object) => Some(object),
        Err(invalid) => {
            unreadable(Unreadable { metadata: invalid.metadata, error: invalid.error });
            None
        }
    };
    match event {
        Ok(Event::Apply(guard)) => open(guard).map(|object| Ok(Event::Apply(object))),
        Ok(Event::InitApply(guard)) => open(guard).map(|object| Ok(Event::InitApply(object))),
        Ok(Event::Delete(guard)) => open(guard).map(|object| Ok(Event::Delete(object))),
        Ok(Event::Init) => Some(Ok(Event::Init)),
        Ok(Event::InitDone) => Some(Ok(Event::InitDone)),
        Err(error) => Some(Err(error)),
    }
}
