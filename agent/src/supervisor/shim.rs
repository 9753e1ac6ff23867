//! The real supervisor: `miglet shim`, a process of its own that outlives this agent.
//!
//! Following is level-based. Each snapshot from the socket is the whole truth; when the socket ends, the record on disk
//! is. A shim that vanished without writing an end leaves a runner nobody waits for: it is left alone until it ends
//! by itself or by order, because a job may be in it, and then counts as failed with its result unknown.

use std::{
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use rustix::process::Signal;
use secrecy::{ExposeSecret, SecretString};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout},
};

use super::{Launch, Registration, Supervisor, SupervisorError, orphan::Orphan};
use crate::{
    durable,
    error::in_full,
    lines::Lines,
    machine::{Jobs, Machine},
    paths::Paths,
    record,
    runner::Runner,
    settings::Settings,
    shim::{Assignment, Order},
};

/// Between two looks at a shim that does not answer.
const RETRY: Duration = Duration::from_millis(50);
/// A shim writes its first record within milliseconds of its start.
const FIRST_RECORD_DEADLINE: Duration = Duration::from_secs(5);
/// A shim takes its registration as soon as it runs.
const HANDOVER_DEADLINE: Duration = Duration::from_secs(10);
/// How long the runner may take to die when the machine goes off.
const KILL_DEADLINE: Duration = Duration::from_secs(5);
/// A snapshot holds a dozen short lines.
const SNAPSHOT_LIMIT: usize = 128 * 1024;

/// Runs the runner under `miglet shim`.
pub struct Shim {
    paths: Paths,
    program: PathBuf,
    jobs: Jobs,
    machine: Arc<dyn Machine>,
    publish: watch::Sender<Option<Runner>>,
    orders: mpsc::Sender<Order>,
    unfollowed: Mutex<Option<mpsc::Receiver<Order>>>,
}

impl Shim {
    /// The one of this machine.
    #[must_use]
    pub fn new(settings: &Settings, machine: Arc<dyn Machine>) -> Self {
        let (orders, receiver) = mpsc::channel(8);
        let (paths, program, jobs) = (settings.paths.clone(), settings.program.clone(), settings.jobs.clone());
        let publish = watch::channel(None).0;
        Self { paths, program, jobs, machine, publish, orders, unfollowed: Mutex::new(Some(receiver)) }
    }

    /// Follows the one shim there is, for as long as it lives.
    fn follow(&self, registration: Registration) {
        if let Some(orders) = self.unfollowed.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let follower = Follower { paths: self.paths.clone(), publish: self.publish.clone(), orders, registration };
            tokio::spawn(follower.follow());
        }
    }

    fn assign(&self, Launch { registration, scripts, .. }: &Launch) -> io::Result<()> {
        let assignment = Assignment {
            registration: registration.clone(),
            data_dir: self.paths.data.clone(),
            runner_dir: registration.runner.dir.clone(),
            user: self.machine.runner_user(&self.jobs).map(str::to_owned),
            hooks: scripts.clone(),
        };
        durable::write(&self.paths.assignment(), &serde_json::to_vec(&assignment)?)
    }

    /// As soon as the shim takes it.
    async fn hand_over(&self, jit_config: &SecretString) -> io::Result<()> {
        let socket = self.paths.handover_socket();
        let mut stream = loop {
            if let Ok(stream) = UnixStream::connect(&socket).await {
                break stream;
            }
            // It gave up before it could take anything.
            if let Ok(Some(Runner { exit: Some(exit), .. })) = record::read(&self.paths.runner_record()) {
                return Err(io::Error::other(exit.detail));
            }
            sleep(RETRY).await;
        };
        stream.write_all(jit_config.expose_secret().as_bytes()).await?;
        stream.write_all(b"\n").await?;
        stream.shutdown().await
    }
}

#[async_trait]
impl Supervisor for Shim {
    fn snapshots(&self) -> watch::Receiver<Option<Runner>> {
        self.publish.subscribe()
    }

    async fn start(&self, launch: Launch) -> Result<(), SupervisorError> {
        let failed = |action| move |source| SupervisorError { action, source };
        self.assign(&launch).map_err(failed("tell the runner's supervisor its work"))?;
        let started = self.machine.start_shim(&self.program, &self.paths.state).await;
        started.map_err(|error| failed("run the runner")(io::Error::other(in_full(&error))))?;
        self.follow(launch.registration);
        let handed = timeout(HANDOVER_DEADLINE, self.hand_over(&launch.jit_config)).await;
        let handed = handed.unwrap_or_else(|_| Err(io::Error::other(last_words(&self.paths))));
        handed.map_err(failed("hand the registration to the runner's supervisor"))
    }

    async fn resume(&self, registration: Registration) {
        // At once, so that the first hello of a restarted agent already tells of the job.
        if let Ok(Some(runner)) = record::read(&self.paths.runner_record()) {
            self.publish.send_replace(Some(runner));
        }
        self.follow(registration);
    }

