//! Ends that Kubernetes brings about: namespaces deleted, pools deleted in every way kubectl knows, pools pointed elsewhere.

use k8s_openapi::api::core::v1::{Event, Namespace, Secret};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use miglet_e2e::world::{Patience, World, WorldOptions};
use miglet_operator::crd::{Phase, RunnerPool, RunnerVm};
use serde_json::json;

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

async fn world_with_two() -> Result<World> {
    let world = World::start(WorldOptions::default()).await?;
    world.apply_pool("linux", 2, json!({})).await?;
    world.idle("linux", 2).await?;
    Ok(world)
}

async fn namespace_gone(world: &World) -> Result {
    let api = Api::<Namespace>::all(world.client.clone());
    let look = || api.get_opt(&world.namespace);
    Patience::default().until("the namespace to go", look, |ns| ns.as_ref().is_ok_and(Option::is_none)).await??;
    Ok(())
}

/// Waits until exactly these RunnerVMs are left.
async fn only(world: &World, names: &[&str]) -> Result {
    let left = |vms: &std::result::Result<Vec<RunnerVm>, kube::Error>| {
        vms.as_ref().is_ok_and(|vms| vms.iter().map(ResourceExt::name_any).eq(names.iter().map(|n| (*n).to_owned())))
    };
    Patience::default().until("only the busy VM", || world.vms(), left).await??;
    Ok(())
}

/// The deletion of a namespace whose credentials went first: by the Secret, or by the right to read it.
async fn deleted_without_credentials(world: &World) -> Result {
    let held = world.hold_job().await?;
    let idle = world.github.runners().into_iter().find(|r| !r.busy).ok_or("no idle runner")?;
    world.delete_namespace().await?;
    only(world, &[&held.vm]).await?;
    let kept = || async { world.compute.all_instances().len() };
    Patience::default().until("the idle VM's instance to go", kept, |count| *count == 1).await?;
    let job = world.let_go(&held).await?;
    assert!(!job.lost && job.output.contains("finished"), "the busy runner's job was not cut off: {job:?}");
    namespace_gone(world).await?;
    assert!(world.compute.all_instances().is_empty(), "instances are left");
    let events = Api::<Event>::namespaced(world.client.clone(), "default").list(&ListParams::default()).await?;
    let of_namespace = |e: &&Event| e.involved_object.name.as_deref() == Some(&world.namespace);
    let notes: Vec<_> = events.iter().filter(of_namespace).filter_map(|e| e.message.clone()).collect();
    assert!(notes.iter().any(|note| note.contains(&idle.name)), "the registration left behind is named: {notes:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_loses_its_secret_first_still_goes_and_its_busy_runner_finishes() -> Result {
    let world = world_with_two().await?;
    world.api::<Secret>().delete("acme-app", &DeleteParams::default()).await?;
    world.condition_is("linux", "CredentialsValid", "False", "SecretNotFound").await?;
    deleted_without_credentials(&world).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_loses_its_role_binding_first_still_goes_and_its_busy_runner_finishes() -> Result {
    let world = world_with_two().await?;
    let binding = format!("miglet-pool-credentials-{}", world.system);
    world.plane.kubectl(&["delete", "clusterrolebinding", &binding]).await?;
    world.condition_is("linux", "CredentialsValid", "False", "SecretForbidden").await?;
    deleted_without_credentials(&world).await
}

async fn kubectl_delete(world: &World, cascade: &str) -> Result {
    let args = ["delete", "rpool", "linux", "--namespace", &world.namespace, cascade, "--wait=false"];
    world.plane.kubectl(&args).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_deleted_in_the_foreground_takes_everything_along() -> Result {
    let world = world_with_two().await?;
    let held = world.hold_job().await?;
    kubectl_delete(&world, "--cascade=foreground").await?;
    only(&world, &[&held.vm]).await?;
    assert!(world.api::<RunnerPool>().get_opt("linux").await?.is_some(), "the pool waits for its busy VM");
    assert!(!world.let_go(&held).await?.lost);
    world.pool_gone("linux").await?;
    assert!(world.vms().await?.is_empty() && world.compute.all_instances().is_empty());
    assert!(world.github.runners().is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_deleted_with_cascade_orphan_leaves_vms_that_still_work_and_drain() -> Result {
    let world = world_with_two().await?;
    let before = world.of_pool("linux", Phase::Idle).await?;
    kubectl_delete(&world, "--cascade=orphan").await?;
    world.pool_gone("linux").await?;
    let vms = world.vms().await?;
    assert_eq!(vms.iter().map(ResourceExt::name_any).collect::<std::collections::BTreeSet<_>>(), before);
    assert!(vms.iter().all(|vm| vm.owner_references().is_empty() && vm.metadata.deletion_timestamp.is_none()));
    let held = world.hold_job().await?;
    assert!(!world.let_go(&held).await?.lost);
    for vm in &before {
        // The one that had the job may be gone by itself.
        drop(world.api::<RunnerVm>().delete(vm, &DeleteParams::default()).await);
        world.vm_gone(vm).await?;
    }
    assert!(world.compute.all_instances().is_empty() && world.github.runners().is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn deletion_policy_orphan_drops_the_objects_and_touches_nothing_outside() -> Result {
    let world = World::start(WorldOptions::default()).await?;
    world.apply_pool("linux", 2, json!({"spec": {"deletionPolicy": "Orphan"}})).await?;
    world.idle("linux", 2).await?;
    let before = world.fleet().await?;
    world.delete_pool("linux").await?;
    world.pool_gone("linux").await?;
    assert!(world.vms().await?.is_empty());
    let after = world.fleet().await?;
    assert_eq!((after.instances, after.runners), (before.instances, before.runners));
    let id = world.github.queue_job(World::job("echo still here"));
    assert!(!world.github.wait_job(id, Patience::default().0).await?.lost, "its runners still run jobs");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_pointed_elsewhere_replaces_idle_runners_and_lets_busy_ones_finish_where_they_are() -> Result {
    let world = world_with_two().await?;
    world.github.add_org("other");
    let held = world.hold_job().await?;
    let url = json!({"spec": {"github": {"url": format!("{}/other", world.github.url())}}});
    world.api::<RunnerPool>().patch("linux", &PatchParams::default(), &Patch::Merge(&url)).await?;
    let at = |org: &str| world.github.runners().iter().filter(|r| r.scope.to_string() == org).count();
    let moved = || async { (at("acme"), at("other")) };
    Patience::default().until("the idle runner to move", moved, |seen| *seen == (1, 1)).await?;
    let busy = world.api::<RunnerVm>().get(&held.vm).await?;
    assert!(busy.spec.github.url.ends_with("/acme") && busy.metadata.deletion_timestamp.is_none());
    world.api::<RunnerVm>().delete(&held.vm, &DeleteParams::default()).await?;
    assert!(!world.let_go(&held).await?.lost);
    world.vm_gone(&held.vm).await?;
    Patience::default().until("both runners to move", moved, |seen| *seen == (0, 2)).await?;
    Ok(())
}
