//! The process: everything put together, and the order in which it starts and ends.
//!
//! ```text
//!   metrics, health ──> CRDs there? ──> lease held ──> caches ──> VM controller ──> gateway, pool controller, sweep
//!                         (ready)
//!   SIGTERM: the passes under way finish, then the lease is released. Lease lost: the process ends at once.
//! ```
//!
//! A standby does nothing but watch the lease: agents find the leader through its EndpointSlice and never a standby.

mod operator;
mod wiring;

use std::{sync::Arc, time::Duration};

use kube::{Api, Client, api::ListParams, core::DeserializeGuard};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::operator::Operator;
use crate::{
    clock::{Clock, SystemClock},
    compute::gce::GceError,
    config::{ClusterError, Config},
    crd::{RunnerPool, RunnerVm},
    gateway::GatewayError,
    health::{Gate, Health},
    leadership::{Elector, ElectorError, LeaseSettings},
    metrics::Metrics,
};

/// Why the process ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// No way to the API server.
    #[error("connecting to the cluster")]
    Cluster(#[from] ClusterError),
    /// The client could not be built.
    #[error("building the Kubernetes client")]
    Client(#[source] kube::Error),
    /// Compute cannot be used.
    #[error("preparing to call Compute Engine")]
    Compute(#[from] GceError),
    /// A port is taken.
    #[error("listening on {address}")]
    Listen {
        /// Where.
        address: std::net::SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// The lease was lost.
    #[error("leading")]
    Lease(#[from] ElectorError),
    /// The gateway ended.
    #[error("serving agents")]
    Gateway(#[from] GatewayError),
    /// An address is no URL.
    #[error("reading the address of Google's keys")]
    Url(#[from] url::ParseError),
    /// A part of the process ended that never should: the rest must not go on without it.
    #[error("the {0} ended unexpectedly")]
    Ended(&'static str),
}

/// Runs the operator until `stop`.
///
/// # Errors
/// Why it ended before.
pub async fn run(config: Config, stop: CancellationToken) -> Result<(), RunError> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let metrics = Metrics::default();
    let health = Health::default();
    serve("metrics", config.listen.metrics_listen, metrics.router()).await?;
    serve("health", config.listen.health_listen, health.router()).await?;
    let definitions = health.gate("definitions");
    let caches = health.gate("caches");
    caches.open();
    let client = client(&config).await?;
    if !definitions_there(&client, &config, &definitions, &stop).await {
        return Ok(());
    }
    // Renewals must not queue behind other calls: a client, and a connection, of their own.
    let (elector, leadership) = Elector::new(self::client(&config).await?, lease(&config), Arc::clone(&clock));
    let (work, lease) = (CancellationToken::new(), CancellationToken::new());
    let mut election = tokio::spawn(elector.run(lease.clone()));
    let operator = Operator { config, clock, metrics, health, caches, client, leadership };
    let mut leading = std::pin::pin!(operator.lead(work.clone()));
    let led = tokio::select! {
        ended = &mut election => return lost(ended),
        led = &mut leading => led,
        () = stop.cancelled() => {
            // The passes under way finish while the lease is still ours.
            work.cancel();
            leading.await
        }
    };
    lease.cancel();
    led.and(lost(election.await))
}

fn lost(ended: Result<Result<(), ElectorError>, tokio::task::JoinError>) -> Result<(), RunError> {
    ended.map_err(|_| RunError::Ended("leader election"))?.map_err(RunError::Lease)
}

async fn client(config: &Config) -> Result<Client, RunError> {
    let mut connection = config.cluster.connection().await?;
    // A watch is quiet for minutes; every other call is bounded where it is made.
    connection.read_timeout = None;
    connection.connect_timeout = Some(config.timing.request_timeout);
    Client::try_from(connection).map_err(RunError::Client)
}

fn lease(config: &Config) -> LeaseSettings {
    LeaseSettings {
        namespace: config.cluster.namespace.clone(),
        name: config.lease.lease_name.clone(),
        identity: format!("{}-{}", config.cluster.pod_name, uuid::Uuid::new_v4()),
        duration: config.lease.lease_duration,
        renew: config.lease.lease_renew,
        settle: config.timing.request_timeout,
    }
}

async fn serve(name: &'static str, address: std::net::SocketAddr, router: axum::Router) -> Result<(), RunError> {
    let listener = TcpListener::bind(address).await.map_err(|source| RunError::Listen { address, source })?;
    if let Ok(address) = listener.local_addr() {
        info!(%address, name, "Listening");
    }
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(())
}

/// Waits for both definitions; false when told to stop first.
async fn definitions_there(client: &Client, config: &Config, gate: &Gate, stop: &CancellationToken) -> bool {
    let one = ListParams::default().limit(1);
    loop {
        let pools = api::<RunnerPool>(client, config);
        let vms = api::<RunnerVm>(client, config);
        let (pools, vms) = (pools.list(&one), vms.list(&one));
        let found = tokio::time::timeout(config.timing.request_timeout, futures::future::try_join(pools, vms)).await;
        match found {
            Ok(Ok(_)) => {
                gate.open();
                return true;
            }
            Ok(Err(error)) => warn!(%error, "RunnerPools and RunnerVMs cannot be listed: are the CRDs applied?"),
            Err(_) => warn!("The API server does not answer"),
        }
        tokio::select! {
            () = stop.cancelled() => return false,
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
}

fn api<K>(client: &Client, config: &Config) -> Api<DeserializeGuard<K>>
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
{
    match &config.cluster.watch_namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}
