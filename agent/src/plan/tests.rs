//! The plan, table by table.

mod settings;

use super::*;
use crate::{
    guards::Guards,
    runner::{Exit, ExitKind, Job, Phase},
    supervisor::Registration,
};

fn step(state: State, input: Input) -> (State, Vec<Effect>) {
    plan(state, input, Now::read())
}

/// Some seconds after a beginning that is the same for both clocks.
struct Clock(Instant);

impl Clock {
    fn at(&self, seconds: u64) -> Now {
        Now { instant: self.0 + Duration::from_secs(seconds), boot_ms: 30_000 + seconds * 1000 }
    }
}

fn command(id: &str, command: Command) -> Input {
    Input::Command { id: id.into(), command }
}

fn register(id: &str) -> Input {
    command(id, Command::Register { runner_name: format!("runner-{id}"), jit_config: "secret".into() })
}

fn hello() -> Input {
    let wanted = Wanted { runner: Some(Vec::new()), ..Wanted::default() };
    Input::Connected { vm_name: "vm".into(), heartbeat: None, wanted }
}

/// With a runner to start.
fn connected() -> State {
    let state = step(State::default(), hello()).0;
    step(state, Input::Prepared(Prepared::default())).0
}

fn with_runner(phase: Phase) -> State {
    let registration =
        Registration { command_id: "r1".into(), runner_name: "runner-r1".into(), ..Registration::default() };
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
    let drained = |state| step(state, command("d", Command::Drain { deadline: None })).0.standing();
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
        let (_, effects) = step(with_runner(phase), command("d", Command::Drain { deadline: None }));
        assert!(has(&effects, |e| matches!(e, Effect::StopIdle)), "{phase:?}");
    }
    let (state, effects) = step(with_runner(Phase::Busy), command("d", Command::Drain { deadline: None }));
    assert!(!has(&effects, |e| matches!(e, Effect::StopIdle)));
    assert_eq!(state.standing(), Standing::JobRunning, "nothing hides a running job");
}

