//! Whatever an agent is sent can be wrong: it says what, and does nothing of it.

use miglet_agent::hook;
use miglet_proto::v1::{
    self, AgentState, Command, CommandOutcome, Drain, JobResult, OperatorMessage, RunnerExitKind, Shutdown,
    command::Command as Wanted, operator_message,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};

use crate::{
    JIT, exit_detail, exit_kind,
    operator::{PATIENCE, Session},
    world::{RUNNER, World, eventually, peak_kb},
};

fn refusal(session: &Session, id: &str) -> String {
    session.acks.iter().find(|ack| ack.command_id == id).unwrap().detail.clone()
}

#[tokio::test]
async fn a_registration_cut_on_its_way_starts_nothing_and_is_told() {
    for (jit, why) in
        [(&JIT[..JIT.len() / 2], "cut or changed on its way"), ("bm8=", "not a JSON object"), ("", "JSON")]
    {
        let world = World::new(RUNNER).await;
        let mut operator = world.operator().await;
        let _agent = world.agent(&operator);
        let mut session = operator.session().await;
        session.register("r1", jit).await;
        assert_eq!(session.outcome("r1").await, CommandOutcome::Refused);
        assert!(refusal(&session, "r1").contains(why), "{}", refusal(&session, "r1"));
        session.until_state(AgentState::Error).await;
        assert_eq!(exit_kind(&session), Some(RunnerExitKind::Failed));
        assert!(exit_detail(&session).contains(why), "{}", exit_detail(&session));
        session.register("r2", JIT).await;
        assert_eq!(session.outcome("r2").await, CommandOutcome::Refused, "there is no second one");
        assert_eq!(world.runner_file("jit"), None, "nothing was started");
    }
}

#[tokio::test]
async fn a_hook_socket_that_is_called_ten_thousand_times_tells_the_first_job_and_costs_nothing() {
    let world = World::new(RUNNER).await;
    let mut operator = world.operator().await;
    let (_agent, mut session) = world.busy(&mut operator).await;
    let shim = world.record().unwrap().shim.unwrap();
    let before = peak_kb(shim.pid);
    let message = hook::Message::from_environment(hook::Event::JobStarted, |_| Some("evil/app".into()));
    let evil = serde_json::to_vec(&message).unwrap();
    let flood = async {
        for n in 0..10_000_u32 {
            let mut stream = UnixStream::connect(world.paths.hook_socket()).await.unwrap();
            let bytes: &[u8] = match n % 4 {
                0 => &evil,
                1 => b"{",
                2 => b"\xff\x00\n\n\n",
                _ => &[b'x'; 8192],
            };
            // Refused in the middle when there is too much of it.
            stream.write_all(bytes).await.ok();
            stream.shutdown().await.ok();
            stream.read_to_end(&mut Vec::new()).await.ok();
        }
    };
    timeout(2 * PATIENCE, flood).await.expect("each call is answered soon");
    let held: Vec<_> = connected(&world, 100).await;
    assert!(peak_kb(shim.pid) - before < 2000, "the shim grew from {before} kB to {} kB", peak_kb(shim.pid));
    world.end_job(&mut session).await;
    let job = session.report.job.clone().unwrap();
    assert_eq!((job.repository.as_str(), job.result()), ("acme/app", JobResult::Succeeded));
    drop(held);
}

/// Connections that say nothing.
async fn connected(world: &World, count: usize) -> Vec<UnixStream> {
    let mut held = Vec::with_capacity(count);
    for _ in 0..count {
        held.push(UnixStream::connect(world.paths.hook_socket()).await.unwrap());
    }
    held
}

#[tokio::test]
async fn a_job_that_changes_the_runners_files_gains_nothing() {
    let change = "for f in .runner .credentials; do echo '{\"AgentName\":\"other\",\"Ephemeral\":\"False\"}' > $f; done\n\
                  echo '2026-11-21 00:00:01Z: Listening for Jobs'\nuntil [ -e end ]";
    let world = World::new(&RUNNER.replace("until [ -e end ]", change)).await;
    let mut operator = world.operator().await;
    let (_agent, mut session) = world.idle(&mut operator).await;
    world.touch("go");
    session.until_state(AgentState::JobRunning).await;
    eventually("changed", || world.runner_file(".credentials").is_some()).await;
    session.register("r2", JIT).await;
    assert_eq!(session.outcome("r2").await, CommandOutcome::Refused);
    world.end_job(&mut session).await;
    assert_eq!((exit_kind(&session), session.report.runner_name.as_str()), (Some(RunnerExitKind::JobDone), "vm-1"));
    assert_eq!(session.report.job.as_ref().unwrap().name, "build");
    session.register("r3", JIT).await;
    assert_eq!(session.outcome("r3").await, CommandOutcome::Refused);
}

#[tokio::test]
async fn commands_out_of_order_or_twice_are_answered_and_done_once() {
    let count = "#!/bin/bash\necho >> starts\n";
    let world = World::new(&RUNNER.replace("#!/bin/bash\n", count)).await;
    let mut operator = world.operator().await;
    let mut agent = world.agent(&operator);
    let mut session = operator.session().await;
    let unknown = OperatorMessage {
        message: Some(operator_message::Message::Command(Command { id: "u1".into(), command: None })),
    };
    session.send_raw(unknown).await;
    session.send_raw(OperatorMessage { message: None }).await;
    assert_eq!(session.outcome("u1").await, CommandOutcome::Refused);
    for _ in 0..5 {
        session.register("r1", JIT).await;
    }
    session.until_state(AgentState::Idle).await;
    session.register("r1", "something else under the same id").await;
    session.until("answered", |s| s.acks.iter().any(|ack| ack.command_id == "r1")).await;
    assert!(session.acks.iter().all(|ack| ack.command_id != "r1" || ack.outcome() == CommandOutcome::Done));
    world.touch("go");
    session.until_state(AgentState::JobRunning).await;
    // The end before the drain, and each again.
    for _ in 0..2 {
        session.send("s1", Wanted::Shutdown(Shutdown::default())).await;
        session.send("d1", Wanted::Drain(Drain::default())).await;
    }
    for id in ["s1", "d1"] {
        assert_eq!(session.outcome(id).await, CommandOutcome::Done);
    }
    assert_eq!(session.report.state(), AgentState::JobRunning, "a job goes on");
    world.end_job(&mut session).await;
    assert!(timeout(PATIENCE, agent.wait()).await.expect("it goes off").unwrap().success());
    assert_eq!(std::fs::read(world.paths.runner.join("starts")).unwrap(), b"\n", "started once");
}

#[tokio::test]
async fn a_registration_after_a_drain_is_refused_and_the_machine_goes_off_when_told() {
    let world = World::new(RUNNER).await;
    let mut operator = world.operator().await;
    let mut agent = world.agent(&operator);
    let mut session = operator.session().await;
    session.send("d1", Wanted::Drain(Drain::default())).await;
    session.register("r1", JIT).await;
    assert_eq!(session.outcome("r1").await, CommandOutcome::Refused);
    assert!(refusal(&session, "r1").contains("takes no new work"));
    session.send("s1", Wanted::Shutdown(v1::Shutdown::default())).await;
    assert!(timeout(PATIENCE, agent.wait()).await.expect("it goes off").unwrap().success());
    assert_eq!(world.runner_file("jit"), None);
}
