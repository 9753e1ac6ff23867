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

use crate::{
    clock::Clock,
    compute::{
        Group, Instance,
        groups::{Groups, Listing},
    },
    crd::RunnerVm,
    health::Heartbeat,
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
