//! The client against a server that behaves as badly as GitHub can.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicUsize, Ordering},
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    response::Response,
};
use secrecy::ExposeSecret;
use tokio::net::TcpListener;

use super::*;
use crate::{clock::SystemClock, forge::scope::scope};

/// One prepared answer: status, headers, body; `None` closes the connection without one.
type Prepared = Option<(u16, Vec<(&'static str, String)>, String)>;

#[derive(Clone, Default)]
struct Script(Arc<Mutex<World>>);

#[derive(Default)]
struct World {
    answers: VecDeque<Prepared>,
    requests: Vec<String>,
    unauthorized: usize,
    /// What the minting of a token answers instead of a token.
    unminted: Option<(u16, &'static str)>,
}

impl Script {
    fn then(self, status: u16, body: impl Into<String>) -> Self {
        self.with(Some((status, vec![], body.into())))
    }

    fn headed(self, status: u16, headers: Vec<(&'static str, String)>, body: &str) -> Self {
        self.with(Some((status, headers, body.to_owned())))
    }

    fn with(self, answer: Prepared) -> Self {
        self.0.lock().unwrap().answers.push_back(answer);
        self
    }

    fn requests(&self) -> Vec<String> {
        self.0.lock().unwrap().requests.clone()
    }
}

/// An answer whose body breaks off: what a client sees of a reply lost after the effect.
fn broken() -> Response {
    let body = Body::from_stream(futures::stream::iter([Err::<String, _>(std::io::Error::other("lost"))]));
    Response::builder().status(201).header("content-length", 100).body(body).unwrap()
}

async fn answer(State(script): State<Script>, request: Request) -> Response {
    let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
    if path.contains("/access_tokens") {
        script.0.lock().unwrap().requests.push(format!("{} {path}", request.method()));
        tokio::task::yield_now().await;
        if let Some((status, body)) = script.0.lock().unwrap().unminted {
            return Response::builder().status(status).body(Body::from(body)).unwrap();
        }
        let body = r#"{"token": "ghs_minted", "expires_at": "2999-01-01T00:00:00Z", "permissions": {}}"#;
        return Response::builder().status(201).body(Body::from(body)).unwrap();
    }
    let mut world = script.0.lock().unwrap();
    world.requests.push(format!("{} {path}", request.method()));
    if !request.headers().contains_key("authorization") {
        world.unauthorized += 1;
    }
    match world.answers.pop_front() {
        Some(Some((status, headers, body))) => {
            let mut response = Response::builder().status(status);
            for (name, value) in headers {
                response = response.header(name, value);
            }
            response.body(Body::from(body)).unwrap()
        }
        Some(None) => broken(),
        None => Response::builder().status(599).body(Body::empty()).unwrap(),
    }
}

struct Fixture {
    github: Github,
    script: Script,
    observed: Arc<AtomicUsize>,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn fixture(script: Script) -> Fixture {
    fixture_as(script, &Credential::Token(SecretString::from("ghp_x")), "acme").await
}

async fn fixture_as(script: Script, credential: &Credential, path: &str) -> Fixture {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let scope = scope(&format!("http://{}/{path}", listener.local_addr().unwrap())).unwrap();
    let app = Router::new().fallback(answer).with_state(script.clone());
    let server = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let observed = Arc::new(AtomicUsize::default());
    let counter = observed.clone();
    let observe: crate::compute::Observe = Arc::new(move |backend, _, _| {
        assert_eq!(backend, "github");
        counter.fetch_add(1, Ordering::Relaxed);
    });
    let calls = (Duration::from_secs(5), observe);
    let connection = Arc::new(Connection::new(&scope.api, credential, clock.clone(), calls).unwrap());
    Fixture { github: Github::new(connection, &scope, clock), script, observed, server }
}

fn registration() -> Registration {
    Registration { name: "linux-abc-1".into(), group: 1, labels: vec!["self-hosted".into()] }
}

fn page(total: usize, ids: std::ops::Range<usize>) -> String {
    let runners: Vec<_> = ids
        .map(|id| json!({"id": id, "name": format!("r-{id}"), "os": "linux", "status": "online", "busy": false, "labels": []}))
        .collect();
    json!({"total_count": total, "runners": runners}).to_string()
}

const REGISTERED: &str = r#"{"runner": {"id": 7, "name": "linux-abc-1", "os": "unknown", "status": "offline",
    "busy": false, "labels": []}, "encoded_jit_config": "c2VjcmV0"}"#;

#[tokio::test]
async fn a_registration_returns_the_id_and_a_secret_that_does_not_print() {
    let f = fixture(Script::default().then(201, REGISTERED)).await;
    let registered = f.github.register(&registration()).await.unwrap();
    assert_eq!(registered.id, 7);
    assert_eq!(registered.jit_config.expose_secret(), "c2VjcmV0");
    assert!(!format!("{registered:?}").contains("c2VjcmV0"));
    assert_eq!(f.script.requests(), ["POST /api/v3/orgs/acme/actions/runners/generate-jitconfig"]);
    assert_eq!(f.observed.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn every_refused_registration_is_sent_once_and_has_its_class() {
    let table = [
        (409, "Already exists - A runner with the name *** already exists.", ForgeErrorClass::NameTaken, false),
        (422, "A runner with that name already exists", ForgeErrorClass::NameTaken, false),
        (422, "labels are too long", ForgeErrorClass::Invalid, false),
        (404, "Not Found", ForgeErrorClass::Invisible, false),
        (403, "Resource not accessible by integration", ForgeErrorClass::Invisible, false),
        (401, "Bad credentials", ForgeErrorClass::Credentials, false),
        (500, "boom", ForgeErrorClass::Transient, true),
        (502, "boom", ForgeErrorClass::Transient, true),
    ];
    for (status, message, class, ambiguous) in table {
        let f = fixture(Script::default().then(status, json!({"message": message}).to_string())).await;
        let error = f.github.register(&registration()).await.unwrap_err();
        assert_eq!((error.class, error.ambiguous), (class, ambiguous), "{status} {message}");
        assert_eq!(f.script.requests().len(), 1, "a registration is never repeated: {status}");
    }
}

#[tokio::test]
async fn a_lost_or_unreadable_reply_to_a_registration_is_ambiguous_and_not_repeated() {
    for script in [Script::default().with(None), Script::default().then(201, r#"{"encoded_jit_config": "c2VjcmV0"}"#)] {
        let f = fixture(script).await;
        let error = f.github.register(&registration()).await.unwrap_err();
        assert_eq!((error.class, error.ambiguous), (ForgeErrorClass::Transient, true), "{error}");
        assert!(!format!("{error:?}").contains("c2VjcmV0"));
        assert_eq!(f.script.requests().len(), 1);
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_transient() {
    let f = fixture(Script::default()).await;
    f.server.abort();
    while !f.server.is_finished() {
        tokio::task::yield_now().await;
    }
    assert_eq!(f.github.get(7).await.unwrap_err().class, ForgeErrorClass::Transient);
}

#[tokio::test]
async fn a_rate_limit_says_when_to_come_back_and_stops_the_next_call_here() {
    let headers = vec![("retry-after", "120".to_owned())];
    let f =
        fixture(Script::default().headed(403, headers, r#"{"message": "You have exceeded a secondary rate limit"}"#))
            .await;
    let error = f.github.register(&registration()).await.unwrap_err();
    assert_eq!((error.class, error.retry_after), (ForgeErrorClass::RateLimit, Some(Duration::from_secs(120))));
    let next = f.github.delete(7).await.unwrap_err();
    assert_eq!(next.class, ForgeErrorClass::RateLimit);
    assert!(next.retry_after.unwrap() > Duration::from_secs(100));
    assert_eq!(f.script.requests().len(), 1, "the second call never left");
}

#[tokio::test]
async fn an_empty_budget_is_respected_before_github_has_to_refuse() {
    let reset = SystemClock.now().as_second() + 600;
    let headers = vec![("x-ratelimit-remaining", "0".to_owned()), ("x-ratelimit-reset", reset.to_string())];
    let f = fixture(Script::default().headed(200, headers, &page(0, 0..0))).await;
    f.github.check().await.unwrap();
    assert_eq!(f.github.check().await.unwrap_err().class, ForgeErrorClass::RateLimit);
    assert_eq!(f.script.requests().len(), 1);
}

#[tokio::test]
async fn deletions_tell_idle_busy_and_gone_apart() {
    let f = fixture(
        Script::default().then(204, "").then(422, r#"{"message": "is currently running a job"}"#).then(404, "{}"),
    )
    .await;
    assert_eq!(f.github.delete(1).await.unwrap(), Deletion::Deleted);
    assert_eq!(f.github.delete(1).await.unwrap(), Deletion::Busy);
    assert_eq!(f.github.delete(1).await.unwrap(), Deletion::NotFound);
    assert_eq!(f.github.seen(), None, "a 404 shows nothing");
}

#[tokio::test]
async fn all_pages_are_read_under_the_same_host_and_with_credentials() {
    let link = vec![("link", r#"<https://evil.example/next>; rel="next""#.to_owned())];
    let f = fixture(Script::default().headed(200, link, &page(130, 0..100)).then(200, page(130, 100..130))).await;
    let before = SystemClock.now();
    assert_eq!(f.github.list().await.unwrap().len(), 130);
    assert!(f.github.seen().unwrap() >= before);
    assert_eq!(f.script.0.lock().unwrap().unauthorized, 0);
    assert!(f.script.requests()[1].ends_with("/runners?per_page=100&page=2"));
}

#[tokio::test]
async fn a_list_is_whole_or_an_error_and_never_shorter() {
    let f = fixture(Script::default().then(200, page(130, 0..100)).then(502, "")).await;
    assert!(f.github.list().await.is_err());
    let torn = Script::default().then(200, page(130, 0..100)).then(200, page(129, 101..130));
    let f = fixture(torn.then(200, page(129, 0..100)).then(200, page(129, 100..129))).await;
    assert_eq!(f.github.list().await.unwrap().len(), 129, "it was read again");
    let f = fixture(Script::default().then(200, r#"{"total_count": 1}"#)).await;
    assert_eq!(f.github.list().await.unwrap_err().class, ForgeErrorClass::Transient);
}

#[tokio::test]
async fn a_runner_is_found_by_its_exact_name_only() {
    let f = fixture(Script::default().then(200, page(2, 0..2)).then(200, page(2, 0..2))).await;
    assert_eq!(f.github.find("r-1").await.unwrap().unwrap().id, 1);
    assert_eq!(f.github.find("r").await.unwrap(), None);
    assert!(f.script.requests()[0].contains("runners?name=r-1&per_page=100&page=1"));
}

#[tokio::test]
async fn a_scope_that_is_no_longer_visible_is_forgotten() {
    let f = fixture(Script::default().then(200, page(0, 0..0)).then(404, "{}").then(404, "{}")).await;
    f.github.check().await.unwrap();
    assert!(f.github.seen().is_some());
    assert_eq!(f.github.get(3).await.unwrap(), None, "a single 404 is not proof");
    assert!(f.github.seen().is_some());
    assert_eq!(f.github.check().await.unwrap_err().class, ForgeErrorClass::Invisible);
    assert_eq!(f.github.seen(), None);
}

#[tokio::test]
async fn an_outage_does_not_make_a_scope_invisible() {
    let f = fixture(Script::default().then(200, page(0, 0..0)).then(503, "")).await;
    f.github.check().await.unwrap();
    assert_eq!(f.github.check().await.unwrap_err().class, ForgeErrorClass::Transient);
    assert!(f.github.seen().is_some());
}

#[tokio::test]
async fn runner_groups_are_found_by_name_or_default_and_remembered() {
    let groups = r#"{"total_count": 2, "runner_groups": [{"id": 1, "name": "Default", "default": true},
        {"id": 5, "name": "big", "default": false}]}"#;
    let f = fixture(Script::default().then(200, groups).then(200, groups).then(200, groups)).await;
    for _ in 0..3 {
        assert_eq!(f.github.group(None).await.unwrap(), 1);
        assert_eq!(f.github.group(Some("big")).await.unwrap(), 5);
        assert_eq!(f.github.group(Some("none")).await.unwrap_err().class, ForgeErrorClass::NotFound);
    }
    assert_eq!(f.script.requests().len(), 3, "answers and failures are remembered");
}

#[tokio::test]
async fn a_repository_has_one_group_and_an_enterprise_its_own_paths() {
    let token = Credential::Token(SecretString::from("ghp_x"));
    let f = fixture_as(Script::default(), &token, "acme/app").await;
    assert_eq!(f.github.group(None).await.unwrap(), 1);
    assert_eq!(f.github.group(Some("big")).await.unwrap_err().class, ForgeErrorClass::NotFound);
    assert!(f.script.requests().is_empty());
    let f = fixture_as(Script::default().then(204, ""), &token, "enterprises/acme").await;
    f.github.delete(9).await.unwrap();
    assert_eq!(f.script.requests(), ["DELETE /api/v3/enterprises/acme/actions/runners/9"]);
}

fn app() -> Credential {
    use aws_lc_rs::{encoding::AsDer, rsa::KeySize, signature::RsaKeyPair};
    use base64::Engine;
    let key = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let der: aws_lc_rs::encoding::Pkcs8V1Der<'_> = key.as_der().unwrap();
    let body = base64::engine::general_purpose::STANDARD.encode(der.as_ref());
    let lines: Vec<_> = body.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", lines.join("\n"));
    Credential::App { id: 12, installation: 34, private_key: SecretString::from(pem) }
}

#[tokio::test]
async fn calls_that_start_together_mint_one_token() {
    let script = (0..8).fold(Script::default(), |script, _| script.then(404, "{}"));
    let f = fixture_as(script, &app(), "acme").await;
    let calls = futures::future::join_all((0..8).map(|id| f.github.get(id))).await;
    assert!(calls.iter().all(|call| matches!(call, Ok(None))), "{calls:?}");
    let minted = f.script.requests().iter().filter(|r| r.contains("/app/installations/34/access_tokens")).count();
    assert_eq!(minted, 1);
    assert_eq!(f.script.0.lock().unwrap().unauthorized, 0);
}

#[tokio::test]
async fn without_a_token_nothing_is_sent_and_nothing_is_ambiguous() {
    let table = [
        (401, r#"{"message": "A JSON web token could not be decoded"}"#, ForgeErrorClass::Credentials),
        (404, r#"{"message": "Integration not found"}"#, ForgeErrorClass::Credentials),
        (403, r#"{"message": "You have exceeded a secondary rate limit"}"#, ForgeErrorClass::RateLimit),
        (502, "<html>", ForgeErrorClass::Transient),
    ];
    for (status, body, class) in table {
        let f = fixture_as(Script::default(), &app(), "acme").await;
        f.script.0.lock().unwrap().unminted = Some((status, body));
        let error = f.github.register(&registration()).await.unwrap_err();
        assert_eq!((error.class, error.ambiguous), (class, false), "{status}: {error}");
        assert!(f.script.requests().iter().all(|r| !r.contains("generate-jitconfig")), "{:?}", f.script.requests());
    }
}

#[tokio::test]
async fn a_token_that_was_revoked_is_replaced_once() {
    let script = Script::default().then(401, r#"{"message": "Bad credentials"}"#).then(404, "{}");
    let f = fixture_as(script, &app(), "acme").await;
    assert_eq!(f.github.get(7).await.unwrap(), None);
    let minted = f.script.requests().iter().filter(|r| r.contains("access_tokens")).count();
    assert_eq!(minted, 2);
}

#[tokio::test]
async fn a_key_that_is_no_key_is_refused_without_being_quoted() {
    let credential = Credential::App { id: 1, installation: 2, private_key: SecretString::from("not-a-key") };
    let calls: (_, crate::compute::Observe) = (Duration::from_secs(1), Arc::new(|_, _, _| ()));
    let error = Connection::new("http://127.0.0.1:1/api/v3", &credential, Arc::new(SystemClock), calls).err().unwrap();
    assert!(matches!(error, GithubError::Key), "{error:?}");
    assert!(!format!("{error:?}").contains("not-a-key"));
}

fn run_of(repository: &str) -> Run {
    Run { repository: repository.into(), id: 42, attempt: 2 }
}

#[tokio::test]
async fn the_job_of_a_runner_is_found_by_the_runners_name() {
    let body = r#"{"total_count": 3, "jobs": [
        {"id": 1, "html_url": "https://x/1", "runner_name": null, "workflow_name": null},
        {"id": 2, "html_url": "https://x/2", "runner_name": "other", "head_branch": null},
        {"id": 3, "html_url": "https://x/3", "runner_name": "ours", "runner_id": 7}]}"#;
    let f = fixture(Script::default().then(200, body)).await;
    let found = f.github.job(&run_of("acme/app"), "ours").await.unwrap();
    assert_eq!(found, Some(ForgeJob { id: 3, url: "https://x/3".into() }));
    let asked = "GET /api/v3/repos/acme/app/actions/runs/42/attempts/2/jobs?per_page=100&page=1";
    assert_eq!(f.script.requests(), [asked]);
}

#[tokio::test]
async fn a_job_that_cannot_be_read_is_only_not_known() {
    for status in [403, 404] {
        let f = fixture(Script::default().then(status, r#"{"message": "Resource not accessible"}"#)).await;
        assert_eq!(f.github.job(&run_of("acme/app"), "ours").await.unwrap(), None, "{status}");
    }
    let f = fixture(Script::default().then(200, r#"{"total_count": 0, "jobs": []}"#)).await;
    assert_eq!(f.github.job(&run_of("acme/app"), "ours").await.unwrap(), None);
}

#[tokio::test]
async fn a_repository_of_somebody_else_is_not_asked_about() {
    let f = fixture(Script::default()).await;
    for forged in ["evil/app", "acme/../../orgs", "acme/app/actions?x="] {
        assert_eq!(f.github.job(&run_of(forged), "ours").await.unwrap(), None, "{forged}");
    }
    assert_eq!(f.script.requests(), Vec::<String>::new());
}
