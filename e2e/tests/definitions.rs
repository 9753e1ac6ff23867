//! What the API server takes for a RunnerPool and a RunnerVM, and what it tells about them.

#![allow(
    clippy::panic,
    clippy::indexing_slicing,
    reason = "clippy takes functions beside the tests of an integration test for production code"
)]

use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, ResourceExt,
    api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams},
};
use miglet_e2e::control_plane::ControlPlane;
use miglet_operator::crd::{RunnerPool, RunnerVm};
use serde_json::{Value, json};

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn pool() -> Value {
    json!({
        "apiVersion": "miglet.dev/v1alpha1", "kind": "RunnerPool", "metadata": {"name": "linux"},
        "spec": {
            "replicas": 3, "paused": false, "deletionPolicy": "Delete", "limits": {"max": 50},
            "github": {
                "url": "https://github.com/acme", "credentialsSecretRef": {"name": "acme-app"},
                "runnerGroup": "default", "labels": ["self-hosted", "linux"],
            },
            "compute": {"gce": {"project": "acme-ci", "groups": [{"name": "ci-linux", "zone": "us-central1-a"}]}},
            "template": {"metadata": {"labels": {"team": "build"}, "annotations": {"note": "x"}}},
            "lifecycle": {},
        },
    })
}

fn vm() -> Value {
    let pool = pool();
    let part = |pointer: &str| pool.pointer(pointer).cloned().unwrap_or_default();
    json!({
        "apiVersion": "miglet.dev/v1alpha1", "kind": "RunnerVM", "metadata": {"name": "linux-bcdfgh-bcdfghjk"},
        "spec": {
            "pool": {"name": "linux", "uid": "7b9e2c44-0000-4000-8000-000000000000"},
            "project": "acme-ci", "group": part("/spec/compute/gce/groups/0"),
            "github": part("/spec/github"), "template": part("/spec/template"), "lifecycle": {},
        },
    })
}

fn set(mut object: Value, pointer: &str, value: Value) -> Value {
    if value == Value::Null {
        let (parent, key) = pointer.rsplit_once('/').unwrap_or_default();
        drop(object.pointer_mut(parent).and_then(Value::as_object_mut).and_then(|parent| parent.remove(key)));
        return object;
    }
    let mut place = &mut object;
    for part in pointer.split('/').skip(1) {
        place = match part.parse::<usize>() {
            Ok(index) if place.is_array() => place.get_mut(index).unwrap_or_else(|| panic!("no {part} in {pointer}")),
            _ => &mut place[part],
        };
    }
    *place = value;
    object
}

fn letters(count: usize) -> Value {
    "a".repeat(count).into()
}

fn numbered(count: usize, item: impl Fn(usize) -> Value) -> Value {
    (0..count).map(item).collect()
}

fn map(count: usize, value: &str) -> Value {
    (0..count).map(|i| (format!("key-{i}"), Value::from(value))).collect::<serde_json::Map<_, _>>().into()
}

struct Definitions {
    pools: Api<DynamicObject>,
    vms: Api<DynamicObject>,
}

impl Definitions {
    async fn served() -> Result<Self> {
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let client = ControlPlane::shared().await?.admin().await?;
        let namespace: Namespace = serde_json::from_value(json!({"metadata": {"generateName": "definitions-"}}))?;
        let namespace = Api::<Namespace>::all(client.clone()).create(&PostParams::default(), &namespace).await?;
        let namespace = namespace.name_any();
        let pools = ApiResource::erase::<RunnerPool>(&());
        let vms = ApiResource::erase::<RunnerVm>(&());
        Ok(Self {
            pools: Api::namespaced_with(client.clone(), &namespace, &pools),
            vms: Api::namespaced_with(client, &namespace, &vms),
        })
    }

    fn of(&self, object: &Value) -> &Api<DynamicObject> {
        if object["kind"] == "RunnerPool" { &self.pools } else { &self.vms }
    }

    /// What the API server says to a new object, without keeping it.
    async fn judge(&self, object: &Value) -> Result<std::result::Result<DynamicObject, String>> {
        let params = PostParams { dry_run: true, ..PostParams::default() };
        let parsed: DynamicObject = serde_json::from_value(object.clone())?;
        answer(self.of(object).create(&params, &parsed).await)
    }
}

