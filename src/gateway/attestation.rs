//! From a hello to a place at a RunnerVM: token, decision, binding, in this order, with their effects.
//!
//! Two answers are told apart: a refusal (counted and shown) and "not now" (the agent tries again). An instance that
//! calls in faster than its group lists it is "not now" until a grace has passed.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use kube::{ResourceExt, runtime::reflector::ObjectRef};
use miglet_proto::PROTOCOL_MINOR;
use tracing::{debug, warn};

use super::{
    admission::{Caller, Decision, decide},
    binding::{self, BindError},
    identity::{Unverified, Verifier, VmIdentity},
    refusals::{Refusal, Refusals},
    report::AgentState,
    server::Backends,
    sessions::Sessions,
};
use crate::{
    compute::{Group, InstanceId, groups::Listing},
    crd::{AgentStatus, RunnerVm},
    wakes::Key,
};

/// A list this old may show that an instance is there.
const LIST_AGE: SignedDuration = SignedDuration::from_secs(10);
/// Who asks for a fresh list waits this long, so that a fleet that boots together is served by a few lists.
const LIST_DELAY: Duration = Duration::from_millis(250);
/// How long an agent waits for an operator that has just started.
const READY_TIMEOUT: Duration = Duration::from_secs(2);
/// Remembered unlisted instances.
const UNLISTED_MEMORY: usize = 10_000;

/// The agent is not let in.
#[derive(Debug)]
pub(super) enum Denied {
    Refused(Refusal),
    NotNow(&'static str),
    /// It speaks another version of the protocol: what that means, in words.
    Unsupported(String),
}

/// What an agent says of itself in its hello.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    pub(super) token: String,
    pub(super) thumbprint: String,
    pub(super) boot_id: String,
    pub(super) version: String,
    pub(super) minor: u32,
    pub(super) state: AgentState,
}

/// Decides who is let in, and binds.
pub(super) struct Attestor {
    pub(super) verifier: Verifier,
    pub(super) backends: Backends,
    pub(super) sessions: Sessions,
    pub(super) refusals: Refusals,
    pub(super) unlisted: Unlisted,
}

impl fmt::Debug for Attestor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attestor").finish_non_exhaustive()
    }
}

impl Attestor {
    /// Now.
    pub(super) fn now(&self) -> Timestamp {
        self.backends.clock.now()
    }

    /// The RunnerVM this agent may speak for.
    pub(super) async fn attest(&self, claim: &Claim) -> Result<Arc<RunnerVm>, Denied> {
        self.ready().await?;
        let identity = self.identify(claim).await?;
        let Some(vm) = self.find(&identity) else { return Err(self.refuse(Refusal::UnknownVm, None)) };
        self.understand(claim, &vm)?;
        let caller = Caller { identity, thumbprint: claim.thumbprint.clone(), boot_id: claim.boot_id.clone() };
        if self.admit(&caller, claim, &vm).await? {
            return Ok(vm);
        }
        // Somebody wrote to the object between our reading and writing: decide once more on what it is now.
        let vm = match binding::read(&self.backends.client, &vm).await {
            Ok(Some(vm)) => Arc::new(vm),
            Ok(None) => return Err(self.refuse(Refusal::UnknownVm, None)),
            Err(error) => return Err(not_written(&vm, &error)),
        };
        if self.admit(&caller, claim, &vm).await? {
            return Ok(vm);
        }
        Err(Denied::NotNow("the RunnerVM is being changed, try again"))
    }

    /// Whether we speak the same protocol. Asked once it is certain whose agent it is, so that it can be told there; a VM is
    /// not bound to an agent that nothing can be said to.
    fn understand(&self, claim: &Claim, vm: &Arc<RunnerVm>) -> Result<(), Denied> {
        if claim.minor.abs_diff(PROTOCOL_MINOR) <= 1 {
            return Ok(());
        }
        let what = if claim.minor < PROTOCOL_MINOR {
            "update the agent in the machines' image"
        } else {
            "update the operator, or use an older agent in the machines' image"
        };
        let why = format!(
            "agent {} speaks protocol 1.{}, this operator 1.{PROTOCOL_MINOR} and one minor version around it: {what}",
            claim.version, claim.minor
        );
        self.sessions.unsupported(&key(vm), &why);
        self.refusals.show(Refusal::ProtocolSkew, vm, self.now());
        Err(Denied::Unsupported(why))
    }

    /// The RunnerVM of this key, as it was watched last.
    pub(super) fn vm(&self, vm: &Key) -> Option<Arc<RunnerVm>> {
        self.backends.store.get(&ObjectRef::new(&vm.name).within(&vm.namespace))
    }

