//! The metadata server: one per instance, on a port of its own, and one for the operator's own credentials.
//!
//! Values form a tree; a path names a leaf (text, or JSON with `alt=json`) or a directory (a listing, or the whole
//! subtree as JSON with `recursive=true`). Every answer has an ETag; `wait_for_change` holds the request until the
//! value's ETag differs from the one the client knows.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Query, State},
    response::Response,
};
use http::{Method, Request, StatusCode};
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use super::{
    identity::{Identity, SignedBy},
    state::now,
};

const ROOT: &str = "/computeMetadata/v1";
/// The most a guest may write at once.
const BODY: usize = 1 << 18;
/// How long `wait_for_change` waits unless told.
const WAIT: u64 = 3600;

/// Who the metadata server speaks for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Subject {
    pub(crate) name: String,
    pub(crate) id: u64,
    pub(crate) zone: String,
    pub(crate) project: String,
    pub(crate) project_number: u64,
    pub(crate) service_account: Option<String>,
    pub(crate) token: String,
    /// Seconds since the epoch.
    pub(crate) created: i64,
}

/// What one metadata server serves.
pub(crate) struct Metadata {
    subject: Subject,
    identity: Arc<Identity>,
    /// Seconds the identity tokens' clock is ahead.
    skew: Arc<AtomicI64>,
    attributes: Mutex<BTreeMap<String, String>>,
    guest: Mutex<BTreeMap<(String, String), String>>,
    preempted: watch::Sender<bool>,
}

impl std::fmt::Debug for Metadata {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metadata").field("instance", &self.subject.name).finish_non_exhaustive()
    }
}

type Parameters = BTreeMap<String, String>;

impl Metadata {
    pub(crate) fn new(
        subject: Subject,
        identity: Arc<Identity>,
        skew: Arc<AtomicI64>,
        attributes: BTreeMap<String, String>,
    ) -> Self {
        let (attributes, guest) = (Mutex::new(attributes), Mutex::default());
        Self { subject, identity, skew, attributes, guest, preempted: watch::Sender::new(false) }
    }

    pub(crate) fn router(self: Arc<Self>) -> Router {
        Router::new().fallback(serve).with_state(self)
    }

    /// Announces that the instance is being preempted.
    pub(crate) fn preempt(&self) {
        self.preempted.send_replace(true);
    }

    pub(crate) fn is_preempted(&self) -> bool {
        *self.preempted.borrow()
    }

    /// Guest attributes below a namespace, or one of it.
    pub(crate) fn guest_attributes(&self, query: &str) -> Vec<(String, String, String)> {
        let (namespace, key) = query.split_once('/').unwrap_or((query, ""));
        let guest = lock(&self.guest);
        let chosen =
            guest.iter().filter(|((n, k), _)| (namespace.is_empty() || n == namespace) && (key.is_empty() || k == key));
        chosen.map(|((n, k), v)| (n.clone(), k.clone(), v.clone())).collect()
    }

    /// Changes an attribute of the running instance.
    pub(crate) fn set_attribute(&self, key: &str, value: &str) {
        lock(&self.attributes).insert(key.to_owned(), value.to_owned());
        self.preempted.send_modify(|_| {});
    }

    pub(crate) fn attributes(&self) -> BTreeMap<String, String> {
        lock(&self.attributes).clone()
    }

    /// The genuine claims of an identity token; `None` without a service account.
    pub(crate) fn claims(&self, audience: &str, full: bool) -> Option<Value> {
        let email = self.subject.service_account.as_ref()?;
        let issued = now().as_second() + self.skew.load(Ordering::Relaxed);
        let mut hasher = DefaultHasher::new();
        email.hash(&mut hasher);
        let account = format!("1{:020}", hasher.finish());
        let mut claims = json!({
            "iss": "https://accounts.google.com", "aud": audience, "azp": account, "sub": account,
            "email": email, "email_verified": true, "iat": issued, "exp": issued + 3600,
        });
        if let (true, Some(claims)) = (full, claims.as_object_mut()) {
            let s = &self.subject;
            let engine = json!({
                "project_id": s.project, "project_number": s.project_number, "zone": s.zone,
                "instance_id": s.id.to_string(), "instance_name": s.name,
                "instance_creation_timestamp": s.created, "instance_confidentiality": 0,
            });
            claims.insert("google".to_owned(), json!({"compute_engine": engine}));
        }
        Some(claims)
    }

