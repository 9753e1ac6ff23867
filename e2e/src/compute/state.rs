//! The project's state: groups, instances, templates, operations. Plain data behind one lock; time passes outside.
//!
//! Each instance keeps the history of what a list would have shown of it, so a list that lags behind is simply a
//! list of an earlier moment, and can be asked for at any time.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use rand::Rng;
use serde_json::{Map, Value};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::{
    errors::{ApiError, Attempt},
    metadata::Metadata,
    operation::Operation,
};

/// Prefix of every reference the API returns.
pub(crate) const PREFIX: &str = "https://www.googleapis.com/compute/v1/";

/// A zone or a region.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    Zone(String),
    Region(String),
}

impl Place {
    pub(crate) fn path(&self) -> String {
        match self {
            Self::Zone(name) => format!("zones/{name}"),
            Self::Region(name) => format!("regions/{name}"),
        }
    }

    /// Name of the field that holds the place, and the place's own name.
    pub(crate) fn field(&self) -> (&'static str, &str) {
        match self {
            Self::Zone(name) => ("zone", name),
            Self::Region(name) => ("region", name),
        }
    }
}

/// What identifies a group.
pub(crate) type GroupKey = (Place, String);

#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) id: u64,
    pub(crate) zones: Vec<String>,
    pub(crate) fingerprint: String,
    pub(crate) target: i64,
    pub(crate) created: Timestamp,
    /// The configured part of the resource, as written by clients.
    pub(crate) body: Map<String, Value>,
    /// What `listErrors` tells.
    pub(crate) errors: Vec<Value>,
}

/// Status of an instance, as Compute spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// Resources are being allocated.
    Provisioning,
    /// Being prepared for its first boot.
    Staging,
    /// Switched on.
    Running,
    /// Being switched off.
    Stopping,
    /// Switched off.
    Terminated,
}

impl Status {
    /// The wire name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Provisioning => "PROVISIONING",
            Self::Staging => "STAGING",
            Self::Running => "RUNNING",
            Self::Stopping => "STOPPING",
            Self::Terminated => "TERMINATED",
        }
    }
}

/// What the group is doing about an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doing {
    /// Nothing.
    None,
    /// Creating it, for as long as it takes.
    Creating,
    /// Creating it, once.
    CreatingWithoutRetries,
    /// Making it again under its name.
    Recreating,
    /// Deleting it.
    Deleting,
}

impl Doing {
    /// The wire name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "NONE",
            Self::Creating => "CREATING",
            Self::CreatingWithoutRetries => "CREATING_WITHOUT_RETRIES",
            Self::Recreating => "RECREATING",
            Self::Deleting => "DELETING",
        }
    }
}

/// What a list shows of an instance.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) id: Option<u64>,
    pub(crate) status: Option<Status>,
    pub(crate) doing: Doing,
    pub(crate) zone: String,
    pub(crate) failed: Option<Attempt>,
}

/// What is asked of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Delete,
    /// Deleted behind the group's back.
    DeleteElsewhere,
    PowerOff,
    Preempt,
    Recreate,
}

/// A managed instance.
#[derive(Debug)]
pub(crate) struct Vm {
    pub(crate) group: GroupKey,
    pub(crate) name: String,
    pub(crate) created: Timestamp,
    pub(crate) template: String,
    pub(crate) properties: Value,
    pub(crate) view: View,
    pub(crate) gone: bool,
    history: Vec<(Instant, Option<View>)>,
    pub(crate) metadata: Option<(Arc<Metadata>, SocketAddr)>,
    pub(crate) console: Option<PathBuf>,
    /// What the serial console said before the power went.
    pub(crate) transcript: String,
    commands: UnboundedSender<Command>,
}

impl Vm {
    /// Changes what is seen from now on.
    pub(crate) fn change(&mut self, change: impl FnOnce(&mut View)) {
        change(&mut self.view);
        self.history.push((Instant::now(), Some(self.view.clone())));
    }

    /// What a list as of `then` shows.
    pub(crate) fn seen(&self, then: Instant) -> Option<&View> {
        self.history.iter().rev().find(|(at, _)| *at <= then).and_then(|(_, view)| view.as_ref())
    }

    pub(crate) fn vanish(&mut self) {
        self.gone = true;
        self.metadata = None;
        self.history.push((Instant::now(), None));
    }

    pub(crate) fn tell(&self, command: Command) {
        // Nobody listens any more once it is gone, and then there is nothing left to do.
        self.commands.send(command).unwrap_or_default();
    }

    /// vCPUs it holds.
    pub(crate) fn cpus(&self) -> u32 {
        match self.view.status {
            Some(Status::Terminated) | None => 0,
            Some(_) => cpus(&self.properties),
        }
    }
}

/// What goes wrong on demand.
#[derive(Debug, Default)]
pub(crate) struct Hostile {
    pub(crate) stockouts: BTreeSet<String>,
    pub(crate) cpu_quotas: BTreeMap<String, u32>,
    pub(crate) lag: Duration,
    pub(crate) hung_boots: u32,
    pub(crate) rate: Option<Rate>,
    pub(crate) unknown_fields: bool,
    pub(crate) distortions: BTreeMap<String, Value>,
    pub(crate) page: Option<usize>,
    pub(crate) early_waits: bool,
}

