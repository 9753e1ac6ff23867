//! What agents are told, and how often.

use super::*;
use crate::{
    crd::LogLevel,
    gateway::{diagnostics::Diagnostics, report::Ack},
    vm::{
        memory::Sent,
        plan::{Order, Topic, drain_deadline},
    },
};

fn planned_at(view: &VmView, second: i64) -> Plan {
    plan(view, at(second), &timing())
}

fn order(view: &VmView, second: i64) -> Option<Order> {
    match planned_at(view, second).step {
        Step::Tell(order) => Some(order),
        Step::Wait => None,
        other => panic!("{other:?}"),
    }
}

fn idle() -> VmView {
    view().registered(AgentState::Idle)
}

fn send(topic: Topic, want: &str, id: Option<&str>) -> Option<Order> {
    Some(Order::Send { topic, want: want.into(), id: id.map(Into::into) })
}

/// Sent then, under the id "1".
fn sent(view: VmView, topic: Topic, want: &str, second: i64) -> VmView {
    let sent = Sent { want: want.into(), id: "1".into(), at: at(second), settled: false };
    view.memory(|memory| drop(memory.orders.insert(topic, sent)))
}

fn agent(mut view: VmView, change: impl FnOnce(&mut AgentView)) -> VmView {
    change(view.agent.as_mut().expect("an agent"));
    view
}

fn acked(view: VmView, refusal: Option<&str>) -> VmView {
    agent(view, |agent| drop(agent.acks.insert("1".into(), Ack { refusal: refusal.map(Into::into) })))
}

fn annotated(mut view: VmView, name: &str, value: &str) -> VmView {
    view.vm.metadata.annotations.get_or_insert_default().insert(name.into(), value.into());
    view
}

fn changed() -> VmView {
    let mut view = idle();
    view.settings.revision = "b".into();
    view
}

#[test]
fn settings_are_sent_until_the_agent_reports_them_and_keep_their_id_meanwhile() {
    assert_eq!(order(&changed(), 30), send(Topic::Settings, "b", None));
    let told = sent(changed(), Topic::Settings, "b", 30);
    assert_eq!(order(&told, 39), None);
    assert!(planned_at(&told, 39).again <= Duration::from_secs(1), "it is looked at when an answer is due");
    assert_eq!(order(&told, 40), send(Topic::Settings, "b", Some("1")), "nobody answered");
    let done = agent(told, |agent| agent.report.settings_revision = "b".into());
    assert_eq!(order(&done, 41), None);
    let mut again = done;
    again.settings.revision = "c".into();
    assert_eq!(order(&again, 42), send(Topic::Settings, "c", None), "another wish has another id");
}

#[test]
fn an_operator_that_has_not_looked_at_the_pool_changes_no_settings() {
    let mut unknown = agent(idle(), |agent| agent.report.settings_revision = "of the operator before".into());
    assert_eq!(order(&unknown, 30), None);
    unknown.settings.revision = "b".into();
    assert_eq!(order(&unknown, 30), send(Topic::Settings, "b", None));
}

#[test]
fn an_agent_that_started_again_and_lost_its_settings_is_told_again_under_a_new_id() {
    let lost = acked(sent(changed(), Topic::Settings, "b", 30), None);
    assert_eq!((order(&lost, 35), order(&lost, 40)), (None, send(Topic::Settings, "b", None)));
}

#[test]
fn a_refusal_is_told_once_and_the_order_is_not_repeated() {
    let refused = acked(sent(changed(), Topic::Settings, "b", 30), Some("heartbeat 0"));
    assert_eq!(order(&refused, 31), Some(Order::TellRefusal { topic: Topic::Settings, detail: "heartbeat 0".into() }));
    let told = refused.memory(|m| m.orders.values_mut().for_each(|sent| sent.settled = true));
    assert_eq!((order(&told, 32), order(&told, 59)), (None, None));
}

