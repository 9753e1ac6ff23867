//! What people do to a pool on an ordinary day: scale it, delete one of its VMs, change it, pause it, delete it.

use std::{collections::BTreeSet, time::Duration};

use miglet_e2e::{
    compute::Instance,
    github::{JobState, JobStatus},
    runner::wire::Conclusion,
    world::{Held, History, Patience, World, WorldOptions},
};
use miglet_operator::crd::{Phase, RunnerPool, RunnerVm};
use serde_json::{Value, json};

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Long enough for several passes, lists and sweeps.
const A_WHILE: Duration = Duration::from_secs(4);

async fn pool_of(replicas: i32, patch: Value) -> Result<World> {
    let world = World::start(WorldOptions::default()).await?;
    world.apply_pool("linux", replicas, patch).await?;
    world.idle("linux", usize::try_from(replicas)?).await?;
    Ok(world)
}

fn names(instances: &[Instance]) -> BTreeSet<String> {
    instances.iter().map(|instance| instance.name.clone()).collect()
}

/// Waits until exactly these instances are left.
async fn instances_are(world: &World, expected: &[&str]) -> Result {
    let expected: BTreeSet<_> = expected.iter().map(ToString::to_string).collect();
    let look = async || names(&world.compute.all_instances());
    Patience::default().until(&format!("exactly {expected:?}"), look, |seen| *seen == expected).await?;
    Ok(())
}

/// Waits until the pool's status counts so many replicas, busy ones and idle ones.
async fn counts_are(world: &World, expected: (i32, i32, i32)) -> Result {
    let api = world.api::<RunnerPool>();
    let look = async || {
        let status = api.get("linux").await.map(|pool| pool.status.unwrap_or_default());
        status.map(|status| (status.replicas, status.busy_replicas, status.idle_replicas))
    };
    let good = |seen: &std::result::Result<_, kube::Error>| seen.as_ref().is_ok_and(|seen| *seen == expected);
    Patience::default().until(&format!("replicas, busy, idle of {expected:?}"), look, good).await??;
    Ok(())
}

/// What one condition of a RunnerVM says: `status reason`.
async fn says(world: &World, vm: &str, kind: &str) -> Result<String> {
    let vm = world.api::<RunnerVm>().get(vm).await?;
    let conditions = vm.status.unwrap_or_default().conditions;
    let found = conditions.into_iter().find(|c| c.type_ == kind);
    Ok(found.map(|c| format!("{} {}", c.status, c.reason)).unwrap_or_default())
}

async fn will_say(world: &World, vm: &str, kind: &str, expected: &str) -> Result {
    let look = async || says(world, vm, kind).await.map_err(|error| error.to_string());
    let good = |seen: &std::result::Result<String, String>| seen.as_deref() == Ok(expected);
    Patience::default().until(&format!("{kind} of {vm} to be {expected}"), look, good).await??;
    Ok(())
}

fn still_runs(world: &World, held: &Held) {
    assert_eq!(world.github.job(held.id).map(|job| job.status), Some(JobStatus::InProgress));
    assert!(names(&world.compute.all_instances()).contains(&held.vm));
}

