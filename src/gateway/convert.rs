//! Between the protocol's messages and the operator's words. What comes in is cut and cleaned here, once; values this
//! version does not know become the ones nothing follows from.

use jiff::Timestamp;
use miglet_proto::v1;
use secrecy::ExposeSecret;

use super::{
    diagnostics::Chunk,
    events::{Event, EventKind},
    report::{Ack, AgentState, Command, Exit, ExitKind, Guard, GuardKind, Health, Job, Notice, Report},
    settings::{RunnerChoice, Settings},
};
use crate::crd::{AgentSettings, Guards, Hooks, LogLevel, MetadataAccess, Threshold, conditions::cut};

pub(super) const NAME_LIMIT: usize = 128;
pub(super) const TEXT_LIMIT: usize = 300;
/// A version, as the RunnerVM takes it.
const VERSION_LIMIT: usize = 20;
/// An id or a revision of our own making.
const ID_LIMIT: usize = 64;

impl From<v1::Report> for Report {
    fn from(report: v1::Report) -> Self {
        let job = report.job.map(Job::from);
        let exit = report.exit.map(Exit::from);
        Self {
            state: state(v1::AgentState::try_from(report.state), job.is_some(), exit.is_some()),
            draining: matches!(
                v1::AgentState::try_from(report.state),
                Ok(v1::AgentState::Draining | v1::AgentState::ShuttingDown)
            ),
            runner_name: cut(&report.runner_name, NAME_LIMIT),
            job,
            exit,
            health: report.health.map(Health::from),
            error: cut(&report.error, TEXT_LIMIT),
            notice: match v1::Notice::try_from(report.notice) {
                Ok(v1::Notice::Preempted) => Some(Notice::Preempted),
                Ok(v1::Notice::Maintenance) => Some(Notice::Maintenance),
                Ok(v1::Notice::Unspecified) | Err(_) => None,
            },
            guard: report.guard.and_then(guard),
            preparing: matches!(v1::AgentState::try_from(report.state), Ok(v1::AgentState::Initializing)),
            runner_version: cut(&report.runner_version, VERSION_LIMIT),
            settings_revision: cut(&report.settings_revision, ID_LIMIT),
            log_level: v1::LogLevel::try_from(report.log_level).ok().and_then(level),
            ghost: report.ghost,
        }
    }
}

/// One of a kind this version does not know means nothing to it.
fn guard(guard: v1::Guard) -> Option<Guard> {
    let kind = match v1::GuardKind::try_from(guard.kind) {
        Ok(v1::GuardKind::Runtime) => GuardKind::Runtime,
        Ok(v1::GuardKind::Disk) => GuardKind::Disk,
        Ok(v1::GuardKind::Memory) => GuardKind::Memory,
        Ok(v1::GuardKind::Unspecified) | Err(_) => return None,
    };
    Some(Guard { kind, acted: guard.acted, detail: cut(&guard.detail, NAME_LIMIT) })
}

impl From<v1::DiagnosticsChunk> for Chunk {
    fn from(chunk: v1::DiagnosticsChunk) -> Self {
        // Cleaned where it is put together: there its line breaks are known to be wanted.
        let v1::DiagnosticsChunk { command_id, name, text, last, sequence } = chunk;
        Self { command_id: cut(&command_id, ID_LIMIT), name: cut(&name, ID_LIMIT), text, last, sequence }
    }
}

/// Which command an ack is about, and what it says.
pub(super) fn ack(ack: &v1::CommandAck) -> (String, Ack) {
    let refused = ack.outcome() != v1::CommandOutcome::Done;
    (cut(&ack.command_id, ID_LIMIT), Ack { refusal: refused.then(|| cut(&ack.detail, TEXT_LIMIT)) })
}

fn level(level: v1::LogLevel) -> Option<LogLevel> {
    Some(match level {
        v1::LogLevel::Unspecified => return None,
        v1::LogLevel::Error => LogLevel::Error,
        v1::LogLevel::Warn => LogLevel::Warn,
        v1::LogLevel::Info => LogLevel::Info,
        v1::LogLevel::Debug => LogLevel::Debug,
        v1::LogLevel::Trace => LogLevel::Trace,
    })
}

