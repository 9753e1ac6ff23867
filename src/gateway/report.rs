//! What an agent says, as the rest of the operator knows it: domain types, cut and cleaned.

use jiff::Timestamp;
use secrecy::SecretString;

use super::{
    events::{Event, EventKind},
    settings::Settings,
};
use crate::crd::LogLevel;

/// An agent's state, in the order of a VM's life: it only moves forward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum AgentState {
    /// It starts, or asks for nothing yet.
    #[default]
    Starting,
    /// It waits for a registration.
    Ready,
    /// It starts the runner.
    Registering,
    /// The runner waits for a job.
    Idle,
    /// The runner has a job.
    Busy,
    /// The runner ended.
    Ended,
}

impl AgentState {
    /// For status and tables.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "Starting",
            Self::Ready => "Ready",
            Self::Registering => "Registering",
            Self::Idle => "Idle",
            Self::Busy => "Busy",
            Self::Ended => "Ended",
        }
    }
}

/// An agent's whole state.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Where it is.
    pub state: AgentState,
    /// It takes no further job.
    pub draining: bool,
    /// The runner whose registration it holds; empty before.
    pub runner_name: String,
    /// The job its runner was given.
    pub job: Option<Job>,
    /// How the runner ended.
    pub exit: Option<Exit>,
    /// How the machine is doing.
    pub health: Option<Health>,
    /// Its last error in words; empty when there is none.
    pub error: String,
    /// The cloud takes its machine away.
    pub notice: Option<Notice>,
    /// A limit of its machine that was neared or passed.
    pub guard: Option<Guard>,
    /// It has no runner to start yet.
    pub preparing: bool,
    /// Version of the runner it has; empty when it does not say.
    pub runner_version: String,
    /// Which of our settings are in effect; empty when none are.
    pub settings_revision: String,
    /// What it logs.
    pub log_level: Option<LogLevel>,
    /// It says that its runner waits for ever: the job it was offered was gone, and its registration with it. A hint.
    pub ghost: bool,
}

/// What the cloud announced to a machine; the later one is the worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Notice {
    /// It will be stopped for maintenance of its host.
    Maintenance,
    /// It is being preempted.
    Preempted,
}

/// A limit of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    /// Which.
    pub kind: GuardKind,
    /// Passed: the agent takes no new work and has interrupted its job. Otherwise neared.
    pub acted: bool,
    /// Figures, for people.
    pub detail: String,
}

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuardKind {
    /// A job's time.
    Runtime,
    /// The disk.
    Disk,
    /// The memory.
    Memory,
}

/// A job as the agent knows it: a hint, everything in it could be forged by the job.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Job {
    /// Display name.
    pub name: String,
    /// `owner/name`, or empty.
    pub repository: String,
    /// Workflow name, or empty.
    pub workflow: String,
    /// Run id.
    pub run_id: Option<i64>,
    /// Attempt of that run.
    pub run_attempt: Option<u32>,
    /// Its key in the workflow file, or empty.
    pub key: String,
    /// When it started.
    pub started: Option<Timestamp>,
    /// When it ended.
    pub completed: Option<Timestamp>,
    /// Result word (`Succeeded` ...), empty while it runs.
    pub result: String,
}

/// How a runner ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// What it means.
    pub kind: ExitKind,
    /// Exit code.
    pub code: i32,
    /// The listener's words.
    pub detail: String,
}

/// What a runner's end means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitKind {
    /// One job ran.
    JobDone,
    /// Exit 0 without a job.
    WithoutJob,
    /// Anything else.
    Failed,
}

/// How a machine is doing, in percent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Processor.
    pub cpu: i32,
    /// Memory.
    pub memory: i32,
    /// Disk.
    pub disk: i32,
}

/// An order to an agent.
#[derive(Debug)]
pub enum Command {
    /// Start the runner with this registration.
    Register {
        /// Its name.
        runner_name: String,
        /// The secret that starts it.
        jit_config: SecretString,
    },
    /// Take no new work; stop an idle listener.
    Drain {
        /// Why.
        reason: String,
        /// A job that still runs after this many seconds is interrupted; 0: never.
        deadline_seconds: u32,
    },
    /// Power off once the runner has ended.
    Shutdown {
        /// Why.
        reason: String,
    },
    /// Work by these settings.
    UpdateConfig(Box<Settings>),
    /// Log this for a while; without a level: what the settings say, from now on.
    SetLogLevel {
        /// What.
        level: Option<LogLevel>,
        /// For how long.
        seconds: u32,
    },
    /// Send what helps to find a fault.
    CollectDiagnostics,
}

/// What became of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ack {
    /// Why it was refused; `None` when it was done.
    pub refusal: Option<String>,
}

impl Report {
    /// Whether it says that no job can be running: its runner waits for one, or it has no runner at all.
    #[must_use]
    pub fn jobless(&self) -> bool {
        self.state == AgentState::Idle || (self.state <= AgentState::Ready && self.runner_name.is_empty())
    }

    /// What is known after hearing of this: never less than a report of the same would tell.
    #[must_use]
    pub fn told(&self, event: &Event) -> Self {
        let state = match event.kind {
            EventKind::JobStarted | EventKind::JobCompleted => AgentState::Busy,
            EventKind::RunnerCrashed => AgentState::Ended,
            _ => return self.clone(),
        };
        self.advanced_to(Self { state, job: event.job.clone(), exit: event.exit.clone(), ..self.clone() })
    }

