//! The REST surface: who may call, which call it is, and whether call and answer conform to what Google published.
//!
//! ```text
//!  request -> bearer token? -> rate left? -> dispatch by path -> contract check -> distortions on demand -> answer
//! ```
//! Distortions (fields and values from the future) come after the check, because they are meant not to conform.

use std::sync::Arc;

use axum::{body::Body, extract::State, response::Response};
use http::{HeaderMap, Method, Request, StatusCode};
use serde_json::{Value, json};
use tokio::time::{Duration, sleep};

use super::{
    Inner,
    errors::ApiError,
    managers::list,
    state::{GroupKey, Place, now},
};
use crate::published::discovery::Observed;

/// The most a request may carry.
const BODY: usize = 16 << 20;
/// The longest an operation's `wait` takes.
const WAIT: Duration = Duration::from_secs(120);

/// What a client said beside the path.
#[derive(Debug)]
pub(crate) struct Call {
    query: Vec<(String, String)>,
    pub(crate) body: Value,
}

impl Call {
    pub(crate) fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }
}

/// Answers a request below `/compute/v1/`.
pub(crate) async fn serve(State(sim): State<Arc<Inner>>, request: Request<Body>) -> Response {
    let (head, body) = request.into_parts();
    let Ok(bytes) = axum::body::to_bytes(body, BODY).await else {
        return respond(413, &json!({}));
    };
    let path = head.uri.path().trim_start_matches("/compute/v1/").to_owned();
    let query = head.uri.query().unwrap_or_default();
    let query: Vec<_> = url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
    let (status, body) = match handle(&sim, (&head.method, &head.headers), &path, (&query, &bytes)).await {
        Ok(body) => (200, body),
        Err(error) => (error.status, error.body()),
    };
    if let Some(contract) = &sim.contract {
        let (request, response) = (bytes.as_ref(), body.to_string());
        let method = head.method.as_str();
        let seen = Observed { method, path: &path, query: &query, request, status, response: response.as_bytes() };
        sim.violated(contract.check(&seen));
    }
    respond(status, &sim.distorted(body))
}

async fn handle(
    sim: &Arc<Inner>,
    (method, headers): (&Method, &HeaderMap),
    path: &str,
    (query, bytes): (&[(String, String)], &[u8]),
) -> Result<Value, ApiError> {
    authenticate(sim, headers)?;
    sim.spend_rate()?;
    let body = if bytes.is_empty() {
        json!({})
    } else {
        serde_json::from_slice(bytes).map_err(|error| ApiError::invalid(format!("Parse Error: {error}")))?
    };
    let call = Call { query: query.to_vec(), body };
    let segments: Vec<&str> = path.split('/').collect();
    let missing = || ApiError::not_found(path);
    let ["projects", project, below @ ..] = segments.as_slice() else { return Err(missing()) };
    if *project != sim.options.project && *project != sim.options.project_number.to_string() {
        return Err(ApiError::not_found(&format!("projects/{project}")));
    }
    if let [.., "operations", name, "wait"] = below {
        sim.wait(name).await;
    }
    let answer = dispatch(sim, method, below, &call);
    sim.start_unborn();
    answer
}

fn authenticate(sim: &Inner, headers: &HeaderMap) -> Result<(), ApiError> {
    let bearer = headers.get("authorization").and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    match bearer {
        Some(token) if token == sim.token => Ok(()),
        Some(token) if token.starts_with("vm-") => {
            Err(ApiError::forbidden("Required permission is missing: instances have no rights in this project"))
        }
        _ => Err(ApiError::unauthenticated()),
    }
}

fn dispatch(sim: &Inner, method: &Method, below: &[&str], call: &Call) -> Result<Value, ApiError> {
    let missing = || ApiError::not_found(&format!("projects/{}/{}", sim.options.project, below.join("/")));
    match below {
        [kind, place, "instanceGroupManagers", rest @ ..] => {
            managers(sim, method, self::place(kind, place).ok_or_else(missing)?, (rest, call))
        }
        ["zones", zone, "instances", rest @ ..] => instances(sim, method, zone, (rest, call)),
        [kind, place, "operations", rest @ ..] => {
            operations(sim, method, self::place(kind, place).ok_or_else(missing)?, rest)
        }
        ["global", "operations", name, ..] => sim.operation(None, name),
        ["global", "instanceTemplates", rest @ ..] => templates(sim, method, None, (rest, call)),
        ["regions", region, "instanceTemplates", rest @ ..] => {
            templates(sim, method, Some(Place::Region((*region).to_owned())), (rest, call))
        }
        _ => Err(missing()),
    }
}

fn managers(sim: &Inner, method: &Method, place: Place, (rest, call): (&[&str], &Call)) -> Result<Value, ApiError> {
    let key = |name: &str| -> GroupKey { (place.clone(), name.to_owned()) };
    match (method.as_str(), rest) {
        ("GET", []) => sim.list_groups(&sim.world(), &place),
        ("POST", []) => {
            let name = call.body.get("name").and_then(Value::as_str);
            let name = name.ok_or_else(|| ApiError::invalid("Invalid value for field 'resource.name'"))?;
            sim.change_group(&key(name), "insert", call)
        }
        ("GET", [name]) => sim.group_body(&sim.world(), &key(name)),
        ("PATCH", [name]) => sim.change_group(&key(name), "patch", call),
        ("DELETE", [name]) => sim.change_group(&key(name), "delete", call),
        ("POST", [name, "listManagedInstances"]) => sim.list_managed(&sim.world(), &key(name), call),
        ("GET", [name, "listErrors"]) => sim.list_errors(&sim.world(), &key(name)),
        ("POST", [name, verb]) => sim.change_group(&key(name), verb, call),
        _ => Err(ApiError::not_found(&rest.join("/"))),
    }
}

