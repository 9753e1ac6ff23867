//! The simulated world: a real API server, the real operator and real agents, simulated Google and GitHub.
//!
//! ```text
//!   kubectl ──> kube-apiserver <──(proxy)── miglet-operator ──> Compute simulator ──boots──> miglet run ──> runner
//!                                                  │   ^────────────── gRPC over TLS ────────────┘            │
//!                                                  └──────────────────────────> GitHub simulator <───────────┘
//! ```
//!
//! Worlds share one control plane in a process and nothing else: each has namespaces, simulators, keys and an operator
//! of its own, and its operator watches its namespace only. Intervals are short; the binaries are the product's.

mod expect;
pub(crate) mod gateway_keys;
mod history;
mod objects;
mod operator;
mod options;
mod rights;
mod service;
mod strangers;
mod traces;
mod wait;
mod writes;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use kube::Client;

use self::service::Service;
pub use self::{
    expect::{Fleet, Held},
    history::History,
    operator::{Intervals, Operator, signal_hook},
    options::{Plane, WorldOptions},
    wait::{Patience, Waited},
};
use crate::{
    compute::{Agent, ComputeOptions, ComputeSim, Delays, GroupSpec, Machines, ProcessMachines},
    control_plane::{ControlPlane, product_crds},
    github::{AppCredentials, GithubOptions, GithubSim},
    proxy::ApiProxy,
    runner,
};

/// Anything that keeps a world from being set up: tests only print it.
pub type Trouble = Box<dyn std::error::Error + Send + Sync>;

/// The organisation every world has.
pub const ORG: &str = "acme";
/// The repository every world has.
pub const REPOSITORY: &str = "acme/app";
/// Labels of the worlds' pools and jobs.
pub const LABELS: [&str; 2] = ["self-hosted", "linux"];
/// Zone of the worlds' first group.
pub const ZONE: &str = "us-central1-a";
/// Name of the worlds' first group.
pub const GROUP: &str = "ci-linux";

/// A world. Everything in it ends when it is dropped.
pub struct World {
    /// Kubernetes as an administrator.
    pub client: Client,
    /// The control plane all worlds of this process share.
    pub plane: &'static ControlPlane,
    /// Between the operator and the API server.
    pub proxy: ApiProxy<'static>,
    /// Google.
    pub compute: ComputeSim,
    /// GitHub.
    pub github: GithubSim,
    /// The running operators, in the order they were started.
    pub operators: Vec<Operator>,
    /// Namespace of the pools.
    pub namespace: String,
    /// Namespace of the operator.
    pub system: String,
    /// The App the pools' Secret holds.
    pub app: AppCredentials,
    /// Keys, certificates and logs.
    pub folder: tempfile::TempDir,
    service: Service,
    /// By which machines reach this host's loopback.
    host: &'static str,
    operators_started: u8,
    operator_settings: operator::Settings,
    granted: serde_json::Value,
}

impl World {
    /// A world with its operator leading (or none yet), one group, one organisation, one Secret, and no pool.
    ///
    /// # Errors
    /// When some part cannot be started.
    pub async fn start(options: WorldOptions) -> Result<Self, Trouble> {
        // Every TLS stack in this process: the first world installs it, later ones find it there.
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let plane = match options.plane {
            Plane::Shared => ControlPlane::shared().await?,
            // Its processes and its folder end with this process: see `control_plane::process`.
            Plane::Own => Box::leak(Box::new(ControlPlane::start_with_crds(&product_crds()?).await?)),
            Plane::Given(plane) => plane,
        };
        let client = plane.admin().await?;
        let folder = tempfile::Builder::new().prefix("mworld").tempdir()?;
        let keys = gateway_keys::make(folder.path())?;
        let host = options.machines.as_ref().map_or("127.0.0.1", |machines| machines.host());
        let github = github(GithubOptions { checked: options.checked, ..options.github }, host).await?;
        let app = github.add_app()?;
        let compute = compute(options.machines, options.delays, options.checked, &options.agent_environment).await?;
        let suffix: u32 = rand::random();
        let new = || (format!("ci-{suffix:08x}"), format!("miglet-{suffix:08x}"));
        let (namespace, system) = options.namespaces.unwrap_or_else(new);
        let service = Service::start(client.clone(), &system).await?;
        let group = options.group.metadata("miglet-endpoint", &format!("https://{host}:{}", service.address().port()));
        let group = group.metadata("miglet-ca", &keys.ca).metadata("miglet-audience", "miglet-test");
        compute.add_group(&group.metadata("enable-guest-attributes", "TRUE"));
        let granted = rights::grant(plane, &system, &namespace).await?;
        let proxy = ApiProxy::start(plane).await?;
        let kubeconfig = proxy.kubeconfig_for_service_account(&system, "miglet-operator").await?;
        let operator_settings = operator::Settings {
            kubeconfig,
            namespace: system.clone(),
            watch_namespace: (!matches!(options.plane, Plane::Own)).then(|| namespace.clone()),
            keys: keys.clone(),
            compute: compute.url(),
            jwks: compute.jwks_url(),
            metadata: compute.adc_host(),
            intervals: options.intervals,
            // Somebody who looks for a failure's cause wants the logs to outlive the world.
            logs: std::env::var_os("MIGLET_E2E_LOGS").map_or_else(|| folder.path().to_owned(), PathBuf::from),
        };
        let mut world = Self {
            client,
            plane,
            proxy,
            compute,
            github,
            operators: Vec::new(),
            namespace,
            system,
            app,
            folder,
            service,
            host,
            operators_started: 0,
            operator_settings,
            granted,
        };
        world.put_secret("acme-app").await?;
        if options.operator {
            world.start_operator().await?;
        }
        Ok(world)
    }

