//! `measure agent`: size of its binary, time to its session, memory while it waits.

use std::{
    env, fs,
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use serde::Serialize;
use tokio::process::{Child, Command};

use super::{count, gateway::Gateway, line, memory::mib, round};
use crate::{
    compute::{ComputeOptions, ComputeSim, GroupSpec},
    playground::build_agent,
    world::{GROUP, Patience, Trouble, ZONE},
};

const INSTANCE: &str = "measured";
/// The median of so many starts.
const STARTS: usize = 5;
/// Time to settle, heartbeats included, before the memory is looked at.
const SETTLE: Duration = Duration::from_secs(5);

#[derive(Debug, Serialize)]
struct Figures {
    binary_mib: f64,
    rss_idle_mib: f64,
    start_to_session_ms: f64,
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
    let mut rss = 0.0;
    for start in 0..STARTS {
        let begun = Instant::now();
        let mut agent = spawn(&binary, folder.path().join(start.to_string()), &metadata.to_string())?;
        gateway.session().await?;
        times.push(begun.elapsed().as_secs_f64() * 1000.0);
        if start + 1 == STARTS {
            tokio::time::sleep(SETTLE).await;
            rss = mib(agent.id().ok_or("the agent ended")?, "VmRSS")?;
        }
        agent.kill().await?;
    }
    times.sort_by(f64::total_cmp);
    let bytes = usize::try_from(fs::metadata(&binary)?.len())?;
    line(&Figures {
        binary_mib: round(count(bytes) / 1024.0 / 1024.0),
        rss_idle_mib: round(rss),
        start_to_session_ms: round(times.get(STARTS / 2).copied().unwrap_or_default()),
    })
}

fn spawn(binary: &PathBuf, folder: PathBuf, metadata: &str) -> Result<Child, Trouble> {
    fs::create_dir_all(&folder)?;
    let mut command = Command::new(binary);
    command.arg("run").env_clear().env("PATH", env::var_os("PATH").unwrap_or_default());
    command.env("GCE_METADATA_HOST", metadata).env("MIGLET_STATE_DIR", folder.join("s"));
    command.env("MIGLET_DATA_DIR", folder.join("d")).env("MIGLET_RUNNER_DIR", folder.join("r"));
    let log = fs::File::create(folder.join("log"))?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
    Ok(command.spawn()?)
}
