//! What is told besides the status: metrics of phases, one event on the pool for each finished job.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::ResourceExt;
use tracing::info;

use super::Context;
use crate::crd::{JobStatus, RunnerVm, RunnerVmStatus, conditions::READY, conditions::find};

impl Context {
    /// Counts how long a phase took, once it is left.
    pub(super) fn tell_phase(&self, old: &RunnerVmStatus, new: &RunnerVmStatus, vm: &RunnerVm, now: Timestamp) {
        if old.phase == new.phase {
            return;
        }
        let since = old.conditions.iter().map(|c| c.last_transition_time.0).max();
        let since = find(&old.conditions, READY).map(|c| c.last_transition_time.0).max(since);
        let elapsed = since.and_then(|since| Duration::try_from(now.duration_since(since)).ok()).unwrap_or_default();
        self.metrics.phase_left(old.phase, elapsed);
        info!(vm = %vm.name_any(), from = ?old.phase, to = ?new.phase, "Phase changed");
    }

    /// Tells a finished job: its VM's object is gone a minute later.
    pub(super) async fn job_told(&self, vm: &RunnerVm) {
        let Some(job) = vm.status.as_ref().and_then(|s| s.job.as_ref()).filter(|j| j.completed_time.is_some()) else {
            return;
        };
        info!(vm = %vm.name_any(), job = job.summary, result = job.result, run = job.run_id, "Job finished");
        self.metrics.job_finished(&job.result);
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
