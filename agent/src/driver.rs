//! The one task that owns the state: takes inputs, asks the plan, carries out its effects.

use std::{collections::VecDeque, io, sync::Arc};

use miglet_proto::v1;
use secrecy::ExposeSecret;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::{
    durable, jit,
    key::{AgentKey, KeyError},
    machine::{Machine, MachineError},
    paths::{Paths, make_dir},
    plan::{Answer, Effect, Input, State, plan},
    session::Session,
    settings::{Settings, Sourced},
    status::{self, Status},
    supervisor::{Launch, Registration, Shim, Supervisor},
    tls::{Dialer, TlsError},
    wire,
};

/// What the agent acts on.
#[derive(Clone)]
pub struct Ports {
    /// Runs the runner.
    pub supervisor: Arc<dyn Supervisor>,
    /// The machine itself.
    pub machine: Arc<dyn Machine>,
}

impl Ports {
    /// The real ones.
    #[must_use]
    pub fn real(settings: &Settings) -> Self {
        let supervisor = Arc::new(Shim::new(settings.paths.clone(), settings.program.clone()));
        Self { supervisor, machine: settings.machine.machine().into() }
    }
}

/// How an agent ended without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Told to stop: shim and job go on, the next agent finds them.
    Detached,
    /// The machine was turned off.
    PoweredOff,
}

/// The agent cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The file system said no.
    #[error("could not use {path}")]
    Io {
        /// What.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// No key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// No TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// No power-off.
    #[error(transparent)]
    Machine(#[from] MachineError),
}

/// Runs an agent until it is told to stop or its machine goes off. Many can run in one process, each with its own
/// directories and ports.
///
/// # Errors
/// When it cannot start, or cannot turn the machine off.
pub async fn run(settings: Settings, ports: Ports, shutdown: CancellationToken) -> Result<Ended, AgentError> {
    let failed = |path: &std::path::Path| {
        let path = path.display().to_string();
        move |source| AgentError::Io { path, source }
    };
    make_dir(&settings.paths.state, 0o700).map_err(failed(&settings.paths.state))?;
    let key = AgentKey::load_or_create(&settings.paths.key())?;
    let registration = registered(&settings.paths).map_err(failed(&settings.paths.registration()))?;
    if let Some(registration) = registration.clone() {
        ports.supervisor.resume(registration).await;
    }
    let runner = ports.supervisor.snapshots().borrow().clone();
    let state = State::new(registration, runner);
    let statuses = watch::Sender::new(Status::of(&state, &settings.sources));
    let serving = status::serve(&settings.paths.agent_socket(), statuses.subscribe())
        .map_err(failed(&settings.paths.agent_socket()))?;
    let (inputs_in, inputs) = mpsc::channel(64);
    let (answers, answers_out) = mpsc::channel(64);
    let reports = watch::Sender::new(wire::report(&state));
    let session = Session {
        audience: format!("{}/{}", settings.audience, key.thumbprint()),
        dialer: Dialer::new(&settings, &key)?,
        reports: reports.subscribe(),
        answers: answers_out,
        inputs: inputs_in,
        settings: settings.clone(),
    };
    let tasks = Tasks { serving, session: tokio::spawn(session.run()) };
    let Settings { paths, sources, .. } = settings;
    let driver = Driver { paths, sources, ports, state, reports, statuses, answers: Some(answers), tasks };
    driver.drive(inputs, shutdown).await
}

/// The registration this instance was given before. An unreadable marker counts as one: there is never a second.
fn registered(paths: &Paths) -> io::Result<Option<Registration>> {
    let marker = durable::read(&paths.registration())?;
    Ok(marker.map(|bytes| serde_json::from_slice(&bytes).unwrap_or_default()))
}

/// Ends with the driver.
struct Tasks {
    serving: JoinHandle<()>,
    session: JoinHandle<()>,
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.serving.abort();
        self.session.abort();
    }
}

struct Driver {
    paths: Paths,
    sources: Vec<Sourced>,
    ports: Ports,
    state: State,
    reports: watch::Sender<v1::Report>,
    statuses: watch::Sender<Status>,
    /// Gone once goodbye was said.
    answers: Option<mpsc::Sender<Answer>>,
    tasks: Tasks,
}

impl Driver {
    async fn drive(mut self, mut inputs: mpsc::Receiver<Input>, stop: CancellationToken) -> Result<Ended, AgentError> {
        let mut snapshots = self.ports.supervisor.snapshots();
        snapshots.mark_changed();
        loop {
            let input = tokio::select! {
                () = stop.cancelled() => return Ok(Ended::Detached),
                Ok(()) = snapshots.changed() => snapshots.borrow_and_update().clone().map(|r| Input::Runner(Box::new(r))),
                Some(input) = inputs.recv() => Some(input),
            };
            let Some(input) = input else { continue };
            if self.step(input).await {
                return self.power_off().await;
            }
        }
    }

    /// One input and all that follows from it; true when the machine is to go off.
    async fn step(&mut self, input: Input) -> bool {
        let mut queue = VecDeque::from([input]);
        let mut power_off = false;
        while let Some(input) = queue.pop_front() {
            let (state, effects) = plan(std::mem::take(&mut self.state), input);
            self.state = state;
            self.publish();
            for effect in effects {
                match effect {
                    Effect::Answer(answer) => self.answer(answer),
                    Effect::Launch(launch) => queue.push_back(self.launch(launch).await),
                    Effect::StopIdle => self.ports.supervisor.stop_idle().await,
                    Effect::PowerOff => power_off = true,
                }
            }
        }
        power_off
    }

    fn publish(&self) {
        let report = wire::report(&self.state);
        self.reports.send_if_modified(|current| {
            let changed = *current != report;
            *current = report;
            changed
        });
        self.statuses.send_replace(Status::of(&self.state, &self.sources));
    }

    fn answer(&self, answer: Answer) {
        tracing::info!(command = answer.command_id, refused = answer.refusal, "command answered");
        if let Some(answers) = &self.answers {
            // Never waits: session and driver would wait for each other. An answer too many is asked for again.
            answers.try_send(answer).ok();
        }
    }

    /// The marker comes first: a crash in between costs this machine, and so does a bad registration; never is there a
    /// second one.
    async fn launch(&self, launch: Launch) -> Input {
        let command_id = launch.registration.command_id.clone();
        let marker = serde_json::to_vec(&launch.registration).unwrap_or_default();
        if let Err(error) = durable::create(&self.paths.registration(), &marker) {
            return Input::LaunchFailed { command_id, error: format!("could not note the registration: {error}") };
        }
        if let Err(error) = jit::check(launch.jit_config.expose_secret()) {
            return Input::LaunchFailed { command_id, error: error.to_string() };
        }
        match self.ports.supervisor.start(launch).await {
            Ok(()) => Input::Launched { command_id },
            Err(error) => Input::LaunchFailed { command_id, error: format!("{error}: {}", error.source) },
        }
    }

    /// What was answered and reported reaches the operator first, within its bound.
    async fn power_off(mut self) -> Result<Ended, AgentError> {
        tracing::info!("powering off");
        self.answers = None;
        let goodbye = tokio::time::timeout(std::time::Duration::from_secs(3), &mut self.tasks.session);
        goodbye.await.ok();
        self.ports.supervisor.kill().await;
        self.ports.machine.power_off().await?;
        Ok(Ended::PoweredOff)
    }
}
