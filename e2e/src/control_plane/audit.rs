//! The API server's audit log: who asked for what, and what came of it.
//!
//! Every request has one final entry (stage `ResponseComplete`), written when the request is over: its client may have
//! read the answer a moment earlier, so a test that looks for its own last call waits for it. A watch has an entry when
//! it starts and one when it ends; only the start is kept, so that a call counts once and an open watch is seen.

use std::{fs, path::Path};

use serde::Deserialize;

use super::error::Error;

/// One call to the API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEntry {
    /// When the request came in.
    pub time: jiff::Timestamp,
    /// `admin`, `system:serviceaccount:NAMESPACE:NAME`, …
    pub user: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`.
    pub verb: String,
    /// Path and query.
    pub path: String,
    /// API group; empty for the core group and for paths that are no resources.
    pub group: String,
    /// Plural resource; empty for paths that are no resources.
    pub resource: String,
    /// `status`, `scale`, …
    pub subresource: String,
    /// Namespace, empty when there is none.
    pub namespace: String,
    /// Object name, empty when there is none.
    pub name: String,
    /// HTTP status.
    pub code: u16,
}

impl AuditEntry {
    /// Whether the call asked to change something.
    #[must_use]
    pub fn is_write(&self) -> bool {
        !matches!(self.verb.as_str(), "get" | "list" | "watch")
    }
}

/// What is logged: everything but the API server's calls to itself.
pub(super) const POLICY: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: None, users: ['system:apiserver']}
- {level: Metadata}
";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    stage: String,
    #[serde(rename = "requestURI")]
    request_uri: String,
    verb: String,
    user: User,
    #[serde(default)]
    object_ref: ObjectRef,
    #[serde(default)]
    response_status: Status,
    request_received_timestamp: jiff::Timestamp,
}

#[derive(Deserialize)]
struct User {
    #[serde(default)]
    username: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ObjectRef {
    api_group: String,
    resource: String,
    subresource: String,
    namespace: String,
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    code: u16,
}

/// Every call so far, oldest first.
pub(super) fn read(path: &Path) -> Result<Vec<AuditEntry>, Error> {
    let text = fs::read_to_string(path).map_err(Error::io(format!("read {}", path.display())))?;
    // The last line may still be in the making.
    let whole = text.rfind('\n').and_then(|end| text.get(..end)).unwrap_or_default();
    whole.lines().filter_map(|line| entry(line).transpose()).collect()
}

fn entry(line: &str) -> Result<Option<AuditEntry>, Error> {
    let event: Event = serde_json::from_str(line)
        .map_err(|error| Error::Malformed { what: "the audit log".to_owned(), message: error.to_string() })?;
    let counted = if event.verb == "watch" { "ResponseStarted" } else { "ResponseComplete" };
    // A refused watch never starts.
    let refused_watch = event.verb == "watch" && event.response_status.code >= 400;
    if event.stage != counted && !refused_watch {
        return Ok(None);
    }
    Ok(Some(AuditEntry {
        time: event.request_received_timestamp,
        user: event.user.username,
        verb: event.verb,
        path: event.request_uri,
        group: event.object_ref.api_group,
        resource: event.object_ref.resource,
        subresource: event.object_ref.subresource,
        namespace: event.object_ref.namespace,
        name: event.object_ref.name,
        code: event.response_status.code,
    }))
}
