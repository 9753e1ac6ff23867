//! Trouble with GitHub: no answer is not an answer, and what GitHub forgot is replaced.

use std::time::Duration;

use miglet_e2e::{
    faults::{Action, Rule},
    github::Control,
    world::{World, WorldOptions},
};
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
    let api = world.api::<miglet_operator::crd::RunnerVm>();
    api.delete(idle, &kube::api::DeleteParams::default()).await?;
    let instances = miglet_e2e::world::Fleet { vms: std::collections::BTreeSet::from([held.vm.clone()]), ..fleet };
    world.holds(&instances, Duration::from_secs(5)).await?;
    world.github.restore_scope("acme");
    world.condition_is("linux", "CredentialsValid", "True", "Valid").await?;
    world.vm_gone(idle).await?;
    assert!(world.let_go(&held).await?.output.contains("finished"));
    world.vm_gone(&held.vm).await?;
    world.idle("linux", 2).await?;
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