fn answer<T>(result: kube::Result<T>) -> Result<std::result::Result<T, String>> {
    match result {
        Ok(object) => Ok(Ok(object)),
        Err(kube::Error::Api(status)) if status.code == 422 => Ok(Err(status.message.clone())),
        Err(error) => Err(error.into()),
    }
}

/// What a field takes, what it does not, and the words of the refusal.
type Case = (&'static str, Vec<Value>, Vec<Value>, &'static str);

fn github() -> Vec<Case> {
    let urls = [
        "https://github.com/enterprises/acme",
        "https://ghes.acme.example:8443/acme",
        "http://127.0.0.1:8080/acme",
        "http://localhost/acme",
    ];
    let wrong = ["", "github.com/acme", "https://github.com", "https://github.com/", "https://github.com/a/b/c"];
    let wrong =
        wrong.into_iter().chain(["http://github.com/acme", "https://github.com/acme?x=y", "https://u:p@github.com/a"]);
    let long = json!(format!("https://github.com/{}", "a".repeat(237)));
    let longer = json!(format!("https://github.com/{}", "a".repeat(238)));
    vec![
        ("/spec/github/url", urls.map(Value::from).to_vec(), wrong.map(Value::from).collect(), "spec.github.url"),
        ("/spec/github/url", vec![long], vec![longer], "256"),
        ("/spec/github/credentialsSecretRef/name", vec![letters(253)], vec![letters(254), json!("")], "name"),
        ("/spec/github/credentialsSecretRef", vec![], vec![Value::Null, json!({})], "Required value"),
        ("/spec/github/runnerGroup", vec![letters(128), Value::Null], vec![letters(129), json!("")], "runnerGroup"),
        ("/spec/github/labels/0", vec![letters(64)], vec![letters(65), json!("")], "labels"),
        ("/spec/github/labels", vec![numbered(20, letters_from)], vec![numbered(21, letters_from)], "at most 20"),
        ("/spec/github/labels", vec![], vec![json!([]), Value::Null, json!(["linux", "linux"])], "labels"),
    ]
}

fn letters_from(i: usize) -> Value {
    letters(i + 1)
}

fn template_and_lifecycle() -> Vec<Case> {
    let own = json!({"miglet.dev/pool": "other"});
    let key = |length: usize| json!({"k".repeat(length): "x"});
    let mut cases: Vec<Case> = vec![
        ("/spec/template/metadata/labels", vec![map(8, "x"), key(63)], vec![map(9, "x")], "at most 8"),
        ("/spec/template/metadata/labels", vec![map(1, &"v".repeat(63))], vec![map(1, &"v".repeat(64))], "63"),
        (
            "/spec/template/metadata/labels",
            vec![],
            vec![own.clone(), key(64)],
            "template labels must have keys of at most 63 characters that do not start with miglet.dev/",
        ),
        ("/spec/template/metadata/annotations", vec![map(4, "x"), key(63)], vec![map(5, "x")], "at most 4"),
        ("/spec/template/metadata/annotations", vec![map(1, &"v".repeat(128))], vec![map(1, &"v".repeat(129))], "128"),
        (
            "/spec/template/metadata/annotations",
            vec![],
            vec![own, key(64)],
            "template annotations must have keys of at most 63 characters that do not start with miglet.dev/",
        ),
    ];
    for (field, most) in [
        ("/spec/lifecycle/launchTimeoutSeconds", 86_400),
        ("/spec/lifecycle/registrationTimeoutSeconds", 86_400),
        ("/spec/lifecycle/heartbeatTimeoutSeconds", 86_400),
        ("/spec/lifecycle/maxLifetimeSeconds", 2_592_000),
        ("/spec/lifecycle/terminationGracePeriodSeconds", 2_592_000),
    ] {
        cases.push((field, vec![json!(1), json!(most)], vec![json!(0), json!(most + 1), json!("1s")], "Seconds"));
    }
    cases
}

