//! Between the agent's words and the protocol's messages: the only place that knows both.

use std::time::Duration;

use miglet_proto::v1;
use secrecy::SecretString;
use tracing::{Level, level_filters::LevelFilter};

use crate::{
    guards::{Alarm, Kind},
    notice::Notice,
    overlay,
    plan::{Answer, Command, Input, State, Wanted},
    runner::{ExitKind, Job, JobResult, Runner, clean},
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
        error: state.trouble(),
        notice: state.notice.map_or(v1::Notice::Unspecified, notice).into(),
        guard: state.watch.alarm().map(guard),
        settings_revision: state.settings_revision.clone(),
        runner_version: version(state).to_owned(),
        log_level: level(state.log_level()).into(),
        ghost: runner.is_some_and(|runner| runner.ghost && runner.job.is_none()),
    }
}

/// What the runner itself says, else what was prepared.
fn version(state: &State) -> &str {
    let own = state.runner.as_ref().map(|runner| runner.version.as_str()).filter(|version| !version.is_empty());
    own.or_else(|| state.prepared.as_ref().map(|prepared| prepared.version.as_str())).unwrap_or_default()
}

fn notice(notice: Notice) -> v1::Notice {
    match notice {
        Notice::Preempted => v1::Notice::Preempted,
        Notice::Maintenance => v1::Notice::Maintenance,
    }
}

fn guard(alarm: &Alarm) -> v1::Guard {
    let kind = match alarm.kind {
        Kind::Runtime => v1::GuardKind::Runtime,
        Kind::Disk => v1::GuardKind::Disk,
        Kind::Memory => v1::GuardKind::Memory,
    };
    v1::Guard { kind: kind.into(), acted: alarm.acted, detail: alarm.detail.clone() }
}

pub(crate) fn job(job: &Job) -> v1::Job {
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

pub(crate) fn exit(runner: &Runner) -> Option<v1::RunnerExit> {
    let exit = runner.exit.as_ref()?;
    let kind = match exit.kind {
        ExitKind::JobDone => v1::RunnerExitKind::JobDone,
        ExitKind::WithoutJob => v1::RunnerExitKind::WithoutJob,
        ExitKind::Failed => v1::RunnerExitKind::Failed,
    };
    Some(v1::RunnerExit { code: exit.code, kind: kind.into(), detail: exit.detail.clone() })
}

/// What the operator wants, as values of the agent's own settings.
#[must_use]
pub fn wanted(settings: &v1::Settings) -> Wanted {
    Wanted {
        revision: clean(&settings.revision, 64),
        agent: settings.agent.as_ref().map(overlay::agent),
        runner: settings.runner.as_ref().map(overlay::runner),
    }
}

/// The welcome as the plan's input. Its period is what holds while the settings name none.
#[must_use]
pub fn connected(welcome: v1::Welcome) -> Input {
    let period = Some(welcome.heartbeat_period_seconds).filter(|seconds| *seconds > 0);
    Input::Connected {
        vm_name: clean(&welcome.vm_name, 63),
        heartbeat: period.map(|seconds| seconds.min(3600).to_string()),
        // An operator older than settings wants what it always did: the runner that is there.
        wanted: welcome.settings.map_or(Wanted { runner: Some(Vec::new()), ..Wanted::default() }, |s| wanted(&s)),
    }
}

fn level(filter: LevelFilter) -> v1::LogLevel {
    match filter.into_level() {
        Some(Level::TRACE) => v1::LogLevel::Trace,
        Some(Level::DEBUG) => v1::LogLevel::Debug,
        Some(Level::INFO) => v1::LogLevel::Info,
        Some(Level::WARN) => v1::LogLevel::Warn,
        Some(Level::ERROR) => v1::LogLevel::Error,
        // Nothing at all: the protocol has no word for it.
        None => v1::LogLevel::Unspecified,
    }
}

fn filter(level: v1::LogLevel) -> Option<LevelFilter> {
    match level {
        v1::LogLevel::Unspecified => None,
        v1::LogLevel::Error => Some(LevelFilter::ERROR),
        v1::LogLevel::Warn => Some(LevelFilter::WARN),
        v1::LogLevel::Info => Some(LevelFilter::INFO),
        v1::LogLevel::Debug => Some(LevelFilter::DEBUG),
        v1::LogLevel::Trace => Some(LevelFilter::TRACE),
    }
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

/// Why the operator wants it, in its own words; empty where it does not say.
#[must_use]
pub fn reason(command: &v1::Command) -> String {
    use v1::command::Command as Wire;
    let reason = match &command.command {
        Some(Wire::Drain(drain)) => &drain.reason,
        Some(Wire::Shutdown(shutdown)) => &shutdown.reason,
        _ => "",
    };
    clean(reason, 300)
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
        Some(Wire::Drain(drain)) => {
            let seconds = Some(drain.deadline_seconds).filter(|seconds| *seconds > 0);
            Command::Drain { deadline: seconds.map(|seconds| Duration::from_secs(seconds.into())) }
        }
        Some(Wire::Shutdown(_)) => Command::Shutdown,
        Some(Wire::UpdateConfig(update)) => Command::Configure(wanted(&update.settings.unwrap_or_default())),
        Some(Wire::SetLogLevel(set)) => Command::SetLogLevel {
            level: v1::LogLevel::try_from(set.level).map_or(Err(set.level), |level| Ok(filter(level))),
            period: Duration::from_secs(set.for_seconds.into()),
        },
        Some(Wire::CollectDiagnostics(_)) => Command::CollectDiagnostics,
        None => Command::Unknown,
    };
    Input::Command { id: command.id, command: meant }
}
