//! The sweep: removes what carries a live pool's hash and has no RunnerVM.
//!
//! Instances and registrations are made for objects that exist first, so a leftover has lost its object: a reply that
//! came after everybody had given up, an object removed by force. Proof is strict: the outside is read before the
//! objects (live), a leftover must be seen twice far enough apart, and a pass removes a bounded number. Registrations
//! must be offline and without a job; the DELETE itself refuses busy ones. An instance for which a runner is registered
//! (its object was removed by force) keeps running until that registration is gone: there may be a job.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::future::join_all;
use jiff::Timestamp;
use kube::{Api, Resource, ResourceExt, runtime::reflector::Store};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{Context, Error};
use crate::{
    compute::{DeleteTarget, Group, GroupAction},
    crd::{Phase, RunnerPool, RunnerVm, names},
    forge::{Deletion, ForgeErrorClass, Runner, credentials::CredentialsError},
    kubernetes,
    vm::plan::later,
    wakes::{Key, Wakes},
};

/// Intervals and bounds of the sweep.
#[derive(Clone, Copy, Debug)]
pub struct SweepConfig {
    /// How often.
    pub interval: Duration,
    /// How far apart the two sightings must be.
    pub sightings: Duration,
    /// How often the forge's whole list is read at most.
    pub runner_list: Duration,
    /// Most removals of one pass.
    pub limit: usize,
}

/// A leftover.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stray {
    /// An instance.
    Instance {
        /// Its group.
        group: Group,
        /// Its name.
        name: String,
        /// Its URL; absent while it is only queued.
        url: Option<String>,
    },
    /// A registration.
    Runner {
        /// The forge's id.
        id: i64,
        /// Its name.
        name: String,
    },
}

/// What of `found` is to be removed now: seen before, long enough ago, and not an instance that may run a job for one
/// of `runners`; at most `limit`. Keeps `seen` up to date.
#[must_use]
pub fn due(
    seen: &mut BTreeMap<Stray, Timestamp>,
    found: &BTreeSet<Stray>,
    runners: &[Runner],
    now: Timestamp,
    config: &SweepConfig,
) -> Vec<Stray> {
    seen.retain(|stray, _| found.contains(stray));
    for stray in found {
        seen.entry(stray.clone()).or_insert(now);
    }
    let registered: BTreeSet<_> = runners.iter().map(|runner| vm_of(&runner.name)).collect();
    let held = |stray: &Stray| matches!(stray, Stray::Instance { name, .. } if registered.contains(name.as_str()));
    let old_enough = seen.iter().filter(|(stray, first)| now >= later(**first, config.sightings) && !held(stray));
    old_enough.map(|(stray, _)| stray.clone()).take(config.limit).collect()
}

/// The name of the VM a runner's name was made from.
fn vm_of(runner: &str) -> &str {
    runner.rsplit_once('-').map(|(vm, _)| vm).unwrap_or_default()
}

/// The registrations among `runners` that carry `prefix`, have no job, and whose VM has no object. Online ones only with
/// their leftover instances (`strays`): no instance is deleted while a runner is registered for it.
#[must_use]
pub fn stray_runners(
    runners: &[Runner],
    prefix: &str,
    vms: &BTreeSet<String>,
    strays: &BTreeSet<Stray>,
) -> BTreeSet<Stray> {
    let instances: BTreeSet<_> = strays.iter().filter_map(instance_name).collect();
    let lost =
        |r: &&Runner| !r.busy && !vms.contains(vm_of(&r.name)) && (!r.online || instances.contains(vm_of(&r.name)));
    runners
        .iter()
        .filter(|r| r.name.starts_with(prefix))
        .filter(lost)
        .map(|r| Stray::Runner { id: r.id, name: r.name.clone() })
        .collect()
}

/// The sweeper; clones share what was seen.
#[derive(Clone)]
pub struct Sweeper {
    config: SweepConfig,
    vm_wakes: Wakes,
    seen: Arc<Mutex<HashMap<String, Seen>>>,
}

/// What was seen of one pool.
#[derive(Clone, Debug, Default)]
struct Seen {
    strays: BTreeMap<Stray, Timestamp>,
    runners: Vec<Runner>,
    runners_at: Option<Timestamp>,
    /// The pool's last sweep has read the forge's list.
    closing: bool,
}

impl Seen {
    /// Whether the forge's list must be read again: it is old, or older than a leftover instance, which may run a job.
    fn needs_runners(&self, closing: bool, now: Timestamp, config: &SweepConfig) -> bool {
        let Some(read) = self.runners_at else { return true };
        let instance = |(stray, first): (&Stray, &Timestamp)| instance_name(stray).is_some() && *first > read;
        now >= later(read, config.runner_list) || (closing && !self.closing) || self.strays.iter().any(instance)
    }
}

