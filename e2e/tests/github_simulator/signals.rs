//! The listener's start, signals and exit codes without a job.

use miglet_e2e::{
    faults::{Action, Rule},
    github::{Control, Job},
    runner::wire::Conclusion,
};
use rustix::process::Signal;

use crate::rig::{LIMIT, Runner, rig};

#[tokio::test]
async fn an_idle_listener_stops_on_sigint_and_keeps_its_files() {
    let rig = rig().await;
    for signal in [Signal::INT, Signal::TERM] {
        let mut runner = rig.runner(&format!("one-{}", signal.as_raw())).await;
        let greeting = ["", "√ Connected to GitHub", "", "Current runner version: '2.336.0'"];
        assert_eq!(&runner.seen[..4], greeting);
        runner.signal(signal);
        assert_eq!(runner.exit().await, 0);
        assert_eq!(runner.seen.last().map(String::as_str), Some("Exiting..."));
        assert!(runner.has(".runner") && runner.has(".credentials") && runner.has(".credentials_rsaparams"));
        let path = format!("/orgs/acme/actions/runners/{}", runner.id);
        assert_eq!(rig.get(&path).await.body["status"], "offline", "the session was deleted");
        assert_eq!(rig.delete(&path).await.status, 204);
    }
    rig.sim.assert_conforms();
}

#[tokio::test]
async fn a_busy_listener_cuts_its_job_on_sigint() {
    let rig = rig().await;
    let mut runner = rig.runner("one").await;
    let job = rig.sim.queue_job(Job { steps: "echo started; sleep 60".to_owned(), ..Job::default() });
    runner.until("Running job: build").await;
    runner.signal(Signal::INT);
    let job = rig.sim.wait_job(job, LIMIT).await.expect("the job ends");
    assert_eq!(job.conclusion, Some(Conclusion::Failed));
    assert_eq!(runner.exit().await, 0);
    assert!(runner.seen.last().is_some_and(|l| l.ends_with("Job build completed with result: Failed")));
}

#[tokio::test]
async fn a_bad_jit_config_ends_the_listener() {
    for jit in ["%%%", "bm90IGpzb24="] {
        let mut runner = Runner::start(0, jit, &[]);
        assert_eq!(runner.exit().await, 1);
        assert!(runner.complaints().await.starts_with("An error occurred: "));
        assert!(!runner.has(".runner"));
    }
}

#[tokio::test]
async fn a_deleted_registration_gets_no_session() {
    let rig = rig().await;
    let (id, jit) = rig.register("one").await;
    rig.delete(&format!("/orgs/acme/actions/runners/{id}")).await;
    let mut runner = Runner::start(id, &jit, &[]);
    assert_eq!(runner.exit().await, 1);
    assert!(runner.seen.join("\n").contains("The runner registration has been deleted from the server"));
}

#[tokio::test]
async fn a_deprecated_version_has_its_own_exit_code_on_request() {
    let rig = rig().await;
    rig.sim.control(Control::DeprecateRunners { deprecated: true });
    for (environment, code) in [(vec![], 1), (vec![("ACTIONS_RUNNER_RETURN_VERSION_DEPRECATED_EXIT_CODE", "1")], 7)] {
        let (id, jit) = rig.register(&format!("one-{code}")).await;
        assert_eq!(Runner::start(id, &jit, &environment).exit().await, code);
    }
}

#[tokio::test]
async fn a_broken_connection_is_mentioned_once_and_survived() {
    let rig = rig().await;
    let mut runner = rig.runner("one").await;
    rig.sim.server().faults.add(Rule::path("/messages", Action::Break).times(2));
    runner.until("Z: Runner reconnected.").await;
    runner.signal(Signal::INT);
    assert_eq!(runner.exit().await, 0);
    let complaints = runner.complaints().await;
    assert_eq!(complaints.matches("Runner connect error: ").count(), 1, "{complaints}");
    assert!(complaints.trim_end().ends_with(". Retrying until reconnected."));
}

#[tokio::test]
async fn the_job_result_is_an_exit_code_on_request() {
    let rig = rig().await;
    let (id, jit) = rig.register("one").await;
    let mut runner = Runner::start(id, &jit, &[("ACTIONS_RUNNER_RETURN_JOB_RESULT_FOR_HOSTED", "1")]);
    let job = rig.sim.queue_job(Job { steps: "exit 9".to_owned(), ..Job::default() });
    rig.sim.wait_job(job, LIMIT).await.expect("the job ends");
    assert_eq!(runner.exit().await, 102);
}

#[tokio::test]
async fn the_wrapper_script_hides_how_the_listener_ended() {
    let runner = Runner::start(0, "%%%", &[]);
    let mut wrapper = tokio::process::Command::new(runner.folder.path().join("run.sh"));
    wrapper.env("ACTIONS_RUNNER_INPUT_JITCONFIG", "%%%").kill_on_drop(true);
    let output = tokio::time::timeout(LIMIT, wrapper.output()).await.expect("in time").expect("it runs");
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&output.stderr).contains("An error occurred"));
}

#[tokio::test]
async fn the_stand_in_is_light() {
    let rig = rig().await;
    let runner = rig.runner("one").await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", runner.child.id().expect("it runs")));
    let status = status.expect("readable");
    let anonymous = status.lines().find_map(|l| l.strip_prefix("RssAnon:")).expect("a figure");
    let kib: u64 = anonymous.trim().trim_end_matches(" kB").trim().parse().expect("a number");
    assert!(kib < 8192, "an idle listener has {kib} KiB of its own");
}
