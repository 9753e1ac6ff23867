//! The one task that owns the state: takes inputs, asks the plan, carries out its effects.

mod effects;

use std::{
    collections::VecDeque,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use miglet_proto::v1;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    clock::{Moment, Now},
    durable,
    events::Told,
    health::Sampler,
    installation::Installation,
    key::{AgentKey, KeyError},
    last_resort,
    logging::Log,
    machine::{ALIVE_PERIOD, Jobs, Machine, MachineError},
    metadata::Metadata,
    notice,
    outbox::Outbox,
    paths::{Paths, make_dir},
    plan::{Answer, Effect, Input, State, plan},
    preparation::{Installer, Prepared, Provider},
    runner::Runner,
    session::Session,
    settings::Settings,
    status::{self, Status},
    supervisor::{Registration, Shim, Supervisor},
    tls::{Dialer, TlsError},
    wire,
};

/// A write takes a millisecond. What is told before its event is on the disk may be told twice as long, not more.
const RECORD_PATIENCE: Duration = Duration::from_secs(1);
/// How long a machine waits to go off until what it told was dealt with.
const FLUSH_PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks at disk and memory.
const LOOK: Duration = Duration::from_secs(10);
/// Nothing waits for the time.
const QUIET: Duration = Duration::from_secs(3600);

/// What the agent acts on.
#[derive(Clone)]
pub struct Ports {
    /// Runs the runner.
    pub supervisor: Arc<dyn Supervisor>,
    /// The machine itself.
    pub machine: Arc<dyn Machine>,
    /// Where runners come from.
    pub runners: Arc<dyn Provider>,
    /// What this process logs.
    pub log: Log,
}

