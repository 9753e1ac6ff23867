//! What users get wrong: each mistake is told where they look, with what to do, and stays with the pool that has it.

use std::collections::BTreeMap;

use k8s_openapi::{
    ByteString, api::core::v1::Secret, apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api,
    api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams},
};
use miglet_e2e::{
    compute::GroupSpec,
    control_plane::product_crds,
    github::Control,
    world::{GROUP, Patience, Plane, Trouble, World, WorldOptions, ZONE},
};
use miglet_operator::crd::RunnerPool;
use serde_json::{Value, json};

type Result = std::result::Result<(), Trouble>;

async fn secret(world: &World, name: &str, pairs: &[(&str, &str)]) -> Result {
    let data = pairs.iter().map(|(key, value)| ((*key).to_owned(), ByteString(value.as_bytes().to_vec())));
    let metadata = ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() };
    let secret = Secret { metadata, data: Some(data.collect::<BTreeMap<_, _>>()), ..Secret::default() };
    world.api::<Secret>().create(&PostParams::default(), &secret).await?;
    Ok(())
}

fn credentials(secret: &str) -> Value {
    json!({"spec": {"github": {"credentialsSecretRef": {"name": secret}}}})
}

fn in_group(name: &str) -> Value {
    json!({"spec": {"compute": {"gce": {"groups": [{"name": name, "zone": ZONE}]}}}})
}

