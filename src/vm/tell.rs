//! What is told besides the status: metrics of phases, one event on the pool for each finished job.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{Resource, ResourceExt, runtime::events::EventType};
use tracing::info;

use super::{
    Context,
    plan::{End, VERSION_REFUSED},
};
use crate::{
    compute::Group,
    crd::{
        JobStatus, RunnerVm, RunnerVmStatus,
        conditions::{DRAINING, READY, find},
    },
    events::{Once, Telling},
    metrics::JOB_RESULTS,
};

/// Why VMs end: the closed set of a metric's label.
pub(super) const END_REASONS: [&str; 32] = [
    "JobCompleted",
    "RunnerExitedWithoutJob",
    "RunnerFailed",
    VERSION_REFUSED,
    "NameTaken",
    "Stockout",
    "QuotaExceeded",
    "RateLimited",
    "Misconfigured",
    "NotFound",
    "Unavailable",
    "LaunchTimeout",
    "RegistrationTimeout",
    "DeliveryLost",
    "MaxLifetime",
    "Preempted",
    "HostMaintenance",
    "JobTimeLimit",
    "DiskFull",
    "MemoryFull",
    "DrainedOnMachine",
    "RegistrationGone",
    "AgentLost",
    "Rebooted",
    "InstanceReplaced",
    "InstanceDown",
    "InstanceGone",
    "TerminateNow",
    "ScaledDown",
    "Outdated",
    "PoolDeleted",
    "Deleted",
];
/// How often a job's end is told to an API server that does not answer, the VM waiting for it.
const TRIES: u32 = 6;
/// What became of a job of which no end was reported.
const LOST: &str = "Lost";
/// Ends that take a running job along.
const FATAL: [&str; 6] = ["InstanceDown", "InstanceGone", "InstanceReplaced", "Rebooted", "AgentLost", "RunnerFailed"];

