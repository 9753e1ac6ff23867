//! What the agent does next. Pure: a state and an input give a state and effects.
//!
//! ```text
//!  Connecting -> Ready -> RegisteringRunner -> Idle -> JobRunning -> ShuttingDown   (the runner has ended well,
//!                  |            |               |                        or the machine goes off)
//!                  '------------+---- Draining -'                 -> Error          (the runner has failed)
//! ```
//!
//! - A registration is accepted once in the life of an instance, whatever became of the first.
//! - Commands are idempotent by id: a repeated one is answered as before and not done again.
//! - A running job is always JobRunning, a drain or shutdown notwithstanding: nothing may hide that a job runs.
//! - A machine whose one runner has ended never works again. It goes off when told, and when nobody is left to tell it.

use std::time::Duration;

use secrecy::SecretString;
use tokio::time::Instant;
use tracing::level_filters::LevelFilter;

mod command;
mod state;

pub use state::{Limits, READ_ONLY, Standing, State};

use self::command::{answer, configure, configured, give_up_waiting, not_launched, obey, ready};
use crate::{
    clock::Now, guards::Figures, leaving::Stop, notice::Notice, preparation::Prepared, runner::Runner,
    supervisor::Launch,
};

/// Values of the agent's own settings.
pub type Values = Vec<(&'static str, String)>;

/// What the operator wants of the agent. What it does not say stays as it was said last: an operator that has just taken
/// over does not know yet, and a limit that a pool has lifted must not come back for that moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The operator's name for it.
    pub revision: String,
    /// How the agent works.
    pub agent: Option<Values>,
    /// Which runner is started, and how.
    pub runner: Option<Values>,
}

impl Wanted {
    /// All that is said.
    #[must_use]
    pub fn values(&self) -> Values {
        self.agent.iter().chain(&self.runner).flatten().cloned().collect()
    }
}

/// What the plan needs to know of settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Configured {
    /// What they limit.
    pub limits: Limits,
    /// What they have logged.
    pub level: LevelFilter,
}

/// What happened.
#[derive(Debug)]
pub enum Input {
    /// The operator said Welcome.
    Connected {
        /// Which RunnerVM this is.
        vm_name: String,
        /// Seconds between heartbeats while the settings name none.
        heartbeat: Option<String>,
        /// What it wants of this agent.
        wanted: Wanted,
    },
    /// What became of the operator's settings.
    Configured {
        /// The command that brought them; `None` for the welcome.
        command_id: Option<String>,
        /// Which they were.
        revision: String,
        /// Whether they name a runner.
        names_runner: bool,
        /// What follows from them, or all that is wrong with them.
        outcome: Result<Configured, String>,
    },
    /// There is a runner to start.
    Prepared(Prepared),
    /// There is none yet.
    Unprepared {
        /// Why.
        error: String,
    },
    /// The session ended, or could not be opened.
    Disconnected {
        /// Why.
        error: String,
    },
    /// The operator wants something.
    Command {
        /// Idempotency key.
        id: String,
        /// What.
        command: Command,
    },
    /// The supervisor took the runner.
    Launched {
        /// Under this command.
        command_id: String,
    },
    /// The runner could not be started.
    LaunchFailed {
        /// Under this command.
        command_id: String,
        /// Why.
        error: String,
    },
    /// The runner's newest snapshot.
    Runner(Box<Runner>),
    /// The cloud takes the machine away.
    Notice(Notice),
    /// Somebody on this machine wants no new work on it.
    Drain {
        /// The same request again is not another one.
        id: String,
        /// How long a job may still run.
        deadline: Option<Duration>,
    },
    /// How full the machine is.
    Figures(Figures),
    /// Time went by.
    Tick,
}

/// What an operator can want.
#[derive(Clone, Debug)]
pub enum Command {
    /// Start the runner.
    Register {
        /// Under this name.
        runner_name: String,
        /// With this registration.
        jit_config: SecretString,
    },
    /// Take no new work.
    Drain {
        /// How long a job may still run.
        deadline: Option<Duration>,
    },
    /// Work by these settings.
    Configure(Wanted),
    /// Log this for a while.
    SetLogLevel {
        /// This; `None`: what the settings say, from now on. An error is a level this agent does not know.
        level: Result<Option<LevelFilter>, i32>,
        /// For so long.
        period: Duration,
    },
    /// Send what helps to find a fault.
    CollectDiagnostics,
    /// Power off once the runner has ended.
    Shutdown,
    /// Something newer than this agent.
    Unknown,
}

/// The answer to a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Which command.
    pub command_id: String,
    /// Why it was refused; `None` when it was done.
    pub refusal: Option<String>,
}

