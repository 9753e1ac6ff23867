//! The real agent, shim and hook against an operator, a metadata server and a scripted runner.

#[cfg(test)]
mod bad_input;
#[cfg(test)]
mod commands;
#[cfg(test)]
mod doctor;
#[cfg(test)]
mod ending;
#[cfg(test)]
mod events;
#[cfg(test)]
mod hooks;
#[cfg(test)]
mod install;
#[cfg(test)]
mod listener;
#[cfg(test)]
mod operator;
#[cfg(test)]
mod packaging;
#[cfg(test)]
mod proxy;
#[cfg(test)]
mod service;
#[cfg(test)]
mod world;

use std::{sync::Arc, time::Duration};

use miglet_agent::{
    Ended, Ports,
    installation::{InstallError, Installation},
    logging::Log,
    machine,
    preparation::{Prepared, Provider},
    runner::{Phase, Runner},
    settings::{self, Flags},
    supervisor::{Launch, Registration, Supervisor, SupervisorError},
};
use miglet_proto::v1::{
    AgentState, CommandOutcome, Drain, JobResult, RunnerExitKind, Shutdown, command::Command as Wanted,
};
use operator::{Operator, PATIENCE};
use rustix::process::Signal;
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use world::{RUNNER, World, eventually, kill, peak_kb};

/// The three files of a registration, as GitHub packs them.
const JIT: &str = "eyIucnVubmVyIjogImV5SkJaMlZ1ZEVsa0lqb2dJak13SWl3Z0lrRm5aVzUwVG1GdFpTSTZJQ0oyYlMweElpd2dJa1Z3YUdWdFpY\
                   SmhiQ0k2SUNKVWNuVmxJbjA9IiwgIi5jcmVkZW50aWFscyI6ICJleUpUWTJobGJXVWlPaUFpVDBGMWRHZ2lMQ0FpUkdGMFlTST\
                   ZJSHNpUTJ4cFpXNTBTV1FpT2lBaVl5SjlmUT09IiwgIi5jcmVkZW50aWFsc19yc2FwYXJhbXMiOiAiZXlKa0lqb2dJalZsWTNK\
                   bGRDSjkifQ==";

