//! Between the agent's words and the protocol's messages: the only place that knows both.

use miglet_proto::v1;
use secrecy::SecretString;

use crate::{
    plan::{Answer, Command, Input, State},
    runner::{ExitKind, Job, JobResult, Runner},
};

/// The whole state as a report, without figures of health.
#[must_use]
pub fn report(state: &State) -> v1::Report {
    let runner = state.runner.as_ref();
    let name = state.registration.as_ref().map(|registration| registration.runner_name.clone());
    v1::Report {
        state: state.standing().into(),
        runner_name: name.unwrap_or_default(),
        job: runner.and_then(|runner| runner.job.as_ref()).map(job),
        exit: runner.and_then(exit),
        health: None,
        error: state.error.clone(),
        ..v1::Report::default()
    }
}

fn job(job: &Job) -> v1::Job {
    v1::Job {
        name: job.name.clone(),
        repository: job.identity.repository.clone(),
        workflow: job.identity.workflow.clone(),
        run_id: job.identity.run_id,
        run_attempt: job.identity.run_attempt,
        key: job.identity.key.clone(),
        started_unix_ms: job.started_unix_ms,
        completed_unix_ms: job.completed_unix_ms,
        result: job.result.map_or(v1::JobResult::Unspecified, result).into(),
    }
}

fn result(result: JobResult) -> v1::JobResult {
    match result {
        JobResult::Succeeded => v1::JobResult::Succeeded,
        JobResult::SucceededWithIssues => v1::JobResult::SucceededWithIssues,
        JobResult::Failed => v1::JobResult::Failed,
        JobResult::Canceled => v1::JobResult::Canceled,
        JobResult::Skipped => v1::JobResult::Skipped,
        JobResult::Abandoned => v1::JobResult::Abandoned,
    }
}

fn exit(runner: &Runner) -> Option<v1::RunnerExit> {
    let exit = runner.exit.as_ref()?;
    let kind = match exit.kind {
        ExitKind::JobDone => v1::RunnerExitKind::JobDone,
        ExitKind::WithoutJob => v1::RunnerExitKind::WithoutJob,
        ExitKind::Failed => v1::RunnerExitKind::Failed,
    };
    Some(v1::RunnerExit { code: exit.code, kind: kind.into(), detail: exit.detail.clone() })
}

/// An answer as an ack.
#[must_use]
pub fn ack(answer: Answer) -> v1::AgentMessage {
    let outcome = if answer.refusal.is_some() { v1::CommandOutcome::Refused } else { v1::CommandOutcome::Done };
    let detail = answer.refusal.unwrap_or_default();
    message(v1::agent_message::Message::Ack(v1::CommandAck {
        command_id: answer.command_id,
        outcome: outcome.into(),
        detail,
    }))
}

/// Wraps one kind of message.
#[must_use]
pub fn message(message: v1::agent_message::Message) -> v1::AgentMessage {
    v1::AgentMessage { message: Some(message) }
}

/// A command as the plan's input.
#[must_use]
pub fn command(command: v1::Command) -> Input {
    use v1::command::Command as Wire;
    let meant = match command.command {
        Some(Wire::RegisterRunner(register)) => Command::Register {
            runner_name: register.runner_name,
            jit_config: SecretString::from(register.encoded_jit_config),
        },
        Some(Wire::Drain(_)) => Command::Drain,
        Some(Wire::Shutdown(_)) => Command::Shutdown,
        Some(Wire::UpdateConfig(_) | Wire::SetLogLevel(_) | Wire::CollectDiagnostics(_)) | None => Command::Unknown,
    };
    Input::Command { id: command.id, command: meant }
}