fn group(pointer: &'static str) -> Vec<Case> {
    let one = "exactly one of zone and region must be set";
    let place = |zone: Value, region: Value| json!({"name": "g", "zone": zone, "region": region});
    let (zone, region) = (json!("us-central1-a"), json!("us-central1"));
    let bad = [json!(""), json!("Upper"), json!("1st"), json!("a-"), json!("a.b")];
    let named = |name: Value| json!({"name": name, "zone": "z"});
    let mut wrong: Vec<_> = bad.iter().cloned().chain([letters(64)]).map(named).collect();
    wrong.push(json!({"zone": "z"}));
    let wrong_zones = bad.iter().cloned().chain([letters(64)]).map(|zone| json!({"name": "g", "zone": zone}));
    let wrong_regions = bad.iter().cloned().chain([letters(64)]).map(|region| json!({"name": "g", "region": region}));
    vec![
        (pointer, vec![named(letters(63))], wrong, "name"),
        (pointer, vec![json!({"name": "g", "zone": letters(63)})], wrong_zones.collect(), "zone"),
        (pointer, vec![json!({"name": "g", "region": letters(63)})], wrong_regions.collect(), "region"),
        (pointer, vec![json!({"name": "g", "region": region})], vec![json!({"name": "g"}), place(zone, region)], one),
    ]
}

fn agent() -> Vec<Case> {
    let both = |least: i32, most: i32| (vec![json!(least), json!(most)], vec![json!(least - 1), json!(most + 1)]);
    let ((runtime, no_runtime), (percent, no_percent)) = (both(60, 432_000), both(1, 100));
    let threshold = |warn: i32, act: i32| json!({"warnPercent": warn, "actPercent": act});
    let levels = ["Error", "Warn", "Info", "Debug", "Trace"].map(Value::from).to_vec();
    let crossed = "warnPercent must be less than actPercent";
    let mut cases: Vec<Case> = vec![
        // The longest one also needs a longer timeout.
        ("/spec/agent/heartbeatPeriodSeconds", vec![json!(1), json!(89)], vec![json!(0)], "heartbeatPeriodSeconds"),
        ("/spec/agent/heartbeatPeriodSeconds", vec![], vec![json!(301)], "300"),
        (
            "/spec/agent/heartbeatPeriodSeconds",
            vec![],
            vec![json!(90)],
            "agent.heartbeatPeriodSeconds must be less than lifecycle.heartbeatTimeoutSeconds",
        ),
        ("/spec/agent", vec![json!({})], vec![json!({"logLevel": "debug"})], "spec.agent.logLevel"),
        ("/spec/agent/logLevel", levels, vec![json!("")], "spec.agent.logLevel"),
        ("/spec/agent/guards", vec![json!({})], vec![], ""),
        ("/spec/agent/guards/maxRuntimeSeconds", runtime, no_runtime, "maxRuntimeSeconds"),
    ];
    for field in ["/spec/agent/guards/disk", "/spec/agent/guards/memory"] {
        let warnings =
            |percents: Vec<Value>| percents.into_iter().map(|p| json!({"warnPercent": p})).collect::<Vec<_>>();
        cases.push((field, warnings(percent.clone()), warnings(no_percent.clone()), "warnPercent"));
        cases.push((field, vec![threshold(1, 2), threshold(99, 100)], vec![threshold(2, 2), threshold(3, 2)], crossed));
        cases.push((field, vec![], vec![threshold(1, 101), threshold(1, 0)], "actPercent"));
        cases.push((field, vec![], vec![json!({"actPercent": 90})], "warnPercent"));
    }
    cases
}

