//! The plan, table by table.

use super::*;
use crate::runner::{Exit, Job};

fn step(state: State, input: Input) -> (State, Vec<Effect>) {
    plan(state, input)
}

fn command(id: &str, command: Command) -> Input {
    Input::Command { id: id.into(), command }
}

fn register(id: &str) -> Input {
    command(id, Command::Register { runner_name: format!("runner-{id}"), jit_config: "secret".into() })
}

fn connected() -> State {
    step(State::default(), Input::Connected { vm_name: "vm".into() }).0
}

fn with_runner(phase: Phase) -> State {
    let registration = Registration { command_id: "r1".into(), runner_name: "runner-r1".into() };
    let job = (phase == Phase::Busy).then(Job::default);
    State { registration: Some(registration), runner: Some(Runner { phase, job, ..Runner::default() }), ..connected() }
}

fn exited(kind: ExitKind) -> Runner {
    Runner { phase: Phase::Exited, exit: Some(Exit { code: 0, kind, detail: String::new() }), ..Runner::default() }
}

fn refusals(effects: &[Effect]) -> Vec<bool> {
    let answers =
        effects.iter().filter_map(|e| if let Effect::Answer(a) = e { Some(a.refusal.is_some()) } else { None });
    answers.collect()
}

fn has(effects: &[Effect], wanted: fn(&Effect) -> bool) -> bool {
    effects.iter().any(wanted)
}

#[test]
fn each_state_of_the_protocol_follows_from_what_is_known() {
    assert_eq!(State::default().standing(), Standing::Connecting);
    assert_eq!(connected().standing(), Standing::Ready);
    assert_eq!(with_runner(Phase::Starting).standing(), Standing::RegisteringRunner);
    assert_eq!(with_runner(Phase::Listening).standing(), Standing::Idle);
    assert_eq!(with_runner(Phase::Busy).standing(), Standing::JobRunning);
    let drained = |state| step(state, command("d", Command::Drain)).0.standing();
    assert_eq!(drained(with_runner(Phase::Listening)), Standing::Draining);
    assert_eq!(drained(connected()), Standing::Draining);
    let ended = |kind| step(with_runner(Phase::Busy), Input::Runner(exited(kind).into())).0.standing();
    assert_eq!(ended(ExitKind::JobDone), Standing::ShuttingDown);
    assert_eq!(ended(ExitKind::Failed), Standing::Error);
}

#[test]
fn a_lost_session_changes_nothing_about_a_runner() {
    let (state, effects) = step(with_runner(Phase::Busy), Input::Disconnected { error: "gone".into() });
    assert_eq!((state.standing(), state.error.as_str()), (Standing::JobRunning, "gone"));
    assert!(effects.is_empty());
}

#[test]
fn a_second_registration_is_refused_whatever_became_of_the_first() {
    for first in [
        with_runner(Phase::Listening),
        step(with_runner(Phase::Busy), Input::Runner(exited(ExitKind::WithoutJob).into())).0,
    ] {
        let (_, effects) = step(first, register("r2"));
        assert_eq!(refusals(&effects), [true]);
        assert!(!has(&effects, |e| matches!(e, Effect::Launch(_))));
    }
}

#[test]
fn a_repeated_registration_is_answered_again_and_launched_once() {
    let (state, effects) = step(connected(), register("r1"));
    assert!(has(&effects, |e| matches!(e, Effect::Launch(_))));
    let (state, effects) = step(state, register("r1"));
    assert!(effects.is_empty(), "still launching: {effects:?}");
    let (state, effects) = step(state, Input::Launched { command_id: "r1".into() });
    assert_eq!(refusals(&effects), [false]);
    let (_, effects) = step(state, register("r1"));
    assert_eq!(refusals(&effects), [false]);
    assert_eq!(effects.len(), 1);
}

#[test]
fn a_restarted_agent_still_answers_its_old_registration() {
    let (_, effects) = step(with_runner(Phase::Busy), register("r1"));
    assert_eq!(refusals(&effects), [false]);
}

#[test]
fn a_failed_launch_is_refused_reported_and_never_tried_again() {
    let (state, _) = step(connected(), register("r1"));
    let (state, effects) = step(state, Input::LaunchFailed { command_id: "r1".into(), error: "no space".into() });
    assert_eq!((refusals(&effects), state.standing()), (vec![true], Standing::Error));
    let (_, effects) = step(state, register("r2"));
    assert_eq!(refusals(&effects), [true]);
}

#[test]
fn a_drain_stops_an_idle_listener_and_lets_a_job_finish() {
    for phase in [Phase::Starting, Phase::Listening] {
        let (_, effects) = step(with_runner(phase), command("d", Command::Drain));
        assert!(has(&effects, |e| matches!(e, Effect::StopIdle)), "{phase:?}");
    }
    let (state, effects) = step(with_runner(Phase::Busy), command("d", Command::Drain));
    assert!(!has(&effects, |e| matches!(e, Effect::StopIdle)));
    assert_eq!(state.standing(), Standing::JobRunning, "nothing hides a running job");
}

#[test]
fn after_a_drain_nothing_new_is_taken() {
    let (state, _) = step(connected(), command("d", Command::Drain));
    assert_eq!(refusals(&step(state, register("r1")).1), [true]);
}

#[test]
fn a_shutdown_waits_for_the_runner_and_then_powers_off() {
    let off: fn(&Effect) -> bool = |e| matches!(e, Effect::PowerOff);
    let (state, effects) = step(with_runner(Phase::Busy), command("s", Command::Shutdown));
    assert!(!has(&effects, off));
    assert_eq!(state.standing(), Standing::JobRunning);
    let (state, effects) = step(state, Input::Runner(exited(ExitKind::JobDone).into()));
    assert!(has(&effects, off));
    assert_eq!(state.standing(), Standing::ShuttingDown);
    assert!(has(&step(connected(), command("s", Command::Shutdown)).1, off));
}

#[test]
fn an_end_stays_the_end_and_busy_never_returns_to_idle() {
    let (state, _) =
        step(with_runner(Phase::Busy), Input::Runner(Runner { phase: Phase::Listening, ..Runner::default() }.into()));
    assert_eq!(state.standing(), Standing::JobRunning);
    let (state, _) = step(state, Input::Runner(exited(ExitKind::JobDone).into()));
    let (state, _) = step(state, Input::Runner(exited(ExitKind::Failed).into()));
    assert_eq!(state.standing(), Standing::ShuttingDown);
}

#[test]
fn an_unknown_command_is_refused() {
    assert_eq!(refusals(&step(connected(), command("x", Command::Unknown)).1), [true]);
}
