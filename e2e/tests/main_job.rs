//! The main job: apply a pool, jobs run on VMs that come and go by themselves; what a user and a GitOps tool see of it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Event;
use kube::api::ListParams;
use miglet_e2e::{
    kstatus::{Kstatus, kstatus},
    runner::wire::Conclusion,
    world::{History, Patience, World, WorldOptions},
};
use serde_json::{Value, json};

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Writes of one RunnerVM for its whole life: ten steps are written, one more may be split under load.
const OWN_WRITES: usize = 11;
/// With its event and its share of the pool's status. The goal over a fleet is twelve; here VMs come one after the
/// other, so no write of the pool is shared: 76 to 83 for 6 VMs, the more the slower the machine is.
const ALL_WRITES: usize = 14;

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn rows(table: &str) -> Vec<Vec<&str>> {
    table.lines().map(|line| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect()).collect()
}

/// The table as soon as a row of it reads so (without its age, the last cell).
async fn table(world: &World, kind: &str, row: &[&str]) -> Result<Vec<String>> {
    let look = async || world.kubectl(&["get", kind]).await.map_err(|error| error.to_string());
    let reads = |seen: &std::result::Result<String, String>| {
        seen.as_ref().is_ok_and(|table| rows(table).iter().any(|cells| cells.starts_with(row)))
    };
    let seen = Patience::default().until(&format!("a row {row:?}"), look, reads).await??;
    Ok(rows(&seen).first().map(|header| header.iter().map(ToString::to_string).collect()).unwrap_or_default())
}

async fn applied(world: &World, replicas: i32) -> Result {
    let file = world.folder.path().join("pool.json");
    std::fs::write(&file, serde_json::to_vec(&world.pool("linux", replicas, json!({})))?)?;
    world.kubectl(&["apply", "--filename", &file.to_string_lossy()]).await?;
    world.kubectl(&["wait", "--for=condition=Ready", "rpool/linux", "--timeout=90s"]).await?;
    Ok(())
}

fn nothing_is_left(world: &World) {
    assert_eq!(world.compute.all_instances(), []);
    assert_eq!(world.github.runners(), []);
}

/// A VM is current exactly while its runner is idle or busy, and a pool from its first full size to its deletion.
fn health_was_told_truly(history: &History) {
    for vm in history.of_kind("RunnerVM") {
        let expected = match text(&vm, "/status/phase") {
            _ if vm.pointer("/metadata/deletionTimestamp").is_some() => Kstatus::Terminating,
            "Idle" | "Busy" => Kstatus::Current,
            _ => Kstatus::InProgress,
        };
        assert_eq!(kstatus(&vm), expected, "{vm:#}");
    }
    let expected = [Kstatus::InProgress, Kstatus::Current, Kstatus::Terminating];
    assert_eq!(history.health("RunnerPool", "linux"), expected, "{:#?}", history.of("RunnerPool", "linux"));
}

