//! A world of one real VM.

use std::{collections::BTreeMap, fmt::Debug, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::ConfigMap;
use miglet_e2e::{
    compute::GroupSpec,
    github::{GithubOptions, Job, JobId, JobState},
    vm::{Disk, Package, VmMachines, available, runner_archive},
    world::{GROUP, History, Patience, World, WorldOptions, ZONE},
};
use miglet_operator::crd::{Phase, RunnerVm};
use serde_json::{Value, json};
use tokio::sync::{OnceCell, Semaphore, SemaphorePermit};

pub(crate) type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// How long anything may take where each instruction is emulated and the machine has other work.
pub(crate) const PATIENCE: Patience = Patience(Duration::from_secs(240));
/// VMs at a time.
static ROOM: Semaphore = Semaphore::const_new(2);
/// Made once for all of them.
static DISK: OnceCell<Disk> = OnceCell::const_new();

/// A world with one VM, whose runner is idle.
pub(crate) struct Scene {
    pub(crate) world: World,
    /// The VM's name.
    pub(crate) vm: String,
    machines: Arc<VmMachines>,
    history: History,
    _room: SemaphorePermit<'static>,
}

impl Scene {
    /// Boots a VM, whose image has a runner, and waits until that is idle; `None` where VMs cannot be had.
    pub(crate) async fn open() -> Result<Option<Self>> {
        Self::of(|group| group).await
    }

    /// As [`Self::open`], with no runner where the agent looks for the image's. It has it from GitHub, by the operator's
    /// word.
    pub(crate) async fn without_runner() -> Result<Option<Self>> {
        Self::of(|group| group.metadata("miglet-runner-dir", "/opt/none")).await
    }

    async fn of(template: impl FnOnce(GroupSpec) -> GroupSpec) -> Result<Option<Self>> {
        if !available()? {
            return Ok(None);
        }
        let room = ROOM.acquire().await?;
        let disk = DISK.get_or_try_init(async || {
            let made = tokio::task::spawn_blocking(|| Disk::obtain(&Package::obtain()?)).await;
            Result::Ok(made??)
        });
        let machines = Arc::new(VmMachines::new(disk.await?.clone())?);
        let archive = tokio::task::spawn_blocking(runner_archive).await??;
        let github = GithubOptions {
            poll: Duration::from_secs(1),
            // A slow machine is not a lost one: a listener that floods its own output does nothing else meanwhile.
            offline_after: Duration::from_secs(60),
            lost_after: Duration::from_secs(60),
            ..GithubOptions::default()
        };
        let group = template(GroupSpec::zonal(GROUP, ZONE));
        let options = WorldOptions { machines: Some(machines.clone()), group, github, ..WorldOptions::default() };
        let world = World::start(options).await?;
        world.github.offer_runner(archive);
        // Together a day: what the machine's last resort waits for.
        let lifecycle = json!({"launchTimeoutSeconds": 600, "registrationTimeoutSeconds": 600,
            "maxLifetimeSeconds": 43200, "terminationGracePeriodSeconds": 43200});
        world.apply_pool("linux", 1, json!({"spec": {"lifecycle": lifecycle}})).await?;
        let vm = match idle(&world).await {
            Ok(vm) => vm,
            Err(error) => {
                let consoles: String = world.compute.created_names().iter().map(|vm| machines.console(vm)).collect();
                return Err(format!("{error}\n{}\n{consoles}", world.operator_logs()).into());
            }
        };
        // This VM is all there will be: its successor would only take the processor from it.
        world.kubectl(&["patch", "rpool", "linux", "--type=merge", "--patch", r#"{"spec":{"paused":true}}"#]).await?;
        let history = world.record().await?;
        Ok(Some(Self { world, vm, machines, history, _room: room }))
    }

    /// Sends a job and waits until the operator shows it.
    pub(crate) async fn busy(&self, steps: &str) -> Result<JobId> {
        self.busy_with(World::job(steps)).await
    }

    /// As [`Self::busy`].
    pub(crate) async fn busy_with(&self, job: Job) -> Result<JobId> {
        let id = self.world.github.queue_job(job);
        let here = |busy: &std::result::Result<Vec<String>, kube::Error>| busy.as_ref().is_ok_and(|b| !b.is_empty());
        self.until("the VM to be busy", || self.world.in_phase(Phase::Busy), here).await??;
        Ok(id)
    }

    /// Waits until the job's own steps run, which say so with a file: the operator knows of a job sooner.
    pub(crate) async fn begun(&self) -> Result {
        let look = async || self.root("ls ~runner/begun").await.is_ok();
        self.until("the job's first step", look, |begun| *begun).await.map(drop)
    }

    /// Waits for a job's end.
    pub(crate) async fn ended(&self, id: JobId) -> Result<JobState> {
        Ok(self.world.github.wait_job(id, PATIENCE.0).await.map_err(|error| self.explained(&error.to_string()))?)
    }

    /// Waits; when in vain, says everything that is known.
    pub(crate) async fn until<T: Debug, F: Future<Output = T>>(
        &self,
        what: &str,
        look: impl FnMut() -> F,
        good: impl Fn(&T) -> bool,
    ) -> Result<T> {
        Ok(PATIENCE.until(what, look, good).await.map_err(|error| self.explained(&error.to_string()))?)
    }

    /// Runs a line of bash as root, successfully; what it said.
    pub(crate) async fn root(&self, line: &str) -> Result<String> {
        let said = self.machines.shell(&self.vm).run(line, Duration::from_secs(60)).await?;
        if said.code == 0 { Ok(said.text.trim().to_owned()) } else { Err(format!("{line}: {said:?}").into()) }
    }

    /// Takes the way to the operator from the VM, and what is in it: also of an agent that is no more.
    pub(crate) async fn cut_off(&self) -> Result {
        const CUT: &str = "endpoint=$(miglet config | grep ^endpoint); nft add table ip cut; \
                           nft add chain ip cut out '{ type filter hook output priority filter; }'; \
                           nft add rule ip cut out tcp dport ${endpoint##*:} drop";
        self.root(CUT).await.map(drop)
    }

    /// Gives it back.
    pub(crate) async fn reconnect(&self) -> Result {
        self.root("nft delete table ip cut").await.map(drop)
    }

    /// Kills the agent, and waits for the next one; its process.
    pub(crate) async fn kill_agent(&self) -> Result<String> {
        let killed = self.agent().await;
        self.root("systemctl kill --signal=KILL --kill-who=main miglet.service").await?;
        self.next_agent(&killed).await
    }

    /// Waits for an agent that is another process than this one.
    pub(crate) async fn next_agent(&self, old: &str) -> Result<String> {
        let other = |pid: &String| !pid.is_empty() && pid != "0" && pid != old;
        self.until("another agent", async || self.agent().await, other).await
    }

    /// The agent's process, as far as the service manager knows.
    async fn agent(&self) -> String {
        self.root("systemctl show --property MainPID --value miglet.service").await.unwrap_or_default()
    }

    /// Whether the VM has power.
    pub(crate) fn is_on(&self) -> bool {
        self.machines.is_on(&self.vm)
    }

    /// What the VM wrote to its console.
    pub(crate) fn console(&self) -> String {
        self.machines.console(&self.vm)
    }

    /// The last that was seen of the RunnerVM, once it is gone, and its instance and registration with it.
    pub(crate) async fn epitaph(&self) -> Result<Value> {
        let api = self.world.api::<RunnerVm>();
        let gone = |seen: &std::result::Result<Option<_>, kube::Error>| seen.as_ref().is_ok_and(Option::is_none);
        self.until("the RunnerVM to go", || api.get_opt(&self.vm), gone).await??;
        assert!(!self.is_on(), "{}", self.explained("the VM still runs"));
        self.world.check_nothing_left().await?;
        self.world.check_nothing_twice()?;
        Ok(self.history.of("RunnerVM", &self.vm).pop().unwrap_or_default())
    }

    /// The texts that the VM's agent collects when somebody asks it to.
    pub(crate) async fn diagnostics(&self) -> Result<BTreeMap<String, String>> {
        self.world.kubectl(&["annotate", "rvm", &self.vm, "miglet.dev/collect-diagnostics=1"]).await?;
        let name = format!("{}-diagnostics-1", self.vm);
        self.event(&["DiagnosticsCollected", &name]).await?;
        Ok(self.world.api::<ConfigMap>().get(&name).await?.data.unwrap_or_default())
    }

    /// Waits for an event that contains all of these words, and the VM's name.
    pub(crate) async fn event(&self, words: &[&str]) -> Result<String> {
        let fits = |event: &&String| event.contains(&self.vm) && words.iter().all(|word| event.contains(word));
        let look = async || self.world.events().await.unwrap_or_default();
        let events = self.until(&format!("an event with {words:?}"), look, |e| e.iter().any(|e| fits(&e))).await?;
        Ok(events.iter().find(fits).cloned().unwrap_or_default())
    }

    /// The error, and what operator and VM have to say.
    pub(crate) fn explained(&self, error: &str) -> String {
        format!("{error}\n{}\n{}", self.world.operator_logs(), self.console())
    }
}

async fn idle(world: &World) -> Result<String> {
    let one = |idle: &std::result::Result<Vec<String>, kube::Error>| idle.as_ref().is_ok_and(|idle| idle.len() == 1);
    let idle = PATIENCE.until("an idle runner on a VM", || world.in_phase(Phase::Idle), one).await??;
    Ok(idle.into_iter().next().ok_or("nobody")?)
}
