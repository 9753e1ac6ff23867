//! The REST API alone.

use std::time::Duration;

use bytes::Bytes;
use http::Method;
use miglet_e2e::{
    faults::{Action, Rule},
    github::{Control, GithubOptions, Limits},
};
use serde_json::json;

use crate::rig::{jwt, now, rig, rig_with};

#[tokio::test]
async fn an_app_exchanges_its_jwt_for_a_token_that_works() {
    let rig = rig().await;
    let app = rig.sim.add_app().expect("an app");
    let path = format!("/app/installations/{}/access_tokens", app.installation_id);
    let good = jwt(&app, &json!({"iss": app.app_id, "iat": now() - 60, "exp": now() + 540}));
    let minted = rig.send(Method::POST, &path, &good, None).await;
    assert_eq!(minted.status, 201, "{minted:?}");
    let token = minted.body["token"].as_str().expect("a token");
    let listed = rig.send(Method::GET, "/api/v3/orgs/acme/actions/runners", token, None).await;
    assert_eq!(listed.status, 200, "{listed:?}");
    assert_eq!(listed.body["total_count"], 0);
    let enterprise = rig.send(Method::GET, "/enterprises/acme/actions/runners", token, None).await;
    assert_eq!(enterprise.status, 404);
    rig.sim.assert_conforms();
}

#[tokio::test]
async fn a_jwt_that_breaks_a_rule_is_refused() {
    let rig = rig().await;
    let app = rig.sim.add_app().expect("an app");
    let other = rig.sim.add_app().expect("another app");
    let path = format!("/app/installations/{}/access_tokens", app.installation_id);
    let (iss, now) = (app.app_id, now());
    for (why, key, claims, status) in [
        ("expired", &app, json!({"iss": iss, "iat": now - 700, "exp": now - 60}), 401),
        ("lives too long", &app, json!({"iss": iss, "iat": now, "exp": now + 3600}), 401),
        ("issued in the future", &app, json!({"iss": iss, "iat": now + 120, "exp": now + 300}), 401),
        ("signed with another key", &other, json!({"iss": iss, "iat": now, "exp": now + 300}), 401),
        ("another app's installation", &other, json!({"iss": other.app_id, "iat": now, "exp": now + 300}), 404),
        ("unknown app", &app, json!({"iss": 7, "iat": now, "exp": now + 300}), 404),
    ] {
        let answer = rig.send(Method::POST, &path, &jwt(key, &claims), None).await;
        assert_eq!(answer.status, status, "{why}: {answer:?}");
    }
    rig.sim.control(Control::SkewClock { seconds: 3600 });
    let good = jwt(&app, &json!({"iss": iss, "iat": now - 60, "exp": now + 540}));
    let skewed = rig.send(Method::POST, &path, &good, None).await;
    assert_eq!(skewed.status, 401, "a server an hour ahead finds it expired");
    assert_eq!(rig.send(Method::GET, "/orgs/acme/actions/runners", "", None).await.status, 401);
    assert_eq!(rig.send(Method::GET, "/orgs/acme/actions/runners", "ghp_no", None).await.status, 401);
    rig.sim.assert_conforms();
}

#[tokio::test]
async fn a_suspended_installation_loses_its_tokens_and_gets_no_new_ones() {
    let rig = rig().await;
    let app = rig.sim.add_app().expect("an app");
    let path = format!("/app/installations/{}/access_tokens", app.installation_id);
    let jwt = jwt(&app, &json!({"iss": app.app_id, "iat": now() - 60, "exp": now() + 540}));
    let token = rig.send(Method::POST, &path, &jwt, None).await.body["token"].as_str().expect("a token").to_owned();
    rig.sim.control(Control::RevokeInstallation { installation_id: app.installation_id });
    assert_eq!(rig.send(Method::GET, "/orgs/acme/actions/runners", &token, None).await.status, 401);
    assert_eq!(rig.send(Method::POST, &path, &jwt, None).await.status, 404);
    rig.sim.control(Control::RestoreInstallation { installation_id: app.installation_id });
    assert_eq!(rig.send(Method::POST, &path, &jwt, None).await.status, 201);
    rig.sim.assert_conforms();
}

#[tokio::test]
async fn registrations_of_every_scope_have_githubs_status_codes() {
    let rig = rig().await;
    rig.sim.add_enterprise("acme-ent");
    for scope in ["/orgs/acme", "/repos/acme/app", "/enterprises/acme-ent"] {
        let path = format!("{scope}/actions/runners/generate-jitconfig");
        let body = json!({"name": "one", "runner_group_id": 1, "labels": ["linux"]});
        let made = rig.post(&path, body.clone()).await;
        assert_eq!(made.status, 201, "{made:?}");
        assert_eq!(rig.post(&path, body).await.status, 409);
        let unknown = json!({"name": "two", "runner_group_id": 99, "labels": ["linux"]});
        assert_eq!(rig.post(&path, unknown).await.status, 404);
        assert_eq!(rig.post(&path, json!({"name": "two", "runner_group_id": 1, "labels": []})).await.status, 422);
        let one = format!("{scope}/actions/runners/{}", made.body["runner"]["id"]);
        assert_eq!(rig.get(&one).await.body["status"], "offline");
        assert_eq!(rig.delete(&one).await.status, 204);
        assert_eq!(rig.delete(&one).await.status, 404);
        assert_eq!(rig.get(&format!("{scope}/actions/runners/downloads")).await.status, 200);
    }
    assert_eq!(rig.get("/orgs/nobody/actions/runners").await.status, 404);
    rig.sim.assert_conforms();
}

