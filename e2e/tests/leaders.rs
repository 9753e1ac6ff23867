//! One operator acts, others stand by: hand-overs, clean and not, that no job and no agent notices for long.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use kube::ResourceExt;
use miglet_e2e::{
    faults::{Action, Rule},
    server::Exchange,
    world::{Held, Intervals, Patience, World, WorldOptions},
};
use rustix::process::Signal;
use serde_json::json;

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn options(lease: f64) -> WorldOptions {
    let intervals = Intervals { lease, request_timeout: 1.5, absence: 1.2, idle_sighting: 1.2, ..Intervals::default() };
    WorldOptions { intervals, ..WorldOptions::default() }
}

/// The leader is the world's operator of this index, and agents are sent to it.
async fn leads(world: &World, index: usize) -> Result {
    let operator = world.operators.get(index).ok_or("no such operator")?;
    let (pod, address) = (format!("{}-", operator.pod()), operator.pod_ip().to_string());
    let holder = || async { world.lease_holder().await.ok().flatten().unwrap_or_default() };
    Patience::default().until("the leader", holder, |holder| holder.starts_with(&pod)).await?;
    let endpoints = || async { world.endpoints().await.unwrap_or_default() };
    Patience::default().until("the leader's endpoint", endpoints, |found| *found == [address.clone()]).await?;
    Ok(())
}

/// A leader and a ready standby.
async fn two_operators(lease: f64) -> Result<World> {
    let mut world = World::start(options(lease)).await?;
    leads(&world, 0).await?;
    world.start_operator().await?;
    let standby = world.operators.get(1).ok_or("no standby")?;
    Patience::default().until("the standby to be ready", || standby.ready(), |ready| *ready).await?;
    leads(&world, 0).await?;
    Ok(world)
}

/// The job was let run to its end, once, and its result was told.
async fn succeeded(world: &World, job: &Held) -> Result {
    let done = world.let_go(job).await?;
    assert!(done.output.contains("finished") && !done.lost && done.attempts == 1, "{done:?}");
    world.event(&["JobFinished: acme/app", "Succeeded"]).await?;
    Ok(())
}

async fn delete_and_check(world: &World) -> Result {
    world.delete_pool("linux").await?;
    world.pool_gone("linux").await?;
    world.check_nothing_left().await?;
    world.check_nothing_twice()
}

/// One of two VMs took a job and was replaced; nobody else was.
fn only_the_jobs_vm_was_replaced(world: &World, before: &[String], busy: &str, after: &[String]) {
    let kept: Vec<_> = before.iter().filter(|vm| *vm != busy).collect();
    assert!(kept.iter().all(|vm| after.contains(vm)), "{before:?}, {busy} busy, became {after:?}");
    assert!(!after.contains(&busy.to_owned()));
    assert_eq!(world.compute.created_names().len(), before.len() + 1, "{:?}", world.compute.created_names());
}