/// Fails when a condition does not say what to do.
async fn says(world: &World, pool: &str, (kind, reason): (&str, &str), words: &[&str]) -> Result {
    let told = world.condition_is(pool, kind, "False", reason).await.map_err(|error| format!("{pool}: {error}"))?;
    for word in words {
        assert!(told.contains(word), "{pool} should mention {word}: {told}");
    }
    let ready = world.condition_is(pool, "Ready", "False", reason).await?;
    assert_eq!(ready, told, "Ready repeats it");
    world.condition_is(pool, "Stalled", "True", reason).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_credentials_and_names_are_told_and_other_pools_go_on() -> Result {
    let world = World::start(WorldOptions::default()).await?;
    secret(&world, "empty", &[("password", "x")]).await?;
    let key = "not a key";
    let pairs = [("github_app_id", "1"), ("github_app_installation_id", "2"), ("github_app_private_key", key)];
    secret(&world, "no-key", &pairs).await?;
    secret(&world, "stranger", &[("github_token", "ghp_unknown")]).await?;
    world.apply_pool("missing", 1, credentials("nowhere")).await?;
    world.apply_pool("empty", 1, credentials("empty")).await?;
    world.apply_pool("no-key", 1, credentials("no-key")).await?;
    world.apply_pool("stranger", 1, credentials("stranger")).await?;
    world.apply_pool("group", 1, json!({"spec": {"github": {"runnerGroup": "nobody"}}})).await?;
    let elsewhere = format!("{}/nobody", world.github.url());
    world.apply_pool("elsewhere", 1, json!({"spec": {"github": {"url": elsewhere}}})).await?;
    let nothing = format!("{}/enterprises", world.github.url());
    world.apply_pool("nothing", 1, json!({"spec": {"github": {"url": nothing}}})).await?;
    world.apply_pool("good", 1, json!({})).await?;
    let valid = "CredentialsValid";
    says(&world, "missing", (valid, "SecretNotFound"), &["nowhere", "github_app_private_key", "github_token"]).await?;
    says(&world, "empty", (valid, "SecretMalformed"), &["empty", "github_app_id"]).await?;
    says(&world, "no-key", (valid, "SecretMalformed"), &["github_app_private_key", "PEM"]).await?;
    says(&world, "stranger", (valid, "CredentialsRefused"), &["check the Secret"]).await?;
    says(&world, "group", (valid, "RunnerGroupNotFound"), &["nobody", "spec.github.runnerGroup"]).await?;
    says(&world, "elsewhere", (valid, "ScopeNotVisible"), &["url"]).await?;
    says(&world, "nothing", (valid, "InvalidURL"), &["spec.github.url", "ORGANIZATION"]).await?;
    world.idle("good", 1).await?;
    assert_eq!(world.compute.created(), 1, "nothing was made for a pool that cannot work");
    // Mended by a user, with nothing but the Secret.
    world.put_secret("nowhere").await?;
    world.idle("missing", 1).await?;
    let refused = world.apply_pool("ftp", 1, json!({"spec": {"github": {"url": "ftp://github.com/acme"}}})).await;
    let refused = refused.err().ok_or("a bad URL was accepted")?.to_string();
    assert!(refused.contains("spec.github.url"), "{refused}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_the_operator_may_not_read_is_told_with_the_command_that_helps() -> Result {
    let world = World::start(WorldOptions::default()).await?;
    world.apply_pool("linux", 1, json!({})).await?;
    world.idle("linux", 1).await?;
    let fleet = world.fleet().await?;
    let binding = format!("miglet-pool-credentials-{}", world.system);
    world.plane.kubectl(&["delete", "clusterrolebinding", &binding]).await?;
    let told = world.condition_is("linux", "CredentialsValid", "False", "SecretForbidden").await?;
    world.holds(&fleet, std::time::Duration::from_secs(3)).await?;
    let command = told.split('`').nth(1).ok_or_else(|| format!("no command in: {told}"))?;
    let words: Vec<_> = command.split_whitespace().skip(1).collect();
    world.plane.kubectl(&words).await?;
    world.condition_is("linux", "CredentialsValid", "True", "Valid").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_that_could_harm_jobs_are_refused_each_with_its_reason() -> Result {
    let world = World::start(WorldOptions::default()).await?;
    let group = |name: &str| GroupSpec::zonal(name, ZONE);
    let policy = |field: &str, value: &str| json!({"updatePolicy": {field: value}});
    let check = "https://www.googleapis.com/compute/v1/projects/acme-ci/global/healthChecks/a";
    let healing = json!({"autoHealingPolicies": [{"healthCheck": check, "initialDelaySec": 300}]});
    let state = json!({"statefulPolicy": {"preservedState": {"disks": {"work": {"autoDelete": "NEVER"}}}}});
    let repair = json!({"instanceLifecyclePolicy": {"defaultActionOnFailure": "REPAIR"}});
    let scaler = format!("https://www.googleapis.com/compute/v1/projects/acme-ci/zones/{ZONE}/autoscalers/a");
    let cases = [
        ("scaled", group("scaled").settings(json!({"status": {"autoscaler": scaler}})), "AutoscalerOn", "delete it"),
        ("repaired", group("repaired").settings(repair), "RepairsOn", "DO_NOTHING"),
        ("rolled", group("rolled").settings(policy("type", "PROACTIVE")), "ProactiveUpdates", "OPPORTUNISTIC"),
        ("healed", group("healed").settings(healing), "AutohealingOn", "remove the policy"),
        ("stateful", group("stateful").settings(state), "Stateful", "must not be"),
        ("nameless", group("nameless").service_account(None), "NoServiceAccount", "service account"),
    ];
    for (name, spec, _, _) in &cases {
        world.add_group(spec.clone())?;
        world.apply_pool(name, 1, in_group(name)).await?;
    }
    world.compute.add_group(&group("mute"));
    world.apply_pool("mute", 1, in_group("mute")).await?;
    world.apply_pool("nowhere", 1, in_group("nowhere")).await?;
    world.apply_pool("good", 1, json!({})).await?;
    for (name, _, reason, word) in &cases {
        says(&world, name, ("GroupHealthy", reason), &[name, word]).await?;
    }
    says(&world, "mute", ("GroupHealthy", "MissingMetadata"), &["miglet-endpoint"]).await?;
    says(&world, "nowhere", ("GroupHealthy", "GroupNotFound"), &["nowhere"]).await?;
    world.idle("good", 1).await?;
    assert_eq!(world.compute.created(), world.compute.instances(GROUP).len(), "nothing was made in a harmful group");
    Ok(())
}

/// The definition of RunnerPools, with any text allowed as deletion policy.
fn loosened(crds: &[CustomResourceDefinition]) -> std::result::Result<CustomResourceDefinition, Trouble> {
    let pools = crds.iter().find(|crd| crd.spec.names.kind == "RunnerPool").ok_or("no RunnerPool")?;
    let mut value = serde_json::to_value(pools)?;
    let field = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/deletionPolicy";
    let policy = value.pointer_mut(field).and_then(Value::as_object_mut).ok_or("no deletionPolicy")?;
    policy.remove("enum");
    Ok(serde_json::from_value(value)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_cannot_be_read_says_so_itself_and_stops_nobody_else() -> Result {
    let mut world =
        World::start(WorldOptions { plane: Plane::Own, operator: false, ..WorldOptions::default() }).await?;
    let crds = product_crds()?;
    world.plane.apply_crds(&[loosened(&crds)?]).await?;
    // Served a moment after it is accepted.
    let stored = async || world.apply_pool("odd", 1, json!({"spec": {"deletionPolicy": "Someday"}})).await;
    miglet_e2e::world::Patience::default().until("the odd pool to be stored", stored, |r| r.is_ok()).await??;
    world.plane.apply_crds(&crds).await?;
    world.start_operator().await?;
    world.apply_pool("good", 1, json!({})).await?;
    let pool = || async {
        let odd = world.plane.kubectl(&["get", "rpool", "odd", "-n", &world.namespace, "-o", "json"]).await?;
        let odd: Value = serde_json::from_str(&odd)?;
        Ok::<_, Trouble>(odd.pointer("/status/conditions").cloned().unwrap_or_default().to_string())
    };
    let told = |seen: &std::result::Result<String, Trouble>| seen.as_ref().is_ok_and(|s| s.contains("Unreadable"));
    let said = miglet_e2e::world::Patience::default().until("the odd pool to tell", pool, told).await??;
    assert!(said.contains("Someday") && said.contains("fix or delete it"), "{said}");
    world.idle("good", 1).await?;
    // Mended, it is a pool like any other.
    let mend = Patch::Merge(json!({"spec": {"deletionPolicy": "Delete"}}));
    let api = Api::<kube::api::DynamicObject>::namespaced_with(
        world.client.clone(),
        &world.namespace,
        &kube::api::ApiResource::erase::<RunnerPool>(&()),
    );
    api.patch("odd", &PatchParams::default(), &mend).await?;
    world.idle("odd", 1).await?;
    api.delete("odd", &DeleteParams::default()).await?;
    world.pool_gone("odd").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_that_github_will_refuse_or_refuses_is_told_with_the_day() -> Result {
    let world = World::start(WorldOptions::default()).await?;
    let old = |version: &str| json!({"spec": {"runner": {"version": version}}});
    let current = async |reason| world.condition_is("old", "RunnerVersionCurrent", "False", reason).await;
    world.apply_pool("old", 0, old("2.300.0")).await?;
    let told = current("Outdated").await?;
    assert!(told.contains("30 days after it was replaced") && told.contains("set spec.runner.version"), "{told}");
    world.github.control(Control::EndSupport { at: 4_102_444_800 });
    world.kubectl(&["patch", "rpool", "old", "--type=merge", "--patch", &old("2.301.0").to_string()]).await?;
    let says = async || current("Outdated").await.unwrap_or_default();
    let dated = |told: &String| told.contains("GitHub gives it jobs until 2100-01-01");
    Patience::default().until("the day", says, dated).await?;
    world.github.control(Control::EndSupport { at: 0 });
    world.kubectl(&["patch", "rpool", "old", "--type=merge", "--patch", &old("2.302.0").to_string()]).await?;
    current("Refused").await?;
    world.github.control(Control::DeprecateRunners { deprecated: true });
    world.apply_pool("turned-away", 1, json!({})).await?;
    let told = world.condition_is("turned-away", "RunnerVersionCurrent", "False", "Refused").await?;
    assert!(told.contains("no longer accepts this version"), "{told}");
    Ok(())
}
