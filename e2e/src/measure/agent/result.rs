//! How long after a job's end its RunnerVM's status has the result: listener, shim, agent, gateway, controller, API server.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use futures::TryStreamExt;
use kube::api::{WatchEvent, WatchParams};
use miglet_agent::{clock::unix_ms, record};
use miglet_operator::crd::RunnerVm;
use serde_json::json;

use super::median;
use crate::{
    compute::{Agent, ProcessMachines},
    playground::build_binaries,
    runner,
    world::{Patience, Trouble, World, WorldOptions},
};

const JOBS: usize = 5;

/// Milliseconds from the listener's word of the end until a watch shows the result, the median.
pub(super) async fn measure(binary: &Path) -> Result<f64, Trouble> {
    build_binaries().await?;
    let machines = Arc::new(ProcessMachines::new(Agent {
        program: binary.to_owned(),
        arguments: vec!["run".into()],
        environment: BTreeMap::new(),
        prepare: Arc::new(|folder| runner::install(folder).map_err(std::io::Error::other)),
    })?);
    let options = WorldOptions { machines: Some(machines.clone()), checked: false, ..WorldOptions::default() };
    let world = World::start(options).await?;
    world.apply_pool("measured", 1, json!({})).await?;
    let mut times = Vec::new();
    for _ in 0..JOBS {
        world.idle("measured", 1).await?;
        let held = world.hold_job().await?;
        let shown = tokio::spawn(result_shown(world.api(), held.vm.clone()));
        world.let_go(&held).await?;
        let shown = tokio::time::timeout(Patience::default().0, shown).await???;
        let folder = machines.directory(&held.vm).ok_or("the machine has no folder")?;
        let job = record::read(&folder.join("run/runner.json"))?.and_then(|runner| runner.job).ok_or("no job")?;
        times.push(Duration::from_millis((shown - job.completed_unix_ms).try_into()?).as_secs_f64() * 1000.0);
    }
    Ok(median(times))
}

/// When a watch first shows the result of this VM's job.
async fn result_shown(api: kube::Api<RunnerVm>, name: String) -> Result<i64, Trouble> {
    let watch = api.watch(&WatchParams::default().fields(&format!("metadata.name={name}")), "0").await?;
    let mut watch = std::pin::pin!(watch);
    while let Some(event) = watch.try_next().await? {
        let (WatchEvent::Added(vm) | WatchEvent::Modified(vm) | WatchEvent::Deleted(vm)) = event else { continue };
        if vm.status.as_ref().and_then(|status| status.job.as_ref()).is_some_and(|job| !job.result.is_empty()) {
            return Ok(unix_ms());
        }
    }
    Err(format!("the watch ended before {name} had a result").into())
}
