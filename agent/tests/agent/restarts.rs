//! Agents, shims and operators that go and come again, with a job or without.

use std::os::unix::process::ExitStatusExt;

use miglet_proto::v1::{AgentState, CommandOutcome, JobResult, RunnerExitKind};
use rustix::process::Signal;

use crate::{
    JIT, exit_kind,
    operator::Operator,
    world::{RUNNER, World, eventually, kill},
};

#[tokio::test]
async fn a_job_that_ends_while_no_agent_is_there_is_not_lost() {
    for (signal, code) in [(Signal::KILL, None), (Signal::TERM, Some(0))] {
        let world = World::new(RUNNER).await;
        let mut operator = world.operator().await;
        let (mut agent, mut session) = world.idle(&mut operator).await;
        world.touch("go");
        session.until_state(AgentState::JobRunning).await;
        kill(&agent, signal);
        assert_eq!(agent.wait().await.unwrap().code(), code);
        let thumbprint = session.thumbprint;
        world.touch("end");
        eventually("ended on disk", || world.record().is_some_and(|r| r.exit.is_some())).await;

        let _agent = world.agent(&operator);
        let session = operator.session().await;
        assert_eq!(session.thumbprint, thumbprint, "the same key is the same agent");
        assert!(session.report.exit.is_some(), "the hello tells it");
        assert_eq!(exit_kind(&session), Some(RunnerExitKind::JobDone));
        let job = session.report.job.clone().unwrap();
        assert_eq!((job.result(), job.repository.as_str()), (JobResult::Succeeded, "acme/app"));
    }
}

#[tokio::test]
async fn a_job_goes_on_across_a_restart_of_its_agent() {
    let world = World::new(RUNNER).await;
    let mut operator = world.operator().await;
    let (mut agent, mut session) = world.idle(&mut operator).await;
    world.touch("go");
    session.until_state(AgentState::JobRunning).await;
    agent.kill().await.unwrap();
    let _agent = world.agent(&operator);
    let mut session = operator.session().await;
    assert_eq!(session.report.state(), AgentState::JobRunning, "the hello tells it");
    session.register("r1", JIT).await;
    assert_eq!(session.outcome("r1").await, CommandOutcome::Done, "the old command is remembered");
    session.register("r2", JIT).await;
    assert_eq!(session.outcome("r2").await, CommandOutcome::Refused, "a second registration never");
    world.end_job(&mut session).await;
    assert_eq!(exit_kind(&session), Some(RunnerExitKind::JobDone));
}

#[tokio::test]
async fn a_restarted_operator_gets_the_snapshot_in_the_hello() {
    let world = World::new(RUNNER).await;
    let mut operator = world.operator().await;
    let (_agent, session) = world.busy(&mut operator).await;
    let address = operator.address.to_string();
    drop(session);
    operator.stop().await;
    let mut operator = Operator::start(&world.identity, &address).await;
    let session = operator.session().await;
    let report = session.hello.report.clone().unwrap();
    assert_eq!((report.state(), report.runner_name.as_str()), (AgentState::JobRunning, "vm-1"));
    assert_eq!(report.job.unwrap().repository, "acme/app");
}

#[tokio::test]
async fn a_shim_that_is_killed_never_costs_the_running_job() {
    let world = World::new(RUNNER).await;
    let mut operator = world.operator().await;
    let (_agent, mut session) = world.idle(&mut operator).await;
    world.touch("go");
    session.until_state(AgentState::JobRunning).await;
    let runner = world.record().unwrap();
    let listener = runner.listener.unwrap();
    runner.shim.unwrap().signal(Signal::KILL);
    let before = session.reports;
    session.until("two heartbeats after it", |s| s.reports >= before + 2).await;
    assert!(listener.is_alive() && session.report.exit.is_none());
    world.touch("end");
    session.until_state(AgentState::Error).await;
    assert!(session.report.exit.as_ref().unwrap().detail.contains("supervisor died"));
}

#[tokio::test]
async fn neither_agent_nor_shim_leave_their_memory_behind_when_they_crash() {
    let world = World::new(RUNNER).await;
    let mut operator = world.operator().await;
    world.introduce(&operator);
    let mut agent = world.dumping().spawn().unwrap();
    let _session = operator.idle_session().await;
    let shim = world.record().unwrap().shim.unwrap();
    // What of a process only its own user and root may read belongs to root alone then.
    let owner = |pid: u32| std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(format!("/proc/{pid}/mem")).unwrap());
    assert_eq!((owner(agent.id().unwrap()), owner(shim.pid.cast_unsigned())), (0, 0));
    kill(&agent, Signal::ABORT);
    let status = agent.wait().await.unwrap();
    assert_eq!((status.signal(), status.core_dumped()), (Some(Signal::ABORT.as_raw()), false));
    shim.signal(Signal::ABORT);
    eventually("gone", || !shim.is_alive()).await;
    let names = std::fs::read_dir(world.dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let cores: Vec<_> = names.filter(|name| name.to_string_lossy().starts_with("core")).collect();
    assert!(cores.is_empty(), "{cores:?}");
}
