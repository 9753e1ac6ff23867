//! Disks that are full or cannot be written: what is lost is told, and nothing is started that could not be followed.

use std::{os::unix::fs::symlink, path::Path};

use miglet_proto::v1::{AgentState, CommandOutcome, EventKind, JobResult, RunnerExitKind};
use tokio::{process, time::timeout};

use crate::{
    JIT, exit_detail, exit_kind,
    operator::{Operator, PATIENCE, Session},
    world::{RUNNER, World, only_root},
};

/// Whatever is written there finds no space.
const FULL: &str = "/dev/full";
const NO_SPACE: &str = "No space left on device";
const READ_ONLY: &str = "Read-only file system";

/// Nobody can make a file below it, root neither.
const UNWRITABLE: &str = "/sys/kernel/miglet";

/// The file that takes this one's place is on a full disk.
fn fill(path: &Path) {
    symlink(FULL, path.with_extension("new")).unwrap();
}

/// Registers a runner while this file cannot be written, and waits for the error.
async fn registered_on_full_disk(world: &World, operator: &mut Operator, file: &Path) -> (process::Child, Session) {
    let agent = world.agent(operator);
    let mut session = operator.session().await;
    fill(file);
    session.register("r1", JIT).await;
    session.until_state(AgentState::Error).await;
    assert!(exit_detail(&session).contains(NO_SPACE), "{}", exit_detail(&session));
    assert_eq!(world.runner_file("jit"), None, "nothing was started");
    (agent, session)
}

#[tokio::test]
async fn a_registration_that_cannot_be_noted_starts_nothing() {
    let world = World::new(RUNNER).await;
    let mut operator = world.operator().await;
    let (_agent, mut session) = registered_on_full_disk(&world, &mut operator, &world.paths.registration()).await;
    assert_eq!(session.outcome("r1").await, CommandOutcome::Refused);
    assert!(exit_detail(&session).contains("could not note the registration"), "{}", exit_detail(&session));
}

#[tokio::test]
async fn a_runner_that_cannot_be_recorded_is_not_started() {
    let world = World::new(RUNNER).await;
    let mut operator = world.operator().await;
    let (_agent, session) = registered_on_full_disk(&world, &mut operator, &world.paths.runner_record()).await;
    assert!(exit_detail(&session).contains("never started"), "{}", exit_detail(&session));
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
    if !only_root("can mount a disk") {
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
    assert!(exit_detail(&session).contains(READ_ONLY), "{}", exit_detail(&session));
    assert_eq!(world.runner_file("jit"), None, "nothing was started");
}

/// As ext4 does by itself when it finds itself damaged. Not a read-only mount: the agent's unit has those everywhere.
#[tokio::test]
async fn a_disk_that_turns_read_only_under_a_job_is_told_and_ends_nothing() {
    /// The runner on a disk of its own, seen by the agent through a read-only mount.
    const DISK: &str = r#"mount -t tmpfs none /mnt && cp -a "$0/." /mnt && mount --bind /mnt "$0" && exec "$@""#;
    if !only_root("can mount a disk") {
        return;
    }
    let world = World::new(RUNNER).await;
    let mut operator = world.operator().await;
    world.introduce(&operator);
    let disk = world.paths.runner.to_str().unwrap();
    let agent = world.begun_by("unshare", &["--mount", "sh", "-c", DISK, disk]).spawn().unwrap();
    let target = agent.id().unwrap().to_string();
    let inside = async |command: &[&str]| {
        let entered = [&["--target", &target, "--mount"], command].concat();
        assert!(process::Command::new("nsenter").args(entered).status().await.unwrap().success(), "{command:?}");
    };
    let (go, end) = (format!("{disk}/go"), format!("{disk}/end"));
    let mut session = operator.idle_session().await;
    inside(&["touch", &go]).await;
    session.until_state(AgentState::JobRunning).await;
    inside(&["mount", "-o", "remount,bind,ro", disk]).await;
    inside(&["mount", "-o", "remount,ro", "/mnt"]).await;
    let told = session.until_event(EventKind::Error).await;
    assert!(told.detail.contains("disk is read-only"), "{told:?}");
    session.until("told for as long as it is so", |s| s.report.error.contains("disk is read-only")).await;
    inside(&["mount", "-o", "remount,rw", "/mnt"]).await;
    session.until("a read-only mount is no trouble", |s| s.report.error.is_empty()).await;
    inside(&["mount", "-o", "remount,bind,rw", disk]).await;
    inside(&["touch", &end]).await;
    session.until_ended().await;
    assert_eq!(session.report.job.as_ref().unwrap().result(), JobResult::Succeeded);
}
