//! Events at least once: told in order, kept on the disk, told again until they are acked, flushed before the end.

use std::time::Duration;

use miglet_proto::v1::{AgentState, Event, EventKind, JobResult, Shutdown, command::Command as Wanted};
use rustix::process::Signal;
use tokio::{process::Child, time::timeout};

use crate::{
    JIT,
    operator::{Operator, PATIENCE, Session},
    world::{RUNNER, World, eventually, kill},
};

fn kinds(session: &Session) -> Vec<EventKind> {
    session.events.iter().map(Event::kind).collect()
}

/// A machine that has told the result of its job, to an operator that acked neither it nor the job's start.
async fn unacked(world: &World, operator: &mut Operator) -> (Child, Session, Event) {
    let (agent, mut session) = world.idle(operator).await;
    session.acking = false;
    world.touch("go");
    world.touch("end");
    let result = session.until_event(EventKind::JobCompleted).await;
    (agent, session, result)
}

/// An agent that has answered has also heard what was said before.
async fn heard_everything(session: &mut Session) {
    session.register("r2", JIT).await;
    session.outcome("r2").await;
}

#[tokio::test]
async fn every_step_of_a_life_is_told_once_and_before_any_report_of_it() {
    let world = World::new(RUNNER).await;
    let mut operator = world.operator().await;
    let (mut agent, mut session) = world.idle(&mut operator).await;
    assert_eq!(kinds(&session), [EventKind::VmStarted, EventKind::RunnerRegistered]);
    world.touch("go");
    session.until_state(AgentState::JobRunning).await;
    assert_eq!(kinds(&session).last(), Some(&EventKind::JobStarted));
    world.touch("end");
    session.until("the result", |s| s.report.job.as_ref().is_some_and(|job| job.completed_unix_ms > 0)).await;
    let completed = session.events.last().cloned().expect("an event");
    assert_eq!(completed.kind(), EventKind::JobCompleted);
    let job = completed.job.expect("its job");
    assert_eq!((job.result(), job.repository.as_str()), (JobResult::Succeeded, "acme/app"));
    session.until_ended().await;
    session.send("s1", Wanted::Shutdown(Shutdown::default())).await;
    session.until_event(EventKind::VmShuttingDown).await;
    assert_eq!(session.events.len(), 5, "{:?}", session.events);
    assert!(session.events.windows(2).all(|pair| pair[0].sequence < pair[1].sequence));
    session.until_closed().await;
    assert!(timeout(PATIENCE, agent.wait()).await.expect("it goes off").unwrap().success());
}

#[tokio::test]
async fn a_result_that_was_not_acked_is_told_again_by_the_next_agent() {
    let world = World::new(RUNNER).await;
    let mut operator = world.operator().await;
    let (mut agent, _session, told) = unacked(&world, &mut operator).await;
    kill(&agent, Signal::KILL);
    agent.wait().await.unwrap();
    let _agent = world.agent(&operator);
    let mut session = operator.session().await;
    let again = session.until_event(EventKind::JobCompleted).await;
    assert_eq!(again, told, "the same event under the same number");
    let all = [EventKind::VmStarted, EventKind::RunnerRegistered, EventKind::JobStarted, EventKind::JobCompleted];
    assert_eq!(
        kinds(&session),
        all,
        "a new agent tells everything that it does not know to be acked, and nothing anew"
    );
}

#[tokio::test]
async fn after_a_cut_what_was_not_acked_is_told_again_and_the_rest_is_not() {
    let world = World::new(RUNNER).await;
    let mut operator = world.operator().await;
    let (_agent, mut session) = world.idle(&mut operator).await;
    heard_everything(&mut session).await;
    session.acking = false;
    world.touch("go");
    session.until_event(EventKind::JobStarted).await;
    let address = operator.address.to_string();
    drop(session);
    operator.stop().await;
    world.touch("end");
    eventually("ended on disk", || world.record().is_some_and(|runner| runner.exit.is_some())).await;
    let mut operator = Operator::start(&world.identity, &address).await;
    let mut session = operator.session().await;
    session.until_event(EventKind::JobCompleted).await;
    let kinds: Vec<_> = kinds(&session).into_iter().filter(|kind| *kind != EventKind::Error).collect();
    assert_eq!(kinds, [EventKind::JobStarted, EventKind::JobCompleted]);
    let lost = session.until_event(EventKind::Error).await;
    assert!(lost.detail.contains("lost the session"), "{lost:?}");
}

