//! Carries one step out. Makes no decisions: what came of it goes into the memory, and the next plan sees it.

use std::{future::Future, time::Duration};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
};
use tracing::{debug, info, warn};
use uuid::Uuid;

use super::{
    Context, Error,
    memory::{Creation, Memory},
    plan::{End, Step, later},
    status::{has_effect, join},
    tell::{END_REASONS, word},
};
use crate::{
    compute::{DeleteTarget, Group, groups::CreateError},
    crd::{
        RunnerStatus, RunnerVm, RunnerVmStatus,
        conditions::{DRAINING, find},
        names,
    },
    forge::{Deletion, ForgeError, ForgeErrorClass, Registered, Registration, Run, SharedRunners},
    gateway::{events::Heard, report::Command},
    kubernetes,
    wakes::Key,
};

mod orders;

/// One VM, with what acting on it takes.
pub(super) struct Actor<'a> {
    context: &'a Context,
    vm: &'a RunnerVm,
    key: Key,
    uid: String,
}

impl<'a> Actor<'a> {
    pub(super) fn new(context: &'a Context, vm: &'a RunnerVm) -> Self {
        let key = Key::new(vm.namespace().unwrap_or_default(), vm.name_any());
        Self { context, vm, key, uid: vm.uid().unwrap_or_default() }
    }

    /// Whether the step may be taken now. Asked before the status is written as well: a creation that is marked and not
    /// asked for makes every later pass wait until the call that never was can have no effect any more.
    pub(super) fn may(&self, step: &Step) -> Result<(), Error> {
        let leadership = &self.context.leadership;
        let answer = match step {
            Step::Wait => Ok(()),
            Step::Create => leadership.may_create(),
            _ => leadership.may_act(),
        };
        answer.map_err(Error::Leadership)
    }

    /// Takes the step. `status` is what the object's status is (or will be) while it is taken.
    pub(super) async fn act(&self, step: &Step, status: &mut RunnerVmStatus) -> Result<(), Error> {
        self.may(step)?;
        match step {
            Step::Wait => Ok(()),
            Step::Create => self.create().await,
            Step::Register { .. } => self.register(status).await,
            Step::ClearName { name } => self.clear_name(name).await,
            Step::Look { id } => self.look(*id).await,
            Step::FindJob(run) => self.find_job(run, status).await,
            Step::CheckScope => self.forge(|runners| async move { runners.check().await }).await.map(drop),
            Step::Deregister { id } => self.deregister(*id).await,
            Step::NoteRegistrationGone => self.remember(|memory| memory.registration_gone = true),
            Step::Tell(order) => self.tell(order, status).await,
            Step::AskLastWords => self.ask_last_words().await,
            Step::DeleteInstance(target) => self.delete_instance(target).await,
            Step::End(end) => self.end(end).await,
            Step::Release { left_behind } => self.release(*left_behind).await,
        }
    }

    /// Writes the status if it differs, under the object's resource version: two writers never overwrite each other.
    pub(super) async fn write(&self, status: &RunnerVmStatus) -> Result<RunnerVm, Error> {
        self.context.leadership.may_act().map_err(Error::Leadership)?;
        let mut next = self.vm.clone();
        next.status = Some(status.clone());
        let params = PostParams { field_manager: Some(names::VM_MANAGER.into()), ..PostParams::default() };
        let written =
            self.kube("writing the status", self.api().replace_status(&self.vm.name_any(), &params, &next)).await?;
        let now = self.context.clock.now();
        self.remember(|memory| memory.wrote(written.resource_version().as_deref(), now))?;
        self.settle(status);
        Ok(written)
    }

    /// Acks the events whose effects are in this status, which is written.
    pub(super) fn settle(&self, status: &RunnerVmStatus) {
        self.context.sessions.settle(&self.key, |kind| has_effect(status, kind));
    }

    async fn create(&self) -> Result<(), Error> {
        let result = self.context.groups.create(&self.group()?, &self.key.name).await;
        let at = self.context.clock.now();
        let (creation, error) = match result {
            Ok(()) => (Creation::Accepted { at }, None),
            Err(CreateError::NameTaken(error)) => (Creation::Refused { error, name_taken: true }, None),
            Err(CreateError::Rejected(error)) => (Creation::Refused { error, name_taken: false }, None),
            Err(CreateError::Unknown(error)) => (Creation::Unknown { at }, Some(error)),
        };
        self.remember(|memory| memory.creation = Some(creation))?;
        error.map_or(Ok(()), |error| Err(Error::Compute(error)))
    }

