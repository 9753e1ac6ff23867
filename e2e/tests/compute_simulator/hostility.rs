//! What goes wrong on demand.

use std::time::Duration;

use http::Method;
use miglet_e2e::{
    compute::{ComputeOptions, GroupSpec},
    faults::{Action, Rule},
};
use serde_json::json;

use crate::client::{ZONE, cloud, create, eventually, list, rest, running, try_http, with, zonal};

const LINUX: &str = "zones/us-central1-a/instanceGroupManagers/linux";

#[tokio::test]
async fn a_stockout_holds_the_placeholder_and_says_why_until_it_ends() {
    let compute = cloud().await;
    compute.stockout(ZONE, true);
    create(&compute, &["linux-1"]).await;
    let errors = || async {
        let listed = rest(&compute, Method::POST, &format!("{LINUX}/listManagedInstances"), "").await.json();
        listed["managedInstances"][0]["lastAttempt"]["errors"]["errors"][0]["code"].clone()
    };
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while errors().await.is_null() {
        assert!(std::time::Instant::now() < deadline, "the placeholder never says why");
    }
    assert_eq!(errors().await, json!("ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS"));
    let listed = rest(&compute, Method::GET, &format!("{LINUX}/listErrors"), "").await.json();
    assert_eq!(listed["items"][0]["instanceActionDetails"]["action"], json!("CREATING"));
    assert_eq!(list(&compute).await[0].id, None);
    compute.stockout(ZONE, false);
    running(&compute, &["linux-1"]).await;
    compute.assert_conforms();
}

#[tokio::test]
async fn without_retries_a_failed_placeholder_vanishes_and_the_group_shrinks() {
    let compute = with(ComputeOptions { create_retries: false, ..ComputeOptions::default() }).await;
    compute.cpu_quota("us-central1", Some(3));
    create(&compute, &["linux-1", "linux-2"]).await;
    eventually("one is left", || compute.instances("linux").len() == 1 && compute.target_size("linux") == Some(1))
        .await;
    let listed = rest(&compute, Method::GET, &format!("{LINUX}/listErrors"), "").await.json();
    assert_eq!(listed["items"][0]["error"]["code"], json!("QUOTA_EXCEEDED"));
    compute.assert_conforms();
}

#[tokio::test]
async fn a_stale_list_shows_what_was_true_a_while_ago() {
    let compute = cloud().await;
    create(&compute, &["linux-1"]).await;
    running(&compute, &["linux-1"]).await;
    compute.stale_lists(Duration::from_secs(3600));
    assert!(list(&compute).await.is_empty(), "an hour ago there was nothing");
    compute.stale_lists(Duration::ZERO);
    assert_eq!(list(&compute).await.len(), 1);
    compute.assert_conforms();
}

#[tokio::test]
async fn a_lost_reply_has_its_effect_and_the_same_request_id_finds_it() {
    let compute = cloud().await;
    compute.server().faults.add(Rule::path("createInstances", Action::LoseReply).times(1));
    let id = "3f0c1b2e-8f2d-4d51-9f6e-0a1b2c3d4e5f";
    let url = format!("{}/compute/v1/projects/acme-ci/{LINUX}/createInstances?requestId={id}", compute.url());
    let token = format!("Bearer {}", compute.token());
    let body = r#"{"instances":[{"name":"linux-1"}]}"#;
    let lost = try_http(Method::POST, &url, ("authorization", &token), body).await;
    assert!(lost.is_err(), "{lost:?}");
    running(&compute, &["linux-1"]).await;
    let again = try_http(Method::POST, &url, ("authorization", &token), body).await.unwrap();
    assert_eq!(again.status, 200);
    assert_eq!(again.json()["error"], json!(null));
    assert_eq!(compute.created(), 1);
    compute.assert_conforms();
}