#[tokio::test]
async fn a_machine_goes_off_once_its_last_events_are_acked_and_not_before() {
    let world = World::new(RUNNER).await;
    let mut operator = world.operator().await;
    let mut agent = world.agent(&operator);
    let mut session = operator.session().await;
    session.acking = false;
    session.send("s1", Wanted::Shutdown(Shutdown::default())).await;
    let last = session.until_event(EventKind::VmShuttingDown).await;
    let reports = session.reports;
    session.until("a heartbeat", |s| s.reports > reports).await;
    assert!(agent.try_wait().unwrap().is_none(), "it waits for the ack");
    session.ack_events(last.sequence).await;
    let ended = async {
        session.until_closed().await;
        agent.wait().await.unwrap()
    };
    assert!(timeout(PATIENCE, ended).await.expect("it goes off").success());
}

/// A machine that shuts down stops its agent, and its disk goes with it.
#[tokio::test]
async fn an_agent_that_is_stopped_after_its_runners_end_has_the_result_acked_first() {
    let world = World::new(RUNNER).await;
    let mut operator = world.operator().await;
    let (mut agent, mut session, last) = unacked(&world, &mut operator).await;
    session.until_ended().await;
    kill(&agent, Signal::TERM);
    assert!(timeout(Duration::from_millis(500), agent.wait()).await.is_err(), "it waits for the ack");
    session.ack_events(last.sequence).await;
    assert!(timeout(PATIENCE, agent.wait()).await.expect("it ends").unwrap().success());
}

#[tokio::test]
async fn a_machine_that_nobody_listens_to_goes_off_all_the_same() {
    let world = World::new(RUNNER).await;
    let mut operator = world.operator().await;
    let mut agent = world.agent(&operator);
    let mut session = operator.session().await;
    session.acking = false;
    session.send("s1", Wanted::Shutdown(Shutdown::default())).await;
    session.until_closed().await;
    assert!(timeout(PATIENCE, agent.wait()).await.expect("it goes off").unwrap().success());
}

#[tokio::test]
async fn without_room_on_the_disk_events_are_told_from_memory_and_people_learn_of_it() {
    let world = World::new(RUNNER).await;
    std::fs::create_dir_all(world.paths.event_spool().with_extension("new")).expect("in the way");
    let mut operator = world.operator().await;
    let (_agent, mut session) = world.idle(&mut operator).await;
    assert!(session.report.error.contains("kept in memory only"), "{}", session.report.error);
    assert_eq!(session.until_event(EventKind::Error).await.detail, session.report.error);
    world.touch("go");
    world.touch("end");
    session.until_event(EventKind::JobCompleted).await;
}

/// The shim's record still has what the spool lost: it is told anew, under numbers that were never used.
#[tokio::test]
async fn a_damaged_spool_loses_no_result() {
    let world = World::new(RUNNER).await;
    let mut operator = world.operator().await;
    let (mut agent, mut session) = world.idle(&mut operator).await;
    world.touch("go");
    world.touch("end");
    let told = session.until_event(EventKind::JobCompleted).await;
    kill(&agent, Signal::KILL);
    agent.wait().await.unwrap();
    let mut bytes = std::fs::read(world.paths.event_spool()).unwrap();
    let last = bytes.iter().rposition(|byte| *byte != 0).expect("something was written");
    // In the middle of what was written, with whole records behind it.
    bytes[last / 2] ^= 0x10;
    std::fs::write(world.paths.event_spool(), bytes).unwrap();
    let _agent = world.agent(&operator);
    let mut session = operator.session().await;
    let again = session.until_event(EventKind::JobCompleted).await;
    assert_eq!(again.job, told.job);
    assert!(again.sequence > told.sequence);
    session.until("told", |s| s.report.error.contains("damaged")).await;
}

#[tokio::test]
async fn an_operator_that_knows_no_events_gets_none() {
    let world = World::new(RUNNER).await;
    let mut operator = Operator::speaking(&world.identity, "127.0.0.1:0", None, 0).await;
    let (_agent, mut session) = world.idle(&mut operator).await;
    world.touch("go");
    world.touch("end");
    session.until_ended().await;
    heard_everything(&mut session).await;
    assert_eq!(kinds(&session), []);
}