async fn ended(world: &mut World, index: usize) -> Result<std::process::ExitStatus> {
    let end = Instant::now() + Patience::default().0;
    while Instant::now() < end {
        let operator = world.operators.get_mut(index).ok_or("no such operator")?;
        if let Some(status) = operator.exit_status()? {
            return Ok(status);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Err("the operator does not end".into())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_told_to_stop_hands_over_at_once_and_a_running_job_does_not_notice() -> Result {
    // So long that only a released Lease explains what follows.
    let mut world = two_operators(60.0).await?;
    world.apply_pool("linux", 2, json!({})).await?;
    let before = world.settled(2).await?;
    let job = world.hold_job().await?;
    let told = Instant::now();
    world.operators.first().ok_or("no leader")?.signal(Signal::TERM)?;
    assert!(ended(&mut world, 0).await?.success());
    assert!(told.elapsed() < Duration::from_secs(10), "it took {:?} to stop", told.elapsed());
    leads(&world, 1).await?;
    assert!(told.elapsed() < Duration::from_secs(20), "it took {:?} to take over", told.elapsed());
    succeeded(&world, &job).await?;
    let after = world.settled(2).await?;
    only_the_jobs_vm_was_replaced(&world, &before, &job.vm, &after);
    delete_and_check(&world).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_leader_is_replaced_and_a_running_job_does_not_notice() -> Result {
    let world = two_operators(2.0).await?;
    world.apply_pool("linux", 2, json!({})).await?;
    let before = world.settled(2).await?;
    let job = world.hold_job().await?;
    world.operators.first().ok_or("no leader")?.signal(Signal::KILL)?;
    leads(&world, 1).await?;
    succeeded(&world, &job).await?;
    let after = world.settled(2).await?;
    only_the_jobs_vm_was_replaced(&world, &before, &job.vm, &after);
    delete_and_check(&world).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_result_of_a_job_that_ends_while_no_operator_runs_is_told_later() -> Result {
    let mut world = World::start(options(2.0)).await?;
    world.apply_pool("linux", 2, json!({})).await?;
    let before = world.settled(2).await?;
    let job = world.hold_job().await?;
    world.operators.clear();
    world.let_go(&job).await?;
    world.start_operator().await?;
    succeeded(&world, &job).await?;
    let after = world.settled(2).await?;
    only_the_jobs_vm_was_replaced(&world, &before, &job.vm, &after);
    delete_and_check(&world).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_longer_than_the_heartbeat_timeout_ends_neither_a_job_nor_a_vm() -> Result {
    let world = World::start(options(2.0)).await?;
    world.apply_pool("linux", 2, json!({"spec": {"lifecycle": {"heartbeatTimeoutSeconds": 2}}})).await?;
    let before = world.settled(2).await?;
    let job = world.hold_job().await?;
    world.cut_agents(true);
    world.github.server().traffic.clear();
    // Both are silent for too long: the operator asks GitHub about each, more than once.
    let asked =
        || async { world.github.server().traffic.count(|e| e.method == "GET" && e.path.contains("/actions/runners/")) };
    Patience::default().until("looks at GitHub", asked, |asked| *asked >= 6).await?;
    world.let_go(&job).await?;
    world.github.server().traffic.clear();
    Patience::default().until("looks after the job's end", asked, |asked| *asked >= 4).await?;
    let during = world.vms().await?;
    assert!(during.iter().all(|vm| vm.metadata.deletion_timestamp.is_none()), "silence alone ends nothing");
    assert_eq!(during.iter().map(ResourceExt::name_any).filter(|name| before.contains(name)).count(), 2);
    world.cut_agents(false);
    succeeded(&world, &job).await?;
    let after = world.settled(2).await?;
    only_the_jobs_vm_was_replaced(&world, &before, &job.vm, &after);
    delete_and_check(&world).await
}

/// Everything the operators changed anywhere, Leases apart.
fn changes(world: &World) -> usize {
    // What a GET is elsewhere, Compute spells as a POST; a token changes nothing.
    let reads = ["/leases", "/listManagedInstances", "/access_tokens", "/_runner"];
    let change = |e: &Exchange| e.method != "GET" && !reads.iter().any(|read| e.path.contains(read));
    world.proxy.traffic().count(change)
        + world.compute.server().traffic.count(change)
        + world.github.server().traffic.count(change)
}

/// Until nothing was changed for a while.
async fn quiet(world: &World) -> Result<usize> {
    let seen = std::cell::Cell::new((changes(world), Instant::now()));
    let look = || async {
        let now = changes(world);
        if now != seen.get().0 {
            seen.set((now, Instant::now()));
        }
        seen.get().1.elapsed()
    };
    Patience::default().until("quiet", look, |quiet| *quiet > Duration::from_secs(2)).await?;
    Ok(seen.get().0)
}

/// Stops the leader by this rule while it launches one VM, lets the standby take over, then wakes the old one.
async fn fenced(rule: Rule, world: &mut World, service: miglet_e2e::faults::Faults) -> Result {
    let (stop, stopped) = world.operators.first().ok_or("no leader")?.signal_hook(Signal::STOP);
    let action = match rule.action {
        Action::CallInstead(_) => Action::CallInstead(stop),
        _ => Action::CallAfter(stop),
    };
    service.add(Rule { action, ..rule }.times(1));
    world.apply_pool("linux", 1, json!({})).await?;
    let stopped = || async { stopped.load(Ordering::SeqCst) };
    Patience::default().until("the leader to be stopped", stopped, |stopped| *stopped).await?;
    leads(world, 1).await?;
    Ok(())
}

async fn woken_ends_without_an_effect(world: &mut World) -> Result {
    let before = quiet(world).await?;
    world.operators.first().ok_or("no old leader")?.signal(Signal::CONT)?;
    assert!(!ended(world, 0).await?.success(), "it lost its lease: that is no success");
    assert_eq!(quiet(world).await?, before, "the woken leader changed something");
    Ok(())
}

fn nothing() -> miglet_e2e::faults::Hook {
    std::sync::Arc::new(|| ())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_stopped_between_mark_and_creation_creates_nothing_when_it_is_woken() -> Result {
    let mut world = two_operators(2.0).await?;
    let mark = Rule::path("/runnervms/", Action::CallAfter(nothing())).method("PUT");
    let service = world.proxy.faults().clone();
    fenced(mark, &mut world, service).await?;
    world.settled(1).await?;
    woken_ends_without_an_effect(&mut world).await?;
    assert_eq!(world.compute.created_names().len(), 1);
    delete_and_check(&world).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_stopped_in_a_creation_that_failed_does_not_try_again_when_it_is_woken() -> Result {
    let mut world = two_operators(2.0).await?;
    let call = Rule::path("/createInstances", Action::CallInstead(nothing())).method("POST");
    let service = world.compute.server().faults.clone();
    fenced(call, &mut world, service).await?;
    world.settled(1).await?;
    woken_ends_without_an_effect(&mut world).await?;
    assert_eq!(world.compute.created_names().len(), 1);
    assert_eq!(world.compute.server().traffic.count(|e| e.path.contains("/createInstances")), 2, "one of each leader");
    delete_and_check(&world).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_stopped_with_a_registration_in_its_hands_does_not_send_it_when_it_is_woken() -> Result {
    let mut world = two_operators(2.0).await?;
    let call = Rule::path("/generate-jitconfig", Action::CallAfter(nothing())).method("POST");
    let service = world.github.server().faults.clone();
    fenced(call, &mut world, service).await?;
    // The agent is still connected to the stopped one, and comes over when that one has ended.
    world.operators.first().ok_or("no old leader")?.signal(Signal::CONT)?;
    assert!(!ended(&mut world, 0).await?.success());
    world.settled(1).await?;
    let registered = world.github.registered();
    let used: Vec<_> = registered.iter().map(|r| r.used).collect();
    assert_eq!(used, [false, true], "the first was never sent: {registered:?}");
    assert_eq!(world.compute.created_names().len(), 1, "the VM was not lost over it");
    delete_and_check(&world).await
}
