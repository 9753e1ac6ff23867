//! Groups and their members, zonal and regional.

use google_cloud_compute_v1::client::{InstanceTemplates, Instances, RegionOperations, ZoneOperations};
use google_cloud_compute_v1::model;
use http::Method;
use miglet_e2e::compute::{GroupSpec, NoMachines, standalone};
use serde_json::json;

use crate::client::{ZONE, cloud, create, credentials, eventually, list, regional, rest, running, try_http, zonal};

const LINUX: &str = "zones/us-central1-a/instanceGroupManagers/linux";

#[tokio::test]
async fn instances_created_by_name_run_and_leave_when_deleted_by_url() {
    let compute = cloud().await;
    create(&compute, &["linux-1", "linux-2"]).await;
    assert_eq!(compute.target_size("linux"), Some(2));
    running(&compute, &["linux-1", "linux-2"]).await;

    let listed = list(&compute).await;
    let first = listed.iter().find(|vm| vm.name.as_deref() == Some("linux-1")).unwrap();
    assert_eq!(first.id, compute.instance("linux-1").unwrap().id);
    let client = zonal(&compute).await;
    let body = model::InstanceGroupManagersDeleteInstancesRequest::new()
        .set_instances([first.instance.clone().unwrap()])
        .set_skip_instances_on_validation_error(true);
    let call = client.delete_instances().set_project("acme-ci").set_zone(ZONE).set_instance_group_manager("linux");
    call.set_body(body).send().await.unwrap().to_result().unwrap();
    assert_eq!(compute.target_size("linux"), Some(1), "the target shrinks at once");
    eventually("linux-1 is gone", || compute.instance("linux-1").is_none()).await;
    assert_eq!(list(&compute).await.len(), 1);
    compute.assert_conforms();
}

#[tokio::test]
async fn an_operation_is_done_in_time_and_wait_says_so() {
    let mut options = miglet_e2e::compute::ComputeOptions::default();
    options.delays.operation = std::time::Duration::from_millis(2000);
    let compute = crate::client::with(options).await;
    let operation = create(&compute, &["linux-1"]).await;
    assert_eq!(operation.status, Some(model::operation::Status::Pending));
    let builder = ZoneOperations::builder().with_endpoint(compute.url()).with_credentials(credentials(&compute));
    let operations = builder.build().await.unwrap();
    let name = operation.name.unwrap();
    compute.early_waits(true);
    let wait = operations.wait().set_project("acme-ci").set_zone(ZONE).set_operation(&name);
    assert_ne!(wait.send().await.unwrap().status, Some(model::operation::Status::Done), "a wait may return early");
    compute.early_waits(false);
    let wait = operations.wait().set_project("acme-ci").set_zone(ZONE).set_operation(&name);
    assert_eq!(wait.send().await.unwrap().status, Some(model::operation::Status::Done));
    let get = operations.get().set_project("acme-ci").set_zone(ZONE).set_operation(&name);
    assert_eq!(get.send().await.unwrap().progress, Some(100));
    compute.assert_conforms();
}

#[tokio::test]
async fn a_name_that_exists_fails_the_whole_batch_in_its_operation() {
    let compute = cloud().await;
    create(&compute, &["linux-1"]).await;
    let operation = create(&compute, &["linux-2", "linux-1"]).await;
    eventually("the operation has had its time", || compute.instance("linux-1").is_some_and(|i| i.id.is_some())).await;
    let path = format!("zones/{ZONE}/operations/{}/wait", operation.name.unwrap());
    let done = rest(&compute, Method::POST, &path, "").await.json();
    assert_eq!(done["httpErrorStatusCode"], json!(409));
    assert_eq!(done["error"]["errors"][0]["code"], json!("RESOURCE_ALREADY_EXISTS"));
    assert!(compute.instance("linux-2").is_none());
    assert_eq!(compute.target_size("linux"), Some(1));
    compute.assert_conforms();
}

