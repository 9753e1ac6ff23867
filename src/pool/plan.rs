//! What to do about a pool next: a pure function of a view and a time.
//!
//! ```text
//!   deletion requested ──> delete the VMs, wait for the last one and for a sweep, release
//!   paused ──────────────> nothing
//!   too few ─────────────> create in the first group that can take them, never above limits.max
//!   too many ────────────> delete the least useful ones, never a busy one
//!   outdated ────────────> delete one idle VM at a time; busy ones finish
//! ```

use std::time::Duration;

use jiff::Timestamp;

use super::view::{Check, GroupFact, PoolView, VmFact};
use crate::{
    crd::{DeletionPolicy, Phase, names},
    vm::plan::until,
};

/// Instances a zonal group can have by default.
const GROUP_ROOM: usize = 1000;
/// Objects created in one pass: the next one goes on.
const MOST_AT_ONCE: usize = 500;
/// A pool is looked at this often even if nothing happens.
const RESYNC: Duration = Duration::from_mins(1);

/// What to do, and when to look again if nothing else happens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// VMs to make.
    pub create: Vec<NewVm>,
    /// VMs whose drain starts.
    pub delete: Vec<Removal>,
    /// VMs to let go of without touching anything outside.
    pub orphan: Vec<VmFact>,
    /// Everything is done that the finalizer holds the pool for.
    pub release: bool,
    /// When to look again.
    pub again: Duration,
}

/// A VM to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewVm {
    /// Its name.
    pub name: String,
    /// Index of its group in the spec.
    pub group: usize,
}

/// A VM whose drain starts.
#[derive(Clone, Debug, PartialEq)]
pub struct Removal {
    /// Which, as it was looked at.
    pub vm: VmFact,
    /// CamelCase reason.
    pub reason: &'static str,
}

/// What to do about this pool at this time. `retry` is the first delay after a VM that did not register.
#[must_use]
pub fn plan(view: &PoolView, now: Timestamp, retry: Duration) -> Plan {
    let mut plan = if view.pool.metadata.deletion_timestamp.is_some() {
        removal(view)
    } else if view.pool.spec.paused {
        Plan::default()
    } else {
        size(view, now, retry)
    };
    plan.again = if plan.again.is_zero() { RESYNC } else { plan.again.min(RESYNC) };
    plan
}

fn removal(view: &PoolView) -> Plan {
    let finalizers = view.pool.metadata.finalizers.as_deref().unwrap_or_default();
    if finalizers.iter().any(|finalizer| finalizer == "orphan") {
        // `--cascade=orphan`: the garbage collector takes the owner references away, then we let go.
        return Plan::default();
    }
    let owned: Vec<_> = view.vms.iter().filter(|vm| vm.owned).cloned().collect();
    if view.pool.spec.deletion_policy == DeletionPolicy::Orphan {
        return Plan { release: owned.is_empty(), orphan: owned, ..Plan::default() };
    }
    let unowned = view.vms.len() > owned.len();
    let release = owned.is_empty() && (unowned || view.swept) && view.expected == 0;
    let delete = owned.into_iter().filter(|vm| !vm.deleting).map(|vm| Removal { vm, reason: "PoolDeleted" }).collect();
    Plan { release, delete, again: Duration::from_secs(2), ..Plan::default() }
}

fn size(view: &PoolView, now: Timestamp, retry: Duration) -> Plan {
    let (active, desired) = (view.active().count(), view.desired());
    // What may appear yet stands in the way of a creation, but is no reason to delete what is there.
    if active + view.expected < desired {
        return grow(view, desired - active - view.expected, now, retry);
    }
    if active > desired {
        return shrink(view, active - desired);
    }
    renew(view)
}

fn grow(view: &PoolView, missing: usize, now: Timestamp, retry: Duration) -> Plan {
    let mut again = soonest(view, now);
    if let Some(until_then) = view.history.back_off_until(retry).filter(|at| *at > now) {
        return Plan { again: until(until_then, now), ..Plan::default() };
    }
    if view.forge != Check::Good {
        return Plan { again: RESYNC, ..Plan::default() };
    }
    let limit = usize::try_from(view.pool.spec.limits.max).unwrap_or_default();
    let room = limit.saturating_sub(view.vms.len() + view.expected);
    let count = missing.min(room).min(MOST_AT_ONCE);
    let slots = view.groups.iter().filter(|group| usable(group, now)).flat_map(|group| {
        let free = GROUP_ROOM.saturating_sub(group.size);
        std::iter::repeat_n(group.index, free)
    });
    let pool = view.pool.metadata.name.as_deref().unwrap_or_default();
    let create: Vec<_> = slots
        .zip(&view.random)
        .take(count)
        .map(|(group, random)| NewVm { name: names::vm_name(pool, view.uid(), *random), group })
        .collect();
    if create.len() == MOST_AT_ONCE {
        again = Duration::from_millis(100);
    }
    Plan { create, again, ..Plan::default() }
}

/// Whether a VM may be asked of this group now: its settings were seen to be harmless, and it is not backing off.
#[must_use]
pub fn usable(group: &GroupFact, now: Timestamp) -> bool {
    group.settings == Check::Good && group.back_off.as_ref().is_none_or(|back_off| back_off.until <= now)
}

fn soonest(view: &PoolView, now: Timestamp) -> Duration {
    let times = view.groups.iter().filter_map(|group| group.back_off.as_ref()).map(|b| until(b.until, now));
    times.filter(|wait| !wait.is_zero()).min().unwrap_or_default()
}

fn shrink(view: &PoolView, surplus: usize) -> Plan {
    let mut victims: Vec<_> = view.active().filter(|vm| vm.phase != Phase::Busy).cloned().collect();
    victims.sort_by_key(|vm| (usefulness(vm), vm.created));
    let delete = victims.into_iter().take(surplus).map(|vm| Removal { vm, reason: "ScaledDown" }).collect();
    Plan { delete, ..Plan::default() }
}

/// Least useful first: what has got least far; among idle ones outdated, then old.
fn usefulness(vm: &VmFact) -> (u8, bool) {
    let rank = match vm.phase {
        Phase::Terminating | Phase::Draining => 0,
        Phase::Launching => 1,
        Phase::Booting => 2,
        Phase::Registering => 3,
        Phase::Idle => 4,
        Phase::Busy => 5,
    };
    (rank, !vm.outdated)
}

/// Replaces outdated VMs: one idle one at a time, and only while everything else is ready.
fn renew(view: &PoolView) -> Plan {
    if !view.active().all(VmFact::ready) {
        return Plan::default();
    }
    let oldest = view.active().filter(|vm| vm.outdated && vm.phase == Phase::Idle).min_by_key(|vm| vm.created);
    let delete = oldest.cloned().map(|vm| Removal { vm, reason: "Outdated" }).into_iter().collect();
    Plan { delete, ..Plan::default() }
}

#[cfg(test)]
pub(super) mod tests;