    /// Whether its runner may be a ghost. Only for as long as no job has run: after that its word is a job's.
    #[must_use]
    pub fn haunted(&self) -> bool {
        self.ghost && self.state == AgentState::Idle
    }

    /// What is known after hearing `next`: the state never goes back, a job or an exit once reported stays.
    ///
    /// After a job started the VM is in the job's hands: a Busy that becomes Idle again would be a way to look unused.
    #[must_use]
    pub fn advanced_to(&self, next: Self) -> Self {
        Self {
            state: self.state.max(next.state),
            draining: self.draining || next.draining,
            runner_name: if self.runner_name.is_empty() { next.runner_name } else { self.runner_name.clone() },
            job: Job::advanced(self.job.as_ref(), next.job),
            exit: self.exit.clone().or(next.exit),
            health: next.health.or(self.health),
            error: next.error,
            notice: self.notice.max(next.notice),
            guard: Guard::worse(self.guard.as_ref(), next.guard),
            preparing: next.preparing,
            runner_version: if next.runner_version.is_empty() {
                self.runner_version.clone()
            } else {
                next.runner_version
            },
            settings_revision: next.settings_revision,
            log_level: next.log_level,
            ghost: next.ghost,
        }
    }
}

impl Guard {
    /// The first of each severity stays: an agent that tells other figures each time says nothing new.
    fn worse(old: Option<&Self>, next: Option<Self>) -> Option<Self> {
        match (old, next) {
            (Some(old), Some(next)) if next.acted && !old.acted => Some(next),
            (Some(old), _) => Some(old.clone()),
            (None, next) => next,
        }
    }
}

impl Job {
    /// It has ended, whatever else is known of it.
    pub(super) fn ended(mut self, happened: Option<Timestamp>) -> Self {
        self.completed = self.completed.or(happened);
        if self.result.is_empty() {
            "Unknown".clone_into(&mut self.result);
        }
        self
    }

    /// The first job reported stays; what was unknown of it may be filled in.
    fn advanced(old: Option<&Self>, next: Option<Self>) -> Option<Self> {
        let (Some(old), Some(next)) = (old, next.clone()) else { return old.cloned().or(next) };
        let keep = |old: &str, next: String| if old.is_empty() { next } else { old.to_owned() };
        Some(Self {
            name: keep(&old.name, next.name),
            repository: keep(&old.repository, next.repository),
            workflow: keep(&old.workflow, next.workflow),
            run_id: old.run_id.or(next.run_id),
            run_attempt: old.run_attempt.or(next.run_attempt),
            key: keep(&old.key, next.key),
            started: old.started.or(next.started),
            completed: old.completed.or(next.completed),
            result: keep(&old.result, next.result),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_agent_never_looks_idle_again() {
        let busy = Report { state: AgentState::Busy, ..Report::default() };
        let told = busy.advanced_to(Report { state: AgentState::Idle, ..Report::default() });
        assert_eq!(told.state, AgentState::Busy);
    }

    #[test]
    fn a_notice_is_never_taken_back_and_a_warning_gives_way_to_an_end_only() {
        let guard = |acted, detail: &str| Some(Guard { kind: GuardKind::Disk, acted, detail: detail.into() });
        let told = [(Some(Notice::Preempted), guard(false, "a")), (None, guard(false, "b")), (None, None)];
        let last = told.into_iter().fold(Report::default(), |known, (notice, guard)| {
            known.advanced_to(Report { notice, guard, ..Report::default() })
        });
        assert_eq!((last.notice, last.guard.clone()), (Some(Notice::Preempted), guard(false, "a")));
        let ended = last.advanced_to(Report { guard: guard(true, "c"), ..Report::default() });
        assert_eq!(ended.guard, guard(true, "c"));
    }

    #[test]
    fn an_event_tells_what_a_report_of_it_would_and_takes_nothing_back() {
        let exit = Exit { kind: ExitKind::Failed, code: 1, detail: String::new() };
        let health = Some(Health::default());
        let known = Report { exit: Some(exit.clone()), error: "e".into(), health, ..Report::default() };
        let job = Some(Job { result: "Failed".into(), ..Job::default() });
        let detail = String::new();
        let event =
            Event { sequence: 1, kind: EventKind::JobCompleted, happened: None, job: job.clone(), exit: None, detail };
        let told = known.told(&event);
        assert_eq!((told.state, &told.job, told.exit.as_ref()), (AgentState::Busy, &job, Some(&exit)));
        assert_eq!((told.error.as_str(), told.health), ("e", health));
        assert_eq!(known.told(&Event { kind: EventKind::VmStarted, ..event }), known);
    }

    #[test]
    fn a_reported_result_is_not_rewritten() {
        let failed = Report {
            job: Some(Job { name: "build".into(), result: "Failed".into(), ..Job::default() }),
            ..Report::default()
        };
        let told = failed.advanced_to(Report {
            job: Some(Job {
                name: "other".into(),
                result: "Succeeded".into(),
                workflow: "ci".into(),
                ..Job::default()
            }),
            ..Report::default()
        });
        let job = told.job.expect("the job stays");
        assert_eq!((job.name.as_str(), job.result.as_str(), job.workflow.as_str()), ("build", "Failed", "ci"));
    }
}