#[tokio::test]
async fn a_request_id_is_honoured_once() {
    let compute = cloud().await;
    let path = |id: &str| format!("{LINUX}/createInstances?requestId={id}");
    let id = "3f0c1b2e-8f2d-4d51-9f6e-0a1b2c3d4e5f";
    let body = r#"{"instances":[{"name":"linux-1"}]}"#;
    let first = rest(&compute, Method::POST, &path(id), body).await.json();
    let again = rest(&compute, Method::POST, &path(id), body).await.json();
    assert_eq!(first["name"], again["name"]);
    assert_eq!(again["clientOperationId"], json!(id));
    assert_eq!(compute.created(), 1);
    let nil = rest(&compute, Method::POST, &path("00000000-0000-0000-0000-000000000000"), body).await;
    assert_eq!((nil.status, nil.json()["error"]["errors"][0]["reason"].clone()), (400, json!("invalid")));
    compute.assert_conforms();
}

#[tokio::test]
async fn deleting_a_stranger_fails_the_batch_unless_strangers_are_skipped() {
    let compute = cloud().await;
    create(&compute, &["linux-1"]).await;
    running(&compute, &["linux-1"]).await;
    let path = format!("{LINUX}/deleteInstances");
    let members = |skip: bool| {
        json!({"instances": [format!("zones/{ZONE}/instances/stranger"), format!("zones/{ZONE}/instances/linux-1")],
            "skipInstancesOnValidationError": skip})
        .to_string()
    };
    assert_eq!(rest(&compute, Method::POST, &path, &members(false)).await.status, 400);
    assert_eq!(compute.instance("linux-1").unwrap().action, "NONE");
    assert_eq!(rest(&compute, Method::POST, &path, &members(true)).await.status, 200);
    eventually("linux-1 is gone", || compute.instance("linux-1").is_none()).await;
    for malformed in ["zones/europe-west1-b/instances/linux-1", "zones/us-central1-a/instances/LINUX", "a/b/c"] {
        let body = json!({"instances": [malformed], "skipInstancesOnValidationError": true}).to_string();
        assert_eq!(rest(&compute, Method::POST, &path, &body).await.status, 400, "{malformed}");
    }
    let mixed = json!({"instances": ["linux-1", format!("zones/{ZONE}/instances/linux-1")]}).to_string();
    assert_eq!(rest(&compute, Method::POST, &path, &mixed).await.status, 400);
    compute.assert_conforms();
}

#[tokio::test]
async fn a_regional_group_spills_into_the_next_zone_that_has_capacity() {
    let compute = cloud().await;
    let zones = ["us-central1-a", "us-central1-b"];
    compute.add_group(&GroupSpec::regional("wide", "us-central1", &zones));
    compute.stockout("us-central1-a", true);
    let client = regional(&compute).await;
    let body = model::RegionInstanceGroupManagersCreateInstancesRequest::new()
        .set_instances([model::PerInstanceConfig::new().set_name("wide-1")]);
    let call = client.create_instances().set_project("acme-ci").set_region("us-central1");
    let operation = call.set_instance_group_manager("wide").set_body(body).send().await.unwrap().name.unwrap();
    let builder = RegionOperations::builder().with_endpoint(compute.url()).with_credentials(credentials(&compute));
    let operations = builder.build().await.unwrap();
    let wait = operations.wait().set_project("acme-ci").set_region("us-central1").set_operation(operation);
    wait.send().await.unwrap().to_result().unwrap();
    running(&compute, &["wide-1"]).await;
    let call = client.list_managed_instances().set_project("acme-ci").set_region("us-central1");
    let listed = call.set_instance_group_manager("wide").send().await.unwrap().managed_instances;
    let url = listed[0].instance.clone().unwrap();
    assert!(url.ends_with("/zones/us-central1-b/instances/wide-1"), "{url}");
    let group = client.get().set_project("acme-ci").set_region("us-central1").set_instance_group_manager("wide");
    let group = group.send().await.unwrap();
    assert_eq!(group.distribution_policy.unwrap().zones.len(), 2);
    let body = model::RegionInstanceGroupManagersDeleteInstancesRequest::new().set_instances([url]);
    let call = client.delete_instances().set_project("acme-ci").set_region("us-central1");
    call.set_instance_group_manager("wide").set_body(body).send().await.unwrap();
    eventually("wide-1 is gone", || compute.instance("wide-1").is_none()).await;
    compute.assert_conforms();
}

