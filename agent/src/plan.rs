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

use std::{collections::VecDeque, time::Duration};

use secrecy::SecretString;
use tokio::time::Instant;

use crate::{
    clock::Now,
    guards::{Figures, Guards, Watch},
    leaving::{Leaving, Stop},
    notice::Notice,
    runner::{ExitKind, Phase, Runner},
    supervisor::{Launch, Registration},
};

/// Answers kept for repeated commands.
const REMEMBERED: usize = 64;

/// All the agent knows.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Whether a session is open.
    pub connected: bool,
    /// The RunnerVM this machine is, from the Welcome.
    pub vm_name: String,
    /// The registration this instance was given.
    pub registration: Option<Registration>,
    /// What its runner does.
    pub runner: Option<Runner>,
    /// Take no new work.
    pub draining: bool,
    /// Power off once no runner runs.
    pub shutdown: bool,
    /// The last error, for people.
    pub error: String,
    /// The machine goes off.
    pub off: bool,
    /// Why events are not, or not all, on the disk; empty while they are.
    pub spool_error: String,
    /// What the settings limit.
    pub limits: Limits,
    /// The cloud takes the machine away.
    pub notice: Option<Notice>,
    /// What limits are near or passed.
    pub watch: Watch,
    pub(crate) leaving: Leaving,
    /// The drain that somebody on this machine asked for.
    pub(crate) local_drain: Option<String>,
    pub(crate) job_since: Option<Instant>,
    pub(crate) ended_at: Option<Instant>,
    pub(crate) disconnected_at: Option<Instant>,
    pub(crate) answers: VecDeque<Answer>,
}

/// What the settings limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Of the job and its machine.
    pub guards: Guards,
    /// How long a machine whose runner has ended waits for its operator; for ever where 0.
    pub orphan: Duration,
}

/// What happened.
#[derive(Debug)]
pub enum Input {
    /// The operator said Welcome.
    Connected {
        /// Which RunnerVM this is.
        vm_name: String,
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
    Drain,
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
    /// Remember the registration for ever, then start its runner.
    Launch(Launch),
    /// Stop the listener if it has no job.
    StopIdle,
    /// Stop the listener, its job too.
    Interrupt,
    /// Turn the machine off.
    PowerOff,
}

/// Where the agent stands, in the protocol's nine states.
pub use miglet_proto::v1::AgentState as Standing;

impl State {
    /// At the start: what an earlier agent on this instance has left.
    #[must_use]
    pub fn new(registration: Option<Registration>, runner: Option<Runner>, limits: Limits) -> Self {
        Self { registration, runner, limits, ..Self::default() }
    }

    /// Derived, never stored.
    #[must_use]
    pub fn standing(&self) -> Standing {
        match &self.runner {
            Some(Runner { exit: Some(_), .. }) if self.shutdown => Standing::ShuttingDown,
            Some(Runner { exit: Some(exit), .. }) if exit.kind == ExitKind::Failed => Standing::Error,
            Some(Runner { exit: Some(_), .. }) => Standing::ShuttingDown,
            Some(runner) if runner.is_busy() => Standing::JobRunning,
            Some(_) if self.draining || self.shutdown || self.leaving.is_leaving() => Standing::Draining,
            Some(Runner { phase: Phase::Listening, .. }) => Standing::Idle,
            Some(_) => Standing::RegisteringRunner,
            None if self.registration.is_some() => Standing::RegisteringRunner,
            None if self.shutdown => Standing::ShuttingDown,
            None if self.draining || self.leaving.is_leaving() => Standing::Draining,
            None if self.connected => Standing::Ready,
            None => Standing::Connecting,
        }
    }

    /// What is wrong now, for people.
    #[must_use]
    pub fn trouble(&self) -> String {
        let troubles = [&self.error, &self.spool_error];
        troubles.into_iter().filter(|text| !text.is_empty()).cloned().collect::<Vec<_>>().join("; ")
    }

    /// Whether a runner runs, or is about to.
    #[must_use]
    pub fn has_live_runner(&self) -> bool {
        self.registration.is_some() && self.runner.as_ref().is_none_or(|runner| runner.exit.is_none())
    }

    fn is_busy(&self) -> bool {
        self.runner.as_ref().is_some_and(Runner::is_busy)
    }

    /// When time alone changes something next.
    #[must_use]
    pub fn wake_at(&self, now: Instant) -> Option<Instant> {
        let live = self.has_live_runner();
        let leaving = live.then(|| self.leaving.next(self.is_busy())).flatten();
        let guard = self.watch.next(&self.limits.guards, self.job_since.filter(|_| live), now);
        [leaving, guard, self.orphaned_at()].into_iter().flatten().min()
    }