#[test]
fn a_machine_is_closed_when_a_registration_would_be_refused() {
    let closed = [
        with_runner(Phase::Listening),
        step(connected(), command("d", Command::Drain { deadline: None })).0,
        step(connected(), command("s", Command::Shutdown)).0,
        step(connected(), Input::Notice(Notice::Maintenance)).0,
        step(connected(), drain("a", None)).0,
    ];
    for state in closed {
        assert!(state.is_closed());
        assert_eq!(refusals(&step(state, register("r2")).1), [true]);
    }
    assert!(!connected().is_closed());
    assert!(step(connected(), register("r2")).0.is_closed(), "from the first one on");
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

const INTERRUPT: fn(&Effect) -> bool = |e| matches!(e, Effect::Interrupt);
const STOP: fn(&Effect) -> bool = |e| matches!(e, Effect::StopIdle);
const OFF: fn(&Effect) -> bool = |e| matches!(e, Effect::PowerOff);

fn drain(id: &str, deadline: Option<u64>) -> Input {
    Input::Drain { id: id.into(), deadline: deadline.map(Duration::from_secs) }
}

#[test]
fn a_preempted_machine_interrupts_its_job_at_once_and_gives_the_operator_the_first_word_on_an_idle_one() {
    let clock = Clock(Instant::now());
    let preempted = || Input::Notice(Notice::Preempted);
    let (state, effects) = plan(with_runner(Phase::Busy), preempted(), clock.at(0));
    assert!(has(&effects, INTERRUPT));
    assert_eq!((state.notice, state.standing()), (Some(Notice::Preempted), Standing::JobRunning));
    let (state, effects) = plan(with_runner(Phase::Listening), preempted(), clock.at(0));
    assert_eq!((effects.len(), state.standing()), (0, Standing::Draining));
    assert_eq!(state.wake_at(clock.at(0).instant), Some(clock.at(3).instant));
    let (_, effects) = plan(state, Input::Tick, clock.at(3));
    assert!(has(&effects, STOP));
}

#[test]
fn the_operators_drain_stops_an_idle_listener_of_a_preempted_machine_without_delay() {
    let clock = Clock(Instant::now());
    let (state, _) = plan(with_runner(Phase::Listening), Input::Notice(Notice::Preempted), clock.at(0));
    let (_, effects) = plan(state, command("d", Command::Drain { deadline: None }), clock.at(1));
    assert!(has(&effects, STOP));
}

#[test]
fn a_job_that_arrives_on_a_preempted_machine_is_interrupted() {
    let clock = Clock(Instant::now());
    let (state, _) = plan(with_runner(Phase::Listening), Input::Notice(Notice::Preempted), clock.at(0));
    let busy = Runner { phase: Phase::Busy, job: Some(Job::default()), ..Runner::default() };
    let (_, effects) = plan(state, Input::Runner(busy.into()), clock.at(1));
    assert!(has(&effects, INTERRUPT));
}

#[test]
fn maintenance_takes_no_new_work_and_lets_a_job_go_on() {
    let clock = Clock(Instant::now());
    let (state, effects) = plan(with_runner(Phase::Busy), Input::Notice(Notice::Maintenance), clock.at(0));
    assert!(effects.is_empty());
    let (state, effects) = plan(state, Input::Tick, clock.at(3500));
    assert!(effects.is_empty());
    let (state, effects) = plan(state, Input::Notice(Notice::Preempted), clock.at(3600));
    assert!(has(&effects, INTERRUPT));
    let (state, _) = plan(state, Input::Notice(Notice::Maintenance), clock.at(3601));
    assert_eq!(state.notice, Some(Notice::Preempted), "the worse one stays");
    let (state, _) = plan(connected(), Input::Notice(Notice::Maintenance), clock.at(0));
    assert_eq!(refusals(&step(state, register("r1")).1), [true], "nothing new");
}

#[test]
fn a_local_drain_waits_for_the_job_until_its_deadline_or_the_second_request() {
    let clock = Clock(Instant::now());
    let (state, effects) = plan(with_runner(Phase::Busy), drain("a", Some(20)), clock.at(0));
    assert!(effects.is_empty());
    assert_eq!(state.wake_at(clock.at(0).instant), Some(clock.at(20).instant));
    assert!(has(&plan(state, Input::Tick, clock.at(20)).1, INTERRUPT));
    let (state, _) = plan(with_runner(Phase::Busy), drain("a", None), clock.at(0));
    let (state, effects) = plan(state, drain("a", None), clock.at(1));
    assert!(effects.is_empty(), "the same request, sent again to a restarted agent");
    let (state, effects) = plan(state, drain("b", None), clock.at(2));
    assert!(has(&effects, INTERRUPT));
    assert!(!has(&plan(state, drain("c", None), clock.at(3)).1, INTERRUPT), "once");
}

/// The wall clock, which is an hour off when the job starts, counts for nothing.
#[test]
fn a_job_beyond_its_time_is_interrupted_whenever_the_agent_was_started() {
    // The clock of a machine that has just booted cannot tell a start before its own.
    let clock = Clock(Instant::now() + Duration::from_secs(1000));
    let guards = Guards { runtime: Duration::from_secs(100), ..Guards::default() };
    let started_unix_ms = crate::clock::unix_ms() - 3_600_000;
    let job = Job { started_unix_ms, started_boot_ms: Some(clock.at(0).boot_ms), ..Job::default() };
    let runner = Runner { phase: Phase::Busy, job: Some(job), ..Runner::default() };
    let limits = Limits { guards, ..Limits::default() };
    let state = State { limits, ..with_runner(Phase::Listening) };
    let (state, effects) = plan(state, Input::Runner(runner.into()), clock.at(70));
    assert!(effects.is_empty());
    assert_eq!(state.wake_at(clock.at(70).instant), Some(clock.at(90).instant));
    let (state, effects) = plan(state, Input::Tick, clock.at(99));
    assert!(effects.is_empty());
    let (state, effects) = plan(state, Input::Tick, clock.at(100));
    assert!(has(&effects, INTERRUPT));
    assert!(state.watch.alarm().is_some_and(|alarm| alarm.acted));
}

#[test]
fn a_full_disk_ends_what_runs_when_that_is_wanted() {
    let clock = Clock(Instant::now());
    let disk = crate::guards::Thresholds { warn: 80, act: 90 };
    let guards = Guards { disk, ..Guards::default() };
    for (phase, wanted, later) in [(Phase::Busy, INTERRUPT, 0), (Phase::Listening, STOP, 3)] {
        let mut state = State { limits: Limits { guards, ..Limits::default() }, ..with_runner(phase) };
        let mut effects = Vec::new();
        for second in [0, 10, 10 + later] {
            let (next, more) =
                plan(state, Input::Figures(Figures { disk: 95, ..Figures::default() }), clock.at(second));
            state = next;
            effects.extend(more);
        }
        assert!(has(&effects, wanted), "{phase:?}: {effects:?}");
    }
}

#[test]
fn a_machine_whose_runner_has_ended_goes_off_when_its_operator_stays_away() {
    let clock = Clock(Instant::now());
    let limits = Limits { orphan: Duration::from_secs(600), ..Limits::default() };
    let state = State { limits, ..with_runner(Phase::Busy) };
    let (state, _) = plan(state, Input::Disconnected { error: "gone".into() }, clock.at(0));
    let (state, effects) = plan(state, Input::Tick, clock.at(5000));
    assert!(effects.is_empty(), "a job runs");
    let (state, effects) = plan(state, Input::Runner(exited(ExitKind::JobDone).into()), clock.at(5000));
    assert!(effects.is_empty());
    assert_eq!(state.wake_at(clock.at(5000).instant), Some(clock.at(5600).instant));
    let (back, _) = plan(state.clone(), hello(), clock.at(5500));
    assert!(!has(&plan(back.clone(), Input::Tick, clock.at(9000)).1, OFF), "the operator decides");
    let (gone, _) = plan(back, Input::Disconnected { error: "gone".into() }, clock.at(9000));
    assert!(!has(&plan(gone.clone(), Input::Tick, clock.at(9599)).1, OFF));
    assert!(has(&plan(gone, Input::Tick, clock.at(9600)).1, OFF));
    assert!(has(&plan(state, Input::Tick, clock.at(5600)).1, OFF));
}

#[test]
fn a_machine_without_a_runner_is_no_orphan() {
    let clock = Clock(Instant::now());
    let limits = Limits { orphan: Duration::from_secs(600), ..Limits::default() };
    let state = State { limits, ..State::default() };
    let (state, _) = plan(state, Input::Tick, clock.at(0));
    assert!(!has(&plan(state, Input::Tick, clock.at(100_000)).1, OFF));
}

fn configured(state: State, command_id: Option<&str>, outcome: Result<Configured, String>) -> (State, Vec<Effect>) {
    let (command_id, revision) = (command_id.map(Into::into), "b".to_owned());
    step(state, Input::Configured { command_id, revision, names_runner: true, outcome })
}

#[test]
fn a_machine_without_a_runner_is_not_ready_and_a_registration_that_came_early_waits_for_one() {
    let (state, effects) = step(State::default(), hello());
    assert!(has(&effects, |e| matches!(e, Effect::Configure { command_id: None, .. })));
    assert_eq!(state.standing(), Standing::Initializing);
    let sound = Configured { limits: Limits::default(), level: LevelFilter::DEBUG };
    let (state, effects) = configured(state, None, Ok(sound));
    assert!(has(&effects, |e| matches!(e, Effect::Prepare)));
    assert_eq!((state.settings_revision.as_str(), state.log_level()), ("b", LevelFilter::DEBUG));
    let (state, effects) = step(state, register("r1"));
    assert!(effects.is_empty(), "{effects:?}");
    let (state, _) = step(state, Input::Unprepared { error: "no source".into() });
    assert_eq!(state.trouble(), "no source");
    let prepared = Prepared { dir: "/cache/runner".into(), version: "2.336.0".into() };
    let (state, effects) = step(state, Input::Prepared(prepared.clone()));
    assert!(matches!(&effects[..], [Effect::Launch(launch)] if launch.registration.runner == prepared));
    assert_eq!((state.trouble().as_str(), state.registration.map(|r| r.runner)), ("", Some(prepared)));
}

#[test]
fn a_registration_that_waits_for_a_runner_is_given_up_when_the_machine_stops_working() {
    let stops = [command("d1", Command::Drain { deadline: None }), command("s1", Command::Shutdown)];
    for stop in stops.into_iter().chain([Input::Notice(Notice::Preempted)]) {
        let (state, _) = step(State::default(), hello());
        let (state, _) = step(state, register("r1"));
        let (state, effects) = step(state, stop);
        assert!(refusals(&effects).contains(&true), "{effects:?}");
        assert!(!state.has_live_runner());
        let (_, effects) = step(state, Input::Prepared(Prepared::default()));
        assert!(!has(&effects, |e| matches!(e, Effect::Launch(_))), "{effects:?}");
    }
}

/// It may come from an operator that took over.
#[test]
fn another_drain_of_the_operator_does_not_abort_a_job() {
    let (state, _) = step(with_runner(Phase::Busy), command("d1", Command::Drain { deadline: None }));
    let (_, effects) = step(state, command("d2", Command::Drain { deadline: None }));
    assert!(!has(&effects, |e| matches!(e, Effect::Interrupt)), "{effects:?}");
}

#[test]
fn a_drain_with_a_deadline_interrupts_the_job_then_and_not_before() {
    let (start, boot_ms) = (Instant::now(), 0);
    let at = |seconds| Now { instant: start + Duration::from_secs(seconds), boot_ms };
    let drain = Command::Drain { deadline: Some(Duration::from_secs(60)) };
    let (state, effects) = plan(with_runner(Phase::Busy), command("d", drain), at(0));
    assert!(!has(&effects, |e| matches!(e, Effect::Interrupt | Effect::StopIdle)));
    let (state, effects) = plan(state, Input::Tick, at(59));
    assert!(effects.is_empty(), "{effects:?}");
    assert!(has(&plan(state, Input::Tick, at(60)).1, |e| matches!(e, Effect::Interrupt)));
}
