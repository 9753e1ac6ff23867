//! A VM's life, and what fate and administrators do to it.

use std::time::{Duration, Instant};

use miglet_e2e::{runner::wire::Conclusion, vm::UPGRADE};
use serde_json::json;

use crate::scene::{Result, Scene};

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_installs_a_runner_runs_a_job_as_an_unprivileged_user_reports_it_and_goes() -> Result {
    let Some(scene) = Scene::open().await? else { return Ok(()) };
    assert_eq!(scene.archive.fetched(), 1);
    let steps =
        "echo user=$(id -un) uid=$(id -u) home=$HOME umask=$(umask) cores=$(ulimit -c) $(cat /proc/self/cgroup)";
    let job = scene.world.github.queue_job(miglet_e2e::world::World::job(steps));
    let job = scene.ended(job).await?;
    assert_eq!(job.conclusion, Some(Conclusion::Succeeded), "{}", job.output);
    for word in ["user=runner", "home=/home/runner", "umask=0077", "cores=0", "miglet-runner.service"] {
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
async fn a_job_does_not_notice_that_its_agent_is_killed_and_upgraded() -> Result {
    const PID: &str = "systemctl show --property MainPID --value miglet.service";
    let Some(scene) = Scene::open().await? else { return Ok(()) };
    let id = scene.busy("until [ -e ~/gate ]; do sleep 0.2; done; echo finished").await?;
    let listener = scene.root("pgrep -x Runner.Listener").await?;
    let killed = scene.root(PID).await?;
    scene.root("systemctl kill --signal=KILL --kill-who=main miglet.service").await?;
    let pid = async || scene.root(PID).await.unwrap_or_default();
    let other = |old: &str| {
        let old = old.to_owned();
        move |pid: &String| !pid.is_empty() && pid != "0" && *pid != old
    };
    let restarted = scene.until("the agent to be started again", pid, other(&killed)).await?;
    scene.root(&format!("dpkg --install {UPGRADE}")).await?;
    let upgraded = scene.until("the new agent", pid, other(&restarted)).await?;
    assert_eq!(scene.root(&format!("tail -c 5 /proc/{upgraded}/exe")).await?, "later");
    assert_eq!(scene.root("pgrep -x Runner.Listener").await?, listener);
    let sessions = async || scene.world.operator_logs().matches("an agent opened its session").count();
    scene.until("the new agent's session", sessions, |count| *count == 3).await?;
    scene.root("touch ~runner/gate").await?;
    let job = scene.ended(id).await?;
    assert_eq!((job.conclusion, job.attempts), (Some(Conclusion::Succeeded), 1), "{}", job.output);
    let last = scene.epitaph().await?;
    assert_eq!(last.pointer("/status/job/result"), Some(&json!("Succeeded")), "{last:#}");
    Ok(())
}
