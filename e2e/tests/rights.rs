//! What the operator may do is what it does, no less and no more; what is secret stays out of sight; manifests apply.

use std::{collections::BTreeSet, time::Duration};

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{DeleteParams, Patch, PatchParams};
use miglet_e2e::{
    faults::{Action, Rule},
    world::{Patience, World, WorldOptions},
};
use miglet_operator::crd::RunnerPool;
use serde_json::{Value, json};

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Rights that no call shows: admission asks for the one when an owner's deletion is blocked, server-side apply for the
/// other when there is nothing to patch yet.
const IMPLIED: [&str; 2] = ["miglet.dev/runnerpools/finalizers update", "discovery.k8s.io/endpointslices create"];

fn words<'a>(rule: &'a Value, field: &str) -> Vec<&'a str> {
    rule.get(field).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect()
}

/// `group/resource verb` of every rule of the operator's roles.
async fn granted(world: &World) -> Result<BTreeSet<String>> {
    let mut granted = BTreeSet::new();
    for role in ["clusterrole/miglet-operator", "clusterrole/miglet-pool-credentials", "role/miglet-operator"] {
        let text = world.plane.kubectl(&["get", role, "--namespace", &world.system, "--output", "json"]).await?;
        let role: Value = serde_json::from_str(&text)?;
        for rule in role.get("rules").and_then(Value::as_array).into_iter().flatten() {
            for (group, resource) in
                words(rule, "apiGroups").iter().flat_map(|g| words(rule, "resources").into_iter().map(move |r| (*g, r)))
            {
                granted.extend(words(rule, "verbs").iter().map(|verb| format!("{group}/{resource} {verb}")));
            }
        }
    }
    Ok(granted)
}

/// A list of pools in which `odd` cannot be read, as if it had been stored under an older schema.
async fn unreadable(world: &World) -> Result<Action> {
    let text = world.plane.kubectl(&["get", "--raw", &pools(world)]).await?;
    let mut list: Value = serde_json::from_str(&text)?;
    *list.pointer_mut("/items/0/spec/replicas").ok_or("no pool in the list")? = json!("many");
    Ok(Action::Answer { status: 200, body: list, headers: Vec::new() })
}

fn pools(world: &World) -> String {
    format!("/apis/miglet.dev/v1alpha1/namespaces/{}/runnerpools", world.namespace)
}

async fn scale(world: &World, replicas: i32) -> Result {
    let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
    world.api::<RunnerPool>().patch("linux", &PatchParams::default(), &patch).await?;
    world.idle("linux", usize::try_from(replicas)?).await?;
    Ok(())
}

/// Somebody asks for a VM's diagnostics: what came is the user's to read, and goes with the VM. Where the operator may not
/// keep them, it says who can change that, and gives up.
async fn diagnostics(world: &World) -> Result {
    let vm = world.idle("linux", 2).await?.pop_first().ok_or("nobody")?;
    let forbidden =
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Forbidden", "code": 403});
    let forbidden = Action::Answer { status: 403, body: forbidden, headers: Vec::new() };
    world.proxy.faults().add(Rule::path("/configmaps", forbidden).method("POST").times(1));
    let ask = |id: &str| format!("miglet.dev/collect-diagnostics={id}");
    world.kubectl(&["annotate", "rvm", &vm, &ask("first")]).await?;
    let told = world.event(&["DiagnosticsNotKept", "--clusterrole=miglet-pool-credentials", &world.namespace]).await?;
    assert!(told.ends_with("another id"), "cut: {told}");
    world.kubectl(&["annotate", "rvm", &vm, &ask("second"), "--overwrite"]).await?;
    let name = format!("{vm}-diagnostics-second");
    world.event(&["DiagnosticsCollected", &name]).await?;
    let found = world.api::<ConfigMap>().get(&name).await?;
    assert!(found.data.iter().flatten().any(|(_, text)| !text.is_empty()), "{found:?}");
    assert!(found.metadata.owner_references.iter().flatten().any(|owner| owner.name == vm), "{found:?}");
    assert!(world.api::<ConfigMap>().get_opt(&format!("{vm}-diagnostics-first")).await?.is_none());
    Ok(())
}

