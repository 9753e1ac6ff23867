//! `measure fleet`: apply, all idle, a quiet minute, a tenth of them get a job, delete, all gone.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use miglet_operator::crd::{Phase, RunnerPool};
use serde::Serialize;
use serde_json::json;

use super::{count, crowd::Crowd, line, memory::mib, round};
use crate::{
    compute::GroupSpec,
    github::{GithubOptions, Limits},
    playground::build_binaries,
    world::{GROUP, Intervals, Patience, Trouble, World, WorldOptions, ZONE},
};

const PATIENCE: Patience = Patience(Duration::from_secs(900));
const QUIET: Duration = Duration::from_secs(60);
/// One in so many VMs gets a job before the end.
const JOBS: u32 = 10;

#[derive(Debug, Serialize)]
struct Figures {
    vms: u32,
    seconds_to_idle: f64,
    vms_per_second: f64,
    writes_per_vm: f64,
    github_calls_per_vm: f64,
    compute_calls: usize,
    operator_rss_mib: f64,
    quiet_minute_writes: usize,
    vms_created: usize,
}

pub(super) async fn measure(vms: u32, limits: bool) -> Result<String, Trouble> {
    build_binaries().await?;
    let crowd = Arc::new(Crowd::new()?);
    let world = World::start(options(Arc::clone(&crowd), limits)).await?;
    let applied = Instant::now();
    let wanted = usize::try_from(vms)?;
    world
        .apply_pool(
            "fleet",
            i32::try_from(vms)?,
            json!({"spec": {"limits": {"max": vms.saturating_mul(2).min(10_000)}}}),
        )
        .await?;
    idle(&world, wanted).await?;
    let seconds_to_idle = applied.elapsed().as_secs_f64();
    let quiet_minute_writes = quiet_minute(&world).await;
    let jobs = usize::try_from((vms / JOBS).max(1))?;
    crowd.queue(jobs);
    let created = || async { world.compute.created() };
    PATIENCE.until("the replacements", created, |created| *created >= wanted + jobs).await?;
    idle(&world, wanted).await?;
    world.delete_pool("fleet").await?;
    let api = world.api::<RunnerPool>();
    PATIENCE.until("the pool to go", || api.get_opt("fleet"), |pool| matches!(pool, Ok(None))).await??;
    let vms_created = world.compute.created();
    let process = world.operators.first().ok_or("no operator")?.id();
    let per_vm = |number| round(count(number) / count(vms_created));
    line(&Figures {
        vms,
        seconds_to_idle: round(seconds_to_idle),
        vms_per_second: round(f64::from(vms) / seconds_to_idle),
        writes_per_vm: per_vm(world.operator_writes()),
        github_calls_per_vm: per_vm(world.github.server().traffic.count(|_| true)),
        compute_calls: world.compute.server().traffic.count(|call| call.path.starts_with("/compute/")),
        operator_rss_mib: round(mib(process, "VmHWM")?),
        quiet_minute_writes,
        vms_created,
    })
}

/// The product's own intervals, but for those that only make the end last.
fn options(crowd: Arc<Crowd>, limits: bool) -> WorldOptions {
    let limits = match limits {
        true => Limits { primary: Some(15_000), secondary: Some(900), ..Limits::default() },
        false => Limits::default(),
    };
    let intervals = Intervals {
        list: 5.0,
        absence: 10.0,
        idle_sighting: 100.0,
        scope_read: 60.0,
        runner_list: 300.0,
        sweep: 120.0,
        request_timeout: 30.0,
        secret: 60.0,
        heartbeat: 15.0,
        backoff: 30.0,
        lease: 15.0,
    };
    WorldOptions {
        intervals,
        machines: Some(crowd),
        checked: false,
        github: GithubOptions { limits, ..GithubOptions::default() },
        group: GroupSpec::zonal(GROUP, ZONE),
        ..WorldOptions::default()
    }
}

/// Waits until so many are idle, by the pool's own count: listing 500 objects ten times a second would be measured too.
async fn idle(world: &World, wanted: usize) -> Result<(), Trouble> {
    let api = world.api::<RunnerPool>();
    let look = || async { api.get("fleet").await.ok().and_then(|pool| pool.status).unwrap_or_default().idle_replicas };
    PATIENCE.until("idle runners", look, |idle| usize::try_from(*idle).is_ok_and(|idle| idle == wanted)).await?;
    let phases = world.in_phase(Phase::Idle).await?.len();
    if phases < wanted {
        return Err(format!("the pool counts {wanted} idle runners, but {phases} RunnerVMs are idle").into());
    }
    Ok(())
}

/// What is written while nothing happens. The status that follows the last change gets a moment first.
async fn quiet_minute(world: &World) -> usize {
    tokio::time::sleep(Duration::from_secs(5)).await;
    let before = world.operator_writes();
    tokio::time::sleep(QUIET).await;
    world.operator_writes() - before
}
