use google_cloud_compute_v1::model;
use serde_json::json;

use super::*;
use crate::compute::ErrorClass;

fn managed(value: serde_json::Value) -> Instance {
    instance(serde_json::from_value(value).unwrap()).unwrap()
}

#[test]
fn a_running_machine_has_id_url_and_zone() {
    let vm = managed(json!({
        "name": "runner-0001",
        "instance": "https://www.googleapis.com/compute/v1/projects/proj/zones/us-central1-a/instances/runner-0001",
        "id": "8291739182739182739", "instanceStatus": "RUNNING", "currentAction": "NONE", "targetStatus": "RUNNING",
    }));
    assert_eq!(vm.id, Some(InstanceId(8_291_739_182_739_182_739)));
    assert_eq!(vm.zone.as_deref(), Some("us-central1-a"));
    assert_eq!((vm.power, vm.action), (Power::Running, GroupAction::None));
}

#[test]
fn a_stockout_placeholder_is_absent_and_says_why() {
    let vm = managed(json!({
        "name": "runner-0002",
        "instance": "https://www.googleapis.com/compute/v1/projects/proj/zones/us-central1-a/instances/runner-0002",
        "currentAction": "CREATING", "targetStatus": "RUNNING",
        "lastAttempt": {"errors": {"errors": [{"code": "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS",
            "message": "Instance 'runner-0002' creation failed: The zone does not have enough resources"}]}},
    }));
    assert_eq!((vm.id, vm.power, vm.action), (None, Power::Absent, GroupAction::Creating));
    assert_eq!(vm.errors.first().unwrap().class, ErrorClass::Capacity);
}

#[test]
fn values_google_adds_tomorrow_become_unknown_and_not_a_failed_list() {
    let vm = managed(json!({
        "name": "runner-0004", "id": "7", "instanceStatus": "HIBERNATING", "currentAction": "DREAMING",
        "somethingNew": {"a": 1},
    }));
    assert_eq!((vm.power, vm.action), (Power::Unknown, GroupAction::Other));
    assert_eq!(vm.url, None, "a queued entry without URL is addressed by name");
}

#[test]
fn a_machine_being_deleted_stops_before_it_is_down() {
    for (status, power) in [("STOPPING", Power::Stopping), ("TERMINATED", Power::Down)] {
        let vm = managed(json!({"name": "r", "id": "9", "instanceStatus": status, "currentAction": "DELETING"}));
        assert_eq!((vm.power, vm.action), (power, GroupAction::Deleting));
    }
}

#[test]
fn an_operation_that_failed_after_http_200_carries_its_error() {
    let wire: model::Operation = serde_json::from_value(json!({
        "name": "operation-1", "status": "DONE", "progress": 100, "httpErrorStatusCode": 412,
        "httpErrorMessage": "PRECONDITION FAILED",
        "error": {"errors": [{"code": "CONDITION_NOT_MET", "message": "CreateInstances cannot be used when ..."}]},
    }))
    .unwrap();
    let operation = operation(wire);
    assert!(operation.done);
    assert_eq!(operation.errors.first().unwrap().class, ErrorClass::Config);
}

#[test]
fn an_http_error_without_a_list_is_still_an_error() {
    let wire: model::Operation =
        serde_json::from_value(json!({"name": "o", "status": "DONE", "httpErrorStatusCode": 409})).unwrap();
    assert_eq!(operation(wire).errors.first().unwrap().class, ErrorClass::AlreadyExists);
}

#[test]
fn an_accepted_operation_that_still_runs_is_not_done() {
    let wire: model::Operation = serde_json::from_value(json!({"name": "o", "status": "RUNNING"})).unwrap();
    assert_eq!(operation(wire), Operation { name: "o".into(), done: false, errors: vec![] });
}

fn group(value: serde_json::Value) -> model::InstanceGroupManager {
    serde_json::from_value(value).unwrap()
}

#[test]
fn googles_defaults_are_unsafe_and_shown_as_such() {
    let found = settings(&group(json!({"region": "https://x/regions/r"})), &model::InstanceTemplate::new());
    assert!(found.repairs && found.redistributes);
    assert!(!found.service_account && !found.autoscaler && !found.proactive_updates && !found.autohealing);
}

#[test]
fn a_group_set_up_as_documented_is_safe() {
    let template: model::InstanceTemplate = serde_json::from_value(json!({"properties": {
        "serviceAccounts": [{"email": "vm@p.iam.gserviceaccount.com", "scopes": []}],
        "metadata": {"items": [{"key": "miglet-endpoint", "value": "https://x"}]}}}))
    .unwrap();
    let found = settings(
        &group(json!({
            "region": "https://x/regions/r",
            "instanceLifecyclePolicy": {"defaultActionOnFailure": "DO_NOTHING"},
            "updatePolicy": {"type": "OPPORTUNISTIC", "instanceRedistributionType": "NONE"},
            "status": {"isStable": true, "stateful": {"hasStatefulConfig": false}},
        })),
        &template,
    );
    let expected = GroupSettings {
        service_account: true,
        metadata_keys: vec!["miglet-endpoint".into()],
        ..GroupSettings::default()
    };
    assert_eq!(found, expected);
}

#[test]
fn every_harmful_setting_is_seen() {
    let found = settings(
        &group(json!({
            "zone": "https://x/zones/z",
            "updatePolicy": {"type": "PROACTIVE"},
            "autoHealingPolicies": [{"healthCheck": "https://x/h", "initialDelaySec": 1}],
            "status": {"autoscaler": "https://x/autoscalers/a", "stateful": {"hasStatefulConfig": true}},
        })),
        &model::InstanceTemplate::new(),
    );
    assert!(found.proactive_updates && found.autohealing && found.autoscaler && found.stateful && found.repairs);
    assert!(!found.redistributes, "a zonal group has nowhere to redistribute to");
}

#[test]
fn templates_are_found_global_and_regional_and_in_versions() {
    let global = group(json!({"instanceTemplate": "https://x/projects/proj/global/instanceTemplates/t1"}));
    let expected = TemplateName { project: "proj".into(), region: None, name: "t1".into() };
    assert_eq!(template(&global, "p").unwrap(), expected);
    let versioned = group(json!({"versions": [
        {"instanceTemplate": "projects/q/regions/r/instanceTemplates/canary", "targetSize": {"fixed": 1}},
        {"instanceTemplate": "projects/q/regions/r/instanceTemplates/t2"}]}));
    let expected = TemplateName { project: "q".into(), region: Some("r".into()), name: "t2".into() };
    assert_eq!(template(&versioned, "p").unwrap(), expected);
    assert_eq!(template(&group(json!({})), "p"), None);
}

#[test]
fn last_words_are_cut_and_without_control_characters() {
    let attributes: model::GuestAttributes = serde_json::from_value(json!({
        "queryPath": "miglet/status",
        "queryValue": {"items": [{"namespace": "miglet", "key": "status", "value": format!("no\u{1b}[31m{}", "x".repeat(900))}]},
    }))
    .unwrap();
    let words = last_words(&attributes).unwrap();
    assert_eq!(words.chars().count(), 300);
    assert!(!words.chars().any(char::is_control));
}
