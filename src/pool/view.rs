//! What a pool's plan is made from: facts with their times, nothing that could act.

use jiff::Timestamp;

use super::history::History;
use crate::{
    compute::{Group, groups::BackOff},
    crd::{Phase, RunnerPool, RunnerVm, conditions, conditions::DRAINING, names},
    forge::{Offer, Support},
};

/// Everything known about one pool at one moment.
#[derive(Clone, Debug)]
pub struct PoolView {
    /// The object.
    pub pool: RunnerPool,
    /// Its VMs: from a live read when something may be created, else from the cache.
    pub vms: Vec<VmFact>,
    /// Objects asked for of which no answer came: they may appear yet.
    pub expected: usize,
    /// Whether the forge accepts it.
    pub forge: Check,
    /// Which runner the forge offers.
    pub offer: Offered,
    /// Until when it accepts what this pool runs, where that is older and the forge says so.
    pub support: Option<Support>,
    /// Its groups, in order of preference.
    pub groups: Vec<GroupFact>,
    /// How its latest VMs fared.
    pub history: History,
    /// Random parts of names to give.
    pub random: Vec<u64>,
    /// Nothing of the pool was found outside by a sweep that began after its last VM went.
    pub swept: bool,
}

/// One VM, as far as its pool cares.
#[derive(Clone, Debug, PartialEq)]
pub struct VmFact {
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
    /// Version the facts are from: what is deleted must still be what was looked at.
    pub resource_version: String,
    /// When it was made.
    pub created: Option<Timestamp>,
    /// Where it is.
    pub phase: Phase,
    /// It takes no further job: finished, draining, or being deleted.
    pub leaving: bool,
    /// Its deletion was asked for.
    pub deleting: bool,
    /// Why it leaves.
    pub end: Option<String>,
    /// The same in words, some of them perhaps an agent's.
    pub end_message: String,
    /// Version of its runner; empty before it has one.
    pub runner_version: String,
    /// It was made from an older template.
    pub outdated: bool,
    /// It still belongs to the pool in Kubernetes' eyes.
    pub owned: bool,
}

/// Whether something is as it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// It is.
    Good,
    /// It is not, and only a person can help.
    Bad {
        /// CamelCase reason.
        reason: String,
        /// What is wrong and what to do.
        message: String,
    },
    /// No answer, which is not an answer.
    Unknown {
        /// CamelCase reason.
        reason: String,
        /// What was tried.
        message: String,
    },
}

/// Which runner a forge offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Offered {
    /// This one.
    Known(Offer),
    /// No answer.
    Unknown {
        /// CamelCase reason.
        reason: String,
        /// What was tried.
        message: String,
    },
}

/// One group.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupFact {
    /// Which.
    pub group: Group,
    /// Index of its reference in the spec.
    pub index: usize,
    /// Whether its settings cannot harm a job.
    pub settings: Check,
    /// It must be left alone for a while.
    pub back_off: Option<BackOff>,
    /// Instances it had in its latest list.
    pub size: usize,
}

impl PoolView {
    /// The object's uid.
    #[must_use]
    pub fn uid(&self) -> &str {
        self.pool.metadata.uid.as_deref().unwrap_or_default()
    }

    /// How many runners are to be kept.
    #[must_use]
    pub fn desired(&self) -> usize {
        let wanted = self.pool.spec.replicas.min(self.pool.spec.limits.max);
        usize::try_from(wanted).unwrap_or_default()
    }

    /// VMs that can take or are running a job.
    pub fn active(&self) -> impl Iterator<Item = &VmFact> {
        self.vms.iter().filter(|vm| !vm.leaving)
    }
}

impl VmFact {
    /// The facts about one VM of this pool.
    #[must_use]
    pub fn of(vm: &RunnerVm, pool: &RunnerPool) -> Self {
        let status = vm.status.clone().unwrap_or_default();
        let meta = &vm.metadata;
        let deleting = meta.deletion_timestamp.is_some();
        let end = conditions::find(&status.conditions, DRAINING).filter(|c| c.status == "True");
        let owner = meta.owner_references.iter().flatten().any(|owner| Some(&owner.uid) == pool.metadata.uid.as_ref());
        Self {
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            resource_version: meta.resource_version.clone().unwrap_or_default(),
            created: meta.creation_timestamp.as_ref().map(|time| time.0),
            phase: status.phase,
            leaving: deleting || end.is_some(),
            deleting,
            end: end.map(|condition| condition.reason.clone()),
            end_message: end.map(|condition| condition.message.clone()).unwrap_or_default(),
            runner_version: status.runner.map(|runner| runner.version).unwrap_or_default(),
            outdated: outdated(vm, pool),
            owned: owner,
        }
    }

    /// Whether its runner is idle or busy.
    #[must_use]
    pub fn ready(&self) -> bool {
        matches!(self.phase, Phase::Idle | Phase::Busy)
    }
}

/// Whether a new VM of this pool would differ in what a job or a reader can see.
fn outdated(vm: &RunnerVm, pool: &RunnerPool) -> bool {
    let (made, wanted) = (&vm.spec, &pool.spec);
    let group_left = !wanted.compute.gce.groups.contains(&made.group) || wanted.compute.gce.project != made.project;
    group_left
        || made.github.url != wanted.github.url
        || made.github.labels != wanted.github.labels
        || made.github.runner_group != wanted.github.runner_group
        || made.template != wanted.template
        // Not `agent`: that reaches the agents that run.
        || made.runner != wanted.runner
}

/// Selector of the pool's RunnerVMs.
#[must_use]
pub fn selector(pool: &str) -> String {
    format!("{}={pool}", names::POOL_LABEL)
}