    /// When the machine goes off by itself: its runner has ended, and nobody was there to tell it for long enough.
    fn orphaned_at(&self) -> Option<Instant> {
        let waited = (!self.limits.orphan.is_zero() && !self.connected).then_some(self.limits.orphan)?;
        Some(self.ended_at?.max(self.disconnected_at?) + waited)
    }
}

/// Decides.
#[must_use]
pub fn plan(mut state: State, input: Input, now: Now) -> (State, Vec<Effect>) {
    let mut effects = Vec::new();
    match input {
        Input::Connected { vm_name } => {
            (state.connected, state.vm_name) = (true, vm_name);
            state.error.clear();
        }
        Input::Disconnected { error } => (state.connected, state.error) = (false, error),
        Input::Command { id, command } => effects.extend(obey(&mut state, id, command)),
        Input::Launched { command_id } => effects.push(answer(&mut state, command_id, None)),
        Input::LaunchFailed { command_id, error } => {
            let registration = state.registration.clone().unwrap_or_default();
            let runner =
                Runner { command_id: registration.command_id, name: registration.runner_name, ..Runner::default() };
            state.runner = Some(runner.failed(&error));
            effects.push(answer(&mut state, command_id, Some(error)));
        }
        Input::Runner(runner) => take(&mut state, *runner),
        Input::Notice(notice) => noticed(&mut state, notice, now.instant),
        Input::Drain { id, deadline } => drain_here(&mut state, id, deadline, now.instant),
        Input::Figures(figures) => state.watch.look(&state.limits.guards, figures),
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
    let (live, busy) = (state.has_live_runner(), state.is_busy());
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
    stop.into_iter().chain(off.then_some(Effect::PowerOff)).collect()
}

fn keep_times(state: &mut State, now: Now) {
    let job = state.runner.as_ref().and_then(|runner| runner.job.as_ref());
    state.job_since = state.job_since.or(job.map(|job| now.instant_of(job.started_unix_ms)));
    if !state.has_live_runner() && state.registration.is_some() {
        state.ended_at.get_or_insert(now.instant);
    }
    state.disconnected_at = if state.connected { None } else { state.disconnected_at.or(Some(now.instant)) };
}

fn obey(state: &mut State, id: String, command: Command) -> Vec<Effect> {
    if let Some(before) = state.answers.iter().find(|answer| answer.command_id == id) {
        return vec![Effect::Answer(before.clone())];
    }
    match command {
        Command::Register { runner_name, jit_config } => register(state, id, runner_name, jit_config),
        Command::Drain => {
            state.draining = true;
            let stop = (state.has_live_runner() && !state.is_busy()).then_some(Effect::StopIdle);
            stop.into_iter().chain([answer(state, id, None)]).collect()
        }
        Command::Shutdown => {
            state.shutdown = true;
            vec![answer(state, id, None)]
        }
        Command::Unknown => vec![answer(state, id, Some("this agent does not know the command".into()))],
    }
}

fn register(state: &mut State, id: String, runner_name: String, jit_config: SecretString) -> Vec<Effect> {
    let refusal = match &state.registration {
        // This very command, before this agent was restarted.
        Some(registration) if registration.command_id == id => {
            // Being launched: it is answered when that is done.
            return if state.runner.is_some() { vec![answer(state, id, None)] } else { Vec::new() };
        }
        Some(first) => format!("this instance was registered before, as {}: it never is again", first.runner_name),
        None if state.draining || state.shutdown || state.leaving.is_leaving() => {
            "this machine takes no new work".to_owned()
        }
        None => {
            let registration = Registration { command_id: id, runner_name };
            state.registration = Some(registration.clone());
            return vec![Effect::Launch(Launch { registration, jit_config })];
        }
    };
    vec![answer(state, id, Some(refusal))]
}

/// An end stays the end, and phases only move forward.
fn take(state: &mut State, runner: Runner) {
    let newest = state.runner.as_ref().is_none_or(|known| known.exit.is_none() && known.phase <= runner.phase);
    if newest {
        state.runner = Some(runner);
    }
}

fn answer(state: &mut State, command_id: String, refusal: Option<String>) -> Effect {
    let answer = Answer { command_id, refusal };
    if state.answers.len() == REMEMBERED {
        state.answers.pop_front();
    }
    state.answers.push_back(answer.clone());
    Effect::Answer(answer)
}

#[cfg(test)]
mod tests;
