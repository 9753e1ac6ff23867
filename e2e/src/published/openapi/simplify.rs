//! Makes the description small, and its OpenAPI 3.0 schemas plain JSON Schema.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

/// Prose and examples: most of the bytes, nothing to check.
const PROSE: [&str; 7] =
    ["description", "summary", "example", "examples", "externalDocs", "x-github-breaking-changes", "default"];

/// The operations under these paths, with all that they refer to.
pub(super) fn trim(document: &Value, wanted: impl Fn(&str) -> bool) -> Value {
    let paths = document.get("paths").and_then(Value::as_object).into_iter().flatten();
    let paths: Map<_, _> = paths.filter(|(path, _)| wanted(path)).map(|(p, item)| (p.clone(), item.clone())).collect();
    let paths = Value::Object(paths);
    let mut components = reachable(document, &paths);
    let always = json!({"$ref": "#/components/schemas/basic-error"});
    merge(&mut components, reachable(document, &always));
    let mut trimmed = json!({"paths": paths, "components": components});
    plain(&mut trimmed, false);
    trimmed
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

/// The components that `part` needs, directly or not.
pub(super) fn reachable(document: &Value, part: &Value) -> Value {
    let mut seen = BTreeSet::new();
    let mut todo = Vec::new();
    references(part, &mut todo);
    let mut kept = json!({});
    while let Some(name) = todo.pop() {
        let (kind, key) = name.split_once('/').unwrap_or_default();
        let found = super::components(document).and_then(|c| c.get(kind)).and_then(|k| k.get(key));
        let Some(found) = found.filter(|_| seen.insert(name.clone())) else { continue };
        references(found, &mut todo);
        merge(&mut kept, json!({kind: {key: found}}));
    }
    kept
}

fn references(value: &Value, into: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            let target = map.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix("#/components/"));
            into.extend(target.map(ToOwned::to_owned));
            map.values().for_each(|v| references(v, into));
        }
        Value::Array(items) => items.iter().for_each(|v| references(v, into)),
        _ => {}
    }
}

/// Drops prose, turns `nullable` into a type, refuses fields without a name. In a map of names nothing is a keyword.
fn plain(value: &mut Value, names: bool) {
    match value {
        Value::Object(map) => {
            if !names {
                map.retain(|key, _| !PROSE.contains(&key.as_str()));
            }
            for (key, inner) in map.iter_mut() {
                plain(inner, !names && matches!(key.as_str(), "properties" | "schemas" | "parameters" | "responses"));
            }
            let open = ["allOf", "anyOf", "oneOf", "additionalProperties"].iter().any(|k| map.contains_key(*k));
            if !names && map.contains_key("properties") && !open {
                map.insert("additionalProperties".to_owned(), json!(false));
            }
            if !names && map.remove("nullable") == Some(json!(true)) {
                let rest = Value::Object(std::mem::take(map));
                *value = json!({"anyOf": [rest, {"type": "null"}]});
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|v| plain(v, false)),
        _ => {}
    }
}
