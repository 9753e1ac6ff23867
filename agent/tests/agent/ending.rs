//! How machines stop working: orders, notices, limits, drains from within, an operator that is gone, a new version of the
//! agent.

use std::time::{Duration, Instant};

use miglet_proto::v1::{
    AgentState, Drain, GuardKind, JobResult, Notice, RunnerExitKind, Shutdown, command::Command as Wanted,
};
use rustix::process::Signal;
use tokio::time::timeout;

use crate::{
    JIT, exit_kind,
    operator::{PATIENCE, Session},
    world::{RUNNER, World, eventually, kill},
};

fn failed(session: &Session) -> bool {
    session.report.job.as_ref().is_some_and(|job| job.result() == JobResult::Failed)
}

#[tokio::test]
async fn a_preemption_is_reported_within_a_second_and_interrupts_the_job() {
    let world = World::new(RUNNER).await;
    let mut operator = world.operator().await;
    let (_agent, mut session) = world.busy(&mut operator).await;
    let announced = Instant::now();
    world.announce("preempted", "TRUE");
    session.until("told", |s| s.report.notice() == Notice::Preempted).await;
    assert!(announced.elapsed() < Duration::from_secs(1), "{:?}", announced.elapsed());
    session.until_ended().await;
    assert!(failed(&session), "{:?}", session.report);
}

#[tokio::test]
async fn an_idle_listener_of_a_preempted_machine_waits_for_the_operators_word() {
    let world = World::new(RUNNER).await;
    let mut operator = world.operator().await;
    let (_agent, mut session) = world.idle(&mut operator).await;
    world.announce("preempted", "TRUE");
    session.until_state(AgentState::Draining).await;
    assert!(world.record().unwrap().exit.is_none());
    let told = Instant::now();
    session.send("d1", Wanted::Drain(Drain::default())).await;
    session.until_ended().await;
    assert!(told.elapsed() < Duration::from_secs(2), "not only after the operator's turn: {:?}", told.elapsed());
}

#[tokio::test]
async fn a_silent_operator_costs_a_preempted_idle_machine_three_seconds() {
    let world = World::new(RUNNER).await;
    let mut operator = world.operator().await;
    let (_agent, mut session) = world.idle(&mut operator).await;
    let announced = Instant::now();
    world.announce("preempted", "TRUE");
    session.until_ended().await;
    assert!(announced.elapsed() >= Duration::from_secs(3), "{:?}", announced.elapsed());
    assert_eq!(session.report.job, None);
}

#[tokio::test]
async fn maintenance_of_the_host_is_reported_and_lets_the_job_finish() {
    let world = World::new(RUNNER).await;
    let mut operator = world.operator().await;
    let (_agent, mut session) = world.busy(&mut operator).await;
    world.announce("maintenance-event", "MIGRATE_ON_HOST_MAINTENANCE");
    world.announce("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE");
    session.until("told", |s| s.report.notice() == Notice::Maintenance).await;
    world.end_job(&mut session).await;
    assert_eq!(session.report.job.as_ref().unwrap().result(), JobResult::Succeeded);
}

#[tokio::test]
async fn whatever_the_metadata_server_answers_a_later_notice_is_seen() {
    let world = World::new(RUNNER).await;
    let odd = [(503, "try again", false), (200, "<html>TRUE</html>", false), (404, "", true), (200, "", true)];
    world.metadata.oddities.lock().unwrap().extend(odd);
    let mut operator = world.operator().await;
    let (_agent, mut session) = world.idle(&mut operator).await;
    eventually("past the odd answers", || world.metadata.oddities.lock().unwrap().is_empty()).await;
    world.announce("preempted", "TRUE");
    session.until("told", |s| s.report.notice() == Notice::Preempted).await;
}

