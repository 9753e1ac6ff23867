//! The definitions as a whole: nothing unbounded, nothing undocumented, nothing too large, nothing out of date.

use std::{fs, path::Path};

use serde_json::{Value, json};

use super::*;

/// Client-side `kubectl apply` stores the whole object in an annotation of at most this size.
const DEFINITION_LIMIT: usize = 256 * 1024;
/// What a RunnerVM may take in etcd.
const VM_LIMIT: usize = 4096;

/// Every schema below this one, with its path.
fn walk(path: &str, schema: &Value, visit: &mut dyn FnMut(&str, &Value)) {
    visit(path, schema);
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        walk(&format!("{path}.{name}"), property, visit);
    }
    for (part, suffix) in [("items", "[]"), ("additionalProperties", "{}")] {
        if schema[part].is_object() {
            walk(&format!("{path}{suffix}"), &schema[part], visit);
        }
    }
}

fn each_schema(mut visit: impl FnMut(&str, &Value)) {
    let mut seen = 0;
    for crd in definitions() {
        let crd = serde_json::to_value(crd).unwrap();
        for version in crd["spec"]["versions"].as_array().unwrap() {
            let schema = &version["schema"]["openAPIV3Schema"];
            for part in ["spec", "status"] {
                let path = format!("{}.{part}", crd["spec"]["names"]["singular"].as_str().unwrap());
                walk(&path, &schema["properties"][part], &mut |path, schema| {
                    seen += 1;
                    visit(path, schema);
                });
            }
        }
    }
    assert!(seen > 100, "only {seen} schemas were looked at");
}

#[test]
fn every_string_list_map_and_number_is_bounded() {
    each_schema(|path, schema| {
        let has = |key: &str| !schema[key].is_null();
        let bounded = match schema["type"].as_str().unwrap_or_default() {
            "string" => has("maxLength") || has("enum") || schema["format"] == "date-time",
            "array" => has("maxItems") && has("x-kubernetes-list-type"),
            "integer" => has("minimum") && has("maximum"),
            "object" if has("additionalProperties") => has("maxProperties"),
            "object" => has("properties"),
            "boolean" => true,
            _ => false,
        };
        assert!(bounded, "{path} has no bounds: {schema:#}");
    });
}

#[test]
fn every_field_is_documented_without_line_breaks_of_the_source() {
    each_schema(|path, schema| {
        if path.ends_with("[]") || path.ends_with("{}") {
            return;
        }
        let text = schema["description"].as_str().unwrap_or_default();
        assert!(text.len() > 8 && text.ends_with(['.', ')']), "{path}: {text:?}");
        assert!(!text.replace("\n\n", "").contains('\n'), "{path}: {text:?}");
    });
}

#[test]
fn a_definition_fits_into_the_annotation_of_a_client_side_apply() {
    for crd in definitions() {
        let size = serde_json::to_string(&crd).unwrap().len();
        assert!(size < DEFINITION_LIMIT, "{} has {size} bytes", crd.metadata.name.unwrap());
    }
}

#[test]
fn the_generated_files_are_what_the_types_say() {
    for crd in definitions() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("crds").join(file_name(&crd));
        let found = fs::read_to_string(&file).unwrap_or_default();
        assert!(found == manifest(&crd).unwrap(), "{} is out of date: run `cargo crdgen`", file.display());
    }
}

/// As much as is kept of a text of the largest characters, cut as every text from outside is.
fn wide(limit: usize) -> String {
    conditions::cut(&"\u{1F980}".repeat(limit), limit)
}

fn spec() -> Value {
    json!({
        "pool": {"name": "p".repeat(40), "uid": "u".repeat(36)},
        "project": "acme-production-ci",
        "group": {"name": "ci-linux-large-spot", "zone": "northamerica-northeast1-a"},
        "github": {
            "url": "https://github.acme-corporation.example/enterprises/acme-corporation",
            "credentialsSecretRef": {"name": "acme-corporation-app"},
            "runnerGroup": "production-linux",
            "labels": ["self-hosted", "linux", "x64", "large", "production", "gpu", "nvme", "europe"],
        },
        "template": {"metadata": {"labels": {"team": "build", "cost-centre": "4711"}}},
        "lifecycle": {},
    })
}

/// Everything an agent has a say in at its most, and as many words as conditions can have at once.
fn fullest() -> RunnerVm {
    let time = "2026-11-21T10:00:00.123456789Z";
    let condition = |kind: &str, message: String| {
        json!({
            "type": kind, "status": "False", "reason": "RunnerExitedWithoutJob", "observedGeneration": 1,
            "lastTransitionTime": time, "message": conditions::cut(&message, conditions::MESSAGE_LIMIT),
        })
    };
    let quiet = |kind: &str| condition(kind, String::new());
    serde_json::from_value(json!({
        "apiVersion": "miglet.dev/v1alpha1", "kind": "RunnerVM", "metadata": {"name": "n".repeat(60)}, "spec": spec(),
        "status": {
            "observedGeneration": 1, "phase": "Registering", "createRequestedTime": time, "launchedTime": time,
            "instance": {"id": "9".repeat(20), "group": "g".repeat(30), "zone": "z".repeat(25)},
            "agent": {"keyThumbprint": "t".repeat(43), "bootId": "b".repeat(36), "version": wide(64), "state": "Idle"},
            "runner": {"name": "r".repeat(64), "attempt": 10, "id": 9_007_199_254_740_991_i64},
            "job": {
                "summary": wide(192), "name": wide(128), "repository": wide(128), "workflow": wide(128),
                "runId": 9_007_199_254_740_991_i64, "id": 9_007_199_254_740_991_i64, "url": "u".repeat(128), "startedTime": time, "completedTime": time,
                "result": "SucceededWithIssues",
            },
            "health": {"cpuPercent": 100, "memoryPercent": 100, "diskPercent": 100}, "lastHeartbeatTime": time,
            "conditions": [
                condition("Ready", wide(1000)), quiet("Launched"), quiet("Registered"), quiet("AgentConnected"),
                condition("Draining", wide(1000)), quiet("Deleting"),
            ],
        },
    }))
    .unwrap()
}

#[test]
fn a_vm_stays_small_whatever_its_agent_says() {
    let size = serde_json::to_string(&fullest()).unwrap().len();
    assert!(size <= VM_LIMIT, "{size} bytes");
}
