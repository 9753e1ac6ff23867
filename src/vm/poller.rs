//! Lists each group that VMs belong to, at one interval, and wakes the VMs whose entry changed.
//!
//! One call a group serves all its VMs. What is in no list and what stays as it was wakes nobody: an unchanged world
//! is quiet, however many VMs there are.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use kube::{ResourceExt, runtime::reflector::Store};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::memory::Memories;
use crate::{
    backoff::Backoffs,
    clock::Clock,
    compute::{
        Group, Instance,
        groups::{Groups, Listing},
    },
    crd::RunnerVm,
    gateway::{events::Heard, sessions::Sessions},
    health::Heartbeat,
    metrics::Metrics,
    wakes::{Key, Wakes},
};

/// The poller.
#[derive(Clone)]
pub struct Poller {
    /// The groups.
    pub groups: Groups,
    /// The VMs.
    pub vms: Store<RunnerVm>,
    /// Whom to wake.
    pub wakes: Wakes,
    /// What is remembered of them.
    pub memories: Memories,
    /// Their agents.
    pub sessions: Sessions,
    /// Counts what they had left to say.
    pub metrics: Metrics,
    /// Their delays.
    pub backoffs: Backoffs,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// How often.
    pub interval: Duration,
    /// Proof that this loop turns.
    pub heartbeat: Arc<Heartbeat>,
}

impl Poller {
    /// Polls until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(self.interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut before = HashMap::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            self.poll(&mut before).await;
            self.forget_the_gone();
            self.heartbeat.touch();
        }
    }

    async fn poll(&self, before: &mut HashMap<Group, Arc<Listing>>) {
        let mut members = self.members();
        before.retain(|group, _| members.contains_key(group));
        let groups: Vec<_> = members.keys().cloned().collect();
        let lists = futures::future::join_all(groups.into_iter().map(|group| async move {
            let listing = self.groups.listing(&group, self.clock.now()).await;
            (group, listing)
        }));
        for (group, listing) in lists.await {
            match listing {
                Ok(listing) => {
                    let old = before.insert(group.clone(), Arc::clone(&listing));
                    let names = members.remove(&group).unwrap_or_default();
                    for key in changed(old.as_deref(), &listing, &names) {
                        self.wakes.wake(key);
                    }
                }
                Err(error) => warn!(%group, error = &error as &dyn std::error::Error, "Group was not listed"),
            }
        }
    }

    /// What is remembered of VMs whose objects went without our letting them go (orphaned, removed by force).
    fn forget_the_gone(&self) {
        let (uids, keys) = (self.memories.known(), self.sessions.known());
        // Read after what is remembered: what came in between is not taken for gone.
        let there = self.vms.state();
        let there_uids: BTreeSet<_> = there.iter().filter_map(|vm| vm.uid()).collect();
        let there_keys: BTreeSet<_> =
            there.iter().map(|vm| Key::new(vm.namespace().unwrap_or_default(), vm.name_any())).collect();
        for uid in uids.difference(&there_uids) {
            self.memories.forget(uid);
            self.backoffs.succeeded(uid);
        }
        for key in keys.difference(&there_keys) {
            for kind in self.sessions.forget(key) {
                self.metrics.agent_event(kind.as_str(), Heard::Gone.as_str());
            }
        }
    }

    /// The VMs of each group.
    fn members(&self) -> BTreeMap<Group, BTreeSet<Key>> {
        let mut members = BTreeMap::<_, BTreeSet<_>>::new();
        for vm in self.vms.state() {
            if let Some(group) = Group::of(&vm.spec.project, &vm.spec.group) {
                let key = Key::new(vm.namespace().unwrap_or_default(), vm.name_any());
                members.entry(group).or_default().insert(key);
            }
        }
        members
    }
}

/// The VMs whose entry is not what it was.
fn changed(old: Option<&Listing>, new: &Listing, names: &BTreeSet<Key>) -> Vec<Key> {
    let entry = |listing: &Listing, key: &Key| -> Option<Instance> { listing.instances.get(&key.name).cloned() };
    names.iter().filter(|key| old.and_then(|old| entry(old, key)) != entry(new, key)).cloned().collect()
}
