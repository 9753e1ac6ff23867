//! The real agent, shim and hook against an operator, a metadata server and a scripted runner.

#[cfg(test)]
mod bad_input;
#[cfg(test)]
mod command_line;
#[cfg(test)]
mod commands;
#[cfg(test)]
mod connecting;
#[cfg(test)]
mod disks;
#[cfg(test)]
mod doctor;
#[cfg(test)]
mod embedding;
#[cfg(test)]
mod ending;
#[cfg(test)]
mod events;
#[cfg(test)]
mod hooks;
#[cfg(test)]
mod install;
#[cfg(test)]
mod life;
#[cfg(test)]
mod listener;
#[cfg(test)]
mod metadata;
#[cfg(test)]
mod operator;
#[cfg(test)]
mod orphans;
#[cfg(test)]
mod packaging;
#[cfg(test)]
mod proxy;
#[cfg(test)]
mod restarts;
#[cfg(test)]
mod runner;
#[cfg(test)]
mod seeds;
#[cfg(test)]
mod service;
#[cfg(test)]
mod watchdog;
#[cfg(test)]
mod world;

use miglet_proto::v1::{
    AgentState, CommandOutcome, Drain, JobResult, RunnerExitKind, Shutdown, command::Command as Wanted,
};
use operator::{PATIENCE, Session};
use tokio::time::timeout;
use world::{RUNNER, World, eventually};

/// The three files of a registration, as GitHub packs them.
const JIT: &str = "eyIucnVubmVyIjogImV5SkJaMlZ1ZEVsa0lqb2dJak13SWl3Z0lrRm5aVzUwVG1GdFpTSTZJQ0oyYlMweElpd2dJa1Z3YUdWdFpY\
                   SmhiQ0k2SUNKVWNuVmxJbjA9IiwgIi5jcmVkZW50aWFscyI6ICJleUpUWTJobGJXVWlPaUFpVDBGMWRHZ2lMQ0FpUkdGMFlTST\
                   ZJSHNpUTJ4cFpXNTBTV1FpT2lBaVl5SjlmUT09IiwgIi5jcmVkZW50aWFsc19yc2FwYXJhbXMiOiAiZXlKa0lqb2dJalZsWTNK\
                   bGRDSjkifQ==";

fn exit_kind(session: &Session) -> Option<RunnerExitKind> {
    session.report.exit.as_ref().map(miglet_proto::v1::RunnerExit::kind)
}

fn exit_detail(session: &Session) -> String {
    session.report.exit.as_ref().map(|exit| exit.detail.clone()).unwrap_or_default()
}

#[tokio::test]
async fn a_machine_lives_from_hello_to_power_off() {
    let world = World::new(RUNNER).await;
    let mut operator = world.operator().await;
    let mut agent = world.agent(&operator);
    let mut session = operator.session().await;
    let audience = format!("fleet/{}", session.thumbprint);
    assert_eq!(session.hello.identity_token, format!("token for {audience}"));
    assert_eq!(*world.metadata.audiences.lock().unwrap(), [audience]);
    assert_eq!((session.hello.boot_id.as_str(), session.hello.protocol_minor), ("boot-1", 1));
    session.until_state(AgentState::Ready).await;
    assert!(session.report.health.as_ref().is_some_and(|h| h.memory_total_bytes > 0 && h.disk_total_bytes > 0));

    session.register("r1", JIT).await;
    assert_eq!(session.outcome("r1").await, CommandOutcome::Done);
    session.until_state(AgentState::Idle).await;
    assert_eq!(session.report.runner_name, "vm-1");
    assert_eq!(world.runner_file("jit").as_deref(), Some(JIT));
    assert_eq!(world.runner_file("umask").as_deref(), Some("0077"));

    world.start_job(&mut session).await;
    let job = session.report.job.clone().unwrap();
    assert_eq!(session.report.state(), AgentState::JobRunning);
    assert_eq!(
        (job.name.as_str(), job.repository.as_str(), job.run_id, job.key.as_str()),
        ("build", "acme/app", 42, "build-key")
    );
    session.send("d1", Wanted::Drain(Drain::default())).await;
    assert_eq!(session.outcome("d1").await, CommandOutcome::Done);

    world.end_job(&mut session).await;
    assert_eq!(exit_kind(&session), Some(RunnerExitKind::JobDone));
    assert_eq!(session.report.job.as_ref().unwrap().result(), JobResult::Succeeded);
    session.send("s1", Wanted::Shutdown(Shutdown::default())).await;
    assert_eq!(session.outcome("s1").await, CommandOutcome::Done);
    assert_eq!(session.until_closed().await.state(), AgentState::ShuttingDown);
    let status = timeout(PATIENCE, agent.wait()).await.expect("the machine goes off").unwrap();
    assert!(status.success());
    let shim = world.record().unwrap().shim.unwrap();
    eventually("rid of the shim", || !shim.is_alive()).await;
    // Only the scripted runner itself wrote it down.
    assert_eq!(world.files_with(JIT), [world.paths.runner.join("jit")]);
    assert!(world.files_with("token for").is_empty());
}
