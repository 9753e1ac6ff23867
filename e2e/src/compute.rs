//! Google Compute, simulated: what Miglet uses of it, with the published wire format and the documented traps.
//!
//! ```text
//!  /compute/v1/...         rest -> managers, instances, templates, operations -> state (one lock, plain data)
//!  /oauth2/v3/certs        the published keys of identity tokens
//!  /computeMetadata/v1/... the operator's own metadata server, for application-default credentials
//!  /_fake/...              control: what goes wrong, from outside
//!
//!  every instance          lifecycle: a task that moves it from placeholder to gone, boots its machine (the port
//!                          `Machines`) and serves its metadata on a port of its own
//! ```
//!
//! Changes take effect when they are accepted; operations and lists show it later, as configured. What clients send
//! and what they get is checked against Google's discovery document, and a violation fails the test.

mod control;
mod defaults;
mod errors;
mod hostile;
mod identity;
mod instances;
mod lifecycle;
pub(crate) mod machines;
mod managers;
mod members;
mod metadata;
mod operation;
mod options;
mod process;
mod rest;
mod standalone;
mod state;
mod templates;

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    ops::Deref,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicI64},
};

use axum::{
    Json, Router,
    extract::State,
    response::IntoResponse,
    routing::{any, get},
};
use rand::Rng;
use serde::Serialize;
use tokio::task::JoinSet;

pub use self::{
    control::Control,
    hostile::Missing,
    identity::{IdentityError, SignedBy},
    machines::{Boot, Machine, Machines, NoMachines},
    options::{ComputeOptions, Delays, GroupSpec, Location},
    process::{Agent, Prepare, ProcessMachines},
    standalone::{Endpoint, standalone},
};
use self::{
    identity::Identity,
    metadata::{Metadata, Subject},
    state::{Vm, World},
};
use crate::{
    faults::Faults,
    published::{
        PublishedError,
        discovery::{self, Discovery},
    },
    server::Server,
};

/// Why the simulator did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No port.
    #[error("the Compute simulator cannot listen")]
    Listen(#[from] io::Error),
    /// No keys for identity tokens.
    #[error("the Compute simulator has no identity keys")]
    Identity(#[from] IdentityError),
    /// The published description is required and cannot be had.
    #[error("the Compute simulator cannot be checked against the published description")]
    Published(#[from] PublishedError),
}

/// An instance as it is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Instance {
    /// Name.
    pub name: String,
    /// Numeric id; none before it exists.
    pub id: Option<u64>,
    /// Group.
    pub group: String,
    /// Zone.
    pub zone: String,
    /// e.g. `RUNNING`; none before it exists.
    pub status: Option<&'static str>,
    /// e.g. `CREATING`.
    pub action: &'static str,
    /// Its metadata server, once it has booted.
    pub metadata_host: Option<SocketAddr>,
    /// Whether it was told that it is being preempted.
    pub preempted: bool,
    /// Where its serial console is recorded.
    pub console: Option<PathBuf>,
}

impl From<&Vm> for Instance {
    fn from(vm: &Vm) -> Self {
        Self {
            name: vm.name.clone(),
            id: vm.view.id,
            group: vm.group.1.clone(),
            zone: vm.view.zone.clone(),
            status: vm.view.status.map(state::Status::name),
            action: vm.view.doing.name(),
            metadata_host: vm.metadata.as_ref().map(|(_, address)| *address),
            preempted: vm.metadata.as_ref().is_some_and(|(metadata, _)| metadata.is_preempted()),
            console: vm.console.clone(),
        }
    }
}

pub(crate) struct Inner {
    pub(crate) options: ComputeOptions,
    pub(crate) token: String,
    pub(crate) identity: Arc<Identity>,
    pub(crate) skew: Arc<AtomicI64>,
    pub(crate) metadata_faults: Faults,
    pub(crate) contract: Option<Arc<Discovery>>,
    world: Mutex<World>,
    violations: Mutex<Vec<String>>,
    lives: Mutex<JoinSet<()>>,
}

impl Inner {
    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        lock(&self.world)
    }

    /// Starts the lives of the instances that were just added.
    pub(crate) fn start_unborn(self: &Arc<Self>) {
        let unborn = std::mem::take(&mut self.world().unborn);
        let mut lives = lock(&self.lives);
        while lives.try_join_next().is_some() {}
        for (sequence, commands) in unborn {
            lives.spawn(lifecycle::live(Arc::clone(self), sequence, commands));
        }
    }

    pub(crate) fn violated(&self, found: Vec<String>) {
        lock(&self.violations).extend(found);
    }
}

/// A handle on the simulated project: looks at it, and makes things go wrong. Cheap to clone, also into fault hooks.
#[derive(Clone)]
pub struct Cloud {
    inner: Arc<Inner>,
}

impl Cloud {
    /// Makes a group and its template.
    pub fn add_group(&self, spec: &GroupSpec) {
        self.inner.make_group(spec);
    }

