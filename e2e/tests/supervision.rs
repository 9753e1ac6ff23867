//! What the shim makes of each way the listener can end or hang: the real `miglet shim`, the runner's stand-in, the
//! simulated GitHub, and nothing else.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests fail as tests do"
)]

#[allow(dead_code, reason = "shared with the tests of the simulator")]
#[path = "github_simulator/rig.rs"]
mod rig;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use miglet_agent::{
    machine,
    preparation::Prepared,
    process::Process,
    runner::{ExitKind, JobResult, Phase, Runner},
    settings::{Collected, Environment, Flags, Settings},
    supervisor::{Launch, Registration, Shim, Supervisor},
};
use miglet_e2e::{
    faults::{Action, Rule},
    github::{Control, GithubOptions, GithubSim, Job},
    runner::{
        self,
        wire::{Conflict, JobFault},
    },
};
use rig::{Rig, rig, rig_with};
use rustix::process::Signal;
use secrecy::SecretString;
use serde_json::json;
use tokio::{sync::watch, time::timeout};

/// Five retries take 31 seconds.
const PATIENCE: Duration = Duration::from_secs(90);

/// One machine's runner under its shim; the shim ends with it.
struct Supervised {
    id: u64,
    shim: Shim,
    snapshots: watch::Receiver<Option<Runner>>,
    _folder: tempfile::TempDir,
}

/// The agent's binary, beside this test's.
fn program() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let found = own.ancestors().skip(1).take(2).map(|folder| folder.join("miglet")).find(|path| path.is_file());
    found.expect("miglet is not built: run `cargo build --workspace`")
}

/// Of an agent that calls nobody.
fn settings(folder: &Path) -> Settings {
    let at = |name: &str| Some(folder.join(name).display().to_string());
    let ca = rcgen::generate_simple_self_signed(vec!["nobody".into()]).unwrap().cert.pem();
    let directories = [("state-dir", at("s")), ("data-dir", at("d")), ("runner-dir", at("r"))];
    let operator = [("endpoint", "https://127.0.0.1:1"), ("audience", "nobody"), ("ca", &ca)];
    let operator = operator.map(|(name, value)| (name, Some(value.to_owned())));
    let flags = Flags::of(directories.into_iter().chain(operator));
    let mut settings = Collected::new(&flags, &Environment::new()).settings().unwrap();
    settings.program = program();
    settings
}

impl Supervised {
    async fn start(id: u64, jit: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("mig").tempdir().unwrap();
        let settings = settings(folder.path());
        std::fs::create_dir(&settings.paths.state).unwrap();
        runner::install(&settings.paths.runner).unwrap();
        let shim = Shim::new(&settings, Arc::new(machine::Process));
        let snapshots = shim.snapshots();
        let prepared = Prepared { dir: settings.paths.runner.clone(), version: String::new() };
        let registration = Registration { command_id: "r1".into(), runner_name: "one".into(), runner: prepared };
        shim.start(Launch {
            registration,
            jit_config: SecretString::from(jit.to_owned()),
            scripts: settings.hooks.clone(),
        })
        .await
        .unwrap();
        Self { id, shim, snapshots, _folder: folder }
    }

    /// A fresh registration, and its runner.
    async fn registered(rig: &Rig) -> Self {
        let (id, jit) = rig.register("one").await;
        Self::start(id, &jit).await
    }

    async fn until(&mut self, what: &str, holds: impl Fn(&Runner) -> bool) -> Runner {
        let reached = timeout(PATIENCE, self.snapshots.wait_for(|runner| runner.as_ref().is_some_and(&holds))).await;
        let reached = reached.map(|runner| runner.unwrap().clone().unwrap());
        reached.unwrap_or_else(|_| panic!("never {what}: {:?}", self.snapshots.borrow()))
    }

    async fn idle(&mut self) -> Runner {
        self.until("idle", |runner| runner.phase == Phase::Listening).await
    }

