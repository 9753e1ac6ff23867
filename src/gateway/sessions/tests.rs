//! Who speaks for a VM, and what becomes of what it says.

use super::*;
use crate::gateway::report::AgentState;

fn now() -> Timestamp {
    Timestamp::UNIX_EPOCH
}

fn vm() -> Key {
    Key::new("ci", "vm")
}

/// A session of an agent that has said nothing yet.
fn open(sessions: &Sessions) -> (Session, mpsc::Receiver<(String, Command)>) {
    sessions.open(vm(), Introduction::default(), Report::default(), now())
}

#[test]
fn a_late_close_does_not_touch_the_newer_session() {
    let sessions = Sessions::default();
    let (old, _old_commands) = open(&sessions);
    let (new, _commands) = open(&sessions);
    sessions.close(&old);
    assert!(sessions.view(new.vm()).expect("there").connected);
    assert!(!sessions.report(&old, Report::default(), now()), "a replaced session must end");
    assert!(sessions.report(&new, Report::default(), now()));
}

#[test]
fn what_an_agent_promised_it_is_asked_again_in_the_next_session() {
    let sessions = Sessions::default();
    let (session, _commands) = open(&sessions);
    sessions.send(&vm(), "order", Command::CollectDiagnostics).expect("sent");
    sessions.acked(&session, ("order".into(), Ack { refusal: None }));
    let promised = || sessions.view(&vm()).expect("there").acks.contains_key("order");
    assert!(promised());
    let _next = open(&sessions);
    assert!(!promised());
}

#[test]
fn idleness_is_counted_from_the_first_report_of_one_state_without_a_job() {
    let at = |second| Timestamp::from_second(second).expect("a time");
    let says = |state, runner: &str| Report { state, runner_name: runner.into(), ..Report::default() };
    let sessions = Sessions::default();
    let (session, _commands) = sessions.open(vm(), Introduction::default(), says(AgentState::Ready, ""), at(1));
    let since = |report, second| {
        assert!(sessions.report(&session, report, at(second)));
        sessions.view(session.vm()).expect("there").idle_since
    };
    assert_eq!(since(says(AgentState::Ready, ""), 2), Some(at(1)));
    assert_eq!(since(says(AgentState::Registering, "r"), 3), None, "a runner that starts may get a job");
    assert_eq!(since(says(AgentState::Idle, "r"), 4), Some(at(4)));
    assert_eq!(since(says(AgentState::Idle, "r"), 5), Some(at(4)));
    assert_eq!(since(says(AgentState::Busy, "r"), 6), None);
    assert_eq!(since(says(AgentState::Idle, "r"), 7), None, "busy once is busy");
}

#[tokio::test]
async fn an_agent_that_only_changes_its_words_wakes_nobody() {
    use futures::StreamExt;
    let wakes = Wakes::default();
    let mut woken = Box::pin(wakes.stream(std::time::Duration::ZERO));
    let sessions = Sessions::new(wakes);
    let (session, _commands) = open(&sessions);
    assert!(woken.next().await.is_some(), "the session itself is news");
    for error in ["a", "b", "c"] {
        assert!(sessions.report(&session, Report { error: error.into(), ..Report::default() }, now()));
    }
    assert!(futures::poll!(woken.next()).is_pending());
    assert!(sessions.report(&session, Report { state: AgentState::Ready, ..Report::default() }, now()));
    assert!(futures::poll!(woken.next()).is_ready());
}

fn event(sequence: u64, kind: EventKind) -> Event {
    Event { sequence, kind, happened: None, job: None, exit: None, detail: String::new() }
}

#[test]
fn an_events_ack_follows_its_write_and_outlives_the_connection() {
    let sessions = Sessions::default();
    let (session, _commands) = open(&sessions);
    let acks = sessions.acks(&session, 5);
    assert_eq!(sessions.event(&session, &event(5, EventKind::JobStarted), now()), Heard::Replayed);
    assert_eq!(sessions.event(&session, &event(9, EventKind::JobCompleted), now()), Heard::New);
    assert_eq!(*acks.borrow(), 8);
    let (session, _commands) = open(&sessions);
    let acks = sessions.acks(&session, 5);
    assert_eq!(sessions.event(&session, &event(9, EventKind::JobCompleted), now()), Heard::Replayed);
    assert_eq!(*acks.borrow(), 8);
    sessions.settle(&vm(), |_| true);
    assert_eq!(*acks.borrow(), 9);
}

#[test]
fn events_of_a_vm_that_is_gone_are_acked_and_given_back() {
    let sessions = Sessions::default();
    let (session, _commands) = open(&sessions);
    let acks = sessions.acks(&session, 0);
    assert_eq!(sessions.event(&session, &event(9, EventKind::JobCompleted), now()), Heard::New);
    assert_eq!(sessions.forget(&vm()), [EventKind::JobCompleted]);
    assert_eq!(*acks.borrow(), 9);
    assert_eq!(sessions.event(&session, &event(10, EventKind::Error), now()), Heard::Gone);
}

#[test]
fn only_what_was_asked_is_answered_and_the_latest_answers_stay() {
    let sessions = Sessions::default();
    let (session, mut commands) = open(&sessions);
    for number in 0..200 {
        sessions.acked(&session, (format!("never-{number}"), Ack { refusal: None }));
    }
    for number in 0..=ASKED {
        let id = format!("c{number}");
        sessions.send(&vm(), &id, Command::CollectDiagnostics).expect("sent");
        commands.try_recv().expect("received");
        sessions.acked(&session, (id, Ack { refusal: None }));
    }
    let acks = sessions.view(&vm()).expect("there").acks;
    assert_eq!(acks.len(), ASKED);
    assert!(!acks.contains_key("c0") && acks.contains_key("c1") && acks.contains_key(&format!("c{ASKED}")));
}

#[test]
fn a_command_to_a_closed_session_is_an_error() {
    let sessions = Sessions::default();
    let (session, _commands) = open(&sessions);
    sessions.close(&session);
    let result = sessions.send(session.vm(), "c", Command::CollectDiagnostics);
    assert_eq!(result, Err(SendError::NotConnected));
}
