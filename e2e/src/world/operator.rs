//! The operator's process, with the product's own flags.

use std::{
    env,
    fs::DirEntry,
    io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::{Trouble, gateway_keys::Keys, service::SERVICE};
use crate::{control_plane::process::Process, faults::Hook};

/// Intervals of the operator, in seconds.
#[derive(Clone, Debug)]
pub struct Intervals {
    /// Between two lists of a group.
    pub list: f64,
    /// Between two lists that prove absence.
    pub absence: f64,
    /// Between two sightings of an idle agent.
    pub idle_sighting: f64,
    /// Age of a read that shows that the scope is visible.
    pub scope_read: f64,
    /// Between two whole lists of runners.
    pub runner_list: f64,
    /// Between two sweeps.
    pub sweep: f64,
    /// Longest wait for an answer.
    pub request_timeout: f64,
    /// Age of a Secret.
    pub secret: f64,
    /// Between two heartbeats.
    pub heartbeat: f64,
    /// First pause of a group.
    pub backoff: f64,
    /// Length of the lease.
    pub lease: f64,
}

impl Default for Intervals {
    /// Quick ones, for tests.
    fn default() -> Self {
        Self {
            list: 0.4,
            absence: 2.0,
            idle_sighting: 2.0,
            scope_read: 10.0,
            runner_list: 3.0,
            sweep: 2.0,
            request_timeout: 3.0,
            secret: 1.0,
            heartbeat: 1.0,
            backoff: 2.0,
            lease: 4.0,
        }
    }
}

/// What an operator is started with.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) kubeconfig: PathBuf,
    pub(super) namespace: String,
    pub(super) watch_namespace: Option<String>,
    pub(super) keys: Keys,
    pub(super) compute: String,
    pub(super) jwks: String,
    pub(super) metadata: String,
    pub(super) intervals: Intervals,
    pub(super) logs: PathBuf,
}

/// A running operator; killed when dropped.
#[derive(Debug)]
pub struct Operator {
    process: Process,
    pod: String,
    pod_ip: IpAddr,
    agents: SocketAddr,
    health: SocketAddr,
    metrics: SocketAddr,
    log: PathBuf,
}

/// As [`Operator::signal_hook`], for whichever process has this id by then.
#[must_use]
pub fn signal_hook(process: &Arc<AtomicU32>, signal: Signal) -> (Hook, Arc<AtomicBool>) {
    let (process, sent) = (Arc::clone(process), Arc::new(AtomicBool::new(false)));
    let flag = Arc::clone(&sent);
    let hook = move || {
        let number = process.load(Ordering::SeqCst);
        let done = pid(number).is_some_and(|id| rustix::process::kill_process(id, signal).is_ok());
        if signal == Signal::STOP {
            until_stopped(number);
        }
        flag.store(done, Ordering::SeqCst);
    };
    (Arc::new(hook), sent)
}

