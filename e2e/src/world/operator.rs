//! The operator's process, with the product's own flags.

use std::{
    env, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use tokio::net::TcpListener;

use super::{Trouble, gateway_keys::Keys};
use crate::control_plane::process::Process;

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
    pub(super) gateway: SocketAddr,
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
    health: SocketAddr,
    metrics: SocketAddr,
    log: PathBuf,
}

impl Operator {
    pub(super) async fn start(settings: &Settings, number: usize) -> Result<Self, Trouble> {
        let (health, metrics) = (free_address().await?, free_address().await?);
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
            .args(["--agent-listen", &settings.gateway.to_string()])
            .args(["--health-listen", &health.to_string(), "--metrics-listen", &metrics.to_string()])
            .args(["--compute-endpoint", &settings.compute, "--jwks-url", &settings.jwks])
            .args(["--audience", "miglet-test", "--log-format", "text"])
            .args(["--service-account", &format!("{}/miglet-operator", settings.namespace)])
            .args(["--service-name", "miglet-gateway", "--pod-ip", "10.0.0.1"])
            .args(intervals(&settings.intervals))
            .env("GCE_METADATA_HOST", &settings.metadata)
            .env(
                "MIGLET_LOG_LEVEL",
                env::var("MIGLET_LOG_LEVEL").unwrap_or_else(|_| "info,miglet_operator=debug".into()),
            );
        let log = settings.logs.join(format!("operator-{number}-{}.log", health.port()));
        let process = Process::spawn(&command, &log, None)?;
        Ok(Self { process, health, metrics, log })
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// How it ended, if it did.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn exit_status(&mut self) -> io::Result<Option<std::process::ExitStatus>> {
        self.process.exit_status()
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
    pub fn signal(&self, signal: rustix::process::Signal) -> io::Result<()> {
        let id = i32::try_from(self.id()).ok().and_then(rustix::process::Pid::from_raw);
        let id = id.ok_or_else(|| io::Error::other("no process"))?;
        Ok(rustix::process::kill_process(id, signal)?)
    }
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
        ("lease-renew", i.lease / 5.0),
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
