//! Who may speak for a VM: strangers with every kind of wrong proof against the real operator, on the identity of
//! instances that really run.

use std::{sync::Arc, time::Duration};

use miglet_e2e::{
    compute::{NoMachines, SignedBy},
    stranger::{Stranger, unused},
    world::{GROUP, Patience, World, WorldOptions},
};
use miglet_operator::crd::{Phase, RunnerVm};
use miglet_proto::v1::{AgentState, Report, operator_message::Message};
use serde_json::{Value, json};
use tonic::Code;

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// A world whose instances run but nothing on them calls in: the test is the agent. And the name of its one VM.
async fn silent_world() -> Result<(World, String)> {
    let world = World::start(WorldOptions { machines: Some(Arc::new(NoMachines)), ..WorldOptions::default() }).await?;
    world.apply_pool("linux", 1, json!({})).await?;
    let vm = booting(&world, "").await?;
    Ok((world, vm))
}

/// The one VM that boots and is not `old`.
async fn booting(world: &World, old: &str) -> Result<String> {
    let fresh = |names: &std::result::Result<Vec<String>, kube::Error>| {
        names.as_ref().is_ok_and(|names| names.iter().any(|name| name != old))
    };
    let names = Patience::default().until("a booting VM", || world.in_phase(Phase::Booting), fresh).await??;
    names.into_iter().find(|name| name != old).ok_or_else(|| "no booting VM".into())
}

async fn event_of_refusal(world: &World, reason: &str) -> Result {
    world.event(&["AttestationRefused", reason]).await.map(drop)
}

fn bent(claims: &Value, path: &str, value: Value) -> Result<Value> {
    let mut claims = claims.clone();
    *claims.pointer_mut(path).ok_or("no such claim")? = value;
    Ok(claims)
}

