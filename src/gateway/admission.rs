//! Whether an agent may speak for a RunnerVM: the decision, without any effect.
//!
//! ```text
//!                    bound already?
//!            yes ┌─────────┴────────┐ no: first contact
//!     same instance, key, boot      young, listed, nothing registered
//!        │ yes      │ other boot       │ yes        │ not listed
//!     Reconnect   Rebooted           FirstContact   NotYet ── after the grace: refused
//! ```
//!
//! A bound VM reconnects without a look at the group's list: it was listed when it was bound, its id is never used
//! again, and a cloud that does not answer must not keep agents with running jobs away from a restarted operator.

use std::sync::Arc;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};

pub use super::identity::VmIdentity;
use super::refusals::Refusal;
use crate::{
    compute::{
        ComputeError, Group, Power,
        groups::{Groups, Listing},
    },
    crd::{AgentStatus, RunnerVm, RunnerVmStatus},
};

/// Google's creation time of an instance and Kubernetes' of an object come from two clocks.
const CLOCK_LEEWAY: SignedDuration = SignedDuration::from_mins(1);

/// Lists groups; one list serves all who ask at a time.
#[async_trait]
pub trait GroupListing: Send + Sync + std::fmt::Debug {
    /// A list that was asked for at `not_before` or later.
    async fn listing(&self, group: &Group, not_before: Timestamp) -> Result<Arc<Listing>, ComputeError>;
}

#[async_trait]
impl GroupListing for Groups {
    async fn listing(&self, group: &Group, not_before: Timestamp) -> Result<Arc<Listing>, ComputeError> {
        Self::listing(self, group, not_before).await
    }
}

/// Who calls: Google's word for the instance, TLS' for the key, its own for the boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The verified token.
    pub identity: VmIdentity,
    /// The key of the connection.
    pub thumbprint: String,
    /// The boot it claims. A lie here can end its own VM only.
    pub boot_id: String,
}

/// What to do with a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Bind the RunnerVM to it, then let it in.
    FirstContact,
    /// Let it in again.
    Reconnect,
    /// The group must be listed first.
    AskList,
    /// The list does not show it (yet).
    NotYet,
    /// Another boot of a bound instance: that VM is over.
    Rebooted,
    /// Turn it away.
    Refuse(Refusal),
}

/// Decides about a caller whose name this RunnerVM has. `list` is what the group's list showed, if it was asked.
#[must_use]
pub fn decide(caller: &Caller, vm: &RunnerVm, list: Option<&Listing>, now: Timestamp) -> Decision {
    if let Err(reason) = belongs(&caller.identity, vm) {
        return Decision::Refuse(reason);
    }
    let status = vm.status.as_ref();
    if let Some(agent) = status.and_then(|status| status.agent.as_ref()) {
        return bound(caller, agent, status);
    }
    if let Err(reason) = open_for_first_contact(&caller.identity, vm, now) {
        return Decision::Refuse(reason);
    }
    match list {
        None => Decision::AskList,
        Some(list) => listed(&caller.identity, list),
    }
}

fn belongs(identity: &VmIdentity, vm: &RunnerVm) -> Result<(), Refusal> {
    if vm.metadata.name.as_deref() != Some(identity.instance_name.as_str()) {
        return Err(Refusal::UnknownVm);
    }
    if vm.spec.project != identity.project_id {
        return Err(Refusal::OtherProject);
    }
    let group = Group::of(&vm.spec.project, &vm.spec.group);
    if !group.is_some_and(|group| group.covers_zone(&identity.zone)) {
        return Err(Refusal::OtherZone);
    }
    let created = vm.metadata.creation_timestamp.as_ref().ok_or(Refusal::UnknownVm)?.0;
    if created.duration_since(identity.created) > CLOCK_LEEWAY {
        return Err(Refusal::OlderThanVm);
    }
    Ok(())
}

fn bound(caller: &Caller, agent: &AgentStatus, status: Option<&RunnerVmStatus>) -> Decision {
    let instance = status.and_then(|status| status.instance.as_ref());
    if instance.is_none_or(|instance| instance.id != caller.identity.instance_id.to_string()) {
        return Decision::Refuse(Refusal::OtherInstance);
    }
    if agent.boot_id != caller.boot_id {
        return Decision::Rebooted;
    }
    if agent.key_thumbprint != caller.thumbprint {
        return Decision::Refuse(Refusal::KeyMismatch);
    }
    Decision::Reconnect
}

fn open_for_first_contact(identity: &VmIdentity, vm: &RunnerVm, now: Timestamp) -> Result<(), Refusal> {
    if vm.metadata.deletion_timestamp.is_some() {
        return Err(Refusal::Deleting);
    }
    if vm.status.as_ref().is_some_and(|status| status.runner.is_some()) {
        return Err(Refusal::AlreadyRegistered);
    }
    let lifecycle = &vm.spec.lifecycle;
    let seconds = i64::from(lifecycle.launch_timeout_seconds) + i64::from(lifecycle.registration_timeout_seconds);
    if now.duration_since(identity.created) > SignedDuration::from_secs(seconds) {
        return Err(Refusal::TooLate);
    }
    Ok(())
}

fn listed(identity: &VmIdentity, list: &Listing) -> Decision {
    let Some(instance) = list.instances.get(&identity.instance_name) else { return Decision::NotYet };
    let Some(id) = instance.id else { return Decision::NotYet };
    if id != identity.instance_id {
        return Decision::Refuse(Refusal::OtherInstance);
    }
    if matches!(instance.power, Power::Stopping | Power::Down) {
        return Decision::Refuse(Refusal::InstanceDown);
    }
    Decision::FirstContact
}

#[cfg(test)]
mod tests;