#[tokio::test]
async fn an_offered_runner_is_listed_with_its_hash_and_fetched_by_anybody() {
    let rig = rig().await;
    let x64 = async || rig.get("/orgs/acme/actions/runners/downloads").await.body[0].clone();
    let unknown = x64().await;
    assert!(unknown["sha256_checksum"].is_null() && unknown["download_url"].to_string().contains("//github.com/"));
    rig.sim.offer_runner(Bytes::from_static(b"[1]"));
    let offered = x64().await;
    assert_eq!(offered["sha256_checksum"], "080a9ed428559ef602668b4c00f114f1a11c3f6b02a435f0bdc154578e4d7f22");
    let url = offered["download_url"].as_str().and_then(|url| url.strip_prefix(&rig.sim.url())).expect("a URL here");
    let fetched = rig.send(Method::GET, url, "", None).await;
    assert_eq!((fetched.status.as_u16(), fetched.body), (200, json!([1])));
    assert_eq!(rig.send(Method::GET, &url.replace("x64", "riscv"), "", None).await.status, 404);
    assert_eq!(rig.sim.runners_fetched(), 1);
    rig.sim.assert_conforms();
}

#[tokio::test]
async fn lists_come_in_pages_with_absolute_links() {
    let rig = rig().await;
    for number in 0..5 {
        rig.register(&format!("runner-{number}")).await;
    }
    let first = rig.get("/api/v3/orgs/acme/actions/runners?per_page=2").await;
    assert_eq!(first.body["total_count"], 5);
    assert_eq!(first.body["runners"].as_array().map(Vec::len), Some(2));
    let next = format!("<{}/api/v3/orgs/acme/actions/runners?per_page=2&page=2>; rel=\"next\"", rig.sim.url());
    let links = first.headers["link"].to_str().expect("text");
    assert!(links.contains(&next), "{links}");
    let last = rig.get("/orgs/acme/actions/runners?per_page=2&page=3").await;
    assert_eq!(last.body["runners"].as_array().map(Vec::len), Some(1));
    assert!(!last.headers["link"].to_str().expect("text").contains("next"));
    let named = rig.get("/orgs/acme/actions/runners?name=runner-3").await;
    assert_eq!(named.body["total_count"], 1);
    rig.sim.assert_conforms();
}

#[tokio::test]
async fn runner_groups_are_listed_with_the_default_flagged() {
    let rig = rig().await;
    let id = rig.sim.add_runner_group("acme", "builders", true);
    let listed = rig.get("/orgs/acme/actions/runner-groups").await;
    let default: Vec<_> =
        listed.body["runner_groups"].as_array().expect("a list").iter().filter(|g| g["default"] == true).collect();
    assert_eq!(default.len(), 1);
    assert_eq!(default[0]["name"], "builders");
    assert_eq!(rig.get(&format!("/orgs/acme/actions/runner-groups/{id}")).await.body["id"], id);
    assert_eq!(rig.get("/orgs/acme/actions/runner-groups/77").await.status, 404);
    rig.sim.assert_conforms();
}

#[tokio::test]
async fn the_primary_limit_refuses_with_the_time_it_resets() {
    let limits = Limits { primary: Some(2), ..Limits::default() };
    let rig = rig_with(GithubOptions { limits, ..GithubOptions::default() }).await;
    assert_eq!(rig.get("/orgs/acme/actions/runners").await.headers["x-ratelimit-remaining"], "1");
    rig.get("/orgs/acme/actions/runners").await;
    let refused = rig.get("/orgs/acme/actions/runners").await;
    assert_eq!(refused.status, 403);
    assert_eq!(refused.headers["x-ratelimit-remaining"], "0");
    let reset: i64 = refused.headers["x-ratelimit-reset"].to_str().expect("text").parse().expect("a number");
    assert!(reset > now() + 3000, "the window is an hour");
    assert_eq!(rig.get("/rate_limit").await.body["resources"]["core"]["remaining"], 0);
    rig.sim.assert_conforms();
}

#[tokio::test]
async fn the_secondary_limit_says_when_to_come_back() {
    let rig = rig().await;
    let limits = Limits { secondary: Some(5), retry_after_seconds: 7, status: 429, ..Limits::default() };
    rig.sim.control(Control::SetLimits { limits });
    rig.register("one").await;
    let refused = rig.get("/orgs/acme/actions/runners").await;
    assert_eq!(refused.status, 429);
    assert_eq!(refused.headers["retry-after"], "7");
    rig.sim.assert_conforms();
}