    async fn stop_idle(&self) {
        // Full only when the shim stopped reading: the order is repeated by the operator.
        self.orders.try_send(Order::InterruptIfIdle).ok();
    }

    async fn interrupt(&self) {
        self.orders.try_send(Order::Interrupt).ok();
    }

    async fn kill(&self) {
        self.orders.try_send(Order::Kill).ok();
        let shim = || self.publish.borrow().as_ref().and_then(|runner| runner.shim).filter(|shim| shim.is_alive());
        let deadline = Instant::now() + KILL_DEADLINE;
        while shim().is_some() && Instant::now() < deadline {
            sleep(RETRY).await;
        }
        let listener = self.publish.borrow().as_ref().and_then(|runner| runner.listener);
        for process in [shim(), listener].into_iter().flatten() {
            process.signal(Signal::KILL);
        }
    }
}

struct Follower {
    paths: Paths,
    publish: watch::Sender<Option<Runner>>,
    orders: mpsc::Receiver<Order>,
    registration: Registration,
}

impl Follower {
    async fn follow(mut self) {
        let begun = Instant::now();
        loop {
            if let Ok(stream) = UnixStream::connect(self.paths.shim_socket()).await {
                // However the connection ended, the record tells what is.
                self.relay(stream).await.ok();
            }
            if self.publish.borrow().as_ref().is_some_and(|runner| runner.exit.is_some()) {
                return;
            }
            match record::read(&self.paths.runner_record()) {
                Ok(Some(runner)) if runner.exit.is_some() => return self.tell(runner),
                Ok(Some(runner)) if runner.shim.is_some_and(|shim| !shim.is_alive()) => {
                    return self.outlast(runner).await;
                }
                Ok(Some(_)) => {}
                Ok(None) if begun.elapsed() < FIRST_RECORD_DEADLINE => {}
                Ok(None) => return self.tell(self.unstarted().failed(&last_words(&self.paths))),
                Err(error) => {
                    tracing::warn!(%error, "cannot read the runner's record");
                    if begun.elapsed() > FIRST_RECORD_DEADLINE {
                        return self.tell(self.unstarted().failed(&error.to_string()));
                    }
                }
            }
            sleep(RETRY).await;
        }
    }

    /// Passes snapshots up and orders down until the socket ends.
    async fn relay(&mut self, mut stream: UnixStream) -> io::Result<()> {
        let (mut lines, mut buffer) = (Lines::new(SNAPSHOT_LIMIT), vec![0; 4096]);
        let (mut reader, mut writer) = stream.split();
        loop {
            tokio::select! {
                count = reader.read(&mut buffer) => {
                    let bytes = buffer.get(..count?).filter(|b| !b.is_empty()).ok_or(io::ErrorKind::UnexpectedEof)?;
                    lines.feed(bytes, |line| match serde_json::from_slice(line) {
                        Ok(runner) => self.tell(runner),
                        Err(error) => tracing::warn!(%error, "the supervisor sent something unreadable"),
                    });
                }
                order = self.orders.recv() => {
                    let mut line = serde_json::to_vec(&order.ok_or(io::ErrorKind::BrokenPipe)?)?;
                    line.push(b'\n');
                    writer.write_all(&line).await?;
                }
            }
        }
    }

    /// The shim is gone without an end. The listener may still run a job: wait for it, as long as it takes.
    async fn outlast(&mut self, runner: Runner) {
        self.tell(runner.clone());
        if let Some(orphan) = Orphan::of(&runner) {
            orphan.outlast(&mut self.orders).await;
        }
        // It may have written its end between our look at the record and at the process.
        match record::read(&self.paths.runner_record()) {
            Ok(Some(ended)) if ended.exit.is_some() => self.tell(ended),
            _ => self.tell(runner.failed("the runner's supervisor died; how the runner ended is unknown")),
        }
    }

    fn unstarted(&self) -> Runner {
        let Registration { command_id, runner_name, .. } = self.registration.clone();
        Runner { command_id, name: runner_name, ..Runner::default() }
    }

    /// Never anything after an end: where the disk is full, the record is older than what the socket said.
    fn tell(&self, runner: Runner) {
        self.publish.send_if_modified(|current| {
            if current.as_ref().is_some_and(|known| known.exit.is_some()) {
                return false;
            }
            let changed = current.as_ref() != Some(&runner);
            *current = Some(runner);
            changed
        });
    }
}

/// What a shim that left no record said last.
fn last_words(paths: &Paths) -> String {
    let log = std::fs::read_to_string(paths.shim_log()).unwrap_or_default();
    let last = log.lines().next_back().map(|line| format!(": {line}")).unwrap_or_default();
    format!("the runner was never started{last}")
}
