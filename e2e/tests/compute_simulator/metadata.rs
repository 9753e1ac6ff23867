//! Metadata servers and identity tokens.

use std::time::Duration;

use http::Method;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header, jwk::JwkSet};
use miglet_e2e::{
    compute::{ComputeSim, GroupSpec, SignedBy},
    faults::{Action, Rule},
};
use serde_json::{Value, json};

use crate::client::{ZONE, cloud, create, eventually, metadata, rest, running, try_http};

const AUDIENCE: &str = "https://operator.example/pool";

async fn one() -> ComputeSim {
    let compute = cloud().await;
    create(&compute, &["linux-1"]).await;
    running(&compute, &["linux-1"]).await;
    compute
}

/// Verifies as a careful reader would: RS256 only, the published key of the token's id, audience, issuer, times.
async fn verify(compute: &ComputeSim, token: &str) -> Result<Value, jsonwebtoken::errors::Error> {
    let keys = try_http(Method::GET, &compute.jwks_url(), ("x-nothing", ""), "").await.unwrap();
    assert!(keys.headers["cache-control"].to_str().unwrap().contains("max-age"));
    let keys: JwkSet = serde_json::from_str(&keys.text).unwrap();
    let kid = decode_header(token)?.kid.unwrap();
    let Some(key) = keys.find(&kid) else { return Err(jsonwebtoken::errors::ErrorKind::InvalidKeyFormat.into()) };
    let mut validation = Validation::new(Algorithm::RS256);
    validation.set_audience(&[AUDIENCE]);
    validation.set_issuer(&["https://accounts.google.com"]);
    Ok(decode::<Value>(token, &DecodingKey::from_jwk(key)?, &validation)?.claims)
}

async fn token(compute: &ComputeSim) -> String {
    let path = format!("instance/service-accounts/default/identity?audience={AUDIENCE}&format=full");
    metadata(compute, "linux-1", &path).await.text
}

#[tokio::test]
async fn the_metadata_server_knows_its_instance() {
    let compute = one().await;
    let id = compute.instance("linux-1").unwrap().id.unwrap();
    for (path, value) in [
        ("instance/id", id.to_string()),
        ("instance/name", "linux-1".to_owned()),
        ("instance/zone", format!("projects/424242424242/zones/{ZONE}")),
        ("project/project-id", "acme-ci".to_owned()),
        ("project/numeric-project-id", "424242424242".to_owned()),
        ("instance/attributes/miglet-endpoint", "https://operator:7443".to_owned()),
        ("instance/attributes/created-by", format!("projects/424242424242/zones/{ZONE}/instanceGroupManagers/linux")),
        ("instance/preempted", "FALSE".to_owned()),
        ("instance/maintenance-event", "NONE".to_owned()),
        ("universe/universe-domain", "googleapis.com".to_owned()),
    ] {
        let answer = metadata(&compute, "linux-1", path).await;
        assert_eq!((answer.status, answer.text), (200, value), "{path}");
        assert!(answer.headers.contains_key("etag") && answer.headers["metadata-flavor"] == "Google");
    }
    let all = metadata(&compute, "linux-1", "?recursive=true&alt=json").await.json();
    assert_eq!(all["instance"]["id"], json!(id));
    assert_eq!(all["project"]["numericProjectId"], json!(424_242_424_242_u64));
    assert_eq!(all["instance"]["attributes"]["miglet-endpoint"], json!("https://operator:7443"));
    assert!(metadata(&compute, "linux-1", "instance/").await.text.contains("attributes/\n"));
    assert_eq!(metadata(&compute, "linux-1", "instance/nothing").await.status, 404);
    let host = compute.instance("linux-1").unwrap().metadata_host.unwrap();
    let url = format!("http://{host}/computeMetadata/v1/instance/id");
    assert_eq!(try_http(Method::GET, &url, ("x-nothing", ""), "").await.unwrap().status, 403);
    compute.assert_conforms();
}

#[tokio::test]
async fn a_change_ends_a_wait_and_a_timeout_repeats_the_value() {
    let compute = one().await;
    let first = metadata(&compute, "linux-1", "instance/preempted").await;
    let etag = first.headers["etag"].to_str().unwrap().to_owned();
    let wait = |seconds: u32| format!("instance/preempted?wait_for_change=true&last_etag={etag}&timeout_sec={seconds}");
    let timed_out = metadata(&compute, "linux-1", &wait(0)).await;
    assert_eq!((timed_out.text.as_str(), timed_out.headers["etag"].to_str().unwrap()), ("FALSE", etag.as_str()));
    let path = wait(20);
    let waiting = metadata(&compute, "linux-1", &path);
    let preempt = async { compute.preempt("linux-1").unwrap() };
    let (answer, ()) = tokio::join!(tokio::time::timeout(Duration::from_secs(10), waiting), preempt);
    assert_eq!(answer.unwrap().text, "TRUE");
    compute.assert_conforms();
}

