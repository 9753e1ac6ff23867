//! Everything an agent is given can be wrong: each time it says what, and there is an end or a recovery.

use std::{
    os::unix::{
        fs::{PermissionsExt, symlink},
        process::ExitStatusExt,
    },
    path::Path,
    time::Duration,
};

use miglet_agent::hook;
use miglet_proto::v1::{
    self, AgentState, Command, CommandOutcome, Drain, JobResult, OperatorMessage, RunnerExitKind, Shutdown,
    command::Command as Wanted, operator_message,
};
use rustix::process::Signal;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    process,
    time::timeout,
};

use crate::{
    JIT, exit_kind,
    operator::{Identity, Operator, PATIENCE, Session},
    world::{RUNNER, Trouble, World, eventually, kill, peak_kb},
};

/// Whatever is written there finds no space.
const FULL: &str = "/dev/full";
const NO_SPACE: &str = "No space left on device";
const READ_ONLY: &str = "Read-only file system";

/// Nobody can make a file below it, root neither.
const UNWRITABLE: &str = "/sys/kernel/miglet";

fn detail(session: &Session) -> String {
    session.report.exit.as_ref().unwrap().detail.clone()
}

fn refusal(session: &Session, id: &str) -> String {
    session.acks.iter().find(|ack| ack.command_id == id).unwrap().detail.clone()
}

/// The file that takes this one's place is on a full disk.
fn fill(path: &Path) {
    symlink(FULL, path.with_extension("new")).unwrap();
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
        assert!(detail(&session).contains(why), "{}", detail(&session));
        session.register("r2", JIT).await;
        assert_eq!(session.outcome("r2").await, CommandOutcome::Refused, "there is no second one");
        assert_eq!(world.runner_file("jit"), None, "nothing was started");
    }
}

/// Registers a runner while this file cannot be written, and waits for the error.
async fn registered_on_full_disk(world: &World, operator: &mut Operator, file: &Path) -> (process::Child, Session) {
    let agent = world.agent(operator);
    let mut session = operator.session().await;
    fill(file);
    session.register("r1", JIT).await;
    session.until_state(AgentState::Error).await;
    assert!(detail(&session).contains(NO_SPACE), "{}", detail(&session));
    assert_eq!(world.runner_file("jit"), None, "nothing was started");
    (agent, session)
}

#[tokio::test]
async fn a_registration_that_cannot_be_noted_starts_nothing() {
    let world = World::new(RUNNER).await;
    let mut operator = world.operator().await;
    let (_agent, mut session) = registered_on_full_disk(&world, &mut operator, &world.paths.registration()).await;
    assert_eq!(session.outcome("r1").await, CommandOutcome::Refused);
    assert!(detail(&session).contains("could not note the registration"), "{}", detail(&session));
}

#[tokio::test]
async fn a_runner_that_cannot_be_recorded_is_not_started() {
    let world = World::new(RUNNER).await;
    let mut operator = world.operator().await;
    let (_agent, session) = registered_on_full_disk(&world, &mut operator, &world.paths.runner_record()).await;
    assert!(detail(&session).contains("never started"), "{}", detail(&session));
}

#[tokio::test]
async fn a_disk_that_is_full_in_mid_job_costs_no_result() {
    let world = World::new(RUNNER).await;
    let mut operator = world.operator().await;
    let (_agent, mut session) = world.idle(&mut operator).await;
    fill(&world.paths.runner_record());
    world.touch("go");
    session.until_state(AgentState::JobRunning).await;
    world.end_job(&mut session).await;
    assert_eq!(exit_kind(&session), Some(RunnerExitKind::JobDone));
    assert_eq!(session.report.job.as_ref().unwrap().result(), JobResult::Succeeded);
}

#[tokio::test]
async fn a_state_directory_that_cannot_be_written_ends_the_agent_with_its_name() {
    let world = World::new(RUNNER).await;
    let operator = world.operator().await;
    world.introduce(&operator);
    let output = timeout(PATIENCE, world.command("run").args(["--state-dir", UNWRITABLE]).output()).await;
    let output = output.expect("it ends").unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && text.contains(&format!("could not use {UNWRITABLE}: ")), "{text}");
    assert!(world.told(&format!("could not use {UNWRITABLE}: ")), "it is told outside the machine too");
}

/// The agent, where this directory is on a disk that cannot be written. The mount is its process's own, and ends with it.
fn on_read_only_disk(world: &World, directory: &Path) -> process::Command {
    let mount = r#"mount -t tmpfs -o ro none "$0" && exec "$@""#;
    world.begun_by("unshare", &["--mount", "sh", "-c", mount, directory.to_str().unwrap()])
}

#[tokio::test]
async fn a_read_only_disk_is_told_with_the_directory_that_is_on_it() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can mount a disk");
        return;
    }
    let world = World::new(RUNNER).await;
    let mut operator = world.operator().await;
    world.introduce(&operator);
    std::fs::create_dir_all(&world.paths.state).unwrap();
    let output = timeout(PATIENCE, on_read_only_disk(&world, &world.paths.state).output()).await;
    let text = String::from_utf8(output.expect("it ends").unwrap().stderr).unwrap();
    assert!(text.contains(&world.paths.state.display().to_string()) && text.contains(READ_ONLY), "{text}");
    assert!(world.told(READ_ONLY), "it is told outside the machine too");

    std::fs::create_dir_all(&world.paths.data).unwrap();
    let _agent = on_read_only_disk(&world, &world.paths.data).spawn().unwrap();
    let mut session = operator.session().await;
    session.register("r1", JIT).await;
    session.until_state(AgentState::Error).await;
    assert!(detail(&session).contains(READ_ONLY), "{}", detail(&session));
    assert_eq!(world.runner_file("jit"), None, "nothing was started");
}

