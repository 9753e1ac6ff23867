use std::sync::atomic::{AtomicUsize, Ordering};

use axum::{Json, Router, extract::State, http::StatusCode, routing::get};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::*;
use crate::crd::SecretRef;

/// An API server with one answer for every Secret.
#[derive(Clone)]
struct ApiServer(Arc<Answer>);

struct Answer {
    current: Mutex<(u16, Value)>,
    reads: AtomicUsize,
}

#[derive(Debug)]
struct TestClock(Mutex<Timestamp>);

impl TestClock {
    fn pass(&self, seconds: u64) {
        *self.0.lock().unwrap() += Duration::from_secs(seconds);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        *self.0.lock().unwrap()
    }
}

struct Fixture {
    forges: Forges,
    api: ApiServer,
    clock: Arc<TestClock>,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn secret(token: &str) -> Value {
    use base64::Engine;
    let data = base64::engine::general_purpose::STANDARD.encode(token);
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "acme"}, "data": {"github_token": data}})
}

fn status(code: u16, reason: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "no",
        "reason": reason, "code": code})
}

async fn answer(State(api): State<ApiServer>) -> (StatusCode, Json<Value>) {
    api.0.reads.fetch_add(1, Ordering::Relaxed);
    let (code, body) = api.0.current.lock().unwrap().clone();
    (StatusCode::from_u16(code).unwrap(), Json(body))
}

async fn fixture(code: u16, body: Value) -> Fixture {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let api = ApiServer(Arc::new(Answer { current: Mutex::new((code, body)), reads: AtomicUsize::default() }));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let app = Router::new().route("/api/v1/namespaces/ci/secrets/acme", get(answer)).with_state(api.clone());
    let server = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    let client = kube::Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap();
    let clock = Arc::new(TestClock(Mutex::new(Timestamp::from_second(1_800_000_000).unwrap())));
    let forges = Forges::new(client, clock.clone(), ForgesConfig::default());
    Fixture { forges, api, clock, server }
}

fn github(url: &str) -> GitHub {
    GitHub {
        url: url.to_owned(),
        credentials_secret_ref: SecretRef { name: "acme".to_owned() },
        runner_group: None,
        labels: vec!["x".to_owned()],
    }
}

impl Fixture {
    async fn runners(&self, url: &str) -> Result<SharedRunners, CredentialsError> {
        self.forges.runners("ci", &github(url)).await
    }

    fn becomes(&self, code: u16, body: Value) {
        *self.api.0.current.lock().unwrap() = (code, body);
    }

    fn reads(&self) -> usize {
        self.api.0.reads.load(Ordering::Relaxed)
    }
}

const ORG: &str = "https://github.com/acme";

#[tokio::test]
async fn a_secret_is_read_once_a_minute_and_its_client_kept() {
    let f = fixture(200, secret("ghp_a")).await;
    let first = f.runners(ORG).await.unwrap();
    assert!(Arc::ptr_eq(&first, &f.runners(ORG).await.unwrap()));
    assert_eq!(f.reads(), 1);
    f.clock.pass(61);
    assert!(Arc::ptr_eq(&first, &f.runners(ORG).await.unwrap()), "the same contents keep the client");
    assert_eq!(f.reads(), 2);
}

#[tokio::test]
async fn many_that_ask_at_once_cost_one_read() {
    let f = fixture(200, secret("ghp_a")).await;
    let all = futures::future::join_all((0..100).map(|_| f.runners(ORG))).await;
    assert!(all.iter().all(Result::is_ok));
    assert_eq!(f.reads(), 1);
}

#[tokio::test]
async fn a_rotated_secret_gets_a_new_client() {
    let f = fixture(200, secret("ghp_a")).await;
    let first = f.runners(ORG).await.unwrap();
    f.becomes(200, secret("ghp_b"));
    f.clock.pass(61);
    assert!(!Arc::ptr_eq(&first, &f.runners(ORG).await.unwrap()));
}

#[tokio::test]
async fn clients_nobody_asks_for_are_dropped() {
    let f = fixture(200, secret("ghp_a")).await;
    let old = Arc::downgrade(&f.runners(ORG).await.unwrap());
    assert!(old.upgrade().is_some());
    f.clock.pass(16 * 60);
    f.runners("https://github.com/other").await.unwrap();
    assert!(old.upgrade().is_none());
}

#[tokio::test]
async fn only_a_definite_answer_makes_a_secret_missing() {
    let table = [
        (404, status(404, "NotFound"), "SecretNotFound", true),
        (404, json!("a proxy that knows nothing"), "SecretUnreadable", false),
        (403, status(403, "Forbidden"), "SecretForbidden", false),
        (500, status(500, "InternalError"), "SecretUnreadable", false),
        (200, json!({"apiVersion": "v1", "kind": "Secret", "metadata": {}}), "SecretMalformed", false),
    ];
    for (code, body, reason, missing) in table {
        let f = fixture(code, body).await;
        let error = f.runners(ORG).await.unwrap_err();
        assert_eq!((error.reason(), error.is_missing()), (reason, missing), "{error:?}");
    }
}

#[tokio::test]
async fn a_forbidden_secret_names_the_command_that_helps() {
    let f = fixture(403, status(403, "Forbidden")).await;
    let error = f.runners(ORG).await.unwrap_err().to_string();
    let command = "kubectl create rolebinding miglet-pool-credentials --clusterrole=miglet-pool-credentials \
                   --serviceaccount=miglet-system:miglet-operator --namespace=ci";
    assert!(error.contains(command), "{error}");
}

#[tokio::test]
async fn a_mended_secret_is_seen_within_seconds() {
    let f = fixture(404, status(404, "NotFound")).await;
    assert!(f.runners(ORG).await.is_err());
    f.becomes(200, secret("ghp_a"));
    assert!(f.runners(ORG).await.is_err(), "the API server is spared for a moment");
    f.clock.pass(6);
    assert!(f.runners(ORG).await.is_ok());
}

#[tokio::test]
async fn a_bad_url_is_told_without_reading_the_secret() {
    let f = fixture(200, secret("ghp_a")).await;
    assert_eq!(f.runners("https://github.com").await.unwrap_err().reason(), "InvalidURL");
    assert_eq!(f.reads(), 0);
}
