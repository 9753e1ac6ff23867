//! The agent from its package on real Debian VMs: what only a whole machine can show.
//!
//! Every VM is emulated, so each test has one and waits for minutes where others wait for seconds.

use std::{sync::Arc, time::Duration};

use miglet_e2e::{
    compute::{Delays, GroupSpec},
    github::{GithubOptions, JobId, JobState},
    runner::wire::Conclusion,
    vm::{Disk, Package, RunnerArchive, VmMachines, available},
    world::{GROUP, History, Patience, World, WorldOptions, ZONE},
};
use miglet_operator::crd::Phase;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, SemaphorePermit};

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// An emulated boot takes half a minute; longer where the machine has other work.
const PATIENCE: Patience = Patience(Duration::from_secs(240));
/// VMs at a time.
static ROOM: Semaphore = Semaphore::const_new(2);

/// A world of one VM with an idle runner.
struct Scene {
    world: World,
    machines: Arc<VmMachines>,
    history: History,
    archive: RunnerArchive,
    vm: String,
    _room: SemaphorePermit<'static>,
}

impl Scene {
    /// Boots a VM and waits until its runner is idle; `None` where VMs cannot be had.
    async fn open() -> Result<Option<Self>> {
        if !available()? {
            return Ok(None);
        }
        let room = ROOM.acquire().await?;
        let disk = tokio::task::spawn_blocking(|| Disk::obtain(&Package::obtain()?)).await??;
        let machines = Arc::new(VmMachines::new(disk)?);
        let archive = RunnerArchive::serve().await?;
        let options = WorldOptions {
            machines: Some(machines.clone()),
            group: archive.wanted(GroupSpec::zonal(GROUP, ZONE)),
            github: GithubOptions {
                poll: Duration::from_secs(1),
                offline_after: Duration::from_secs(20),
                lost_after: Duration::from_secs(20),
                ..GithubOptions::default()
            },
            delays: Delays { preemption: Duration::from_secs(30), ..Delays::default() },
            ..WorldOptions::default()
        };
        let world = World::start(options).await?;
        let patch = json!({"spec": {"lifecycle": {"launchTimeoutSeconds": 600, "registrationTimeoutSeconds": 600}}});
        world.apply_pool("linux", 1, patch).await?;
        let scene = async {
            let what = "an idle runner on a VM";
            let one = |idle: &std::result::Result<Vec<String>, _>| idle.as_ref().is_ok_and(|idle| idle.len() == 1);
            let idle = PATIENCE.until(what, || world.in_phase(Phase::Idle), one).await??;
            Result::Ok(idle.into_iter().next().ok_or("nobody")?)
        };
        let vm = match scene.await {
            Ok(vm) => vm,
            Err(error) => {
                let consoles =
                    world.compute.created_names().iter().map(|name| machines.console(name)).collect::<String>();
                return Err(format!("{error}\n{}\n{consoles}", world.operator_logs()).into());
            }
        };
        let history = world.record().await?;
        Ok(Some(Self { world, machines, history, archive, vm, _room: room }))
    }

    /// Runs these steps to their end.
    async fn job(&self, steps: &str) -> Result<JobState> {
        let id = self.world.github.queue_job(World::job(steps));
        self.ended(id).await
    }

    async fn ended(&self, id: JobId) -> Result<JobState> {
        let ended = self.world.github.wait_job(id, PATIENCE.0).await;
        Ok(ended.map_err(|error| self.explained(&error.to_string()))?)
    }

    /// The last that was seen of the RunnerVM, once it is gone.
    async fn epitaph(&self) -> Result<Value> {
        let api = self.world.api::<miglet_operator::crd::RunnerVm>();
        let gone = |seen: &std::result::Result<Option<_>, _>| seen.as_ref().is_ok_and(Option::is_none);
        let seen = PATIENCE.until("the RunnerVM to go", || api.get_opt(&self.vm), gone).await;
        seen.map_err(|error| self.explained(&error.to_string()))??;
        Ok(self.history.of("RunnerVM", &self.vm).pop().unwrap_or_default())
    }

    fn explained(&self, error: &str) -> String {
        format!("{error}\n{}\n{}", self.world.operator_logs(), self.machines.console(&self.vm))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_boots_installs_a_runner_runs_a_job_as_an_unprivileged_user_and_goes_off() -> Result {
    let Some(scene) = Scene::open().await? else { return Ok(()) };
    assert_eq!(scene.archive.fetched(), 1);
    let job = scene.job("echo user=$(id -un) uid=$(id -u)").await?;
    assert_eq!(job.conclusion, Some(Conclusion::Succeeded), "{}", scene.explained(&job.output));
    let last = scene.epitaph().await?;
    assert_eq!(last.pointer("/status/job/result"), Some(&json!("Succeeded")), "{last:#}");
    Ok(())
}