fn instances(sim: &Inner, method: &Method, zone: &str, (rest, call): (&[&str], &Call)) -> Result<Value, ApiError> {
    match (method.as_str(), rest) {
        ("GET", []) => Ok(sim.list_instances(&sim.world(), zone)),
        ("GET", [name]) => sim.instance(&sim.world(), zone, name),
        ("GET", [name, "getGuestAttributes"]) => sim.guest_attributes(&sim.world(), (zone, name), call),
        ("GET", [name, "serialPort"]) => sim.serial_port(&sim.world(), (zone, name), call),
        ("DELETE", [name]) => sim.change_instance((zone, name), "delete", call),
        ("POST", [name, "stop"]) => sim.change_instance((zone, name), "stop", call),
        _ => Err(ApiError::not_found(&rest.join("/"))),
    }
}

fn operations(sim: &Inner, method: &Method, place: Place, rest: &[&str]) -> Result<Value, ApiError> {
    match (method.as_str(), rest) {
        ("GET", []) => {
            let world = sim.world();
            let here = world.operations.values().filter(|operation| operation.place.as_ref() == Some(&place));
            Ok(list("compute#operationList", here.map(|operation| operation.body(&sim.options.project)).collect()))
        }
        ("GET", [name]) | ("POST", [name, "wait"]) => sim.operation(Some(&place), name),
        _ => Err(ApiError::not_found(&rest.join("/"))),
    }
}

fn templates(
    sim: &Inner,
    method: &Method,
    place: Option<Place>,
    (rest, call): (&[&str], &Call),
) -> Result<Value, ApiError> {
    let home = place.as_ref().map_or_else(|| "global".to_owned(), Place::path);
    match (method.as_str(), rest) {
        ("GET", []) => Ok(sim.list_templates(&format!("{home}/instanceTemplates/"))),
        ("GET", [name]) => sim.template(&format!("{home}/instanceTemplates/{name}")),
        ("POST", []) => sim.insert_template(place, call),
        _ => Err(ApiError::not_found(&rest.join("/"))),
    }
}

fn place(kind: &str, name: &str) -> Option<Place> {
    match kind {
        "zones" => Some(Place::Zone(name.to_owned())),
        "regions" => Some(Place::Region(name.to_owned())),
        _ => None,
    }
}

impl Inner {
    fn operation(&self, place: Option<&Place>, name: &str) -> Result<Value, ApiError> {
        let world = self.world();
        let operation = world.operations.get(name).filter(|operation| operation.place.as_ref() == place);
        let missing = || ApiError::not_found(&format!("projects/{}/operations/{name}", self.options.project));
        operation.map(|operation| operation.body(&self.options.project)).ok_or_else(missing)
    }

    /// Until the operation is done, two minutes are over, or at once when waits are to return early.
    async fn wait(&self, name: &str) {
        let remaining = {
            let world = self.world();
            let operation = world.operations.get(name).filter(|_| !world.hostile.early_waits);
            operation.map(super::operation::Operation::remaining)
        };
        if let Some(remaining) = remaining {
            sleep(remaining.min(WAIT)).await;
        }
    }

    /// Counts a call against the rate; the count starts anew with every window of wall-clock time.
    fn spend_rate(&self) -> Result<(), ApiError> {
        let number = self.options.project_number;
        let mut world = self.world();
        let Some(rate) = &mut world.hostile.rate else { return Ok(()) };
        let millis = u128::try_from(now().as_millisecond()).unwrap_or(0);
        let window = millis / rate.window.as_millis().max(1);
        if window != rate.current {
            (rate.current, rate.used) = (window, 0);
        }
        rate.used += 1;
        if rate.used > rate.calls { Err(ApiError::rate_limited(number)) } else { Ok(()) }
    }

    /// The answer with fields and values from the future, when that is on.
    fn distorted(&self, mut body: Value) -> Value {
        let world = self.world();
        if let Some(Value::Array(items)) = body.get_mut("managedInstances") {
            for item in items {
                let patch =
                    item.get("name").and_then(Value::as_str).and_then(|name| world.hostile.distortions.get(name));
                if let Some(patch) = patch {
                    super::managers::merge(item, patch);
                }
                if world.hostile.unknown_fields {
                    super::managers::merge(item, &json!({"futureField": {"of": ["the", "future"]}}));
                }
            }
        }
        if world.hostile.unknown_fields {
            super::managers::merge(&mut body, &json!({"futureField": 1}));
        }
        body
    }
}

fn respond(status: u16, body: &Value) -> Response {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert("content-type", http::HeaderValue::from_static("application/json; charset=UTF-8"));
    headers.insert("server", http::HeaderValue::from_static("ESF"));
    response
}
