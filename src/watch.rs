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

/// An object that cannot be read: who it is, and why not.
#[derive(Clone, Debug)]
pub struct Unreadable {
    /// Its metadata.
    pub metadata: ObjectMeta,
    /// What is wrong.
    pub error: String,
}

/// The cache of all readable objects, and the stream that keeps it (which somebody must poll). `seen` is called for
/// every change, deletions included; `unreadable` for every object that is left out.
pub fn objects<K>(
    api: Api<DeserializeGuard<K>>,
    seen: impl Fn(&K) + Send + 'static,
    unreadable: impl Fn(Unreadable) + Send + 'static,
) -> (Store<K>, impl Stream<Item = Result<K, watcher::Error>> + Send)
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + Sync + 'static,
{
    let (store, writer) = reflector::store();
    let stream = watcher::watcher(api, watcher::Config::default())
        .default_backoff()
        .filter_map(move |event| std::future::ready(readable(event, &unreadable)))
        .inspect(move |event| {
            if let Ok(Event::Apply(object) | Event::InitApply(object) | Event::Delete(object)) = event {
                seen(object);
            }
        })
        .modify(|object: &mut K| object.meta_mut().managed_fields = None)
        .reflect(writer)
        .applied_objects();
    (store, stream)
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
