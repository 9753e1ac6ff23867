//! Who is refused, and that it is counted and seen.

use std::sync::atomic::Ordering;

use jiff::SignedDuration;
use serde_json::{Value, json};
use tonic::Code;

use crate::{
    agent::{Agent, Identity, channel, dial, hello},
    tokens::{Signer, claims, unsigned},
    world::{VM, World, caps, eventually, now},
};

fn changed(identity: &Identity, path: &str, value: Value) -> Value {
    let mut claims = claims(VM, 42, &identity.thumbprint, now());
    *claims.pointer_mut(path).unwrap() = value;
    claims
}

#[tokio::test]
async fn every_wrong_token_is_refused_for_its_reason_and_nothing_is_bound() {
    let world = World::new().await;
    let me = Identity::new();
    let good = claims(VM, 42, &me.thumbprint, now());
    let other_audience = claims(VM, 42, &Identity::new().thumbprint, now());
    let google = |path: &str, value: Value| world.google.sign(&changed(&me, path, value));
    let public = serde_json::to_string(&world.google.jwk()).unwrap();
    let engine = "/google/compute_engine";
    let cases = [
        ("MalformedToken", "nonsense".to_owned()),
        ("WrongAlgorithm", unsigned(&good)),
        ("WrongAlgorithm", Signer::hmac("google-1", public.as_bytes()).sign(&good)),
        ("WrongAlgorithm", Signer::ec("google-1").sign(&good)),
        ("UnknownKey", Signer::rsa("google-2").sign(&good)),
        ("BadSignature", Signer::rsa("google-1").sign(&good)),
        ("WrongIssuer", google("/iss", json!("https://accounts.google.com.evil.test"))),
        ("WrongAudience", world.google.sign(&other_audience)),
        ("WrongAudience", google("/aud", json!(format!("https://other.test/{}", me.thumbprint)))),
        ("Expired", google("/exp", json!(now() - 40))),
        ("NotYetValid", google("/iat", json!(now() + 90))),
        ("NoInstanceClaims", google("/google", Value::Null)),
        ("OtherZone", google(&format!("{engine}/zone"), json!("europe-west1-b"))),
        ("OtherInstance", google(&format!("{engine}/instance_id"), json!("4242"))),
        ("UnknownVm", google(&format!("{engine}/instance_name"), json!("stranger"))),
        ("OtherProject", google(&format!("{engine}/project_id"), json!("stranger"))),
        ("OlderThanVm", google(&format!("{engine}/instance_creation_timestamp"), json!(now() - 600))),
    ];
    for (reason, token) in cases {
        let before = world.refused(reason);
        let status = Agent::open(&world, &me, hello(token)).await.err().unwrap_or_else(|| panic!("{reason} let in"));
        assert_eq!(status.code(), Code::PermissionDenied, "{reason}: {status}");
        assert_eq!(world.refused(reason), before + 1, "{reason} is counted: {:?}", world.refusals);
    }
    assert_eq!(world.kube.patches(), 0, "nothing was bound");
    assert_eq!(world.key_fetches.load(Ordering::SeqCst), 1, "made-up key ids do not make us ask Google each time");
}

#[tokio::test]
async fn a_refusal_is_seen_on_the_runnervm_once() {
    let world = World::new().await;
    let (me, thief) = (Identity::new(), Identity::new());
    let _agent = Agent::of(&world, &me, VM, 42).await.unwrap();
    for _ in 0..3 {
        assert_eq!(Agent::of(&world, &thief, VM, 42).await.err().unwrap().code(), Code::PermissionDenied);
    }
    assert_eq!(world.refused("KeyMismatch"), 3);
    eventually("an event is written", || !world.kube.events().is_empty()).await;
    let events = world.kube.events();
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(events[0]["reason"], "AttestationRefused");
    assert_eq!(events[0]["regarding"]["name"], VM);
    assert!(world.connected(VM), "the bound agent's session goes on");
}

#[tokio::test]
async fn another_boot_ends_the_vm_and_is_not_let_in() {
    let world = World::new().await;
    let me = Identity::new();
    let agent = Agent::of(&world, &me, VM, 42).await.unwrap();
    drop(agent);
    let token = world.google.sign(&claims(VM, 42, &me.thumbprint, now()));
    let mut again = hello(token);
    again.boot_id = "boot-2".into();
    assert_eq!(Agent::open(&world, &me, again).await.err().unwrap().code(), Code::PermissionDenied);
    assert!(world.sessions.was_rebooted(&world.key(VM)));
}

#[tokio::test]
async fn an_agent_faster_than_the_list_is_asked_to_come_again() {
    let world = World::new().await;
    let me = Identity::new();
    world.cloud.remove(VM);
    assert_eq!(Agent::of(&world, &me, VM, 42).await.err().unwrap().code(), Code::Unavailable);
    assert!(world.refusals.lock().unwrap().is_empty(), "that is no refusal");
    assert_eq!(world.cloud.lists.load(Ordering::SeqCst), 2, "the older list was not enough, a fresh one was asked for");
    world.cloud.add(VM, 42);
    Agent::of(&world, &me, VM, 42).await.expect("now it is listed");
}

#[tokio::test]
async fn an_instance_no_list_ever_shows_is_refused_after_the_grace() {
    let world = World::with(caps(), SignedDuration::from_millis(300)).await;
    let me = Identity::new();
    world.cloud.remove(VM);
    for _ in 0..20 {
        let status = Agent::of(&world, &me, VM, 42).await.err().unwrap();
        if status.code() == Code::PermissionDenied {
            assert_eq!(world.refused("NotListed"), 1);
            return;
        }
        assert_eq!(status.code(), Code::Unavailable);
    }
    panic!("never refused");
}

#[tokio::test]
async fn a_certificate_without_its_key_is_worth_nothing() {
    let world = World::new().await;
    let victim = Identity::new();
    let _agent = Agent::of(&world, &victim, VM, 42).await.unwrap();
    let thief = Identity::impersonating(&victim);
    let token = world.google.sign(&claims(VM, 42, &victim.thumbprint, now()));
    assert!(Agent::open(&world, &thief, hello(token)).await.is_err());
    eventually("the handshake is refused", || world.refused("BadHandshake") == 1).await;
    assert!(world.connected(VM));
    assert!(channel(&world, &victim, "127.0.0.1").await.is_ok(), "with the key it works");
}

#[tokio::test]
async fn a_client_without_a_certificate_is_turned_away() {
    let world = World::new().await;
    // A TLS 1.3 client learns it with its first read: the count is what shows it.
    drop(dial(&world, None, "127.0.0.1").await);
    eventually("the handshake is refused", || world.refused("BadHandshake") == 1).await;
}

#[tokio::test]
async fn an_operator_that_does_not_know_its_runnervms_yet_refuses_nobody() {
    let world = World::starting().await;
    let me = Identity::new();
    assert_eq!(Agent::of(&world, &me, VM, 42).await.err().unwrap().code(), Code::Unavailable);
    assert!(world.refusals.lock().unwrap().is_empty());
    world.kube.deliver();
    Agent::of(&world, &me, VM, 42).await.expect("now it does");
}
