//! Events over the wire: acked when they are dealt with, not before.

use miglet_operator::gateway::report::AgentState;
use miglet_proto::v1::{self, AgentMessage, EventKind, agent_message, operator_message};
use tokio::time::timeout;
use tonic::Code;

use crate::{
    agent::{Agent, Identity, WAIT},
    world::{VM, World, eventually},
};

async fn tell(agent: &Agent, sequence: u64, kind: EventKind) {
    let event = v1::Event { sequence, kind: kind.into(), ..v1::Event::default() };
    let message = AgentMessage { message: Some(agent_message::Message::Event(event)) };
    agent.outgoing.send(message).await.expect("open");
}

async fn acked(agent: &mut Agent) -> u64 {
    let message = timeout(WAIT, agent.incoming.message()).await.expect("an ack").expect("open").expect("a message");
    let Some(operator_message::Message::EventAck(ack)) = message.message else { panic!("{message:?}") };
    ack.sequence
}

#[tokio::test]
async fn an_event_is_acked_once_what_follows_from_it_is_written() {
    let world = World::new().await;
    let identity = Identity::new();
    let mut agent = Agent::of(&world, &identity, VM, 42).await.unwrap();
    tell(&agent, 5, EventKind::VmStarted).await;
    assert_eq!(acked(&mut agent).await, 5, "nothing follows from it");
    tell(&agent, 9, EventKind::JobStarted).await;
    assert_eq!(acked(&mut agent).await, 8, "all before it");
    let report = || world.sessions.view(&world.key(VM)).unwrap().report;
    eventually("the event arrives", || report().job.is_some() && report().state == AgentState::Busy).await;
    world.sessions.settle(&world.key(VM), |_| true);
    assert_eq!(acked(&mut agent).await, 9);
    let mut again = Agent::of(&world, &identity, VM, 42).await.unwrap();
    assert_eq!(acked(&mut again).await, 9, "a new session begins with what is dealt with");
    tell(&again, 9, EventKind::JobStarted).await;
    assert_eq!(acked(&mut again).await, 9, "a replay is acked again");
}

#[tokio::test]
async fn events_of_a_vm_that_is_gone_are_acked_and_end_the_session() {
    let world = World::new().await;
    let mut agent = Agent::of(&world, &Identity::new(), VM, 42).await.unwrap();
    tell(&agent, 9, EventKind::JobCompleted).await;
    assert_eq!(acked(&mut agent).await, 8);
    assert_eq!(world.sessions.forget(&world.key(VM)).len(), 1);
    assert_eq!(acked(&mut agent).await, 9);
    assert_eq!(agent.end().await.code(), Code::Aborted);
}

#[tokio::test]
async fn a_number_that_no_status_can_keep_ends_the_session() {
    let world = World::new().await;
    let mut agent = Agent::of(&world, &Identity::new(), VM, 42).await.unwrap();
    tell(&agent, u64::MAX, EventKind::JobCompleted).await;
    assert_eq!(agent.end().await.code(), Code::ResourceExhausted);
    assert_eq!(world.refused("BadEvent"), 1);
}
