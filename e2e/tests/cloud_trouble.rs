//! Trouble with Google: no room, machines that die or never call in, answers that are none.

use std::{collections::BTreeSet, time::Duration};

use miglet_e2e::{
    compute::GroupSpec,
    faults::{Action, Rule},
    github::Control,
    world::{GROUP, Patience, World, WorldOptions, ZONE},
};
use serde_json::{Value, json};

type Result = std::result::Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// Google's API for the groups; tokens and keys are elsewhere.
const GROUPS_API: &str = "/compute/v1/";
const SECOND: &str = "ci-elsewhere";
const REGION: &str = "europe-west1";
const REGION_ZONES: [&str; 2] = ["europe-west1-b", "europe-west1-c"];

fn two_groups() -> Value {
    json!({"spec": {"compute": {"gce": {"groups": [
        {"name": GROUP, "zone": ZONE},
        {"name": SECOND, "region": REGION},
    ]}}}})
}

async fn world_with_two_groups() -> std::result::Result<World, miglet_e2e::world::Trouble> {
    let world = World::start(WorldOptions::default()).await?;
    world.add_group(GroupSpec::regional(SECOND, REGION, &REGION_ZONES))?;
    Ok(world)
}

async fn scale(world: &World, pool: &str, replicas: i32) -> std::result::Result<(), kube::Error> {
    let patch = kube::api::Patch::Merge(json!({"spec": {"replicas": replicas}}));
    world.api::<miglet_operator::crd::RunnerPool>().patch(pool, &kube::api::PatchParams::default(), &patch).await?;
    Ok(())
}