    fn tree(&self) -> Value {
        let s = &self.subject;
        let guest = lock(&self.guest).iter().fold(Map::new(), |mut tree, ((namespace, key), value)| {
            if let Value::Object(keys) = tree.entry(namespace.as_str()).or_insert_with(|| json!({})) {
                keys.insert(key.clone(), json!(value));
            }
            tree
        });
        let accounts = s.service_account.as_ref().map_or_else(
            || json!({}),
            |email| {
                let account = json!({"aliases": "default", "email": email,
                "scopes": "https://www.googleapis.com/auth/cloud-platform"});
                json!({"default": account, email.as_str(): account})
            },
        );
        let zone = format!("projects/{}/zones/{}", s.project_number, s.zone);
        json!({
            "instance": {
                "id": s.id, "name": s.name, "zone": zone,
                "hostname": format!("{}.{}.c.{}.internal", s.name, s.zone, s.project),
                "attributes": self.attributes(),
                "service-accounts": accounts,
                "preempted": if self.is_preempted() { "TRUE" } else { "FALSE" },
                "maintenance-event": "NONE",
                "guest-attributes": guest,
            },
            "project": {"project-id": s.project, "numeric-project-id": s.project_number},
            "universe": {"universe-domain": "googleapis.com"},
        })
    }

    /// The answer's body and type, or a status.
    fn read(&self, path: &str, query: &Parameters) -> Result<(String, &'static str), StatusCode> {
        if let Some((account, what)) = path.strip_prefix("instance/service-accounts/").and_then(|p| p.split_once('/')) {
            let known = account == "default" || self.subject.service_account.as_deref() == Some(account);
            match what {
                "token" | "identity" if !known || self.subject.service_account.is_none() => {
                    return Err(StatusCode::NOT_FOUND);
                }
                "token" => return Ok((self.access_token(), "application/json")),
                "identity" => return self.identity_token(query),
                _ => {}
            }
        }
        let tree = self.tree();
        let mut node = &tree;
        for part in path.split('/').filter(|part| !part.is_empty()) {
            node = node.get(part).ok_or(StatusCode::NOT_FOUND)?;
        }
        Ok(render(node, path, query))
    }

    fn access_token(&self) -> String {
        json!({"access_token": self.subject.token, "expires_in": 3599, "token_type": "Bearer"}).to_string()
    }

    fn identity_token(&self, query: &Parameters) -> Result<(String, &'static str), StatusCode> {
        let audience = query.get("audience").filter(|a| !a.is_empty()).ok_or(StatusCode::BAD_REQUEST)?;
        let full = query.get("format").is_some_and(|format| format == "full");
        let claims = self.claims(audience, full).ok_or(StatusCode::NOT_FOUND)?;
        let token =
            self.identity.sign(&claims, SignedBy::Google).map_err(|_error| StatusCode::INTERNAL_SERVER_ERROR)?;
        Ok((token, "text/html"))
    }

    fn write(&self, path: &str, body: Option<&Bytes>) -> StatusCode {
        let enabled =
            lock(&self.attributes).get("enable-guest-attributes").is_some_and(|v| v.eq_ignore_ascii_case("true"));
        let place = path.strip_prefix("instance/guest-attributes/").and_then(|p| p.split_once('/'));
        let (true, Some((namespace, key))) = (enabled, place) else { return StatusCode::FORBIDDEN };
        let key = (namespace.to_owned(), key.to_owned());
        match body {
            Some(body) => lock(&self.guest).insert(key, String::from_utf8_lossy(body).into_owned()),
            None => lock(&self.guest).remove(&key),
        };
        StatusCode::OK
    }
}

