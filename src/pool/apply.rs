//! Carries a plan out. Makes no decisions.

use std::collections::BTreeMap;

use futures::{StreamExt, stream};
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions},
};
use tracing::info;

use super::{
    Context, Error,
    plan::{NewVm, Plan, Removal},
    view::VmFact,
};
use crate::{
    crd::{PoolRef, RunnerPool, RunnerPoolStatus, RunnerVm, RunnerVmSpec, names},
    kubernetes::KubeError,
    vm::plan::later,
};

/// Calls to Kubernetes under way at once.
const AT_ONCE: usize = 16;

/// Carries everything out that can be; the first failure is returned after the rest was tried.
pub(super) async fn apply(context: &Context, pool: &RunnerPool, plan: &Plan) -> Result<(), Error> {
    let removals = plan.delete.iter().cloned().map(|removal| delete(context, pool, removal));
    let removed: Vec<_> = stream::iter(removals).buffer_unordered(AT_ONCE).collect().await;
    let orphans = plan.orphan.iter().cloned().map(|vm| orphan(context, pool, vm));
    let orphaned: Vec<_> = stream::iter(orphans).buffer_unordered(AT_ONCE).collect().await;
    let new = plan.create.iter().cloned().map(|vm| create(context, pool, vm));
    let made: Vec<_> = stream::iter(new).buffer_unordered(AT_ONCE).collect().await;
    told(context, pool, plan).await;
    removed.into_iter().chain(orphaned).chain(made).collect::<Result<(), _>>()?;
    if plan.release { release(context, pool).await } else { Ok(()) }
}

/// Creating the object is the decision; the instance is asked for later.
async fn create(context: &Context, pool: &RunnerPool, new: NewVm) -> Result<(), Error> {
    context.leadership.may_create().map_err(Error::Leadership)?;
    let Some(vm) = object(pool, &new) else { return Err(Error::Bug("a plan for a group that is not in the spec")) };
    let params = PostParams { field_manager: Some(names::POOL_MANAGER.into()), ..PostParams::default() };
    let result = context.kube("creating a RunnerVM", vms(context, pool).create(&params, &vm)).await;
    match &result {
        Ok(_) => context.metrics.vm_created(),
        // No answer: it may exist, or appear yet. Counted until it must have.
        Err(error) if error.is_ambiguous() => {
            let until = later(context.clock.now(), context.request_timeout * 2);
            context.memory.fold(&pool.uid().unwrap_or_default(), |m| m.expected.insert(new.name.clone(), until));
        }
        Err(_) => {}
    }
    result?;
    Ok(())
}

/// The object of a new VM: a snapshot of the pool, its finalizer on it before anything happens outside.
fn object(pool: &RunnerPool, new: &NewVm) -> Option<RunnerVm> {
    let spec = &pool.spec;
    let mut labels: BTreeMap<_, _> = spec.template.metadata.labels.clone();
    labels.insert(names::POOL_LABEL.to_owned(), pool.name_any());
    let annotations = Some(spec.template.metadata.annotations.clone()).filter(|map| !map.is_empty());
    let vm_spec = RunnerVmSpec {
        pool: PoolRef { name: pool.name_any(), uid: pool.uid()? },
        project: spec.compute.gce.project.clone(),
        group: spec.compute.gce.groups.get(new.group)?.clone(),
        github: spec.github.clone(),
        template: spec.template.clone(),
        lifecycle: spec.lifecycle.clone(),
        runner: spec.runner.clone(),
    };
    let metadata = ObjectMeta {
        name: Some(new.name.clone()),
        namespace: pool.namespace(),
        labels: Some(labels),
        annotations,
        finalizers: Some(vec![names::VM_FINALIZER.to_owned()]),
        owner_references: Some(vec![pool.controller_owner_ref(&())?]),
        ..ObjectMeta::default()
    };
    Some(RunnerVm { metadata, spec: vm_spec, status: None })
}

/// Deletes the object exactly as it was looked at: one that got a job since is another version, and stays.
async fn delete(context: &Context, pool: &RunnerPool, removal: Removal) -> Result<(), Error> {
    context.leadership.may_act().map_err(Error::Leadership)?;
    let vm = &removal.vm;
    let preconditions =
        Preconditions { uid: Some(vm.uid.clone()), resource_version: Some(vm.resource_version.clone()) };
    let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    info!(vm = vm.name, reason = removal.reason, "VM is deleted");
    // Before the call: its deletion wakes the VM's controller.
    context.vm_memories.update(&vm.uid, |memory| memory.removed_for = Some(removal.reason));
    let result = context.kube("deleting a RunnerVM", vms(context, pool).delete(&vm.name, &params)).await;
    if result.is_err() {
        context.vm_memories.update(&vm.uid, |memory| memory.removed_for = None);
    }
    match result {
        Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
        other => Ok(other.map(drop)?),
    }
}

