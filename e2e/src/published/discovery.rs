//! Google's discovery document as a judge: does this request, does this response, conform?
//!
//! Checked: the method exists, query names and types, required parameters, body and response against their schemas
//! (types, enums, 64-bit integers as strings, base64), and that nothing is said which the document does not know.
//! Not in the document, so not checked: meaning, and the bodies of errors.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

use base64::Engine;
use serde_json::{Map, Value};
use tokio::sync::OnceCell;

use super::{PublishedError, PythonFile, fetch, skippable};

/// Where Google's description of the Compute API comes from.
pub const COMPUTE: PythonFile = PythonFile {
    package: "google-api-python-client",
    version: "2.202.0",
    member: "googleapiclient/discovery_cache/documents/compute.v1.json",
};

/// Parameters the official clients send beside the documented global ones.
const CLIENT_PARAMETERS: [&str; 2] = ["$alt", "$apiVersion"];

/// One request with its answer.
#[derive(Clone, Copy, Debug)]
pub struct Observed<'a> {
    /// HTTP method.
    pub method: &'a str,
    /// Path below the API's base path, without a leading slash.
    pub path: &'a str,
    /// Decoded query.
    pub query: &'a [(String, String)],
    /// Request body.
    pub request: &'a [u8],
    /// HTTP status.
    pub status: u16,
    /// Response body.
    pub response: &'a [u8],
}

#[derive(Debug)]
struct Method {
    id: String,
    verb: String,
    path: Vec<String>,
    parameters: Map<String, Value>,
    request: Option<Value>,
    response: Option<Value>,
}

/// A parsed discovery document.
#[derive(Debug)]
pub struct Discovery {
    methods: Vec<Method>,
    schemas: Map<String, Value>,
    globals: BTreeSet<String>,
}

/// The Compute API's document, parsed once per process; `None` where it cannot be fetched and is not required.
///
/// # Errors
/// When it is required and cannot be fetched, or cannot be read.
pub async fn compute() -> Result<Option<Arc<Discovery>>, PublishedError> {
    static ONCE: OnceCell<Option<Arc<Discovery>>> = OnceCell::const_new();
    let parsed = ONCE.get_or_try_init(async || {
        let Some(path) = skippable(fetch(&COMPUTE).await)? else { return Ok(None) };
        Ok(Some(Arc::new(Discovery::read(path)?)))
    });
    parsed.await.cloned()
}

impl Discovery {
    /// Reads a document from a file.
    ///
    /// # Errors
    /// When the file cannot be read or is not JSON.
    pub fn read(path: PathBuf) -> Result<Self, PublishedError> {
        let bytes = std::fs::read(&path).map_err(|source| PublishedError::Cache { path: path.clone(), source })?;
        let document: Value =
            serde_json::from_slice(&bytes).map_err(|source| PublishedError::Malformed { path, source })?;
        Ok(Self::new(&document))
    }

    /// Indexes a document.
    #[must_use]
    pub fn new(document: &Value) -> Self {
        let mut methods = Vec::new();
        collect(document, &mut methods);
        let globals = object(document, "parameters").into_iter().map(|(name, _)| name);
        let globals = globals.chain(CLIENT_PARAMETERS.map(str::to_owned)).collect();
        Self { methods, schemas: object(document, "schemas"), globals }
    }

    /// Everything in this exchange that the document does not allow; empty is good.
    #[must_use]
    pub fn check(&self, seen: &Observed<'_>) -> Vec<String> {
        let segments: Vec<&str> = seen.path.split('/').collect();
        let Some(method) = self.methods.iter().find(|m| m.verb == seen.method && matches(&m.path, &segments)) else {
            return vec![format!("{} {}: no such method", seen.method, seen.path)];
        };
        let mut found = Vec::new();
        self.query(method, seen.query, &mut found);
        self.body(method.request.as_ref(), seen.request, "request", &mut found);
        if seen.status < 300 {
            self.body(method.response.as_ref(), seen.response, "response", &mut found);
        }
        found.into_iter().map(|what| format!("{}: {what}", method.id)).collect()
    }

    fn query(&self, method: &Method, query: &[(String, String)], found: &mut Vec<String>) {
        for (name, value) in query {
            match method.parameters.get(name) {
                Some(schema) if text(schema, "location") == "query" => {
                    if !parameter_fits(schema, value) {
                        found.push(format!("query parameter {name}={value} has the wrong type"));
                    }
                }
                _ if self.globals.contains(name) => {}
                _ => found.push(format!("query parameter {name} is unknown")),
            }
        }
        for (name, schema) in &method.parameters {
            let required = schema.get("required").and_then(Value::as_bool).unwrap_or(false);
            if required && text(schema, "location") == "query" && !query.iter().any(|(n, _)| n == name) {
                found.push(format!("query parameter {name} is missing"));
            }
        }
    }