    /// Whether the RunnerVMs are known: an operator that has just started must not call a VM unknown.
    async fn ready(&self) -> Result<(), Denied> {
        match tokio::time::timeout(READY_TIMEOUT, self.backends.store.wait_until_ready()).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(Denied::NotNow("the operator does not know its RunnerVMs yet, try again")),
        }
    }

    async fn identify(&self, claim: &Claim) -> Result<VmIdentity, Denied> {
        let now = self.now();
        match self.verifier.verify(&claim.token, &claim.thumbprint, now).await {
            Ok(identity) => Ok(identity),
            Err(Unverified::Refused { reason, signed }) => {
                let vm = signed.and_then(|identity| self.find(&identity));
                Err(self.refuse(reason, vm.as_ref()))
            }
            Err(Unverified::Keys(error)) => {
                warn!(error = &error as &dyn std::error::Error, "cannot verify identity tokens");
                Err(Denied::NotNow("identity tokens cannot be verified now, try again"))
            }
        }
    }

    /// The RunnerVM of this instance's name; one of another project only so that its refusal can be told on it.
    fn find(&self, identity: &VmIdentity) -> Option<Arc<RunnerVm>> {
        let named = |vm: &RunnerVm| vm.metadata.name.as_deref() == Some(&identity.instance_name);
        let store = &self.backends.store;
        store.find(|vm| named(vm) && vm.spec.project == identity.project_id).or_else(|| store.find(named))
    }

    /// Lets the caller in, bound. False when the object changed while it was being bound.
    async fn admit(&self, caller: &Caller, claim: &Claim, vm: &Arc<RunnerVm>) -> Result<bool, Denied> {
        match self.decide(caller, vm).await? {
            Decision::Reconnect => Ok(true),
            Decision::FirstContact => self.bind(caller, claim, vm).await,
            Decision::Refuse(reason) => Err(self.refuse(reason, Some(vm))),
            Decision::Rebooted => {
                self.sessions.rebooted(&key(vm), caller.boot_id.clone());
                Err(self.refuse(Refusal::Rebooted, Some(vm)))
            }
            Decision::AskList | Decision::NotYet => Err(self.not_listed(caller, vm)),
        }
    }

    /// Decides; what an older list does not allow is decided again on a fresh one.
    async fn decide(&self, caller: &Caller, vm: &RunnerVm) -> Result<Decision, Denied> {
        let now = self.now();
        let decision = decide(caller, vm, None, now);
        let (Decision::AskList, Some(group)) = (decision, Group::of(&vm.spec.project, &vm.spec.group)) else {
            return Ok(decision);
        };
        let list = self.list(&group, now.saturating_sub(LIST_AGE).unwrap_or(now)).await?;
        let decision = decide(caller, vm, Some(&list), now);
        if decision == Decision::FirstContact || list.asked_at >= now {
            return Ok(decision);
        }
        tokio::time::sleep(LIST_DELAY).await;
        let list = self.list(&group, now).await?;
        Ok(decide(caller, vm, Some(&list), self.now()))
    }

    async fn list(&self, group: &Group, not_before: Timestamp) -> Result<Arc<Listing>, Denied> {
        self.backends.listing.listing(group, not_before).await.map_err(|error| {
            warn!(%error, "cannot check whether a group has an instance");
            Denied::NotNow("the instance group cannot be listed now, try again")
        })
    }

    async fn bind(&self, caller: &Caller, claim: &Claim, vm: &RunnerVm) -> Result<bool, Denied> {
        let agent = AgentStatus {
            key_thumbprint: claim.thumbprint.clone(),
            boot_id: claim.boot_id.clone(),
            version: claim.version.clone(),
            state: claim.state.as_str().to_owned(),
            acked_sequence: 0,
        };
        if !(self.backends.may_act)() {
            return Err(Denied::NotNow("this operator does not lead"));
        }
        match binding::bind(&self.backends.client, vm, caller, agent).await {
            Ok(()) => {
                self.unlisted.forget(caller.identity.instance_id);
                Ok(true)
            }
            Err(BindError::Conflict) => Ok(false),
            Err(error) => Err(not_written(vm, &error)),
        }
    }

    fn not_listed(&self, caller: &Caller, vm: &Arc<RunnerVm>) -> Denied {
        if self.unlisted.for_too_long(caller.identity.instance_id, self.now()) {
            return self.refuse(Refusal::NotListed, Some(vm));
        }
        debug!(vm = %key(vm), "an instance called in that its group does not list yet");
        Denied::NotNow("the instance group does not list this instance yet, try again")
    }

    fn refuse(&self, reason: Refusal, vm: Option<&Arc<RunnerVm>>) -> Denied {
        match vm {
            Some(vm) => self.refusals.show(reason, vm, self.now()),
            None => self.refusals.count(reason),
        }
        Denied::Refused(reason)
    }
}

/// Namespace and name.
pub(super) fn key(vm: &RunnerVm) -> Key {
    Key::new(vm.namespace().unwrap_or_default(), vm.name_any())
}

fn not_written(vm: &RunnerVm, error: &BindError) -> Denied {
    warn!(vm = %key(vm), error = error as &dyn std::error::Error, "cannot bind a RunnerVM to its agent");
    Denied::NotNow("the RunnerVM cannot be written now, try again")
}

/// Instances that called in without being listed, and since when.
#[derive(Debug)]
pub(super) struct Unlisted {
    grace: SignedDuration,
    since: Mutex<HashMap<InstanceId, Timestamp>>,
}

impl Unlisted {
    pub(super) fn new(grace: SignedDuration) -> Self {
        Self { grace, since: Mutex::default() }
    }

    fn for_too_long(&self, instance: InstanceId, now: Timestamp) -> bool {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        if since.len() >= UNLISTED_MEMORY {
            since.retain(|_, first| now.duration_since(*first) <= self.grace);
        }
        let first = *since.entry(instance).or_insert(now);
        now.duration_since(first) > self.grace
    }

    fn forget(&self, instance: InstanceId) {
        self.since.lock().unwrap_or_else(PoisonError::into_inner).remove(&instance);
    }
}
