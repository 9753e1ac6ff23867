//! What Prometheus can ask: one registry, typed methods, `/metrics` in OpenMetrics text.
//!
//! Names: `miglet_` for what only this operator knows; the names controller-runtime made common for what every
//! controller has, so that existing dashboards work. Labels come from closed sets (`&'static str`), or name a pool or
//! an instance group from somebody's spec; never a VM, a job or a message. A pool that is gone takes its series along.

mod process;

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

use crate::compute::ErrorClass;

/// Every metric of the operator; clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Registry>,
    families: Families,
}

type Timings<L> = Family<L, Histogram, fn() -> Histogram>;

#[derive(Clone, Debug)]
struct Families {
    reconciles: Family<Reconcile, Counter>,
    reconcile_errors: Family<Controller, Counter>,
    reconcile_time: Timings<Controller>,
    leader: Family<Lease, Gauge>,
    phases: Timings<InPhase>,
    calls: Family<Call, Counter>,
    sessions: Gauge,
    refused: Family<Reason, Counter>,
    events: Family<AgentEvent, Counter>,
    jobs: Family<JobResult, Counter>,
    created: Counter,
    removed: Family<Reason, Counter>,
    backoff: Family<GroupTrouble, Gauge>,
    runners: Family<PoolState, Gauge>,
    desired: Family<Pool, Gauge>,
    max: Family<Pool, Gauge>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Controller {
    controller: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reconcile {
    controller: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Lease {
    name: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InPhase {
    phase: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    backend: &'static str,
    method: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AgentEvent {
    kind: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct JobResult {
    namespace: String,
    pool: String,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GroupTrouble {
    group: String,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Pool {
    namespace: String,
    pool: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolState {
    namespace: String,
    pool: String,
    state: &'static str,
}

/// How a pass of a controller ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done; it is looked at again when something changes.
    Success,
    /// Done; it asked to be looked at again at a time of its own.
    RequeueAfter,
    /// It failed and is tried again.
    Error,
}

impl Outcome {
    /// How a pass ended that asks to be looked at again at a time of its own whenever it succeeds.
    #[must_use]
    pub fn of<T, E>(result: &Result<T, E>) -> Self {
        if result.is_ok() { Self::RequeueAfter } else { Self::Error }
    }
}

/// A pool's VMs by what they are good for; each VM is in one of the states.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolCounts {
    /// Runners asked for.
    pub desired: i64,
    /// The most VMs that may exist.
    pub max: i64,
    /// On their way to their first idle moment.
    pub starting: i64,
    /// Waiting for a job.
    pub idle: i64,
    /// With a job.
    pub busy: i64,
    /// Taking no further job, or going away.
    pub draining: i64,
}

const STATES: [&str; 4] = ["starting", "idle", "busy", "draining"];
/// In the order of `PoolCounts`.
fn by_state(counts: &PoolCounts) -> [(&'static str, i64); 4] {
    [("starting", counts.starting), ("idle", counts.idle), ("busy", counts.busy), ("draining", counts.draining)]
}

/// What can become of a job: GitHub's words, `Lost` when no end was reported, `Other` for anything else that was said.
pub const JOB_RESULTS: [&str; 8] =
    ["Succeeded", "SucceededWithIssues", "Failed", "Canceled", "Skipped", "Abandoned", "Lost", "Other"];

/// Every class a group can back off for.
const TROUBLES: [ErrorClass; 7] = [
    ErrorClass::Capacity,
    ErrorClass::Quota,
    ErrorClass::RateLimit,
    ErrorClass::Config,
    ErrorClass::NotFound,
    ErrorClass::AlreadyExists,
    ErrorClass::Transient,
];

/// 1 ms to 33 s: one pass, one call.
fn short() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 16))
}

/// 1 s to 18 h: a phase of a VM's life, jobs included.
fn long() -> Histogram {
    Histogram::new(exponential_buckets(1.0, 2.0, 17))
}

impl Default for Metrics {
    fn default() -> Self {
        let families = Families::new();
        let mut registry = Registry::default();
        families.register_standard(&mut registry);
        families.register_own(&mut registry);
        families.register_pools(&mut registry);
        registry.register_collector(Box::new(process::Process));
        Self { registry: Arc::new(registry), families }
    }
}

impl Families {
    fn new() -> Self {
        Self {
            reconciles: Family::default(),
            reconcile_errors: Family::default(),
            reconcile_time: Family::new_with_constructor(short),
            leader: Family::default(),
            phases: Family::new_with_constructor(long),
            calls: Family::default(),
            sessions: Gauge::default(),
            refused: Family::default(),
            events: Family::default(),
            jobs: Family::default(),
            created: Counter::default(),
            removed: Family::default(),
            backoff: Family::default(),
            runners: Family::default(),
            desired: Family::default(),
            max: Family::default(),
        }
    }

    fn register_standard(&self, r: &mut Registry) {
        r.register("controller_runtime_reconcile", "Passes of a controller by result", self.reconciles.clone());
        r.register(
            "controller_runtime_reconcile_errors",
            "Passes of a controller that failed",
            self.reconcile_errors.clone(),
        );
        r.register_with_unit(
            "controller_runtime_reconcile_time",
            "Duration of a pass of a controller",
            Unit::Seconds,
            self.reconcile_time.clone(),
        );
        r.register("leader_election_master_status", "1 while this process holds the lease", self.leader.clone());
    }

    fn register_own(&self, r: &mut Registry) {
        let seconds = || Unit::Seconds;
        r.register_with_unit(
            "miglet_vm_phase_duration",
            "Time VMs spent in a phase before they left it",
            seconds(),
            self.phases.clone(),
        );
        r.register("miglet_api_calls", "Calls to a backend by method and outcome", self.calls.clone());
        r.register("miglet_sessions", "Agents with an open session", self.sessions.clone());
        r.register("miglet_attestation_refused", "Agents refused, by reason", self.refused.clone());
        r.register(
            "miglet_agent_events",
            "Events that agents told, by kind and what became of them",
            self.events.clone(),
        );
        r.register("miglet_jobs_finished", "Jobs that ended, by pool and result", self.jobs.clone());
        r.register("miglet_vms_created", "RunnerVMs created", self.created.clone());
        r.register("miglet_vms_removed", "RunnerVMs removed, by why they went", self.removed.clone());
        r.register("miglet_group_backoff", "1 while an instance group is left alone, by reason", self.backoff.clone());
    }

    fn register_pools(&self, r: &mut Registry) {
        r.register("miglet_pool_runners", "RunnerVMs of a pool by state", self.runners.clone());
        r.register("miglet_pool_desired_runners", "Runners asked for in a pool", self.desired.clone());
        r.register("miglet_pool_max_runners", "The most VMs a pool may have", self.max.clone());
    }
}

impl Metrics {
    /// A pass of `controller` ended.
    pub fn reconciled(&self, controller: &'static str, outcome: Outcome, elapsed: Duration) {
        let result = match outcome {
            Outcome::Success => "success",
            Outcome::RequeueAfter => "requeue_after",
            Outcome::Error => "error",
        };
        self.families.reconciles.get_or_create(&Reconcile { controller, result }).inc();
        self.families.reconcile_time.get_or_create(&Controller { controller }).observe(elapsed.as_secs_f64());
        // Made at the first pass: an alert on its rate needs the series from the start.
        self.families
            .reconcile_errors
            .get_or_create(&Controller { controller })
            .inc_by((outcome == Outcome::Error).into());
    }

    /// A VM left `phase` after `elapsed`.
    pub fn phase_left(&self, phase: &'static str, elapsed: Duration) {
        self.families.phases.get_or_create(&InPhase { phase }).observe(elapsed.as_secs_f64());
    }

    /// A call to `backend` (`compute`, `github`) ended with `outcome`: `ok` or the class of its error.
    pub fn api_call(&self, backend: &'static str, method: &'static str, outcome: &'static str) {
        self.families.calls.get_or_create(&Call { backend, method, outcome }).inc();
    }

    /// An agent was refused.
    pub fn attestation_refused(&self, reason: &'static str) {
        self.families.refused.get_or_create(&Reason { reason }).inc();
    }

    /// How many sessions are open.
    pub fn sessions(&self, open: usize) {
        self.families.sessions.set(i64::try_from(open).unwrap_or(i64::MAX));
    }

    /// An agent told an event.
    pub fn agent_event(&self, kind: &'static str, outcome: &'static str) {
        self.families.events.get_or_create(&AgentEvent { kind, outcome }).inc();
    }

    /// A job of a pool ended: one of `JOB_RESULTS`.
    pub fn job_finished(&self, namespace: &str, pool: &str, result: &'static str) {
        let labels = JobResult { namespace: namespace.to_owned(), pool: pool.to_owned(), result };
        self.families.jobs.get_or_create(&labels).inc();
    }

    /// A RunnerVM was created.
    pub fn vm_created(&self) {
        self.families.created.inc();
    }

    /// A RunnerVM is gone.
    pub fn vm_removed(&self, reason: &'static str) {
        self.families.removed.get_or_create(&Reason { reason }).inc();
    }

    /// A group (`project/location/name`) is left alone because of `trouble`, or no longer.
    pub fn group_backoff(&self, group: &str, trouble: Option<ErrorClass>) {
        for class in TROUBLES {
            let labels = GroupTrouble { group: group.to_owned(), reason: class.as_str() };
            if trouble == Some(class) {
                self.families.backoff.get_or_create(&labels).set(1);
            } else {
                self.families.backoff.remove(&labels);
            }
        }
    }

    /// What a pool has.
    pub fn pool(&self, namespace: &str, pool: &str, counts: &PoolCounts) {
        let (namespace, pool) = (namespace.to_owned(), pool.to_owned());
        for (state, count) in by_state(counts) {
            let labels = PoolState { namespace: namespace.clone(), pool: pool.clone(), state };
            self.families.runners.get_or_create(&labels).set(count);
        }
        let labels = Pool { namespace, pool };
        self.families.desired.get_or_create(&labels).set(counts.desired);
        self.families.max.get_or_create(&labels).set(counts.max);
    }

    /// A pool is gone.
    pub fn forget_pool(&self, namespace: &str, pool: &str) {
        let (namespace, pool) = (namespace.to_owned(), pool.to_owned());
        for state in STATES {
            self.families.runners.remove(&PoolState { namespace: namespace.clone(), pool: pool.clone(), state });
        }
        for result in JOB_RESULTS {
            self.families.jobs.remove(&JobResult { namespace: namespace.clone(), pool: pool.clone(), result });
        }
        let labels = Pool { namespace, pool };
        self.families.desired.remove(&labels);
        self.families.max.remove(&labels);
    }

    /// Whether this process holds the lease `name`.
    pub fn leading(&self, name: &str, leading: bool) {
        self.families.leader.get_or_create(&Lease { name: name.to_owned() }).set(leading.into());
    }

    /// Everything, as OpenMetrics text.
    ///
    /// # Errors
    /// A metric could not be written as text.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// `/metrics`.
    pub fn router(&self) -> Router {
        Router::new().route("/metrics", get(scrape)).with_state(self.clone())
    }
}

async fn scrape(State(metrics): State<Metrics>) -> Response {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

#[cfg(test)]
mod tests;
