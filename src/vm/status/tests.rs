//! What a reader sees of one VM at one moment.

use super::*;
use crate::{
    gateway::report::{AgentState, ExitKind, Guard, GuardKind, Health},
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

#[test]
fn an_agent_of_another_protocol_is_told_while_none_is_heard() {
    let mut foreign = running();
    foreign.unsupported = Some("the agent speaks 2.0, this operator 1.1".into());
    let status = told(&foreign, 30);
    assert_eq!(condition(&status, AGENT_CONNECTED), ("False".into(), "ProtocolUnsupported".into()));
    assert!(find(&status.conditions, AGENT_CONNECTED).is_some_and(|c| c.message.contains("speaks 2.0")));
    let mut back = view().registered(AgentState::Idle);
    back.unsupported.clone_from(&foreign.unsupported);
    assert_eq!(condition(&told(&back, 20), AGENT_CONNECTED).1, "Connected", "one that is heard can be talked to");
}

#[test]
fn a_limit_that_is_neared_is_said_with_ready_and_outlives_the_operator() {
    let mut busy = view().registered(AgentState::Busy);
    assert_eq!(warned(&told(&busy, 20)), None);
    let detail = "disk: 92 % in use".to_owned();
    busy.agent.as_mut().expect("bound").report.guard = Some(Guard { kind: GuardKind::Disk, acted: false, detail });
    let status = told(&busy, 20);
    assert_eq!((condition(&status, READY).0.as_str(), warned(&status)), ("True", Some("disk: 92 % in use")));
    let mut restarted = written(busy, status.clone());
    restarted.agent = None;
    assert_eq!(warned(&told(&restarted, 30)), Some("disk: 92 % in use"), "or it would be told as news again");
}

#[test]
fn what_an_agent_says_of_its_machine_rides_along() {
    let mut idle = view().registered(AgentState::Idle).heard(25);
    let report = &mut idle.agent.as_mut().expect("bound").report;
    (report.health, report.runner_version) = (Some(Health { cpu: 1, memory: 2, disk: 3 }), "2.336.0".into());
    let status = told(&idle, 30);
    assert_eq!(status.last_heartbeat_time, Some(KubeTime(at(25))));
    assert_eq!(status.health, Some(HealthStatus { cpu_percent: 1, memory_percent: 2, disk_percent: 3 }));
    assert_eq!(status.runner.clone().expect("registered").version, "2.336.0");
    let mut later = written(idle, status.clone()).heard(40);
    later.agent.as_mut().expect("bound").report.health = Some(Health { cpu: 99, memory: 2, disk: 3 });
    assert_eq!(told(&later, 41), status, "never a reason for a write");
}
