//! The process: everything put together, and the order in which it starts and ends.
//!
//! ```text
//!   metrics, health ──> CRDs there? ──> lease held ──> caches ──> VM controller ──> gateway, pool controller, sweep
//!                         (ready)
//!   SIGTERM: the passes under way finish, then the lease is released. Lease lost: the process ends at once.
//! ```
//!
//! A standby does nothing but watch the lease: agents find the leader through its EndpointSlice and never a standby.

use std::{sync::Arc, time::Duration};

use futures::Stream;
use jiff::SignedDuration;
use kube::{
    Api, Client,
    api::ListParams,
    core::DeserializeGuard,
    runtime::{reflector::Store, watcher},
};
use tokio::{net::TcpListener, sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    backoff::Backoffs,
    clock::{Clock, SystemClock},
    compute::{
        gce::{Gce, GceConfig, GceError},
        groups::{Groups, GroupsConfig, Pause, Pauses},
    },
    config::{ClusterError, Config},
    crd::{RunnerPool, RunnerVm},
    endpoints::{Endpoints, GatewayAddress},
    events::Events,
    forge::credentials::{Forges, ForgesConfig},
    gateway::{Backends, Caps, Gateway, GatewayConfig, GatewayError, TlsFiles, sessions::Sessions},
    health::{Gate, Health},
    leadership::{Elector, ElectorError, Leadership, LeaseSettings},
    metrics::Metrics,
    pool,
    vm::{self, poller::Poller, view::Timing},
    wakes::{Key, Wakes},
    watch::{self, Watched},
};

/// Google's keys for identity tokens.
const GOOGLE_KEYS: &str = "https://www.googleapis.com/oauth2/v3/certs";
/// Unreadable objects that may wait to be reported.
const UNREADABLE_QUEUE: usize = 64;
/// Between two passes of one pool: its status is written at most about once a second.
const POOL_DEBOUNCE: Duration = Duration::from_millis(500);

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
    let operator = Operator { config, clock, metrics, caches, client, leadership };
    let led = tokio::select! {
        ended = &mut election => return lost(ended),
        led = operator.lead(work.clone()) => led,
        () = stop.cancelled() => Ok(()),
    };
    work.cancel();
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

/// What leading takes.
struct Operator {
    config: Config,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    caches: Gate,
    client: Client,
    leadership: Leadership,
}

/// What wakes whom.
#[derive(Clone, Default)]
struct Bells {
    vms: Wakes,
    pools: Wakes,
}

impl Operator {
    /// Waits for the lease, then works until `stop` or until something ends that should not.
    async fn lead(&self, stop: CancellationToken) -> Result<(), RunError> {
        self.metrics.leading(&self.config.lease.lease_name, false);
        let mut leading = self.leadership.watch();
        if leading.wait_for(|leading| *leading).await.is_err() {
            return Err(RunError::Ended("leader election"));
        }
        self.metrics.leading(&self.config.lease.lease_name, true);
        info!("Leading");
        self.caches.close();
        self.work(stop).await
    }

    async fn work(&self, stop: CancellationToken) -> Result<(), RunError> {
        let bells = Bells::default();
        let groups = self.groups().await?;
        let sessions = Sessions::new(bells.vms.clone());
        let Watched { store: vms, objects: vm_objects, mut ready } = self.watch_vms(&bells);
        let vm_context = self.vm_context(groups.clone(), sessions.clone());
        let mut parts = JoinSet::new();
        let concurrency = self.config.cluster.concurrency;
        let controller =
            vm::run(vm_context.clone(), (vms.clone(), vm_objects), bells.vms.clone(), concurrency, stop.clone());
        parts.spawn(async move {
            controller.await;
            Ok("VM controller")
        });
        if ready.wait_for(|ready| *ready).await.is_err() {
            return Err(RunError::Ended("watch of RunnerVMs"));
        }
        self.caches.open();
        self.start_gateway(&mut parts, &sessions, &vms, &groups, &stop).await?;
        self.start_pools(&mut parts, &bells, vms.clone(), &vm_context, &stop);
        let interval = self.config.timing.list_interval;
        let poller = Poller { groups, vms, wakes: bells.vms, clock: Arc::clone(&self.clock), interval };
        let (polling, metrics) = (stop.clone(), self.metrics.clone());
        parts.spawn(async move {
            poller.run(polling).await;
            Ok("poller")
        });
        parts.spawn(count_sessions(sessions, metrics, stop.clone()));
        let ended = parts.join_next().await;
        stop.cancel();
        while parts.join_next().await.is_some() {}
        match ended {
            Some(Ok(Ok(name))) => Err(RunError::Ended(name)),
            Some(Ok(Err(error))) => Err(error),
            Some(Err(_)) | None => Err(RunError::Ended("operator")),
        }
    }

