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

use std::collections::VecDeque;

use secrecy::SecretString;

use crate::{
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
    pub(crate) answers: VecDeque<Answer>,
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
    /// Turn the machine off.
    PowerOff,
}

/// Where the agent stands, in the protocol's nine states.
pub use miglet_proto::v1::AgentState as Standing;

impl State {
    /// At the start: what an earlier agent on this instance has left.
    #[must_use]
    pub fn new(registration: Option<Registration>, runner: Option<Runner>) -> Self {
        Self { registration, runner, ..Self::default() }
    }

    /// Derived, never stored.
    #[must_use]
    pub fn standing(&self) -> Standing {
        match &self.runner {
            Some(Runner { exit: Some(_), .. }) if self.shutdown => Standing::ShuttingDown,
            Some(Runner { exit: Some(exit), .. }) if exit.kind == ExitKind::Failed => Standing::Error,
            Some(Runner { exit: Some(_), .. }) => Standing::ShuttingDown,
            Some(runner) if runner.is_busy() => Standing::JobRunning,
            Some(_) if self.draining || self.shutdown => Standing::Draining,
            Some(Runner { phase: Phase::Listening, .. }) => Standing::Idle,
            Some(_) => Standing::RegisteringRunner,
            None if self.registration.is_some() => Standing::RegisteringRunner,
            None if self.shutdown => Standing::ShuttingDown,
            None if self.draining => Standing::Draining,
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
    fn has_live_runner(&self) -> bool {
        self.registration.is_some() && self.runner.as_ref().is_none_or(|runner| runner.exit.is_none())
    }
}

/// Decides.
#[must_use]
pub fn plan(mut state: State, input: Input) -> (State, Vec<Effect>) {
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
    }
    if state.shutdown && !state.has_live_runner() {
        state.off = true;
        effects.push(Effect::PowerOff);
    }
    (state, effects)
}

fn obey(state: &mut State, id: String, command: Command) -> Vec<Effect> {
    if let Some(before) = state.answers.iter().find(|answer| answer.command_id == id) {
        return vec![Effect::Answer(before.clone())];
    }
    match command {
        Command::Register { runner_name, jit_config } => register(state, id, runner_name, jit_config),
        Command::Drain => {
            state.draining = true;
            let busy = state.runner.as_ref().is_some_and(Runner::is_busy);
            let stop = (state.has_live_runner() && !busy).then_some(Effect::StopIdle);
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
        None if state.draining || state.shutdown => "this machine takes no new work".to_owned(),
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
