//! Jobs on real runner processes.

use std::time::Duration;

use miglet_e2e::{
    github::{Control, GithubOptions, Job, JobStatus},
    runner::wire::{Conclusion, Conflict, JobFault},
};

use crate::rig::{LIMIT, Runner, rig, rig_with};

fn steps(steps: &str) -> Job {
    Job { steps: steps.to_owned(), ..Job::default() }
}

#[tokio::test]
async fn a_jobs_real_steps_run_and_their_output_comes_back() {
    let rig = rig().await;
    let mut runner = rig.runner("one").await;
    let job = rig.sim.queue_job(steps("echo \"ran $GITHUB_REPOSITORY on $RUNNER_NAME\"; pwd; env"));
    let job = rig.sim.wait_job(job, LIMIT).await.expect("the job ends");
    assert_eq!(job.conclusion, Some(Conclusion::Succeeded));
    assert!(job.output.contains("ran acme/app on one"), "{}", job.output);
    assert!(job.output.contains("_work/app/app"), "{}", job.output);
    assert!(!job.output.contains("ACTIONS_RUNNER_INPUT"), "the JIT config is hidden from jobs: {}", job.output);
    assert_eq!(runner.exit().await, 0);
    let last = &runner.seen[runner.seen.len() - 3..];
    assert!(last[0].ends_with("Z: Job build completed with result: Succeeded"), "{last:?}");
    assert_eq!(&last[1..], ["√ Removed .credentials", "√ Removed .runner"]);
    assert!(!runner.has(".runner") && !runner.has(".credentials_rsaparams"));
    assert!(rig.sim.runners().is_empty(), "an ephemeral registration ends with its job");
    assert_eq!(rig.get(&format!("/orgs/acme/actions/runners/{}", runner.id)).await.status, 404);
    rig.sim.assert_conforms();
}

#[tokio::test]
async fn a_failing_step_fails_the_job() {
    let rig = rig().await;
    let mut runner = rig.runner("one").await;
    let job = rig.sim.queue_job(steps("echo before; false; echo after"));
    let job = rig.sim.wait_job(job, LIMIT).await.expect("the job ends");
    assert_eq!(job.conclusion, Some(Conclusion::Failed));
    assert!(job.output.contains("before") && !job.output.contains("after"), "{}", job.output);
    assert_eq!(runner.exit().await, 0);
}

#[tokio::test]
async fn hooks_run_around_the_steps_and_a_failing_one_fails_the_job() {
    let rig = rig().await;
    for (script, expected) in [("echo hook $GITHUB_RUN_ID", Conclusion::Succeeded), ("exit 3", Conclusion::Failed)] {
        let (id, jit) = rig.register("one").await;
        let folder = tempfile::tempdir().expect("a folder");
        let hook = folder.path().join("hook.sh");
        std::fs::write(&hook, script).expect("a hook");
        let hook = hook.to_str().expect("text");
        let hooks = [("ACTIONS_RUNNER_HOOK_JOB_STARTED", hook), ("ACTIONS_RUNNER_HOOK_JOB_COMPLETED", hook)];
        let mut runner = Runner::start(id, &jit, &hooks);
        let job = rig.sim.queue_job(steps("echo steps"));
        let job = rig.sim.wait_job(job, LIMIT).await.expect("the job ends");
        assert_eq!(job.conclusion, Some(expected));
        if expected == Conclusion::Succeeded {
            assert_eq!(job.output, format!("hook {0}\nsteps\nhook {0}\n", job.run_id));
        }
        assert_eq!(runner.exit().await, 0);
    }
}

