//! GitHub's OpenAPI description, as a judge of every request and response of the simulator.
//!
//! ```text
//!   npm pack @octokit/openapi@PINNED -> api.github.com.json, ghec.json -> the paths about runners and Apps,
//!   nullable and unknown fields made plain JSON Schema -> cache folder (0.5 MB) -> jsonschema
//! ```
//!
//! Stricter than the description in one way: a field it does not name is a violation, so that a misspelt one shows.
//! Error answers it does not list (401, 404, rate limits) must look like its `basic-error`.

mod fetch;
mod simplify;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use jsonschema::{Draft, Validator};
use serde_json::{Map, Value, json};

pub use self::fetch::PublishedError;

/// One request and its answer.
#[derive(Clone, Copy, Debug)]
pub struct Exchange<'a> {
    /// HTTP method.
    pub method: &'a str,
    /// Path without its query.
    pub path: &'a str,
    /// The query.
    pub query: &'a str,
    /// Request body.
    pub request: &'a [u8],
    /// Status of the answer.
    pub status: u16,
    /// Body of the answer.
    pub response: &'a [u8],
}

/// The published description.
#[derive(Debug)]
pub struct OpenApi {
    /// First github.com's, then GHEC's, which alone knows enterprises.
    documents: Vec<Value>,
    validators: Mutex<HashMap<String, Arc<Validator>>>,
}

/// An operation of the description, found for a request.
struct Operation<'a> {
    document: &'a Value,
    spec: &'a Value,
    /// Unique name, also of its place in the description.
    name: String,
    /// Values in the path.
    params: HashMap<String, String>,
}

impl OpenApi {
    /// The description, fetched once per machine and read once per process; `None` when npm is missing.
    ///
    /// # Errors
    /// When it cannot be had and `MIGLET_REQUIRE_PUBLISHED` is set.
    pub fn load() -> Result<Option<Arc<Self>>, PublishedError> {
        static LOADED: OnceLock<Result<Arc<OpenApi>, PublishedError>> = OnceLock::new();
        let loaded = LOADED.get_or_init(|| {
            let documents = fetch::documents()?;
            Ok(Arc::new(Self { documents, validators: Mutex::default() }))
        });
        match loaded {
            Ok(api) => Ok(Some(api.clone())),
            Err(error) if std::env::var_os("MIGLET_REQUIRE_PUBLISHED").is_some() => Err(error.clone()),
            Err(error) => {
                fetch::warn(error);
                Ok(None)
            }
        }
    }

    /// What in this exchange departs from the description.
    #[must_use]
    pub fn violations(&self, exchange: &Exchange<'_>) -> Vec<String> {
        let Some(operation) = self.find(exchange) else {
            return vec![format!("{} {}: no such operation", exchange.method, exchange.path)];
        };
        let mut found = self.request(&operation, exchange);
        found.extend(self.response(&operation, exchange));
        found.iter().map(|text| format!("{} {}: {text}", exchange.method, exchange.path)).collect()
    }