#[tokio::test]
async fn only_the_right_token_may_call_and_only_so_often() {
    let compute = cloud().await;
    create(&compute, &["linux-1"]).await;
    running(&compute, &["linux-1"]).await;
    let url = format!("{}/compute/v1/projects/acme-ci/{LINUX}", compute.url());
    assert_eq!(try_http(Method::GET, &url, ("x-nothing", ""), "").await.unwrap().status, 401);
    assert_eq!(try_http(Method::GET, &url, ("authorization", "Bearer wrong"), "").await.unwrap().status, 401);
    let token = crate::client::metadata(&compute, "linux-1", "instance/service-accounts/default/token").await;
    let token = token.json()["access_token"].as_str().unwrap().to_owned();
    let forbidden = try_http(Method::GET, &url, ("authorization", &format!("Bearer {token}")), "").await.unwrap();
    assert_eq!(forbidden.status, 403, "an instance's own account has no rights");

    let window = Duration::from_secs(2);
    compute.rate_limit(Some((2, window)));
    let statuses = async || rest(&compute, Method::GET, LINUX, "").await;
    let mut limited = None;
    for _ in 0..6 {
        let answer = statuses().await;
        if answer.status == 403 {
            limited = Some(answer);
        }
    }
    let limited = limited.expect("six calls within two windows exceed two a window");
    assert_eq!(limited.json()["error"]["errors"][0]["reason"], json!("rateLimitExceeded"));
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while statuses().await.status == 403 {
        assert!(std::time::Instant::now() < deadline, "the rate never refills");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    compute.assert_conforms();
}

#[tokio::test]
async fn preemption_gives_notice_then_takes_the_power_and_the_entry_stays() {
    let mut options = ComputeOptions::default();
    options.delays.preemption = Duration::from_millis(50);
    let compute = with(options).await;
    create(&compute, &["linux-1"]).await;
    running(&compute, &["linux-1"]).await;
    let before = compute.instance("linux-1").unwrap();
    compute.preempt("linux-1").unwrap();
    eventually("it is off", || compute.instance("linux-1").unwrap().status == Some("TERMINATED")).await;
    let after = compute.instance("linux-1").unwrap();
    assert!(after.preempted);
    assert_eq!(after.id, before.id);
    assert_eq!(list(&compute).await.len(), 1);
    compute.assert_conforms();
}

#[tokio::test]
async fn a_repair_keeps_the_name_and_changes_the_id() {
    let compute = cloud().await;
    let repair = json!({"instanceLifecyclePolicy": {"defaultActionOnFailure": "REPAIR"}});
    compute.add_group(&GroupSpec::zonal("repaired", ZONE).settings(repair));
    compute.create_foreign("repaired", "foreign-1").unwrap();
    running(&compute, &["foreign-1"]).await;
    let first = compute.instance("foreign-1").unwrap().id;
    compute.power_off("foreign-1").unwrap();
    eventually("it runs again", || {
        compute.instance("foreign-1").is_some_and(|i| i.id.is_some() && i.id != first && i.status == Some("RUNNING"))
    })
    .await;
    create(&compute, &["linux-1"]).await;
    running(&compute, &["linux-1"]).await;
    let first = compute.instance("linux-1").unwrap().id;
    compute.recreate_under_same_name("linux-1").unwrap();
    eventually("another machine has the name", || {
        compute.instance("linux-1").is_some_and(|i| i.id.is_some() && i.id != first && i.status == Some("RUNNING"))
    })
    .await;
    compute.assert_conforms();
}

#[tokio::test]
async fn an_instance_deleted_by_somebody_else_leaves_an_entry_without_a_machine() {
    let compute = cloud().await;
    create(&compute, &["linux-1"]).await;
    running(&compute, &["linux-1"]).await;
    let instance = format!("zones/{ZONE}/instances/linux-1");
    assert_eq!(rest(&compute, Method::DELETE, &instance, "").await.status, 200);
    eventually("the machine is gone", || compute.instance("linux-1").is_some_and(|i| i.id.is_none())).await;
    assert_eq!(rest(&compute, Method::GET, &instance, "").await.status, 404);
    let listed = list(&compute).await;
    assert_eq!((listed.len(), listed[0].id), (1, None));
    let body = json!({"instances": ["linux-1"]}).to_string();
    assert_eq!(rest(&compute, Method::POST, &format!("{LINUX}/deleteInstances"), &body).await.status, 200);
    eventually("the entry is gone", || compute.instance("linux-1").is_none()).await;
    compute.assert_conforms();
}

#[tokio::test]
async fn things_from_the_future_and_forced_pages_reach_the_client() {
    let compute = cloud().await;
    create(&compute, &["linux-1", "linux-2", "linux-3"]).await;
    running(&compute, &["linux-1", "linux-2", "linux-3"]).await;
    compute.unknown_fields(true);
    compute.distort("linux-2", json!({"instanceStatus": "HIBERNATING"}));
    let listed = list(&compute).await;
    assert_eq!(listed[1].instance_status.as_ref().and_then(|status| status.name()), Some("HIBERNATING"));
    compute.forced_pages(Some(2));
    assert_eq!(list(&compute).await.len(), 2);
    let client = zonal(&compute).await;
    let call = client.list_managed_instances().set_project("acme-ci").set_zone(ZONE);
    let page = call.set_instance_group_manager("linux").set_page_token("2").send().await.unwrap();
    assert_eq!(page.managed_instances.len(), 1);
    compute.assert_conforms();
}

#[tokio::test]
async fn everything_can_be_driven_over_http() {
    let compute = cloud().await;
    let control = async |body: serde_json::Value| {
        let url = format!("{}/_fake/faults", compute.url());
        try_http(Method::POST, &url, ("x-nothing", ""), &body.to_string()).await.unwrap().status
    };
    assert_eq!(control(json!({"stockout": {"zone": ZONE, "on": true}})).await, 200);
    assert_eq!(control(json!({"createForeign": {"group": "linux", "instance": "f-1"}})).await, 200);
    eventually("it waits for capacity", || compute.instance("f-1").is_some_and(|i| i.action == "CREATING")).await;
    assert_eq!(control(json!({"stockout": {"zone": ZONE, "on": false}})).await, 200);
    running(&compute, &["f-1"]).await;
    let instances = format!("{}/_fake/instances", compute.url());
    let instances = try_http(Method::GET, &instances, ("x-nothing", ""), "").await.unwrap().json();
    assert_eq!((&instances[0]["name"], &instances[0]["status"]), (&json!("f-1"), &json!("RUNNING")));
    assert_eq!(control(json!({"powerOff": {"instance": "f-1"}})).await, 200);
    eventually("it is off", || compute.instance("f-1").unwrap().status == Some("TERMINATED")).await;
    assert_eq!(control(json!({"preempt": {"instance": "nobody"}})).await, 404);
    let url = format!("{}/_fake/rules", compute.url());
    let rule = json!({"path": "listManagedInstances", "times": 1,
        "action": {"answer": {"status": 503, "body": {"error": {"code": 503}}}}});
    try_http(Method::POST, &url, ("x-nothing", ""), &rule.to_string()).await.unwrap();
    let list = format!("{LINUX}/listManagedInstances");
    assert_eq!(rest(&compute, Method::POST, &list, "").await.status, 503);
    assert_eq!(rest(&compute, Method::POST, &list, "").await.status, 200);
    compute.assert_conforms();
}

#[tokio::test]
async fn what_the_published_description_does_not_allow_is_a_violation() {
    let compute = cloud().await;
    if miglet_e2e::published::discovery::compute().await.unwrap().is_none() {
        return;
    }
    rest(&compute, Method::POST, &format!("{LINUX}/createInstances?colour=red"), r#"{"instances":[{"nmae":"x"}]}"#)
        .await;
    rest(&compute, Method::POST, &format!("{LINUX}/resize"), "").await;
    let found = compute.violations().join("\n");
    for expected in ["query parameter colour is unknown", "nmae: unknown property", "query parameter size is missing"] {
        assert!(found.contains(expected), "{expected} is not among:\n{found}");
    }
    let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| compute.assert_conforms()));
    assert!(failed.is_err());
}