    async fn groups(&self) -> Result<Groups, RunError> {
        let timing = &self.config.timing;
        let endpoint = self.config.services.compute_endpoint.as_ref().map(ToString::to_string);
        let gce = Gce::new(GceConfig { endpoint, request_timeout: timing.request_timeout }).await?;
        let (metrics, leadership) = (self.metrics.clone(), self.leadership.clone());
        let defaults = Pauses::default();
        let pauses = Pauses {
            capacity: Pause { base: timing.capacity_backoff, ..defaults.capacity },
            quota: Pause { base: timing.quota_backoff, ..defaults.quota },
            ..defaults
        };
        let config = GroupsConfig {
            request_timeout: timing.request_timeout,
            pauses,
            settings_max_age: timing.secret_max_age,
            observe: Arc::new(move |backend, method, outcome| metrics.api_call(backend, method, outcome)),
            may_act: Arc::new(move || leadership.may_act().is_ok()),
            ..GroupsConfig::default()
        };
        Ok(Groups::new(Arc::new(gce), Arc::clone(&self.clock), config))
    }

    fn watch_vms(
        &self,
        bells: &Bells,
    ) -> Watched<RunnerVm, impl Stream<Item = Result<RunnerVm, watcher::Error>> + Send + use<>> {
        let pools = bells.pools.clone();
        let seen = move |vm: &RunnerVm| {
            let namespace = vm.metadata.namespace.clone().unwrap_or_default();
            pools.wake(Key { namespace, name: vm.spec.pool.name.clone() });
        };
        let unreadable = |vm: watch::Unreadable| {
            warn!(vm = vm.metadata.name, error = vm.error, "RunnerVM cannot be read: it is left alone");
        };
        watch::objects(api(&self.client, &self.config), seen, unreadable)
    }

    fn vm_context(&self, groups: Groups, sessions: Sessions) -> vm::Context {
        let timing = &self.config.timing;
        vm::Context {
            client: self.client.clone(),
            clock: Arc::clone(&self.clock),
            groups,
            forges: self.forges(),
            sessions,
            memories: vm::memory::Memories::default(),
            leadership: self.leadership.clone(),
            metrics: self.metrics.clone(),
            events: Events::new(self.client.clone()),
            timing: Timing {
                absence: timing.absence,
                idle_sighting: timing.idle_sighting,
                scope_read: timing.scope_read,
                create_deadline: timing.request_timeout * 3,
                poll: (timing.absence / 2).min(Duration::from_secs(30)),
            },
            request_timeout: timing.request_timeout,
            leading_since: self.clock.now(),
            backoffs: Backoffs::default(),
        }
    }

    fn forges(&self) -> Forges {
        let metrics = self.metrics.clone();
        let config = ForgesConfig {
            secret_max_age: self.config.timing.secret_max_age,
            request_timeout: self.config.timing.request_timeout,
            service_account: self.config.cluster.service_account.replace('/', ":"),
            observe: Arc::new(move |backend, method, outcome| metrics.api_call(backend, method, outcome)),
        };
        Forges::new(self.client.clone(), Arc::clone(&self.clock), config)
    }

    async fn start_gateway(
        &self,
        parts: &mut JoinSet<Result<&'static str, RunError>>,
        sessions: &Sessions,
        vms: &Store<RunnerVm>,
        groups: &Groups,
        stop: &CancellationToken,
    ) -> Result<(), RunError> {
        let listen = &self.config.listen;
        let address = listen.agent_listen;
        let listener = TcpListener::bind(address).await.map_err(|source| RunError::Listen { address, source })?;
        let backends = Backends {
            store: vms.clone(),
            listing: Arc::new(groups.clone()),
            client: self.client.clone(),
            clock: Arc::clone(&self.clock),
        };
        let gateway = Gateway::new(self.gateway_config()?, sessions.clone(), backends)?;
        let serving = stop.clone();
        info!(%address, "Gateway listens");
        parts.spawn(async move {
            gateway.serve(listener, serving).await?;
            Ok("gateway")
        });
        if let (Some(service), Some(ip)) = (listen.service_name.clone(), listen.pod_ip) {
            let namespace = self.config.cluster.namespace.clone();
            let address = GatewayAddress { namespace, service, ip, port: address.port() };
            let timeout = self.config.timing.request_timeout;
            let endpoints = Endpoints::new(self.client.clone(), &address, self.leadership.clone(), timeout);
            let stop = stop.clone();
            parts.spawn(async move {
                endpoints.run(stop).await;
                Ok("endpoints")
            });
        }
        Ok(())
    }

