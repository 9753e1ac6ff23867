//! Agents that behave.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use miglet_operator::{
    forge::Offer,
    gateway::{
        report::{AgentState, Command},
        settings::Policy,
    },
};
use miglet_proto::{
    PROTOCOL_MINOR,
    v1::{self, agent_message, command, operator_message},
};
use secrecy::SecretString;
use tonic::Code;

use crate::{
    agent::{Agent, Identity, hello},
    tokens,
    world::{VM, World, eventually, now, write_certificate},
};

#[tokio::test]
async fn an_agent_is_bound_before_it_is_welcomed_and_its_reports_arrive() {
    let world = World::new().await;
    let identity = Identity::new();
    let agent = Agent::of(&world, &identity, VM, 42).await.unwrap();
    assert_eq!((agent.welcome.vm_name.as_str(), agent.welcome.heartbeat_period_seconds), (VM, 15));
    let status = world.kube.vm(VM).status.unwrap();
    let bound = status.agent.unwrap();
    assert_eq!((bound.key_thumbprint, bound.boot_id.as_str()), (identity.thumbprint, "boot-1"));
    assert_eq!(status.instance.unwrap().id, "42");
    let runner = status.runner.unwrap();
    assert_eq!((runner.name, runner.attempt, runner.id), (format!("{VM}-1"), 1, None));
    assert_eq!(world.kube.patches(), 1, "the binding is one write");

    agent.report(v1::Report { state: v1::AgentState::Idle as i32, ..v1::Report::default() }).await;
    let state = || world.sessions.view(&world.key(VM)).unwrap().report.state;
    eventually("the report arrives", || state() == AgentState::Idle).await;
    drop(agent);
    eventually("the session closes with its stream", || !world.connected(VM)).await;
}