    /// The bearer token that may do everything.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.inner.token
    }

    /// Members of a group, in the order of their creation.
    #[must_use]
    pub fn instances(&self, group: &str) -> Vec<Instance> {
        self.all_instances().into_iter().filter(|instance| instance.group == group).collect()
    }

    /// Every instance of the project, placeholders included.
    #[must_use]
    pub fn all_instances(&self) -> Vec<Instance> {
        self.inner.world().vms.values().filter(|vm| !vm.gone).map(Instance::from).collect()
    }

    /// One instance by name.
    #[must_use]
    pub fn instance(&self, name: &str) -> Option<Instance> {
        self.inner.world().vm(name).map(Instance::from)
    }

    /// How many instances were ever created, those that are gone included.
    #[must_use]
    pub fn created(&self) -> usize {
        self.inner.world().vms.len()
    }

    /// Names of all instances that were ever created, those that are gone included: one name twice is two instances.
    #[must_use]
    pub fn created_names(&self) -> Vec<String> {
        self.inner.world().vms.values().map(|vm| vm.name.clone()).collect()
    }

    /// A group's target size.
    #[must_use]
    pub fn target_size(&self, group: &str) -> Option<i64> {
        let world = self.inner.world();
        world.group_named(group).and_then(|key| world.groups.get(&key)).map(|group| group.target)
    }

    /// What an instance wrote to its guest attributes below `namespace` or `namespace/key`.
    #[must_use]
    pub fn guest_attributes(&self, instance: &str, query: &str) -> BTreeMap<String, String> {
        let world = self.inner.world();
        let metadata = world.vm(instance).and_then(|vm| vm.metadata.as_ref());
        let found = metadata.map(|(metadata, _)| metadata.guest_attributes(query)).unwrap_or_default();
        found.into_iter().map(|(namespace, key, value)| (format!("{namespace}/{key}"), value)).collect()
    }

    /// Everything said so far that Google's description does not allow.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        lock(&self.inner.violations).clone()
    }
}

/// The simulator: serves until dropped, and takes every machine with it.
pub struct ComputeSim {
    cloud: Cloud,
    server: Server,
}

impl Deref for ComputeSim {
    type Target = Cloud;

    fn deref(&self) -> &Cloud {
        &self.cloud
    }
}

impl ComputeSim {
    /// Starts an empty project.
    ///
    /// # Errors
    /// When it cannot listen, or its traffic is to be checked and cannot be.
    pub async fn start(options: ComputeOptions) -> Result<Self, StartError> {
        let contract = if options.checked { discovery::compute().await? } else { None };
        let address = options.address.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)));
        let inner = Arc::new(Inner {
            options,
            token: format!("ya29.{:032x}", rand::rng().random::<u128>()),
            identity: Arc::new(Identity::new()?),
            skew: Arc::default(),
            metadata_faults: Faults::default(),
            contract,
            world: Mutex::default(),
            violations: Mutex::default(),
            lives: Mutex::default(),
        });
        let cloud = Cloud { inner };
        let faults = Faults::default();
        let server = Server::bind(router(&cloud, &faults), address, faults).await?;
        Ok(Self { cloud, server })
    }

    /// REST root: `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// Where the keys of identity tokens are published.
    #[must_use]
    pub fn jwks_url(&self) -> String {
        format!("{}/oauth2/v3/certs", self.server.url())
    }

    /// `host:port` for `GCE_METADATA_HOST`: the operator's own application-default credentials.
    #[must_use]
    pub fn adc_host(&self) -> String {
        self.server.address().to_string()
    }

    /// Its traffic and faults.
    #[must_use]
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// A handle that outlives borrows of this.
    #[must_use]
    pub fn cloud(&self) -> Cloud {
        self.cloud.clone()
    }

    /// Fails the test if anything said does not conform to Google's description.
    ///
    /// # Panics
    /// On any violation so far.
    pub fn assert_conforms(&self) {
        let found = std::mem::take(&mut *lock(&self.inner.violations));
        assert!(found.is_empty(), "Compute traffic that Google's description does not allow:\n{}", found.join("\n"));
    }
}

impl Drop for ComputeSim {
    fn drop(&mut self) {
        self.inner.options.machines.power_off_all();
        lock(&self.inner.lives).abort_all();
        if !std::thread::panicking() {
            self.assert_conforms();
        }
    }
}

fn router(cloud: &Cloud, faults: &Faults) -> Router {
    let inner = &cloud.inner;
    let operator = Subject {
        name: "operator".to_owned(),
        id: state::new_id(),
        zone: "us-central1-a".to_owned(),
        project: inner.options.project.clone(),
        project_number: inner.options.project_number,
        service_account: Some("miglet-operator@acme-ci.iam.gserviceaccount.com".to_owned()),
        token: inner.token.clone(),
        created: state::now().as_second(),
    };
    let metadata = Metadata::new(operator, Arc::clone(&inner.identity), Arc::clone(&inner.skew), BTreeMap::new());
    Router::new()
        .route("/compute/v1/{*path}", any(rest::serve))
        .route("/oauth2/v3/certs", get(certificates))
        .with_state(Arc::clone(inner))
        .merge(control::router(cloud.clone(), faults.clone()))
        .fallback_service(Arc::new(metadata).router())
}

async fn certificates(State(inner): State<Arc<Inner>>) -> impl IntoResponse {
    ([("cache-control", "public, max-age=3600, must-revalidate")], Json(inner.identity.jwks()))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