#[tokio::test]
async fn settings_nobody_can_use_are_told_outside_the_machine() {
    let world = World::new(RUNNER).await;
    let output = timeout(PATIENCE, world.command("run").output()).await.expect("it ends").unwrap();
    assert_eq!(output.status.code(), Some(78));
    assert!(world.told("miglet-endpoint"), "{:?}", world.metadata.statuses.lock().unwrap());
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
    let detail = detail(&session);
    assert!(detail.contains("could not start bin/Runner.Listener: Permission denied"), "{detail}");
}

#[tokio::test]
async fn a_gateway_nobody_vouches_for_is_told_and_tried_again() {
    let world = World::new(RUNNER).await;
    for (identity, why) in [
        // Its CA has the name of the right one, and another key.
        (Identity::new(), "BadSignature"),
        (Identity::valid(2000..2001), "certificate expired"),
        (Identity::valid(2090..2100), "certificate not valid yet"),
    ] {
        let impostor = Operator::start(&identity, "127.0.0.1:0").await;
        let address = impostor.address.to_string();
        let mut agent = if why == "BadSignature" {
            world.agent(&impostor)
        } else {
            world.introduce(&impostor);
            world.metadata.attributes.lock().unwrap().insert("miglet-ca".into(), identity.ca.clone());
            world.spawn()
        };
        eventually(why, || world.told(why)).await;
        assert!(world.told(&format!("could not connect to the operator at {address}")));
        assert!(agent.try_wait().unwrap().is_none(), "it may be repaired");
        if why == "BadSignature" {
            impostor.stop().await;
            Operator::start(&world.identity, &address).await.session().await;
        }
    }
    assert!(!world.told("this machine's clock"), "the clock is not to blame");
}

#[tokio::test]
async fn a_clock_wrong_by_an_hour_is_blamed_for_the_certificate_it_refuses() {
    let world = World::new(RUNNER).await;
    let identity = Identity::valid(2090..2100);
    let operator = Operator::start(&identity, "127.0.0.1:0").await;
    world.introduce(&operator);
    world.metadata.attributes.lock().unwrap().insert("miglet-ca".into(), identity.ca.clone());
    *world.metadata.date.lock().unwrap() = Some(http_date(3600));
    let _agent = world.spawn();
    eventually("told", || world.told("certificate not valid yet")).await;
    let statuses = world.metadata.statuses.lock().unwrap().clone();
    let said = statuses.iter().find(|status| status.contains("not valid yet")).unwrap();
    let off = said.split_once("this machine's clock is ").expect(said).1.split_once(' ').unwrap().0;
    assert!((3590..=3600).contains(&off.parse::<u32>().unwrap()), "{said}");
    assert!(said.contains("s behind the metadata server's: start a time service"), "{said}");
}

#[tokio::test]
async fn a_clock_wrong_by_an_hour_alone_keeps_no_agent_from_its_work() {
    let world = World::new(RUNNER).await;
    *world.metadata.date.lock().unwrap() = Some(http_date(-3600));
    let mut operator = world.operator().await;
    let (_agent, _session) = world.idle(&mut operator).await;
}

/// So many seconds from now, as in a Date header.
fn http_date(offset_seconds: i64) -> String {
    let then = (miglet_agent::clock::unix_ms() / 1000 + offset_seconds).cast_unsigned();
    httpdate::fmt_http_date(std::time::UNIX_EPOCH + Duration::from_secs(then))
}

#[tokio::test]
async fn a_metadata_server_in_trouble_is_told_and_waited_for() {
    let world = World::new(RUNNER).await;
    let mut operator = world.operator().await;
    let set = |trouble| *world.metadata.trouble.lock().unwrap() = trouble;
    let troubles = [
        (Trouble::Status(404), "404 Not Found"),
        (Trouble::Status(503), "503 Service Unavailable"),
        (Trouble::Garbage, "invalid utf-8"),
        (Trouble::Endless, "length limit exceeded"),
        (Trouble::Silence, "no answer in 10 s"),
    ];
    set(Some(Trouble::Status(404)));
    let mut agent = world.agent(&operator);
    // First for the settings, then for the identity token.
    for stage in ["instance/attributes/", "service-accounts/default/identity"] {
        for (trouble, why) in troubles {
            set(Some(trouble));
            eventually(&format!("{stage}: {why}"), || {
                world.log_lines().iter().any(|line| line.contains(stage) && line.contains(why))
            })
            .await;
        }
        assert!(agent.try_wait().unwrap().is_none());
        if stage.starts_with("instance") {
            // The agent is let in, and loses its session when the server is ill again.
            set(None);
            drop(operator.session().await);
            set(Some(Trouble::Status(404)));
            let address = operator.address.to_string();
            operator.stop().await;
            operator = Operator::start(&world.identity, &address).await;
        }
    }
    set(None);
    operator.session().await;
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
