//! A metadata server as Compute Engine has it, and as it is when it is ill.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Query, Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
    routing::{get, put},
};
use tokio::{net::TcpListener, task::JoinHandle, time::timeout};

/// Status, body, whether it has an ETag.
pub(crate) type Oddity = (u16, &'static str, bool);

/// What is wrong with the metadata server.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Trouble {
    Status(u16),
    /// Something that is neither what was asked for nor text.
    Garbage,
    /// More than anything there can be.
    Endless,
    /// No answer.
    Silence,
}

/// What the metadata server was asked and told.
#[derive(Clone, Default)]
pub(crate) struct Metadata {
    pub(crate) attributes: Arc<Mutex<HashMap<String, String>>>,
    pub(crate) audiences: Arc<Mutex<Vec<String>>>,
    pub(crate) statuses: Arc<Mutex<Vec<String>>>,
    pub(crate) trouble: Arc<Mutex<Option<Trouble>>>,
    /// What it takes the time for, instead of the time.
    pub(crate) date: Arc<Mutex<Option<String>>>,
    /// What the cloud announces, by path below `instance/`.
    pub(crate) notices: Arc<tokio::sync::watch::Sender<HashMap<&'static str, &'static str>>>,
    /// What it answers instead, one a question: status, body, whether it has an ETag.
    pub(crate) oddities: Arc<Mutex<VecDeque<Oddity>>>,
    /// How often it was asked for notices.
    pub(crate) asked: Arc<AtomicUsize>,
}

impl Metadata {
    /// Serves it: its address, and the task.
    pub(crate) async fn serve(self) -> (String, JoinHandle<()>) {
        let base = "/computeMetadata/v1/instance";
        let router = Router::new()
            .route(&format!("{base}/attributes/"), get(attributes))
            .route(&format!("{base}/service-accounts/default/identity"), get(identity))
            .route(&format!("{base}/id"), get(id))
            .route(&format!("{base}/guest-attributes/miglet/status"), put(status))
            .route(&format!("{base}/preempted"), get(async |m, h, q| notice("preempted", m, h, q).await))
            .route(
                &format!("{base}/maintenance-event"),
                get(async |m, h, q| notice("maintenance-event", m, h, q).await),
            )
            .layer(axum::middleware::from_fn_with_state(self.clone(), troubled))
            .with_state(self);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
        let host = listener.local_addr().expect("address").to_string();
        (host, tokio::spawn(async move { axum::serve(listener, router).await.expect("served") }))
    }
}

async fn troubled(State(m): State<Metadata>, request: Request, next: Next) -> Response {
    let trouble = *m.trouble.lock().expect("lock");
    match trouble {
        None => next.run(request).await,
        Some(Trouble::Status(status)) => StatusCode::from_u16(status).expect("status").into_response(),
        Some(Trouble::Garbage) => vec![b'{', 0xff, 0, b'"'].into_response(),
        Some(Trouble::Endless) => vec![b' '; 2 * 1024 * 1024].into_response(),
        Some(Trouble::Silence) => std::future::pending().await,
    }
}

fn flavored(headers: &HeaderMap) -> bool {
    headers.get("metadata-flavor").is_some_and(|value| value == "Google")
}

async fn attributes(
    State(m): State<Metadata>,
    headers: HeaderMap,
    Query(query): Query<HashMap<String, String>>,
) -> Result<Json<HashMap<String, String>>, StatusCode> {
    if !flavored(&headers) || query.get("recursive").is_none_or(|recursive| recursive != "true") {
        return Err(StatusCode::FORBIDDEN);
    }
    Ok(Json(m.attributes.lock().expect("lock").clone()))
}

/// The Date header is the real one unless a test sets another.
async fn id(State(m): State<Metadata>) -> (HeaderMap, &'static str) {
    let date = m.date.lock().expect("lock").clone();
    let headers = date.map(|date| (header::DATE, date.parse().expect("header")));
    (headers.into_iter().collect(), "7")
}

async fn identity(
    State(m): State<Metadata>,
    headers: HeaderMap,
    Query(query): Query<HashMap<String, String>>,
) -> Result<String, StatusCode> {
    if !flavored(&headers) || query.get("format").is_none_or(|format| format != "full") {
        return Err(StatusCode::BAD_REQUEST);
    }
    let audience = query.get("audience").cloned().ok_or(StatusCode::BAD_REQUEST)?;
    m.audiences.lock().expect("lock").push(audience.clone());
    Ok(format!("token for {audience}\n"))
}

/// Held until the value's ETag, here the value itself, is not the one the client knows.
async fn notice(
    name: &'static str,
    State(m): State<Metadata>,
    headers: HeaderMap,
    Query(query): Query<HashMap<String, String>>,
) -> Result<(HeaderMap, String), (StatusCode, &'static str)> {
    if !flavored(&headers) || query.get("wait_for_change").is_none_or(|wait| wait != "true") {
        return Err((StatusCode::FORBIDDEN, ""));
    }
    m.asked.fetch_add(1, Ordering::Relaxed);
    let odd = m.oddities.lock().expect("lock").pop_front();
    if let Some((status, body, tagged)) = odd {
        let tag = tagged.then(|| (header::ETAG, "odd".parse().expect("header")));
        let status = StatusCode::from_u16(status).expect("status");
        return if status.is_success() { Ok((tag.into_iter().collect(), body.into())) } else { Err((status, body)) };
    }
    let mut values = m.notices.subscribe();
    let quiet = if name == "preempted" { "FALSE" } else { "NONE" };
    let value = |values: &HashMap<&str, &'static str>| values.get(name).copied().unwrap_or(quiet);
    let known = query.get("last_etag").cloned().unwrap_or_default();
    let seconds = query.get("timeout_sec").and_then(|s| s.parse().ok()).expect("a timeout");
    timeout(Duration::from_secs(seconds), values.wait_for(|values| value(values) != known)).await.ok();
    let value = value(&values.borrow());
    Ok((HeaderMap::from_iter([(header::ETAG, value.parse().expect("header"))]), value.to_owned()))
}

async fn status(State(m): State<Metadata>, body: String) {
    m.statuses.lock().expect("lock").push(body);
}
