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
use tracing::level_filters::LevelFilter;

use crate::{
    clock::Now,
    guards::{Figures, Guards, Watch},
    hook::Scripts,
    leaving::{Leaving, Stop},
    notice::Notice,
    preparation::Prepared,
    runner::{ExitKind, Phase, Runner},
    supervisor::{Launch, Registration},
};

/// Answers kept for repeated commands.
const REMEMBERED: usize = 64;
/// Why a registration is refused.
const NO_NEW_WORK: &str = "this machine takes no new work";
/// Whatever an operator says: a chatty log must not fill a disk for days.
const LONGEST_LOG_LEVEL: Duration = Duration::from_secs(24 * 3600);

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
    /// Why there is no runner to start yet, for people.
    pub unprepared: String,
    /// The runner that can be started, once there is one.
    pub prepared: Option<Prepared>,
    /// Which of the operator's settings are in effect; empty when none are.
    pub settings_revision: String,
    /// The machine goes off.
    pub off: bool,
    /// Why events are not, or not all, on the disk; empty while they are.
    pub spool_error: String,
    /// What the settings limit.
    pub limits: Limits,
    /// What the settings have logged; as it was at the start while unset.
    pub settings_level: Option<LevelFilter>,
    /// What is logged instead, and until when.
    pub(crate) level: Option<(LevelFilter, Instant)>,
    /// What the operator's heartbeat is while its settings name none.
    pub(crate) heartbeat: Option<String>,
    /// Came before there was a runner to start.
    pub(crate) waiting: Option<Launch>,
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

