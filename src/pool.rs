//! The RunnerPool controller: keeps a pool at its size.
//!
//! ```text
//!   wake (pool, its VMs, timer) ──> observe ──> plan ──> apply ──> status
//!                                    view        pure     objects   at most once a second
//! ```
//!
//! It makes and deletes RunnerVM objects and nothing else; what happens outside is the VM controller's business, and
//! the sweep's for leftovers that have no object.

use std::{future::Future, sync::Arc, time::Duration};

use futures::{Stream, StreamExt};
use jiff::Timestamp;
use kube::{
    Client, ResourceExt,
    runtime::{
        Controller,
        controller::{self, Action},
        reflector::{ObjectRef, Store},
    },
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use self::view::{Offered, PoolView, VmFact};
use crate::{
    backoff::Backoffs,
    clock::Clock,
    compute::{ComputeError, groups::Groups},
    crd::{Phase, RunnerPool, RunnerPoolStatus, RunnerVm, names},
    events::Events,
    forge::{
        ForgeError,
        credentials::{CredentialsError, Forges},
    },
    gateway::{sessions::Sessions, settings::Policy},
    kubernetes::{self, KubeError},
    leadership::{Leadership, NotLeading},
    metrics::{Metrics, Outcome, PoolCounts},
    vm::{
        memory::Memories as VmMemories,
        plan::{later, until},
    },
    wakes::{Key, Wakes},
};

mod apply;
pub mod history;
pub mod memory;
mod observe;
pub mod plan;
pub mod settings;
pub mod status;
pub mod sweep;
pub mod unreadable;
mod version;
pub mod view;

/// What the controller works with.
#[derive(Clone)]
pub struct Context {
    /// Kubernetes.
    pub client: Client,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// The cache of all VMs.
    pub vms: Store<RunnerVm>,
    /// The cloud's groups.
    pub groups: Groups,
    /// The forge, by credential.
    pub forges: Forges,
    /// The agents: what a pool says of them reaches them through here.
    pub sessions: Sessions,
    /// What is known of pools here.
    pub memory: memory::Memories,
    /// What is known of VMs here.
    pub vm_memories: VmMemories,
    /// Removes leftovers.
    pub sweeper: sweep::Sweeper,
    /// Whether effects are ours to make.
    pub leadership: Leadership,
    /// Figures.
    pub metrics: Metrics,
    /// What users read in `kubectl describe`.
    pub events: Events,
    /// Longest wait for an answer of Kubernetes.
    pub request_timeout: Duration,
    /// How often a forge that answered is asked again whether it still accepts a pool.
    pub forge_check: Duration,
    /// First delay after a VM that did not register.
    pub retry: Duration,
    /// Shortest time between two looks at one pool because of its VMs.
    pub pause: Duration,
    /// Shortest time between two writes of one pool's counts.
    pub status_pause: Duration,
    /// Longest time between two passes of one pool: a mended Secret or group is noticed no later.
    pub resync: Duration,
    /// Delays after failures.
    pub backoffs: Backoffs,
}

impl Context {
    async fn kube<T>(&self, action: &'static str, call: impl Future<Output = kube::Result<T>>) -> Result<T, KubeError> {
        kubernetes::call(self.request_timeout, action, call).await
    }
}

/// Why a pass failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Kubernetes refused or did not answer.
    #[error(transparent)]
    Kube(#[from] KubeError),
    /// The cloud.
    #[error("asking the cloud")]
    Compute(#[source] ComputeError),
    /// The forge.
    #[error("asking the forge")]
    Forge(#[source] ForgeError),
    /// The credentials.
    #[error("using the pool's credentials")]
    Credentials(#[source] CredentialsError),
    /// Somebody else leads.
    #[error("acting as the leader")]
    Leadership(#[source] NotLeading),
    /// This cannot happen.
    #[error("bug: {0}")]
    Bug(&'static str),
}

/// Runs until `stop`: `store` is the cache behind `objects`; `wakes` name pools whose VMs changed.
pub async fn run(
    context: Context,
    (store, objects): (
        Store<RunnerPool>,
        impl Stream<Item = Result<RunnerPool, kube::runtime::watcher::Error>> + Send + 'static,
    ),
    wakes: Wakes,
    concurrency: u16,
    stop: CancellationToken,
) {
    let wakes =
        wakes.stream(context.pause).map(|key: Key| ObjectRef::<RunnerPool>::new(&key.name).within(&key.namespace));
    let config = controller::Config::default().concurrency(concurrency);
    Controller::for_stream(objects, store)
        .with_config(config)
        .reconcile_on(wakes)
        .graceful_shutdown_on(stop.cancelled_owned())
        .run(reconcile, failed, Arc::new(context))
        .for_each(|result| async move {
            // A failed pass was told where it failed, with its cause.
            if let Err(error) = result
                && !matches!(error, controller::Error::ReconcilerFailed(..) | controller::Error::ObjectNotFound(_))
            {
                debug!(%error, "Pool pass did not run");
            }
        })
        .await;
}

async fn reconcile(pool: Arc<RunnerPool>, context: Arc<Context>) -> Result<Action, Error> {
    let started = context.clock.now();
    let result = pass(&pool, &context).await;
    let elapsed = Duration::try_from(context.clock.now().duration_since(started)).unwrap_or_default();
    context.metrics.reconciled("runnerpool", Outcome::of(&result), elapsed);
    if result.is_ok() {
        context.backoffs.succeeded(&pool.uid().unwrap_or_default());
    }
    result
}

async fn pass(pool: &RunnerPool, context: &Context) -> Result<Action, Error> {
    let held = pool.finalizers().iter().any(|finalizer| finalizer == names::POOL_FINALIZER);
    if pool.metadata.deletion_timestamp.is_some() && !held {
        return Ok(Action::await_change());
    }
    if !held {
        apply::hold(context, pool).await?; // I/O; the write wakes the next pass
        return Ok(Action::await_change());
    }
    let view = observe::observe(context, pool).await?; // I/O
    publish(context, &view);
    let now = context.clock.now();
    let plan = plan::plan(&view, now, context.retry); // pure
    let applied = apply::apply(context, pool, &plan).await; // I/O
    if !plan.release {
        let status = status::status(&view, short_since(context, &view, now), now); // pure
        count(context, &view);
        let wait = settle(context, pool, status, now).await?; // I/O
        applied?;
        let again = plan.again.min(context.resync);
        return Ok(Action::requeue(wait.map_or(again, |wait| wait.min(again))));
    }
    applied?;
    Ok(Action::requeue(plan.again))
}

/// What the pool says now, for the agents of its VMs. An offer that cannot be asked for now is still the last one.
fn publish(context: &Context, view: &PoolView) {
    let known = || context.sessions.policy(view.uid()).and_then(|policy| policy.offer);
    let offer = match &view.offer {
        Offered::Known(offer) => Some(offer.clone()),
        Offered::Unknown { .. } => known(),
    };
    let policy = Policy { agent: view.pool.spec.agent.clone(), offer };
    let namespace = view.pool.namespace().unwrap_or_default();
    let vms = view.vms.iter().map(|vm| Key::new(namespace.clone(), vm.name.clone()));
    context.sessions.set_policy(view.uid(), policy, vms);
}

/// Writes the status if it says something new. Counts alone wait until the last write is a second old: runners come and
/// go all day, and nobody reads faster. How long to wait, if so.
async fn settle(
    context: &Context,
    pool: &RunnerPool,
    status: RunnerPoolStatus,
    now: Timestamp,
) -> Result<Option<Duration>, Error> {
    let Some(old) = pool.status.as_ref().filter(|old| **old != status) else {
        if pool.status.is_none() {
            apply::write(context, pool, status).await?;
        }
        return Ok(None);
    };
    let uid = pool.uid().unwrap_or_default();
    let counts_only = old.conditions == status.conditions && old.observed_generation == status.observed_generation;
    let due = context.memory.fold(&uid, |memory| memory.written).map(|at| later(at, context.status_pause));
    if let Some(due) = due.filter(|due| counts_only && now < *due) {
        return Ok(Some(until(due, now)));
    }
    apply::write(context, pool, status).await?;
    context.memory.fold(&uid, |memory| memory.written = Some(now));
    Ok(None)
}

/// Since when the pool has too few ready runners.
fn short_since(context: &Context, view: &PoolView, now: Timestamp) -> Option<Timestamp> {
    let short = view.active().filter(|vm| vm.ready()).count() < view.desired();
    context.memory.fold(view.uid(), |memory| {
        memory.short_since = if short { memory.short_since.or(Some(now)) } else { None };
        memory.short_since
    })
}

fn count(context: &Context, view: &PoolView) {
    let pool = &view.pool;
    let number = |filter: fn(&VmFact) -> bool| {
        i64::try_from(view.vms.iter().filter(|vm| filter(vm)).count()).unwrap_or(i64::MAX)
    };
    let counts = PoolCounts {
        desired: i64::try_from(view.desired()).unwrap_or(i64::MAX),
        max: pool.spec.limits.max.into(),
        starting: number(|vm| !vm.leaving && !vm.ready()),
        idle: number(|vm| !vm.leaving && vm.phase == Phase::Idle),
        busy: number(|vm| !vm.leaving && vm.phase == Phase::Busy),
        draining: number(|vm| vm.leaving),
    };
    context.metrics.pool(&pool.namespace().unwrap_or_default(), &pool.name_any(), &counts);
    for fact in &view.groups {
        let trouble = fact.back_off.as_ref().map(|back_off| back_off.class);
        context.metrics.group_backoff(&fact.group.to_string(), trouble);
    }
}

#[allow(clippy::needless_pass_by_value, reason = "the signature is kube's")]
fn failed(pool: Arc<RunnerPool>, error: &Error, context: Arc<Context>) -> Action {
    if matches!(error, Error::Kube(error) if error.is_conflict()) {
        return Action::requeue(Duration::from_millis(100));
    }
    if let Error::Leadership(NotLeading::Settling { remaining }) = error {
        return Action::requeue(*remaining);
    }
    let delay = context.backoffs.failed(&pool.uid().unwrap_or_default());
    warn!(pool = %pool.name_any(), error = error as &dyn std::error::Error, retry_in = ?delay, "Pool pass failed");
    Action::requeue(delay)
}