    /// The name is written down; now the POST, then the id, then the send: never in another order.
    async fn register(&self, status: &mut RunnerVmStatus) -> Result<(), Error> {
        let Some(runner) = status.runner.clone() else { return Err(Error::Bug("a registration without a name")) };
        self.remember(Memory::registering)?;
        let name = runner.name.clone();
        let result = self.forge(|runners| self.ask_registration(runners, name.clone())).await;
        let at = self.context.clock.now();
        match &result {
            Ok(_) => {}
            Err(Error::Forge(e)) if e.ambiguous || e.class == ForgeErrorClass::NameTaken => {
                self.remember(|memory| memory.registration_unanswered = Some(at))?;
            }
            // Certainly nothing was made: the same name can be asked for again.
            Err(_) => self.remember(|memory| memory.registrations_asked -= 1)?,
        }
        self.pace(&result)?;
        let registered = result?;
        let version = self.context.sessions.view(&self.key).map(|agent| agent.report.runner_version);
        status.runner = Some(RunnerStatus { id: Some(registered.id), version: version.unwrap_or_default(), ..runner });
        self.write(status).await?;
        self.send(name, registered)
    }

    /// Every attempt changes the status, and that wakes the next pass: the delay must not depend on who wakes it.
    fn pace<T>(&self, result: &Result<T, Error>) -> Result<(), Error> {
        let sequence = format!("{}/registration", self.uid);
        let asked = match result {
            Ok(_) => {
                self.context.backoffs.succeeded(&sequence);
                return self.remember(|memory| memory.register_after = None);
            }
            Err(Error::Forge(error)) => error.retry_after.unwrap_or_default(),
            Err(_) => Duration::ZERO,
        };
        let after = later(self.context.clock.now(), self.context.backoffs.failed(&sequence).max(asked));
        self.remember(|memory| memory.register_after = Some(after))
    }

    async fn ask_registration(&self, runners: SharedRunners, name: String) -> Result<Registered, ForgeError> {
        let github = &self.vm.spec.github;
        let group = runners.group(github.runner_group.as_deref()).await?;
        runners.register(&Registration { name, group, labels: github.labels.clone() }).await
    }

    fn send(&self, runner_name: String, registered: Registered) -> Result<(), Error> {
        let now = self.context.clock.now();
        self.remember(|memory| memory.forge_trouble = None)?;
        let command = Command::Register { runner_name, jit_config: registered.jit_config };
        // A failure is final: what may have been sent is never sent again, the next pass replaces the VM.
        let sent = self.context.sessions.send(&self.key, &Uuid::new_v4().to_string(), command);
        if sent.is_ok() {
            self.remember(|memory| memory.config_sent = Some(now))?;
        }
        sent.map_err(Error::Session)
    }

    async fn clear_name(&self, name: &str) -> Result<(), Error> {
        let at = self.context.clock.now();
        let found = self.forge(|runners| async move { runners.find(name).await }).await?;
        let removed = match found {
            Some(runner) => Some(self.forge(|runners| async move { runners.delete(runner.id).await }).await?),
            None => None,
        };
        let memory = self.context.memories.get(&self.uid);
        let settled =
            later(memory.registration_unanswered.unwrap_or(self.context.leading_since), self.context.request_timeout);
        self.remember(|memory| memory.name_looked(at, removed, settled))
    }

    async fn look(&self, id: i64) -> Result<(), Error> {
        let at = self.context.clock.now();
        let found = self.forge(|runners| async move { runners.get(id).await }).await?;
        self.remember(|memory| memory.looked(at, found))
    }

    /// Best effort: whatever goes wrong, the job's id is only not known.
    async fn find_job(&self, run: &Run, status: &mut RunnerVmStatus) -> Result<(), Error> {
        self.remember(|memory| memory.job_looked = true)?;
        let runners = self.context.forges.runners(&self.key.namespace, &self.vm.spec.github).await?;
        let name = status.runner.as_ref().map(|runner| runner.name.clone()).unwrap_or_default();
        let found = match runners.job(run, &name).await {
            Ok(found) => found,
            Err(error) => {
                debug!(vm = %self.key, %error, "the job's id is not known");
                None
            }
        };
        if let (Some(job), Some(found)) = (&mut status.job, &found) {
            join(job, found);
        }
        self.remember(|memory| memory.job = found)
    }

    async fn deregister(&self, id: i64) -> Result<(), Error> {
        let at = self.context.clock.now();
        let outcome = self.forge(|runners| async move { runners.delete(id).await }).await?;
        self.remember(|memory| {
            memory.deletion = Some((at, outcome));
            memory.registration_gone |= outcome == Deletion::Deleted;
        })
    }

