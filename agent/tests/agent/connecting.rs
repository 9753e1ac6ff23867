//! The way to the operator: whom the agent trusts, what it tells when it gets nowhere, and that it tries again.

use std::time::Duration;

use tonic::Status;

use crate::{
    metadata::Trouble,
    operator::{Identity, Operator},
    world::{RUNNER, World, eventually},
};

#[tokio::test]
async fn a_refused_agent_says_why_and_keeps_trying() {
    let world = World::new(RUNNER).await;
    let refusal = Status::permission_denied("instance 7 is in no list");
    let operator = Operator::refusing(&world.identity, "127.0.0.1:0", Some(refusal)).await;
    let mut agent = world.agent(&operator);
    eventually("told", || {
        world.metadata.statuses.lock().unwrap().iter().any(|s| s.contains("instance 7 is in no list"))
    })
    .await;
    let address = operator.address.to_string();
    operator.stop().await;
    let mut operator = Operator::start(&world.identity, &address).await;
    operator.session().await;
    assert!(agent.try_wait().unwrap().is_none());
    let audiences = world.metadata.audiences.lock().unwrap().clone();
    assert!(audiences.len() >= 2 && audiences.windows(2).all(|w| w[0] == w[1]), "a fresh token for each attempt");
}

#[tokio::test]
async fn a_gateway_nobody_vouches_for_is_told_and_tried_again() {
    let world = World::new(RUNNER).await;
    for (identity, why) in [
        // Its CA has the name of the right one, and another key.
        (Identity::new(), "BadSignature"),
        (Identity::valid(2000..2001), "certificate expired"),
        (Identity::valid(2090..2100), "certificate not valid yet"),
    ] {
        let impostor = Operator::start(&identity, "127.0.0.1:0").await;
        let address = impostor.address.to_string();
        let mut agent = if why == "BadSignature" {
            world.agent(&impostor)
        } else {
            world.introduce(&impostor);
            world.metadata.attributes.lock().unwrap().insert("miglet-ca".into(), identity.ca.clone());
            world.spawn()
        };
        eventually(why, || world.told(why)).await;
        assert!(world.told(&format!("could not connect to the operator at {address}")));
        assert!(agent.try_wait().unwrap().is_none(), "it may be repaired");
        if why == "BadSignature" {
            impostor.stop().await;
            Operator::start(&world.identity, &address).await.session().await;
        }
    }
    assert!(!world.told("this machine's clock"), "the clock is not to blame");
}

#[tokio::test]
async fn a_clock_wrong_by_an_hour_is_blamed_for_the_certificate_it_refuses() {
    let world = World::new(RUNNER).await;
    let identity = Identity::valid(2090..2100);
    let operator = Operator::start(&identity, "127.0.0.1:0").await;
    world.introduce(&operator);
    world.metadata.attributes.lock().unwrap().insert("miglet-ca".into(), identity.ca.clone());
    *world.metadata.date.lock().unwrap() = Some(http_date(3600));
    let _agent = world.spawn();
    eventually("told", || world.told("certificate not valid yet")).await;
    let statuses = world.metadata.statuses.lock().unwrap().clone();
    let said = statuses.iter().find(|status| status.contains("not valid yet")).unwrap();
    let off = said.split_once("this machine's clock is ").expect(said).1.split_once(' ').unwrap().0;
    assert!((3590..=3600).contains(&off.parse::<u32>().unwrap()), "{said}");
    assert!(said.contains("s behind the metadata server's: start a time service"), "{said}");
}

#[tokio::test]
async fn a_clock_wrong_by_an_hour_alone_keeps_no_agent_from_its_work() {
    let world = World::new(RUNNER).await;
    *world.metadata.date.lock().unwrap() = Some(http_date(-3600));
    let mut operator = world.operator().await;
    let (_agent, _session) = world.idle(&mut operator).await;
}

/// So many seconds from now, as in a Date header.
fn http_date(offset_seconds: i64) -> String {
    let then = (miglet_agent::clock::unix_ms() / 1000 + offset_seconds).cast_unsigned();
    httpdate::fmt_http_date(std::time::UNIX_EPOCH + Duration::from_secs(then))
}

#[tokio::test]
async fn a_metadata_server_in_trouble_is_told_and_waited_for() {
    let world = World::new(RUNNER).await;
    let mut operator = world.operator().await;
    let set = |trouble| *world.metadata.trouble.lock().unwrap() = trouble;
    let troubles = [
        (Trouble::Status(404), "404 Not Found"),
        (Trouble::Status(503), "503 Service Unavailable"),
        (Trouble::Garbage, "invalid utf-8"),
        (Trouble::Endless, "length limit exceeded"),
        (Trouble::Silence, "no answer in 10 s"),
    ];
    set(Some(Trouble::Status(404)));
    let mut agent = world.agent(&operator);
    // First for the settings, then for the identity token.
    for stage in ["instance/attributes/", "service-accounts/default/identity"] {
        for (trouble, why) in troubles {
            set(Some(trouble));
            eventually(&format!("{stage}: {why}"), || {
                world.log_lines().iter().any(|line| line.contains(stage) && line.contains(why))
            })
            .await;
        }
        assert!(agent.try_wait().unwrap().is_none());
        if stage.starts_with("instance") {
            // The agent is let in, and loses its session when the server is ill again.
            set(None);
            drop(operator.session().await);
            set(Some(Trouble::Status(404)));
            let address = operator.address.to_string();
            operator.stop().await;
            operator = Operator::start(&world.identity, &address).await;
        }
    }
    set(None);
    operator.session().await;
}
