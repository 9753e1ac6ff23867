//! What each part is made with: the configuration, turned into the parts' own settings.

use std::{sync::Arc, time::Duration};

use jiff::SignedDuration;
use kube::runtime::reflector::Store;

use super::{
    RunError,
    operator::{Bells, Operator},
};
use crate::{
    backoff::Backoffs,
    compute::{
        gce::{Gce, GceConfig},
        groups::{Groups, GroupsConfig, Pause, Pauses},
    },
    crd::RunnerVm,
    events::Events,
    forge::credentials::{Forges, ForgesConfig},
    gateway::{Caps, GatewayConfig, TlsFiles, sessions::Sessions},
    pool,
    vm::{self, view::Timing},
};

/// Google's keys for identity tokens.
const GOOGLE_KEYS: &str = "https://www.googleapis.com/oauth2/v3/certs";
/// Between two looks at one pool because of its VMs: many VMs' news in one pass, a replacement within a moment.
const POOL_PAUSE: Duration = Duration::from_millis(200);
/// Between two writes of one pool's counts.
const POOL_STATUS_PAUSE: Duration = Duration::from_secs(1);

impl Operator {
    pub(super) async fn groups(&self) -> Result<Groups, RunError> {
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

    pub(super) fn vm_context(&self, groups: Groups, sessions: Sessions) -> vm::Context {
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

    pub(super) fn gateway_config(&self) -> Result<GatewayConfig, RunError> {
        let (metrics, events) = (self.metrics.clone(), self.metrics.clone());
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
            on_event: Arc::new(move |kind, outcome| events.agent_event(kind, outcome)),
        })
    }

    pub(super) fn pool_context(&self, bells: &Bells, vms: Store<RunnerVm>, vm: &vm::Context) -> pool::Context {
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
            sessions: vm.sessions.clone(),
            memory: pool::memory::Memories::default(),
            vm_memories: vm.memories.clone(),
            sweeper: pool::sweep::Sweeper::new(sweep, bells.vms.clone()),
            leadership: self.leadership.clone(),
            metrics: self.metrics.clone(),
            events: vm.events.clone(),
            request_timeout: timing.request_timeout,
            forge_check: timing.runner_list_interval,
            retry: timing.capacity_backoff,
            pause: POOL_PAUSE,
            status_pause: POOL_STATUS_PAUSE,
            resync: timing.secret_max_age,
            backoffs: Backoffs::default(),
        }
    }
}
