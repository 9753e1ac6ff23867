//! What a VM has to tell is told at least once and shown exactly once, whoever dies meanwhile.

use std::sync::atomic::Ordering;

use k8s_openapi::api::core::v1::Event;
use kube::api::ListParams;
use miglet_e2e::{
    faults::{Action, Rule},
    world::{Held, History, Intervals, Patience, World, WorldOptions},
};
use rustix::process::Signal;
use serde_json::{Value, json};

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// A world with a busy VM, whose operator is soon replaced.
async fn busy() -> Result<(World, History, Held)> {
    busy_under(Intervals { lease: 2.0, request_timeout: 1.5, absence: 1.2, idle_sighting: 1.2, ..Intervals::default() })
        .await
}

async fn busy_under(intervals: Intervals) -> Result<(World, History, Held)> {
    let world = World::start(WorldOptions { intervals, ..WorldOptions::default() }).await?;
    let history = world.record().await?;
    world.apply_pool("linux", 1, json!({})).await?;
    world.settled(1).await?;
    let held = world.hold_job().await?;
    Ok((world, history, held))
}

/// Lets the job end, and has the operator killed at a request of its own: before it is out, or once it is done.
async fn let_go_and_kill(world: &World, held: &Held, method: &str, path: &str, done: bool) -> Result {
    let (kill, fired) = world.operators.first().ok_or("no operator")?.signal_hook(Signal::KILL);
    let action = if done { Action::CallAfter(kill) } else { Action::CallInstead(kill) };
    world.proxy.faults().add(Rule::path(path, action).method(method).times(1));
    world.let_go(held).await?;
    Patience::default().until("the kill", || async { fired.load(Ordering::SeqCst) }, |killed| *killed).await?;
    Ok(())
}

fn acked(vm: &Value) -> u64 {
    vm.pointer("/status/agent/ackedSequence").and_then(Value::as_u64).unwrap_or_default()
}

fn result(vm: &Value) -> Option<&str> {
    vm.pointer("/status/job/result").and_then(Value::as_str)
}

/// How many events of a kind came, as the operator counts them.
async fn heard(world: &World, kind: &str) -> Result<u64> {
    let count = async |outcome: &str| {
        world.figure(&format!("miglet_agent_events_total{{kind=\"{kind}\",outcome=\"{outcome}\"}}")).await
    };
    Ok(count("New").await? + count("Gone").await?)
}

/// The job's result is in the status, and the pool's events have it once.
async fn told_once(world: &World, history: &History, held: &Held) -> Result {
    world.event(&["JobFinished", &held.vm, "Succeeded"]).await?;
    world.vm_gone(&held.vm).await?;
    world.settled(1).await?;
    let versions = history.of("RunnerVM", &held.vm);
    let results: Vec<_> = versions.iter().filter_map(result).collect();
    assert!(!results.is_empty() && results.iter().all(|result| *result == "Succeeded"), "{results:?}");
    assert!(versions.last().is_some_and(|vm| result(vm).is_some()), "a result that was written stays");
    let events = world.api::<Event>().list(&ListParams::default()).await?.items;
    let about = |event: &&Event| event.message.as_ref().is_some_and(|note| note.contains(&format!("VM {})", held.vm)));
    let told: Vec<_> =
        events.iter().filter(about).map(|event| (&event.reason, &event.message, &event.series)).collect();
    assert!(told.len() == 1 && told.iter().all(|(_, _, series)| series.is_none()), "{told:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_is_written_with_its_events_number_and_told_once() -> Result {
    let (world, history, held) = busy().await?;
    world.let_go(&held).await?;
    told_once(&world, &history, &held).await?;
    let versions = history.of("RunnerVM", &held.vm);
    let with_result = versions.iter().position(|vm| result(vm).is_some()).ok_or("no version has the result")?;
    let (before, after) = versions.split_at(with_result);
    let acked = |vm: Option<&Value>| vm.map(acked).unwrap_or_default();
    let (before, after) = (acked(before.last()), acked(after.first()));
    assert!(after > before, "acked {before} before the result, {after} with it: one write");
    for kind in ["vm_started", "runner_registered", "job_started", "job_completed"] {
        assert!(heard(&world, kind).await? >= 1, "{kind}");
    }
    let off = async || heard(&world, "vm_shutting_down").await.unwrap_or_default();
    Patience::default().until("its machine to be turned off", off, |heard| *heard >= 1).await?;
    let jobs = format!("miglet_jobs_finished_total{{namespace=\"{}\",pool=\"linux\"", world.namespace);
    assert_eq!(world.figure(&jobs).await?, 1);
    Ok(())
}

/// It has heard the event and says so to nobody: the agent tells it again.
#[tokio::test(flavor = "multi_thread")]
async fn an_operator_killed_between_a_result_and_its_write_loses_nothing() -> Result {
    let (mut world, history, held) = busy().await?;
    let_go_and_kill(&world, &held, "PUT", &format!("/runnervms/{}/status", held.vm), false).await?;
    assert!(history.of("RunnerVM", &held.vm).iter().all(|vm| result(vm).is_none()), "it was not written");
    world.restart_operator().await?;
    told_once(&world, &history, &held).await
}

/// The object is on its way out, and its pool does not know yet what became of the job.
#[tokio::test(flavor = "multi_thread")]
async fn an_operator_killed_before_it_told_the_pool_of_a_result_tells_it_later() -> Result {
    let (mut world, history, held) = busy().await?;
    let_go_and_kill(&world, &held, "DELETE", &format!("/runnervms/{}", held.vm), true).await?;
    world.restart_operator().await?;
    told_once(&world, &history, &held).await
}

/// The other way round: the event is out, and nobody remembers.
#[tokio::test(flavor = "multi_thread")]
async fn an_operator_killed_after_it_told_the_pool_of_a_result_does_not_tell_it_twice() -> Result {
    let (mut world, history, held) = busy().await?;
    let_go_and_kill(&world, &held, "POST", "/events", true).await?;
    world.restart_operator().await?;
    told_once(&world, &history, &held).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_is_told_as_soon_as_events_are_taken_again() -> Result {
    let (world, history, held) = busy_under(Intervals::default()).await?;
    let status =
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "InternalError", "code": 500});
    let refuse = Action::Answer { status: 500, body: status, headers: Vec::new() };
    // At the end of its life, and when its object goes.
    world.proxy.faults().add(Rule::path("/events", refuse).method("POST").times(2));
    world.let_go(&held).await?;
    told_once(&world, &history, &held).await?;
    let jobs = format!("miglet_jobs_finished_total{{namespace=\"{}\",pool=\"linux\"", world.namespace);
    assert_eq!(world.figure(&jobs).await?, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_during_a_cut_is_told_when_the_stream_is_back() -> Result {
    let (world, history, held) = busy().await?;
    world.cut_agents(true);
    world.let_go(&held).await?;
    assert!(history.of("RunnerVM", &held.vm).iter().all(|vm| result(vm).is_none()), "nobody could tell it");
    world.cut_agents(false);
    told_once(&world, &history, &held).await
}