/// For a while the instances stay exactly as they are, and the job runs.
async fn nothing_happens(world: &World, held: &Held) {
    let before = names(&world.compute.all_instances());
    let start = tokio::time::Instant::now();
    while start.elapsed() < A_WHILE {
        assert_eq!(names(&world.compute.all_instances()), before);
        still_runs(world, held);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn succeeded(job: &JobState) {
    assert_eq!((job.conclusion, job.lost, job.attempts), (Some(Conclusion::Succeeded), false, 1), "{job:?}");
}

async fn nothing_is_left(world: &World) -> Result {
    assert_eq!(world.compute.all_instances(), []);
    assert_eq!(world.github.runners(), []);
    assert!(world.vms().await?.is_empty());
    Ok(())
}

/// The last words of a condition of an object that is gone.
fn last_condition(history: &History, vm: &str, kind: &str) -> Value {
    let versions = history.of("RunnerVM", vm);
    let conditions = versions.last().and_then(|vm| vm.pointer("/status/conditions")).and_then(Value::as_array);
    let found = conditions.into_iter().flatten().find(|c| c.get("type").is_some_and(|t| t == kind));
    found.cloned().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn scaling_up_and_down_never_cuts_a_busy_runner() -> Result {
    let world = pool_of(1, json!({})).await?;
    world.kubectl(&["scale", "rpool/linux", "--replicas=3"]).await?;
    world.idle("linux", 3).await?;
    let held = world.hold_job().await?;
    world.kubectl(&["scale", "rpool/linux", "--replicas=1"]).await?;
    instances_are(&world, &[&held.vm]).await?;
    counts_are(&world, (1, 1, 0)).await?;
    world.event(&["ScaledDown", "2 VMs"]).await?;
    let scale = format!("/apis/miglet.dev/v1alpha1/namespaces/{}/runnerpools/linux/scale", world.namespace);
    let scale: Value = serde_json::from_str(&world.plane.kubectl(&["get", "--raw", &scale]).await?)?;
    assert_eq!(scale.pointer("/status"), Some(&json!({"replicas": 1, "selector": "miglet.dev/pool=linux"})));
    world.kubectl(&["scale", "rpool/linux", "--replicas=0"]).await?;
    nothing_happens(&world, &held).await;
    succeeded(&world.let_go(&held).await?);
    instances_are(&world, &[]).await?;
    world.vm_gone(&held.vm).await?;
    counts_are(&world, (0, 0, 0)).await?;
    assert_eq!((world.compute.created(), world.github.runners()), (3, vec![]));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_vm_that_somebody_deletes_finishes_its_job_first() -> Result {
    let world = pool_of(1, json!({})).await?;
    let held = world.hold_job().await?;
    world.kubectl(&["delete", "rvm", &held.vm, "--wait=false"]).await?;
    let replacement = world.idle("linux", 1).await?;
    will_say(&world, &held.vm, "Draining", "True Deleted").await?;
    will_say(&world, &held.vm, "Deleting", "False WaitingForJob").await?;
    assert_eq!(world.in_phase(Phase::Draining).await?, [held.vm.as_str()]);
    nothing_happens(&world, &held).await;
    succeeded(&world.let_go(&held).await?);
    world.vm_gone(&held.vm).await?;
    world.event(&["JobFinished", "Succeeded", &held.vm]).await?;
    let replacement: Vec<_> = replacement.iter().map(String::as_str).collect();
    instances_are(&world, &replacement).await?;
    assert_eq!((world.github.runners().len(), world.compute.created()), (1, 2));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_terminate_now_annotation_does_not_wait_for_the_job_and_leaves_its_reason() -> Result {
    let world = pool_of(1, json!({})).await?;
    let history = world.record().await?;
    let held = world.hold_job().await?;
    world.kubectl(&["delete", "rvm", &held.vm, "--wait=false"]).await?;
    will_say(&world, &held.vm, "Deleting", "False WaitingForJob").await?;
    world.kubectl(&["annotate", "rvm", &held.vm, "miglet.dev/terminate-now=it mines coins"]).await?;
    world.vm_gone(&held.vm).await?;
    let reason = last_condition(&history, &held.vm, "Draining");
    assert_eq!(reason.get("reason"), Some(&json!("TerminateNow")), "{reason:#}");
    assert!(reason.to_string().contains("it mines coins"), "{reason:#}");
    let job = world.github.job(held.id).ok_or("no job")?;
    assert_ne!(job.conclusion, Some(Conclusion::Succeeded), "{job:?}");
    let replacement = world.idle("linux", 1).await?;
    instances_are(&world, &replacement.iter().map(String::as_str).collect::<Vec<_>>()).await?;
    let one = async || world.github.runners().len();
    Patience::default().until("the cut VM's registration to go", one, |runners| *runners == 1).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_pool_lets_its_job_finish_and_leaves_nothing() -> Result {
    let world = pool_of(2, json!({})).await?;
    let held = world.hold_job().await?;
    world.kubectl(&["delete", "rpool", "linux", "--wait=false"]).await?;
    instances_are(&world, &[&held.vm]).await?;
    nothing_happens(&world, &held).await;
    assert_eq!(world.condition("linux", "Ready").await?.map(|c| c.1), Some("Deleting".into()));
    succeeded(&world.let_go(&held).await?);
    world.pool_gone("linux").await?;
    nothing_is_left(&world).await?;
    world.event(&["JobFinished", "Succeeded", &held.vm]).await?;
    assert_eq!(world.compute.created(), 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_deleted_as_an_orphan_touches_nothing_outside() -> Result {
    let world = pool_of(2, json!({"spec": {"deletionPolicy": "Orphan"}})).await?;
    let held = world.hold_job().await?;
    let (changes, runners) = (world.compute_changes().len(), world.github.runners().len());
    world.kubectl(&["delete", "rpool", "linux", "--timeout=60s"]).await?;
    assert!(world.vms().await?.is_empty());
    nothing_happens(&world, &held).await;
    assert_eq!((world.compute_changes().len(), world.github.runners().len()), (changes, runners));
    succeeded(&world.let_go(&held).await?);
    assert_eq!((world.compute.all_instances().len(), world.compute_changes().len()), (2, changes));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_pool_neither_grows_nor_shrinks_but_finishes_what_it_has() -> Result {
    let world = pool_of(2, json!({})).await?;
    let pause = |paused: bool| json!({"spec": {"paused": paused}}).to_string();
    world.kubectl(&["patch", "rpool", "linux", "--type=merge", "--patch", &pause(true)]).await?;
    world.condition_is("linux", "Paused", "True", "Paused").await?;
    world.kubectl(&["scale", "rpool/linux", "--replicas=4"]).await?;
    let held = world.hold_job().await?;
    nothing_happens(&world, &held).await;
    world.kubectl(&["scale", "rpool/linux", "--replicas=1"]).await?;
    nothing_happens(&world, &held).await;
    succeeded(&world.let_go(&held).await?);
    world.vm_gone(&held.vm).await?;
    let left = world.idle("linux", 1).await?;
    for vm in &left {
        world.kubectl(&["delete", "rvm", vm, "--timeout=60s"]).await?;
    }
    nothing_is_left(&world).await?;
    assert_eq!(world.compute.created(), 2);
    world.kubectl(&["patch", "rpool", "linux", "--type=merge", "--patch", &pause(false)]).await?;
    world.idle("linux", 1).await?;
    world.condition_is("linux", "Paused", "False", "NotPaused").await?;
    Ok(())
}

/// At every moment of the history, VMs that were idle or busy and that nobody wanted gone; the fewest of them.
fn fewest_ready(history: &History) -> usize {
    let mut ready = BTreeSet::new();
    let mut fewest = usize::MAX;
    for vm in history.of_kind("RunnerVM") {
        let name = vm.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned();
        let phase = vm.pointer("/status/phase").and_then(Value::as_str);
        if vm.pointer("/metadata/deletionTimestamp").is_none() && matches!(phase, Some("Idle" | "Busy")) {
            ready.insert(name);
        } else if ready.remove(&name) {
            fewest = fewest.min(ready.len());
        }
    }
    fewest
}

#[tokio::test(flavor = "multi_thread")]
async fn new_labels_replace_idle_vms_one_at_a_time_while_busy_ones_finish() -> Result {
    let world = pool_of(3, json!({})).await?;
    let held = world.hold_job().await?;
    let before: BTreeSet<_> = names(&world.compute.all_instances());
    let history = world.record().await?;
    let labels = json!({"spec": {"github": {"labels": ["self-hosted", "linux", "gpu"]}}}).to_string();
    world.kubectl(&["patch", "rpool", "linux", "--type=merge", "--patch", &labels]).await?;
    let renewed = |idle: &std::result::Result<BTreeSet<String>, kube::Error>| {
        idle.as_ref().is_ok_and(|idle| idle.len() == 2 && idle.is_disjoint(&before))
    };
    let idle = || world.of_pool("linux", Phase::Idle);
    let idle = Patience::default().until("two new idle runners", idle, renewed).await??;
    assert_eq!(fewest_ready(&history), 2, "one at a time");
    world.event(&["Outdated", "1 VMs"]).await?;
    nothing_happens(&world, &held).await;
    succeeded(&world.let_go(&held).await?);
    world.idle("linux", 3).await?;
    for runner in world.github.runners() {
        assert_eq!(runner.labels, ["self-hosted", "linux", "gpu"]);
    }
    assert_eq!(names(&world.compute.all_instances()).intersection(&idle).count(), 2, "new ones stay");
    Ok(())
}

/// What the machine of a VM has logged so far.
fn console(world: &World, vm: &str) -> String {
    let instance = world.compute.all_instances().into_iter().find(|instance| instance.name == vm);
    instance.and_then(|i| i.console).and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn how_agents_work_changes_on_machines_that_run_and_replaces_none() -> Result {
    let world = pool_of(2, json!({})).await?;
    let held = world.hold_job().await?;
    let before = names(&world.compute.all_instances());
    assert!(before.iter().all(|vm| !console(&world, vm).contains("DEBUG")));
    let agent = json!({"logLevel": "Debug", "guards": {"memory": {"warnPercent": 1}}});
    let patch = json!({"spec": {"agent": agent}}).to_string();
    world.kubectl(&["patch", "rpool", "linux", "--type=merge", "--patch", &patch]).await?;
    for vm in &before {
        let logged = async || console(&world, vm);
        Patience::default().until("a chatty agent", logged, |text| text.contains("DEBUG")).await?;
    }
    world.event(&["LimitNear", "of the memory are in use"]).await?;
    let said = async || {
        let vm = world.api::<RunnerVm>().get(&held.vm).await.map(|vm| vm.status.unwrap_or_default());
        vm.map(|status| status.conditions.into_iter().find(|c| c.type_ == "Ready").map(|c| (c.status, c.message)))
    };
    let near = |seen: &std::result::Result<Option<(String, String)>, kube::Error>| matches!(seen, Ok(Some((status, message))) if status == "True" && message.contains("of the memory are in use"));
    Patience::default().until("a warning on the busy VM", said, near).await??;
    nothing_happens(&world, &held).await;
    assert_eq!((names(&world.compute.all_instances()), world.compute.created()), (before, 2));
    succeeded(&world.let_go(&held).await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn another_version_of_the_runner_replaces_idle_vms_while_busy_ones_finish() -> Result {
    let world = pool_of(2, json!({})).await?;
    let held = world.hold_job().await?;
    let before = names(&world.compute.all_instances());
    let patch = json!({"spec": {"runner": {"version": miglet_e2e::runner::VERSION}}}).to_string();
    world.kubectl(&["patch", "rpool", "linux", "--type=merge", "--patch", &patch]).await?;
    let renewed = |idle: &std::result::Result<BTreeSet<String>, kube::Error>| {
        idle.as_ref().is_ok_and(|idle| idle.len() == 1 && idle.is_disjoint(&before))
    };
    let idle = || world.of_pool("linux", Phase::Idle);
    Patience::default().until("a new idle runner", idle, renewed).await??;
    world.event(&["Outdated", "1 VMs"]).await?;
    nothing_happens(&world, &held).await;
    succeeded(&world.let_go(&held).await?);
    Ok(())
}