#[tokio::test]
async fn a_metadata_server_that_never_waits_is_not_asked_all_the_time() {
    let world = World::new(RUNNER).await;
    let instant = std::iter::repeat_n((200, "FALSE", true), 1000);
    world.metadata.oddities.lock().unwrap().extend(instant);
    let mut operator = world.operator().await;
    let _agent = world.agent(&operator);
    let begun = Instant::now();
    let asked = || world.metadata.asked.load(std::sync::atomic::Ordering::Relaxed);
    eventually("asked a few times", || asked() >= 6).await;
    assert!(begun.elapsed() >= Duration::from_secs(1), "{} questions in {:?}", asked(), begun.elapsed());
    drop(operator.session().await);
}

#[tokio::test]
async fn a_drain_from_within_waits_for_the_job_and_the_second_one_aborts_it() {
    let world = World::new(RUNNER).await;
    let mut operator = world.operator().await;
    let (_agent, mut session) = world.busy(&mut operator).await;
    let mut first = world.command("drain").stdout(std::process::Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    assert!(timeout(Duration::from_secs(1), first.wait()).await.is_err(), "the job runs");
    assert!(world.record().unwrap().exit.is_none());
    let second = world.command("drain").output().await.unwrap();
    assert!(second.status.success());
    assert!(String::from_utf8_lossy(&second.stdout).contains("vm-1 has ended"), "{second:?}");
    assert!(timeout(PATIENCE, first.wait()).await.unwrap().unwrap().success(), "the first one comes back too");
    session.until_ended().await;
    assert!(failed(&session), "{:?}", session.report);
}

#[tokio::test]
async fn at_the_end_of_a_drains_deadline_the_job_is_interrupted() {
    let world = World::new(RUNNER).await;
    let mut operator = world.operator().await;
    let (_agent, mut session) = world.busy(&mut operator).await;
    let begun = Instant::now();
    let drained = world.command("drain").args(["--deadline", "2"]).status().await.unwrap();
    assert!(drained.success() && begun.elapsed() >= Duration::from_secs(2));
    session.until_ended().await;
    assert!(failed(&session), "{:?}", session.report);
}

#[tokio::test]
async fn a_drained_machine_takes_no_registration_any_more() {
    let world = World::new(RUNNER).await;
    let mut operator = world.operator().await;
    let _agent = world.agent(&operator);
    let mut session = operator.session().await;
    let drained = world.command("drain").output().await.unwrap();
    assert!(String::from_utf8_lossy(&drained.stdout).contains("no runner was here"), "{drained:?}");
    session.until_state(AgentState::Draining).await;
    session.register("r1", JIT).await;
    assert_eq!(session.outcome("r1").await, miglet_proto::v1::CommandOutcome::Refused);
}

#[tokio::test]
async fn a_shutdown_without_an_agent_still_gives_the_job_its_deadline_and_an_end() {
    let world = World::new(RUNNER).await;
    let mut operator = world.operator().await;
    let (mut agent, _session) = world.busy(&mut operator).await;
    agent.kill().await.unwrap();
    let begun = Instant::now();
    let drained = world.command("drain").args(["--deadline", "2"]).output().await.unwrap();
    assert!(drained.status.success() && begun.elapsed() >= Duration::from_secs(2), "{drained:?}");
    let runner = world.record().unwrap();
    assert_eq!(runner.job.and_then(|job| job.result), Some(miglet_agent::runner::JobResult::Failed));
    assert!(runner.exit.is_some());
    let nothing = world.command("drain").args(["--deadline", "1"]).output().await.unwrap();
    assert!(String::from_utf8_lossy(&nothing.stdout).contains("neither"), "{nothing:?}");
}

#[tokio::test]
async fn a_job_beyond_its_limit_is_warned_about_and_interrupted_with_the_reason() {
    let world = World::new(RUNNER).await;
    let mut operator = world.operator().await;
    let _agent = world.agent_with(&operator, &[("MIGLET_GUARD_RUNTIME_SECONDS", "5")]);
    let mut session = world.busy_session(&mut operator).await;
    let guard = |s: &Session, acted: bool| {
        s.report.guard.as_ref().is_some_and(|guard| guard.kind() == GuardKind::Runtime && guard.acted == acted)
    };
    session.until("warned", |s| guard(s, false)).await;
    assert!(session.report.exit.is_none());
    session.until_ended().await;
    assert!(guard(&session, true) && failed(&session), "{:?}", session.report);
}

#[tokio::test]
async fn a_machine_that_is_too_full_ends_when_that_is_wanted() {
    let world = World::new(RUNNER).await;
    let mut operator = world.operator().await;
    // Any machine uses a hundredth of its memory. Two looks are ten seconds apart.
    let _agent = world.agent_with(&operator, &[("MIGLET_GUARD_MEMORY_ACT_PERCENT", "1")]);
    let mut session = world.busy_session(&mut operator).await;
    session.until_ended().await;
    let guard = session.report.guard.clone().unwrap();
    assert!(guard.kind() == GuardKind::Memory && guard.acted && guard.detail.contains('%'), "{guard:?}");
}

#[tokio::test]
async fn a_machine_whose_job_is_done_goes_off_when_its_operator_stays_away() {
    let world = World::new(RUNNER).await;
    let mut operator = world.operator().await;
    let mut agent = world.agent_with(&operator, &[("MIGLET_ORPHAN_SECONDS", "1")]);
    let session = world.busy_session(&mut operator).await;
    drop(session);
    operator.stop().await;
    assert!(timeout(Duration::from_secs(2), agent.wait()).await.is_err(), "never while the job runs");
    world.touch("end");
    let status = timeout(PATIENCE, agent.wait()).await.expect("the machine goes off").unwrap();
    assert!(status.success());
}

#[tokio::test]
async fn an_upgrade_in_mid_job_is_noticed_by_nobody() {
    for signal in [Signal::TERM, Signal::KILL] {
        let world = World::new(RUNNER).await;
        let mut operator = world.operator().await;
        let [old, new] = ["old-miglet", "new-miglet"].map(|name| world.dir.path().join(name));
        std::fs::copy(env!("CARGO_BIN_EXE_miglet"), &old).unwrap();
        world.introduce(&operator);
        let mut agent = world.command_of(&old, "run").kill_on_drop(true).spawn().unwrap();
        let session = world.busy_session(&mut operator).await;
        let listener = world.record().unwrap().listener.unwrap();
        kill(&agent, signal);
        agent.wait().await.unwrap();
        // As a package manager does it: the old file is gone, running or not.
        std::fs::rename(&old, &new).unwrap();
        let _agent = world.command_of(&new, "run").kill_on_drop(true).spawn().unwrap();
        let thumbprint = session.thumbprint.clone();
        let mut session = operator.session().await;
        assert_eq!(
            (session.thumbprint.as_str(), session.report.state()),
            (thumbprint.as_str(), AgentState::JobRunning)
        );
        assert!(listener.is_alive(), "the job goes on");
        world.end_job(&mut session).await;
        assert_eq!(session.report.job.as_ref().unwrap().result(), JobResult::Succeeded);
    }
}

#[tokio::test]
async fn a_drained_idle_runner_is_interrupted() {
    let world = World::new(RUNNER).await;
    let mut operator = world.operator().await;
    let (_agent, mut session) = world.idle(&mut operator).await;
    session.send("d1", Wanted::Drain(Drain::default())).await;
    session.until_ended().await;
    assert_eq!(exit_kind(&session), Some(RunnerExitKind::WithoutJob));
    assert_eq!(session.report.exit.as_ref().unwrap().code, 0);
    assert_eq!(session.report.job, None);
}

#[tokio::test]
async fn a_shutdown_of_an_idle_machine_after_its_drain_leaves_nothing_running() {
    let world = World::new(RUNNER).await;
    let mut operator = world.operator().await;
    let (mut agent, mut session) = world.idle(&mut operator).await;
    let listener = world.record().unwrap().listener.unwrap();
    session.send("s1", Wanted::Shutdown(Shutdown::default())).await;
    session.until_state(AgentState::Draining).await;
    assert!(listener.is_alive(), "a shutdown alone waits for the runner");
    session.send("d1", Wanted::Drain(Drain::default())).await;
    let status = timeout(PATIENCE, agent.wait()).await.expect("the machine goes off").unwrap();
    assert!(status.success() && !listener.is_alive());
}
