//! An unchanged world is a quiet one.

use std::time::Duration;

use miglet_e2e::world::{Patience, World, WorldOptions};
use serde_json::json;

type Result = std::result::Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// Everything written so far, anywhere.
fn written(world: &World) -> std::result::Result<Vec<String>, Box<dyn std::error::Error + Send + Sync>> {
    let kubernetes = world.writes()?.into_iter().map(|call| format!("{} {}", call.verb, call.path));
    Ok(kubernetes.chain(world.compute_changes()).chain(world.github_changes()).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_idle_runners_and_a_job_get_no_write_in_a_minute() -> Result {
    let world = World::start(WorldOptions::default()).await?;
    world.apply_pool("linux", 3, json!({})).await?;
    world.idle("linux", 3).await?;
    let held = world.hold_job().await?;
    world.condition_is("linux", "Ready", "True", "Ready").await?;
    // The pool's last count is written up to a second after its VMs' last change.
    let counted = async || world.kubectl(&["get", "rpool", "linux", "--output=jsonpath={.status.busyReplicas}"]).await;
    let busy = |seen: &std::result::Result<String, _>| seen.as_ref().is_ok_and(|seen| seen == "1");
    Patience::default().until("the job to be counted", counted, busy).await??;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = written(&world)?;
    assert!(before.len() > 3 * 5, "the logs miss some: {before:#?}");
    let reads = world.compute.server().traffic.all().len();
    tokio::time::sleep(Duration::from_mins(1)).await;
    let after = written(&world)?;
    assert_eq!(after.get(before.len()..), Some(&[][..]), "writes in a quiet minute");
    assert!(world.compute.server().traffic.all().len() > reads + 60, "the operator looked all the time");
    let job = world.let_go(&held).await?;
    assert!(!job.lost);
    Ok(())
}