    /// Another listener than this one comes up, and runs a job.
    async fn does_a_job_after(&mut self, first: Option<Process>, rig: &Rig) {
        self.until("started again", |runner| runner.listener.is_some() && runner.listener != first).await;
        rig.sim.queue_job(Job::default());
        let (kind, code, _) = self.end().await;
        assert_eq!((kind, code), (ExitKind::JobDone, 0));
    }

    /// Its end: the kind, the code and the words.
    async fn end(&mut self) -> (ExitKind, i32, String) {
        let exit = self.until("ended", |runner| runner.exit.is_some()).await.exit.unwrap();
        (exit.kind, exit.code, exit.detail)
    }

    fn lines(&self) -> String {
        self.snapshots.borrow().as_ref().map(|runner| runner.lines.join("\n")).unwrap_or_default()
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        let Some(runner) = self.snapshots.borrow().clone() else { return };
        for process in [runner.shim, runner.listener].into_iter().flatten() {
            process.signal(Signal::KILL);
        }
    }
}

fn sessions(sim: &GithubSim) -> usize {
    sim.server().traffic.count(|exchange| exchange.path.ends_with("/sessions"))
}

fn nonsense() -> Rule {
    Rule::path("/messages", Action::Answer { status: 200, body: json!("nonsense"), headers: vec![] })
}

#[tokio::test]
async fn exit_0_after_a_job_is_a_job_done_whatever_its_result() {
    let rig = rig().await;
    for (job, result) in [
        (Job::default(), JobResult::Succeeded),
        (Job { steps: "exit 3".into(), ..Job::default() }, JobResult::Failed),
        (Job { fault: Some(JobFault::WorkerCrash), ..Job::default() }, JobResult::Failed),
    ] {
        let mut runner = Supervised::registered(&rig).await;
        rig.sim.queue_job(job);
        let (kind, code, _) = runner.end().await;
        assert_eq!((kind, code), (ExitKind::JobDone, 0));
        let job = runner.snapshots.borrow().clone().unwrap().job.unwrap();
        assert_eq!((job.name.as_str(), job.result), ("build", Some(result)));
    }
}

#[tokio::test]
async fn exit_0_of_a_runner_removed_while_idle_is_no_job_done() {
    let rig = rig().await;
    let mut runner = Supervised::registered(&rig).await;
    runner.idle().await;
    rig.sim.remove_idle_registration(runner.id);
    let (kind, code, _) = runner.end().await;
    assert_eq!((kind, code), (ExitKind::WithoutJob, 0));
    assert!(runner.lines().contains("The runner no longer exists on the server"), "{}", runner.lines());
    assert_eq!(runner.snapshots.borrow().as_ref().unwrap().job, None);
}

#[tokio::test]
async fn a_deleted_registration_is_told_and_not_tried_again() {
    let rig = rig().await;
    let (id, jit) = rig.register("one").await;
    assert_eq!(rig.delete(&format!("/orgs/acme/actions/runners/{id}")).await.status, 204);
    let mut runner = Supervised::start(id, &jit).await;
    let (kind, code, detail) = runner.end().await;
    assert_eq!((kind, code), (ExitKind::Failed, 1));
    assert!(detail.contains("The runner registration has been deleted from the server"), "{detail}");
    assert_eq!(sessions(&rig.sim), 1);
}

#[tokio::test]
async fn a_session_conflict_is_told_and_not_tried_again() {
    let conflict = Conflict { retry_millis: 50, limit_millis: 100 };
    let rig = rig_with(GithubOptions { conflict, ..GithubOptions::default() }).await;
    let (id, jit) = rig.register("one").await;
    let mut first = rig::Runner::start(id, &jit, &[]);
    first.until("Listening for Jobs").await;
    let (kind, code, detail) = Supervised::start(id, &jit).await.end().await;
    assert_eq!((kind, code), (ExitKind::Failed, 5));
    assert!(detail.contains("another listener holds its session"), "{detail}");
    assert!(detail.contains("A session for this runner already exists."), "{detail}");
    assert!(first.child.try_wait().unwrap().is_none(), "the first one goes on");
}