#[tokio::test]
async fn jobs_go_to_idle_runners_that_carry_their_labels() {
    let rig = rig().await;
    let mut runner = rig.runner("one").await;
    let elsewhere = rig.sim.queue_job(Job { labels: vec!["gpu".to_owned()], ..steps("true") });
    let other = rig.sim.queue_job(Job { repository: "other/app".to_owned(), ..steps("true") });
    let first = rig.sim.queue_job(Job { labels: vec!["LINUX".to_owned()], ..steps("true") });
    let second = rig.sim.queue_job(steps("true"));
    let first = rig.sim.wait_job(first, LIMIT).await.expect("the job ends");
    assert_eq!(first.runner_id, Some(runner.id));
    assert_eq!(runner.exit().await, 0);
    for waiting in [elsewhere, other, second] {
        assert_eq!(rig.sim.job(waiting).map(|j| j.status), Some(JobStatus::Queued));
    }
    let mut next = rig.runner("two").await;
    assert_eq!(rig.sim.wait_job(second, LIMIT).await.expect("the job ends").attempts, 1);
    assert_eq!(next.exit().await, 0);
}

#[tokio::test]
async fn a_busy_runner_is_not_deleted_and_a_cancelled_job_ends_it() {
    let rig = rig().await;
    let mut runner = rig.runner("one").await;
    let job = rig.sim.queue_job(steps("sleep 60"));
    runner.until("Running job: build").await;
    let path = format!("/orgs/acme/actions/runners/{}", runner.id);
    assert_eq!(rig.get(&path).await.body["busy"], true);
    let refused = rig.delete(&path).await;
    assert_eq!(refused.status, 422);
    assert_eq!(refused.body["message"], "Bad request - Runner \"one\" is still running a job\"");
    rig.sim.control(Control::CancelJob { id: job.0 });
    let job = rig.sim.wait_job(job, LIMIT).await.expect("the job ends");
    assert_eq!(job.conclusion, Some(Conclusion::Canceled));
    assert_eq!(runner.exit().await, 0);
    assert_eq!(rig.get(&path).await.status, 404);
    rig.sim.assert_conforms();
}

#[tokio::test]
async fn a_runner_removed_while_idle_notices_and_cleans_up() {
    let rig = rig().await;
    let mut runner = rig.runner("one").await;
    rig.sim.remove_idle_registration(runner.id);
    assert_eq!(runner.exit().await, 0);
    let said = runner.seen.join("\n");
    assert!(said.contains("The runner no longer exists on the server. Cleaning up local configuration."), "{said}");
    assert!(!runner.has(".runner"));
}

#[tokio::test]
async fn a_ghost_listens_on_in_silence() {
    let rig = rig().await;
    let mut runner = rig.runner("one").await;
    let lines = runner.seen.len();
    let asked = |sim: &miglet_e2e::github::GithubSim| sim.server().traffic.count(|e| e.path.ends_with("/acquire"));
    rig.sim.ghost(runner.id);
    rig.until("the phantom was asked for", |sim| asked(sim) == 1).await;
    let polls = |sim: &miglet_e2e::github::GithubSim| sim.server().traffic.count(|e| e.path.ends_with("/messages"));
    let before = polls(&rig.sim);
    rig.until("it polls on", |sim| polls(sim) > before + 2).await;
    assert_eq!(rig.get(&format!("/orgs/acme/actions/runners/{}", runner.id)).await.status, 404);
    assert!(runner.child.try_wait().expect("a status").is_none(), "it still runs");
    runner.signal(rustix::process::Signal::INT);
    assert_eq!(runner.exit().await, 0);
    assert_eq!(&runner.seen[lines..], ["Exiting..."]);
}

#[tokio::test]
async fn the_job_of_a_dead_runner_stays_in_progress_for_a_while() {
    let options = GithubOptions {
        poll: Duration::from_millis(300),
        offline_after: Duration::from_millis(300),
        lost_after: Duration::from_secs(2),
        ..GithubOptions::default()
    };
    let rig = rig_with(options).await;
    let mut runner = rig.runner("one").await;
    let job = rig.sim.queue_job(steps("sleep 60"));
    runner.until("Running job").await;
    runner.signal(rustix::process::Signal::KILL);
    let path = format!("/orgs/acme/actions/runners/{}", runner.id);
    rig.until("it is offline", |sim| sim.runners().iter().all(|r| !r.online)).await;
    assert_eq!(rig.delete(&path).await.status, 422);
    let job = rig.sim.wait_job(job, LIMIT).await.expect("it is given up");
    assert!(job.lost);
    assert_eq!(rig.delete(&path).await.status, 404);
}