async fn instances_in(world: &World, group: &str, count: usize) -> Result {
    let look = async || world.compute.instances(group).len();
    Patience::default().until(&format!("{count} instances in {group}"), look, |seen| *seen == count).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_without_capacity_is_left_for_the_next_one_and_used_again_afterwards() -> Result {
    let world = world_with_two_groups().await?;
    world.compute.stockout(ZONE, true);
    world.apply_pool("linux", 2, two_groups()).await?;
    world.idle("linux", 2).await?;
    assert_eq!(world.compute.instances(SECOND).len(), 2);
    for zone in REGION_ZONES {
        world.compute.stockout(zone, true);
    }
    scale(&world, "linux", 3).await?;
    let told = world.condition_is("linux", "CapacityAvailable", "False", "Stockout").await?;
    assert!(told.contains("ci-linux") && told.contains(SECOND), "both groups and why: {told}");
    world.compute.stockout(ZONE, false);
    world.idle("linux", 3).await?;
    instances_in(&world, GROUP, 1).await?;
    instances_in(&world, SECOND, 2).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_used_up_quota_is_told_apart_and_the_pool_backs_off() -> Result {
    let world = world_with_two_groups().await?;
    world.compute.cpu_quota("us-central1", Some(2));
    let one_group = json!({});
    world.apply_pool("linux", 3, one_group).await?;
    let told = world.condition_is("linux", "CapacityAvailable", "False", "QuotaExceeded").await?;
    assert!(told.contains("CPUS"), "{told}");
    world.idle("linux", 1).await?;
    let asked = |exchange: &miglet_e2e::server::Exchange| exchange.path.contains("createInstances");
    let before = world.compute.server().traffic.count(asked);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let tried = world.compute.server().traffic.count(asked) - before;
    assert!(tried <= 3, "asked {tried} times in 5 s although it was told that there is no quota");
    world.compute.cpu_quota("us-central1", None);
    world.idle("linux", 3).await?;
    world.condition_is("linux", "CapacityAvailable", "True", "Available").await?;
    instances_in(&world, GROUP, 3).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_loses_power_or_is_preempted_is_replaced_and_its_job_is_told_as_lost() -> Result {
    let world = World::start(WorldOptions::default()).await?;
    world.apply_pool("linux", 3, json!({})).await?;
    let idle = world.idle("linux", 3).await?;
    let held = world.hold_job().await?;
    // The runner tells of a job at once, its hook a moment later whose it is: a machine that is off tells neither.
    let told = async || {
        let vms = world.vms().await.unwrap_or_default().into_iter();
        let jobs = vms.filter_map(|vm| vm.status?.job);
        jobs.map(|job| job.repository).collect::<BTreeSet<_>>()
    };
    Patience::default().until("the job's repository", told, |known| known.contains("acme/app")).await?;
    let mut victims = idle.iter().filter(|name| **name != held.vm);
    let (off, preempted) = (victims.next().ok_or("none")?, victims.next().ok_or("none")?);
    // GitHub holds on to a dead runner for a while: its instance does not wait for that, its object does.
    let runner = world.github.runners().into_iter().find(|r| r.name.starts_with(off.as_str())).ok_or("none")?;
    world.github.control(Control::RefuseDelete { id: runner.id, seconds: 6 });
    world.compute.power_off(off)?;
    world.compute.preempt(preempted)?;
    world.compute.power_off(&held.vm)?;
    let without = async || world.compute.all_instances().into_iter().map(|i| i.name).collect::<BTreeSet<_>>();
    Patience::default().until("the dead instance to go", without, |names| !names.contains(off)).await?;
    assert!(world.github.runners().iter().any(|r| r.id == runner.id), "GitHub still knew the runner");
    assert!(world.vms().await?.iter().any(|vm| vm.metadata.name.as_ref() == Some(off)), "its object waits");
    let told = world.event(&["JobLost", "acme/app", &held.vm]).await?;
    assert!(told.contains("powered off"), "why it was lost: {told}");
    for gone in [off, preempted, &held.vm] {
        world.vm_gone(gone).await?;
    }
    let renewed = world.idle("linux", 3).await?;
    assert!(renewed.is_disjoint(&idle));
    assert_eq!(world.github.runners().len(), 3, "registrations of the dead are gone");
    instances_in(&world, GROUP, 3).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_never_calls_in_is_replaced_counted_and_backed_off() -> Result {
    let world = World::start(WorldOptions::default()).await?;
    world.compute.hung_boots(1000);
    let quick = json!({"spec": {"lifecycle": {"registrationTimeoutSeconds": 2}}});
    world.apply_pool("linux", 1, quick).await?;
    let told = world.condition_is("linux", "RegistrationHealthy", "False", "RegistrationTimeout").await?;
    assert!(told.contains("never called in"), "{told}");
    world.event(&["RegistrationTimeout", "never called in"]).await?;
    let begun = tokio::time::Instant::now();
    let before = world.compute.created();
    let look = async || world.compute.created();
    Patience::default().until("two more tries", look, |now| *now >= before + 2).await?;
    assert!(begun.elapsed() > Duration::from_secs(5), "the second and third failure wait longer");
    assert!(world.compute.all_instances().len() <= 2, "hung machines are deleted");
    world.compute.hung_boots(0);
    world.idle("linux", 1).await?;
    instances_in(&world, GROUP, 1).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_words_of_an_agent_that_cannot_call_in_reach_the_pools_condition() -> Result {
    let world = World::start(WorldOptions::default()).await?;
    let nobody = GroupSpec::zonal(SECOND, ZONE).metadata("miglet-endpoint", "https://127.0.0.1:9");
    world.compute.add_group(&nobody.metadata("miglet-ca", world.ca()).metadata("miglet-audience", "miglet-test"));
    let patch = json!({"spec": {
        "lifecycle": {"registrationTimeoutSeconds": 5},
        "compute": {"gce": {"groups": [{"name": SECOND, "zone": ZONE}]}},
    }});
    world.apply_pool("linux", 1, patch).await?;
    let told = world.condition_is("linux", "RegistrationHealthy", "False", "RegistrationTimeout").await?;
    assert!(told.contains("127.0.0.1:9"), "what the agent could not reach: {told}");
    Ok(())
}

fn answer(status: u16, reason: &str) -> Action {
    let error = json!({"code": status, "message": reason, "errors": [{"reason": reason, "message": reason}]});
    Action::Answer { status, body: json!({"error": error}), headers: Vec::new() }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_compute_refuses_fails_or_is_silent_nothing_is_deleted_and_afterwards_all_goes_on() -> Result {
    let world = World::start(WorldOptions::default()).await?;
    world.apply_pool("linux", 2, json!({})).await?;
    world.idle("linux", 2).await?;
    let held = world.hold_job().await?;
    let fleet = world.fleet().await?;
    let troubles = [
        ("403", answer(403, "forbidden")),
        ("403 for the rate", answer(403, "rateLimitExceeded")),
        ("429", answer(429, "rateLimitExceeded")),
        ("500", answer(500, "backendError")),
        ("a broken connection", Action::Break),
        ("no answer", Action::Hang),
    ];
    for (name, trouble) in troubles {
        world.compute.server().faults.add(Rule::path(GROUPS_API, trouble));
        world.holds(&fleet, Duration::from_secs(4)).await.map_err(|error| format!("{name}: {error}"))?;
        world.compute.server().faults.clear();
    }
    assert!(world.let_go(&held).await?.output.contains("finished"));
    world.vm_gone(&held.vm).await?;
    world.idle("linux", 2).await?;
    instances_in(&world, GROUP, 2).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_is_stale_or_empty_once_deletes_nothing_and_leaks_nothing() -> Result {
    let world = World::start(WorldOptions::default()).await?;
    world.compute.stale_lists(Duration::from_millis(1200));
    world.apply_pool("linux", 2, json!({})).await?;
    world.idle("linux", 2).await?;
    let held = world.hold_job().await?;
    let fleet = world.fleet().await?;
    for _ in 0..2 {
        let empty = Action::Answer { status: 200, body: json!({}), headers: Vec::new() };
        world.compute.server().faults.add(Rule::path("listManagedInstances", empty).times(1));
        world.holds(&fleet, Duration::from_secs(3)).await?;
    }
    assert!(world.let_go(&held).await?.output.contains("finished"));
    world.vm_gone(&held.vm).await?;
    world.idle("linux", 2).await?;
    instances_in(&world, GROUP, 2).await?;
    assert_eq!(world.compute.created(), 3, "one VM for each place and one replacement");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_fails_costs_nobody_a_runner() -> Result {
    let world = World::start(WorldOptions::default()).await?;
    world.apply_pool("linux", 2, json!({})).await?;
    world.idle("linux", 2).await?;
    let held = world.hold_job().await?;
    let fleet = world.fleet().await?;
    let refusal = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "no", "code": 500,
        "reason": "InternalError"});
    for action in [Action::Answer { status: 500, body: refusal, headers: Vec::new() }, Action::Hang] {
        // The Lease stays reachable: losing it is another story.
        for path in ["/apis/miglet.dev", "/api/v1"] {
            world.proxy.faults().add(Rule::path(path, action.clone()));
        }
        world.holds(&fleet, Duration::from_secs(5)).await?;
        world.proxy.faults().clear();
    }
    assert!(world.let_go(&held).await?.output.contains("finished"));
    world.vm_gone(&held.vm).await?;
    world.idle("linux", 2).await?;
    instances_in(&world, GROUP, 2).await?;
    Ok(())
}
