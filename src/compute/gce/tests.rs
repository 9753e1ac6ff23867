//! The client against a small server that speaks Compute's wire format.

use std::sync::Mutex;

use axum::{Router, body::Body, extract::Request, extract::State, response::Response};
use gcloud_sdk::google_cloud_auth::credentials::anonymous;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::*;

type Prepared = (u16, Value);

#[derive(Clone, Default)]
struct Script(std::sync::Arc<Mutex<(Vec<Prepared>, Vec<(String, Value)>)>>);

async fn answer(State(script): State<Script>, request: Request) -> Response {
    let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
    let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
    let mut script = script.0.lock().unwrap();
    script.1.push((path, serde_json::from_slice(&body).unwrap_or_default()));
    if script.0.is_empty() {
        return Response::builder().status(599).body(Body::empty()).unwrap();
    }
    let (status, value) = script.0.remove(0);
    let response = Response::builder().status(status).header("content-type", "application/json");
    response.body(Body::from(value.to_string())).unwrap()
}

struct Fixture {
    gce: Gce,
    script: Script,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn fixture(answers: Vec<Prepared>) -> Fixture {
    let script = Script::default();
    script.0.lock().unwrap().0 = answers;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = Some(format!("http://{}", listener.local_addr().unwrap()));
    let app = Router::new().fallback(answer).with_state(script.clone());
    let server = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    let config = GceConfig { endpoint, request_timeout: Duration::from_secs(5) };
    let gce = Gce::with_credentials(config, anonymous::Builder::new().build()).await.unwrap();
    Fixture { gce, script, server }
}

impl Fixture {
    fn requests(&self) -> Vec<(String, Value)> {
        self.script.0.lock().unwrap().1.clone()
    }
}

fn zonal() -> Group {
    Group { project: "proj".into(), name: "mig".into(), location: Location::Zone("us-central1-a".into()) }
}

fn regional() -> Group {
    Group { location: Location::Region("us-central1".into()), ..zonal() }
}

fn refusal(code: u16, reason: &str, message: &str) -> Prepared {
    let errors = json!([{"domain": "global", "message": message, "reason": reason}]);
    (code, json!({"error": {"code": code, "errors": errors, "message": message}}))
}

#[tokio::test]
async fn every_page_of_a_list_is_read_zonal_and_regional() {
    for group in [zonal(), regional()] {
        let f = fixture(vec![
            (200, json!({"managedInstances": [{"name": "a", "id": "1"}], "nextPageToken": "more"})),
            (200, json!({"managedInstances": [{"name": "b", "id": "2"}]})),
        ])
        .await;
        let names: Vec<_> = f.gce.list(&group).await.unwrap().into_iter().map(|i| i.name).collect();
        assert_eq!(names, ["a", "b"]);
        assert!(f.requests()[1].0.contains("pageToken=more"), "{:?}", f.requests());
    }
}

#[tokio::test]
async fn a_page_that_fails_fails_the_list() {
    let f = fixture(vec![
        (200, json!({"managedInstances": [{"name": "a", "id": "1"}], "nextPageToken": "more"})),
        refusal(503, "backendError", "try later"),
    ])
    .await;
    let error = f.gce.list(&zonal()).await.unwrap_err();
    assert_eq!((error.class, error.ambiguous), (ErrorClass::Transient, true));
    assert_eq!(f.requests().len(), 2, "nothing is repeated in secret");
}

#[tokio::test]
async fn instances_are_created_by_name_under_a_request_id() {
    for (group, place) in [(zonal(), "zones/us-central1-a"), (regional(), "regions/us-central1")] {
        let f = fixture(vec![(200, json!({"name": "operation-1", "status": "RUNNING"}))]).await;
        let request = Uuid::from_u128(7);
        let operation = f.gce.create(&group, &["vm-a".into(), "vm-b".into()], request).await.unwrap();
        assert_eq!((operation.name.as_str(), operation.done), ("operation-1", false));
        let (path, body) = f.requests().remove(0);
        let start = format!("/compute/v1/projects/proj/{place}/instanceGroupManagers/mig/createInstances?");
        assert!(path.starts_with(&start) && path.contains(&format!("requestId={request}")), "{path}");
        assert_eq!(body, json!({"instances": [{"name": "vm-a"}, {"name": "vm-b"}]}));
    }
}

#[tokio::test]
async fn deletions_skip_what_is_no_member() {
    let f = fixture(vec![(200, json!({"name": "o", "status": "DONE"})), (200, json!({"name": "o", "status": "DONE"}))])
        .await;
    let targets = [DeleteTarget::Url("zones/us-central1-a/instances/vm-a".into())];
    f.gce.delete(&zonal(), &targets, Uuid::from_u128(7)).await.unwrap();
    f.gce.delete(&regional(), &targets, Uuid::from_u128(8)).await.unwrap();
    for (_, body) in f.requests() {
        assert_eq!(body["skipInstancesOnValidationError"], json!(true));
        assert_eq!(body["instances"], json!(["zones/us-central1-a/instances/vm-a"]));
    }
}

#[tokio::test]
async fn refusals_have_their_class_and_are_not_repeated() {
    let minute = "Quota exceeded for quota metric 'Queries' and limit 'Queries per minute'";
    let table = [
        (refusal(403, "rateLimitExceeded", minute), ErrorClass::RateLimit, false),
        (refusal(403, "forbidden", "Required permission"), ErrorClass::Config, false),
        (refusal(403, "quotaExceeded", "Quota 'CPUS' exceeded"), ErrorClass::Quota, false),
        (refusal(404, "notFound", "was not found"), ErrorClass::NotFound, false),
        (refusal(409, "alreadyExists", "already exists"), ErrorClass::AlreadyExists, false),
        (refusal(412, "conditionNotMet", "precondition"), ErrorClass::Config, false),
        (refusal(500, "backendError", "oops"), ErrorClass::Transient, true),
    ];
    for (answer, class, ambiguous) in table {
        let what = format!("{answer:?}");
        let f = fixture(vec![answer]).await;
        let error = f.gce.create(&zonal(), &["vm-a".into()], Uuid::from_u128(7)).await.unwrap_err();
        assert_eq!((error.class, error.ambiguous), (class, ambiguous), "{what}: {error}");
        assert_eq!(f.requests().len(), 1, "{what}");
    }
}

#[tokio::test]
async fn a_success_that_cannot_be_read_is_ambiguous() {
    let f = fixture(vec![(200, json!("not an operation"))]).await;
    let error = f.gce.create(&zonal(), &["vm-a".into()], Uuid::from_u128(7)).await.unwrap_err();
    assert!(error.ambiguous, "{error:?}");
}

#[tokio::test]
async fn no_answer_is_ambiguous() {
    let f = fixture(vec![]).await;
    f.server.abort();
    while !f.server.is_finished() {
        tokio::task::yield_now().await;
    }
    let error = f.gce.list(&zonal()).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Transient);
}

