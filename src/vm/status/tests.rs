//! What a reader sees of one VM at one moment.

use super::*;
use crate::{
    gateway::report::{AgentState, ExitKind},
    vm::plan::{
        plan,
        tests::{Build, at, timing, view},
    },
};

fn told(view: &VmView, second: i64) -> RunnerVmStatus {
    let now = at(second);
    status(view, &plan(view, now, &timing()), now, &timing())
}

/// The object as it is once `told` was written.
fn written(mut view: VmView, status: RunnerVmStatus) -> VmView {
    view.vm.status = Some(status);
    view
}

fn condition(status: &RunnerVmStatus, kind: &str) -> (String, String) {
    let condition = find(&status.conditions, kind).expect("told");
    (condition.status.clone(), condition.reason.clone())
}

fn running() -> VmView {
    view().running().status(|status| status.launched_time = None)
}

#[test]
fn a_jobs_times_are_what_is_read_back() {
    let time = Some(Timestamp::from_millisecond(1_763_700_000_123).expect("a time"));
    let told = job_status(&Job { name: "build".into(), started: time, completed: time, ..Job::default() });
    let stored = serde_json::from_value(serde_json::to_value(&told).expect("JSON")).expect("a job");
    assert_eq!(told, stored, "or each pass over a busy VM would write");
}

#[test]
fn a_machine_that_runs_at_once_is_told_with_its_agent() {
    let before = written(running(), told(&running(), 1));
    assert_eq!(before.vm.status.as_ref().map(|status| status.phase), Some(Phase::Launching));
    let bound = before.bound(AgentState::Ready).status(|status| status.launched_time = None);
    let after = told(&bound, 1);
    assert_eq!((after.launched_time, after.phase), (Some(KubeTime(at(1))), Phase::Registering));
}

#[test]
fn a_machine_whose_agent_does_not_call_is_told_to_run() {
    let after = told(&running(), i64::from(BOOT_SECONDS));
    assert_eq!((after.phase, condition(&after, LAUNCHED)), (Phase::Booting, ("True".into(), "Running".into())));
    assert_eq!(after.instance.expect("known").id, "1");
}

#[test]
fn a_result_waits_for_the_runners_end() {
    let mut busy = view().registered(AgentState::Busy);
    let job = Job { name: "build".into(), result: "Succeeded".into(), completed: Some(at(25)), ..Job::default() };
    busy.agent.as_mut().expect("bound").report.job = Some(job);
    let job = told(&busy, 25).job.expect("told");
    assert_eq!((job.result.as_str(), job.completed_time), ("", None), "one write tells both");
    let job = told(&busy.exited(ExitKind::JobDone), 26).job.expect("told");
    assert_eq!((job.result.as_str(), job.completed_time), ("Succeeded", Some(KubeTime(at(25)))));
}

#[test]
fn a_drain_says_who_wanted_it_and_a_restart_does_not_forget() {
    let idle = view().registered(AgentState::Idle).deleting(30);
    let drained = told(&idle.clone().memory(|memory| memory.removed_for = Some("ScaledDown")), 30);
    assert_eq!(condition(&drained, DRAINING), ("True".into(), "ScaledDown".into()));
    let restarted = written(idle.clone(), drained);
    assert_eq!(condition(&told(&restarted, 31), DRAINING).1, "ScaledDown");
    assert_eq!(condition(&told(&idle, 30), DRAINING).1, "Deleted", "a person's deletion has no other reason");
}

#[test]
fn a_registered_vm_is_draining_until_its_registration_is_gone() {
    let busy = view().registered(AgentState::Busy).deleting(30);
    assert_eq!(told(&busy, 30).phase, Phase::Draining);
    let gone = busy.memory(|memory| memory.registration_gone = true);
    assert_eq!(told(&gone, 31).phase, Phase::Terminating);
}

#[test]
fn silence_is_told_and_takes_nothing_away() {
    let busy = view().registered(AgentState::Busy);
    let timeout = i64::from(busy.vm.spec.lifecycle.heartbeat_timeout_seconds);
    let heard = told(&busy, 20);
    assert_eq!(condition(&heard, AGENT_CONNECTED), ("True".into(), "Connected".into()));
    let silent = told(&written(busy, heard), 20 + timeout);
    assert_eq!(condition(&silent, AGENT_CONNECTED), ("False".into(), "Silent".into()));
    assert_eq!((silent.phase, condition(&silent, READY).0), (Phase::Busy, "False".into()));
    assert!(silent.instance.is_some() && silent.runner.is_some());
}

#[test]
fn a_second_look_at_the_same_facts_is_no_news() {
    let busy = view().registered(AgentState::Busy);
    let first = told(&busy, 20);
    assert_eq!(told(&written(busy, first.clone()), 40), first, "20 s later, nothing happened");
}