#[tokio::test]
async fn a_refused_version_and_a_wrong_clock_are_told_and_not_tried_again() {
    let rig = rig().await;
    rig.sim.control(Control::DeprecateRunners { deprecated: true });
    let (kind, code, detail) = Supervised::registered(&rig).await.end().await;
    assert_eq!((kind, code), (ExitKind::Failed, 7));
    assert!(detail.contains("no longer accepts this version") && detail.contains("v2.336.0"), "{detail}");
    rig.sim.control(Control::DeprecateRunners { deprecated: false });

    let (id, jit) = rig.register("two").await;
    rig.sim.control(Control::SkewClock { seconds: 3600 });
    let (kind, code, detail) = Supervised::start(id, &jit).await.end().await;
    assert_eq!((kind, code), (ExitKind::Failed, 1));
    assert!(detail.contains("clock may be out of sync with the server time"), "{detail}");
    assert_eq!(sessions(&rig.sim), 2);
}

#[tokio::test]
async fn a_registration_the_runner_cannot_read_is_told() {
    let (kind, code, detail) = Supervised::start(0, "bm90IGpzb24=").await.end().await;
    assert_eq!((kind, code), (ExitKind::Failed, 1));
    assert!(detail.contains("An error occurred"), "{detail}");
}

#[tokio::test]
async fn a_runner_that_updates_itself_is_started_again_and_runs_its_job() {
    let rig = rig().await;
    let mut runner = Supervised::registered(&rig).await;
    let first = runner.idle().await.listener;
    rig.sim.control(Control::UpdateRunner { id: runner.id });
    runner.does_a_job_after(first, &rig).await;
}

#[tokio::test]
async fn a_runner_that_stumbles_while_idle_is_started_again_and_runs_its_job() {
    let rig = rig().await;
    let mut runner = Supervised::registered(&rig).await;
    let first = runner.idle().await.listener;
    rig.sim.server().faults.add(nonsense().times(1));
    runner.does_a_job_after(first, &rig).await;
}

#[tokio::test]
async fn a_runner_that_stumbles_again_and_again_is_given_up() {
    let rig = rig().await;
    rig.sim.server().faults.add(nonsense());
    let (kind, code, detail) = Supervised::registered(&rig).await.end().await;
    assert_eq!((kind, code), (ExitKind::Failed, 2));
    assert!(detail.contains("for the 6th time") && detail.contains("Unexpected character"), "{detail}");
    assert_eq!(sessions(&rig.sim), 6);
}

#[tokio::test]
async fn a_runner_that_stumbles_after_its_job_is_done_and_not_started_again() {
    let rig = rig().await;
    let mut runner = Supervised::registered(&rig).await;
    rig.sim.queue_job(Job { fault: Some(JobFault::RetryableExit), ..Job::default() });
    let (kind, code, _) = runner.end().await;
    assert_eq!((kind, code), (ExitKind::JobDone, 2));
    assert_eq!(sessions(&rig.sim), 1, "its registration is used up: a second start could only fail");
}

#[tokio::test]
async fn a_ghost_is_noticed_and_left_to_the_operator() {
    let rig = rig().await;
    let mut runner = Supervised::registered(&rig).await;
    assert!(!runner.idle().await.ghost);
    rig.sim.ghost(runner.id);
    let ghost = runner.until("noticed", |runner| runner.ghost).await;
    assert_eq!((ghost.phase, ghost.exit), (Phase::Listening, None), "it waits on: nothing is done to it from here");
    runner.shim.stop_idle().await;
    let (kind, code, _) = runner.end().await;
    assert_eq!((kind, code), (ExitKind::WithoutJob, 0), "told to, it ends like any idle one");
}
