//! What a leader does, part by part. A part that ends before it is told to ends the process.

use std::{future::Future, sync::Arc, time::Duration};

use futures::Stream;
use kube::{
    Client,
    runtime::{reflector::Store, watcher},
};
use tokio::{net::TcpListener, sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{RunError, api};
use crate::{
    clock::Clock,
    config::Config,
    crd::{RunnerPool, RunnerVm},
    endpoints::{Endpoints, GatewayAddress},
    gateway::{Backends, Gateway, sessions::Sessions},
    health::{Gate, Health},
    leadership::Leadership,
    metrics::Metrics,
    pool,
    vm::{self, poller::Poller},
    wakes::{Key, Wakes},
    watch::{self, Watched},
};

/// Unreadable objects that may wait to be reported.
const UNREADABLE_QUEUE: usize = 64;
/// How long passes under way may take once the process is told to stop.
const LAST_PASSES: Duration = Duration::from_secs(15);

/// What leading takes.
pub(super) struct Operator {
    pub(super) config: Config,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) metrics: Metrics,
    pub(super) health: Health,
    pub(super) caches: Gate,
    pub(super) client: Client,
    pub(super) leadership: Leadership,
}

/// What wakes whom.
#[derive(Clone, Default)]
pub(super) struct Bells {
    pub(super) vms: Wakes,
    pub(super) pools: Wakes,
}

/// The running parts, and what stops them.
struct Parts {
    running: JoinSet<Result<&'static str, RunError>>,
    stop: CancellationToken,
}

impl Parts {
    fn add(&mut self, name: &'static str, part: impl Future<Output = ()> + Send + 'static) {
        self.running.spawn(async move {
            part.await;
            Ok(name)
        });
    }

    /// Waits for the first part that ends, then stops the others and lets them finish what they are at.
    async fn end(mut self) -> Result<(), RunError> {
        let first = self.running.join_next().await;
        let told = self.stop.is_cancelled();
        self.stop.cancel();
        let rest = async { while self.running.join_next().await.is_some() {} };
        if tokio::time::timeout(LAST_PASSES, rest).await.is_err() {
            warn!("Not every pass finished in time");
        }
        match first {
            Some(Ok(Err(error))) => Err(error),
            _ if told => Ok(()),
            Some(Ok(Ok(name))) => Err(RunError::Ended(name)),
            Some(Err(_)) | None => Err(RunError::Ended("operator")),
        }
    }
}

impl Operator {
    /// Waits for the lease, then works until `stop` or until something ends that should not.
    pub(super) async fn lead(&self, stop: CancellationToken) -> Result<(), RunError> {
        self.metrics.leading(&self.config.lease.lease_name, false);
        let mut leading = self.leadership.watch();
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            led = leading.wait_for(|leading| *leading) => {
                led.map_err(|_| RunError::Ended("leader election"))?;
            }
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
        let Watched { store: vms, objects, mut ready } = self.watch_vms(&bells);
        let context = self.vm_context(groups.clone(), sessions.clone());
        let mut parts = Parts { running: JoinSet::new(), stop: stop.clone() };
        let concurrency = self.config.cluster.concurrency;
        let watched = (vms.clone(), objects);
        parts.add("VM controller", vm::run(context.clone(), watched, bells.vms.clone(), concurrency, stop.clone()));
        tokio::select! {
            () = stop.cancelled() => return parts.end().await,
            filled = ready.wait_for(|ready| *ready) => {
                filled.map_err(|_| RunError::Ended("watch of RunnerVMs"))?;
            }
        }
        self.caches.open();
        self.start_gateway(&mut parts, &context, &vms).await?;
        self.start_pools(&mut parts, &bells, vms.clone(), &context);
        let interval = self.config.timing.list_interval;
        // A turn takes as long as the slowest list; one that hangs for minutes is stuck.
        let limit = (interval + self.config.timing.request_timeout) * 10;
        let heartbeat = Arc::new(self.health.heartbeat("poller", limit));
        let poller = Poller {
            groups,
            vms,
            wakes: bells.vms,
            memories: context.memories.clone(),
            sessions: sessions.clone(),
            metrics: self.metrics.clone(),
            backoffs: context.backoffs.clone(),
            clock: Arc::clone(&self.clock),
            interval,
            heartbeat,
        };
        parts.add("poller", poller.run(stop.clone()));
        parts.add("session count", count_sessions(sessions, self.metrics.clone(), stop));
        parts.end().await
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

    async fn start_gateway(
        &self,
        parts: &mut Parts,
        context: &vm::Context,
        vms: &Store<RunnerVm>,
    ) -> Result<(), RunError> {
        let listen = &self.config.listen;
        let address = listen.agent_listen;
        let listener = TcpListener::bind(address).await.map_err(|source| RunError::Listen { address, source })?;
        let backends = Backends {
            store: vms.clone(),
            listing: Arc::new(context.groups.clone()),
            client: self.client.clone(),
            clock: Arc::clone(&self.clock),
            may_act: Arc::new({
                let leadership = self.leadership.clone();
                move || leadership.may_act().is_ok()
            }),
        };
        let gateway = Gateway::new(self.gateway_config()?, context.sessions.clone(), backends)?;
        let serving = parts.stop.clone();
        info!(%address, "Gateway listens");
        parts.running.spawn(async move {
            gateway.serve(listener, serving).await?;
            Ok("gateway")
        });
        if let (Some(service), Some(ip)) = (listen.service_name.clone(), listen.pod_ip) {
            let namespace = self.config.cluster.namespace.clone();
            let address = GatewayAddress { namespace, service, ip, port: address.port() };
            let timeout = self.config.timing.request_timeout;
            let endpoints = Endpoints::new(self.client.clone(), &address, self.leadership.clone(), timeout);
            parts.add("endpoints", endpoints.run(parts.stop.clone()));
        }
        Ok(())
    }

    fn start_pools(&self, parts: &mut Parts, bells: &Bells, vms: Store<RunnerVm>, vm_context: &vm::Context) {
        let (found, unreadable) = mpsc::channel(UNREADABLE_QUEUE);
        // When the queue is full the object is reported at the next list: nothing waits for it.
        let report = move |pool: watch::Unreadable| drop(found.try_send(pool));
        let Watched { store, objects, .. } =
            watch::objects(api::<RunnerPool>(&self.client, &self.config), |_| (), report);
        let context = self.pool_context(bells, vms, vm_context);
        let stop = parts.stop.clone();
        parts.add("report of unreadable pools", {
            let (context, stop) = (context.clone(), stop.clone());
            async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = pool::unreadable::report(context, unreadable) => {}
                }
            }
        });
        parts.add("sweep", context.sweeper.clone().run(context.clone(), store.clone(), stop.clone()));
        let concurrency = self.config.cluster.concurrency;
        let watched = (store, objects);
        parts.add("pool controller", pool::run(context, watched, bells.pools.clone(), concurrency, stop));
    }
}

async fn count_sessions(sessions: Sessions, metrics: Metrics, stop: CancellationToken) {
    while tokio::time::timeout(Duration::from_secs(1), stop.cancelled()).await.is_err() {
        metrics.sessions(sessions.connected());
    }
}
