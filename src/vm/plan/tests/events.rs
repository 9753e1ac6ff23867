//! What events do to a RunnerVM's status, and when they are acked.

use super::*;
use crate::{
    gateway::{
        events::{Event, EventKind, Ledger},
        report::{Job, Notice},
    },
    vm::status::{has_effect, status},
};

/// A pass at this second: what it would write, and what it does.
fn pass(view: &VmView, second: i64) -> (RunnerVmStatus, Plan) {
    let plan = plan(view, at(second), &timing());
    (status(view, &plan, at(second), &timing()), plan)
}

/// An event reaches the operator.
fn hears(mut view: VmView, sequence: u64, kind: EventKind) -> VmView {
    let result = if kind == EventKind::JobCompleted { "Failed" } else { "" };
    let job = Some(Job { name: "build".into(), result: result.into(), ..Job::default() });
    let event = Event { sequence, kind, happened: None, job, exit: None, detail: String::new() };
    if let Some(agent) = &mut view.agent {
        agent.events.hear(&event);
        agent.report = agent.report.told(&event);
        agent.result_since = (!result.is_empty()).then_some(agent.last_heard);
    }
    view
}

/// A busy VM that has written all it has to; its agent was last heard at 20.
fn busy() -> VmView {
    let mut view = hears(view().registered(AgentState::Idle), 100, EventKind::JobStarted);
    view.vm.status = Some(pass(&view, 20).0);
    assert_eq!(pass(&view, 20).0, written(&view));
    view
}

fn written(view: &VmView) -> RunnerVmStatus {
    VmView::status(view)
}

fn acked(status: &RunnerVmStatus) -> i64 {
    status.agent.as_ref().map(|agent| agent.acked_sequence).expect("an agent")
}

#[test]
fn what_follows_from_an_event_and_its_number_are_one_write() {
    let view = busy();
    assert!(written(&view).job.is_some());
    assert_eq!(acked(&written(&view)), 100);
}

#[test]
fn a_result_is_written_with_the_runners_end() {
    let view = hears(busy(), 200, EventKind::JobCompleted);
    let (unchanged, plan) = pass(&view, 20);
    assert_eq!((unchanged, plan.step), (written(&view), Step::Wait), "the end comes in a moment");
    let view = view.exited(ExitKind::JobDone);
    let (now, plan) = pass(&view, 20);
    assert!(matches!(plan.step, Step::End(_)));
    assert_eq!((now.job.as_ref().map(|job| job.result.as_str()), acked(&now)), (Some("Failed"), 200));
}

#[test]
fn a_result_does_not_wait_long_for_the_runners_end() {
    let view = hears(busy(), 200, EventKind::JobCompleted);
    assert_eq!(pass(&view, 20).1.again, Duration::from_secs(1));
    let (now, plan) = pass(&view, 21);
    assert_eq!((plan.step, acked(&now)), (Step::Wait, 200));
    assert_eq!(now.job.map(|job| job.result), Some("Failed".to_owned()));
}

#[test]
fn the_next_operator_does_not_take_a_result_back() {
    let mut view = hears(busy(), 200, EventKind::JobCompleted);
    view.vm.status = Some(pass(&view, 21).0);
    let heard_anew = view.agent.as_mut().expect("an agent");
    (heard_anew.result_since, heard_anew.events) = (Some(at(30)), Ledger::default());
    assert_eq!(pass(&view, 30).0, written(&view));
}

#[test]
fn an_event_without_effect_is_no_reason_for_a_write() {
    let view = hears(busy(), 200, EventKind::Error);
    assert_eq!(pass(&view, 20).0, written(&view));
    let ended = hears(view, 300, EventKind::JobCompleted).exited(ExitKind::JobDone);
    assert_eq!(acked(&pass(&ended, 20).0), 300, "it rides along");
}

#[test]
fn an_effect_is_in_a_status_only_when_that_says_so() {
    let (none, running) = (RunnerVmStatus::default(), written(&busy()));
    let crashed = hears(busy(), 200, EventKind::RunnerCrashed).exited(ExitKind::Failed);
    let ended = hears(busy(), 200, EventKind::JobCompleted).exited(ExitKind::JobDone);
    let mut preempted = hears(busy(), 200, EventKind::Preempted);
    preempted.agent.as_mut().expect("an agent").report.notice = Some(Notice::Preempted);
    for (kind, without, with) in [
        (EventKind::JobStarted, &none, &running),
        (EventKind::JobCompleted, &running, &pass(&ended, 20).0),
        (EventKind::RunnerCrashed, &running, &pass(&crashed, 20).0),
        (EventKind::Preempted, &running, &pass(&preempted, 20).0),
    ] {
        assert!(!has_effect(without, kind) && has_effect(with, kind), "{kind:?}");
    }
    assert_eq!(Ledger::default().settled(|kind| has_effect(&none, kind)), 0);
}