/// The word as a metric's label: one of a closed set, whatever an agent says.
pub(super) fn word(said: &str, known: &[&'static str]) -> &'static str {
    known.iter().copied().find(|word| *word == said).unwrap_or("Other")
}

impl Context {
    /// Counts how long a phase took, once it is left.
    pub(super) fn tell_phase(&self, old: &RunnerVmStatus, new: &RunnerVmStatus, vm: &RunnerVm, now: Timestamp) {
        if old.launched_time.is_none()
            && new.launched_time.is_some()
            && let Some(group) = Group::of(&vm.spec.project, &vm.spec.group)
        {
            self.groups.recovered(&group);
        }
        if old.phase == new.phase {
            return;
        }
        let since = old.conditions.iter().map(|c| c.last_transition_time.0).max();
        let since = find(&old.conditions, READY).map(|c| c.last_transition_time.0).max(since);
        let elapsed = since.and_then(|since| Duration::try_from(now.duration_since(since)).ok()).unwrap_or_default();
        self.metrics.phase_left(old.phase.as_str(), elapsed);
        info!(vm = %vm.name_any(), from = ?old.phase, to = ?new.phase, "Phase changed");
    }

    /// Tells a limit that is neared, once, where the VM's owner looks.
    pub(super) async fn tell_warning(&self, old: &RunnerVmStatus, new: &RunnerVmStatus, vm: &RunnerVm) {
        let told = |status: &RunnerVmStatus| warned(status).map(str::to_owned);
        if let Some(warning) = told(new).filter(|warning| told(old).as_ref() != Some(warning)) {
            self.events.warn(&vm.object_ref(&()), "LimitNear", warning).await;
        }
    }

    /// Tells why a life ends, and what that means for its job: the object is gone a minute later.
    pub(super) async fn end_told(&self, vm: &RunnerVm, end: &End) {
        let job = vm.status.as_ref().and_then(|status| status.job.as_ref());
        match job {
            Some(job) if job.completed_time.is_some() => self.job_told(vm).await,
            Some(job) if FATAL.contains(&end.reason) => self.job_lost(vm, job, &end.message).await,
            // Told by the pool's conditions, once for all its VMs.
            _ if end.back_off.is_some() || (end.never_created && end.reason != "NameTaken") => {}
            _ => {
                let note = format!("VM {}: {}", vm.name_any(), end.message);
                self.events.warn(&pool_of(vm), end.reason, note).await;
            }
        }
    }

    /// Tells what became of the job of an object that goes, unless this process told it when its life ended. False when
    /// that is worth another try.
    pub(super) async fn last_told(&self, vm: &RunnerVm) -> bool {
        let status = vm.status.as_ref();
        let draining = status.and_then(|status| find(&status.conditions, DRAINING));
        let memory = self.memories.get(&vm.uid().unwrap_or_default());
        match status.and_then(|status| status.job.as_ref()) {
            _ if memory.job_told => return true,
            Some(job) if job.completed_time.is_some() => self.job_told(vm).await,
            Some(job) => {
                let why = draining.map(|condition| condition.message.as_str()).unwrap_or_default();
                self.job_lost(vm, job, &format!("its VM went first: {why}")).await;
            }
            None => return true,
        }
        self.memories.get(&vm.uid().unwrap_or_default()).job_told
    }

    async fn job_lost(&self, vm: &RunnerVm, job: &JobStatus, why: &str) {
        let lost = JobStatus { result: LOST.to_owned(), ..job.clone() };
        let note = format!("{}: {why}", sentence(&lost, &vm.name_any()));
        if self.told_once(vm, EventType::Warning, "JobLost", note).await {
            info!(vm = %vm.name_any(), job = job.summary, run = job.run_id, why, "Job lost");
            self.count_job(vm, LOST);
        }
    }

    /// Tells a finished job.
    async fn job_told(&self, vm: &RunnerVm) {
        let job = vm.status.as_ref().and_then(|status| status.job.as_ref());
        let Some(job) = job else { return };
        if self.told_once(vm, EventType::Normal, "JobFinished", sentence(job, &vm.name_any())).await {
            info!(vm = %vm.name_any(), job = job.summary, result = job.result, run = job.run_id, "Job finished");
            self.count_job(vm, word(&job.result, &JOB_RESULTS));
        }
    }

    /// A VM has one job: one event of it, however many operators die around its telling. True when it is this one that
    /// told it, or that gives up: an API server that takes everything but events must not hold the VM for ever.
    async fn told_once(&self, vm: &RunnerVm, type_: EventType, reason: &str, note: String) -> bool {
        let uid = vm.uid().unwrap_or_default();
        let once = Once { name: format!("{}.job", vm.name_any()), type_, reason, note, at: self.clock.now() };
        let telling = self.events.once(&pool_of(vm), once).await;
        let tries = self.memories.get(&uid).job_tries.saturating_add(1);
        let over = telling != Telling::Unanswered || tries >= TRIES;
        self.memories.update(&uid, |memory| (memory.job_told, memory.job_tries) = (over, tries));
        // One that went unanswered may have been taken.
        over && (telling != Telling::Old || tries > 1)
    }

    fn count_job(&self, vm: &RunnerVm, result: &'static str) {
        self.metrics.job_finished(&vm.namespace().unwrap_or_default(), &vm.spec.pool.name, result);
    }
}

/// What a VM that works well is warned about.
pub(super) fn warned(status: &RunnerVmStatus) -> Option<&str> {
    let ready = find(&status.conditions, READY).filter(|condition| condition.status == "True")?;
    Some(ready.message.as_str()).filter(|message| !message.is_empty())
}

fn pool_of(vm: &RunnerVm) -> ObjectReference {
    ObjectReference {
        api_version: Some("miglet.dev/v1alpha1".into()),
        kind: Some("RunnerPool".into()),
        name: Some(vm.spec.pool.name.clone()),
        namespace: vm.namespace(),
        uid: Some(vm.spec.pool.uid.clone()),
        ..ObjectReference::default()
    }
}

fn sentence(job: &JobStatus, vm: &str) -> String {
    let result = if job.result.is_empty() { "Unknown" } else { &job.result };
    match job.run_id {
        Some(run) => format!("{} ended: {result} (run {run}, VM {vm})", job.summary),
        None => format!("{} ended: {result} (VM {vm})", job.summary),
    }
}