/// A life in which everything happens once that needs a right.
async fn life() -> Result<World> {
    let mut world = World::start(WorldOptions { operator: false, ..WorldOptions::default() }).await?;
    world.apply_pool("odd", 0, json!({"spec": {"paused": true}})).await?;
    // The operator's first list shows the pool broken: its status is patched.
    let list = format!("{}?&limit={}", pools(&world), miglet_operator::kubernetes::PAGE);
    world.proxy.faults().add(Rule::path(list, unreadable(&world).await?).method("GET").times(1));
    // The first binding meets a conflict: the gateway reads the object again.
    let conflict =
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Conflict", "code": 409});
    let conflict = Action::Answer { status: 409, body: conflict, headers: Vec::new() };
    world.proxy.faults().add(Rule::path("/status?", conflict).method("PATCH").skip(1).times(1));
    world.start_operator().await?;
    world.condition_is("odd", "Ready", "False", "Unreadable").await?;
    world.apply_pool("linux", 2, json!({})).await?;
    world.idle("linux", 2).await?;
    diagnostics(&world).await?;
    let id = world.github.queue_job(World::job("echo hello"));
    world.github.wait_job(id, Duration::from_secs(60)).await?;
    world.idle("linux", 2).await?;
    // The same event twice is one series.
    for replicas in [1, 2, 1] {
        scale(&world, replicas).await?;
    }
    world.api::<Secret>().delete("acme-app", &DeleteParams::default()).await?;
    world.condition_is("linux", "CredentialsValid", "False", "SecretNotFound").await?;
    world.put_secret("acme-app").await?;
    let valid = |found: &std::result::Result<Option<(String, String, String)>, kube::Error>| {
        found.as_ref().is_ok_and(|c| c.as_ref().is_some_and(|(status, ..)| status == "True"))
    };
    let look = || world.condition("linux", "CredentialsValid");
    Patience::default().until("valid credentials", look, valid).await??;
    world.delete_pool("linux").await?;
    world.pool_gone("linux").await?;
    Ok(world)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_right_of_the_operator_is_used_and_no_call_of_it_is_forbidden() -> Result {
    let world = life().await?;
    let account = format!("system:serviceaccount:{}:miglet-operator", world.system);
    let calls: Vec<_> = world.plane.audit()?.into_iter().filter(|call| call.user == account).collect();
    let forbidden: Vec<_> = calls.iter().filter(|call| call.code == 403).collect();
    assert!(forbidden.is_empty(), "forbidden calls: {forbidden:?}");
    let used: BTreeSet<_> = calls
        .iter()
        .map(|call| {
            let sub = if call.subresource.is_empty() { String::new() } else { format!("/{}", call.subresource) };
            format!("{}/{}{sub} {}", call.group, call.resource, call.verb)
        })
        .collect();
    let granted = granted(&world).await?;
    let unused: Vec<_> =
        granted.iter().filter(|right| !used.contains(*right) && !IMPLIED.contains(&right.as_str())).collect();
    assert!(unused.is_empty(), "rights nobody uses: {unused:?}\nused: {used:?}");
    Ok(())
}

/// The JIT configs of every listener that runs now.
fn jit_configs(world: &World) -> BTreeSet<String> {
    let runners = world.github.runners();
    let variable = b"ACTIONS_RUNNER_INPUT_JITCONFIG=";
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let environments = processes.filter_map(|entry| std::fs::read(entry.path().join("environ")).ok());
    let found = environments.flat_map(|environment| {
        let entries = environment.split(|byte| *byte == 0).filter_map(|entry| entry.strip_prefix(variable.as_slice()));
        entries.map(|config| String::from_utf8_lossy(config).into_owned()).collect::<Vec<_>>()
    });
    if runners.is_empty() { BTreeSet::new() } else { found.collect() }
}

/// Everything that somebody who is not the operator or root on a VM can read.
async fn in_sight(world: &World) -> Result<Vec<(String, String)>> {
    let mut seen = Vec::new();
    for operator in &world.operators {
        seen.push(("the operator's log".to_owned(), operator.log()));
    }
    let objects = ["get", "runnervms,runnerpools,events,leases,endpointslices", "--all-namespaces", "--output", "json"];
    seen.push(("Kubernetes objects".to_owned(), world.plane.kubectl(&objects).await?));
    for instance in world.compute.all_instances() {
        let console = instance.console.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
        seen.push((format!("the console of {}", instance.name), console));
        seen.push((
            format!("the guest attributes of {}", instance.name),
            format!("{:?}", world.compute.guest_attributes(&instance.name, "")),
        ));
    }
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        seen.push((format!("arguments of {:?}", entry.path()), String::from_utf8_lossy(&line).into_owned()));
    }
    Ok(seen)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_rests_where_others_can_see_it() -> Result {
    let world = World::start(WorldOptions::default()).await?;
    world.apply_pool("linux", 2, json!({})).await?;
    world.idle("linux", 2).await?;
    let mut secrets = jit_configs(&world);
    assert!(secrets.len() >= 2, "the listeners' registrations were not found");
    let key: Vec<_> = world.app.private_key_pem.lines().filter(|line| !line.starts_with('-')).collect();
    secrets.extend(key.first().map(|line| (*line).to_owned()));
    secrets.insert(world.compute.token().to_owned());
    let held = world.hold_job().await?;
    let mut seen = in_sight(&world).await?;
    world.let_go(&held).await?;
    world.vm_gone(&held.vm).await?;
    world.idle("linux", 2).await?;
    secrets.extend(jit_configs(&world));
    seen.extend(in_sight(&world).await?);
    assert!(seen.iter().any(|(place, text)| place == "the operator's log" && text.contains("sending a command")));
    for (place, text) in &seen {
        for secret in &secrets {
            assert!(!text.contains(secret.as_str()), "a secret is in {place}");
        }
        // Installation tokens, and the private key of whatever form.
        if !place.starts_with("arguments") {
            assert!(!text.contains("ghs_") && !text.contains("PRIVATE KEY"), "a secret is in {place}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_manifests_and_samples_apply_on_a_real_api_server() -> Result {
    let world = World::start(WorldOptions { operator: false, ..WorldOptions::default() }).await?;
    let manifests = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests");
    for folder in ["base", "overlays/internal-load-balancer", "samples"] {
        let folder = format!("{manifests}/{folder}");
        world.plane.kubectl(&["apply", "--server-side", "--force-conflicts", "--kustomize", &folder]).await?;
    }
    let pools = world.plane.kubectl(&["get", "rpool", "--namespace", "ci", "--output", "name"]).await?;
    assert_eq!(pools.lines().count(), 3, "{pools}");
    Ok(())
}
