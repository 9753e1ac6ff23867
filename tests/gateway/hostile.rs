//! Agents that do not behave, and a neighbour who must not notice.

use std::time::Duration;

use miglet_proto::v1::{self, AgentMessage, CommandAck, agent_message, agent_service_client::AgentServiceClient};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpSocket,
    time::timeout,
};
use tonic::Code;

use crate::{
    agent::{Agent, Identity, channel, dial, hello},
    tokens,
    world::{NEIGHBOUR, VM, World, eventually, now},
};

/// The neighbour reports and is told something, both in time.
async fn is_served(world: &World, neighbour: &mut Agent) {
    use miglet_operator::gateway::report::Command;
    neighbour.report(v1::Report { error: uuid::Uuid::new_v4().to_string(), ..v1::Report::default() }).await;
    let drain = Command::Drain { reason: "hello".into(), deadline_seconds: 0 };
    world.sessions.send(&world.key(NEIGHBOUR), "1", drain).expect("connected");
    let told = timeout(Duration::from_secs(2), neighbour.incoming.message()).await.expect("told in time");
    assert!(told.unwrap().is_some());
}

#[tokio::test]
async fn a_flood_of_messages_ends_its_own_session_only() {
    let world = World::new().await;
    let mut neighbour = Agent::of(&world, &Identity::new(), NEIGHBOUR, 43).await.unwrap();
    let mut hostile = Agent::of(&world, &Identity::new(), VM, 42).await.unwrap();
    for n in 0..100 {
        let state = [v1::AgentState::JobRunning, v1::AgentState::Idle][n % 2] as i32;
        hostile.report(v1::Report { state, ..v1::Report::default() }).await;
    }
    assert_eq!(hostile.end().await.code(), Code::ResourceExhausted);
    assert_eq!(world.refused("TooManyMessages"), 1);
    is_served(&world, &mut neighbour).await;
}

#[tokio::test]
async fn a_message_too_big_ends_its_own_session_only() {
    let world = World::new().await;
    let mut neighbour = Agent::of(&world, &Identity::new(), NEIGHBOUR, 43).await.unwrap();
    let mut hostile = Agent::of(&world, &Identity::new(), VM, 42).await.unwrap();
    hostile.report(v1::Report { error: "x".repeat(64 * 1024), ..v1::Report::default() }).await;
    assert_eq!(hostile.end().await.code(), Code::OutOfRange);
    eventually("it is closed", || !world.connected(VM)).await;
    is_served(&world, &mut neighbour).await;
}

#[tokio::test]
async fn long_strings_within_a_message_are_cut() {
    let world = World::new().await;
    let hostile = Agent::of(&world, &Identity::new(), VM, 42).await.unwrap();
    hostile.report(v1::Report { error: "\u{1b}x".repeat(2000), ..v1::Report::default() }).await;
    let error = || world.sessions.view(&world.key(VM)).unwrap().report.error;
    eventually("the report arrives", || !error().is_empty()).await;
    assert_eq!(error(), "x".repeat(300));
}

#[tokio::test]
async fn a_stream_that_does_not_begin_with_a_valid_hello_ends() {
    let world = World::new().await;
    let me = Identity::new();
    let token = world.google.sign(&tokens::claims(VM, 42, &me.thumbprint, now()));
    let bad_boots = [String::new(), "b".repeat(65), "bo\not".to_owned()];
    for boot_id in bad_boots {
        let status = Agent::open(&world, &me, v1::Hello { boot_id, ..hello(token.clone()) }).await.err().unwrap();
        assert_eq!(status.code(), Code::InvalidArgument);
    }
    assert_eq!(world.refused("BadHello"), 3);
    let mut agent = Agent::open(&world, &me, hello(token.clone())).await.unwrap();
    let ack =
        agent_message::Message::Ack(CommandAck { command_id: "i".repeat(5000), outcome: 99, detail: "\0".into() });
    agent.outgoing.send(AgentMessage { message: Some(ack) }).await.unwrap();
    let second = agent_message::Message::Hello(hello(token));
    agent.outgoing.send(AgentMessage { message: Some(second) }).await.unwrap();
    assert_eq!(agent.end().await.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn bytes_that_are_no_protocol_cost_their_own_connection_only() {
    let world = World::new().await;
    let mut neighbour = Agent::of(&world, &Identity::new(), NEIGHBOUR, 43).await.unwrap();
    let mut plain = TcpSocket::new_v4().unwrap().connect(world.address).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut tls = dial(&world, Some(&Identity::new()), "127.0.0.1").await.unwrap();
    tls.write_all(&[0xff; 4096]).await.unwrap();
    let mut rest = Vec::new();
    // An error is an end too.
    drop(timeout(Duration::from_secs(5), tls.read_to_end(&mut rest)).await.expect("the connection ends"));
    eventually("the handshake is refused", || world.refused("BadHandshake") == 1).await;
    is_served(&world, &mut neighbour).await;
}

#[tokio::test]
async fn connections_that_never_say_who_they_are_are_capped_and_closed() {
    let world = World::new().await;
    let mut neighbour = Agent::of(&world, &Identity::new(), NEIGHBOUR, 43).await.unwrap();
    let stranger = Identity::new();
    let mut held = Vec::new();
    for _ in 0..200 {
        held.push(TcpSocket::new_v4().unwrap().connect(world.address).await.unwrap());
    }
    eventually("all but the address' share are refused", || world.refused("TooManyConnections") >= 192).await;
    is_served(&world, &mut neighbour).await;
    let token = world.google.sign(&tokens::claims(VM, 42, &stranger.thumbprint, now()));
    Agent::open_from(&world, &stranger, hello(token), "127.0.0.2").await.expect("another address is not affected");
    eventually("what says nothing is closed", || world.refused("BadHandshake") >= 8).await;
}

#[tokio::test]
async fn a_connection_with_a_key_but_no_session_is_closed_in_time() {
    let world = World::new().await;
    let mut idle = dial(&world, Some(&Identity::new()), "127.0.0.1").await.unwrap();
    let mut rest = Vec::new();
    drop(timeout(Duration::from_secs(8), idle.read_to_end(&mut rest)).await.expect("the connection ends"));
    assert_eq!(world.refused("TooSlow"), 1);
}

#[tokio::test]
async fn one_connection_cannot_try_token_after_token() {
    let world = World::new().await;
    let channel = channel(&world, &Identity::new(), "127.0.0.1").await.unwrap();
    let mut refused = 0;
    for _ in 0..12 {
        let hello = AgentMessage { message: Some(agent_message::Message::Hello(hello("nonsense".into()))) };
        let opened = AgentServiceClient::new(channel.clone()).session(tokio_stream::iter([hello])).await;
        match opened {
            Ok(mut stream) => assert!(stream.get_mut().message().await.is_err()),
            Err(status) => refused += usize::from(status.code() == Code::ResourceExhausted),
        }
    }
    assert_eq!((refused, world.refused("MalformedToken"), world.refused("TooManySessions")), (4, 8, 4));
}
