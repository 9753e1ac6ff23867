//! The manifests agree with the operator's defaults, and its pod is as restricted as its namespace asks.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "clippy takes functions beside the tests of an integration test for production code"
)]

use std::{fs, path::Path};

use miglet_operator::config::Config;
use serde_json::{Value, json};

/// Every object of the base.
fn base() -> Vec<Value> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests/base");
    let kustomization = documents(&folder.join("kustomization.yaml")).remove(0);
    let resources = kustomization["resources"].as_array().unwrap();
    let files = resources.iter().map(|name| folder.join(name.as_str().unwrap())).filter(|path| !path.is_dir());
    files.flat_map(|path| documents(&path)).collect()
}

fn documents(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_saphyr::from_multiple(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn object(kind: &str, name: &str) -> Value {
    let found = base().into_iter().find(|o| o["kind"] == kind && o["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("no {kind} {name} in manifests/base"))
}

fn rules(kind: &str, name: &str) -> Vec<Value> {
    object(kind, name)["rules"].as_array().unwrap().clone()
}

fn rule_for(rules: &[Value], resource: &str, verb: &str) -> Value {
    let found = rules.iter().find(|rule| holds(&rule["resources"], resource) && holds(&rule["verbs"], verb));
    found.unwrap_or_else(|| panic!("no rule allows {verb} {resource}")).clone()
}

fn holds(list: &Value, item: &str) -> bool {
    list.as_array().is_some_and(|list| list.contains(&json!(item)))
}

fn config() -> Config {
    Config::parse_from_args(["miglet-operator"]).unwrap()
}

#[test]
fn the_pod_keeps_to_the_restricted_standard_its_namespace_enforces() {
    let labels = &object("Namespace", "miglet-system")["metadata"]["labels"];
    assert_eq!(labels["pod-security.kubernetes.io/enforce"], "restricted");
    let pod = &object("Deployment", "miglet-operator")["spec"]["template"]["spec"];
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    for container in pod["containers"].as_array().unwrap() {
        let context = &container["securityContext"];
        assert_eq!(context["allowPrivilegeEscalation"], false);
        assert_eq!(context["readOnlyRootFilesystem"], true);
        assert_eq!(context["capabilities"], json!({"drop": ["ALL"]}));
        assert!(container["resources"]["limits"]["memory"].is_string(), "a memory limit");
    }
    for volume in pod["volumes"].as_array().unwrap() {
        assert!(volume.get("hostPath").is_none(), "{volume}");
    }
}

#[test]
fn no_rule_of_the_operator_has_a_wildcard_or_lets_it_grow_its_rights() {
    let roles = [rules("ClusterRole", "miglet-operator"), rules("Role", "miglet-operator")].concat();
    for rule in roles {
        let text = rule.to_string();
        for word in ["\"*\"", "escalate", "bind", "impersonate", "secrets"] {
            assert!(!text.contains(word), "{word} in {text}");
        }
    }
}

#[test]
fn reading_secrets_is_a_role_of_its_own_that_the_base_binds_nowhere() {
    let owners = rules("ClusterRole", "miglet-pool-credentials");
    let rule = |resource: &str, verb: &str| json!({"apiGroups": [""], "resources": [resource], "verbs": [verb]});
    assert_eq!(owners, [rule("secrets", "get"), rule("configmaps", "create")]);
    let bound = base().into_iter().filter(|object| object["kind"].as_str().is_some_and(|k| k.ends_with("Binding")));
    assert!(bound.into_iter().all(|binding| binding["roleRef"]["name"] != "miglet-pool-credentials"));
}

#[test]
fn named_rights_name_what_the_operator_uses_by_default() {
    let rules = rules("Role", "miglet-operator");
    let lease = rule_for(&rules, "leases", "update");
    assert_eq!(lease["resourceNames"], json!([config().lease.lease_name]));
    let slice = rule_for(&rules, "endpointslices", "patch");
    assert_eq!(slice["resourceNames"], json!([service_name()]));
    assert!(holds(&slice["verbs"], "get") && holds(&slice["verbs"], "create"));
}

/// The gateway's Service as the Deployment tells the operator.
fn service_name() -> String {
    let deployment = object("Deployment", "miglet-operator");
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    let variables = container["env"].as_array().unwrap();
    let variable = variables.iter().find(|variable| variable["name"] == "MIGLET_SERVICE_NAME").unwrap();
    variable["value"].as_str().unwrap().to_owned()
}

#[test]
fn the_gateway_has_no_selector_and_the_port_the_operator_writes() {
    use miglet_operator::endpoints::{GatewayAddress, slice};
    let service = object("Service", &service_name());
    assert!(service["spec"].get("selector").is_none(), "a selector would send agents to standbys");
    let port = config().listen.agent_listen.port();
    let address =
        GatewayAddress { namespace: "miglet-system".into(), service: service_name(), ip: [10, 0, 0, 7].into(), port };
    let slice = serde_json::to_value(slice(&address)).unwrap();
    assert_eq!(service["spec"]["ports"][0]["name"], slice["ports"][0]["name"], "the two are joined by the port's name");
    assert_eq!(service["spec"]["ports"][0]["port"], slice["ports"][0]["port"]);
}

#[test]
fn the_deployments_ports_probes_and_files_are_the_operators_defaults() {
    let deployment = object("Deployment", "miglet-operator");
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    let listen = config().listen;
    for (name, address) in
        [("agents", listen.agent_listen), ("metrics", listen.metrics_listen), ("health", listen.health_listen)]
    {
        let port = container["ports"].as_array().unwrap().iter().find(|port| port["name"] == name).unwrap();
        assert_eq!(port["containerPort"], address.port(), "{name}");
    }
    assert_eq!(container["livenessProbe"]["httpGet"], json!({"path": "/healthz", "port": "health"}));
    assert_eq!(container["readinessProbe"]["httpGet"], json!({"path": "/readyz", "port": "health"}));
    let mount = Path::new(container["volumeMounts"][0]["mountPath"].as_str().unwrap());
    assert_eq!(listen.tls_cert.parent(), Some(mount));
    assert_eq!(listen.tls_key.parent(), Some(mount));
    assert_eq!(deployment["spec"]["replicas"], 2, "one works, one stands by");
}

#[test]
fn editors_can_scale_pools_and_viewers_can_only_look() {
    let edit = rules("ClusterRole", "miglet-edit");
    assert!(holds(&rule_for(&edit, "runnerpools/scale", "patch")["verbs"], "update"));
    for rule in rules("ClusterRole", "miglet-view") {
        assert_eq!(rule["verbs"], json!(["get", "list", "watch"]));
    }
}

#[test]
fn the_samples_carry_no_real_credentials_and_pools_the_operator_can_read() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests/samples");
    let secret = documents(&folder.join("credentials.yaml")).remove(0);
    assert!(secret["stringData"].as_object().unwrap().values().all(|value| value == "REPLACE-ME"));
    for file in ["organisation.yaml", "repository.yaml", "regional.yaml"] {
        let pool = documents(&folder.join(file)).remove(0);
        let read: miglet_operator::crd::RunnerPool = serde_json::from_value(pool.clone()).unwrap();
        assert_eq!(read.spec.github.credentials_secret_ref.name, secret["metadata"]["name"].as_str().unwrap());
        let written = serde_json::to_value(&read.spec).unwrap();
        for (field, value) in pool["spec"]["lifecycle"].as_object().into_iter().flatten() {
            assert_eq!(&written["lifecycle"][field], value, "{file}: unknown field {field}");
        }
    }
}