#[tokio::test]
async fn commands_go_down_the_stream_with_ids_of_their_own() {
    let world = World::new().await;
    let mut agent = Agent::of(&world, &Identity::new(), VM, 42).await.unwrap();
    let register =
        Command::Register { runner_name: format!("{VM}-1"), jit_config: SecretString::from("s3cret".to_owned()) };
    world.sessions.send(&world.key(VM), "1", register).unwrap();
    let drain = Command::Drain { reason: "scale down".into(), deadline_seconds: 7 };
    world.sessions.send(&world.key(VM), "2", drain).unwrap();
    let mut ids = Vec::new();
    for expected in ["register", "drain"] {
        let message = agent.incoming.message().await.unwrap().unwrap().message.unwrap();
        let operator_message::Message::Command(command) = message else { panic!("{message:?}") };
        let kind = match command.command.unwrap() {
            command::Command::RegisterRunner(order) => {
                assert_eq!(order.encoded_jit_config, "s3cret");
                "register"
            }
            command::Command::Drain(drain) => {
                assert_eq!(drain.deadline_seconds, 7);
                "drain"
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(kind, expected);
        ids.push(command.id);
    }
    assert_ne!(ids[0], ids[1]);
}

#[tokio::test]
async fn the_same_key_reconnects_without_a_write_and_the_older_session_ends() {
    let world = World::new().await;
    let identity = Identity::new();
    let mut old = Agent::of(&world, &identity, VM, 42).await.unwrap();
    world.cloud.remove(VM);
    let _new = Agent::of(&world, &identity, VM, 42).await.expect("no list is needed for a reconnect");
    assert_eq!(old.end().await.code(), Code::Aborted);
    assert!(world.connected(VM), "the older session's end leaves the newer one alone");
    assert_eq!(world.kube.patches(), 1);
}

#[tokio::test]
async fn a_binding_that_met_another_writer_is_decided_again() {
    let world = World::new().await;
    world.kube.conflict_once();
    Agent::of(&world, &Identity::new(), VM, 42).await.unwrap();
    assert_eq!(world.kube.patches(), 2);
}

#[tokio::test]
async fn of_two_first_contacts_one_is_bound() {
    let world = World::new().await;
    let (one, other) = (Identity::new(), Identity::new());
    let (first, second) = tokio::join!(Agent::of(&world, &one, VM, 42), Agent::of(&world, &other, VM, 42));
    assert_eq!(usize::from(first.is_ok()) + usize::from(second.is_ok()), 1);
    assert_eq!(world.refused("KeyMismatch"), 1);
}

#[tokio::test]
async fn a_process_that_stops_leading_ends_its_sessions_and_takes_no_new_ones() {
    let world = World::new().await;
    let identity = Identity::new();
    let mut agent = Agent::of(&world, &identity, VM, 42).await.unwrap();
    world.serving.send(false).unwrap();
    assert_eq!(agent.end().await.code(), Code::Unavailable);
    assert_eq!(Agent::of(&world, &identity, VM, 42).await.err().unwrap().code(), Code::Unavailable);
    world.serving.send(true).unwrap();
    Agent::of(&world, &identity, VM, 42).await.expect("it leads again");
}

#[tokio::test]
async fn a_process_whose_lease_ran_out_unnoticed_binds_nobody() {
    let world = World::new().await;
    let identity = Identity::new();
    world.may_act.store(false, Ordering::SeqCst);
    assert_eq!(Agent::of(&world, &identity, VM, 42).await.err().unwrap().code(), Code::Unavailable);
    assert_eq!(world.kube.patches(), 0);
    world.may_act.store(true, Ordering::SeqCst);
    Agent::of(&world, &identity, VM, 42).await.expect("it leads");
}

#[tokio::test]
async fn an_agent_too_far_away_in_version_is_told_both_versions_and_so_is_whoever_looks_at_its_vm() {
    let world = World::new().await;
    let identity = Identity::new();
    let refused = spoken(&world, &identity, PROTOCOL_MINOR + 2).await.err().unwrap();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    for wanted in ["1.3", "1.1", "update the operator"] {
        assert!(refused.message().contains(wanted), "{wanted} in {refused}");
    }
    assert_eq!((world.kube.patches(), world.refused("ProtocolSkew")), (0, 1), "no VM is bound to it");
    assert_eq!(world.sessions.why_unsupported(&world.key(VM)).as_deref(), Some(refused.message()));
    eventually("an event says so", || world.kube.events().iter().any(|e| e.to_string().contains("ProtocolSkew"))).await;
    spoken(&world, &identity, PROTOCOL_MINOR).await.expect("another agent on the same VM");
    assert_eq!(world.sessions.why_unsupported(&world.key(VM)), None);
}

#[tokio::test]
async fn an_agent_one_minor_version_older_or_newer_is_welcome() {
    for minor in [PROTOCOL_MINOR - 1, PROTOCOL_MINOR + 1] {
        let world = World::new().await;
        let agent = spoken(&world, &Identity::new(), minor).await.expect("welcome");
        assert_eq!(agent.welcome.protocol_minor, PROTOCOL_MINOR);
        assert_eq!(world.sessions.view(&world.key(VM)).unwrap().minor, minor);
    }
}

async fn spoken(world: &World, identity: &Identity, protocol_minor: u32) -> Result<Agent, tonic::Status> {
    let token = world.google.sign(&tokens::claims(VM, 42, &identity.thumbprint, now()));
    Agent::open(world, identity, v1::Hello { protocol_minor, ..hello(token) }).await
}

#[tokio::test]
async fn a_welcome_brings_what_the_pool_says_and_leaves_the_runner_open_until_the_pool_was_looked_at() {
    let world = World::new().await;
    let identity = Identity::new();
    let first = Agent::of(&world, &identity, VM, 42).await.unwrap().welcome.settings.expect("settings");
    assert_eq!(first.runner, None);
    let offer = Offer { version: "2.337.0".into(), downloads: Vec::new() };
    let agent = serde_json::from_value(serde_json::json!({"logLevel": "Debug", "heartbeatPeriodSeconds": 7})).unwrap();
    world.sessions.set_policy("u", Policy { agent, offer: Some(offer) }, std::iter::empty());
    let settings = Agent::of(&world, &identity, VM, 42).await.unwrap().welcome.settings.expect("settings");
    assert_ne!(settings.revision, first.revision);
    assert_eq!(settings.runner.map(|runner| runner.version).as_deref(), Some("2.337.0"));
    let agent = settings.agent.expect("how to work");
    assert_eq!((agent.log_level(), agent.heartbeat_period_seconds), (v1::LogLevel::Debug, 7));
}

#[tokio::test]
async fn acks_and_diagnostics_arrive_where_they_were_asked_for() {
    let world = World::new().await;
    let agent = Agent::of(&world, &Identity::new(), VM, 42).await.unwrap();
    world.sessions.send(&world.key(VM), "d", Command::CollectDiagnostics).unwrap();
    let say = async |message| drop(agent.outgoing.send(v1::AgentMessage { message: Some(message) }).await);
    let (command_id, outcome) = ("d".to_owned(), v1::CommandOutcome::Refused.into());
    say(agent_message::Message::Ack(v1::CommandAck { command_id, outcome, detail: "no\u{7}".into() })).await;
    for (sequence, last) in [(0, false), (0, false), (1, true)] {
        let (command_id, name, text) = ("d".to_owned(), "agent.log".to_owned(), format!("{sequence}"));
        let chunk = v1::DiagnosticsChunk { command_id, name, text, last, sequence };
        say(agent_message::Message::Diagnostics(chunk)).await;
    }
    let view = || world.sessions.view(&world.key(VM)).unwrap();
    eventually("they are whole", || view().diagnostics.is_some_and(|found| found.complete)).await;
    assert_eq!(view().diagnostics.unwrap().texts["agent.log"], "01", "a repeated piece is left out");
    assert_eq!(view().acks["d"].refusal.as_deref(), Some("no"));
}

#[tokio::test]
async fn a_new_certificate_is_served_and_a_broken_one_is_not() {
    let mut world = World::new().await;
    let identity = Identity::new();
    Agent::of(&world, &identity, VM, 42).await.expect("it serves");
    std::fs::write(world.directory.join("tls.crt"), "nonsense").unwrap();
    // Long enough for several looks at the files.
    let broken = Instant::now();
    while broken.elapsed() < Duration::from_millis(300) {
        Agent::of(&world, &identity, VM, 42).await.expect("the old certificate is kept");
    }
    world.certificate = write_certificate(&world.directory);
    let written = Instant::now();
    while Agent::of(&world, &identity, VM, 42).await.is_err() {
        assert!(written.elapsed() < Duration::from_secs(10), "the new certificate is never served");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