/// Calls allowed per window of wall-clock time; refills when the next window starts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    pub(crate) calls: u32,
    pub(crate) window: Duration,
    pub(crate) current: u128,
    pub(crate) used: u32,
}

/// Everything in the project.
#[derive(Debug, Default)]
pub(crate) struct World {
    pub(crate) groups: BTreeMap<GroupKey, Group>,
    pub(crate) vms: BTreeMap<u64, Vm>,
    /// Templates by their path below the project.
    pub(crate) templates: BTreeMap<String, Value>,
    pub(crate) operations: BTreeMap<String, Operation>,
    pub(crate) requests: HashMap<String, String>,
    pub(crate) hostile: Hostile,
    /// Instances whose life has not started yet.
    pub(crate) unborn: Vec<(u64, UnboundedReceiver<Command>)>,
    sequence: u64,
}

impl World {
    /// Members of a group that are not gone.
    pub(crate) fn members<'a>(&'a self, key: &'a GroupKey) -> impl Iterator<Item = (u64, &'a Vm)> {
        self.vms.iter().filter(move |(_, vm)| !vm.gone && vm.group == *key).map(|(seq, vm)| (*seq, vm))
    }

    /// A living instance by name.
    pub(crate) fn vm(&self, name: &str) -> Option<&Vm> {
        self.vms.values().rev().find(|vm| !vm.gone && vm.name == name)
    }

    /// The key of the group of this name, wherever it is.
    pub(crate) fn group_named(&self, name: &str) -> Option<GroupKey> {
        self.groups.keys().find(|(_, n)| n == name).cloned()
    }

    /// Adds a managed instance that is to be created; its life starts when the caller lets go of the world.
    pub(crate) fn add_vm(&mut self, key: &GroupKey, name: &str, retries: bool) -> Result<(), ApiError> {
        let group = self.groups.get_mut(key).ok_or_else(|| ApiError::not_found(&key.1))?;
        let template = group.body.get("instanceTemplate").and_then(Value::as_str).unwrap_or_default().to_owned();
        let properties = below_project(&template)
            .and_then(|path| self.templates.get(path))
            .and_then(|template| template.get("properties"))
            .cloned()
            .ok_or_else(|| ApiError::not_found(&template))?;
        group.target += 1;
        let doing = if retries { Doing::Creating } else { Doing::CreatingWithoutRetries };
        let zone = group.zones.first().cloned().unwrap_or_default();
        let view = View { id: None, status: None, doing, zone, failed: None };
        let (commands, receiver) = unbounded_channel();
        self.sequence += 1;
        let vm = Vm {
            group: key.clone(),
            name: name.to_owned(),
            created: now(),
            template,
            properties,
            history: vec![(Instant::now(), Some(view.clone()))],
            view,
            gone: false,
            metadata: None,
            console: None,
            transcript: String::new(),
            commands,
        };
        self.vms.insert(self.sequence, vm);
        self.unborn.push((self.sequence, receiver));
        Ok(())
    }

    /// Why an instance cannot get capacity in this zone now.
    pub(crate) fn refusal(&self, project: &str, zone: &str, vm: &Vm) -> Option<Attempt> {
        if self.hostile.stockouts.contains(zone) {
            return Some(Attempt::stockout(project, zone, &vm.name));
        }
        let region = region(zone);
        let limit = *self.hostile.cpu_quotas.get(region)?;
        let living = self.vms.values().filter(|vm| !vm.gone && self::region(&vm.view.zone) == region);
        let used: u32 = living.map(Vm::cpus).sum();
        (used + cpus(&vm.properties) > limit).then(|| Attempt::quota(region, limit, &vm.name))
    }
}

/// vCPUs of the machine type in these template properties: the last number of its name.
fn cpus(properties: &Value) -> u32 {
    let machine_type = properties.get("machineType").and_then(Value::as_str).unwrap_or_default();
    machine_type.rsplit('-').next().and_then(|n| n.parse().ok()).unwrap_or(1)
}

/// The region of a zone.
pub(crate) fn region(zone: &str) -> &str {
    zone.rsplit_once('-').map_or(zone, |(region, _)| region)
}

/// The part of a reference (URL or partial path) that follows the project.
pub(crate) fn below_project(reference: &str) -> Option<&str> {
    match reference.split_once("projects/") {
        Some((_, rest)) => rest.split_once('/').map(|(_, path)| path),
        None => Some(reference),
    }
}

/// A numeric id as Compute makes them.
pub(crate) fn new_id() -> u64 {
    rand::rng().random_range(1_000_000_000_000_000_000..9_000_000_000_000_000_000)
}

/// Eight random bytes, which is all a fingerprint is; Google's `byte` is base64 for URLs.
pub(crate) fn fingerprint() -> String {
    use base64::Engine;
    base64::engine::general_purpose::URL_SAFE.encode(rand::rng().random::<[u8; 8]>())
}

/// The wall clock.
#[allow(clippy::disallowed_methods, reason = "the simulator is the outside world: its clock is the real one")]
pub(crate) fn now() -> Timestamp {
    Timestamp::now()
}