/// Answers one request.
pub(crate) async fn serve(
    State(metadata): State<Arc<Metadata>>,
    Query(query): Query<Parameters>,
    request: Request<Body>,
) -> Response {
    let (head, body) = request.into_parts();
    let flavor = head.headers.get("metadata-flavor");
    if flavor.is_none_or(|flavor| flavor != "Google") || head.headers.contains_key("x-forwarded-for") {
        return answer(StatusCode::FORBIDDEN, "Missing Metadata-Flavor:Google header.".to_owned(), "text/html");
    }
    let path = head.uri.path().strip_prefix(ROOT).map(|path| path.trim_start_matches('/'));
    let Some(path) = path else { return answer(StatusCode::NOT_FOUND, String::new(), "text/html") };
    match head.method {
        Method::PUT => {
            let body = axum::body::to_bytes(body, BODY).await.unwrap_or_default();
            answer(metadata.write(path, Some(&body)), String::new(), "text/html")
        }
        Method::DELETE => answer(metadata.write(path, None), String::new(), "text/html"),
        Method::GET => {
            if query.get("wait_for_change").is_some_and(|wait| wait == "true") {
                wait_for_change(&metadata, path, &query).await;
            }
            match metadata.read(path, &query) {
                Ok((text, kind)) => answer(StatusCode::OK, text, kind),
                Err(status) => answer(status, String::new(), "text/html"),
            }
        }
        _ => answer(StatusCode::METHOD_NOT_ALLOWED, String::new(), "text/html"),
    }
}

async fn wait_for_change(metadata: &Metadata, path: &str, query: &Parameters) {
    let mut changes = metadata.preempted.subscribe();
    let etag = || metadata.read(path, query).map(|(text, _)| etag(&text)).unwrap_or_default();
    let known = query.get("last_etag").filter(|known| *known != "0").cloned().unwrap_or_else(&etag);
    let seconds = query.get("timeout_sec").and_then(|s| s.parse().ok()).unwrap_or(WAIT);
    let changed = async {
        // The sender lives as long as `metadata`, so this loop ends only by a change.
        while etag() == known && changes.changed().await.is_ok() {}
    };
    // At the timeout the unchanged value is the answer.
    drop(tokio::time::timeout(Duration::from_secs(seconds), changed).await);
}

fn render(node: &Value, path: &str, query: &Parameters) -> (String, &'static str) {
    let json = query.get("alt").is_some_and(|alt| alt == "json");
    let recursive = query.get("recursive").is_some_and(|r| r == "true");
    match node {
        Value::Object(_) if recursive => (camel(node, path.contains("attributes")).to_string(), "application/json"),
        Value::Object(map) => {
            let line =
                |(name, value): (&String, &Value)| format!("{name}{}\n", if value.is_object() { "/" } else { "" });
            (map.iter().map(line).collect(), "application/text")
        }
        _ if json => (node.to_string(), "application/json"),
        Value::String(text) => (text.clone(), "application/text"),
        other => (other.to_string(), "application/text"),
    }
}

/// Recursive answers spell names in camel case, except those that users chose.
fn camel(node: &Value, verbatim: bool) -> Value {
    let Value::Object(map) = node else { return node.clone() };
    let rename = |(name, value): (&String, &Value)| {
        let below = verbatim || name.ends_with("attributes");
        (if verbatim { name.clone() } else { camel_name(name) }, camel(value, below))
    };
    Value::Object(map.iter().map(rename).collect())
}

fn camel_name(name: &str) -> String {
    if name.contains('@') {
        return name.to_owned();
    }
    let mut parts = name.split('-');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |mut out, part| {
        let mut letters = part.chars();
        out.extend(letters.next().map(|c| c.to_ascii_uppercase()));
        out.push_str(letters.as_str());
        out
    })
}

fn etag(text: &str) -> String {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

fn answer(status: StatusCode, text: String, kind: &str) -> Response {
    let response = Response::builder()
        .status(status)
        .header("metadata-flavor", "Google")
        .header("server", "Metadata Server for VM")
        .header("etag", etag(&text))
        .header("content-type", kind);
    response.body(Body::from(text)).unwrap_or_default()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
