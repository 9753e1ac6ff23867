//! The real supervisor: `miglet shim`, a process of its own that outlives this agent.
//!
//! Following is level-based. Each snapshot from the socket is the whole truth; when the socket ends, the record on disk
//! is. A shim that vanished without writing an end leaves a runner nobody waits for: it is left alone until it ends
//! by itself, because a job may be in it, and then counts as failed with its result unknown.

use std::{
    io,
    path::PathBuf,
    process::Stdio,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use rustix::process::Signal;
use secrecy::ExposeSecret;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    process::Command,
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout},
};

use super::{Launch, Registration, Supervisor, SupervisorError};
use crate::{lines::Lines, paths::Paths, record, runner::Runner, shim::Order};

/// Between two looks at a shim that does not answer.
const RETRY: Duration = Duration::from_millis(50);
/// A shim writes its first record within milliseconds of its start.
const FIRST_RECORD_DEADLINE: Duration = Duration::from_secs(5);
/// How long the runner may take to die when the machine goes off.
const KILL_DEADLINE: Duration = Duration::from_secs(5);
/// A snapshot holds a dozen short lines.
const SNAPSHOT_LIMIT: usize = 128 * 1024;

/// Runs the runner under `miglet shim`.
#[derive(Debug)]
pub struct Shim {
    paths: Paths,
    program: PathBuf,
    publish: watch::Sender<Option<Runner>>,
    orders: mpsc::Sender<Order>,
    unfollowed: Mutex<Option<mpsc::Receiver<Order>>>,
}

impl Shim {
    /// `program` is the `miglet` executable.
    #[must_use]
    pub fn new(paths: Paths, program: PathBuf) -> Self {
        let (orders, receiver) = mpsc::channel(8);
        let publish = watch::channel(None).0;
        Self { paths, program, publish, orders, unfollowed: Mutex::new(Some(receiver)) }
    }

    /// Follows the one shim there is, for as long as it lives.
    fn follow(&self, registration: Registration) {
        if let Some(orders) = self.unfollowed.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let follower = Follower { paths: self.paths.clone(), publish: self.publish.clone(), orders, registration };
            tokio::spawn(follower.follow());
        }
    }

    fn command(&self, registration: &Registration) -> io::Result<Command> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.paths.state.join("shim.log"))?;
        let mut command = Command::new(&self.program);
        command.arg("shim");
        command.arg("--state-dir").arg(&self.paths.state).arg("--data-dir").arg(&self.paths.data);
        command.arg("--runner-dir").arg(&registration.runner.dir);
        command.arg("--command-id").arg(&registration.command_id).arg("--runner-name").arg(&registration.runner_name);
        // Not the agent's pipes: they die with it.
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::from(log));
        Ok(command)
    }
}

#[async_trait]
impl Supervisor for Shim {
    fn snapshots(&self) -> watch::Receiver<Option<Runner>> {
        self.publish.subscribe()
    }

    async fn start(&self, launch: Launch) -> Result<(), SupervisorError> {
        let failed = |action| move |source| SupervisorError { action, source };
        let mut command = self.command(&launch.registration).map_err(failed("open the supervisor's log"))?;
        let mut child = command.spawn().map_err(failed("start the runner's supervisor"))?;
        let stdin = child.stdin.take();
        tokio::spawn(async move { child.wait().await });
        self.follow(launch.registration);
        let mut stdin = stdin
            .ok_or(SupervisorError { action: "reach the supervisor", source: io::ErrorKind::BrokenPipe.into() })?;
        let hand_over = failed("hand the registration to the runner's supervisor");
        let secret = launch.jit_config.expose_secret().as_bytes();
        let written = timeout(KILL_DEADLINE, async {
            stdin.write_all(secret).await?;
            stdin.write_all(b"\n").await?;
            stdin.shutdown().await
        });
        written.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(hand_over)
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
            match record::read(&self.paths.runner_record()) {
                Ok(Some(runner)) if runner.exit.is_some() => return self.tell(runner),
                Ok(Some(runner)) if runner.shim.is_some_and(|shim| !shim.is_alive()) => {
                    return self.outlast(runner).await;
                }
                Ok(Some(_)) => {}
                Ok(None) if begun.elapsed() < FIRST_RECORD_DEADLINE => {}
                Ok(None) => return self.tell(self.unstarted().failed("the runner was never started")),
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
    async fn outlast(&self, runner: Runner) {
        self.tell(runner.clone());
        while runner.listener.is_some_and(crate::process::Process::is_alive) {
            sleep(Duration::from_secs(1)).await;
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

    fn tell(&self, runner: Runner) {
        self.publish.send_if_modified(|current| {
            let changed = current.as_ref() != Some(&runner);
            *current = Some(runner);
            changed
        });
    }
}