impl Ports {
    /// The real ones.
    #[must_use]
    pub fn real(settings: &Settings, log: Log) -> Self {
        let machine: Arc<dyn Machine> = settings.machine.machine().into();
        let supervisor = Shim::new(settings, machine.clone());
        Self { supervisor: Arc::new(supervisor), machine, runners: Arc::new(Installer), log }
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
    make_dir(&settings.paths.state, 0o700).map_err(failed(&settings.paths.state))?;
    let key = AgentKey::load_or_create(&settings.paths.key())?;
    let registration = registered(&settings.paths).map_err(failed(&settings.paths.registration()))?;
    if let Some(registration) = registration.clone() {
        ports.supervisor.resume(registration).await;
    }
    let runner = ports.supervisor.snapshots().borrow().clone();
    let mut state = State::new(registration, runner, settings.limits);
    state.settings_level = Some(settings.log_level);
    let statuses = watch::Sender::new(Status::of(&state, &settings.sources));
    let spool = (settings.paths.event_spool(), settings.boot_id.clone(), settings.spool_bytes);
    let (outbox, told, recording) = Outbox::open(spool.0, spool.1, spool.2).await;
    let (inputs_in, inputs) = mpsc::channel(64);
    let serving = status::serve(&settings.paths.agent_socket(), statuses.subscribe(), inputs_in.clone())
        .map_err(failed(&settings.paths.agent_socket()))?;
    let noticing = tokio::spawn(notice::watch(Metadata::new(settings.metadata_host.clone()), inputs_in.clone()));
    let (answers, answers_out) = mpsc::channel(64);
    let (diagnostics, diagnostics_out) = mpsc::channel(4);
    let reports = watch::Sender::new(wire::report(&state));
    let heartbeats = watch::Sender::new(settings.heartbeat);
    let place = watch::Sender::new(settings.paths.runner.clone());
    let session = Session {
        audience: format!("{}/{}", settings.audience, key.thumbprint()),
        dialer: Dialer::new(&settings, &key)?,
        reports: reports.subscribe(),
        answers: answers_out,
        diagnostics: diagnostics_out,
        heartbeats: heartbeats.subscribe(),
        outbox: outbox.clone(),
        inputs: inputs_in.clone(),
        place: place.subscribe(),
        settings: settings.clone(),
    };
    let looking = tokio::spawn(look(Sampler::new(place.subscribe()), session.inputs.clone()));
    let lifetimes = watch::Sender::new(settings.maximum_lifetime);
    let limiting = tokio::spawn(last_resort::keep(ports.machine.clone(), lifetimes.subscribe()));
    let others = vec![serving, noticing, looking, recording, limiting];
    let tasks = Tasks { others, session: tokio::spawn(session.run()), preparing: None, collecting: None };
    let driver = Driver {
        base: settings.clone(),
        settings,
        ports,
        state,
        told,
        outbox,
        reports,
        statuses,
        heartbeats,
        place,
        lifetimes,
        answers: Some(answers),
        diagnostics,
        inputs: inputs_in,
        tasks,
    };
    driver.drive(inputs, shutdown).await
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> AgentError + use<> {
    let path = path.display().to_string();
    move |source| AgentError::Io { path, source }
}

/// The registration this instance was given before. An unreadable marker counts as one: there is never a second.
fn registered(paths: &Paths) -> io::Result<Option<Registration>> {
    let marker = durable::read(&paths.registration())?;
    Ok(marker.map(|bytes| serde_json::from_slice(&bytes).unwrap_or_default()))
}

/// Looks now and then how full the machine is.
async fn look(mut sampler: Sampler, inputs: mpsc::Sender<Input>) {
    let mut ticks = tokio::time::interval(LOOK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if inputs.send(Input::Figures(sampler.figures())).await.is_err() {
            return;
        }
    }
}

/// End with the driver.
struct Tasks {
    others: Vec<JoinHandle<()>>,
    session: JoinHandle<()>,
    /// What is prepared, and by whom.
    preparing: Option<((Installation, Jobs), JoinHandle<()>)>,
    collecting: Option<JoinHandle<()>>,
}

impl Drop for Tasks {
    fn drop(&mut self) {
        let preparing = self.preparing.iter().map(|(_, task)| task);
        for task in self.others.iter().chain([&self.session]).chain(preparing).chain(&self.collecting) {
            task.abort();
        }
    }
}

struct Driver {
    /// As they were at the start.
    base: Settings,
    /// With what the operator wants.
    settings: Settings,
    ports: Ports,
    state: State,
    told: Told,
    outbox: Outbox,
    reports: watch::Sender<v1::Report>,
    statuses: watch::Sender<Status>,
    heartbeats: watch::Sender<Duration>,
    /// Where the runner works.
    place: watch::Sender<PathBuf>,
    lifetimes: watch::Sender<Duration>,
    /// Gone once goodbye was said.
    answers: Option<mpsc::Sender<Answer>>,
    diagnostics: mpsc::Sender<v1::DiagnosticsChunk>,
    inputs: mpsc::Sender<Input>,
    tasks: Tasks,
}

impl Driver {
    async fn drive(mut self, mut inputs: mpsc::Receiver<Input>, stop: CancellationToken) -> Result<Ended, AgentError> {
        let mut snapshots = self.ports.supervisor.snapshots();
        snapshots.mark_changed();
        if self.state.prepared.is_none() && self.settings.pin_runner() {
            self.prepare();
        }
        // What an earlier agent did not get to tell.
        self.tell(State::default()).await;
        self.publish();
        let mut alive = tokio::time::interval(ALIVE_PERIOD);
        loop {
            let now = Instant::now();
            let wake_at = self.state.wake_at(now).unwrap_or(now + QUIET);
            let input = tokio::select! {
                _ = alive.tick() => {
                    self.ports.machine.alive();
                    None
                }
                () = sleep_until(wake_at) => Some(Input::Tick),
                () = stop.cancelled() => return self.detach(snapshots).await,
                Ok(()) = snapshots.changed() => snapshots.borrow_and_update().clone().map(|r| Input::Runner(Box::new(r))),
                Some(input) = inputs.recv() => Some(input),
            };
            let Some(input) = input else { continue };
            if self.step(input).await {
                return self.power_off().await;
            }
        }
    }

    /// A runner goes on without the agent. What is known of one that has ended goes to the operator first: this may be the
    /// machine's shutdown, and its disk goes with it.
    async fn detach(mut self, mut snapshots: watch::Receiver<Option<Runner>>) -> Result<Ended, AgentError> {
        let latest = snapshots.borrow_and_update().clone();
        if let Some(runner) = latest {
            self.step(Input::Runner(Box::new(runner))).await;
        }
        if self.state.registration.is_some() && !self.state.has_live_runner() {
            let flushed = self.outbox.until_acked(self.told.last(), FLUSH_PATIENCE).await;
            tracing::info!(flushed, "stopping after the runner's end");
        }
        Ok(Ended::Detached)
    }

    /// One input and all that follows from it; true when the machine is to go off.
    async fn step(&mut self, input: Input) -> bool {
        let mut queue = VecDeque::from([input]);
        let mut power_off = false;
        while let Some(input) = queue.pop_front() {
            let before = self.state.clone();
            let (state, effects) = plan(std::mem::take(&mut self.state), input, Now::read());
            self.state = state;
            self.tell(before).await;
            self.publish();
            for effect in effects {
                match effect {
                    Effect::Answer(answer) => self.answer(answer),
                    Effect::Launch(launch) => queue.push_back(self.launch(launch).await),
                    Effect::Interrupt => self.ports.supervisor.interrupt().await,
                    Effect::Configure { command_id, wanted } => queue.push_back(self.configure(command_id, wanted)),
                    Effect::Prepare => self.prepare(),
                    Effect::Collect { command_id } => self.collect(command_id),
                    Effect::StopIdle => self.ports.supervisor.stop_idle().await,
                    Effect::PowerOff => power_off = true,
                }
            }
        }
        power_off
    }

    /// Tells the events that follow from the state's change, and has them written before anything else follows from it.
    async fn tell(&mut self, mut before: State) {
        loop {
            self.state.spool_error = self.outbox.trouble();
            let events = self.told.due(&before, &self.state, Moment::now());
            if events.is_empty() {
                return;
            }
            for event in events {
                tracing::info!(kind = event.kind().as_str_name(), sequence = event.sequence, "event");
                self.outbox.put(event);
            }
            self.outbox.until_recorded(self.told.last(), RECORD_PATIENCE).await;
            before = self.state.clone();
        }
    }

    fn publish(&self) {
        let report = wire::report(&self.state);
        self.reports.send_if_modified(|current| {
            let changed = *current != report;
            *current = report;
            changed
        });
        self.statuses.send_replace(Status::of(&self.state, &self.settings.sources));
        self.ports.log.set_level(self.state.log_level());
        for (periods, period) in
            [(&self.heartbeats, self.settings.heartbeat), (&self.lifetimes, self.settings.maximum_lifetime)]
        {
            periods.send_if_modified(|current| std::mem::replace(current, period) != period);
        }
        if let Some(Prepared { dir, .. }) = self.state.prepared.as_ref().filter(|p| !p.dir.as_os_str().is_empty()) {
            self.place.send_if_modified(|current| (current != dir).then(|| current.clone_from(dir)).is_some());
        }
    }
}
