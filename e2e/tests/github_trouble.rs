//! Trouble with GitHub: no answer is not an answer, and what GitHub forgot is replaced.

use std::{collections::BTreeSet, time::Duration};

use kube::api::DeleteParams;
use miglet_e2e::{
    faults::{Action, Rule},
    github::{Control, Limits},
    world::{Fleet, Patience, World, WorldOptions},
};
use miglet_operator::crd::RunnerVm;
use serde_json::json;

type Result = std::result::Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// GitHub's API for runners of the worlds' organisation; the runners' own side is another.
const RUNNERS_API: &str = "/orgs/acme/actions";

fn answer(status: u16, headers: &[(&str, &str)]) -> Action {
    let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Action::Answer { status, body: json!({"message": "no"}), headers }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_github_refuses_fails_or_is_silent_nothing_is_deleted_and_afterwards_all_goes_on() -> Result {
    let world = World::start(WorldOptions::default()).await?;
    world.apply_pool("linux", 2, json!({})).await?;
    world.idle("linux", 2).await?;
    let held = world.hold_job().await?;
    let fleet = world.fleet().await?;
    let troubles = [
        ("403", answer(403, &[])),
        ("404", answer(404, &[])),
        ("429", answer(429, &[("retry-after", "1")])),
        ("500", answer(500, &[])),
        ("a broken connection", Action::Break),
        ("no answer", Action::Hang),
    ];
    for (name, trouble) in troubles {
        world.github.server().traffic.clear();
        world.github.server().faults.add(Rule::path(RUNNERS_API, trouble));
        world.holds(&fleet, Duration::from_secs(4)).await.map_err(|error| format!("{name}: {error}"))?;
        world.github.server().faults.clear();
        let asked = world.github.server().traffic.count(|exchange| exchange.path.contains(RUNNERS_API));
        assert!(asked > 0 || name == "no answer", "{name}: GitHub was not even asked");
    }
    assert!(world.let_go(&held).await?.output.contains("finished"));
    world.condition_is("linux", "CredentialsValid", "True", "Valid").await?;
    world.vm_gone(&held.vm).await?;
    world.idle("linux", 2).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_runners_that_is_stale_deletes_nothing() -> Result {
    let world = World::start(WorldOptions::default()).await?;
    world.github.control(Control::FreezeLists { frozen: true });
    world.apply_pool("linux", 2, json!({})).await?;
    world.idle("linux", 2).await?;
    let held = world.hold_job().await?;
    let fleet = world.fleet().await?;
    world.holds(&fleet, Duration::from_secs(8)).await?;
    world.github.control(Control::FreezeLists { frozen: false });
    assert!(world.let_go(&held).await?.output.contains("finished"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_lost_the_organisation_deletes_nothing_and_recovers() -> Result {
    let world = World::start(WorldOptions::default()).await?;
    world.apply_pool("linux", 2, json!({})).await?;
    world.idle("linux", 2).await?;
    let held = world.hold_job().await?;
    let fleet = world.fleet().await?;
    world.github.lose_scope("acme");
    let told = world.condition_is("linux", "CredentialsValid", "False", "ScopeNotVisible").await?;
    assert!(told.contains("nothing is deleted"), "{told}");
    world.holds(&fleet, Duration::from_secs(8)).await?;
    // A drain asked for now cannot be proven harmless: it waits, too.
    let idle = world.idle("linux", 1).await?;
    let idle = idle.first().ok_or("no idle runner")?;
    world.api::<RunnerVm>().delete(idle, &DeleteParams::default()).await?;
    let outside = Fleet { vms: BTreeSet::from([held.vm.clone()]), ..fleet };
    world.holds(&outside, Duration::from_secs(5)).await?;
    world.github.restore_scope("acme");
    world.condition_is("linux", "CredentialsValid", "True", "Valid").await?;
    world.vm_gone(idle).await?;
    assert!(world.let_go(&held).await?.output.contains("finished"));
    world.vm_gone(&held.vm).await?;
    world.idle("linux", 2).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_begins_as_the_organisation_is_lost_waits_for_proof() -> Result {
    let world = World::start(WorldOptions::default()).await?;
    world.apply_pool("linux", 2, json!({})).await?;
    let idle = world.idle("linux", 2).await?;
    let held = world.hold_job().await?;
    let idle = idle.iter().find(|name| **name != held.vm).ok_or("no idle runner")?;
    // Long enough idle for two sightings, and GitHub was read a moment ago: only the 404 itself is false.
    let fleet = world.fleet().await?;
    world.holds(&fleet, Duration::from_secs(3)).await?;
    world.github.lose_scope("acme");
    let api = world.api::<RunnerVm>();
    for name in [idle, &held.vm] {
        api.delete(name, &DeleteParams::default()).await?;
    }
    let outside = Fleet { vms: BTreeSet::new(), ..fleet };
    world.holds(&outside, Duration::from_secs(5)).await?;
    world.github.restore_scope("acme");
    world.vm_gone(idle).await?;
    assert!(world.let_go(&held).await?.output.contains("finished"));
    world.vm_gone(&held.vm).await?;
    world.idle("linux", 2).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn registrations_that_github_refuses_for_a_while_cost_no_vm() -> Result {
    let world = World::start(WorldOptions::default()).await?;
    world.github.server().faults.add(Rule::path("generate-jitconfig", answer(500, &[])));
    let quick = json!({"spec": {"lifecycle": {"registrationTimeoutSeconds": 3}}});
    world.apply_pool("linux", 2, quick).await?;
    let asked = async || world.github.server().traffic.count(|e| e.path.contains("generate-jitconfig"));
    Patience::default().until("both to ask GitHub", asked, |asked| *asked >= 2).await?;
    let fleet = world.fleet().await?;
    world.holds(&fleet, Duration::from_secs(6)).await?;
    world.github.server().faults.clear();
    world.idle("linux", 2).await?;
    assert_eq!(world.compute.created(), 2, "another VM would have fared no better");
    assert_eq!(world.github.runners().len(), 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_without_budget_waits_for_the_next_window() -> Result {
    let world = World::start(WorldOptions::default()).await?;
    let limits = Limits { primary: Some(4), window_seconds: 6, ..Limits::default() };
    world.github.control(Control::SetLimits { limits });
    world.apply_pool("linux", 3, json!({})).await?;
    world.idle("linux", 3).await?;
    assert_eq!(world.compute.created(), 3);
    let refused = world.github.server().traffic.count(|e| matches!(e.status, Some(403 | 429)));
    assert!(refused <= 2, "asked {refused} times although it was told to wait");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ghost_and_a_registration_that_github_removed_are_replaced() -> Result {
    let world = World::start(WorldOptions::default()).await?;
    world.apply_pool("linux", 2, json!({})).await?;
    let before: Vec<_> = world.idle("linux", 2).await?.into_iter().collect();
    let id_of = |vm: &str| world.github.runners().iter().find(|r| r.name.starts_with(vm)).map(|r| r.id);
    let (ghost, removed) = (before.first().ok_or("none")?, before.last().ok_or("none")?);
    world.github.ghost(id_of(ghost).ok_or("not registered")?);
    world.github.remove_idle_registration(id_of(removed).ok_or("not registered")?);
    world.vm_gone(ghost).await?;
    world.vm_gone(removed).await?;
    world.idle("linux", 2).await?;
    assert_eq!(world.github.runners().len(), 2);
    assert_eq!(world.compute.all_instances().len(), 2);
    Ok(())
}
