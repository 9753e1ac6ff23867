//! What a VM's plan is made from: facts with their times, nothing that could act.

use std::time::Duration;

use jiff::Timestamp;

use super::{
    memory::{Creation, Memory},
    plan::later,
};
use crate::{
    compute::{Instance, Power},
    crd::{RunnerVm, RunnerVmStatus, names},
    gateway::{sessions::AgentView, settings::Settings},
};

/// Everything known about one VM at one moment.
#[derive(Clone, Debug)]
pub struct VmView {
    /// The object.
    pub vm: RunnerVm,
    /// What the group's latest list says.
    pub presence: Presence,
    /// What its agent says; `None` when it was not heard in this process.
    pub agent: Option<AgentView>,
    /// Another boot of it called in.
    pub rebooted: bool,
    /// Why its agent cannot be talked to, if that was so when it last called in.
    pub unsupported: Option<String>,
    /// What is wanted of its agent.
    pub settings: Settings,
    /// Whether the forge can be asked about it.
    pub access: Access,
    /// What this process did and saw before.
    pub memory: Memory,
    /// When this process took over: silence before that is nobody's.
    pub leading_since: Timestamp,
}

/// What a group's list says about a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Presence {
    /// No list yet.
    Unknown,
    /// It is there.
    Present(Instance),
    /// It is in none of the lists from `first` to `last` (when they were asked for).
    Absent {
        /// The first list without it.
        first: Timestamp,
        /// The latest list without it.
        last: Timestamp,
    },
}

/// Whether the forge can be asked about a VM's registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// It can; a read last showed the scope's runners then.
    Usable {
        /// When.
        seen: Option<Timestamp>,
    },
    /// It cannot, for now: why, in words.
    Blocked(String),
    /// The Secret is gone and its namespace is going: it never will again.
    Lost,
}

/// Intervals decisions are made with.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Two lists this far apart prove absence.
    pub absence: Duration,
    /// Two sightings of an idle agent this far apart corroborate a 404.
    pub idle_sighting: Duration,
    /// A 404 counts only while the scope was seen this recently.
    pub scope_read: Duration,
    /// When a create call of which nothing was heard can have no effect any more.
    pub create_deadline: Duration,
    /// How often something that is waited for is looked at.
    pub poll: Duration,
}

impl VmView {
    /// Its status; the default one before the first write.
    #[must_use]
    pub fn status(&self) -> RunnerVmStatus {
        self.vm.status.clone().unwrap_or_default()
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.vm.metadata.name.as_deref().unwrap_or_default()
    }

    /// When its deletion was asked for.
    #[must_use]
    pub fn deletion_requested(&self) -> Option<Timestamp> {
        self.vm.metadata.deletion_timestamp.as_ref().map(|time| time.0)
    }

    /// When it was made.
    #[must_use]
    pub fn created(&self) -> Option<Timestamp> {
        self.vm.metadata.creation_timestamp.as_ref().map(|time| time.0)
    }

    /// Why a user wants it gone at once, if one does.
    #[must_use]
    pub fn terminate_now(&self) -> Option<&str> {
        self.annotation(names::TERMINATE_NOW)
    }

    /// The value of an annotation, if it is there.
    #[must_use]
    pub fn annotation(&self, name: &str) -> Option<&str> {
        self.vm.metadata.annotations.as_ref()?.get(name).map(String::as_str)
    }

    /// Whether no instance of this VM exists or can still appear.
    #[must_use]
    pub fn instance_gone(&self, now: Timestamp, timing: &Timing) -> bool {
        let Some(requested) = self.status().create_requested_time else { return true };
        let settled = match self.memory.creation {
            Some(Creation::Accepted { at }) => at,
            Some(Creation::Unknown { at }) => later(at, timing.create_deadline),
            // Asked for by the process before this one, as late as it could, or by nobody.
            Some(Creation::Refused { .. }) | None => later(requested.0.max(self.leading_since), timing.create_deadline),
        };
        if self.speaks() {
            return false;
        }
        match self.presence {
            Presence::Absent { first, last } => {
                // A list from before the create call was settled cannot show what came after it.
                let first = first.max(settled);
                now >= settled && last >= later(first, timing.absence)
            }
            Presence::Unknown | Presence::Present(_) => false,
        }
    }

    /// Whether its agent's word outweighs lists without it (a group that answers 404 for a while): what speaks is there.
    /// Not once it is to go: a connection held open from elsewhere must not hold the object.
    fn speaks(&self) -> bool {
        self.deletion_requested().is_none() && self.agent.as_ref().is_some_and(|agent| agent.connected)
    }

    /// Whether the entry of a machine that existed has had no machine in lists far enough apart (one may be stale).
    fn hollow(&self, timing: &Timing) -> bool {
        let (Some(since), Some(last)) = (self.memory.absent_since, self.memory.listed) else { return false };
        !self.speaks() && self.status().instance.is_some() && last >= later(since, timing.absence)
    }

    /// Why the machine will certainly not run anything any more, if so.
    #[must_use]
    pub fn dead(&self, now: Timestamp, timing: &Timing) -> Option<(&'static str, String)> {
        if self.rebooted {
            return Some(("Rebooted", "another boot of the instance called in: its runner is gone".into()));
        }
        let known = self.status().instance.map(|i| i.id);
        match &self.presence {
            Presence::Present(instance) => {
                let id = instance.id.map(|id| id.to_string());
                if let (Some(known), Some(id)) = (&known, &id)
                    && known != id
                {
                    let message = format!("the group made instance {id} in place of {known}");
                    return Some(("InstanceReplaced", message));
                }
                // Deleting it would cut short the time its software has to tell how the job ended. Google bounds that time,
                // so an open connection is enough, even of a VM that is to go.
                let down = match instance.power {
                    Power::Stopping => !self.agent.as_ref().is_some_and(|agent| agent.connected),
                    power => power == Power::Down,
                };
                (down || self.hollow(timing))
                    .then(|| ("InstanceDown", "the instance was stopped, preempted or powered off".into()))
            }
            Presence::Absent { .. } if known.is_some() && self.instance_gone(now, timing) => {
                Some(("InstanceGone", "the instance is in no list any more".into()))
            }
            Presence::Absent { .. } | Presence::Unknown => None,
        }
    }
}
