//! What the plan asks for, carried out.

use std::time::Duration;

use secrecy::ExposeSecret;

use super::{AgentError, Driver, Ended, FLUSH_PATIENCE};
use crate::{
    diagnostics::{Words, chunks, collect},
    durable,
    error::in_full,
    jit,
    metadata::Metadata,
    paths::Paths,
    plan::{Answer, Configured, Input, Wanted},
    preparation::Preparation,
    runner::{TEXT_LIMIT, clean},
    status::Status,
    supervisor::Launch,
};

impl Driver {
    /// All of it is checked before any of it holds.
    pub(super) fn configure(&mut self, command_id: Option<String>, wanted: Wanted) -> Input {
        let outcome = self.base.with_operator(&wanted.values()).map_err(|error| clean(&error.to_string(), TEXT_LIMIT));
        let outcome = outcome.map(|settings| {
            self.settings = settings;
            Configured { limits: self.settings.limits, level: self.settings.log_level }
        });
        tracing::info!(revision = wanted.revision, problem = outcome.as_ref().err(), "settings from the operator");
        Input::Configured { command_id, revision: wanted.revision, names_runner: wanted.runner.is_some(), outcome }
    }

    /// What is being prepared already goes on; something else takes its place.
    pub(super) fn prepare(&mut self) {
        let wanted = (self.settings.installation.clone(), self.settings.jobs.clone());
        if self.tasks.preparing.as_ref().is_some_and(|(current, _)| *current == wanted) {
            return;
        }
        if let Some((_, before)) = self.tasks.preparing.take() {
            before.abort();
        }
        let preparation = Preparation {
            runners: self.ports.runners.clone(),
            machine: self.ports.machine.clone(),
            installation: wanted.0.clone(),
            jobs: wanted.1.clone(),
            metadata: Metadata::new(self.settings.metadata_host.clone()),
        };
        let task = tokio::spawn(preparation.run(self.inputs.clone()));
        self.tasks.preparing = Some((wanted, task));
    }

    /// One collection at a time: the latest.
    pub(super) fn collect(&mut self, command_id: String) {
        if let Some(before) = self.tasks.collecting.take() {
            before.abort();
        }
        let runner = self.state.prepared.as_ref().map(|prepared| prepared.dir.clone()).unwrap_or_default();
        let paths = Paths { runner, ..self.settings.paths.clone() };
        let status = Status::of(&self.state, &self.settings.sources).to_string();
        let words = Words { log: self.ports.log.tail(), status };
        let diagnostics = self.diagnostics.clone();
        self.tasks.collecting = Some(tokio::spawn(async move {
            let work = move || chunks(&command_id, &collect(&paths, &words));
            for chunk in tokio::task::spawn_blocking(work).await.unwrap_or_default() {
                if diagnostics.send(chunk).await.is_err() {
                    return;
                }
            }
        }));
    }

    pub(super) fn answer(&self, answer: Answer) {
        tracing::info!(command = answer.command_id, refused = answer.refusal, "command answered");
        if let Some(answers) = &self.answers {
            // Never waits: session and driver would wait for each other. An answer too many is asked for again.
            answers.try_send(answer).ok();
        }
    }

    /// The marker comes first: a crash in between costs this machine, and so does a bad registration; never is there a
    /// second one.
    pub(super) async fn launch(&self, mut launch: Launch) -> Input {
        launch.scripts = self.settings.hooks.clone();
        let command_id = launch.registration.command_id.clone();
        let marker = serde_json::to_vec(&launch.registration).unwrap_or_default();
        if let Err(error) = durable::create(&self.settings.paths.registration(), &marker) {
            return Input::LaunchFailed { command_id, error: format!("could not note the registration: {error}") };
        }
        if let Err(error) = jit::check(launch.jit_config.expose_secret()) {
            return Input::LaunchFailed { command_id, error: error.to_string() };
        }
        // What may be asked for has changed since the agent's start, and so may the rules.
        if let Err(error) = self.ports.machine.confine(&self.settings.jobs).await {
            return Input::LaunchFailed { command_id, error: in_full(&error) };
        }
        match self.ports.supervisor.start(launch).await {
            Ok(()) => Input::Launched { command_id },
            Err(error) => Input::LaunchFailed { command_id, error: format!("{error}: {}", error.source) },
        }
    }

    /// What was told, answered and reported reaches the operator first, within its bounds.
    pub(super) async fn power_off(mut self) -> Result<Ended, AgentError> {
        let flushed = self.outbox.until_acked(self.told.last(), FLUSH_PATIENCE).await;
        tracing::info!(flushed, "powering off");
        self.answers = None;
        let goodbye = tokio::time::timeout(Duration::from_secs(3), &mut self.tasks.session);
        goodbye.await.ok();
        self.ports.supervisor.kill().await;
        self.ports.machine.power_off().await?;
        Ok(Ended::PoweredOff)
    }
}
