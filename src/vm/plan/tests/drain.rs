//! A VM on its way out.

use super::*;
use crate::vm::{
    memory::Sent,
    plan::{Order, Topic},
};

#[test]
fn an_idle_runner_is_removed_at_github_before_its_instance() {
    let idle = view().registered(AgentState::Idle).deleting(30);
    assert_eq!(step(&idle, 31), Step::Deregister { id: RUNNER });
    assert_eq!(step(&idle.memory(|m| m.deletion = Some((at(31), Deletion::Deleted))), 32), url());
}

#[test]
fn a_busy_runner_is_waited_for_and_asked_about_again() {
    let busy = view().registered(AgentState::Idle).deleting(30).memory(|m| m.deletion = Some((at(31), Deletion::Busy)));
    assert_eq!(waits_for(&busy, 60), Some("WaitingForJob"));
    assert_eq!(step(&busy, 61), Step::Deregister { id: RUNNER });
}

#[test]
fn the_word_of_a_silent_agent_does_not_hold_up_a_drain() {
    let busy = view().registered(AgentState::Busy).deleting(30);
    assert_eq!(waits_for(&busy, 109), Some("WaitingForJob"));
    assert_eq!(step(&busy, 110), Step::Deregister { id: RUNNER });
}

#[test]
fn a_404_proves_nothing_while_the_vm_lives_and_its_agent_says_busy_or_nothing() {
    let gone = |state| {
        view().registered(state).deleting(30).memory(|m| m.deletion = Some((at(200), Deletion::NotFound))).seen(200)
    };
    assert_eq!(waits_for(&gone(AgentState::Busy).heard(200), 201), Some("WaitingForProof"));
    assert_eq!(step(&gone(AgentState::Idle).idle_since(20).heard(200), 201), Step::NoteRegistrationGone);
    assert_eq!(step(&gone(AgentState::Ended).exited(ExitKind::JobDone), 201), Step::NoteRegistrationGone);
    let mut unheard = gone(AgentState::Idle);
    unheard.agent = None;
    assert_eq!(waits_for(&unheard, 201), Some("WaitingForProof"));
    unheard.presence = Presence::Present(instance(Power::Down));
    assert!(matches!(step(&unheard, 201), Step::DeleteInstance(_)), "a dead machine is given back at once");
}

#[test]
fn a_404_after_a_lost_delivery_is_proof_when_the_agent_has_no_runner() {
    let mut lost = view().registered(AgentState::Ready).deleting(30).idle_since(20).heard(200).seen(200);
    lost.agent.as_mut().expect("connected").report.runner_name.clear();
    let lost = lost.memory(|m| m.deletion = Some((at(200), Deletion::NotFound)));
    assert_eq!(step(&lost, 201), Step::NoteRegistrationGone);
}

#[test]
fn a_404_while_the_scope_was_not_seen_for_a_while_asks_for_the_scope() {
    let gone = view().registered(AgentState::Ended).exited(ExitKind::JobDone).deleting(30);
    let gone = gone.memory(|m| m.deletion = Some((at(200), Deletion::NotFound))).seen(100);
    assert_eq!(step(&gone, 201), Step::CheckScope);
    assert_eq!(step(&gone.seen(201), 202), Step::NoteRegistrationGone);
}

#[test]
fn the_object_goes_only_after_two_lists_without_the_instance() {
    let gone = view().registered(AgentState::Idle).deleting(30).memory(|m| m.registration_gone = true);
    let asked = gone.memory(|m| m.delete_asked = Some(at(40)));
    assert_eq!(step(&asked, 41), Step::Wait, "it was asked for a moment ago");
    assert_eq!(step(&asked, 70), url(), "it is still there");
    assert_eq!(step(&asked.clone().absent(50, 109), 110), Step::Wait);
    assert_eq!(step(&asked.absent(50, 110), 110), Step::Release { left_behind: false });
}

#[test]
fn only_the_users_deadline_and_word_cut_a_job() {
    let busy = view().registered(AgentState::Busy).deleting(30).heard(432_029);
    let busy = told(&busy, "drain");
    assert_eq!(waits_for(&busy, 432_029), Some("WaitingForJob"));
    assert_eq!(step(&busy, 432_030), Step::Tell(drain_as("abort")), "a second drain interrupts it");
    let aborted = told(&busy, "abort");
    assert_eq!(step(&aborted, 432_030), url(), "in the next pass, whatever the agent does about it");
    let mut now = busy.heard(40);
    now.vm.metadata.annotations = Some([(names::TERMINATE_NOW.to_owned(), "leak".to_owned())].into());
    assert_eq!(step(&now, 41), Step::Tell(drain_as("abort")));
    assert_eq!(step(&told(&now, "abort"), 41), url());
    now.agent.as_mut().expect("bound").connected = false;
    assert_eq!(step(&now, 41), url(), "nobody hears it");
}