impl Operator {
    /// Starts the world's operator of this number: pods have a name, an address and ports of their own.
    pub(super) async fn start(settings: &Settings, number: u8) -> Result<Self, Trouble> {
        let (agents, health, metrics) = (free_address().await?, free_address().await?, free_address().await?);
        // Nothing listens there: the world's `Service` knows that all pods are on loopback. A slice cannot hold that.
        let pod_ip = IpAddr::from([10, 0, 0, number]);
        let pod = format!("miglet-operator-{number}");
        let mut command = Command::new(binary("miglet-operator", "MIGLET_OPERATOR_BINARY")?);
        command
            .arg("--kubeconfig")
            .arg(&settings.kubeconfig)
            .args(["--namespace", &settings.namespace])
            .args(settings.watch_namespace.iter().flat_map(|namespace| ["--watch-namespace", namespace.as_str()]))
            .arg("--tls-cert")
            .arg(&settings.keys.certificate)
            .arg("--tls-key")
            .arg(&settings.keys.key)
            .args(["--agent-listen", &agents.to_string()])
            .args(["--health-listen", &health.to_string(), "--metrics-listen", &metrics.to_string()])
            .args(["--compute-endpoint", &settings.compute, "--jwks-url", &settings.jwks])
            .args(["--audience", "miglet-test", "--log-format", "text"])
            .args(["--service-account", &format!("{}/miglet-operator", settings.namespace)])
            .args(["--service-name", SERVICE, "--pod-ip", &pod_ip.to_string()])
            .args(intervals(&settings.intervals))
            .env("POD_NAME", &pod)
            .env("GCE_METADATA_HOST", &settings.metadata)
            .env(
                "MIGLET_LOG_LEVEL",
                env::var("MIGLET_LOG_LEVEL").unwrap_or_else(|_| "info,miglet_operator=debug".into()),
            );
        let log = settings.logs.join(format!("operator-{number}-{}.log", health.port()));
        let process = Process::spawn(&command, &log, None)?;
        Ok(Self { process, pod, pod_ip, agents, health, metrics, log })
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Its pod's name, which its identity in the Lease begins with.
    #[must_use]
    pub fn pod(&self) -> &str {
        &self.pod
    }

    /// Its pod's address, as an EndpointSlice has it.
    #[must_use]
    pub fn pod_ip(&self) -> IpAddr {
        self.pod_ip
    }

    /// What a fault does to kill or stop this process; the flag says whether it did.
    #[must_use]
    pub fn signal_hook(&self, signal: Signal) -> (Hook, Arc<AtomicBool>) {
        signal_hook(&Arc::new(AtomicU32::new(self.id())), signal)
    }

    /// Whether it says it is ready.
    pub async fn ready(&self) -> bool {
        let ask = async {
            let mut stream = TcpStream::connect(self.health).await?;
            stream.write_all(b"GET /readyz HTTP/1.0\r\n\r\n").await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.map(|_| answer)
        };
        let answer: io::Result<String> = ask.await;
        answer.is_ok_and(|answer| answer.lines().next().is_some_and(|line| line.contains(" 200 ")))
    }

    /// How it ended, if it did.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn exit_status(&mut self) -> io::Result<Option<std::process::ExitStatus>> {
        self.process.exit_status()
    }

    /// Address of its own gateway, past the Service: what it sees of a caller there is the caller's own address.
    #[must_use]
    pub fn gateway(&self) -> SocketAddr {
        self.agents
    }

    /// Address of `/readyz`.
    #[must_use]
    pub fn health(&self) -> SocketAddr {
        self.health
    }

    /// Address of `/metrics`.
    #[must_use]
    pub fn metrics(&self) -> SocketAddr {
        self.metrics
    }

    /// Its whole log.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Where its log is.
    #[must_use]
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let id = pid(self.id()).ok_or_else(|| io::Error::other("no process"))?;
        Ok(rustix::process::kill_process(id, signal)?)
    }
}

/// Waits, a moment at most, until no thread of the process runs any more: the signal alone is not yet a stop.
fn until_stopped(id: u32) {
    let start = Instant::now();
    let runs = |task: io::Result<DirEntry>| {
        let stat = task.and_then(|task| std::fs::read_to_string(task.path().join("stat"))).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('T'))
    };
    let any_runs = || std::fs::read_dir(format!("/proc/{id}/task")).is_ok_and(|mut tasks| tasks.any(runs));
    while any_runs() && start.elapsed() < Duration::from_secs(2) {
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn pid(id: u32) -> Option<Pid> {
    i32::try_from(id).ok().and_then(Pid::from_raw)
}

fn intervals(i: &Intervals) -> Vec<String> {
    let flags = [
        ("list-interval", i.list),
        ("absence", i.absence),
        ("idle-sighting", i.idle_sighting),
        ("scope-read", i.scope_read),
        ("runner-list-interval", i.runner_list),
        ("sweep-interval", i.sweep),
        ("request-timeout", i.request_timeout),
        ("secret-max-age", i.secret),
        ("heartbeat", i.heartbeat),
        ("capacity-backoff", i.backoff),
        ("quota-backoff", i.backoff),
        ("lease-duration", i.lease),
        ("lease-renew", (i.lease / 5.0).min(1.0)),
    ];
    flags.into_iter().map(|(name, seconds)| format!("--{name}-seconds={seconds}")).collect()
}

/// An address nobody listens on now. Somebody may before it is used: then the process that wants it says so and ends.
pub(super) async fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0").await?.local_addr()
}

/// A binary of this workspace: beside the running one, or where the environment says, or built now.
pub(super) fn binary(name: &str, variable: &str) -> Result<PathBuf, Trouble> {
    if let Some(path) = env::var_os(variable) {
        return Ok(path.into());
    }
    let current = env::current_exe()?;
    let found = current.ancestors().skip(1).take(2).map(|folder| folder.join(name)).find(|path| path.is_file());
    found.ok_or_else(|| format!("{name} is not built: run `cargo build --workspace`").into())
}
