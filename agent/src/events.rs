//! Which events follow from what happened: the one place that makes them. Pure.
//!
//! Each kind but `error` is told once in a boot: it is due when the state shows it and it was not told before. So
//! nothing else has to remember to tell anything, and an agent that starts anew, with the shim's snapshot and with what
//! it read from the spool, tells exactly what is missing.
//!
//! | event | is due when |
//! | --- | --- |
//! | vm_started | always |
//! | runner_registered | the runner listens, or has a job |
//! | job_started | there is a job |
//! | job_completed | it has a result, or its runner ended well without telling one |
//! | runner_crashed | the runner ended other than by itself or by a drain |
//! | preempted | the cloud announced that it takes the machine away |
//! | vm_shutting_down | the machine goes off |
//! | error | a session is lost, or the spool is in trouble: at most 256 in a boot, they must not fill the spool |

use std::collections::BTreeSet;

use miglet_proto::v1::{self, EventKind};

use crate::{
    clock::Moment,
    notice::Notice,
    plan::{READ_ONLY, State},
    runner::{ExitKind, Phase, Runner, clean},
    wire,
};

/// Errors told in a boot.
const ERROR_LIMIT: usize = 256;
/// Longest text of one.
const DETAIL_LIMIT: usize = 512;

/// What was told in this boot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    kinds: BTreeSet<i32>,
    errors: usize,
    last: u64,
}

impl Told {
    /// As the spool has it.
    #[must_use]
    pub fn of<'a>(events: impl IntoIterator<Item = &'a v1::Event>) -> Self {
        let mut told = Self::default();
        for event in events {
            told.note(event);
        }
        told
    }

    /// The newest event's number.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.last
    }

    /// What is to be told once the state has become `new`; told from now on.
    pub fn due(&mut self, old: &State, new: &State, now: Moment) -> Vec<v1::Event> {
        let happened = happened(new).into_iter().filter_map(|(kind, detail)| Some((kind, detail?)));
        let happened = happened.filter(|(kind, _)| !self.kinds.contains(&i32::from(*kind)));
        let room = ERROR_LIMIT.saturating_sub(self.errors);
        let errors = errors(old, new).into_iter().flatten().take(room).map(|text| (EventKind::Error, text));
        let due: Vec<_> = happened.chain(errors).collect();
        due.into_iter().map(|(kind, detail)| self.event(kind, &detail, new, now)).collect()
    }

    fn event(&mut self, kind: EventKind, detail: &str, state: &State, now: Moment) -> v1::Event {
        // An error is about neither job nor runner, and may come often.
        let runner = state.runner.as_ref().filter(|_| kind != EventKind::Error);
        let event = v1::Event {
            sequence: now.boot_ms.max(self.last + 1),
            happened_unix_ms: now.unix_ms,
            kind: kind.into(),
            job: runner.and_then(|runner| runner.job.as_ref()).map(wire::job),
            exit: runner.and_then(wire::exit),
            detail: clean(detail, DETAIL_LIMIT),
        };
        self.note(&event);
        event
    }

    fn note(&mut self, event: &v1::Event) {
        self.kinds.insert(event.kind);
        self.errors += usize::from(event.kind() == EventKind::Error);
        self.last = self.last.max(event.sequence);
    }
}

/// Whether this event must find room where others do not: after it nothing may follow. Errors are none, for there may be
/// hundreds.
#[must_use]
pub fn is_final(kind: EventKind) -> bool {
    use EventKind::{JobCompleted, Preempted, RunnerCrashed, VmShuttingDown};
    matches!(kind, JobCompleted | RunnerCrashed | Preempted | VmShuttingDown)
}