fn wire_level(level: Option<LogLevel>) -> i32 {
    let level = level.map_or(v1::LogLevel::Unspecified, |level| match level {
        LogLevel::Error => v1::LogLevel::Error,
        LogLevel::Warn => v1::LogLevel::Warn,
        LogLevel::Info => v1::LogLevel::Info,
        LogLevel::Debug => v1::LogLevel::Debug,
        LogLevel::Trace => v1::LogLevel::Trace,
    });
    level.into()
}

/// The state word and what else is said: a job means at least Busy, an exit means Ended, whatever the word is.
fn state<E>(word: Result<v1::AgentState, E>, has_job: bool, has_exit: bool) -> AgentState {
    let word = match word {
        Ok(v1::AgentState::Ready) => AgentState::Ready,
        Ok(v1::AgentState::RegisteringRunner) => AgentState::Registering,
        Ok(v1::AgentState::Idle) => AgentState::Idle,
        Ok(v1::AgentState::JobRunning) => AgentState::Busy,
        _ => AgentState::Starting,
    };
    let word = if has_job { word.max(AgentState::Busy) } else { word };
    if has_exit { AgentState::Ended } else { word }
}

impl From<v1::Job> for Job {
    fn from(job: v1::Job) -> Self {
        let result = v1::JobResult::try_from(job.result);
        let completed = time(job.completed_unix_ms);
        Self {
            name: cut(&job.name, NAME_LIMIT),
            repository: cut(&job.repository, NAME_LIMIT),
            workflow: cut(&job.workflow, NAME_LIMIT),
            run_id: i64::try_from(job.run_id).ok().filter(|id| *id > 0),
            run_attempt: Some(job.run_attempt).filter(|attempt| *attempt > 0),
            key: cut(&job.key, NAME_LIMIT),
            started: time(job.started_unix_ms),
            completed,
            result: result_word(result, completed.is_some()).to_owned(),
        }
    }
}

fn result_word<E>(result: Result<v1::JobResult, E>, completed: bool) -> &'static str {
    match result {
        Ok(v1::JobResult::Succeeded) => "Succeeded",
        Ok(v1::JobResult::SucceededWithIssues) => "SucceededWithIssues",
        Ok(v1::JobResult::Failed) => "Failed",
        Ok(v1::JobResult::Canceled) => "Canceled",
        Ok(v1::JobResult::Skipped) => "Skipped",
        Ok(v1::JobResult::Abandoned) => "Abandoned",
        Ok(v1::JobResult::Unspecified) | Err(_) if completed => "Unknown",
        Ok(v1::JobResult::Unspecified) | Err(_) => "",
    }
}

/// A time, unless it is unset or beyond what a calendar has.
fn time(unix_ms: i64) -> Option<Timestamp> {
    Timestamp::from_millisecond(unix_ms).ok().filter(|_| unix_ms > 0)
}

impl From<v1::RunnerExit> for Exit {
    fn from(exit: v1::RunnerExit) -> Self {
        let kind = match v1::RunnerExitKind::try_from(exit.kind) {
            Ok(v1::RunnerExitKind::JobDone) => ExitKind::JobDone,
            Ok(v1::RunnerExitKind::WithoutJob) => ExitKind::WithoutJob,
            _ => ExitKind::Failed,
        };
        Self { kind, code: exit.code, detail: cut(&exit.detail, TEXT_LIMIT) }
    }
}

/// What an event of this kind must tell is there, whatever came: its effect could never be written otherwise.
impl From<v1::Event> for Event {
    fn from(event: v1::Event) -> Self {
        let kind = event_kind(v1::EventKind::try_from(event.kind));
        let happened = time(event.happened_unix_ms);
        let job = event.job.map(Job::from);
        let job = match kind {
            EventKind::JobStarted => Some(job.unwrap_or_default()),
            EventKind::JobCompleted => Some(job.unwrap_or_default().ended(happened)),
            _ => job,
        };
        let exit = event.exit.map(Exit::from);
        let unknown = || Exit { kind: ExitKind::Failed, code: -1, detail: cut(&event.detail, TEXT_LIMIT) };
        let exit = (kind == EventKind::RunnerCrashed).then(|| exit.unwrap_or_else(unknown));
        Self { sequence: event.sequence, kind, happened, job, exit, detail: cut(&event.detail, TEXT_LIMIT) }
    }
}