impl Sweeper {
    /// A sweeper that wakes VMs it has doubts about.
    #[must_use]
    pub fn new(config: SweepConfig, vm_wakes: Wakes) -> Self {
        Self { config, vm_wakes, seen: Arc::default() }
    }

    /// Sweeps every pool at its interval, until `stop`. One pool's failure does not stop the rest.
    pub async fn run(self, context: Context, pools: Store<RunnerPool>, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(self.config.interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            for pool in pools.state() {
                if let Err(error) = self.sweep(&context, &pool, false).await {
                    warn!(pool = pool.name_any(), error = &error as &dyn std::error::Error, "Sweep failed");
                }
            }
        }
    }

    /// Sweeps one pool; true when nothing of it was found outside. `closing` is a pool's last: it does not go by an
    /// older list of the forge.
    ///
    /// # Errors
    /// When something could not be read: nothing is concluded then.
    pub async fn sweep(&self, context: &Context, pool: &RunnerPool, closing: bool) -> Result<bool, Error> {
        let uid = pool.uid().unwrap_or_default();
        let now = context.clock.now();
        let mut seen = self.lock(|all| all.get(&uid).cloned()).unwrap_or_default();
        let prefix = names::vm_prefix(&pool.name_any(), &uid);
        let instances = instances(context, pool, &prefix).await?;
        if seen.needs_runners(closing, now, &self.config) {
            seen.runners = match runners(context, pool).await {
                // Nothing is left to look after, and only a person could tell the rest: this must not hold the pool.
                Err(error) if closing && instances.is_empty() && refuses(&error) => Vec::new(),
                listed => listed?,
            };
            seen.runners_at = Some(now);
            seen.closing = closing;
        }
        let vms = objects(context, pool).await?;
        let vm_names: BTreeSet<_> = vms.iter().map(ResourceExt::name_any).collect();
        let mut found: BTreeSet<_> = instances.into_iter().filter(|stray| !is_of(stray, &vm_names)).collect();
        found.extend(stray_runners(&seen.runners, &prefix, &vm_names, &found));
        self.suspect(context, &vms, &seen);
        let removals = due(&mut seen.strays, &found, &seen.runners, now, &self.config);
        let mut outcome = Ok(found.is_empty());
        let (instances, runners): (Vec<_>, Vec<_>) = removals.iter().partition(|s| instance_name(s).is_some());
        // All at once: they share a call. One that fails does not take the others their turn.
        for removed in join_all(instances.into_iter().map(|stray| remove(context, pool, stray))).await {
            if let Err(error) = removed {
                outcome = Err(error);
            }
        }
        for stray in runners {
            match remove(context, pool, stray).await {
                Ok(true) => seen.runners.retain(|runner| Some(runner.id) != runner_id(stray)),
                Ok(false) => {}
                Err(error) => outcome = Err(error),
            }
        }
        self.lock(|all| all.insert(uid, seen));
        outcome
    }

    /// Forgets a pool that is gone.
    pub fn forget(&self, uid: &str) {
        self.lock(|all| all.remove(uid));
    }

    /// An idle VM whose runner the forge's list does not have: its own controller looks closer.
    fn suspect(&self, context: &Context, vms: &[RunnerVm], seen: &Seen) {
        let Some(listed_at) = seen.runners_at else { return };
        let known: BTreeSet<_> = seen.runners.iter().map(|runner| runner.id).collect();
        for vm in vms {
            let Some(status) = &vm.status else { continue };
            let before = status.last_heartbeat_time.as_ref().is_some_and(|at| at.0 < listed_at);
            let id = status.runner.as_ref().and_then(|runner| runner.id);
            if status.phase == Phase::Idle && before && id.is_some_and(|id| !known.contains(&id)) {
                context.vm_memories.update(&vm.uid().unwrap_or_default(), |memory| memory.suspected = true);
                self.vm_wakes.wake(Key::new(vm.namespace().unwrap_or_default(), vm.name_any()));
            }
        }
    }