    async fn ask_last_words(&self) -> Result<(), Error> {
        let zone = self.vm.status.as_ref().and_then(|s| s.instance.as_ref()).map(|i| i.zone.clone());
        let words = match zone {
            Some(zone) => self.context.groups.last_words(&self.group()?, &zone, &self.key.name).await,
            None => Ok(None),
        };
        // It explains, it does not decide: a failure to ask only makes the message shorter.
        let words = words.ok().flatten().unwrap_or_default();
        self.remember(|memory| memory.last_words = Some(words))
    }

    async fn delete_instance(&self, target: &DeleteTarget) -> Result<(), Error> {
        let at = self.context.clock.now();
        self.context.groups.delete(&self.group()?, target.clone()).await.map_err(Error::Compute)?;
        self.remember(|memory| memory.delete_asked = Some(at))
    }

    async fn end(&self, end: &End) -> Result<(), Error> {
        info!(vm = %self.key, reason = end.reason, message = end.message, "VM ends");
        if let Some((class, message)) = &end.back_off {
            self.context.groups.back_off(&self.group()?, *class, message);
        }
        let preconditions = Preconditions { uid: Some(self.uid.clone()), resource_version: None };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        let deleted = self.kube("deleting the object", self.api().delete(&self.key.name, &params)).await?;
        if let Some(vm) = deleted.left() {
            let now = self.context.clock.now();
            self.remember(|memory| memory.wrote(vm.resource_version().as_deref(), now))?;
        }
        self.context.end_told(self.vm, end).await;
        Ok(())
    }

    async fn release(&self, left_behind: bool) -> Result<(), Error> {
        if left_behind {
            let runner = self.vm.status.as_ref().and_then(|s| s.runner.as_ref()).map(|r| r.name.clone());
            let note = format!("runner {} is left to GitHub, which drops it within a day", runner.unwrap_or_default());
            warn!(vm = %self.key, note, "Registration is left behind");
            self.context.events.warn(&self.vm.object_ref(&()), "RegistrationLeftBehind", &note).await;
            if kubernetes::namespace_goes(&self.context.client, self.context.request_timeout, &self.key.namespace).await
            {
                // Nothing can be written into such a namespace any more, but about it.
                self.context.events.warn(&namespace(&self.key.namespace), "RegistrationLeftBehind", note).await;
            }
        }
        let reason = end_reason(self.vm);
        if !self.context.last_told(self.vm).await {
            return Err(Error::Untold);
        }
        let finalizers: Vec<_> = self.vm.finalizers().iter().filter(|f| *f != names::VM_FINALIZER).collect();
        let version = self.vm.resource_version();
        let patch = serde_json::json!({"metadata": {"finalizers": finalizers, "resourceVersion": version}});
        let params = PatchParams { field_manager: Some(names::VM_MANAGER.into()), ..PatchParams::default() };
        let patch = Patch::Merge(&patch);
        self.kube("removing the finalizer", self.api().patch(&self.key.name, &params, &patch)).await?;
        info!(vm = %self.key, reason, "VM is gone");
        self.context.metrics.vm_removed(word(&reason, &END_REASONS));
        self.context.backoffs.succeeded(&format!("{}/registration", self.uid));
        self.context.memories.forget(&self.uid);
        for kind in self.context.sessions.forget(&self.key) {
            self.context.metrics.agent_event(kind.as_str(), Heard::Gone.as_str());
        }
        Ok(())
    }

    /// Asks the forge; remembers its trouble in words for the conditions.
    async fn forge<T, F>(&self, ask: impl FnOnce(SharedRunners) -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, ForgeError>>,
    {
        let runners = self.context.forges.runners(&self.key.namespace, &self.vm.spec.github).await?;
        let result = ask(runners).await;
        let trouble = result.as_ref().err().map(ToString::to_string);
        self.remember(|memory| memory.forge_trouble = trouble)?;
        result.map_err(Error::Forge)
    }

    async fn kube<T>(&self, action: &'static str, call: impl Future<Output = kube::Result<T>>) -> Result<T, Error> {
        Ok(kubernetes::call(self.context.request_timeout, action, call).await?)
    }

    fn remember(&self, change: impl FnOnce(&mut Memory)) -> Result<(), Error> {
        self.context.memories.update(&self.uid, change);
        Ok(())
    }

    fn group(&self) -> Result<Group, Error> {
        Group::of(&self.vm.spec.project, &self.vm.spec.group).ok_or(Error::Bug("a group without zone and region"))
    }

    fn api(&self) -> Api<RunnerVm> {
        Api::namespaced(self.context.client.clone(), &self.key.namespace)
    }
}

fn namespace(name: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Namespace".into()),
        name: Some(name.into()),
        ..ObjectReference::default()
    }
}

/// Why it ends, as its Draining condition says.
fn end_reason(vm: &RunnerVm) -> String {
    let conditions = vm.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    find(conditions, DRAINING).map_or_else(|| "Deleted".to_owned(), |condition| condition.reason.clone())
}