    fn find(&self, exchange: &Exchange<'_>) -> Option<Operation<'_>> {
        let method = exchange.method.to_lowercase();
        self.documents.iter().find_map(|document| {
            let paths = document.get("paths")?.as_object()?;
            let hits = paths.iter().filter_map(|(template, item)| {
                Some((template, item.get(&method)?, match_path(template, exchange.path)?))
            });
            // A literal segment beats a parameter: runners/downloads is not a runner id.
            let (template, spec, params) = hits.min_by_key(|(.., params)| params.len())?;
            Some(Operation { document, spec, name: format!("{method} {template}"), params })
        })
    }

    fn request(&self, operation: &Operation<'_>, exchange: &Exchange<'_>) -> Vec<String> {
        let mut found = self.parameters(operation, exchange);
        let body = operation.spec.get("requestBody");
        let required = body.and_then(|b| b.get("required")).and_then(Value::as_bool).unwrap_or(false);
        if exchange.request.is_empty() {
            found.extend(required.then(|| "request: a body is required".to_owned()));
        } else if let Some(schema) = body.and_then(json_schema) {
            let name = format!("{} request", operation.name);
            // A refused request may be wrong: that is what it was refused for.
            if exchange.status != 422 {
                found.extend(self.judge(operation.document, &name, schema, exchange.request));
            }
        }
        found
    }

    fn parameters(&self, operation: &Operation<'_>, exchange: &Exchange<'_>) -> Vec<String> {
        let listed = operation.spec.get("parameters").and_then(Value::as_array).into_iter().flatten();
        let listed: Vec<_> = listed.map(|p| resolve(operation.document, p)).collect();
        let mut found = Vec::new();
        let query = url::form_urlencoded::parse(exchange.query.as_bytes());
        let given = query.map(|(k, v)| ("query", k.into_owned(), v.into_owned()));
        let path = operation.params.iter().map(|(k, v)| ("path", k.clone(), v.clone()));
        for (place, name, value) in given.chain(path) {
            let is = |p: &&&Value| p.get("in") == Some(&json!(place)) && p.get("name") == Some(&json!(name));
            let Some(schema) = listed.iter().find(is).and_then(|p| p.get("schema")) else {
                found.push(format!("{place} parameter {name} is not in the description"));
                continue;
            };
            let typed = value.parse::<i64>().map_or_else(|_| json!(value), |n| json!(n));
            let whole = schema.get("type") == Some(&json!("integer"));
            let value = if whole { typed } else { json!(value) };
            let label = format!("{} {place} {name}", operation.name);
            // A wrong id is the client's business only when it was not refused.
            if exchange.status < 400 {
                found.extend(self.judge(operation.document, &label, schema, value.to_string().as_bytes()));
            }
        }
        found
    }

    fn response(&self, operation: &Operation<'_>, exchange: &Exchange<'_>) -> Vec<String> {
        let status = exchange.status.to_string();
        let listed = operation.spec.get("responses").and_then(|r| r.get(&status));
        let name = format!("{} response {status}", operation.name);
        let Some(response) = listed.map(|r| resolve(operation.document, r)) else {
            return match exchange.status {
                401 | 403 | 404 | 429 => {
                    let schema = json!({"$ref": "#/components/schemas/basic-error"});
                    self.judge(operation.document, "basic-error", &schema, exchange.response)
                }
                _ => vec![format!("status {status} is not in the description")],
            };
        };
        let body = if exchange.status < 400 { exchange.response.to_vec() } else { without_status(exchange.response) };
        match json_schema(response) {
            Some(schema) => self.judge(operation.document, &name, schema, &body),
            None if exchange.response.is_empty() => Vec::new(),
            None => vec![format!("response {status} has a body, the description has none")],
        }
    }

    fn judge(&self, document: &Value, name: &str, schema: &Value, body: &[u8]) -> Vec<String> {
        let what = name.splitn(3, ' ').nth(2).unwrap_or(name);
        let Ok(value) = serde_json::from_slice::<Value>(body) else { return vec![format!("{what}: is not JSON")] };
        match self.validator(document, name, schema) {
            Ok(validator) => {
                let tell = |e: jsonschema::ValidationError<'_>| format!("{what} {}: {e}", e.instance_path());
                validator.iter_errors(&value).map(tell).collect()
            }
            Err(error) => vec![format!("{what}: schema: {error}")],
        }
    }

    fn validator(&self, document: &Value, name: &str, schema: &Value) -> Result<Arc<Validator>, String> {
        let mut made = self.validators.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(validator) = made.get(name) {
            return Ok(validator.clone());
        }
        let components = simplify::reachable(document, schema);
        let whole = json!({"allOf": [schema], "components": components});
        // OpenAPI 3.0 is draft 4 in the keywords that matter (exclusiveMinimum).
        let options = jsonschema::options().with_draft(Draft::Draft4).should_validate_formats(true);
        let validator = Arc::new(options.build(&whole).map_err(|e| e.to_string())?);
        made.insert(name.to_owned(), validator.clone());
        Ok(validator)
    }
}

/// The values of a template's parameters when it fits the path.
fn match_path(template: &str, path: &str) -> Option<HashMap<String, String>> {
    let (wanted, given): (Vec<_>, Vec<_>) = (template.split('/').collect(), path.split('/').collect());
    if wanted.len() != given.len() {
        return None;
    }
    let mut params = HashMap::new();
    for (wanted, given) in wanted.into_iter().zip(given) {
        match wanted.strip_prefix('{').and_then(|w| w.strip_suffix('}')) {
            Some(name) => drop(params.insert(name.to_owned(), given.to_owned())),
            None if wanted == given => {}
            None => return None,
        }
    }
    Some(params)
}

/// GitHub sends `status` with every error; its description names it only in `basic-error`.
fn without_status(body: &[u8]) -> Vec<u8> {
    let mut value: Value = serde_json::from_slice(body).unwrap_or_default();
    value.as_object_mut().and_then(|fields| fields.remove("status"));
    value.to_string().into_bytes()
}

fn json_schema(holder: &Value) -> Option<&Value> {
    holder.get("content")?.get("application/json")?.get("schema")
}

/// What a `$ref` stands for.
fn resolve<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    let target = value.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix('#'));
    target.and_then(|pointer| document.pointer(pointer)).unwrap_or(value)
}

/// The components of a document, by kind.
fn components(document: &Value) -> Option<&Map<String, Value>> {
    document.get("components")?.as_object()
}