    fn body(&self, schema: Option<&Value>, bytes: &[u8], at: &str, found: &mut Vec<String>) {
        // Official clients send either nothing or an empty object when there is nothing to say.
        if bytes.is_empty() && at == "request" {
            return;
        }
        match (serde_json::from_slice::<Value>(bytes), schema) {
            (Err(error), _) => found.push(format!("{at} is not JSON: {error}")),
            (Ok(value), Some(schema)) => self.value(schema, &value, at, found),
            (Ok(value), None) if value.as_object().is_some_and(Map::is_empty) => {}
            (Ok(_), None) => found.push(format!("{at} has a body where none is defined")),
        }
    }

    fn value(&self, schema: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
        if let Some(name) = schema.get("$ref").and_then(Value::as_str) {
            match self.schemas.get(name) {
                Some(target) => self.value(target, value, at, found),
                None => found.push(format!("{at}: schema {name} is not in the document")),
            }
            return;
        }
        match (text(schema, "type"), value) {
            ("object", Value::Object(map)) => self.object(schema, map, at, found),
            ("array", Value::Array(items)) => {
                if let Some(schema) = schema.get("items") {
                    for (index, item) in items.iter().enumerate() {
                        self.value(schema, item, &format!("{at}[{index}]"), found);
                    }
                }
            }
            ("any", _) => {}
            _ if scalar_fits(schema, value) => {}
            (wanted, _) => {
                let format = text(schema, "format");
                found.push(format!("{at}: {value} is no {wanted} {format}"));
            }
        }
    }

    fn object(&self, schema: &Value, map: &Map<String, Value>, at: &str, found: &mut Vec<String>) {
        let properties = schema.get("properties");
        for (name, value) in map {
            let known = properties.and_then(|p| p.get(name)).or_else(|| schema.get("additionalProperties"));
            match known {
                Some(schema) => self.value(schema, value, &format!("{at}.{name}"), found),
                None => found.push(format!("{at}.{name}: unknown property")),
            }
        }
    }
}

fn collect(node: &Value, methods: &mut Vec<Method>) {
    for method in object(node, "methods").values() {
        methods.push(Method {
            id: text(method, "id").to_owned(),
            verb: text(method, "httpMethod").to_owned(),
            path: text(method, "flatPath").split('/').map(str::to_owned).collect(),
            parameters: object(method, "parameters"),
            request: method.get("request").cloned(),
            response: method.get("response").cloned(),
        });
    }
    for resource in object(node, "resources").values() {
        collect(resource, methods);
    }
}

fn matches(pattern: &[String], segments: &[&str]) -> bool {
    pattern.len() == segments.len() && pattern.iter().zip(segments).all(|(p, s)| p.starts_with('{') || p == s)
}

fn parameter_fits(schema: &Value, value: &str) -> bool {
    match text(schema, "type") {
        "integer" => value.parse::<i64>().is_ok(),
        "boolean" => matches!(value, "true" | "false"),
        _ => enum_allows(schema, value),
    }
}

fn scalar_fits(schema: &Value, value: &Value) -> bool {
    match (text(schema, "type"), value) {
        ("string", Value::String(s)) => format_fits(text(schema, "format"), s) && enum_allows(schema, s),
        ("integer", Value::Number(n)) => match text(schema, "format") {
            "uint32" => n.as_u64().is_some_and(|n| u32::try_from(n).is_ok()),
            _ => n.as_i64().is_some_and(|n| i32::try_from(n).is_ok()),
        },
        ("number", Value::Number(_)) | ("boolean", Value::Bool(_)) => true,
        _ => false,
    }
}

fn format_fits(format: &str, value: &str) -> bool {
    use base64::engine::general_purpose::URL_SAFE;
    match format {
        "uint64" => value.parse::<u64>().is_ok(),
        "int64" => value.parse::<i64>().is_ok(),
        "byte" => URL_SAFE.decode(value).is_ok(),
        _ => true,
    }
}

fn enum_allows(schema: &Value, value: &str) -> bool {
    schema.get("enum").and_then(Value::as_array).is_none_or(|allowed| allowed.iter().any(|a| a == value))
}

fn object(value: &Value, name: &str) -> Map<String, Value> {
    value.get(name).and_then(Value::as_object).cloned().unwrap_or_default()
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}