#[tokio::test]
async fn a_job_its_runner_does_not_take_is_queued_again() {
    let options = GithubOptions { acquire_within: Duration::from_millis(300), ..GithubOptions::default() };
    let rig = rig_with(options).await;
    let runner = rig.runner("one").await;
    runner.signal(rustix::process::Signal::STOP);
    let job = rig.sim.queue_job(steps("true"));
    rig.until("its registration is gone", |sim| sim.runners().is_empty()).await;
    assert_eq!(rig.sim.job(job).map(|j| (j.status, j.attempts)), Some((JobStatus::Queued, 0)));
}

#[tokio::test]
async fn scripted_faults_have_the_exit_codes_of_the_real_runner() {
    let rig = rig().await;
    let mut retry = rig.runner("retry").await;
    let job = rig.sim.queue_job(Job { fault: Some(JobFault::RetryableExit), ..steps("true") });
    rig.sim.wait_job(job, LIMIT).await.expect("the job ends");
    assert_eq!(retry.exit().await, 2);
    assert!(retry.has(".runner"));
    let mut again = Runner::start_in(retry.folder, retry.id, "", &[]);
    assert_eq!(again.exit().await, 1);

    let mut crash = rig.runner("crash").await;
    let job = rig.sim.queue_job(Job { fault: Some(JobFault::WorkerCrash), ..steps("true") });
    let job = rig.sim.wait_job(job, LIMIT).await.expect("the job ends");
    assert_eq!(job.conclusion, Some(Conclusion::Failed));
    assert_eq!(crash.exit().await, 0);

    let mut update = rig.runner("update").await;
    rig.sim.control(Control::UpdateRunner { id: update.id });
    assert_eq!(update.exit().await, 4);
    rig.until("the update is finished", |_| update.has("update.finished")).await;
}

#[tokio::test]
async fn floods_and_daemons_do_not_change_the_result() {
    let rig = rig().await;
    let mut flood = rig.runner("flood").await;
    let job = rig.sim.queue_job(Job { fault: Some(JobFault::Flood(2000)), ..steps("true") });
    flood.until("completed with result: Succeeded").await;
    assert!(flood.seen.len() > 2000);
    rig.sim.wait_job(job, LIMIT).await.expect("the job ends");
    assert_eq!(flood.exit().await, 0);

    let mut daemon = rig.runner("daemon").await;
    let job = rig.sim.queue_job(Job { fault: Some(JobFault::Daemon(3)), ..steps("true") });
    rig.sim.wait_job(job, LIMIT).await.expect("the job ends");
    assert_eq!(daemon.exit().await, 0);
}

#[tokio::test]
async fn what_a_job_leaves_running_is_killed_at_its_end() {
    let rig = rig().await;
    let mut runner = rig.runner("one").await;
    let job = rig.sim.queue_job(steps("setsid sleep 40 >/dev/null 2>&1 & echo pid=$!"));
    let job = rig.sim.wait_job(job, LIMIT).await.expect("the job ends");
    assert_eq!(runner.exit().await, 0);
    let pid = job.output.trim().trim_start_matches("pid=");
    let alive = || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        !status.is_empty() && !status.contains(") Z ")
    };
    rig.until("the daemon is dead", |_| !alive()).await;
}

#[tokio::test]
async fn a_second_listener_of_one_registration_gives_up() {
    let conflict = Conflict { retry_millis: 50, limit_millis: 100 };
    let rig = rig_with(GithubOptions { conflict, ..GithubOptions::default() }).await;
    let (id, jit) = rig.register("one").await;
    let mut first = Runner::start(id, &jit, &[]);
    first.until("Listening for Jobs").await;
    let mut second = Runner::start(id, &jit, &[]);
    assert_eq!(second.exit().await, 5);
    let said = second.seen.join("\n");
    assert!(said.contains("A session for this runner already exists."), "{said}");
    assert!(said.contains("Stop retry on SessionConflictException after retried for 0 seconds."), "{said}");
}