#[test]
fn an_agent_older_than_settings_is_told_to_drain_only_and_one_that_is_gone_nothing() {
    let old = |view| agent(view, |agent| agent.minor = 0);
    for view in [changed(), annotated(idle(), names::LOG_LEVEL, "debug")] {
        assert_eq!(order(&old(view), 30), None);
    }
    assert_eq!(order(&old(annotated(idle(), names::COLLECT_DIAGNOSTICS, "first")), 30), None);
    let busy = view().registered(AgentState::Busy).deleting(30);
    assert_eq!(order(&old(busy), 30), send(Topic::Drain, "drain", None));
    assert_eq!(order(&agent(changed(), |agent| agent.connected = false), 30), None);
}

#[test]
fn a_log_level_holds_while_the_annotation_is_there_and_is_renewed_before_it_ends() {
    let view = annotated(idle(), names::LOG_LEVEL, "debug");
    assert_eq!(order(&view, 30), send(Topic::LogLevel, "Debug", None));
    let holds = acked(sent(view, Topic::LogLevel, "Debug", 30), None);
    let mut holds = agent(holds, |agent| agent.report.log_level = Some(LogLevel::Debug));
    holds.agent.as_mut().expect("an agent").last_heard = at(329);
    assert_eq!(order(&holds, 329), None);
    assert_eq!(planned_at(&holds, 329).again, Duration::from_secs(1));
    assert_eq!(order(&holds, 330), send(Topic::LogLevel, "Debug", None), "for another ten minutes");
    holds.vm.metadata.annotations = None;
    assert_eq!(order(&holds, 331), send(Topic::LogLevel, "", None), "back at once");
    let over = acked(sent(holds.heard(400), Topic::LogLevel, "", 331), None);
    assert_eq!([332, 340, 341, 400, 485].map(|second| order(&over, second)), [const { None }; 5], "said once");
    assert_eq!(order(&annotated(idle(), names::LOG_LEVEL, "loud"), 30), None);
}

#[test]
fn diagnostics_are_asked_for_once_an_id_and_kept_when_they_are_whole() {
    let view = annotated(idle(), names::COLLECT_DIAGNOSTICS, "first");
    assert_eq!(order(&view, 30), send(Topic::Diagnostics, "first", None));
    let promised = acked(sent(view, Topic::Diagnostics, "first", 30), None);
    assert_eq!((order(&promised, 50), order(&promised, 90)), (None, send(Topic::Diagnostics, "first", None)));
    let found = |complete| {
        let mut found = Diagnostics::awaited("1");
        found.complete = complete;
        found
    };
    let partly = agent(promised.clone(), |agent| agent.diagnostics = Some(found(false).into()));
    assert_eq!(order(&partly, 50), None);
    let whole = agent(promised, |agent| agent.diagnostics = Some(found(true).into()));
    assert_eq!(order(&whole, 50), Some(Order::Store { want: "first".into() }));
    let stored = whole.memory(|memory| memory.diagnostics_stored = Some("first".into()));
    assert_eq!(order(&stored, 51), None);
    for bad in ["", "../x", "Two", "-a"] {
        assert_eq!(order(&annotated(idle(), names::COLLECT_DIAGNOSTICS, bad), 30), None, "{bad}");
    }
}

#[test]
fn a_busy_agent_learns_how_long_its_job_may_still_take_and_an_idle_one_is_not_stopped_before_github_lets_go() {
    let busy = view().registered(AgentState::Busy).deleting(30);
    assert_eq!(order(&busy, 30), send(Topic::Drain, "drain", None));
    let told = acked(sent(busy, Topic::Drain, "drain", 30), None);
    assert_eq!(order(&told, 45), None);
    assert!(matches!(planned_at(&idle().deleting(30), 30).step, Step::Deregister { .. }));
    assert_eq!(drain_deadline("drain", Some(at(30)), 100, at(50)), 80);
    assert_eq!(drain_deadline("drain", Some(at(30)), 100, at(500)), 1, "0 would be no deadline at all");
    assert_eq!(drain_deadline("abort", Some(at(30)), 100, at(50)), 1);
}