/// What a state shows to have happened, in words, in the order of a machine's life.
fn happened(state: &State) -> [(EventKind, Option<String>); 7] {
    let runner = state.runner.as_ref();
    let job = runner.and_then(|runner| runner.job.as_ref());
    let listens = |runner: &Runner| runner.job.is_some() || matches!(runner.phase, Phase::Listening | Phase::Busy);
    let ended = |wanted| runner.and_then(|runner| runner.exit.as_ref()).is_some_and(|exit| exit.kind == wanted);
    let completed = job.is_some_and(|job| job.result.is_some() || ended(ExitKind::JobDone));
    let preempted = state.notice == Some(Notice::Preempted);
    let when = |happened: bool| happened.then(String::new);
    [
        (EventKind::VmStarted, Some(format!("agent {}", env!("CARGO_PKG_VERSION")))),
        (EventKind::RunnerRegistered, when(runner.is_some_and(listens))),
        (EventKind::JobStarted, when(job.is_some())),
        (EventKind::JobCompleted, when(completed)),
        (EventKind::RunnerCrashed, when(ended(ExitKind::Failed))),
        (EventKind::Preempted, preempted.then(|| "the cloud takes the machine away within 30 s".to_owned())),
        (EventKind::VmShuttingDown, when(state.off)),
    ]
}