/// Lets an object go without touching anything outside.
async fn orphan(context: &Context, pool: &RunnerPool, vm: VmFact) -> Result<(), Error> {
    context.leadership.may_act().map_err(Error::Leadership)?;
    let api = vms(context, pool);
    let patch = serde_json::json!({"metadata": {"finalizers": null, "uid": vm.uid}});
    let params = PatchParams { field_manager: Some(names::POOL_MANAGER.into()), ..PatchParams::default() };
    let freed = context.kube("orphaning a RunnerVM", api.patch(&vm.name, &params, &Patch::Merge(&patch))).await;
    if !gone(&freed) {
        freed?;
    }
    let deleted = context.kube("deleting an orphaned RunnerVM", api.delete(&vm.name, &DeleteParams::default())).await;
    if !gone(&deleted) {
        deleted?;
    }
    Ok(())
}

fn gone<T>(result: &Result<T, KubeError>) -> bool {
    result.as_ref().is_err_and(KubeError::is_not_found)
}

async fn told(context: &Context, pool: &RunnerPool, plan: &Plan) {
    let about = pool.object_ref(&());
    for reason in ["ScaledDown", "Outdated", "PoolDeleted"] {
        let count = plan.delete.iter().filter(|removal| removal.reason == reason).count();
        if count > 0 {
            context.events.say(&about, reason, format!("{count} VMs take no further job and go")).await;
        }
    }
}

/// Puts the finalizer on, before anything is made.
pub(super) async fn hold(context: &Context, pool: &RunnerPool) -> Result<(), Error> {
    context.leadership.may_act().map_err(Error::Leadership)?;
    let mut finalizers = pool.finalizers().to_vec();
    finalizers.push(names::POOL_FINALIZER.to_owned());
    set_finalizers(context, pool, &finalizers).await
}

async fn release(context: &Context, pool: &RunnerPool) -> Result<(), Error> {
    context.leadership.may_act().map_err(Error::Leadership)?;
    let finalizers: Vec<_> = pool.finalizers().iter().filter(|f| *f != names::POOL_FINALIZER).cloned().collect();
    set_finalizers(context, pool, &finalizers).await?;
    info!(pool = pool.name_any(), "Pool is gone");
    context.metrics.forget_pool(&pool.namespace().unwrap_or_default(), &pool.name_any());
    context.memory.forget(&pool.uid().unwrap_or_default());
    context.sessions.forget_policy(&pool.uid().unwrap_or_default());
    context.sweeper.forget(&pool.uid().unwrap_or_default());
    Ok(())
}

async fn set_finalizers(context: &Context, pool: &RunnerPool, finalizers: &[String]) -> Result<(), Error> {
    let patch = serde_json::json!({"metadata": {"finalizers": finalizers, "resourceVersion": pool.resource_version()}});
    let params = PatchParams { field_manager: Some(names::POOL_MANAGER.into()), ..PatchParams::default() };
    let api = pools(context, pool);
    context.kube("writing the pool's finalizer", api.patch(&pool.name_any(), &params, &Patch::Merge(&patch))).await?;
    Ok(())
}

/// Writes the status, under the object's resource version.
pub(super) async fn write(context: &Context, pool: &RunnerPool, status: RunnerPoolStatus) -> Result<(), Error> {
    context.leadership.may_act().map_err(Error::Leadership)?;
    let mut next = pool.clone();
    next.status = Some(status);
    let params = PostParams { field_manager: Some(names::POOL_MANAGER.into()), ..PostParams::default() };
    let api = pools(context, pool);
    context.kube("writing the pool's status", api.replace_status(&pool.name_any(), &params, &next)).await?;
    Ok(())
}

fn vms(context: &Context, pool: &RunnerPool) -> Api<RunnerVm> {
    Api::namespaced(context.client.clone(), &pool.namespace().unwrap_or_default())
}

fn pools(context: &Context, pool: &RunnerPool) -> Api<RunnerPool> {
    Api::namespaced(context.client.clone(), &pool.namespace().unwrap_or_default())
}
