//! What is told besides the status: metrics of phases, one event on the pool for each finished job.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::ResourceExt;
use tracing::info;

use super::Context;
use crate::{
    compute::Group,
    crd::{JobStatus, RunnerVm, RunnerVmStatus, conditions::READY, conditions::find},
};

/// Why VMs end: the closed set of a metric's label.
pub(super) const END_REASONS: [&str; 22] = [
    "JobCompleted",
    "RunnerExitedWithoutJob",
    "RunnerFailed",
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
    "RegistrationGone",
    "AgentLost",
    "Rebooted",
    "InstanceReplaced",
    "InstanceDown",
    "InstanceGone",
    "TerminateNow",
    "Deleted",
];
const JOB_RESULTS: [&str; 6] = ["Succeeded", "SucceededWithIssues", "Failed", "Canceled", "Skipped", "Abandoned"];

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

    /// Tells a finished job: its VM's object is gone a minute later.
    pub(super) async fn job_told(&self, vm: &RunnerVm) {
        let job = vm.status.as_ref().and_then(|status| status.job.as_ref());
        let Some(job) = job.filter(|job| job.completed_time.is_some()) else { return };
        info!(vm = %vm.name_any(), job = job.summary, result = job.result, run = job.run_id, "Job finished");
        self.metrics.job_finished(word(&job.result, &JOB_RESULTS));
        self.events.say(&pool_of(vm), "JobFinished", sentence(job, &vm.name_any())).await;
    }
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
