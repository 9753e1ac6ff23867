//! Machines without processes: each runs the real agent as a task of this process, with a runner that is a script.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use miglet_agent::{
    AgentError, Ended, Ports,
    clock::unix_ms,
    installation::{InstallError, Installation},
    logging::Log,
    machine::Process,
    preparation::{Prepared, Provider},
    runner::{Exit, ExitKind, Job, JobResult, Phase, Runner},
    settings::{self, Flags},
    supervisor::{Launch, Registration, Supervisor, SupervisorError},
};
use tokio::{
    sync::{Semaphore, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::compute::{Boot, Machine, Machines};

/// How long a simulated job takes.
const JOB: Duration = Duration::from_secs(1);

/// The machines, and the jobs there are for their runners.
pub(super) struct Crowd {
    root: tempfile::TempDir,
    jobs: Arc<Semaphore>,
}

impl Crowd {
    pub(super) fn new() -> std::io::Result<Self> {
        // Short, because sockets live below it and their paths are bounded.
        let root = tempfile::Builder::new().prefix("mcr").tempdir()?;
        Ok(Self { root, jobs: Arc::new(Semaphore::new(0)) })
    }

    /// Gives one job each to so many idle runners.
    pub(super) fn queue(&self, jobs: usize) {
        self.jobs.add_permits(jobs);
    }
}

#[async_trait]
impl Machines for Crowd {
    async fn boot(&self, vm: Boot) -> Box<dyn Machine> {
        let directory = self.root.path().join(vm.id.to_string());
        let stop = CancellationToken::new();
        let agent = tokio::spawn(agent(vm, directory, Arc::clone(&self.jobs), stop.clone()));
        Box::new(Member { stop, agent: Some(agent) })
    }
}

struct Member {
    stop: CancellationToken,
    agent: Option<JoinHandle<()>>,
}

#[async_trait]
impl Machine for Member {
    async fn power_off(&mut self) {
        self.stop.cancel();
        if let Some(agent) = self.agent.take() {
            agent.abort();
            // Aborted is as dead as ended.
            agent.await.ok();
        }
    }

    async fn exited(&mut self) {
        match &mut self.agent {
            Some(agent) => agent.await.unwrap_or_default(),
            None => std::future::pending().await,
        }
        self.agent = None;
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(agent) = &self.agent {
            agent.abort();
        }
    }
}

async fn agent(vm: Boot, directory: PathBuf, jobs: Arc<Semaphore>, stop: CancellationToken) {
    match Box::pin(run(&vm, &directory, jobs, stop)).await {
        Ok(ended) => tracing::debug!(instance = vm.name, ?ended, "an agent ended"),
        Err(error) => tracing::error!(instance = vm.name, error, "an agent failed"),
    }
}

async fn run(vm: &Boot, directory: &Path, jobs: Arc<Semaphore>, stop: CancellationToken) -> Result<Ended, String> {
    let at = |name: &str| directory.join(name).display().to_string();
    let environment = [
        ("MIGLET_STATE_DIR", at("s")),
        ("MIGLET_DATA_DIR", at("d")),
        ("MIGLET_RUNNER_DIR", at("r")),
        ("GCE_METADATA_HOST", vm.metadata_host.to_string()),
    ];
    let environment = environment.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let mut settings = settings::load(&Flags::default(), &environment).await.map_err(|error| error.to_string())?;
    // Thousands of them on one disk.
    settings.spool_bytes = 64 * 1024;
    let supervisor = Arc::new(Scripted { state: watch::Sender::new(None), jobs });
    let ports = Ports { supervisor, machine: Arc::new(Process), runners: Arc::new(Anything), log: Log::default() };
    let ended: Result<Ended, AgentError> = Box::pin(miglet_agent::run(settings, ports, stop)).await;
    ended.map_err(|error| error.to_string())
}

/// A crowd has no runner to install.
struct Anything;

#[async_trait]
impl Provider for Anything {
    async fn provide(&self, _: &Installation) -> Result<Prepared, InstallError> {
        Ok(Prepared::default())
    }
}

/// A runner that listens at once, and runs the next job there is.
struct Scripted {
    state: watch::Sender<Option<Runner>>,
    jobs: Arc<Semaphore>,
}

#[async_trait]
impl Supervisor for Scripted {
    fn snapshots(&self) -> watch::Receiver<Option<Runner>> {
        self.state.subscribe()
    }

    async fn start(&self, launch: Launch) -> Result<(), SupervisorError> {
        let name = launch.registration.runner_name;
        self.state.send_replace(Some(Runner { name, phase: Phase::Listening, ..Runner::default() }));
        tokio::spawn(work(self.state.clone(), Arc::clone(&self.jobs)));
        Ok(())
    }

    async fn resume(&self, _: Registration) {}

    async fn stop_idle(&self) {}

    async fn interrupt(&self) {}

    async fn kill(&self) {}
}

/// Ends when its agent is gone and nobody looks any more.
async fn work(state: watch::Sender<Option<Runner>>, jobs: Arc<Semaphore>) {
    let taken = tokio::select! {
        () = state.closed() => return,
        taken = jobs.acquire() => taken,
    };
    let Ok(job) = taken else { return };
    job.forget();
    let change = |apply: fn(&mut Runner)| {
        state.send_modify(|runner| {
            if let Some(runner) = runner {
                apply(runner);
            }
        });
    };
    change(|runner| {
        runner.phase = Phase::Busy;
        runner.job = Some(Job { name: "build".to_owned(), started_unix_ms: unix_ms(), ..Job::default() });
    });
    tokio::time::sleep(JOB / 2).await;
    change(|runner| {
        if let Some(job) = &mut runner.job {
            job.identity.repository = "acme/app".to_owned();
            job.identity.run_id = 42;
        }
    });
    tokio::time::sleep(JOB / 2).await;
    change(|runner| {
        if let Some(job) = &mut runner.job {
            (job.completed_unix_ms, job.result) = (unix_ms(), Some(JobResult::Succeeded));
        }
    });
    tokio::time::sleep(JOB / 10).await;
    change(|runner| {
        runner.phase = Phase::Exited;
        runner.exit = Some(Exit { code: 0, kind: ExitKind::JobDone, detail: String::new() });
    });
}