/// `(reason, token, whether Google signed it: then its RunnerVM is told)`.
fn wrong_tokens(world: &World, vm: &str, me: &Stranger) -> Result<Vec<(&'static str, String, bool)>> {
    let good = world.claims(vm, me)?;
    let now = good.get("iat").and_then(Value::as_i64).ok_or("no iat")?;
    let sign = |claims: &Value, by| world.compute.mint_identity_token(claims, by);
    let google = |path: &str, value: Value| {
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(sign(&bent(&good, path, value)?, SignedBy::Google)?)
    };
    let engine = |claim: &str| format!("/google/compute_engine/{claim}");
    Ok(vec![
        ("MalformedToken", "nonsense".to_owned(), false),
        ("WrongAlgorithm", sign(&good, SignedBy::Nobody)?, false),
        ("WrongAlgorithm", sign(&good, SignedBy::Hmac)?, false),
        ("UnknownKey", sign(&good, SignedBy::UnknownKey)?, false),
        ("BadSignature", sign(&good, SignedBy::Stranger)?, false),
        ("WrongAudience", world.token(vm, &Stranger::new()?)?, true),
        ("WrongAudience", google("/aud", json!(format!("elsewhere/{}", me.thumbprint())))?, true),
        ("WrongIssuer", google("/iss", json!("https://accounts.google.com.evil.test"))?, true),
        ("Expired", google("/exp", json!(now - 60))?, true),
        ("NotYetValid", google("/iat", json!(now + 600))?, true),
        ("OtherProject", google(&engine("project_id"), json!("evil-project"))?, true),
        ("OtherZone", google(&engine("zone"), json!("europe-west1-b"))?, true),
        ("OtherInstance", google(&engine("instance_id"), json!("4242"))?, true),
        ("OlderThanVm", google(&engine("instance_creation_timestamp"), json!(now - 3600))?, true),
        ("UnknownVm", google(&engine("instance_name"), json!("linux-no-such-vm"))?, false),
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn every_wrong_proof_is_refused_counted_and_seen_and_earns_nothing() -> Result {
    let (world, vm) = silent_world().await?;
    let me = Stranger::new()?;
    let mut told = Vec::new();
    for (reason, token, is_told) in wrong_tokens(&world, &vm, &me)? {
        let before = world.refused(reason).await?;
        let end = world.meet(&me, &token).await.err().ok_or_else(|| format!("{reason}: let in"))?;
        assert_eq!(end.code(), Code::PermissionDenied, "{reason}: {end}");
        assert_eq!(world.refused(reason).await?, before + 1, "{reason} is counted");
        told.extend(is_told.then_some(reason));
    }
    for reason in told {
        event_of_refusal(&world, reason).await?;
    }
    world.compute.create_foreign(GROUP, "somebody-elses")?;
    let foreign = || async { world.claims("somebody-elses", &me).is_ok() };
    Patience::default().until("the foreign instance", foreign, |there| *there).await?;
    let end =
        world.meet(&me, &world.token("somebody-elses", &me)?).await.err().ok_or("a foreign instance was let in")?;
    assert_eq!(end.code(), Code::PermissionDenied, "{end}");
    let status = world.api::<RunnerVm>().get(&vm).await?.status.unwrap_or_default();
    assert_eq!((status.agent, status.runner, world.registrations()), (None, None, 0), "nothing was bound");

    let mut agent = world.meet(&me, &world.token(&vm, &me)?).await?;
    let first = agent.next(Duration::from_secs(15)).await?;
    assert!(format!("{first:?}").contains("RegisterRunner"), "the true one gets its registration: {}", first.is_some());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bound_vm_is_nobody_elses_and_another_boot_ends_it() -> Result {
    let (world, vm) = silent_world().await?;
    let (one, other) = (Stranger::new()?, Stranger::new()?);
    let (one_token, other_token) = (world.token(&vm, &one)?, world.token(&vm, &other)?);
    let (first, second) = tokio::join!(world.meet(&one, &one_token), world.meet(&other, &other_token));
    assert!(first.is_ok() != second.is_ok(), "of two first contacts exactly one is let in: {first:?} {second:?}");
    let (owner, thief) = if first.is_ok() { (one, other) } else { (other, one) };
    let mut agent = first.or(second)?;
    event_of_refusal(&world, "KeyMismatch").await?;
    assert!(matches!(agent.next(Duration::from_secs(15)).await?, Some(Message::Command(_))));

    let end = world.meet(&thief, &world.token(&vm, &thief)?).await.err().ok_or("a second key was let in")?;
    assert_eq!(end.code(), Code::PermissionDenied, "{end}");
    assert_eq!(world.refused("KeyMismatch").await?, 2);
    assert!(agent.report(Report::default()).await, "the owner's session goes on");

    let owner = owner.booted("another-boot");
    let end = world.meet(&owner, &world.token(&vm, &owner)?).await.err().ok_or("another boot was let in")?;
    assert_eq!(end.code(), Code::PermissionDenied, "{end}");
    assert_eq!(world.refused("Rebooted").await?, 1);
    event_of_refusal(&world, "Rebooted").await?;
    world.vm_gone(&vm).await?;
    assert!(world.compute.instance(&vm).is_none() && world.github.runners().is_empty(), "nothing of it is left");
    booting(&world, &vm).await?;
    assert_eq!(world.registrations(), 1, "nobody else was given a registration");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_made_again_under_the_same_name_is_another_machine() -> Result {
    let (world, vm) = silent_world().await?;
    let me = Stranger::new()?;
    let agent = world.meet(&me, &world.token(&vm, &me)?).await?;
    let id = world.compute.instance(&vm).and_then(|instance| instance.id);
    world.compute.recreate_under_same_name(&vm)?;
    let again = || async { world.claims(&vm, &me).ok().zip(world.compute.instance(&vm)).and_then(|(_, i)| i.id) };
    Patience::default().until("the new instance", again, |now| now.is_some() && *now != id).await?;
    let end = world.meet(&me, &world.token(&vm, &me)?).await.err().ok_or("another instance was let in")?;
    assert_eq!(end.code(), Code::PermissionDenied, "{end}");
    assert_eq!(world.refused("OtherInstance").await?, 1);
    event_of_refusal(&world, "OtherInstance").await?;
    drop(agent);
    world.vm_gone(&vm).await?;
    assert_ne!(booting(&world, &vm).await?, vm);
    assert!(world.registrations() <= 1, "the new machine was given no registration");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_faster_than_its_groups_list_waits_and_one_that_is_never_listed_is_refused() -> Result {
    let world = World::start(WorldOptions::default()).await?;
    world.compute.stale_lists(Duration::from_millis(1200));
    world.apply_pool("linux", 2, json!({})).await?;
    world.idle("linux", 2).await?;
    assert!(world.operators.iter().any(|o| o.log().contains("does not list yet")), "nobody was too early");
    assert_eq!(world.refused_at_all().await?, 0, "being early is no offence");

    world.compute.stale_lists(Duration::from_secs(600));
    world.apply_pool("late", 1, json!({})).await?;
    world.event(&["AttestationRefused", "NotListed"]).await?;
    assert!(world.refused("NotListed").await? > 0);
    world.compute.stale_lists(Duration::ZERO);
    Ok(())
}

/// What a job can do to the VM it runs on, when it may do everything the runner may: it takes a token, the agent's key
/// and the boot id, destroys the runner's files and stays until it is let go.
fn takeover(metadata: &str, thief: &Stranger, loot: &str) -> String {
    let audience = format!("miglet-test/{}", thief.thumbprint());
    let url = format!("http://{metadata}/computeMetadata/v1/instance/service-accounts/default/identity");
    format!(
        "curl -sf -H 'Metadata-Flavor: Google' '{url}?audience={audience}&format=full' > {loot}/token\n\
         top=$PWD; while [ ! -e $top/run/agent.key ]; do top=$(dirname $top); done\n\
         cp $top/run/agent.key {loot}/agent.key\n\
         rm -f $top/runner/.runner $top/runner/.credentials*\n\
         touch {loot}/done\n\
         while [ ! -e {loot}/gate ]; do sleep 0.1; done\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_owns_its_vm_gets_no_second_registration_for_it() -> Result {
    let world = World::start(WorldOptions::default()).await?;
    world.apply_pool("linux", 1, json!({})).await?;
    let vm = world.idle("linux", 1).await?.into_iter().next().ok_or("no VM")?;
    let loot = tempfile::tempdir()?;
    let metadata = world.compute.instance(&vm).and_then(|i| i.metadata_host).ok_or("no metadata server")?;
    let bound = world.api::<RunnerVm>().get(&vm).await?.status.and_then(|s| s.agent).ok_or("not bound")?;
    let thief = Stranger::new()?.booted(&bound.boot_id);
    let steps = takeover(&metadata.to_string(), &thief, &loot.path().to_string_lossy());
    let id = world.github.queue_job(World::job(&steps));
    Patience::default().until("the job's raid", || async { loot.path().join("done").exists() }, |done| *done).await?;

    let token = std::fs::read_to_string(loot.path().join("token"))?;
    let end = world.meet(&thief, &token).await.err().ok_or("a job's own key was let in")?;
    assert_eq!(end.code(), Code::PermissionDenied, "{end}");
    event_of_refusal(&world, "KeyMismatch").await?;

    let impostor = Stranger::with_key(&loot.path().join("agent.key"))?.booted(&bound.boot_id);
    assert_eq!(impostor.thumbprint(), bound.key_thumbprint, "the job has the agent's very key");
    let mut voice = world.meet(&impostor, &world.token(&vm, &impostor)?).await?;
    let claims = [AgentState::Ready, AgentState::Idle].map(|s| Report { state: s.into(), ..Report::default() });
    for lie in claims.into_iter().chain([unused()]) {
        voice.report(lie).await;
    }
    while let Ok(Some(said)) = voice.next(Duration::from_secs(3)).await {
        assert!(!format!("{said:?}").contains("RegisterRunner"), "a second registration");
    }
    std::fs::write(loot.path().join("gate"), "")?;
    let job = world.github.wait_job(id, Duration::from_secs(60)).await?;
    assert!(!job.lost, "the job was not cut off by us: {job:?}");
    world.vm_gone(&vm).await?;
    let next = world.idle("linux", 1).await?;
    assert!(!next.contains(&vm));
    assert_eq!((world.registrations(), world.compute.created()), (2, 2), "one registration for each instance");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_kills_its_listener_ends_its_vm_and_nothing_more() -> Result {
    let world = World::start(WorldOptions::default()).await?;
    world.apply_pool("linux", 1, json!({})).await?;
    let vm = world.idle("linux", 1).await?.into_iter().next().ok_or("no VM")?;
    let kill = "top=$PWD; while [ ! -e $top/run/agent.key ]; do top=$(dirname $top); done\n\
                rm -f $top/runner/.runner $top/runner/.credentials*\n\
                for p in /proc/[0-9]*; do case \"$(tr '\\0' ' ' < $p/cmdline 2>/dev/null)\" in\n\
                $top/runner/bin/Runner.Listener*) kill -KILL ${p#/proc/};; esac; done; sleep 5";
    let id = world.github.queue_job(World::job(kill));
    world.github.wait_job(id, Duration::from_secs(60)).await?;
    world.vm_gone(&vm).await?;
    world.idle("linux", 1).await?;
    assert_eq!((world.registrations(), world.compute.created()), (2, 2), "one registration for each instance");
    Ok(())
}