#[tokio::test]
async fn settings_templates_and_errors_are_there_to_be_checked() {
    let compute = cloud().await;
    let wrong = json!({"updatePolicy": {"type": "PROACTIVE"}, "instanceLifecyclePolicy": null,
        "status": {"autoscaler": "https://www.googleapis.com/compute/v1/projects/acme-ci/zones/us-central1-a/autoscalers/x"}});
    compute.add_group(&GroupSpec::zonal("wrong", ZONE).settings(wrong).service_account(None));
    let client = zonal(&compute).await;
    let get = client.get().set_project("acme-ci").set_zone(ZONE).set_instance_group_manager("wrong");
    let group = get.send().await.unwrap();
    assert!(group.status.unwrap().autoscaler.is_some());
    assert!(group.instance_lifecycle_policy.is_none());
    let create = json!({"instances": [{"name": "wrong-1"}]}).to_string();
    let path = "zones/us-central1-a/instanceGroupManagers/wrong/createInstances";
    let operation = rest(&compute, Method::POST, path, &create).await.json();
    let wait = format!("zones/us-central1-a/operations/{}/wait", operation["name"].as_str().unwrap());
    let done = rest(&compute, Method::POST, &wait, "").await.json();
    assert_eq!(done["error"]["errors"][0]["code"], json!("CONDITION_NOT_MET"));
    assert_eq!(compute.created(), 0);
    let operations = rest(&compute, Method::GET, "zones/us-central1-a/operations", "").await.json();
    assert_eq!(operations["items"][0]["httpErrorStatusCode"], json!(412));
    let template = rest(&compute, Method::GET, "global/instanceTemplates/linux-template", "").await.json();
    let items = template["properties"]["metadata"]["items"].as_array().unwrap();
    assert!(items.iter().any(|item| item["key"] == "miglet-endpoint"));
    let missing = rest(&compute, Method::GET, "zones/us-central1-a/instanceGroupManagers/none", "").await;
    assert_eq!((missing.status, missing.json()["error"]["errors"][0]["reason"].clone()), (404, json!("notFound")));
    compute.assert_conforms();
}

#[tokio::test]
async fn a_group_can_be_made_changed_resized_and_deleted() {
    let compute = cloud().await;
    let template = json!({"name": "t2", "properties": {"machineType": "e2-standard-4"}}).to_string();
    assert_eq!(rest(&compute, Method::POST, "global/instanceTemplates", &template).await.status, 200);
    let group = json!({"name": "made", "targetSize": 2, "instanceTemplate": "global/instanceTemplates/t2"}).to_string();
    let groups = format!("zones/{ZONE}/instanceGroupManagers");
    assert_eq!(rest(&compute, Method::POST, &groups, &group).await.status, 200);
    let made = format!("{groups}/made");
    assert_eq!(compute.instances("made").len(), 2);
    let before = rest(&compute, Method::GET, &made, "").await.json();
    let patch = json!({"fingerprint": before["fingerprint"], "updatePolicy": {"type": "OPPORTUNISTIC"}}).to_string();
    assert_eq!(rest(&compute, Method::PATCH, &made, &patch).await.status, 200);
    assert_eq!(rest(&compute, Method::PATCH, &made, &patch).await.status, 412, "the fingerprint is stale now");
    assert_eq!(rest(&compute, Method::POST, &format!("{made}/resize?size=5"), "").await.status, 200);
    assert_eq!(compute.instances("made").len(), 5);
    assert_eq!(rest(&compute, Method::POST, &format!("{made}/resize?size=1"), "{}").await.status, 200);
    eventually("four are gone", || compute.instances("made").len() == 1).await;
    let template = json!({"instanceTemplate": "global/instanceTemplates/linux-template"}).to_string();
    assert_eq!(rest(&compute, Method::POST, &format!("{made}/setInstanceTemplate"), &template).await.status, 200);
    let after = rest(&compute, Method::GET, &made, "").await.json();
    assert!(after["instanceTemplate"].as_str().unwrap().ends_with("linux-template"));
    assert_eq!(rest(&compute, Method::DELETE, &made, "").await.status, 200);
    assert_eq!(rest(&compute, Method::GET, &made, "").await.status, 404);
    eventually("nothing is left", || compute.instances("made").is_empty()).await;
    compute.assert_conforms();
}

