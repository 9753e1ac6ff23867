//! The shim's one loop: starts the listener, waits, writes down, obeys.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustix::process::{Pid, Signal};
use secrecy::SecretString;
use tokio::{
    signal::unix::{self, SignalKind},
    sync::{Notify, mpsc, watch},
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout},
};

use super::{
    Order,
    confinement::Confinement,
    ghost,
    leftovers::{kill_all, reap},
    listener,
    progress::Progress,
    verdict::{Run, Verdict, conclude, exit, verdict},
};
use crate::{
    clock::{self, Moment},
    paths::Paths,
    process::Process,
    record,
    runner::{Exit, ExitKind, Identity, Phase, Runner},
};

/// After the listener's exit its pipes end too, unless something fled with one.
const EOF_DEADLINE: Duration = Duration::from_secs(5);
/// An interrupted listener tells its job's steps to end (SIGINT, SIGTERM, SIGKILL: 10 s), uploads the log and reports.
pub(crate) const INTERRUPT_DEADLINE: Duration = Duration::from_secs(45);
/// A self-update takes seconds.
const UPDATE_DEADLINE: Duration = Duration::from_secs(30);

/// The progress, shared with the readers. They never wait for the loop: they change it and ring.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    progress: Arc<Mutex<Progress>>,
    changed: Arc<Notify>,
}

impl Shared {
    pub(super) fn new(runner: Runner) -> Self {
        Self { progress: Arc::new(Mutex::new(Progress::new(runner))), changed: Arc::new(Notify::new()) }
    }

    pub(super) fn line(&self, line: &[u8], now: Moment) {
        if self.with(|p| p.line(line, now)) {
            self.changed.notify_one();
        }
    }

    pub(super) fn identify(&self, identity: Identity) {
        if self.with(|p| p.identify(identity)) {
            self.changed.notify_one();
        }
    }

    fn snapshot(&self) -> Runner {
        self.with(|p| p.snapshot())
    }

    fn phase(&self) -> Phase {
        self.with(|p| p.phase())
    }

    fn edit(&self, change: impl FnOnce(&mut Runner)) {
        self.with(|p| p.edit(change));
    }

