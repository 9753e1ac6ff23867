//! What a runner does and does not do, and what it leaves behind.

use std::os::unix::fs::PermissionsExt;

use miglet_proto::v1::{AgentState, RunnerExitKind};

use crate::{
    JIT, exit_detail,
    operator::Session,
    world::{RUNNER, World, eventually, peak_kb},
};

#[tokio::test]
async fn a_flood_of_output_blocks_nothing_and_hides_nothing() {
    let flood = "touch begun\nuntil [ -e flow ]; do sleep 0.02; done\n\
                 seq 1 100000\nhead -c 100000000 /dev/zero | tr '\\0' x\necho\nseq 1 100000 >&2\n";
    let world = World::new(&RUNNER.replace("trap '", &format!("{flood}trap '"))).await;
    let mut operator = world.operator().await;
    let _agent = world.agent(&operator);
    let mut session = operator.session().await;
    session.register("r1", JIT).await;
    eventually("begun", || world.runner_file("begun").is_some()).await;
    let shim = world.record().unwrap().shim.unwrap();
    let before = peak_kb(shim.pid);
    world.touch("flow");
    session.until_state(AgentState::Idle).await;
    let grown = peak_kb(shim.pid) - before;
    assert!(grown < 2000, "the shim grew by {grown} kB from {before} kB");
}

#[tokio::test]
async fn what_a_job_leaves_behind_ends_with_its_runner() {
    let daemon = "(setsid sleep 1000 & echo $! > daemon)\ntrap '";
    let world = World::new(&RUNNER.replace("trap '", daemon)).await;
    let mut operator = world.operator().await;
    let (_agent, mut session) = world.idle(&mut operator).await;
    let pid = world.runner_file("daemon").unwrap().parse().unwrap();
    let daemon = miglet_agent::process::Process::of(pid).expect("the daemon runs");
    world.touch("go");
    world.touch("end");
    session.until_ended().await;
    assert!(!daemon.is_alive(), "a daemon that holds the runner's stdout hangs nothing and does not survive");
}

#[tokio::test]
async fn a_runner_that_cannot_start_is_a_failure_that_says_why() {
    let world = World::new(RUNNER).await;
    let mut operator = world.operator().await;
    let _agent = world.agent(&operator);
    let mut session = operator.session().await;
    session.until_state(AgentState::Ready).await;
    std::fs::remove_file(world.paths.listener()).unwrap();
    session.register("r1", JIT).await;
    session.until_state(AgentState::Error).await;
    let exit = session.report.exit.clone().unwrap();
    assert_eq!(exit.kind(), RunnerExitKind::Failed);
    assert!(exit.detail.contains("could not start bin/Runner.Listener: No such file"), "{}", exit.detail);
}

#[tokio::test]
async fn a_runner_nobody_may_execute_is_told_and_no_registration_is_asked_for() {
    let world = World::new(RUNNER).await;
    std::fs::set_permissions(world.paths.listener(), PermissionsExt::from_mode(0o644)).unwrap();
    let mut operator = world.operator().await;
    let _agent = world.agent(&operator);
    eventually("told", || world.told("bin/Runner.Listener is not executable")).await;
    let mut session = operator.session().await;
    let told = |s: &Session| s.report.error.contains("bin/Runner.Listener is not executable");
    session.until("told here too", |s| told(s) && s.report.state() == AgentState::Initializing).await;
    std::fs::set_permissions(world.paths.listener(), PermissionsExt::from_mode(0o755)).unwrap();
    session.until_state(AgentState::Ready).await;
    // Gone again in the last moment.
    std::fs::set_permissions(world.paths.listener(), PermissionsExt::from_mode(0o644)).unwrap();
    session.register("r1", JIT).await;
    session.until_state(AgentState::Error).await;
    let detail = exit_detail(&session);
    assert!(detail.contains("could not start bin/Runner.Listener: Permission denied"), "{detail}");
}

#[tokio::test]
async fn a_shim_that_cannot_begin_says_why() {
    let world = World::new(RUNNER).await;
    std::fs::write(&world.paths.data, "not a directory").unwrap();
    let mut operator = world.operator().await;
    let _agent = world.agent(&operator);
    let mut session = operator.session().await;
    session.register("r1", JIT).await;
    session.until_state(AgentState::Error).await;
    let detail = session.report.exit.clone().unwrap().detail;
    assert!(detail.contains("write the hook scripts"), "{detail}");
}

#[tokio::test]
async fn a_runner_that_stumbles_before_its_job_is_tried_again() {
    let stumble = "#!/bin/bash\nif [ ! -e stumbled ]; then touch stumbled; exit 2; fi\n";
    let world = World::new(&RUNNER.replace("#!/bin/bash\n", stumble)).await;
    let mut operator = world.operator().await;
    let (_agent, _session) = world.idle(&mut operator).await;
    assert_eq!(world.runner_file("jit").as_deref(), Some(JIT));
}

#[tokio::test]
async fn a_runner_is_started_again_after_its_own_update() {
    let update =
        "#!/bin/bash\nif [ ! -e updated ]; then touch updated; (sleep 0.2; touch update.finished) & exit 3; fi\n";
    let world = World::new(&RUNNER.replace("#!/bin/bash\n", update)).await;
    let mut operator = world.operator().await;
    let (_agent, _session) = world.idle(&mut operator).await;
    assert_eq!(world.runner_file("jit").as_deref(), Some(JIT), "the second start has the registration too");
}