    fn gateway_config(&self) -> Result<GatewayConfig, RunError> {
        let metrics = self.metrics.clone();
        let jwks_url = match &self.config.services.jwks_url {
            Some(url) => url.clone(),
            None => GOOGLE_KEYS.parse()?,
        };
        let tls = TlsFiles {
            certificate: self.config.listen.tls_cert.clone(),
            key: self.config.listen.tls_key.clone(),
            reload_period: Duration::from_secs(5),
        };
        Ok(GatewayConfig {
            tls,
            audience: self.config.services.audience.clone(),
            jwks_url,
            heartbeat_period: self.config.timing.heartbeat,
            listing_grace: SignedDuration::try_from(self.config.timing.absence).unwrap_or(SignedDuration::MAX),
            caps: Caps::default(),
            serving: self.leadership.watch(),
            on_refusal: Arc::new(move |reason| metrics.attestation_refused(reason)),
        })
    }

    fn start_pools(
        &self,
        parts: &mut JoinSet<Result<&'static str, RunError>>,
        bells: &Bells,
        vms: Store<RunnerVm>,
        vm_context: &vm::Context,
        stop: &CancellationToken,
    ) {
        let (found, unreadable) = mpsc::channel(UNREADABLE_QUEUE);
        // When the queue is full the object is reported at the next list: nothing waits for it.
        let report = move |pool: watch::Unreadable| drop(found.try_send(pool));
        let Watched { store, objects, .. } =
            watch::objects(api::<RunnerPool>(&self.client, &self.config), |_| (), report);
        let context = self.pool_context(bells, vms, vm_context);
        parts.spawn({
            let context = context.clone();
            async move {
                pool::unreadable::report(context, unreadable).await;
                Ok("report of unreadable pools")
            }
        });
        let sweep = context.sweeper.clone().run(context.clone(), store.clone(), stop.clone());
        parts.spawn(async move {
            sweep.await;
            Ok("sweep")
        });
        let concurrency = self.config.cluster.concurrency;
        let controller = pool::run(context, (store, objects), bells.pools.clone(), concurrency, stop.clone());
        parts.spawn(async move {
            controller.await;
            Ok("pool controller")
        });
    }

    fn pool_context(&self, bells: &Bells, vms: Store<RunnerVm>, vm: &vm::Context) -> pool::Context {
        let timing = &self.config.timing;
        let sweep = pool::sweep::SweepConfig {
            interval: timing.sweep_interval,
            sightings: timing.absence,
            runner_list: timing.runner_list_interval,
            limit: timing.sweep_limit.into(),
        };
        pool::Context {
            client: self.client.clone(),
            clock: Arc::clone(&self.clock),
            vms,
            groups: vm.groups.clone(),
            forges: vm.forges.clone(),
            memory: pool::memory::Memories::default(),
            vm_memories: vm.memories.clone(),
            sweeper: pool::sweep::Sweeper::new(sweep, bells.vms.clone()),
            leadership: self.leadership.clone(),
            metrics: self.metrics.clone(),
            events: vm.events.clone(),
            request_timeout: timing.request_timeout,
            forge_check: timing.runner_list_interval,
            retry: timing.capacity_backoff,
            debounce: POOL_DEBOUNCE,
            backoffs: Backoffs::default(),
        }
    }
}

async fn count_sessions(
    sessions: Sessions,
    metrics: Metrics,
    stop: CancellationToken,
) -> Result<&'static str, RunError> {
    while tokio::time::timeout(Duration::from_secs(1), stop.cancelled()).await.is_err() {
        metrics.sessions(sessions.connected());
    }
    Ok("session count")
}