#[tokio::test]
async fn a_wait_on_a_subtree_ends_when_an_attribute_in_it_changes() {
    let compute = one().await;
    let tree = "instance/attributes/?recursive=true&alt=json";
    let etag = metadata(&compute, "linux-1", tree).await.headers["etag"].to_str().unwrap().to_owned();
    let path = format!("{tree}&wait_for_change=true&last_etag={etag}&timeout_sec=20");
    let waiting = metadata(&compute, "linux-1", &path);
    let change = async { compute.set_attribute("linux-1", "miglet-log-level", "Debug").unwrap() };
    let (answer, ()) = tokio::join!(tokio::time::timeout(Duration::from_secs(10), waiting), change);
    assert_eq!(answer.unwrap().json()["miglet-log-level"], json!("Debug"));
    compute.assert_conforms();
}

#[tokio::test]
async fn guest_attributes_written_inside_are_read_outside() {
    let compute = one().await;
    let host = compute.instance("linux-1").unwrap().metadata_host.unwrap();
    let url = format!("http://{host}/computeMetadata/v1/instance/guest-attributes/miglet/status");
    let path = format!("zones/{ZONE}/instances/linux-1/getGuestAttributes?queryPath=miglet%2F");
    assert_eq!(rest(&compute, Method::GET, &path, "").await.status, 404);
    let put = try_http(Method::PUT, &url, ("metadata-flavor", "Google"), "no route to host").await.unwrap();
    assert_eq!(put.status, 200);
    let read = rest(&compute, Method::GET, &path, "").await.json();
    let expected = json!([{"namespace": "miglet", "key": "status", "value": "no route to host"}]);
    assert_eq!(read["queryValue"]["items"], expected);
    assert_eq!(compute.guest_attributes("linux-1", "miglet")["miglet/status"], "no route to host");
    compute.assert_conforms();
}

#[tokio::test]
async fn an_identity_token_carries_the_full_claims_and_verifies() {
    let compute = one().await;
    let claims = verify(&compute, &token(&compute).await).await.unwrap();
    let engine = &claims["google"]["compute_engine"];
    let id = compute.instance("linux-1").unwrap().id.unwrap();
    assert_eq!(engine["instance_id"], json!(id.to_string()));
    assert_eq!((&engine["instance_name"], &engine["zone"]), (&json!("linux-1"), &json!(ZONE)));
    assert_eq!(engine["project_number"], json!(424_242_424_242_u64));
    assert_eq!(claims["email_verified"], json!(true));
    let standard = format!("instance/service-accounts/default/identity?audience={AUDIENCE}");
    let standard = metadata(&compute, "linux-1", &standard).await.text;
    assert!(verify(&compute, &standard).await.unwrap().get("google").is_none());
    compute.roll_identity_key().unwrap();
    assert_ne!(decode_header(token(&compute).await).unwrap().kid, decode_header(&standard).unwrap().kid);
    verify(&compute, &token(&compute).await).await.unwrap();
    verify(&compute, &standard).await.unwrap();
    compute.assert_conforms();
}

#[tokio::test]
async fn forged_tokens_do_not_verify() {
    let compute = one().await;
    let genuine = compute.identity_claims("linux-1", AUDIENCE).unwrap();
    let mint = |claims: &Value, by| compute.mint_identity_token(claims, by).unwrap();
    verify(&compute, &mint(&genuine, SignedBy::Google)).await.unwrap();
    for by in [SignedBy::Stranger, SignedBy::UnknownKey, SignedBy::Hmac] {
        assert!(verify(&compute, &mint(&genuine, by)).await.is_err(), "{by:?}");
    }
    assert!(decode_header(mint(&genuine, SignedBy::Nobody)).is_err(), "alg none is no algorithm");
    for (claim, value) in [("aud", json!("other")), ("iss", json!("https://evil.example")), ("exp", json!(1))] {
        let mut claims = genuine.clone();
        claims[claim] = value;
        assert!(verify(&compute, &mint(&claims, SignedBy::Google)).await.is_err(), "{claim}");
    }
    compute.clock_skew(-7200);
    assert!(verify(&compute, &token(&compute).await).await.is_err(), "a clock two hours behind");
    compute.assert_conforms();
}

#[tokio::test]
async fn without_a_service_account_there_is_no_identity() {
    let compute = cloud().await;
    compute.add_group(&GroupSpec::zonal("bare", ZONE).service_account(None));
    compute.create_foreign("bare", "bare-1").unwrap();
    running(&compute, &["bare-1"]).await;
    let path = format!("instance/service-accounts/default/identity?audience={AUDIENCE}&format=full");
    assert_eq!(metadata(&compute, "bare-1", &path).await.status, 404);
    compute.assert_conforms();
}

#[tokio::test]
async fn the_metadata_server_fails_on_demand() {
    let compute = one().await;
    let unavailable = Action::Answer { status: 503, body: json!("try again"), headers: Vec::new() };
    compute.metadata_faults().add(Rule::path("instance/id", unavailable).times(1));
    assert_eq!(metadata(&compute, "linux-1", "instance/id").await.status, 503);
    eventually("the rule is used up", || compute.metadata_faults().list()[0].times == Some(0)).await;
    assert_eq!(metadata(&compute, "linux-1", "instance/id").await.status, 200);
    compute.assert_conforms();
}