#[tokio::test]
async fn an_instance_and_its_template_can_be_read_with_the_official_client() {
    let compute = cloud().await;
    create(&compute, &["linux-1"]).await;
    running(&compute, &["linux-1"]).await;
    let builder = Instances::builder().with_endpoint(compute.url()).with_credentials(credentials(&compute));
    let instances = builder.build().await.unwrap();
    let get = instances.get().set_project("acme-ci").set_zone(ZONE).set_instance("linux-1");
    let instance = get.send().await.unwrap();
    assert_eq!(instance.id, compute.instance("linux-1").unwrap().id);
    assert_eq!(instance.status, Some(model::instance::Status::Running));
    let items = instance.metadata.unwrap().items;
    assert!(items.iter().any(|item| item.key.as_deref() == Some("created-by")));
    let all = instances.list().set_project("acme-ci").set_zone(ZONE).send().await.unwrap();
    assert_eq!(all.items.len(), 1);
    let builder = InstanceTemplates::builder().with_endpoint(compute.url()).with_credentials(credentials(&compute));
    let templates = builder.build().await.unwrap();
    let get = templates.get().set_project("acme-ci").set_instance_template("linux-template");
    let properties = get.send().await.unwrap().properties.unwrap();
    assert_eq!(properties.service_accounts.len(), 1);
    compute.assert_conforms();
}

#[tokio::test]
async fn many_instances_come_and_go_in_one_call_each() {
    let compute = cloud().await;
    let names: Vec<String> = (0..200).map(|number| format!("linux-{number}")).collect();
    create(&compute, &names.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let all_run = || compute.instances("linux").iter().filter(|i| i.status == Some("RUNNING")).count() == names.len();
    eventually("all run", all_run).await;
    let listed = list(&compute).await;
    let ids: std::collections::BTreeSet<_> = listed.iter().filter_map(|vm| vm.id).collect();
    assert_eq!(ids.len(), names.len());
    let urls: Vec<_> = listed.into_iter().filter_map(|vm| vm.instance).collect();
    let body = json!({"instances": urls}).to_string();
    assert_eq!(rest(&compute, Method::POST, &format!("{LINUX}/deleteInstances"), &body).await.status, 200);
    eventually("all are gone", || compute.instances("linux").is_empty()).await;
    assert_eq!((compute.created(), compute.target_size("linux")), (names.len(), Some(0)));
    compute.assert_conforms();
}

#[tokio::test]
async fn the_simulator_stands_alone_with_one_group() {
    let (compute, endpoint) = standalone(std::sync::Arc::new(NoMachines), None).await.unwrap();
    let line = serde_json::to_value(&endpoint).unwrap();
    let text = |name: &str| line[name].as_str().unwrap().to_owned();
    let url = format!(
        "{}/compute/v1/projects/{}/zones/{}/instanceGroupManagers/{}",
        text("endpoint"),
        text("project"),
        text("zone"),
        text("group")
    );
    let token = format!("Bearer {}", text("token"));
    let group = try_http(Method::GET, &url, ("authorization", &token), "").await.unwrap().json();
    assert_eq!((&group["targetSize"], &group["status"]["isStable"]), (&json!(0), &json!(true)));
    drop(compute);
}