    fn lock<T>(&self, with: impl FnOnce(&mut HashMap<String, Seen>) -> T) -> T {
        with(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn runner_id(stray: &Stray) -> Option<i64> {
    match stray {
        Stray::Runner { id, .. } => Some(*id),
        Stray::Instance { .. } => None,
    }
}

fn instance_name(stray: &Stray) -> Option<&str> {
    match stray {
        Stray::Instance { name, .. } => Some(name),
        Stray::Runner { .. } => None,
    }
}

/// Whether the forge answered, and the answer was that these credentials will not do.
fn refuses(error: &Error) -> bool {
    use CredentialsError::{Forbidden, Malformed, NotFound, Unanswered, Unreadable, Url};
    match error {
        Error::Forge(error) => matches!(error.class, ForgeErrorClass::Credentials | ForgeErrorClass::Invisible),
        Error::Credentials(Forbidden { .. } | Malformed { .. } | NotFound { .. } | Url(_)) => true,
        Error::Credentials(Unanswered { .. } | Unreadable { .. }) => false,
        _ => false,
    }
}

fn is_of(stray: &Stray, vms: &BTreeSet<String>) -> bool {
    matches!(stray, Stray::Instance { name, .. } if vms.contains(name))
}

async fn runners(context: &Context, pool: &RunnerPool) -> Result<Vec<Runner>, Error> {
    let namespace = pool.namespace().unwrap_or_default();
    let runners = match context.forges.runners(&namespace, &pool.spec.github).await {
        // The Secret is certainly gone, maybe with its namespace: the instances can still be looked after.
        Err(error) if error.is_missing() => return Ok(Vec::new()),
        Err(error) if error.is_withheld() && goes(context, &namespace).await => return Ok(Vec::new()),
        other => other.map_err(Error::Credentials)?,
    };
    let prefix = names::vm_prefix(&pool.name_any(), &pool.uid().unwrap_or_default());
    let mut list = runners.list().await.map_err(Error::Forge)?;
    list.retain(|runner| runner.name.starts_with(&prefix));
    Ok(list)
}

async fn goes(context: &Context, namespace: &str) -> bool {
    kubernetes::namespace_goes(&context.client, context.request_timeout, namespace).await
}

/// Instances with this pool's prefix in any of its groups.
async fn instances(context: &Context, pool: &RunnerPool, prefix: &str) -> Result<Vec<Stray>, Error> {
    let gce = &pool.spec.compute.gce;
    let mut strays = Vec::new();
    for group in gce.groups.iter().filter_map(|group| Group::of(&gce.project, group)) {
        let listing = context.groups.listing(&group, context.clock.now()).await.map_err(Error::Compute)?;
        let ours = listing.instances.values().filter(|i| i.name.starts_with(prefix));
        strays.extend(ours.filter(|i| i.action != GroupAction::Deleting).map(|i| Stray::Instance {
            group: group.clone(),
            name: i.name.clone(),
            url: i.url.clone(),
        }));
    }
    Ok(strays)
}

async fn objects(context: &Context, pool: &RunnerPool) -> Result<Vec<RunnerVm>, Error> {
    let api = Api::<RunnerVm>::namespaced(context.client.clone(), &pool.namespace().unwrap_or_default());
    // All of them: a label anybody may edit must not make a VM look as if it had no object.
    Ok(kubernetes::list(&api, context.request_timeout, "listing the pool's VMs", lean).await?)
}

/// The object without its managed fields, which are larger than all the rest once they are parsed.
fn lean(mut vm: RunnerVm) -> Option<RunnerVm> {
    vm.metadata.managed_fields = None;
    Some(vm)
}

/// Removes a leftover; true when it is a registration that is gone now.
async fn remove(context: &Context, pool: &RunnerPool, stray: &Stray) -> Result<bool, Error> {
    context.leadership.may_act().map_err(Error::Leadership)?;
    info!(pool = pool.name_any(), ?stray, "Leftover is removed");
    match stray {
        Stray::Instance { group, name, url } => {
            let target = url.clone().map_or_else(|| DeleteTarget::Name(name.clone()), DeleteTarget::Url);
            context.groups.delete(group, target).await.map_err(Error::Compute)?;
            told(context, pool, format!("instance {name} had no RunnerVM: it is deleted")).await;
            Ok(false)
        }
        Stray::Runner { id, name } => {
            let namespace = pool.namespace().unwrap_or_default();
            let runners = context.forges.runners(&namespace, &pool.spec.github).await.map_err(Error::Credentials)?;
            let outcome = runners.delete(*id).await.map_err(Error::Forge)?;
            if outcome == Deletion::Deleted {
                told(context, pool, format!("registration {name} had no RunnerVM: it is removed")).await;
            }
            Ok(outcome == Deletion::Deleted)
        }
    }
}

async fn told(context: &Context, pool: &RunnerPool, note: String) {
    context.events.warn(&pool.object_ref(&()), "LeftoverRemoved", note).await;
}

#[cfg(test)]
mod tests;
