//! What is ours goes in the end, what is not is never touched.

use std::{collections::BTreeSet, time::Duration};

use kube::{ResourceExt, api::Patch, api::PatchParams};
use miglet_e2e::{
    compute::GroupSpec,
    faults::{Action, Rule},
    world::{GROUP, ORG, Patience, Plane, Trouble, World, WorldOptions, ZONE},
};
use miglet_operator::crd::{RunnerPool, names};
use serde_json::json;

type Result = std::result::Result<(), Trouble>;

async fn scale(world: &World, pool: &str, replicas: i32) -> std::result::Result<(), kube::Error> {
    let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
    world.api::<RunnerPool>().patch(pool, &PatchParams::default(), &patch).await.map(drop)
}

/// What every instance and registration of this pool starts with.
async fn prefix(world: &World, pool: &str) -> std::result::Result<String, kube::Error> {
    let uid = world.api::<RunnerPool>().get(pool).await?.uid().unwrap_or_default();
    Ok(names::vm_prefix(pool, &uid))
}

fn instances(world: &World) -> BTreeSet<String> {
    world.compute.all_instances().into_iter().map(|instance| instance.name).collect()
}

fn runners(world: &World) -> BTreeSet<String> {
    world.github.runners().into_iter().map(|runner| runner.name).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_and_runners_of_others_outlive_the_pool_that_shares_their_group() -> Result {
    let world = World::start(WorldOptions::default()).await?;
    let foreign_instances = ["somebody-else", "linux-zzzzzz-zzzzzzzz", "linux"].map(str::to_owned);
    let foreign_runners = ["somebody-else", "linux-zzzzzz-zzzzzzzz-1", "linux-1"].map(str::to_owned);
    for (instance, runner) in foreign_instances.iter().zip(&foreign_runners) {
        world.compute.create_foreign(GROUP, instance)?;
        world.github.add_foreign_runner(ORG, runner, false);
    }
    world.apply_pool("linux", 2, json!({})).await?;
    world.idle("linux", 2).await?;
    scale(&world, "linux", 0).await?;
    let only_foreign = async || (instances(&world), runners(&world));
    let expected = (BTreeSet::from(foreign_instances), BTreeSet::from(foreign_runners));
    Patience::default().until("the pool's own to go", only_foreign, |seen| *seen == expected).await?;
    // A few sweeps.
    let fleet = world.fleet().await?;
    world.holds(&fleet, Duration::from_secs(7)).await?;
    world.delete_pool("linux").await?;
    world.pool_gone("linux").await?;
    assert_eq!((instances(&world), runners(&world)), expected);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_of_somebody_else_that_holds_a_name_stays_and_the_vm_is_replaced() -> Result {
    let world = World::start(WorldOptions::default()).await?;
    world.compute.add_group(&GroupSpec::zonal("elsewhere", ZONE));
    world.compute.server().faults.add(Rule::path("createInstances", Action::Delay { millis: 1500 }).times(1));
    world.apply_pool("linux", 1, json!({})).await?;
    let vms = || world.vms();
    let vms =
        Patience::default().until("a RunnerVM", vms, |vms| vms.as_ref().is_ok_and(|vms| !vms.is_empty())).await??;
    let taken = vms.first().map(ResourceExt::name_any).unwrap_or_default();
    world.compute.create_foreign("elsewhere", &taken)?;
    world.vm_gone(&taken).await?;
    world.event(&["NameTaken", &taken]).await?;
    let idle = world.idle("linux", 1).await?;
    assert!(!idle.contains(&taken));
    world.delete_pool("linux").await?;
    world.pool_gone("linux").await?;
    assert_eq!(instances(&world), BTreeSet::from([taken]), "the holder of the name is still there");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn leftovers_of_a_living_pool_are_swept_but_nothing_that_is_online_or_anothers() -> Result {
    let world = World::start(WorldOptions::default()).await?;
    world.apply_pool("linux", 1, json!({})).await?;
    let idle = world.idle("linux", 1).await?;
    let prefix = prefix(&world, "linux").await?;
    let leftover = format!("{prefix}bbbbbbbb");
    let online = format!("{prefix}cccccccc-1");
    world.github.add_foreign_runner(ORG, &online, true);
    world.github.add_foreign_runner(ORG, &format!("{leftover}-1"), false);
    let begun = tokio::time::Instant::now();
    world.compute.create_foreign(GROUP, &leftover)?;
    let gone = async || instances(&world).contains(&leftover);
    Patience::default().until("the leftover instance to go", gone, |there| !there).await?;
    assert!(begun.elapsed() >= Duration::from_secs(2), "removed before it was seen twice far enough apart");
    let gone = async || runners(&world).contains(&format!("{leftover}-1"));
    Patience::default().until("the leftover registration to go", gone, |there| !there).await?;
    world.event(&["LeftoverRemoved", "instance", &leftover]).await?;
    world.event(&["LeftoverRemoved", "registration", &leftover]).await?;
    assert!(runners(&world).contains(&online), "an online registration may be at work");
    assert_eq!(world.idle("linux", 1).await?, idle, "the pool's own runner was left alone");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_sweep_removes_a_bounded_number() -> Result {
    let world = World::start(WorldOptions::default()).await?;
    world.apply_pool("linux", 0, json!({})).await?;
    let prefix = prefix(&world, "linux").await?;
    for number in 0..60 {
        world.github.add_foreign_runner(ORG, &format!("{prefix}bbbb{number:04}-1"), false);
    }
    let left = async || runners(&world).len();
    Patience::default().until("the first sweep to stop at its bound of 50", left, |left| *left == 10).await?;
    Patience::default().until("the next one to go on", left, |left| *left == 0).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_pools_of_one_name_in_two_namespaces_share_a_group_and_never_touch_each_other() -> Result {
    let mut world = World::start(WorldOptions { plane: Plane::Own, ..WorldOptions::default() }).await?;
    let first = world.namespace.clone();
    let second = format!("{first}-b");
    world.plane.kubectl(&["create", "namespace", &second]).await?;
    world.apply_pool("linux", 2, json!({})).await?;
    world.idle("linux", 2).await?;
    let ours = prefix(&world, "linux").await?;
    world.namespace.clone_from(&second);
    world.put_secret("acme-app").await?;
    world.apply_pool("linux", 2, json!({})).await?;
    let theirs = world.idle("linux", 2).await?;
    assert!(theirs.iter().all(|name| !name.starts_with(&ours)), "two pools, two prefixes: {ours}, {theirs:?}");
    assert_eq!(world.compute.instances(GROUP).len(), 4);
    let mine = |names: BTreeSet<String>| names.into_iter().filter(|n| !n.starts_with(&ours)).collect::<BTreeSet<_>>();
    let (before_instances, before_runners) = (mine(instances(&world)), mine(runners(&world)));
    world.namespace.clone_from(&first);
    world.delete_pool("linux").await?;
    world.pool_gone("linux").await?;
    world.namespace.clone_from(&second);
    assert!(instances(&world).iter().all(|name| !name.starts_with(&ours)), "the first pool left nothing");
    assert_eq!(mine(instances(&world)), before_instances, "and took nothing of the second");
    assert_eq!(mine(runners(&world)), before_runners);
    let held = world.hold_job().await?;
    assert!(theirs.contains(&held.vm), "its runners still work");
    assert!(world.let_go(&held).await?.output.contains("finished"));
    Ok(())
}