fn exit_kind(session: &operator::Session) -> Option<RunnerExitKind> {
    session.report.exit.as_ref().map(miglet_proto::v1::RunnerExit::kind)
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

    world.touch("go");
    session.until("named by its hook", |s| s.report.job.as_ref().is_some_and(|j| !j.repository.is_empty())).await;
    let job = session.report.job.clone().unwrap();
    assert_eq!(session.report.state(), AgentState::JobRunning);
    assert_eq!(
        (job.name.as_str(), job.repository.as_str(), job.run_id, job.key.as_str()),
        ("build", "acme/app", 42, "build-key")
    );
    session.send("d1", Wanted::Drain(Drain::default())).await;
    assert_eq!(session.outcome("d1").await, CommandOutcome::Done);

    world.touch("end");
    session.until("ended", |s| s.report.exit.is_some()).await;
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

#[tokio::test]
async fn a_drained_idle_runner_is_interrupted() {
    let world = World::new(RUNNER).await;
    let mut operator = world.operator().await;
    let _agent = world.agent(&operator);
    let mut session = operator.session().await;
    session.register("r1", JIT).await;
    session.until_state(AgentState::Idle).await;
    session.send("d1", Wanted::Drain(Drain::default())).await;
    session.until("ended", |s| s.report.exit.is_some()).await;
    assert_eq!(exit_kind(&session), Some(RunnerExitKind::WithoutJob));
    assert_eq!(session.report.exit.as_ref().unwrap().code, 0);
    assert_eq!(session.report.job, None);
}

#[tokio::test]
async fn a_shutdown_of_an_idle_machine_after_its_drain_leaves_nothing_running() {
    let world = World::new(RUNNER).await;
    let mut operator = world.operator().await;
    let mut agent = world.agent(&operator);
    let mut session = operator.session().await;
    session.register("r1", JIT).await;
    session.until_state(AgentState::Idle).await;
    let listener = world.record().unwrap().listener.unwrap();
    session.send("s1", Wanted::Shutdown(Shutdown::default())).await;
    session.until_state(AgentState::Draining).await;
    assert!(listener.is_alive(), "a shutdown alone waits for the runner");
    session.send("d1", Wanted::Drain(Drain::default())).await;
    let status = timeout(PATIENCE, agent.wait()).await.expect("the machine goes off").unwrap();
    assert!(status.success() && !listener.is_alive());
}

#[tokio::test]
async fn a_job_that_ends_while_no_agent_is_there_is_not_lost() {
    for (signal, code) in [(Signal::KILL, None), (Signal::TERM, Some(0))] {
        let world = World::new(RUNNER).await;
        let mut operator = world.operator().await;
        let mut agent = world.agent(&operator);
        let mut session = operator.session().await;
        session.register("r1", JIT).await;
        session.until_state(AgentState::Idle).await;
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
    let mut agent = world.agent(&operator);
    let mut session = operator.session().await;
    session.register("r1", JIT).await;
    session.until_state(AgentState::Idle).await;
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
    world.touch("end");
    session.until("reported", |s| s.report.exit.is_some()).await;
    assert_eq!(exit_kind(&session), Some(RunnerExitKind::JobDone));
}

#[tokio::test]
async fn a_restarted_operator_gets_the_snapshot_in_the_hello() {
    let world = World::new(RUNNER).await;
    let mut operator = world.operator().await;
    let _agent = world.agent(&operator);
    let mut session = operator.session().await;
    session.register("r1", JIT).await;
    session.until_state(AgentState::Idle).await;
    world.touch("go");
    session.until("named", |s| s.report.job.as_ref().is_some_and(|j| !j.repository.is_empty())).await;
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
    let _agent = world.agent(&operator);
    let mut session = operator.session().await;
    session.register("r1", JIT).await;
    session.until_state(AgentState::Idle).await;
    let pid = world.runner_file("daemon").unwrap().parse().unwrap();
    let daemon = miglet_agent::process::Process::of(pid).expect("the daemon runs");
    world.touch("go");
    world.touch("end");
    session.until("ended", |s| s.report.exit.is_some()).await;
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
    let _agent = world.agent(&operator);
    let mut session = operator.session().await;
    session.register("r1", JIT).await;
    session.until_state(AgentState::Idle).await;
    assert_eq!(world.runner_file("jit").as_deref(), Some(JIT));
}

#[tokio::test]
async fn a_runner_is_started_again_after_its_own_update() {
    let update =
        "#!/bin/bash\nif [ ! -e updated ]; then touch updated; (sleep 0.2; touch update.finished) & exit 3; fi\n";
    let world = World::new(&RUNNER.replace("#!/bin/bash\n", update)).await;
    let mut operator = world.operator().await;
    let _agent = world.agent(&operator);
    let mut session = operator.session().await;
    session.register("r1", JIT).await;
    session.until_state(AgentState::Idle).await;
    assert_eq!(world.runner_file("jit").as_deref(), Some(JIT), "the second start has the registration too");
}

#[tokio::test]
async fn a_shim_that_is_killed_never_costs_the_running_job() {
    let world = World::new(RUNNER).await;
    let mut operator = world.operator().await;
    let _agent = world.agent(&operator);
    let mut session = operator.session().await;
    session.register("r1", JIT).await;
    session.until_state(AgentState::Idle).await;
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
async fn a_refused_agent_says_why_and_keeps_trying() {
    let world = World::new(RUNNER).await;
    let refusal = Status::permission_denied("instance 7 is in no list");
    let operator = Operator::refusing(&world.identity, "127.0.0.1:0", Some(refusal)).await;
    let mut agent = world.agent(&operator);
    eventually("told", || {
        world.metadata.statuses.lock().unwrap().iter().any(|s| s.contains("instance 7 is in no list"))
    })
    .await;
    let address = operator.address.to_string();
    operator.stop().await;
    let mut operator = Operator::start(&world.identity, &address).await;
    operator.session().await;
    assert!(agent.try_wait().unwrap().is_none());
    let audiences = world.metadata.audiences.lock().unwrap().clone();
    assert!(audiences.len() >= 2 && audiences.windows(2).all(|w| w[0] == w[1]), "a fresh token for each attempt");
}

#[tokio::test]
async fn status_tells_people_what_the_agent_knows() {
    let world = World::new(RUNNER).await;
    let mut operator = world.operator().await;
    let _agent = world.agent(&operator);
    let mut session = operator.session().await;
    session.register("r1", JIT).await;
    session.until_state(AgentState::Idle).await;
    let output = world.command("status").output().await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    for line in ["State:    idle", "Operator: connected", "RunnerVM: vm-1", "Runner:   vm-1 (Listening)", "(metadata)"]
    {
        assert!(text.contains(line), "{line:?} in {text}");
    }
    assert!(!text.contains(JIT));
    let output = world.command("status").arg("--json").output().await.unwrap();
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&status["state"], &status["vm_name"]), (&"idle".into(), &"vm-1".into()), "{status}");
    assert!(!status.to_string().contains(JIT));
}

#[tokio::test]
async fn unusable_settings_are_all_told_and_end_with_78() {
    let world = World::new(RUNNER).await;
    let output = world.command("run").env("MIGLET_MACHINE", "toaster").output().await.unwrap();
    assert_eq!(output.status.code(), Some(78));
    let text = String::from_utf8(output.stderr).unwrap();
    for wanted in ["miglet-endpoint", "miglet-ca", "miglet-audience", "toaster"] {
        assert!(text.contains(wanted), "{wanted} in {text}");
    }
}

#[tokio::test]
async fn config_tells_every_value_and_where_it_came_from() {
    let world = World::new(RUNNER).await;
    let operator = world.operator().await;
    world.introduce(&operator);
    world.metadata.attributes.lock().unwrap().insert("miglet-from-tomorrow".into(), "1".into());
    std::fs::write(world.config_file(), "machine: systemd\nendpoint: https://file:1\n").unwrap();
    let output = world.command("config").args(["--heartbeat-seconds", "7"]).output().await.unwrap();
    let (text, warnings) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    for (key, from, value) in [
        ("heartbeat-seconds", "flag", "7"),
        ("log-level", "environment", "trace"),
        ("endpoint", "file", "https://file:1"),
        ("audience", "metadata", "fleet"),
        ("ca", "metadata", "PEM text of 1 certificate(s)"),
    ] {
        let line = text.lines().find(|line| line.starts_with(&format!("{key} "))).unwrap();
        assert!(line.contains(from) && line.ends_with(value), "{line}");
    }
    assert!(output.status.success() && warnings.contains("miglet-from-tomorrow"), "{warnings}");
    assert!(
        text.lines().any(|line| line.starts_with("runner-version ") && line.trim_end().ends_with("unset")),
        "{text}"
    );
    let output = world.command("config").arg("--json").output().await.unwrap();
    let values: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    let endpoint = values.iter().find(|value| value["key"] == "endpoint").unwrap();
    assert_eq!((&endpoint["value"], &endpoint["source"]), (&"https://file:1".into(), &"file".into()));
    std::fs::write(world.config_file(), "machin: systemd\nmachine: toaster\n").unwrap();
    let output = world.command("config").output().await.unwrap();
    let problems = String::from_utf8(output.stderr).unwrap();
    assert!(problems.contains("\"machin\"") && problems.contains("toaster"), "{problems}");
    assert_eq!(output.status.code(), Some(78));
}

#[tokio::test]
async fn a_hook_without_an_agent_ends_well_and_soon() {
    let world = World::new(RUNNER).await;
    let socket = world.dir.path().join("nobody.sock");
    let hook = world.command("hook").arg("job-started").arg("--socket").arg(socket).status();
    assert!(timeout(Duration::from_secs(5), hook).await.expect("bounded").unwrap().success());
}

/// Any runner will do.
struct Anything;

#[tonic::async_trait]
impl Provider for Anything {
    async fn provide(&self, _: &Installation) -> Result<Prepared, InstallError> {
        Ok(Prepared::default())
    }
}

/// A supervisor that runs nothing.
struct Simulated(watch::Sender<Option<Runner>>);

#[tonic::async_trait]
impl Supervisor for Simulated {
    fn snapshots(&self) -> watch::Receiver<Option<Runner>> {
        self.0.subscribe()
    }
    async fn start(&self, launch: Launch) -> Result<(), SupervisorError> {
        let name = launch.registration.runner_name;
        self.0.send_replace(Some(Runner { name, phase: Phase::Listening, ..Runner::default() }));
        Ok(())
    }
    async fn resume(&self, _: Registration) {}
    async fn stop_idle(&self) {}
    async fn interrupt(&self) {}
    async fn kill(&self) {}
}

#[tokio::test]
async fn many_agents_can_live_in_one_process() {
    let world = World::new(RUNNER).await;
    let mut operator = world.operator().await;
    let stop = CancellationToken::new();
    world.introduce(&operator);
    let mut agents = tokio::task::JoinSet::new();
    for n in 0..20 {
        let at = |name: &str| Some(world.dir.path().join(format!("{n}{name}")).display().to_string());
        let directories = [("state-dir", at("s")), ("data-dir", at("d")), ("runner-dir", at("r"))];
        let flags = Flags::of(directories.into_iter().chain([("metadata-host", Some(world.metadata_host.clone()))]));
        let settings = settings::load(&flags, &settings::Environment::new()).await.unwrap();
        let supervisor = Arc::new(Simulated(watch::Sender::new(None)));
        let ports =
            Ports { supervisor, machine: Arc::new(machine::Process), runners: Arc::new(Anything), log: Log::default() };
        agents.spawn(miglet_agent::run(settings, ports, stop.clone()));
    }
    let mut keys = std::collections::HashSet::new();
    for _ in 0..20 {
        let mut session = operator.session().await;
        session.register("r1", JIT).await;
        session.until_state(AgentState::Idle).await;
        keys.insert(session.thumbprint.clone());
    }
    assert_eq!(keys.len(), 20);
    stop.cancel();
    while let Some(ended) = agents.join_next().await {
        assert_eq!(ended.unwrap().unwrap(), Ended::Detached);
    }
}
