//! `measure agent`: its binary's size, how fast it starts, writes and tells, what it takes while it waits and while its job
//! has much to say.

mod busy;
mod result;
mod spool;

use std::{
    env, fs,
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use serde::Serialize;
use tokio::process::{Child, Command};

use super::{
    count,
    gateway::Gateway,
    line,
    memory::{cpu_seconds, mib},
    round,
};
use crate::{
    compute::{ComputeOptions, ComputeSim, GroupSpec},
    playground::build_agent,
    world::{GROUP, Patience, Trouble, ZONE},
};

const INSTANCE: &str = "measured";
/// The median of so many starts.
const STARTS: usize = 5;
/// Until it has settled: what its start took is no part of what waiting takes.
const SETTLE: Duration = Duration::from_secs(5);
/// How long it is watched then, two heartbeats included.
const IDLE: Duration = Duration::from_secs(30);

#[derive(Debug, Serialize)]
struct Figures {
    binary_mib: f64,
    rss_idle_mib: f64,
    rss_busy_mib: f64,
    rss_shim_mib: f64,
    rss_shim_own_mib: f64,
    output_mib_per_second: f64,
    cpu_idle_percent: f64,
    start_to_session_ms: f64,
    spool_append_ms: f64,
    job_end_to_status_ms: f64,
}

/// The middle one.
fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or_default()
}

pub(super) async fn measure() -> Result<String, Trouble> {
    let binary = build_agent().await?;
    let folder = tempfile::Builder::new().prefix("mag").tempdir()?;
    let mut gateway = Gateway::start(folder.path()).await?;
    let compute = ComputeSim::start(ComputeOptions { checked: false, ..ComputeOptions::default() }).await?;
    let group = GroupSpec::zonal(GROUP, ZONE).metadata("miglet-endpoint", &format!("https://{}", gateway.address));
    compute.add_group(&group.metadata("miglet-ca", &gateway.ca).metadata("miglet-audience", "measure"));
    compute.create_foreign(GROUP, INSTANCE)?;
    let look = || async { compute.instance(INSTANCE).and_then(|instance| instance.metadata_host) };
    let metadata = Patience::default().until("the instance", look, Option::is_some).await?.unwrap_or(gateway.address);

    let mut times = Vec::new();
    let (mut rss, mut cpu) = (0.0, 0.0);
    for start in 0..STARTS {
        let begun = Instant::now();
        let mut agent = spawn(&binary, folder.path().join(start.to_string()), &metadata.to_string())?;
        gateway.session().await?;
        times.push(begun.elapsed().as_secs_f64() * 1000.0);
        if start + 1 == STARTS {
            tokio::time::sleep(SETTLE).await;
            let process = agent.id().ok_or("the agent ended")?;
            let before = cpu_seconds(process)?;
            tokio::time::sleep(IDLE).await;
            cpu = (cpu_seconds(process)? - before) / IDLE.as_secs_f64() * 100.0;
            rss = mib(process, "VmRSS")?;
        }
        agent.kill().await?;
    }
    let busy_folder = folder.path().join("busy");
    let agent = spawn(&binary, busy_folder.clone(), &metadata.to_string())?;
    let busy = busy::measure(agent, &busy_folder, &gateway.session().await?).await?;
    let bytes = usize::try_from(fs::metadata(&binary)?.len())?;
    line(&Figures {
        binary_mib: round(count(bytes) / 1024.0 / 1024.0),
        rss_idle_mib: round(rss),
        rss_busy_mib: round(busy.agent),
        rss_shim_mib: round(busy.shim),
        rss_shim_own_mib: round(busy.shim_own),
        output_mib_per_second: round(busy.output),
        // Finer than the others: a whole percent would be ten times too much.
        cpu_idle_percent: (cpu * 10_000.0).round() / 10_000.0,
        start_to_session_ms: round(median(times)),
        spool_append_ms: round(spool::measure(folder.path())?),
        job_end_to_status_ms: round(result::measure(&binary).await?),
    })
}

fn spawn(binary: &PathBuf, folder: PathBuf, metadata: &str) -> Result<Child, Trouble> {
    busy::prepare(&folder.join("r"))?;
    let mut command = Command::new(binary);
    command.arg("run").env_clear().env("PATH", env::var_os("PATH").unwrap_or_default());
    command.env("GCE_METADATA_HOST", metadata).env("MIGLET_STATE_DIR", folder.join("s"));
    command.env("MIGLET_DATA_DIR", folder.join("d")).env("MIGLET_RUNNER_DIR", folder.join("r"));
    let log = fs::File::create(folder.join("log"))?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
    Ok(command.spawn()?)
}