#[tokio::test]
async fn settings_come_from_the_group_and_its_template_global_or_regional() {
    for place in ["global", "regions/us-central1"] {
        let template = format!("https://www.googleapis.com/compute/v1/projects/proj/{place}/instanceTemplates/t1");
        let f = fixture(vec![
            (200, json!({"name": "mig", "instanceTemplate": template})),
            (200, json!({"name": "t1", "properties": {"serviceAccounts": [{"email": "a@b"}]}})),
        ])
        .await;
        let settings = f.gce.settings(&zonal()).await.unwrap();
        assert!(settings.service_account && settings.repairs);
        let path = f.requests().remove(1).0;
        assert!(path.starts_with(&format!("/compute/v1/projects/proj/{place}/instanceTemplates/t1")), "{path}");
    }
}

#[tokio::test]
async fn last_words_are_optional() {
    let f = fixture(vec![
        (200, json!({"queryValue": {"items": [{"namespace": "miglet", "key": "status", "value": "no route"}]}})),
        refusal(404, "notFound", "no such attribute"),
    ])
    .await;
    let words = f.gce.last_words(&zonal(), "us-central1-a", "vm-a").await.unwrap();
    assert_eq!(words.as_deref(), Some("no route"));
    assert_eq!(f.gce.last_words(&zonal(), "us-central1-a", "vm-a").await.unwrap(), None);
    assert!(f.requests()[0].0.contains("queryPath=miglet%2Fstatus"), "{:?}", f.requests());
}

#[tokio::test]
async fn an_operation_is_asked_for_where_its_group_is() {
    for (group, place) in [(zonal(), "zones/us-central1-a"), (regional(), "regions/us-central1")] {
        let f = fixture(vec![(200, json!({"name": "o1", "status": "DONE"}))]).await;
        assert!(f.gce.operation(&group, "o1").await.unwrap().done);
        let path = f.requests().remove(0).0;
        assert!(path.starts_with(&format!("/compute/v1/projects/proj/{place}/operations/o1")), "{path}");
    }
}