/// What the operator wants of the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The operator's name for it.
    pub revision: String,
    /// Values of the agent's own settings.
    pub values: Vec<(&'static str, String)>,
    /// Whether it says which runner to start: else that is still to come.
    pub names_runner: bool,
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

/// Where the agent stands, in the protocol's nine states.
pub use miglet_proto::v1::AgentState as Standing;

impl State {
    /// At the start: what an earlier agent on this instance has left.
    #[must_use]
    pub fn new(registration: Option<Registration>, runner: Option<Runner>, limits: Limits) -> Self {
        // Whoever was registered has had its runner.
        let prepared = registration.as_ref().map(|registration| registration.runner.clone());
        Self { registration, runner, limits, prepared, ..Self::default() }
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
            None if self.connected && self.prepared.is_none() => Standing::Initializing,
            None if self.connected => Standing::Ready,
            None => Standing::Connecting,
        }
    }

    /// What is wrong now, for people.
    #[must_use]
    pub fn trouble(&self) -> String {
        let troubles = [&self.unprepared, &self.error, &self.spool_error];
        troubles.into_iter().filter(|text| !text.is_empty()).cloned().collect::<Vec<_>>().join("; ")
    }

    /// Whether a runner runs, or is about to.
    #[must_use]
    pub fn has_live_runner(&self) -> bool {
        self.registration.is_some() && self.runner.as_ref().is_none_or(|runner| runner.exit.is_none())
    }

    /// What is logged now.
    #[must_use]
    pub fn log_level(&self) -> LevelFilter {
        self.level.map(|(level, _)| level).or(self.settings_level).unwrap_or(LevelFilter::INFO)
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
        [leaving, guard, self.orphaned_at(), self.level.map(|(_, until)| until)].into_iter().flatten().min()
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
        Input::Connected { vm_name, heartbeat, wanted } => {
            (state.connected, state.vm_name, state.heartbeat) = (true, vm_name, heartbeat);
            state.error.clear();
            effects.push(configure(&state, None, wanted));
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
        Input::Figures(figures) => state.watch.look(&state.limits.guards, figures),
        Input::Tick => {}
    }
    effects.extend(settle(&mut state, now));
    (state, effects)
}

fn configure(state: &State, command_id: Option<String>, mut wanted: Wanted) -> Effect {
    let named = wanted.values.iter().any(|(name, _)| *name == "heartbeat-seconds");
    wanted.values.extend(state.heartbeat.clone().filter(|_| !named).map(|period| ("heartbeat-seconds", period)));
    Effect::Configure { command_id, wanted }
}

/// All of the settings hold from now on, or none of them.
fn configured(
    state: &mut State,
    command_id: Option<String>,
    (revision, names_runner): (String, bool),
    outcome: Result<Configured, String>,
) -> Vec<Effect> {
    let (refusal, prepare) = match outcome {
        Ok(configured) => {
            (state.limits, state.settings_level) = (configured.limits, Some(configured.level));
            state.settings_revision = revision;
            (None, names_runner && state.prepared.is_none())
        }
        Err(problems) => {
            let told = format!("the operator's settings cannot be used: {problems}");
            state.error.clone_from(&told);
            (Some(told), false)
        }
    };
    let answered = command_id.map(|id| answer(state, id, refusal));
    answered.into_iter().chain(prepare.then_some(Effect::Prepare)).collect()
}

/// A registration that came early is used now.
fn ready(state: &mut State, prepared: Prepared) -> Option<Effect> {
    if state.prepared.is_some() {
        return None;
    }
    state.unprepared.clear();
    state.prepared = Some(prepared.clone());
    let mut launch = state.waiting.take()?;
    launch.registration.runner = prepared;
    state.registration = Some(launch.registration.clone());
    Some(Effect::Launch(launch))
}

/// Its registration is used up all the same.
fn not_launched(state: &mut State, command_id: String, error: String) -> Effect {
    let registration = state.registration.clone().unwrap_or_default();
    let runner = Runner { command_id: registration.command_id, name: registration.runner_name, ..Runner::default() };
    state.runner = Some(runner.failed(&error));
    answer(state, command_id, Some(error))
}

/// A machine that stops working starts no runner that it was to start later.
fn give_up_waiting(state: &mut State) -> Option<Effect> {
    let stops = state.draining || state.shutdown || state.leaving.is_leaving();
    let launch = state.waiting.take_if(|_| stops)?;
    Some(not_launched(state, launch.registration.command_id, NO_NEW_WORK.to_owned()))
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
    state.job_since = state.job_since.or(job.map(|job| now.instant_of(job.started_unix_ms)));
    if !state.has_live_runner() && state.registration.is_some() {
        state.ended_at.get_or_insert(now.instant);
    }
    state.disconnected_at = if state.connected { None } else { state.disconnected_at.or(Some(now.instant)) };
}

fn obey(state: &mut State, id: String, command: Command, now: Instant) -> Vec<Effect> {
    if let Some(before) = state.answers.iter().find(|answer| answer.command_id == id) {
        return vec![Effect::Answer(before.clone())];
    }
    match command {
        Command::Register { runner_name, jit_config } => register(state, id, runner_name, jit_config),
        Command::Configure(wanted) => vec![configure(state, Some(id), wanted)],
        Command::SetLogLevel { level, period } => {
            let refusal = level.err().map(|unknown| format!("this agent does not know log level {unknown}"));
            let until = now.checked_add(period.min(LONGEST_LOG_LEVEL));
            if let Ok(level) = level {
                state.level = level.zip(until);
            }
            vec![answer(state, id, refusal)]
        }
        Command::CollectDiagnostics => {
            vec![answer(state, id.clone(), None), Effect::Collect { command_id: id }]
        }
        // A second one is no abort, unlike `miglet drain`: an operator that was restarted says everything again.
        Command::Drain { deadline } => {
            state.draining = true;
            if let Some(until) = deadline.and_then(|deadline| now.checked_add(deadline)) {
                state.leaving.leave(now, Some(until));
            }
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
        None if state.draining || state.shutdown || state.leaving.is_leaving() => NO_NEW_WORK.to_owned(),
        None => {
            let runner = state.prepared.clone();
            let known = runner.is_some();
            let registration = Registration { command_id: id, runner_name, runner: runner.unwrap_or_default() };
            state.registration = Some(registration.clone());
            let launch = Launch { registration, jit_config, scripts: Scripts::default() };
            if known {
                return vec![Effect::Launch(launch)];
            }
            // An operator that does not wait for Ready: the registration waits instead.
            state.waiting = Some(launch);
            return Vec::new();
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
