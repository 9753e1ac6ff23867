//! Tells an agent what is wanted of it, and a user what came of it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Resource, ResourceExt,
    api::{ObjectMeta, PostParams},
};
use tracing::info;
use uuid::Uuid;

use super::Actor;
use crate::{
    crd::{LogLevel, RunnerVmStatus, conditions::DRAINING, conditions::find, names},
    gateway::{report::Command, settings::settings},
    vm::{
        Error,
        memory::Sent,
        plan::{LOG_LEVEL_SECONDS, Order, Topic, drain_deadline},
    },
};

impl Actor<'_> {
    /// Gives an order, or takes note of an answer.
    pub(super) async fn tell(&self, order: &Order, status: &RunnerVmStatus) -> Result<(), Error> {
        match order {
            Order::Send { topic, want, id } => self.order(*topic, want, id.clone(), status),
            Order::TellRefusal { topic, detail } => self.refused(*topic, detail).await,
            Order::Store { want } => self.store(want).await,
        }
    }

    fn order(&self, topic: Topic, want: &str, id: Option<String>, status: &RunnerVmStatus) -> Result<(), Error> {
        let now = self.context.clock.now();
        let repeated = id.is_some();
        let id = id.unwrap_or_else(|| Uuid::new_v4().to_string());
        // One that is not connected is told after its return. One that takes no commands is told again later: the end of its
        // VM does not wait for that.
        let sent = self.context.sessions.send(&self.key, &id, self.command(topic, want, status)).is_ok();
        info!(vm = %self.key, topic = topic.as_str(), want, repeated, sent, "Agent is told");
        let order = Sent { want: want.to_owned(), id, at: now, settled: false };
        self.remember(|memory| drop(memory.orders.insert(topic, order)))
    }

    fn command(&self, topic: Topic, want: &str, status: &RunnerVmStatus) -> Command {
        let spec = &self.vm.spec;
        match topic {
            Topic::Drain => {
                let requested = self.vm.metadata.deletion_timestamp.as_ref().map(|time| time.0);
                let grace = spec.lifecycle.termination_grace_period_seconds;
                let deadline_seconds = drain_deadline(want, requested, grace, self.context.clock.now());
                Command::Drain { reason: why_it_goes(status), deadline_seconds }
            }
            Topic::Shutdown => Command::Shutdown { reason: why_it_goes(status) },
            Topic::Settings => {
                let policy = self.context.sessions.policy(&spec.pool.uid);
                Command::UpdateConfig(Box::new(settings(spec, policy.as_ref())))
            }
            Topic::LogLevel => Command::SetLogLevel { level: LogLevel::parse(want), seconds: LOG_LEVEL_SECONDS },
            Topic::Diagnostics => Command::CollectDiagnostics,
        }
    }

    async fn refused(&self, topic: Topic, detail: &str) -> Result<(), Error> {
        let note = format!("the agent refused ({}): {detail}", topic.as_str());
        self.context.events.warn(&self.vm.object_ref(&()), "CommandRefused", note).await;
        self.remember(|memory| {
            if let Some(sent) = memory.orders.get_mut(&topic) {
                sent.settled = true;
            }
        })
    }

    /// A ConfigMap of the VM's own, gone with it. Created and never changed: the right to create is all this takes, and a
    /// right to change ConfigMaps everywhere would be one to change what others run by.
    async fn store(&self, id: &str) -> Result<(), Error> {
        let found = self.context.sessions.view(&self.key).and_then(|agent| agent.diagnostics);
        let texts = found.map(|found| found.texts.clone()).unwrap_or_default();
        let name = format!("{}-diagnostics-{id}", self.key.name);
        let map = self.config_map(&name, texts);
        let api: Api<ConfigMap> = Api::namespaced(self.context.client.clone(), &self.key.namespace);
        let params = PostParams { field_manager: Some(names::VM_MANAGER.into()), ..PostParams::default() };
        match self.kube("keeping diagnostics", api.create(&params, &map)).await {
            Ok(_) => {
                let note = format!("kubectl describe configmap {name}");
                self.context.events.say(&self.vm.object_ref(&()), "DiagnosticsCollected", note).await;
            }
            // Kept by the process before this one.
            Err(Error::Kube(error)) if error.is_conflict() => {}
            // Whoever asked reads it, grants the right, and asks again.
            Err(Error::Kube(error)) if error.is_forbidden() => {
                let grant = self.context.forges.grant(&self.key.namespace);
                let note = format!("creating ConfigMaps is forbidden: {grant}; then annotate with another id");
                self.context.events.warn(&self.vm.object_ref(&()), "DiagnosticsNotKept", note).await;
            }
            Err(error) => return Err(error),
        }
        self.context.sessions.diagnostics_taken(&self.key);
        self.remember(|memory| memory.diagnostics_stored = Some(id.to_owned()))
    }

    fn config_map(&self, name: &str, texts: BTreeMap<String, String>) -> ConfigMap {
        let metadata = ObjectMeta {
            name: Some(name.to_owned()),
            namespace: self.vm.namespace(),
            labels: Some(BTreeMap::from([(names::POOL_LABEL.to_owned(), self.vm.spec.pool.name.clone())])),
            owner_references: self.vm.owner_ref(&()).map(|owner| vec![owner]),
            ..ObjectMeta::default()
        };
        ConfigMap { metadata, data: Some(texts), immutable: Some(true), ..ConfigMap::default() }
    }
}

fn why_it_goes(status: &RunnerVmStatus) -> String {
    find(&status.conditions, DRAINING).map(|condition| condition.message.clone()).unwrap_or_default()
}
