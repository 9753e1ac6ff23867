//! The agent as a library, in a process that is not its own.

use std::sync::Arc;

use miglet_agent::{
    Ended, Ports,
    installation::{InstallError, Installation},
    logging::Log,
    machine,
    preparation::{Prepared, Provider},
    runner::{Phase, Runner},
    settings::{self, Flags},
    supervisor::{Launch, Registration, Supervisor, SupervisorError},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::world::{RUNNER, World};

/// Any runner will do.
struct Anything;

#[tonic::async_trait]
impl Provider for Anything {
    async fn provide(&self, _: &Installation) -> Result<Prepared, InstallError> {
        Ok(Prepared::default())
    }
}

/// A supervisor that runs nothing.
struct Simulated(watch::Sender<Option<Runner>>);

#[tonic::async_trait]
impl Supervisor for Simulated {
    fn snapshots(&self) -> watch::Receiver<Option<Runner>> {
        self.0.subscribe()
    }
    async fn start(&self, launch: Launch) -> Result<(), SupervisorError> {
        let name = launch.registration.runner_name;
        self.0.send_replace(Some(Runner { name, phase: Phase::Listening, ..Runner::default() }));
        Ok(())
    }
    async fn resume(&self, _: Registration) {}
    async fn stop_idle(&self) {}
    async fn interrupt(&self) {}
    async fn kill(&self) {}
}

#[tokio::test]
async fn many_agents_can_live_in_one_process() {
    let world = World::new(RUNNER).await;
    let mut operator = world.operator().await;
    let stop = CancellationToken::new();
    world.introduce(&operator);
    let mut agents = tokio::task::JoinSet::new();
    for n in 0..20 {
        let at = |name: &str| Some(world.dir.path().join(format!("{n}{name}")).display().to_string());
        let directories = [("state-dir", at("s")), ("data-dir", at("d")), ("runner-dir", at("r"))];
        let flags = Flags::of(directories.into_iter().chain([("metadata-host", Some(world.metadata_host.clone()))]));
        let settings = settings::load(&flags, &settings::Environment::new()).await.unwrap();
        let supervisor = Arc::new(Simulated(watch::Sender::new(None)));
        let ports =
            Ports { supervisor, machine: Arc::new(machine::Process), runners: Arc::new(Anything), log: Log::default() };
        agents.spawn(miglet_agent::run(settings, ports, stop.clone()));
    }
    let mut keys = std::collections::HashSet::new();
    for _ in 0..20 {
        let session = operator.idle_session().await;
        keys.insert(session.thumbprint.clone());
    }
    assert_eq!(keys.len(), 20);
    stop.cancel();
    while let Some(ended) = agents.join_next().await {
        assert_eq!(ended.unwrap().unwrap(), Ended::Detached);
    }
}
