//! Everything that can be set: flags and their environment, checked. The only reader of either.
//!
//! Intervals are flags so that tests with real binaries are quick; their defaults are the product's. Durations are
//! seconds, fractions allowed. Nothing here is a secret: credentials come from Secrets in the cluster, and from
//! Google's application-default credentials.

mod cluster;
mod timing;

use std::{
    ffi::OsString,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use clap::{CommandFactory, Parser, ValueEnum, error::ErrorKind};
use url::Url;

pub use cluster::{Cluster, ClusterError};
pub use timing::{LeaseTiming, Timing};

/// Keeps fleets of disposable GitHub Actions runners alive on virtual machines of Google Cloud instance groups.
///
/// Each flag can be given as an environment variable; a flag wins. Durations are seconds, fractions allowed.
#[derive(Clone, Debug, Parser)]
#[command(name = "miglet-operator", version, max_term_width = 120)]
pub struct Config {
    /// Which API server, which objects in it.
    #[command(flatten)]
    pub cluster: Cluster,
    /// Where this process listens, and where agents find it.
    #[command(flatten)]
    pub listen: Listen,
    /// The outside services.
    #[command(flatten)]
    pub services: Services,
    /// The lease of the active operator.
    #[command(flatten)]
    pub lease: LeaseTiming,
    /// How often, how long, how many.
    #[command(flatten)]
    pub timing: Timing,
    /// What is logged, and how.
    #[command(flatten)]
    pub log: Log,
}

/// Where this process listens, and where agents find it.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Listeners")]
pub struct Listen {
    /// Address agents connect to (gRPC over TLS).
    #[arg(long, env = "MIGLET_AGENT_LISTEN", default_value = "0.0.0.0:8443")]
    pub agent_listen: SocketAddr,
    /// Certificate chain of that address, PEM. Read again when the file changes.
    #[arg(long, env = "MIGLET_TLS_CERT", default_value = "/etc/miglet/tls/tls.crt")]
    pub tls_cert: PathBuf,
    /// Private key of that certificate, PEM. Read again when the file changes.
    #[arg(long, env = "MIGLET_TLS_KEY", default_value = "/etc/miglet/tls/tls.key")]
    pub tls_key: PathBuf,
    /// Address of /metrics.
    #[arg(long, env = "MIGLET_METRICS_LISTEN", default_value = "0.0.0.0:8080")]
    pub metrics_listen: SocketAddr,
    /// Address of /healthz and /readyz.
    #[arg(long, env = "MIGLET_HEALTH_LISTEN", default_value = "0.0.0.0:8081")]
    pub health_listen: SocketAddr,
    /// Name of the gateway's Service: while this process leads, it keeps that Service's one EndpointSlice, of the same
    /// name. Without it no EndpointSlice is written, and agents must reach this process some other way.
    #[arg(long, env = "MIGLET_SERVICE_NAME")]
    pub service_name: Option<String>,
    /// This pod's address, for the EndpointSlice.
    #[arg(long, env = "POD_IP")]
    pub pod_ip: Option<IpAddr>,
}

/// The outside services.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Services")]
pub struct Services {
    /// Compute Engine's address. Default: Google's own, with application-default credentials.
    #[arg(long, env = "MIGLET_COMPUTE_ENDPOINT")]
    pub compute_endpoint: Option<Url>,
    /// Where the keys of instance identity tokens are published (a JWKS). Default: Google's.
    #[arg(long, env = "MIGLET_JWKS_URL")]
    pub jwks_url: Option<Url>,
    /// First part of the audience of instance identity tokens; must equal the VMs' `miglet-audience`. Give each
    /// cluster its own: a token for one is then worthless at the other.
    #[arg(long, env = "MIGLET_AUDIENCE", default_value = "miglet")]
    pub audience: String,
}

/// What is logged, and how.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Logs")]
pub struct Log {
    /// One JSON object a line, or text for people.
    #[arg(long = "log-format", env = "MIGLET_LOG_FORMAT", value_enum, default_value_t = LogFormat::Json)]
    pub format: LogFormat,
    /// What to log: a level, or directives such as `info,miglet_operator::vm=debug`.
    #[arg(long = "log-level", env = "MIGLET_LOG_LEVEL", default_value = "info")]
    pub level: String,
}

/// Form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// Text for people.
    Text,
}

impl Config {
    /// The configuration of this process. Prints help or what is wrong, and exits, when there is none.
    #[must_use]
    pub fn load() -> Self {
        Self::parse_from_args(std::env::args_os()).unwrap_or_else(|error| error.exit())
    }

    /// The configuration `args` (the program's name first) and the environment give.
    ///
    /// # Errors
    /// Help was asked for, a value is invalid, or values contradict each other.
    pub fn parse_from_args(args: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Result<Self, clap::Error> {
        let config = Self::try_parse_from(args)?;
        match config.contradiction() {
            Some(what) => Err(Self::command().error(ErrorKind::ValueValidation, what)),
            None => Ok(config),
        }
    }

    /// What no single value shows.
    fn contradiction(&self) -> Option<String> {
        self.cluster
            .contradiction()
            .or_else(|| self.lease.contradiction())
            .or_else(|| self.timing.contradiction())
            .or_else(|| self.log_contradiction())
            .or_else(|| self.listen.contradiction())
            .or_else(|| self.services.contradiction())
    }

    fn log_contradiction(&self) -> Option<String> {
        let error = tracing_subscriber::EnvFilter::try_new(&self.log.level).err()?;
        Some(format!("--log-level {:?} is no level and no list of directives: {error}", self.log.level))
    }
}

impl Listen {
    fn contradiction(&self) -> Option<String> {
        if self.service_name.is_some() && self.pod_ip.is_none() {
            return Some(
                "--service-name needs --pod-ip (or POD_IP, from the downward API field status.podIP): the EndpointSlice \
                 must name this pod's address"
                    .to_owned(),
            );
        }
        let [agents, metrics, health] = [self.agent_listen, self.metrics_listen, self.health_listen];
        let same = |a: SocketAddr, b: SocketAddr| a.port() != 0 && a == b;
        (same(agents, metrics) || same(agents, health) || same(metrics, health)).then(|| {
            "--agent-listen, --metrics-listen and --health-listen must differ: give each a port of its own".to_owned()
        })
    }
}

impl Services {
    fn contradiction(&self) -> Option<String> {
        let audience = &self.audience;
        if audience.is_empty() || !audience.chars().all(|c| c.is_ascii_graphic()) {
            return Some(
                "--audience must be printable ASCII without spaces, such as miglet or https://ci.acme.dev".into(),
            );
        }
        [("--compute-endpoint", &self.compute_endpoint), ("--jwks-url", &self.jwks_url)].into_iter().find_map(
            |(flag, url)| {
                let url = url.as_ref()?;
                (!matches!(url.scheme(), "http" | "https"))
                    .then(|| format!("{flag} must be an http or https URL: {url}"))
            },
        )
    }
}

#[cfg(test)]
mod tests;
