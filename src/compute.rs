//! Where VMs come from: the port [`Instances`], in words no cloud owns, and its backend for Google Compute Engine.
//!
//! ```text
//!   controllers ── Groups ──────────── Instances ── gce (google-cloud-compute-v1)
//!                  one list a group,   (port)
//!                  batches, back-off
//! ```
//!
//! Controllers never call the port themselves: [`groups::Groups`] shares one listing among all VMs of a group, gathers
//! names into batches and remembers which group must be left alone for a while.

pub mod gce;
pub mod groups;

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use uuid::Uuid;

use crate::crd::GroupRef;

/// Told of every call to a backend: its name, the method, and `Ok` or the class of the error.
pub type Observe = Arc<dyn Fn(&'static str, &'static str, &'static str) + Send + Sync>;

/// A managed instance group: where, in which project.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Group {
    /// Project id.
    pub project: String,
    /// Name of the group.
    pub name: String,
    /// Its zone or region.
    pub location: Location,
}

/// Where a group is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Location {
    /// A zonal group.
    Zone(String),
    /// A regional group.
    Region(String),
}

impl Group {
    /// The group a spec names; a reference without zone and region (which the CRD refuses) is none.
    #[must_use]
    pub fn of(project: &str, group: &GroupRef) -> Option<Self> {
        let location = match (&group.zone, &group.region) {
            (Some(zone), None) => Location::Zone(zone.clone()),
            (None, Some(region)) => Location::Region(region.clone()),
            _ => return None,
        };
        Some(Self { project: project.to_owned(), name: group.name.clone(), location })
    }

    /// Whether an instance in `zone` can belong to this group.
    #[must_use]
    pub fn covers_zone(&self, zone: &str) -> bool {
        match &self.location {
            Location::Zone(own) => own == zone,
            Location::Region(region) => zone.strip_prefix(region.as_str()).is_some_and(|rest| rest.starts_with('-')),
        }
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.location {
            Location::Zone(zone) => write!(f, "{}/{zone}/{}", self.project, self.name),
            Location::Region(region) => write!(f, "{}/{region}/{}", self.project, self.name),
        }
    }
}

/// Google's numeric id of an instance: what a VM is. Names can be reused, ids cannot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct InstanceId(pub u64);

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One entry of a group's list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// Name, the RunnerVM's.
    pub name: String,
    /// Absent until the machine exists.
    pub id: Option<InstanceId>,
    /// How to name it in a delete call; absent for one that is only queued.
    pub url: Option<String>,
    /// Zone, once it is known.
    pub zone: Option<String>,
    /// What the machine does.
    pub power: Power,
    /// What the group does to it.
    pub action: GroupAction,
    /// Why the last attempt of the group failed, if it did.
    pub errors: Vec<LaunchError>,
}

/// What a machine does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    /// It does not exist yet.
    Absent,
    /// It is being made or started.
    Starting,
    /// It runs.
    Running,
    /// It is going down, for whatever reason. What runs on it has seconds to say its last words: 30 after a preemption,
    /// 120 at most.
    Stopping,
    /// It is down: it will not run its job on.
    Down,
    /// A state this version does not know: no conclusion.
    Unknown,
}

/// What a group does to one of its machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupAction {
    /// Nothing.
    None,
    /// It is creating it.
    Creating,
    /// It is deleting or abandoning it.
    Deleting,
    /// It does anything else (recreating, verifying, restarting ...).
    Other,
}

/// Why a machine could not be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaunchError {
    /// What kind of trouble.
    pub class: ErrorClass,
    /// Google's code, such as `ZONE_RESOURCE_POOL_EXHAUSTED`.
    pub code: String,
    /// Google's message.
    pub message: String,
}