#[tokio::test]
async fn a_lost_organization_is_404_everywhere_until_it_is_back() {
    let rig = rig().await;
    let (id, _) = rig.register("one").await;
    rig.sim.lose_scope("acme");
    assert_eq!(rig.get("/orgs/acme/actions/runners").await.status, 404);
    assert_eq!(rig.get(&format!("/orgs/acme/actions/runners/{id}")).await.status, 404);
    assert_eq!(rig.delete(&format!("/orgs/acme/actions/runners/{id}")).await.status, 404);
    assert_eq!(rig.get("/repos/acme/app/actions/runners").await.status, 404);
    rig.sim.restore_scope("acme");
    assert_eq!(rig.get(&format!("/orgs/acme/actions/runners/{id}")).await.status, 200);
    rig.sim.assert_conforms();
}

#[tokio::test]
async fn what_departs_from_the_description_is_a_violation() {
    let rig = rig().await;
    let body = json!({"name": "one", "runner_group_id": 1, "labels": ["linux"], "workFolder": "x"});
    assert_eq!(rig.post("/orgs/acme/actions/runners/generate-jitconfig", body).await.status, 201);
    rig.get("/orgs/acme/actions/runners?per-page=2").await;
    rig.get("/orgs/acme/actions/no-such-thing").await;
    let found = rig.sim.violations();
    let checked = miglet_e2e::published::openapi::OpenApi::load().expect("not required, or there").is_some();
    assert_eq!(found.len(), if checked { 3 } else { 0 }, "{found:#?}");
}

#[tokio::test]
async fn the_hostile_side_is_served_over_http_too() {
    let rig = rig().await;
    let rule =
        Rule::path("/actions/runners", Action::Answer { status: 502, body: json!({}), headers: vec![] }).times(1);
    let rule = serde_json::to_value(rule).expect("JSON");
    assert_eq!(rig.post("/_fake/faults", rule).await.status, 204);
    assert_eq!(rig.get("/orgs/acme/actions/runners").await.status, 502);
    assert_eq!(rig.get("/orgs/acme/actions/runners").await.status, 200);
    rig.post("/_fake/control", json!({"loseScope": {"scope": "acme"}})).await;
    assert_eq!(rig.get("/orgs/acme/actions/runners").await.status, 404);
    rig.post("/_fake/control", json!({"restoreScope": {"scope": "acme"}})).await;
    let foreign = json!({"addForeignRunner": {"scope": "acme", "name": "theirs", "online": true}});
    let id = rig.post("/_fake/control", foreign).await.body["id"].as_u64().expect("an id");
    assert_eq!(rig.get(&format!("/orgs/acme/actions/runners/{id}")).await.body["status"], "online");
    let job = rig.post("/_fake/jobs", json!({"steps": "echo hi", "labels": ["linux"]})).await.body["id"].clone();
    assert_eq!(rig.get(&format!("/_fake/jobs/{job}")).await.body["status"], "queued");
    rig.sim.assert_conforms();
}

#[tokio::test]
async fn a_frozen_list_shows_the_past_and_a_runner_by_id_the_present() {
    let rig = rig().await;
    let (id, _) = rig.register("one").await;
    rig.sim.control(Control::FreezeLists { frozen: true });
    assert_eq!(rig.delete(&format!("/orgs/acme/actions/runners/{id}")).await.status, 204);
    assert_eq!(rig.get("/orgs/acme/actions/runners").await.body["total_count"], 1);
    assert_eq!(rig.get(&format!("/orgs/acme/actions/runners/{id}")).await.status, 404);
    rig.sim.control(Control::FreezeLists { frozen: false });
    assert_eq!(rig.get("/orgs/acme/actions/runners").await.body["total_count"], 0);
}

#[tokio::test]
async fn a_lost_reply_leaves_the_registration_behind() {
    let rig = rig().await;
    rig.sim.server().faults.add(Rule::path("generate-jitconfig", Action::LoseReply).times(1));
    let body = json!({"name": "one", "runner_group_id": 1, "labels": ["linux"]});
    let path = "/orgs/acme/actions/runners/generate-jitconfig";
    assert!(rig.try_send(Method::POST, path, body.clone()).await.is_none());
    assert_eq!(rig.post(path, body).await.status, 409);
}

#[tokio::test]
async fn standing_alone_it_says_all_a_client_needs() {
    let alone = miglet_e2e::github::standalone().await.expect("it starts");
    let told = serde_json::to_value(&alone).expect("JSON");
    for key in ["endpoint", "org", "repository", "app_id", "installation_id", "private_key_file", "token"] {
        assert!(told.get(key).is_some_and(|v| !v.is_null()), "{key} is missing: {told}");
    }
    let file = alone.private_key_file.clone();
    assert!(std::fs::read_to_string(&file).expect("readable").starts_with("-----BEGIN RSA PRIVATE KEY-----"));
    drop(alone);
    assert!(!file.exists());
}

#[tokio::test]
async fn a_registration_nobody_used_is_dropped() {
    let options = GithubOptions { unused_after: Duration::from_millis(300), ..GithubOptions::default() };
    let rig = rig_with(options).await;
    rig.register("one").await;
    rig.until("the registration is gone", |sim| sim.runners().is_empty()).await;
}
