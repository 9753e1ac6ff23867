//! Every version of a world's pools and VMs, as a watch shows them: what a user or a GitOps tool could have seen.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use futures::{StreamExt, TryStreamExt};
use kube::{
    Api,
    api::{ApiResource, DynamicObject, WatchEvent, WatchParams},
};
use miglet_operator::crd::{RunnerPool, RunnerVm};
use serde_json::Value;
use tokio::task::JoinSet;

use super::World;
use crate::kstatus::{Kstatus, kstatus};

/// Longest a watch may be open; longer than any scenario.
const SECONDS: u32 = 294;

/// The versions seen so far; recording ends when it is dropped.
#[derive(Debug)]
pub struct History {
    seen: Arc<Mutex<Vec<Value>>>,
    _watches: JoinSet<()>,
}

impl World {
    /// Records every version of the pools and VMs from now on.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn record(&self) -> Result<History, kube::Error> {
        let seen = Arc::<Mutex<Vec<Value>>>::default();
        let mut watches = JoinSet::new();
        for resource in [ApiResource::erase::<RunnerPool>(&()), ApiResource::erase::<RunnerVm>(&())] {
            let api = Api::<DynamicObject>::namespaced_with(self.client.clone(), &self.namespace, &resource);
            let stream = api.watch(&WatchParams::default().timeout(SECONDS), "0").await?.boxed();
            let seen = seen.clone();
            watches.spawn(async move {
                // An end of the stream shows as versions that a test misses.
                drop(stream.try_for_each(|event| note(&seen, event)).await);
            });
        }
        Ok(History { seen, _watches: watches })
    }
}

async fn note(seen: &Mutex<Vec<Value>>, event: WatchEvent<DynamicObject>) -> Result<(), kube::Error> {
    if let WatchEvent::Added(object) | WatchEvent::Modified(object) | WatchEvent::Deleted(object) = event {
        let object = serde_json::to_value(&object).map_err(kube::Error::SerdeError)?;
        seen.lock().unwrap_or_else(PoisonError::into_inner).push(object);
    }
    Ok(())
}

impl History {
    /// Every version of every object of this kind, oldest first.
    #[must_use]
    pub fn of_kind(&self, kind: &str) -> Vec<Value> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.iter().filter(|object| object.pointer("/kind") == Some(&kind.into())).cloned().collect()
    }

    /// Every version of one object, oldest first.
    #[must_use]
    pub fn of(&self, kind: &str, name: &str) -> Vec<Value> {
        let named = |object: &Value| object.pointer("/metadata/name") == Some(&name.into());
        self.of_kind(kind).into_iter().filter(named).collect()
    }

    /// What GitOps tools took one object for, one after the other.
    #[must_use]
    pub fn health(&self, kind: &str, name: &str) -> Vec<Kstatus> {
        let mut health: Vec<_> = self.of(kind, name).iter().map(kstatus).collect();
        health.dedup();
        health
    }

    /// What changed from each version of one object to the next, for people.
    #[must_use]
    pub fn changes(&self, kind: &str, name: &str) -> Vec<String> {
        let leaves: Vec<_> = self.of(kind, name).iter().map(leaves).collect();
        let changed = |pair: &[BTreeSet<String>]| match pair {
            [old, new] => new.difference(old).cloned().collect::<Vec<_>>().join(" "),
            _ => String::new(),
        };
        leaves.windows(2).map(changed).collect()
    }
}

/// Every value in an object as `path=value`, without the API server's own bookkeeping.
fn leaves(object: &Value) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open = vec![(String::new(), object)];
    while let Some((path, value)) = open.pop() {
        match value {
            _ if path.ends_with("/managedFields") => {}
            Value::Object(map) => open.extend(map.iter().map(|(key, value)| (format!("{path}/{key}"), value))),
            Value::Array(list) => open.extend(list.iter().enumerate().map(|(i, v)| (format!("{path}/{i}"), v))),
            leaf => drop(found.insert(format!("{path}={leaf}"))),
        }
    }
    found.retain(|leaf| !leaf.starts_with("/metadata/resourceVersion"));
    found
}