/// What is to be done.
#[derive(Debug)]
pub enum Effect {
    /// Answer a command.
    Answer(Answer),
    /// Check these settings and work by them.
    Configure {
        /// The command that brought them; `None` for the welcome.
        command_id: Option<String>,
        /// Which.
        wanted: Wanted,
    },
    /// Get a runner, as the settings say now.
    Prepare,
    /// Collect diagnostics and send them.
    Collect {
        /// Under this command.
        command_id: String,
    },
    /// Remember the registration for ever, then start its runner.
    Launch(Launch),
    /// Stop the listener if it has no job.
    StopIdle,
    /// Stop the listener, its job too.
    Interrupt,
    /// Turn the machine off.
    PowerOff,
}

/// Decides.
#[must_use]
pub fn plan(mut state: State, input: Input, now: Now) -> (State, Vec<Effect>) {
    let mut effects = Vec::new();
    match input {
        Input::Connected { vm_name, heartbeat, wanted } => {
            (state.connected, state.vm_name, state.heartbeat) = (true, vm_name, heartbeat);
            state.error.clear();
            effects.push(configure(&mut state, None, wanted));
        }
        Input::Configured { command_id, revision, names_runner, outcome } => {
            effects.extend(configured(&mut state, command_id, (revision, names_runner), outcome));
        }
        Input::Prepared(prepared) => effects.extend(ready(&mut state, prepared)),
        Input::Unprepared { error } => state.unprepared = error,
        Input::Disconnected { error } => (state.connected, state.error) = (false, error),
        Input::Command { id, command } => effects.extend(obey(&mut state, id, command, now.instant)),
        Input::Launched { command_id } => effects.push(answer(&mut state, command_id, None)),
        Input::LaunchFailed { command_id, error } => effects.push(not_launched(&mut state, command_id, error)),
        Input::Runner(runner) => take(&mut state, *runner),
        Input::Notice(notice) => noticed(&mut state, notice, now.instant),
        Input::Drain { id, deadline } => drain_here(&mut state, id, deadline, now.instant),
        Input::Figures(figures) => {
            state.read_only = figures.read_only;
            state.watch.look(&state.limits.guards, figures);
        }
        Input::Tick => {}
    }
    effects.extend(settle(&mut state, now));
    (state, effects)
}

fn noticed(state: &mut State, notice: Notice, now: Instant) {
    state.notice = state.notice.max(Some(notice));
    state.leaving.leave(now, (notice == Notice::Preempted).then_some(now));
}

/// Asked for twice, a drain no longer waits for the job.
fn drain_here(state: &mut State, id: String, deadline: Option<Duration>, now: Instant) {
    let again = state.local_drain.as_ref().is_some_and(|first| *first != id);
    state.local_drain.get_or_insert(id);
    state.leaving.leave(now, if again { Some(now) } else { deadline.and_then(|deadline| now.checked_add(deadline)) });
}

/// What the time alone, or what has just become known, makes due.
fn settle(state: &mut State, now: Now) -> Vec<Effect> {
    let given_up = give_up_waiting(state);
    let (live, busy) = (state.has_live_runner(), state.is_busy());
    state.level = state.level.filter(|(_, until)| now.instant < *until);
    keep_times(state, now);
    if live && busy {
        state.watch.time(&state.limits.guards, state.job_since, now.instant);
    }
    if state.watch.alarm().is_some_and(|alarm| alarm.acted) {
        state.leaving.leave(now.instant, Some(now.instant));
    }
    let stop = if live { state.leaving.due(busy, now.instant) } else { None };
    let orphaned = state.orphaned_at().is_some_and(|at| now.instant >= at);
    let off = orphaned || (state.shutdown && !live);
    state.off |= off;
    let stop = stop.map(|stop| match stop {
        Stop::Job => Effect::Interrupt,
        Stop::Idle => Effect::StopIdle,
    });
    given_up.into_iter().chain(stop).chain(off.then_some(Effect::PowerOff)).collect()
}

fn keep_times(state: &mut State, now: Now) {
    let job = state.runner.as_ref().and_then(|runner| runner.job.as_ref());
    let since = job.map(|job| job.started_boot_ms.map_or(now.instant, |started| now.instant_of(started)));
    state.job_since = state.job_since.or(since);
    if !state.has_live_runner() && state.registration.is_some() {
        state.ended_at.get_or_insert(now.instant);
    }
    state.disconnected_at = if state.connected { None } else { state.disconnected_at.or(Some(now.instant)) };
}

/// An end stays the end, and phases only move forward.
fn take(state: &mut State, runner: Runner) {
    let newest = state.runner.as_ref().is_none_or(|known| known.exit.is_none() && known.phase <= runner.phase);
    if newest {
        state.runner = Some(runner);
    }
}

#[cfg(test)]
mod tests;
