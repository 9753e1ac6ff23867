//! What the API server takes for a RunnerPool and a RunnerVM, and what it tells about them.

#![allow(
    clippy::panic,
    clippy::indexing_slicing,
    reason = "clippy takes functions beside the tests of an integration test for production code"
)]

#[path = "definitions/cases.rs"]
mod cases;

use cases::{Case, pool_cases, vm_cases, vm_status_cases};
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