fn runner() -> Vec<Case> {
    let versions = |field: &str| {
        let wrap = |text: &str| json!({field: text});
        let bad = ["2.336", "v2.336.0", "2.336.0-beta", "latest", "", "1234567.0.0"];
        (["2.336.0", "0.0.1"].map(wrap).to_vec(), bad.map(wrap).to_vec())
    };
    let ((version, no_version), (minimum, no_minimum)) = (versions("version"), versions("minimumVersion"));
    let hash = "0123456789abcdef".repeat(4);
    let pinned = |field: &str, hash: &str| json!({"version": "2.336.0", "checksums": {field: hash}});
    let hashes = |field: &str| {
        let bad = ["", "abc", &hash.to_uppercase(), &format!("{hash}0")].map(|hash| pinned(field, hash));
        (vec![pinned(field, &hash)], bad.to_vec())
    };
    let ((x64, no_x64), (arm64, no_arm64)) = (hashes("x64"), hashes("arm64"));
    let sources =
        |count| json!({"sources": numbered(count, |i| json!(format!("https://bucket.example/{i}/{{version}}")))});
    let source = |url: &str| json!({"sources": [url]});
    let bad_sources = [
        "",
        "ftp://bucket.example/x",
        "https://u:p@bucket.example/x",
        "https://bucket.example/x?token=y",
        "https://a b",
    ];
    let mut bad_sources = bad_sources.map(source).to_vec();
    bad_sources.extend([sources(5), source(&format!("https://bucket.example/{}", "a".repeat(234)))]);
    let two = json!({"version": "2.336.0", "minimumVersion": "2.336.0"});
    let stray = [json!({"checksums": {"x64": hash}}), json!({"minimumVersion": "2.336.0", "checksums": {"x64": hash}})];
    let mut cases: Vec<Case> = vec![
        ("/spec/runner", version, no_version, "spec.runner.version"),
        ("/spec/runner", minimum, no_minimum, "spec.runner.minimumVersion"),
        ("/spec/runner", vec![json!({})], vec![two], "at most one of version and minimumVersion may be set"),
        ("/spec/runner", vec![], stray.to_vec(), "checksums belong to version: set it as well"),
        ("/spec/runner", x64, no_x64, "checksums.x64"),
        ("/spec/runner", arm64, no_arm64, "checksums.arm64"),
        ("/spec/runner", vec![sources(4), source("http://127.0.0.1/{arch}")], bad_sources, "sources"),
        ("/spec/runner/metadataAccess", vec![json!("Blocked"), json!("Allowed")], vec![json!("No")], "metadataAccess"),
    ];
    for field in ["/spec/runner/hooks/jobStarted", "/spec/runner/hooks/jobCompleted"] {
        let bad = ["relative.sh", "/opt/hook", "/opt/a b.sh", "/.s"].map(Value::from).to_vec();
        cases.push((field, vec![json!("/opt/hook-1.sh")], bad, "spec.runner.hooks"));
    }
    cases
}

fn pool_cases() -> Vec<Case> {
    let groups = |count| numbered(count, |i| json!({"name": format!("g{i}"), "zone": "us-central1-a"}));
    let name = "metadata.name must start with a lower-case letter";
    let projects = ["acme-ci", "acme.example:acme-ci"].map(Value::from).to_vec();
    let wrong = ["", "short", "1acme-ci", "acme-ci-", "Acme-ci"].map(Value::from);
    let wrong = wrong.into_iter().chain([letters(31)]).collect();
    let both = |least: i32, most: i32| (vec![json!(least), json!(most)], vec![json!(least - 1), json!(most + 1)]);
    let ((replicas, no_replicas), (max, no_max)) = (both(0, 10_000), both(0, 10_000));
    let mut cases: Vec<Case> = vec![
        ("/metadata/name", vec![json!("a"), json!("linux-2")], vec![json!("2nd"), json!("a.b")], name),
        ("/spec/replicas", replicas, no_replicas, "spec.replicas"),
        ("/spec/limits/max", max, no_max, "spec.limits.max"),
        ("/spec/paused", vec![json!(true)], vec![json!("yes")], "spec.paused"),
        ("/spec/deletionPolicy", vec![json!("Orphan")], vec![json!("Retain")], "spec.deletionPolicy"),
        ("/spec/compute/gce/project", projects, wrong, "spec.compute.gce.project"),
        ("/spec/compute/gce/groups", vec![groups(1), groups(8)], vec![groups(0), groups(9)], "groups"),
        ("/spec/compute", vec![], vec![Value::Null, json!({})], "Required value"),
        ("/spec/github", vec![], vec![Value::Null], "Required value"),
    ];
    cases.extend(github());
    cases.extend(group("/spec/compute/gce/groups/0"));
    cases.extend(template_and_lifecycle());
    cases.extend(agent());
    cases.extend(runner());
    cases
}

fn vm_cases() -> Vec<Case> {
    let mut cases: Vec<Case> = vec![
        ("/spec/pool/name", vec![letters(253)], vec![letters(254), json!(""), Value::Null], "spec.pool.name"),
        ("/spec/pool/uid", vec![letters(64)], vec![letters(65), json!(""), Value::Null], "spec.pool.uid"),
        ("/spec/project", vec![letters(94)], vec![letters(95), json!(""), Value::Null], "spec.project"),
        ("/spec/group", vec![], vec![Value::Null], "Required value"),
    ];
    cases.extend(github());
    cases.extend(group("/spec/group"));
    cases.extend(template_and_lifecycle());
    cases.extend(runner());
    cases
}