fn event_kind<E>(kind: Result<v1::EventKind, E>) -> EventKind {
    match kind {
        Ok(v1::EventKind::VmStarted) => EventKind::VmStarted,
        Ok(v1::EventKind::RunnerRegistered) => EventKind::RunnerRegistered,
        Ok(v1::EventKind::JobStarted) => EventKind::JobStarted,
        Ok(v1::EventKind::JobCompleted) => EventKind::JobCompleted,
        Ok(v1::EventKind::RunnerCrashed) => EventKind::RunnerCrashed,
        Ok(v1::EventKind::Preempted) => EventKind::Preempted,
        Ok(v1::EventKind::VmShuttingDown) => EventKind::VmShuttingDown,
        Ok(v1::EventKind::Error) => EventKind::Error,
        Ok(v1::EventKind::Unspecified) | Err(_) => EventKind::Other,
    }
}

impl From<v1::Health> for Health {
    fn from(health: v1::Health) -> Self {
        Self {
            cpu: percent(u64::from(health.cpu_percent), 100),
            memory: percent(health.memory_used_bytes, health.memory_total_bytes),
            disk: percent(health.disk_used_bytes, health.disk_total_bytes),
        }
    }
}

fn percent(used: u64, total: u64) -> i32 {
    let percent = (u128::from(used) * 100).checked_div(u128::from(total)).unwrap_or(0).min(100);
    i32::try_from(percent).unwrap_or(100)
}

/// A command as it goes over the wire. The result holds a registration in the clear: it is sent, never logged.
pub(super) fn wire(id: String, command: Command) -> v1::Command {
    let command = match command {
        Command::Register { runner_name, jit_config } => v1::command::Command::RegisterRunner(v1::RegisterRunner {
            runner_name,
            encoded_jit_config: jit_config.expose_secret().to_owned(),
        }),
        Command::Drain { reason, deadline_seconds } => {
            v1::command::Command::Drain(v1::Drain { reason, deadline_seconds })
        }
        Command::Shutdown { reason } => v1::command::Command::Shutdown(v1::Shutdown { reason }),
        Command::UpdateConfig(settings) => {
            v1::command::Command::UpdateConfig(v1::UpdateConfig { settings: Some(wire_settings(*settings)) })
        }
        Command::SetLogLevel { level, seconds } => {
            v1::command::Command::SetLogLevel(v1::SetLogLevel { level: wire_level(level), for_seconds: seconds })
        }
        Command::CollectDiagnostics => v1::command::Command::CollectDiagnostics(v1::CollectDiagnostics {}),
    };
    v1::Command { id, command: Some(command) }
}

/// What is wanted of an agent, as it goes over the wire.
pub(super) fn wire_settings(settings: Settings) -> v1::Settings {
    v1::Settings {
        revision: settings.revision,
        agent: settings.agent.as_ref().map(|agent| v1::AgentConfig {
            maximum_lifetime_seconds: settings.maximum_lifetime_seconds,
            ..wire_agent(agent)
        }),
        runner: settings.runner.map(wire_runner),
    }
}

/// A number that the schema keeps positive.
pub(super) fn unsigned(number: Option<i32>) -> u32 {
    number.and_then(|number| u32::try_from(number).ok()).unwrap_or_default()
}

fn wire_agent(agent: &AgentSettings) -> v1::AgentConfig {
    let threshold = |threshold: &Threshold| v1::Threshold {
        warn_percent: unsigned(Some(threshold.warn_percent)),
        act_percent: unsigned(threshold.act_percent),
    };
    let guards = |guards: &Guards| v1::Guards {
        max_runtime_seconds: unsigned(guards.max_runtime_seconds),
        disk: guards.disk.as_ref().map(threshold),
        memory: guards.memory.as_ref().map(threshold),
    };
    v1::AgentConfig {
        heartbeat_period_seconds: unsigned(agent.heartbeat_period_seconds),
        log_level: wire_level(agent.log_level),
        guards: agent.guards.as_ref().map(guards),
        ..v1::AgentConfig::default()
    }
}

