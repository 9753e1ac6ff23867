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

use self::view::{PoolView, VmFact};
use crate::{
    backoff::Backoffs,
    clock::Clock,
    compute::{ComputeError, groups::Groups},
    crd::{Phase, RunnerPool, RunnerVm, names},
    events::Events,
    forge::{
        ForgeError,
        credentials::{CredentialsError, Forges},
    },
    leadership::{Leadership, NotLeading},
    metrics::{Metrics, Outcome, PoolCounts},
    vm::memory::Memories as VmMemories,
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
    /// Longest time between two passes of one pool: a mended Secret or group is noticed no later.
    pub resync: Duration,
    /// Shortest time between two passes of one pool: bounds its status writes.
    pub debounce: Duration,
    /// Delays after failures.
    pub backoffs: Backoffs,
}

impl Context {
    async fn kube<T>(&self, action: &'static str, call: impl Future<Output = kube::Result<T>>) -> Result<T, Error> {
        match tokio::time::timeout(self.request_timeout, call).await {
            Ok(result) => result.map_err(|source| Error::Kube { action, source }),
            Err(_) => Err(Error::Timeout { action }),
        }
    }
}

/// Why a pass failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Kubernetes refused or did not answer.
    #[error("{action}")]
    Kube {
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: kube::Error,
    },
    /// Kubernetes did not answer in time.
    #[error("{action}: no answer in time")]
    Timeout {
        /// What was tried.
        action: &'static str,
    },
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

impl Error {
    /// Somebody wrote the object in between: not a failure, the next pass sees what they wrote.
    fn is_conflict(&self) -> bool {
        matches!(self, Self::Kube { source: kube::Error::Api(status), .. } if status.is_conflict())
    }
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
    let wakes = wakes.stream().map(|key: Key| ObjectRef::<RunnerPool>::new(&key.name).within(&key.namespace));
    let config = controller::Config::default().concurrency(concurrency).debounce(context.debounce);
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
    let now = context.clock.now();
    let plan = plan::plan(&view, now, context.retry); // pure
    let applied = apply::apply(context, pool, &plan).await; // I/O
    if !plan.release {
        let status = status::status(&view, short_since(context, &view, now), now); // pure
        if pool.status.as_ref() != Some(&status) {
            apply::write(context, pool, status).await?; // I/O
        }
        count(context, &view);
    }
    applied?;
    Ok(Action::requeue(plan.again.min(context.resync)))
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
}

#[allow(clippy::needless_pass_by_value, reason = "the signature is kube's")]
fn failed(pool: Arc<RunnerPool>, error: &Error, context: Arc<Context>) -> Action {
    if error.is_conflict() {
        return Action::requeue(Duration::from_millis(100));
    }
    let delay = context.backoffs.failed(&pool.uid().unwrap_or_default());
    warn!(pool = %pool.name_any(), error = error as &dyn std::error::Error, retry_in = ?delay, "Pool pass failed");
    Action::requeue(delay)
}