/// The API server's own bookkeeping comes on top: it grows with the number of writers, not with what they say.
fn objects_were_small(history: &History) -> Option<(usize, usize)> {
    let size = |vm: &Value| {
        let mut vm = vm.clone();
        let metadata = vm.pointer_mut("/metadata").and_then(Value::as_object_mut);
        let managed = metadata.and_then(|metadata| metadata.remove("managedFields")).unwrap_or_default();
        (vm.to_string().len(), managed.to_string().len())
    };
    let largest = history.of_kind("RunnerVM").iter().map(size).max();
    assert!(largest.is_some_and(|(size, _)| size <= 4096), "{largest:?}");
    largest
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_runs_its_real_steps_shows_who_it_is_and_its_vm_is_replaced() -> Result {
    let world = World::start(WorldOptions::default()).await?;
    let history = world.record().await?;
    applied(&world, 2).await?;
    let before = world.idle("linux", 2).await?;
    let held = world.hold_job().await?;
    let header = table(&world, "rpool", &["linux", "2", "2", "2", "1", "1", "Ready"]).await?;
    assert_eq!(header, ["NAME", "DESIRED", "CURRENT", "READY", "BUSY", "IDLE", "STATUS", "AGE"]);
    let header = table(&world, "rvm", &[&held.vm, "linux", "Busy", "acme/app · build", "us-central1-a"]).await?;
    assert_eq!(header, ["NAME", "POOL", "PHASE", "JOB", "ZONE", "AGE"]);
    let job = world.let_go(&held).await?;
    assert_eq!(job.conclusion, Some(Conclusion::Succeeded));
    assert!(job.output.contains("finished"), "{}", job.output);
    world.vm_gone(&held.vm).await?;
    let after = world.idle("linux", 2).await?;
    assert!(before.contains(&held.vm) && !after.contains(&held.vm), "{before:?} became {after:?}");
    assert_eq!(before.intersection(&after).count(), 1, "{before:?} became {after:?}");
    let versions = history.of("RunnerVM", &held.vm);
    let told = versions.last().and_then(|vm| vm.pointer("/status/job")).cloned().unwrap_or_default();
    for (field, expected) in [
        ("repository", json!("acme/app")),
        ("workflow", json!("CI")),
        ("name", json!("build")),
        ("summary", json!("acme/app · build")),
        ("runId", json!(job.run_id)),
        ("runAttempt", json!(1)),
        ("key", json!("build")),
        ("id", json!(job.id.0)),
        ("result", json!("Succeeded")),
    ] {
        assert_eq!(told.get(field), Some(&expected), "{told:#}");
    }
    assert!(!text(&told, "/startedTime").is_empty() && !text(&told, "/completedTime").is_empty(), "{told:#}");
    let sentence = format!("acme/app · build ended: Succeeded (run {}, VM {})", job.run_id, held.vm);
    world.event(&["JobFinished", &sentence]).await?;
    let events = world.api::<Event>().list(&ListParams::default()).await?.items;
    let event = events.iter().find(|event| event.message.as_ref() == Some(&sentence)).ok_or("no such event")?;
    assert_eq!(event.involved_object.kind.as_deref(), Some("RunnerPool"));
    assert_eq!(event.involved_object.name.as_deref(), Some("linux"));
    let failed = world.github.queue_job(World::job("echo it does not work >&2; exit 3"));
    let failed = world.github.wait_job(failed, Patience::default().0).await?;
    assert_eq!(failed.conclusion, Some(Conclusion::Failed));
    world.event(&["JobFinished", "ended: Failed"]).await?;
    world.kubectl(&["delete", "rpool", "linux", "--timeout=90s"]).await?;
    nothing_is_left(&world);
    assert!(world.vms().await?.is_empty());
    health_was_told_truly(&history);
    let largest = objects_were_small(&history);
    eprintln!("largest RunnerVM, and its managed fields: {largest:?} bytes");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vms_whole_life_has_no_write_that_no_step_accounts_for() -> Result {
    let world = World::start(WorldOptions::default()).await?;
    let history = world.record().await?;
    applied(&world, 2).await?;
    let first = world.idle("linux", 2).await?.pop_first().ok_or("nobody")?;
    for _ in 0..4 {
        world.idle("linux", 2).await?;
        let job = world.github.queue_job(World::job("echo hello"));
        world.github.wait_job(job, Patience::default().0).await?;
        world.event(&["JobFinished", &format!("run {}", world.github.job(job).ok_or("no job")?.run_id)]).await?;
    }
    world.idle("linux", 2).await?;
    world.delete_pool("linux").await?;
    world.pool_gone("linux").await?;
    nothing_is_left(&world);
    let (writes, lives) = (world.writes()?, world.compute.created());
    assert_eq!(lives, 6);
    let mut kinds = BTreeMap::<_, usize>::new();
    for call in &writes {
        *kinds.entry(format!("{} {}/{} {}", call.verb, call.resource, call.subresource, call.code)).or_default() += 1;
    }
    let (own, all) = (writes.iter().filter(|call| call.resource == "runnervms").count(), writes.len());
    eprintln!("{own} of RunnerVMs, {all} in all for {lives} VMs: {kinds:#?}");
    let life = history.changes("RunnerVM", &first);
    assert!(own >= lives * 4, "the audit log misses some: {kinds:#?}");
    assert!(
        own <= lives * OWN_WRITES && all <= lives * ALL_WRITES,
        "{own}, {all} for {lives} VMs: {kinds:#?}; one life: {life:#?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_without_its_secret_has_failed_until_the_secret_is_there() -> Result {
    let world = World::start(WorldOptions::default()).await?;
    let history = world.record().await?;
    let patch = json!({"spec": {"github": {"credentialsSecretRef": {"name": "later"}}}});
    world.apply_pool("linux", 1, patch).await?;
    let message = world.condition_is("linux", "Stalled", "True", "SecretNotFound").await?;
    assert!(message.contains("later"), "{message}");
    assert_eq!(world.compute.created(), 0);
    world.put_secret("later").await?;
    world.idle("linux", 1).await?;
    world.condition_is("linux", "Ready", "True", "Ready").await?;
    assert_eq!(world.condition("linux", "Stalled").await?, None);
    let expected = [Kstatus::InProgress, Kstatus::Failed, Kstatus::InProgress, Kstatus::Current];
    assert_eq!(history.health("RunnerPool", "linux"), expected);
    Ok(())
}
