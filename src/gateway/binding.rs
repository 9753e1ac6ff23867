//! Binding a RunnerVM to the key of the agent that called in first: one status write, before anything follows from it.
//!
//! The write carries the resourceVersion the decision was made on, so of two first contacts at most one succeeds. It
//! also names the runner's first registration attempt: the VM controller would write that next, and a VM's life has few
//! writes.

use std::time::Duration;

use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
};
use serde_json::json;

use super::admission::Caller;
use crate::crd::{AgentStatus, InstanceStatus, Phase, RunnerStatus, RunnerVm, names};

const TIMEOUT: Duration = Duration::from_secs(10);

/// The status could not be written or read.
#[derive(Debug, thiserror::Error)]
pub(super) enum BindError {
    #[error("the RunnerVM changed meanwhile")]
    Conflict,
    #[error("asking the API server")]
    Kube(#[from] kube::Error),
    #[error("asking the API server: no answer in {} s", TIMEOUT.as_secs())]
    NoAnswer,
}

/// Binds `vm`, as it was read, to `caller`.
pub(super) async fn bind(client: &Client, vm: &RunnerVm, caller: &Caller, agent: AgentStatus) -> Result<(), BindError> {
    let name = vm.name_any();
    let patch = json!({
        "metadata": {"resourceVersion": vm.resource_version()},
        "status": {
            "phase": Phase::Registering,
            "agent": agent,
            "instance": InstanceStatus {
                id: caller.identity.instance_id.to_string(),
                group: vm.spec.group.name.clone(),
                zone: caller.identity.zone.clone(),
            },
            "runner": RunnerStatus { name: names::runner_name(&name, 1), attempt: 1, id: None, version: String::new() },
        },
    });
    let params = PatchParams { field_manager: Some(names::GATEWAY_MANAGER.to_owned()), ..PatchParams::default() };
    let vms = api(client, vm);
    let patch = Patch::Merge(&patch);
    let write = vms.patch_status(&name, &params, &patch);
    match tokio::time::timeout(TIMEOUT, write).await.map_err(|_| BindError::NoAnswer)? {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 => Err(BindError::Conflict),
        Err(error) => Err(error.into()),
    }
}

/// The RunnerVM as it is now; `None` when it is gone.
pub(super) async fn read(client: &Client, vm: &RunnerVm) -> Result<Option<RunnerVm>, BindError> {
    let vms = api(client, vm);
    let name = vm.name_any();
    Ok(tokio::time::timeout(TIMEOUT, vms.get_opt(&name)).await.map_err(|_| BindError::NoAnswer)??)
}

fn api(client: &Client, vm: &RunnerVm) -> Api<RunnerVm> {
    Api::namespaced(client.clone(), &vm.namespace().unwrap_or_default())
}
