//! The main job: apply a pool, jobs run on VMs that come and go by themselves.

use miglet_e2e::{
    github::Job,
    world::{LABELS, Patience, REPOSITORY, World, WorldOptions},
};
use miglet_operator::crd::{Phase, RunnerPool};
use serde_json::json;

type Result = std::result::Result<(), Box<dyn std::error::Error + Send + Sync>>;

fn job(steps: &str) -> Job {
    Job {
        repository: REPOSITORY.into(),
        workflow: "CI".into(),
        name: "build".into(),
        labels: LABELS.map(str::to_owned).to_vec(),
        steps: steps.into(),
        ..Job::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_runs_a_jobs_real_steps_and_replaces_its_vm() -> Result {
    let world = World::start(WorldOptions::default()).await?;
    world.apply_pool("linux", 2, json!({})).await?;
    let patience = Patience::default();
    let idle = patience
        .until(
            "two idle runners",
            || world.in_phase(Phase::Idle),
            |idle| idle.as_ref().is_ok_and(|idle| idle.len() == 2),
        )
        .await??;
    let id = world.github.queue_job(job("echo hello > greeting; cat greeting"));
    let state = world.github.wait_job(id, std::time::Duration::from_secs(60)).await?;
    assert!(state.output.contains("hello"), "{}", state.output);
    let renewed = patience
        .until(
            "two idle runners, one of them new",
            || world.in_phase(Phase::Idle),
            |now| now.as_ref().is_ok_and(|now| now.len() == 2 && *now != idle),
        )
        .await;
    if renewed.is_err() {
        eprintln!("{}", world.operators.iter().map(|o| o.log()).collect::<String>());
    }
    renewed??;
    world.delete_pool("linux").await?;
    let api = world.api::<RunnerPool>();
    patience
        .until("the pool to go", || api.get_opt("linux"), |pool| pool.as_ref().is_ok_and(Option::is_none))
        .await??;
    assert!(world.compute.all_instances().is_empty());
    assert!(world.github.runners().is_empty());
    assert!(world.vms().await?.is_empty());
    Ok(())
}