    fn with<T>(&self, f: impl FnOnce(&mut Progress) -> T) -> T {
        f(&mut self.progress.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Everything the loop owns.
pub(super) struct Supervision {
    paths: Paths,
    shared: Shared,
    confinement: Confinement,
    publish: watch::Sender<Runner>,
    orders: mpsc::Receiver<Order>,
    children: unix::Signal,
    terminate: unix::Signal,
    listener: Option<Process>,
    interrupted: bool,
    kill_at: Option<Instant>,
}

impl Supervision {
    pub(super) fn new(
        paths: Paths,
        shared: Shared,
        confinement: Confinement,
        publish: watch::Sender<Runner>,
        orders: mpsc::Receiver<Order>,
    ) -> std::io::Result<Self> {
        let children = unix::signal(SignalKind::child())?;
        let terminate = unix::signal(SignalKind::terminate())?;
        let (listener, interrupted, kill_at) = (None, false, None);
        Ok(Self { paths, shared, confinement, publish, orders, children, terminate, listener, interrupted, kill_at })
    }

    /// Runs the listener until there is nothing more to run, and writes down how it ended.
    pub(super) async fn finish(mut self, jit: Option<SecretString>) {
        let end = match jit {
            Some(jit) => self.supervise(&jit).await,
            None => failure("the registration never arrived: the agent ended while it handed it over"),
        };
        kill_all(self.confinement.cgroup.as_ref()).await;
        self.shared.edit(|runner| conclude(runner, end, clock::unix_ms()));
        self.tell();
    }

    async fn supervise(&mut self, jit: &SecretString) -> Exit {
        let mut retries = 0;
        loop {
            std::fs::remove_file(self.paths.update_finished()).ok();
            let code = match self.run_once(jit).await {
                Ok(code) => code,
                Err(error) => return failure(&format!("could not start bin/Runner.Listener: {error}")),
            };
            let run = Run { code, interrupted: self.interrupted, retries };
            let again = match verdict(run, &self.shared.snapshot()) {
                Verdict::End(exit) => return exit,
                Verdict::Retry(delay) => self.pause(delay).await,
                Verdict::AwaitUpdate => self.await_update().await,
            };
            if !again {
                return exit(Run { interrupted: self.interrupted, ..run }, &self.shared.snapshot());
            }
            retries += 1;
        }
    }

    /// One life of the listener; its exit code.
    async fn run_once(&mut self, jit: &SecretString) -> std::io::Result<i32> {
        let mut child = listener::start(&self.paths, &self.confinement, jit)?;
        let readers = listener::read(&mut child, &self.shared)?;
        let pid = child.id().cast_signed();
        self.listener = Process::of(pid);
        tracing::info!(pid, "the listener runs");
        let listener = self.listener;
        self.shared.edit(|runner| (runner.listener, runner.started_unix_ms) = (listener, clock::unix_ms()));
        self.tell();
        let code = self.wait(Pid::from_raw(pid)).await;
        tracing::info!(code, "the listener ended");
        self.listener = None;
        // An update script outlives the listener on purpose; nothing else may.
        if !matches!(code, 3 | 4) {
            kill_all(self.confinement.cgroup.as_ref()).await;
        }
        read_out(readers).await;
        self.tell();
        Ok(code)
    }

    async fn wait(&mut self, listener: Option<Pid>) -> i32 {
        let mut log = ghost::Log::new(&self.paths.runner);
        let mut looks = interval(ghost::PERIOD);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if let Some(code) = reap(listener) {
                return code;
            }
            tokio::select! {
                () = self.shared.changed.notified() => self.tell(),
                _ = self.children.recv() => {}
                order = self.orders.recv() => self.obey(order).await,
                _ = self.terminate.recv() => self.interrupt(),
                () = at(self.kill_at) => self.kill(),
                _ = looks.tick(), if self.shared.phase() == Phase::Listening => {
                    if log.tells_of_a_ghost() {
                        self.shared.edit(|runner| runner.ghost = true);
                        self.tell();
                    }
                }
            }
        }
    }

    /// Waits before another start; false when told to stop meanwhile.
    async fn pause(&mut self, period: Duration) -> bool {
        let deadline = Instant::now() + period;
        while Instant::now() < deadline && !self.interrupted {
            self.tick().await;
        }
        !self.interrupted
    }

    /// Waits for the self-update to finish; false when it does not, or when told to stop.
    async fn await_update(&mut self) -> bool {
        let deadline = Instant::now() + UPDATE_DEADLINE;
        while Instant::now() < deadline && !self.interrupted && !self.paths.update_finished().exists() {
            self.tick().await;
        }
        !self.interrupted && self.paths.update_finished().exists()
    }

    /// A moment without a listener.
    async fn tick(&mut self) {
        tokio::select! {
            () = sleep(Duration::from_millis(50)) => {}
            order = self.orders.recv() => self.obey(order).await,
            _ = self.terminate.recv() => self.interrupt(),
        }
    }

    async fn obey(&mut self, order: Option<Order>) {
        match order {
            Some(Order::InterruptIfIdle) if !self.shared.snapshot().is_busy() => self.interrupt(),
            Some(Order::Interrupt) => self.interrupt(),
            Some(Order::Kill) => self.kill(),
            // Busy: the job goes on to its end. None: the socket is gone, the job is not.
            Some(Order::InterruptIfIdle) => {}
            None => sleep(Duration::from_secs(1)).await,
        }
    }

    fn interrupt(&mut self) {
        self.interrupted = true;
        self.kill_at.get_or_insert(Instant::now() + INTERRUPT_DEADLINE);
        if let Some(listener) = self.listener {
            listener.signal(Signal::INT);
        }
    }

    fn kill(&mut self) {
        (self.interrupted, self.kill_at) = (true, None);
        if let Some(listener) = self.listener {
            listener.signal(Signal::KILL);
        }
    }

    /// Disk first, then whoever is connected.
    fn tell(&self) {
        let runner = self.shared.snapshot();
        if let Err(error) = record::write(&self.paths.runner_record(), &runner) {
            // A full disk must not cost the live report.
            tracing::error!(%error, "the runner's record was not written");
        }
        self.publish.send_replace(runner);
    }
}

/// Never, when there is no such time.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// What is still in the pipes is read; what never ends is left.
async fn read_out(readers: Vec<JoinHandle<()>>) {
    let deadline = Instant::now() + EOF_DEADLINE;
    for mut reader in readers {
        if timeout(deadline.saturating_duration_since(Instant::now()), &mut reader).await.is_err() {
            reader.abort();
        }
    }
}

fn failure(detail: &str) -> Exit {
    Exit { code: -1, kind: ExitKind::Failed, detail: detail.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_update_is_waited_for_until_it_has_finished_but_not_for_ever() {
        let dir = tempfile::tempdir().expect("dir");
        let at = |name| dir.path().join(name);
        let paths = Paths { state: at("s"), data: at("d"), runner: at("r") };
        let (publish, (_orders, orders)) = (watch::channel(Runner::default()).0, mpsc::channel(1));
        let confinement = Confinement::new(None).expect("nobody else");
        let shared = Shared::new(Runner::default());
        let mut supervision = Supervision::new(paths.clone(), shared, confinement, publish, orders).expect("signals");
        let begun = Instant::now();
        assert!(!supervision.await_update().await);
        assert_eq!(begun.elapsed().as_secs(), UPDATE_DEADLINE.as_secs());
        let finished = paths.update_finished();
        std::fs::create_dir_all(finished.parent().expect("a folder")).expect("folder");
        std::fs::write(&finished, "").expect("file");
        assert!(supervision.await_update().await);
        supervision.interrupt();
        assert!(!supervision.await_update().await, "it was told to stop");
    }
}
