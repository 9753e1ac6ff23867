//! Gathers a VM's view: from the cache, the shared lists, the session table, this process's memory. Asks the cloud
//! nothing by itself, and the forge nothing at all.

use kube::ResourceExt;

use super::{
    Context,
    memory::Memory,
    view::{Access, Presence, VmView},
};
use crate::{
    compute::{Group, Instance},
    crd::RunnerVm,
    forge::credentials::CredentialsError,
    gateway::settings::settings,
    kubernetes,
    wakes::Key,
};

/// Everything known about this VM now.
pub(super) async fn observe(context: &Context, vm: &RunnerVm) -> VmView {
    let uid = vm.uid().unwrap_or_default();
    let key = Key::new(vm.namespace().unwrap_or_default(), vm.name_any());
    let status = vm.status.clone().unwrap_or_default();
    let (instance, listed) = listed(context, vm);
    context.memories.update(&uid, |memory| {
        memory.saw_unbound |= status.agent.is_none();
        if let (Some(asked_at), Some(_)) = (listed, &status.create_requested_time) {
            // An entry that lost its machine counts as absent: a stale list may show it so once.
            memory.listed(asked_at, instance.as_ref().filter(|i| i.id.is_some() || status.instance.is_none()));
        }
    });
    let memory = context.memories.get(&uid);
    VmView {
        presence: presence(instance, &memory),
        agent: context.sessions.view(&key),
        rebooted: context.sessions.was_rebooted(&key),
        unsupported: context.sessions.why_unsupported(&key),
        settings: settings(&vm.spec, context.sessions.policy(&vm.spec.pool.uid).as_ref()),
        access: access(context, vm, &key).await,
        memory,
        leading_since: context.leading_since,
        vm: vm.clone(),
    }
}

fn listed(context: &Context, vm: &RunnerVm) -> (Option<Instance>, Option<jiff::Timestamp>) {
    let group = Group::of(&vm.spec.project, &vm.spec.group);
    let Some(listing) = group.and_then(|group| context.groups.latest(&group)) else { return (None, None) };
    (listing.instances.get(&vm.name_any()).cloned(), Some(listing.asked_at))
}

fn presence(instance: Option<Instance>, memory: &Memory) -> Presence {
    match (instance, memory.absent_since, memory.listed) {
        (Some(instance), _, _) => Presence::Present(instance),
        (None, Some(first), Some(last)) => Presence::Absent { first, last },
        (None, _, _) => Presence::Unknown,
    }
}

/// Whether the forge can be asked: only looked into once there is something to ask.
async fn access(context: &Context, vm: &RunnerVm, key: &Key) -> Access {
    let status = vm.status.clone().unwrap_or_default();
    if status.agent.is_none() && status.runner.is_none() {
        return Access::Usable { seen: None };
    }
    match context.forges.runners(&key.namespace, &vm.spec.github).await {
        Ok(runners) => Access::Usable { seen: runners.seen() },
        Err(error) if error.is_withheld() && goes(context, &key.namespace).await => Access::Lost,
        Err(error) => Access::Blocked(describe(&error)),
    }
}

async fn goes(context: &Context, namespace: &str) -> bool {
    kubernetes::namespace_goes(&context.client, context.request_timeout, namespace).await
}

fn describe(error: &CredentialsError) -> String {
    error.to_string()
}