/// What kind of trouble an error means, and so what to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// The zone is sold out: another group, later.
    Capacity,
    /// A quota is used up: another group, much later.
    Quota,
    /// Too many calls: the next minute.
    RateLimit,
    /// Permissions, invalid fields, constraints: nothing will help but a person.
    Config,
    /// The group (or what was named) does not exist.
    NotFound,
    /// A name is taken.
    AlreadyExists,
    /// Anything that may be better in a moment: no answer, 5xx.
    Transient,
}

impl ErrorClass {
    /// For conditions, events and metric labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Capacity => "Stockout",
            Self::Quota => "QuotaExceeded",
            Self::RateLimit => "RateLimited",
            Self::Config => "Misconfigured",
            Self::NotFound => "NotFound",
            Self::AlreadyExists => "AlreadyExists",
            Self::Transient => "Unavailable",
        }
    }
}

/// What can be addressed in a delete call.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DeleteTarget {
    /// The URL of a list's entry: survives nothing by accident.
    Url(String),
    /// A bare name, only for an entry without a URL. Never mixed with URLs in one call.
    Name(String),
}

/// An operation that was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Its name.
    pub name: String,
    /// Whether it is over; over means scheduled, not that a machine exists or is gone.
    pub done: bool,
    /// What went wrong, when it is over and something did.
    pub errors: Vec<LaunchError>,
}

/// A group's settings as far as they can harm a job, and what its template gives a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupSettings {
    /// An autoscaler is attached: it would pick victims.
    pub autoscaler: bool,
    /// `instanceLifecyclePolicy.defaultActionOnFailure` is not DO_NOTHING: it would remake machines under their names.
    pub repairs: bool,
    /// `updatePolicy.type` is not OPPORTUNISTIC: it would replace machines that run jobs.
    pub proactive_updates: bool,
    /// Regional and `instanceRedistributionType` is not NONE: it would move machines that run jobs.
    pub redistributes: bool,
    /// Autohealing is configured: it would remake machines.
    pub autohealing: bool,
    /// Stateful policy is configured: deletions would keep disks.
    pub stateful: bool,
    /// The template has a service account: without one there are no identity tokens.
    pub service_account: bool,
    /// The metadata keys the template sets.
    pub metadata_keys: Vec<String>,
}

/// A call to the cloud that did not succeed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{action} {group}: {message}")]
pub struct ComputeError {
    /// What was tried, such as `listing the instances of`.
    pub action: &'static str,
    /// On which group.
    pub group: Group,
    /// What kind of trouble.
    pub class: ErrorClass,
    /// Whether the call may have had its effect all the same (no answer, 5xx).
    pub ambiguous: bool,
    /// What the cloud said, without secrets, cut.
    pub message: String,
    /// How long the cloud asked to be left alone.
    pub retry_after: Option<Duration>,
}

/// The port to a cloud's instance groups. Every call has a timeout of its own.
#[async_trait]
pub trait Instances: Send + Sync + fmt::Debug {
    /// Every instance of the group, all pages. An answer that could not be read whole is an error, never a shorter list.
    async fn list(&self, group: &Group) -> Result<Vec<Instance>, ComputeError>;

    /// Asks for instances of these names (at most 1,000). `request` identifies retries of this very call.
    async fn create(&self, group: &Group, names: &[String], request: Uuid) -> Result<Operation, ComputeError>;

    /// Asks for these instances to be deleted (at most 1,000, all URLs or all names). What is not a member is skipped
    /// silently: only a list shows success.
    async fn delete(&self, group: &Group, targets: &[DeleteTarget], request: Uuid) -> Result<Operation, ComputeError>;

    /// What became of an operation.
    async fn operation(&self, group: &Group, name: &str) -> Result<Operation, ComputeError>;

    /// The group's settings and its template's.
    async fn settings(&self, group: &Group) -> Result<GroupSettings, ComputeError>;

    /// The last words of an agent that never called in: guest attribute `miglet/status`, untrusted. `None` when it
    /// left none.
    async fn last_words(&self, group: &Group, zone: &str, name: &str) -> Result<Option<String>, ComputeError>;
}