#[test]
fn a_forge_that_never_answers_holds_the_object_no_longer_than_the_grace() {
    let gone = view().registered(AgentState::Busy).deleting(30).absent(40, 432_100);
    let troubled = gone.clone().memory(|m| m.forge_trouble = Some("401".into()));
    assert_eq!(step(&troubled, 432_029), Step::Deregister { id: RUNNER });
    assert_eq!(step(&gone, 432_110), Step::Deregister { id: RUNNER }, "it still answers");
    assert_eq!(step(&troubled, 432_110), Step::Release { left_behind: true });
}

#[test]
fn a_blocked_forge_is_waited_for_and_touches_nothing() {
    let mut blocked = view().registered(AgentState::Idle).deleting(30);
    blocked.access = Access::Blocked("the Secret does not exist".into());
    assert_eq!(waits_for(&blocked, 40), Some("WaitingForGitHub"));
}

#[test]
fn with_its_namespace_gone_an_idle_listener_is_stopped_and_a_busy_one_finishes() {
    let mut lost = view().registered(AgentState::Idle).deleting(30);
    lost.access = Access::Lost;
    assert_eq!(step(&lost, 31), Step::Tell(drain()));
    let told = lost.memory(|m| drop(m.orders.insert(Topic::Drain, drain_sent(31))));
    assert_eq!(waits_for(&told, 32), Some("CredentialsGone"));
    let ended = told.exited(ExitKind::WithoutJob).memory(|m| drop(m.orders.insert(Topic::Shutdown, drain_sent(32))));
    assert_eq!(step(&ended, 33), url());
    assert_eq!(step(&ended.absent(40, 100), 101), Step::Release { left_behind: true });
}

#[test]
fn no_pass_asks_to_be_run_again_at_once() {
    assert!(planned(&view(), 0).again >= Duration::from_millis(20));
    assert_eq!(later(Timestamp::MAX, Duration::from_secs(1)), Timestamp::MAX);
}

#[test]
fn an_agent_whose_machine_stops_working_hears_that_its_registration_is_gone() {
    let mut preempted = view().registered(AgentState::Idle).deleting(30).heard(30);
    preempted.agent.as_mut().expect("connected").report.notice = Some(Notice::Preempted);
    assert_eq!(step(&preempted, 31), Step::Deregister { id: RUNNER }, "the registration first");
    let gone = preempted.memory(|m| m.registration_gone = true);
    assert_eq!(step(&gone, 32), Step::Tell(drain()));
    let told = gone.memory(|m| drop(m.orders.insert(Topic::Drain, drain_sent(31))));
    assert_eq!(step(&told, 33), url());
}

#[test]
fn an_agent_whose_runner_has_ended_is_told_to_turn_its_machine_off_and_not_waited_for() {
    let ended = view().registered(AgentState::Ended).exited(ExitKind::JobDone).deleting(30);
    assert_eq!(step(&ended, 31), Step::Deregister { id: RUNNER }, "the registration first");
    let gone = ended.memory(|m| m.registration_gone = true);
    let shutdown = Order::Send { topic: Topic::Shutdown, want: "shutdown".into(), id: None };
    assert_eq!(step(&gone, 32), Step::Tell(shutdown));
    let told = gone.clone().memory(|m| drop(m.orders.insert(Topic::Shutdown, drain_sent(32))));
    assert_eq!(step(&told, 32), url(), "in the next pass");
    let mut silent = gone;
    silent.agent.as_mut().expect("bound").connected = false;
    assert_eq!(step(&silent, 32), url(), "nobody hears it");
}

fn drain() -> Order {
    drain_as("drain")
}

fn drain_as(want: &str) -> Order {
    Order::Send { topic: Topic::Drain, want: want.into(), id: None }
}

fn drain_sent(second: i64) -> Sent {
    Sent { want: "drain".into(), id: "1".into(), at: at(second), settled: false }
}

fn told(view: &VmView, want: &str) -> VmView {
    view.clone().memory(|m| drop(m.orders.insert(Topic::Drain, Sent { want: want.into(), ..drain_sent(30) })))
}