async fn each_case_holds(definitions: &Definitions, base: Value, cases: Vec<Case>) -> Result {
    definitions.judge(&base).await??;
    for (pointer, good, bad, words) in cases {
        for value in good {
            let verdict = definitions.judge(&set(base.clone(), pointer, value.clone())).await?;
            assert!(verdict.is_ok(), "{pointer} = {value}: {verdict:?}");
        }
        for value in bad {
            let verdict = definitions.judge(&set(base.clone(), pointer, value.clone())).await?;
            let message = verdict.err().unwrap_or_else(|| panic!("{pointer} = {value} was accepted"));
            assert!(message.contains(words), "{pointer} = {value}: {message}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_rule_and_bound_of_a_pool_accepts_and_refuses() -> Result {
    each_case_holds(&Definitions::served().await?, pool(), pool_cases()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_rule_and_bound_of_a_vm_accepts_and_refuses() -> Result {
    each_case_holds(&Definitions::served().await?, vm(), vm_cases()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_group_is_refused_for_a_repository_only() -> Result {
    let definitions = Definitions::served().await?;
    let at = |url: &str| set(pool(), "/spec/github/url", url.into());
    let repository = "https://github.com/acme/app";
    let message = definitions.judge(&at(repository)).await?.err().unwrap_or_default();
    assert!(message.contains("runnerGroup must not be set for a repository"), "{message}");
    definitions.judge(&set(at(repository), "/spec/github/runnerGroup", Value::Null)).await??;
    definitions.judge(&at("https://github.com/enterprises/acme")).await??;
    definitions.judge(&at("https://github.com/acme")).await??;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_manifest_gets_the_documented_defaults() -> Result {
    let definitions = Definitions::served().await?;
    let mut short = pool();
    for field in ["replicas", "paused", "deletionPolicy", "limits", "template", "lifecycle"] {
        short = set(short, &format!("/spec/{field}"), Value::Null);
    }
    let full = definitions.judge(&short).await??.data;
    let expected = json!({
        "replicas": 1, "paused": false, "deletionPolicy": "Delete", "limits": {"max": 1000},
        "template": {"metadata": {}},
        "lifecycle": {
            "launchTimeoutSeconds": 300, "registrationTimeoutSeconds": 600, "heartbeatTimeoutSeconds": 90,
            "maxLifetimeSeconds": 86400, "terminationGracePeriodSeconds": 432_000,
        },
    });
    for (field, value) in expected.as_object().into_iter().flatten() {
        assert_eq!(full["spec"].get(field), Some(value), "{field}");
    }
    assert_eq!(full["status"]["observedGeneration"], -1, "GitOps tools would take a new pool for a finished one");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vms_spec_cannot_be_changed_but_its_metadata_can() -> Result {
    let definitions = Definitions::served().await?;
    let object: DynamicObject = serde_json::from_value(vm())?;
    let name = object.name_any();
    definitions.vms.create(&PostParams::default(), &object).await?;
    for (field, value) in [("project", json!("other-project")), ("github", json!({"labels": ["other"]}))] {
        let patch = Patch::Merge(json!({"spec": {field: value}}));
        let verdict = answer(definitions.vms.patch(&name, &PatchParams::default(), &patch).await)?;
        let message = verdict.err().unwrap_or_default();
        assert!(message.contains("spec is immutable: edit the RunnerPool"), "{field}: {message}");
    }
    let patch = Patch::Merge(json!({"metadata": {"annotations": {"miglet.dev/terminate-now": "why"}}}));
    definitions.vms.patch(&name, &PatchParams::default(), &patch).await?;
    Ok(())
}

/// What a status field does not take.
fn vm_status_cases() -> Vec<(&'static str, Value)> {
    let (agent, job) = (json!({"keyThumbprint": "x", "bootId": "x"}), json!({"summary": "x", "name": "x"}));
    let with = |object: &Value, field: &str, value: Value| set(object.clone(), &format!("/{field}"), value);
    let instance = json!({"id": "1", "group": "g", "zone": "z"});
    let runner = json!({"name": "r", "attempt": 1});
    let health = json!({"cpuPercent": 1, "memoryPercent": 1, "diskPercent": 1});
    let mut cases = vec![("phase", json!("Sleeping")), ("observedGeneration", json!(-2))];
    for (field, most) in [("id", 32), ("group", 63), ("zone", 63)] {
        cases.push(("instance", with(&instance, field, letters(most + 1))));
    }
    for (field, most) in [("keyThumbprint", 64), ("bootId", 64), ("version", 64), ("state", 32)] {
        cases.push(("agent", with(&agent, field, letters(most + 1))));
    }
    for (field, most) in [("summary", 256), ("name", 128), ("repository", 128), ("workflow", 128), ("result", 32)] {
        cases.push(("job", with(&job, field, letters(most + 1))));
    }
    cases.push(("job", with(&job, "runId", json!(-1))));
    for (field, value) in [("name", letters(65)), ("attempt", json!(0)), ("attempt", json!(1001)), ("id", json!(-1))] {
        cases.push(("runner", with(&runner, field, value)));
    }
    for field in ["cpuPercent", "memoryPercent", "diskPercent"] {
        cases.extend([-1, 101].map(|value| ("health", with(&health, field, json!(value)))));
    }
    cases
}

async fn status_refuses(api: &Api<DynamicObject>, name: &str, field: &str, value: &Value) -> Result {
    let patch = Patch::Merge(json!({"status": {field: value}}));
    let verdict = answer(api.patch_status(name, &PatchParams::default(), &patch).await)?;
    let message = verdict.err().unwrap_or_else(|| panic!("{field} = {value} was accepted"));
    assert!(message.contains(&format!("status.{field}")), "{field} = {value}: {message}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_takes_nothing_beyond_its_bounds() -> Result {
    let definitions = Definitions::served().await?;
    for object in [pool(), vm()] {
        let parsed: DynamicObject = serde_json::from_value(object.clone())?;
        definitions.of(&object).create(&PostParams::default(), &parsed).await?;
    }
    let vm = vm()["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    for (field, value) in vm_status_cases() {
        status_refuses(&definitions.vms, &vm, field, &value).await?;
    }
    for field in ["replicas", "readyReplicas", "busyReplicas", "idleReplicas"] {
        status_refuses(&definitions.pools, "linux", field, &json!(-1)).await?;
        status_refuses(&definitions.pools, "linux", field, &json!(10_001)).await?;
    }
    status_refuses(&definitions.pools, "linux", "selector", &letters(257)).await?;
    status_refuses(&definitions.pools, "linux", "observedGeneration", &json!(-2)).await?;
    let condition = |i: usize| {
        let time = "2026-01-01T00:00:00Z";
        json!({"type": format!("C{i}"), "status": "True", "reason": "R", "message": "", "lastTransitionTime": time})
    };
    for (api, name) in [(&definitions.pools, "linux"), (&definitions.vms, vm.as_str())] {
        status_refuses(api, name, "conditions", &numbered(17, condition)).await?;
        status_refuses(api, name, "conditions", &numbered(2, |_| condition(0))).await?;
        let patch = Patch::Merge(json!({"status": {"observedGeneration": 1, "conditions": numbered(16, condition)}}));
        api.patch_status(name, &PatchParams::default(), &patch).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_reads_like_a_manual() -> Result {
    let plane = ControlPlane::shared().await?;
    for (path, words) in [
        ("rpool", "A RunnerPool keeps a number of single-job GitHub Actions runners alive"),
        ("rpool.spec.github", "The labels jobs select runners by"),
        ("rpool.spec.lifecycle.terminationGracePeriodSeconds", "The only deadline that can cut a job off."),
        ("rpool.spec.deletionPolicy", "touches nothing outside"),
        ("rvm", "Deleting one is a graceful drain"),
        ("rvm.status.job", "GitHub's result, once it ended"),
    ] {
        let text = plane.kubectl(&["explain", path]).await?;
        eprintln!("{text}");
        let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(flat.contains(words), "{path}: {text}");
        assert!(!flat.contains("<no description>"), "{path}: {text}");
    }
    Ok(())
}