fn wire_runner(choice: RunnerChoice) -> v1::RunnerSettings {
    let RunnerChoice { version, archives, settings } = choice;
    let required = settings.version.is_some() || settings.minimum_version.is_some();
    let Hooks { job_started, job_completed } = settings.hooks.unwrap_or_default();
    let archives = archives.into_iter().map(|archive| v1::RunnerArchive {
        architecture: archive.architecture.to_owned(),
        sha256: archive.sha256,
        url: archive.url,
    });
    v1::RunnerSettings {
        version,
        minimum_version: settings.minimum_version.unwrap_or_default(),
        archives: archives.collect(),
        sources: settings.sources,
        metadata_access: match settings.metadata_access {
            MetadataAccess::Blocked => v1::MetadataAccess::Blocked,
            MetadataAccess::Allowed => v1::MetadataAccess::Allowed,
        }
        .into(),
        job_started_hook: job_started.unwrap_or_default(),
        job_completed_hook: job_completed.unwrap_or_default(),
        required,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_agent_says_is_cut_and_cleaned() {
        let report = Report::from(v1::Report {
            runner_name: "r".repeat(1000),
            error: format!("bad\u{1b}[2J\n\0{}", "e".repeat(10_000)),
            job: Some(v1::Job {
                name: "j\r\n".repeat(1000),
                repository: "o/".repeat(1000),
                workflow: "w".repeat(1000),
                key: "k".repeat(1000),
                run_id: u64::MAX,
                started_unix_ms: i64::MAX,
                completed_unix_ms: i64::MIN,
                result: 77,
                ..v1::Job::default()
            }),
            exit: Some(v1::RunnerExit { code: i32::MIN, kind: -4, detail: "d".repeat(10_000) }),
            notice: 77,
            guard: Some(v1::Guard { kind: 2, acted: true, detail: "g".repeat(10_000) }),
            ..v1::Report::default()
        });
        let job = report.job.expect("the job is kept");
        assert_eq!((report.runner_name.len(), report.error.len()), (128, 300));
        assert!(report.error.starts_with("bad[2J"), "{}", report.error);
        assert_eq!((job.run_id, job.started, job.completed, job.result.as_str()), (None, None, None, ""));
        assert_eq!([job.name, job.repository, job.workflow, job.key].map(|text| text.len()), [128; 4]);
        let exit = report.exit.expect("the exit is kept");
        assert_eq!((exit.kind, exit.detail.len()), (ExitKind::Failed, 300));
        assert_eq!((report.notice, report.guard.map(|guard| guard.detail.len())), (None, Some(128)));
    }

    #[test]
    fn what_an_event_has_to_tell_is_there_whatever_came() {
        let event = |kind: i32| Event::from(v1::Event { kind, detail: "\u{1b}".repeat(9000), ..v1::Event::default() });
        let completed = event(v1::EventKind::JobCompleted.into());
        assert_eq!(completed.job.map(|job| job.result), Some("Unknown".to_owned()));
        assert!(event(v1::EventKind::JobStarted.into()).job.is_some());
        let crashed = event(v1::EventKind::RunnerCrashed.into());
        assert_eq!(crashed.exit.map(|exit| exit.kind), Some(ExitKind::Failed));
        assert_eq!(
            (event(77).kind, event(-1).kind, event(77).detail.as_str()),
            (EventKind::Other, EventKind::Other, "")
        );
    }

    #[test]
    fn an_unknown_state_never_looks_idle() {
        for word in [-1, 0, 7, 8, 9, 10, i32::MAX] {
            let report = Report::from(v1::Report { state: word, ..v1::Report::default() });
            assert_eq!(report.state, AgentState::Starting, "{word}");
        }
    }

    #[test]
    fn an_idle_agent_with_a_job_is_busy_and_one_with_an_exit_has_ended() {
        let idle = i32::from(v1::AgentState::Idle as u8);
        let job = Some(v1::Job::default());
        let busy = v1::Report { state: idle, job: job.clone(), ..v1::Report::default() };
        assert_eq!(Report::from(busy.clone()).state, AgentState::Busy);
        let ended = v1::Report { exit: Some(v1::RunnerExit::default()), ..busy };
        assert_eq!(Report::from(ended).state, AgentState::Ended);
    }

    #[test]
    fn health_is_a_percentage_whatever_the_figures_are() {
        let health = Health::from(v1::Health {
            cpu_percent: u32::MAX,
            memory_used_bytes: u64::MAX,
            memory_total_bytes: 1,
            disk_used_bytes: 1,
            disk_total_bytes: 0,
        });
        assert_eq!(health, Health { cpu: 100, memory: 100, disk: 0 });
    }
}