    /// The agents' template metadata of this world, for further groups.
    ///
    /// # Errors
    /// When the CA cannot be read.
    pub fn add_group(&self, group: GroupSpec) -> Result<(), Trouble> {
        let endpoint = format!("https://{}:{}", self.host, self.gateway().port());
        let group = group.metadata("miglet-endpoint", &endpoint).metadata("miglet-ca", &self.operator_settings.keys.ca);
        self.compute.add_group(&group.metadata("miglet-audience", "miglet-test"));
        Ok(())
    }

    /// Where agents call in.
    #[must_use]
    pub fn gateway(&self) -> std::net::SocketAddr {
        self.service.address()
    }

    /// Cuts every agent's connection and lets none through, or lets them through again.
    pub fn cut_agents(&self, cut: bool) {
        self.service.cut(cut);
    }

    /// The CA of the gateway's certificate, PEM.
    #[must_use]
    pub fn ca(&self) -> &str {
        &self.operator_settings.keys.ca
    }

    /// Starts one more operator; the first one leads soon.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn start_operator(&mut self) -> Result<(), Trouble> {
        self.operators_started = self.operators_started.saturating_add(1);
        let operator = Operator::start(&self.operator_settings, self.operators_started).await?;
        self.operators.push(operator);
        Ok(())
    }

    /// Kills the first operator the hard way and starts another.
    ///
    /// # Errors
    /// When the new one cannot be started.
    pub async fn restart_operator(&mut self) -> Result<(), Trouble> {
        self.operators.clear();
        self.start_operator().await
    }

    /// Writes of the operators so far, apart from the lease's renewals.
    #[must_use]
    pub fn operator_writes(&self) -> usize {
        self.proxy.traffic().count(|call| call.method != "GET" && !call.path.contains("/leases"))
    }

    /// Takes back everything this world made in its cluster but the definitions.
    ///
    /// # Errors
    /// When something does not go in time.
    pub async fn leave_cluster(&self) -> Result<(), Trouble> {
        rights::revoke(self.plane, &self.granted).await
    }

    /// Where the logs are.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.folder.path().to_owned()
    }
}

/// A GitHub with the worlds' organisation, which machines reach by that host.
async fn github(options: GithubOptions, host: &str) -> Result<GithubSim, Trouble> {
    let github = GithubSim::start(options).await?;
    github.add_org(ORG);
    github.add_repository(REPOSITORY);
    github.reach_runners_by(host);
    Ok(github)
}

async fn compute(
    machines: Option<Arc<dyn Machines>>,
    delays: Delays,
    checked: bool,
    environment: &BTreeMap<String, String>,
) -> Result<ComputeSim, Trouble> {
    let machines = match machines {
        Some(machines) => machines,
        None => Arc::new(ProcessMachines::new(Agent {
            program: operator::binary("miglet", "MIGLET_AGENT_BINARY")?,
            arguments: vec!["run".into()],
            stop: ["drain", "--deadline", "10"].map(str::to_owned).to_vec(),
            environment: environment.clone(),
            prepare: Arc::new(|folder| runner::install(folder).map_err(std::io::Error::other)),
        })?),
    };
    let options = ComputeOptions { project: "acme-ci".into(), delays, machines, checked, ..ComputeOptions::default() };
    Ok(ComputeSim::start(options).await?)
}
