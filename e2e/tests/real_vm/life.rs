//! A VM's life, and what fate and administrators do to it.

use std::time::{Duration, Instant};

use miglet_e2e::{runner::wire::Conclusion, vm::UPGRADE};
use serde_json::{Value, json};

use crate::scene::{Result, Scene};

/// Tells on the console when what a job left behind is gone, and whether the machine was going off then anyway.
const WATCH: &str = "systemd-run --quiet bash -c 'until [ -e ~runner/leftover ]; do sleep 0.2; done; \
                     while kill -0 $(cat ~runner/leftover) 2>/dev/null; do sleep 0.1; done; \
                     echo leftover gone while $(systemctl is-system-running) > /dev/ttyS0'";

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_installs_a_runner_runs_a_job_as_an_unprivileged_user_reports_it_and_goes() -> Result {
    let Some(scene) = Scene::without_runner().await? else { return Ok(()) };
    assert_eq!(scene.world.github.runners_fetched(), 1);
    scene.root(WATCH).await?;
    let steps = "echo user=$(id -un) uid=$(id -u) home=$HOME umask=$(umask) cores=$(ulimit -c) $(cat /proc/self/cgroup)
        echo groups=$(id -nG) sudo=$(sudo -n id -u)
        setsid sh -c 'echo $$ > ~/pid; mv ~/pid ~/leftover; exec sleep 600' </dev/null >/dev/null 2>&1 &
        until [ -e ~/leftover ]; do sleep 0.2; done";
    let job = scene.world.github.queue_job(miglet_e2e::world::World::job(steps));
    let job = scene.ended(job).await?;
    assert_eq!(job.conclusion, Some(Conclusion::Succeeded), "{}", job.output);
    for word in
        ["user=runner", "home=/home/runner", "umask=0077", "cores=0", "miglet-runner.service/job", "builders sudo=0"]
    {
        assert!(job.output.contains(word), "{word} is not in: {}", job.output);
    }
    assert!(!job.output.contains("uid=0 "), "{}", job.output);
    scene.event(&["JobFinished", "acme/app · build ended: Succeeded", &job.run_id.to_string()]).await?;
    let last = scene.epitaph().await?;
    for (field, expected) in
        [("repository", json!("acme/app")), ("runId", json!(job.run_id)), ("result", json!("Succeeded"))]
    {
        assert_eq!(last.pointer(&format!("/status/job/{field}")), Some(&expected), "{last:#}");
    }
    let console = scene.console();
    let gone = console.lines().find_map(|line| line.split_once("leftover gone while ")).map(|(_, state)| state.trim());
    assert!(gone.is_some_and(|state| state != "stopping"), "{gone:?}: {console}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_preempted_in_mid_job_tells_github_and_the_operator_before_its_power_goes() -> Result {
    let Some(scene) = Scene::open().await? else { return Ok(()) };
    let id = scene.busy("echo begun; touch ~/begun; sleep 600; echo finished").await?;
    scene.begun().await?;
    let notice = Instant::now();
    scene.world.compute.preempt(&scene.vm)?;
    let job = scene.ended(id).await?;
    assert!(notice.elapsed() < Duration::from_secs(30), "GitHub learned it {:?} after the notice", notice.elapsed());
    assert!(!job.lost && job.conclusion.is_some(), "{job:?}");
    assert!(job.output.contains("begun") && !job.output.contains("finished"), "{}", job.output);
    let last = scene.epitaph().await?;
    assert!(last.to_string().contains("Preempted"), "{last:#}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_shut_down_in_mid_job_without_a_notice_ends_the_job_and_tells_so() -> Result {
    let Some(scene) = Scene::open().await? else { return Ok(()) };
    let id = scene.busy("echo begun; touch ~/begun; sleep 600; echo finished").await?;
    scene.begun().await?;
    scene.root("systemctl poweroff --no-block").await?;
    let job = scene.ended(id).await?;
    assert!(!job.lost && job.conclusion.is_some(), "{}", scene.explained(&format!("{job:?}")));
    assert!(job.output.contains("begun") && !job.output.contains("finished"), "{}", job.output);
    let last = scene.epitaph().await?;
    assert!(last.pointer("/status/job/result").is_some_and(Value::is_string), "{last:#}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_without_an_agent_goes_off_at_its_greatest_age() -> Result {
    const AGE: &str = "systemctl show --property TimersMonotonic miglet-last-resort.timer";
    let Some(scene) = Scene::open().await? else { return Ok(()) };
    let age = async || scene.root(AGE).await.unwrap_or_default();
    // Not the packaged one: as long as the pool allows.
    scene.until("the agent's age of the timer", age, |age| age.contains("OnBootUSec=1d 5min ;")).await?;
    scene.root("systemctl mask --now miglet.service").await?;
    // Which the age has passed when it gets there: off at once.
    let sooner =
        "printf '[Timer]\\nOnBootSec=\\nOnBootSec=1\\n' > /run/systemd/system/miglet-last-resort.timer.d/z.conf";
    scene
        .root(&format!("{sooner}; systemctl daemon-reload; systemctl restart --no-block miglet-last-resort.timer"))
        .await
        .ok();
    scene.until("the VM to go off", async || scene.is_on(), |on| !on).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_does_not_notice_that_its_agent_is_killed_and_upgraded() -> Result {
    let Some(scene) = Scene::open().await? else { return Ok(()) };
    let id = scene.busy("until [ -e ~/gate ]; do sleep 0.2; done; echo finished").await?;
    let listener = scene.root("pgrep -x Runner.Listener").await?;
    // The image's: its version is known, though its owner is nobody and it was not started.
    let program = scene.root(&format!("readlink /proc/{listener}/exe")).await?;
    assert_eq!(
        (program.as_str(), scene.world.github.runners_fetched()),
        ("/opt/actions-runner/bin/Runner.Listener", 0)
    );
    // Seen from inside its unit's hardening, too.
    assert_eq!(scene.root("miglet status | grep ^Error:").await?, "Error:    -");
    let restarted = scene.kill_agent().await?;
    scene.root(&format!("dpkg --install {UPGRADE}")).await?;
    let upgraded = scene.next_agent(&restarted).await?;
    assert_eq!(scene.root(&format!("tail -c 5 /proc/{upgraded}/exe")).await?, "later");
    assert_eq!(scene.root("pgrep -x Runner.Listener").await?, listener);
    let sessions = async || scene.world.operator_logs().matches("an agent opened its session").count();
    scene.until("the new agent's session", sessions, |count| *count == 3).await?;
    let told = scene.diagnostics().await?;
    assert!(told["shim.log"].contains("the listener runs"), "{told:#?}");
    assert_eq!(told["agent.log"].matches("session opened").count(), 3, "{told:#?}");
    scene.root("touch ~runner/gate").await?;
    let job = scene.ended(id).await?;
    assert_eq!((job.conclusion, job.attempts), (Some(Conclusion::Succeeded), 1), "{}", job.output);
    let last = scene.epitaph().await?;
    assert_eq!(last.pointer("/status/job/result"), Some(&json!("Succeeded")), "{last:#}");
    Ok(())
}