/// What went wrong just now.
fn errors(old: &State, new: &State) -> [Option<String>; 3] {
    let lost = old.connected && !new.connected;
    let spool = new.spool_error != old.spool_error && !new.spool_error.is_empty();
    let read_only = new.read_only && !old.read_only;
    [
        lost.then(|| format!("lost the session: {}", new.error)),
        spool.then(|| new.spool_error.clone()),
        read_only.then(|| READ_ONLY.to_owned()),
    ]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        clock::Now,
        plan::{Command, Input, Wanted, plan},
        runner::{Exit, Job, JobResult},
        supervisor::Registration,
    };

    fn kinds(events: &[v1::Event]) -> Vec<EventKind> {
        events.iter().map(v1::Event::kind).collect()
    }

    fn runner(phase: Phase, result: Option<JobResult>, exit: Option<ExitKind>) -> Runner {
        let job = (phase >= Phase::Busy).then(|| Job { name: "build".into(), result, ..Job::default() });
        let exit = exit.map(|kind| Exit { code: 0, kind, detail: String::new() });
        Runner { phase, job, exit, ..Runner::default() }
    }

    fn with(runner: Runner) -> State {
        State { runner: Some(runner), registration: Some(Registration::default()), ..State::default() }
    }

    #[test]
    fn a_life_is_told_once_and_in_order() {
        use EventKind::{JobCompleted, JobStarted, RunnerRegistered, VmShuttingDown, VmStarted};
        let (mut told, mut old, now) = (Told::default(), State::default(), Moment { unix_ms: 7, boot_ms: 100 });
        let succeeded = Some(JobResult::Succeeded);
        let ended = with(runner(Phase::Exited, succeeded, Some(ExitKind::JobDone)));
        let mut all = Vec::new();
        for (state, expected) in [
            (State::default(), vec![VmStarted]),
            (with(runner(Phase::Starting, None, None)), vec![]),
            (with(runner(Phase::Listening, None, None)), vec![RunnerRegistered]),
            (with(runner(Phase::Busy, None, None)), vec![JobStarted]),
            (with(runner(Phase::Busy, succeeded, None)), vec![JobCompleted]),
            (ended.clone(), vec![]),
            (State { off: true, ..ended }, vec![VmShuttingDown]),
        ] {
            let events = told.due(&old, &state, now);
            assert_eq!(kinds(&events), expected);
            assert_eq!(told.due(&state, &state, now), [], "once");
            old = state;
            all.extend(events);
        }
        assert_eq!(all.iter().map(|event| event.sequence).collect::<Vec<_>>(), [100, 101, 102, 103, 104]);
        assert_eq!(all[3].job.as_ref().map(v1::Job::result), Some(v1::JobResult::Succeeded));
        assert_eq!(Told::of(&all), told, "the spool tells what was told");
    }

    #[test]
    fn what_no_agent_saw_is_told_by_the_next_one() {
        use EventKind::{JobCompleted, JobStarted, RunnerRegistered, VmStarted};
        let state = with(runner(Phase::Exited, Some(JobResult::Failed), Some(ExitKind::JobDone)));
        let mut told = Told::default();
        let all = told.due(&State::default(), &state, Moment::default());
        assert_eq!(kinds(&all), [VmStarted, RunnerRegistered, JobStarted, JobCompleted]);
        let mut told = Told::of(&all[..3]);
        assert_eq!(kinds(&told.due(&State::default(), &state, Moment::default())), [JobCompleted]);
    }

    #[test]
    fn a_job_whose_result_was_never_told_is_completed_by_its_runners_good_end_only() {
        use EventKind::{JobCompleted, JobStarted, RunnerCrashed, RunnerRegistered, VmStarted};
        for (kind, last) in [(ExitKind::JobDone, JobCompleted), (ExitKind::Failed, RunnerCrashed)] {
            let state = with(runner(Phase::Exited, None, Some(kind)));
            let events = Told::default().due(&State::default(), &state, Moment::default());
            assert_eq!(kinds(&events), [VmStarted, RunnerRegistered, JobStarted, last]);
            assert_eq!(events[3].job.as_ref().map(v1::Job::result), Some(v1::JobResult::Unspecified));
        }
    }

    #[test]
    fn a_runner_that_crashed_before_it_listened_was_never_registered() {
        let state = State { runner: Some(Runner::default().failed("no exec permission")), ..State::default() };
        let events = Told::default().due(&State::default(), &state, Moment::default());
        assert_eq!(kinds(&events), [EventKind::VmStarted, EventKind::RunnerCrashed]);
        assert!(events[1].exit.as_ref().is_some_and(|exit| exit.detail.contains("exec")));
    }

    #[test]
    fn errors_are_told_as_often_as_they_happen_up_to_a_limit() {
        let lost = |n: usize| State { error: format!("cut {n}"), ..State::default() };
        let open = State { connected: true, ..State::default() };
        let mut told = Told::of(&Told::default().due(&open, &open, Moment::default()));
        let all: Vec<_> = (0..1000).flat_map(|n| told.due(&open, &lost(n), Moment::default())).collect();
        assert_eq!((all.len(), all[1].detail.as_str()), (ERROR_LIMIT, "lost the session: cut 1"));
        assert_eq!(told.due(&lost(0), &lost(1), Moment::default()), [], "there was no session to lose");
        let most = u64::try_from(all.len() * (DETAIL_LIMIT + 4096)).expect("small");
        assert!(most < crate::spool::SIZE / 2, "even the longest leave most of the spool to others");
    }

    #[test]
    fn only_what_is_told_once_and_ends_something_is_final() {
        use EventKind::{
            Error, JobCompleted, JobStarted, Preempted, RunnerCrashed, RunnerRegistered, Unspecified, VmShuttingDown,
            VmStarted,
        };
        for kind in [JobCompleted, RunnerCrashed, Preempted, VmShuttingDown] {
            assert!(is_final(kind), "{kind:?}");
        }
        for kind in [Unspecified, VmStarted, RunnerRegistered, JobStarted, Error] {
            assert!(!is_final(kind), "{kind:?}");
        }
    }

    #[test]
    fn a_preemption_is_told_and_a_maintenance_is_none() {
        let noticed = |notice| State { notice: Some(notice), ..State::default() };
        let mut told = Told::default();
        let events = told.due(&State::default(), &noticed(Notice::Maintenance), Moment::default());
        assert_eq!(kinds(&events), [EventKind::VmStarted]);
        let events = told.due(&noticed(Notice::Maintenance), &noticed(Notice::Preempted), Moment::default());
        assert_eq!(kinds(&events), [EventKind::Preempted]);
    }

    #[test]
    fn a_disk_that_turns_read_only_is_told_once() {
        let (state, now) = (State { read_only: true, ..State::default() }, Moment::default());
        let mut told = Told::of(&Told::default().due(&State::default(), &State::default(), now));
        let events = told.due(&State::default(), &state, now);
        assert_eq!((kinds(&events), events[0].detail.as_str()), (vec![EventKind::Error], READ_ONLY));
        assert_eq!((told.due(&state, &state, now), state.trouble().as_str()), (vec![], READ_ONLY));
    }

    #[test]
    fn trouble_with_the_spool_is_told() {
        let state = State { spool_error: "read-only".into(), ..State::default() };
        let events = Told::default().due(&State::default(), &state, Moment::default());
        assert_eq!(kinds(&events), [EventKind::VmStarted, EventKind::Error]);
        assert_eq!(events[1].detail, "read-only");
    }

    /// A number is never used again, even when the spool was lost with all that it told.
    #[test]
    fn numbers_grow_with_the_time_since_boot() {
        let at = |boot_ms| Moment { unix_ms: 0, boot_ms };
        let first = Told::default().due(&State::default(), &State::default(), at(5000));
        let again = Told::default().due(&State::default(), &State::default(), at(9000));
        assert!(first[0].sequence < again[0].sequence);
    }

    fn inputs() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(0u8..11, 0..40)
    }

    fn input(choice: u8) -> Input {
        let snapshot = |phase, result, exit| Input::Runner(Box::new(runner(phase, result, exit)));
        match choice {
            0 => Input::Connected { vm_name: "vm".into(), heartbeat: None, wanted: Wanted::default() },
            1 => Input::Disconnected { error: "gone".into() },
            2 => Input::Command { id: "s".into(), command: Command::Shutdown },
            3 => Input::LaunchFailed { command_id: "r".into(), error: "no space".into() },
            9 => Input::Notice(Notice::Preempted),
            4 => snapshot(Phase::Listening, None, None),
            5 => snapshot(Phase::Busy, None, None),
            6 => snapshot(Phase::Busy, Some(JobResult::Failed), None),
            7 => snapshot(Phase::Exited, Some(JobResult::Failed), Some(ExitKind::JobDone)),
            10 => snapshot(Phase::Exited, None, Some(ExitKind::JobDone)),
            _ => snapshot(Phase::Exited, None, Some(ExitKind::Failed)),
        }
    }

    proptest! {
        #[test]
        fn any_order_and_any_restart_tell_each_thing_once(inputs in inputs(), restart in 0usize..40) {
            let (mut told, mut state, mut was_done) = (Told::default(), State::default(), false);
            let done = |exit: &Exit| exit.kind == ExitKind::JobDone;
            let is_done = |runner: &Runner| {
                let job = runner.job.as_ref();
                job.is_some_and(|job| job.result.is_some() || runner.exit.as_ref().is_some_and(done))
            };
            let mut all = told.due(&State::default(), &state, Moment::default());
            for (n, choice) in inputs.into_iter().enumerate() {
                if n == restart {
                    told = Told::of(&all);
                    let anew = State { registration: state.registration, runner: state.runner, ..State::default() };
                    all.extend(told.due(&State::default(), &anew, Moment::default()));
                    state = anew;
                }
                let before = state.clone();
                state = plan(state, input(choice), Now::read()).0;
                all.extend(told.due(&before, &state, Moment::default()));
                was_done |= state.runner.as_ref().is_some_and(is_done);
            }
            prop_assert!(all.windows(2).all(|pair| pair[0].sequence < pair[1].sequence));
            let of = |kind: EventKind| all.iter().filter(|event| event.kind() == kind).count();
            for kind in (1..8).filter_map(|kind| EventKind::try_from(kind).ok()) {
                prop_assert!(of(kind) <= 1, "{kind:?}");
            }
            prop_assert_eq!(of(EventKind::JobCompleted) == 1, was_done);
        }
    }
}
