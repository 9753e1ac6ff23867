//! What the operator orders, and what has to be there before it can be done.

use std::time::Duration;

use secrecy::SecretString;
use tokio::time::Instant;

use super::{Answer, Command, Configured, Effect, State, Wanted};
use crate::{
    hook::Scripts,
    preparation::Prepared,
    runner::Runner,
    supervisor::{Launch, Registration},
};

/// Answers kept for repeated commands.
const REMEMBERED: usize = 64;
/// Why a registration is refused.
const NO_NEW_WORK: &str = "this machine takes no new work";
/// Whatever an operator says: a chatty log must not fill a disk for days.
const LONGEST_LOG_LEVEL: Duration = Duration::from_secs(24 * 3600);

pub(super) fn configure(state: &mut State, command_id: Option<String>, wanted: Wanted) -> Effect {
    let agent = wanted.agent.or_else(|| state.wanted.agent.take());
    let runner = wanted.runner.or_else(|| state.wanted.runner.take());
    state.wanted = Wanted { revision: wanted.revision, agent, runner };
    let mut wanted = state.wanted.clone();
    let agent = wanted.agent.get_or_insert_default();
    let named = agent.iter().any(|(name, _)| *name == "heartbeat-seconds");
    agent.extend(state.heartbeat.clone().filter(|_| !named).map(|period| ("heartbeat-seconds", period)));
    Effect::Configure { command_id, wanted }
}

/// All of the settings hold from now on, or none of them.
pub(super) fn configured(
    state: &mut State,
    command_id: Option<String>,
    (revision, names_runner): (String, bool),
    outcome: Result<Configured, String>,
) -> Vec<Effect> {
    let (refusal, prepare) = match outcome {
        Ok(configured) => {
            (state.limits, state.settings_level) = (configured.limits, Some(configured.level));
            state.settings_revision = revision;
            state.unsound.clear();
            (None, names_runner && state.prepared.is_none())
        }
        Err(problems) => {
            let told = format!("the operator's settings cannot be used: {problems}");
            state.unsound.clone_from(&told);
            (Some(told), false)
        }
    };
    let answered = command_id.map(|id| answer(state, id, refusal));
    answered.into_iter().chain(prepare.then_some(Effect::Prepare)).collect()
}

/// A registration that came early is used now.
pub(super) fn ready(state: &mut State, prepared: Prepared) -> Option<Effect> {
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
pub(super) fn not_launched(state: &mut State, command_id: String, error: String) -> Effect {
    let registration = state.registration.clone().unwrap_or_default();
    let runner = Runner { command_id: registration.command_id, name: registration.runner_name, ..Runner::default() };
    state.runner = Some(runner.failed(&error));
    answer(state, command_id, Some(error))
}

/// A machine that stops working starts no runner that it was to start later.
pub(super) fn give_up_waiting(state: &mut State) -> Option<Effect> {
    let stops = state.stops();
    let launch = state.waiting.take_if(|_| stops)?;
    Some(not_launched(state, launch.registration.command_id, NO_NEW_WORK.to_owned()))
}

pub(super) fn obey(state: &mut State, id: String, command: Command, now: Instant) -> Vec<Effect> {
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
        // A second one aborts the job by its deadline, not, like `miglet drain`, by being the second: an operator that was
        // restarted says everything again.
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
        None if state.stops() => NO_NEW_WORK.to_owned(),
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

pub(super) fn answer(state: &mut State, command_id: String, refusal: Option<String>) -> Effect {
    let answer = Answer { command_id, refusal };
    if state.answers.len() == REMEMBERED {
        state.answers.pop_front();
    }
    state.answers.push_back(answer.clone());
    Effect::Answer(answer)
}
