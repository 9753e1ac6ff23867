//! The RunnerVM controller: walks one VM through its life.
//!
//! ```text
//!   wake (object, list, session, timer) ──> observe ──> plan ──> apply ──> status
//!                                            view        pure     one step   written when it differs
//! ```
//!
//! It never reads the pool: a VM's spec is a resolved snapshot, so an edited or deleted pool cannot break a drain.
//! The status is written before the step when it is the memory that the step may have happened (a mark before a create
//! call, a name before a registration), and together with its result otherwise: a VM's whole life is a dozen writes.

use std::{sync::Arc, time::Duration};

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

use self::{apply::Actor, memory::Memories, view::Timing};
use crate::{
    backoff::Backoffs,
    clock::Clock,
    compute::{ComputeError, groups::Groups},
    crd::RunnerVm,
    events::Events,
    forge::{
        ForgeError,
        credentials::{CredentialsError, Forges},
    },
    gateway::sessions::{SendError, Sessions},
    kubernetes::KubeError,
    leadership::{Leadership, NotLeading},
    metrics::{Metrics, Outcome},
    wakes::{Key, Wakes},
};

mod apply;
pub mod memory;
mod observe;
pub mod plan;
pub mod poller;
pub mod status;
mod tell;
pub mod view;

/// How soon a cache that lacks our own write is looked at again.
const CACHE_LAG: Duration = Duration::from_millis(50);

/// What the controller works with.
#[derive(Clone)]
pub struct Context {
    /// Kubernetes.
    pub client: Client,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// The cloud's groups.
    pub groups: Groups,
    /// The forge, by credential.
    pub forges: Forges,
    /// The agents.
    pub sessions: Sessions,
    /// What was done and seen here.
    pub memories: Memories,
    /// Whether effects are ours to make.
    pub leadership: Leadership,
    /// Figures.
    pub metrics: Metrics,
    /// What users read in `kubectl describe`.
    pub events: Events,
    /// Intervals.
    pub timing: Timing,
    /// Longest wait for an answer of Kubernetes.
    pub request_timeout: Duration,
    /// When this process took over.
    pub leading_since: Timestamp,
    /// Delays after failures.
    pub backoffs: Backoffs,
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
    Credentials(#[from] CredentialsError),
    /// The agent.
    #[error("telling the agent")]
    Session(#[source] SendError),
    /// Somebody else leads.
    #[error("acting as the leader")]
    Leadership(#[source] NotLeading),
    /// What became of its job is an event that nobody has taken yet.
    #[error("telling the end of the job: no event was taken")]
    Untold,
    /// This cannot happen.
    #[error("bug: {0}")]
    Bug(&'static str),
}

/// Runs until `stop`: `store` is the cache behind `objects`.
pub async fn run(
    context: Context,
    (store, objects): (
        Store<RunnerVm>,
        impl Stream<Item = Result<RunnerVm, kube::runtime::watcher::Error>> + Send + 'static,
    ),
    wakes: Wakes,
    concurrency: u16,
    stop: CancellationToken,
) {
    let wakes =
        wakes.stream(Duration::ZERO).map(|key: Key| ObjectRef::<RunnerVm>::new(&key.name).within(&key.namespace));
    Controller::for_stream(objects, store)
        .with_config(controller::Config::default().concurrency(concurrency))
        .reconcile_on(wakes)
        .graceful_shutdown_on(stop.cancelled_owned())
        .run(reconcile, failed, Arc::new(context))
        .for_each(|result| async move {
            // A failed pass was told where it failed, with its cause.
            if let Err(error) = result
                && !matches!(error, controller::Error::ReconcilerFailed(..) | controller::Error::ObjectNotFound(_))
            {
                debug!(%error, "VM pass did not run");
            }
        })
        .await;
}

async fn reconcile(vm: Arc<RunnerVm>, context: Arc<Context>) -> Result<Action, Error> {
    let started = context.clock.now();
    let result = pass(&vm, &context).await;
    let elapsed = Duration::try_from(context.clock.now().duration_since(started)).unwrap_or_default();
    context.metrics.reconciled("runnervm", Outcome::of(&result), elapsed);
    if result.is_ok() {
        context.backoffs.succeeded(&vm.uid().unwrap_or_default());
    }
    result
}

/// One pass: at most one status write before the step or one after it, and one step.
async fn pass(vm: &RunnerVm, context: &Context) -> Result<Action, Error> {
    let memory = context.memories.get(&vm.uid().unwrap_or_default());
    if memory.is_ahead_of(vm.resource_version().as_deref(), context.clock.now(), context.request_timeout) {
        return Ok(Action::requeue(CACHE_LAG));
    }
    let view = observe::observe(context, vm).await; // I/O
    let now = context.clock.now();
    let plan = plan::plan(&view, now, &context.timing); // pure
    let mut status = status::status(&view, &plan, now, &context.timing); // pure
    let old = view.status();
    let mut actor = Actor::new(context, vm);
    actor.settle(&old);
    actor.may(&plan.step)?;
    let written;
    let ends = matches!(plan.step, plan::Step::End(_));
    // Asks something that belongs into the same write.
    let asks = matches!(plan.step, plan::Step::FindJob(_));
    if status != old && !asks && (ends || status::must_precede(&old, &status)) {
        written = actor.write(&status).await?; // I/O
        context.tell_phase(&old, &status, vm, now);
        context.tell_warning(&old, &status, vm).await; // I/O
        actor = Actor::new(context, &written);
        actor.act(&plan.step, &mut status).await?; // I/O
    } else {
        let planned = status.clone();
        let result = actor.act(&plan.step, &mut status).await; // I/O
        // A registration writes the status itself, its id with it. A released object has none any more.
        let released = matches!(plan.step, plan::Step::Release { .. });
        if status != old && (asks || status == planned) && !released {
            actor.write(&status).await?; // I/O
        }
        context.tell_phase(&old, &status, vm, now);
        context.tell_warning(&old, &status, vm).await; // I/O
        result?;
    }
    match plan.step {
        plan::Step::Release { .. } => Ok(Action::await_change()),
        _ => Ok(Action::requeue(plan.again)),
    }
}

#[allow(clippy::needless_pass_by_value, reason = "the signature is kube's")]
fn failed(vm: Arc<RunnerVm>, error: &Error, context: Arc<Context>) -> Action {
    if matches!(error, Error::Kube(error) if error.is_conflict()) {
        return Action::requeue(Duration::from_millis(50));
    }
    if let Error::Leadership(NotLeading::Settling { remaining }) = error {
        return Action::requeue(*remaining);
    }
    let asked = match error {
        Error::Forge(error) => error.retry_after,
        Error::Compute(error) => error.retry_after,
        _ => None,
    };
    let delay = context.backoffs.failed(&vm.uid().unwrap_or_default()).max(asked.unwrap_or_default());
    warn!(vm = %vm.name_any(), error = error as &dyn std::error::Error, retry_in = ?delay, "VM pass failed");
    Action::requeue(delay)
}
