//! Reading answers: pure. Bodies may hold secrets, so an error takes over GitHub's `message` and nothing else.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use secrecy::SecretString;
use serde::{Deserialize, de::DeserializeOwned};

use crate::forge::{ForgeError, ForgeErrorClass, ForgeJob, Registered, Runner};

/// The longest text taken over, in characters.
const LONGEST: usize = 300;

/// An answer.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
}

#[derive(Deserialize)]
struct ErrorBody {
    #[serde(default)]
    message: Option<String>,
}

impl Answer {
    /// GitHub's message, if it is an error and has one.
    pub(super) fn message(&self) -> String {
        if self.status.is_success() {
            return String::new();
        }
        let body = serde_json::from_slice::<ErrorBody>(&self.body).ok().and_then(|body| body.message);
        cut(&body.unwrap_or_default())
    }

    /// Refuses what no caller can use; 404, 409 and 422 are for the caller to judge. `limited` is how long to wait when a
    /// limit refused the call.
    pub(super) fn usable(self, action: &str, limited: Option<Duration>) -> Result<Self, ForgeError> {
        if limited.is_some() {
            return Err(ForgeError { retry_after: limited, ..self.refused(action, ForgeErrorClass::RateLimit) });
        }
        match self.status.as_u16() {
            200..300 | 404 | 409 | 422 => Ok(self),
            401 => Err(self.refused(action, ForgeErrorClass::Credentials)),
            403 => Err(self.refused(action, ForgeErrorClass::Invisible)),
            408 | 500.. => Err(ForgeError { ambiguous: true, ..self.refused(action, ForgeErrorClass::Transient) }),
            300..=399 => Err(self.refused(action, ForgeErrorClass::Transient)),
            _ => Err(self.refused(action, ForgeErrorClass::Invalid)),
        }
    }

    /// The error this answer is.
    pub(super) fn refused(&self, action: &str, class: ForgeErrorClass) -> ForgeError {
        let message = self.message();
        let colon = if message.is_empty() { "" } else { ": " };
        ForgeError {
            action: action.to_owned(),
            class,
            ambiguous: false,
            message: format!("HTTP {}{colon}{message}", self.status.as_u16()),
            retry_after: None,
        }
    }

    /// The body of a success. What serde would say about a body that cannot be read may quote it, so only where is said.
    pub(super) fn read<T: DeserializeOwned>(&self, action: &str) -> Result<T, ForgeError> {
        if !self.status.is_success() {
            return Err(self.refused(action, unexpected(self.status)));
        }
        serde_json::from_slice(&self.body).map_err(|error| ForgeError {
            action: action.to_owned(),
            class: ForgeErrorClass::Transient,
            ambiguous: true,
            message: format!("the answer cannot be read (line {}, column {})", error.line(), error.column()),
            retry_after: None,
        })
    }
}

/// The class of a 404, 409 or 422 where none of them has a meaning of its own.
pub(super) fn unexpected(status: StatusCode) -> ForgeErrorClass {
    match status {
        StatusCode::NOT_FOUND => ForgeErrorClass::Invisible,
        StatusCode::CONFLICT => ForgeErrorClass::NameTaken,
        _ => ForgeErrorClass::Invalid,
    }
}

/// Text from outside: one line, at most 300 characters.
pub(super) fn cut(text: &str) -> String {
    text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST).collect()
}

/// A runner as GitHub sends it; everything else it sends is left aside.
#[derive(Debug, Deserialize)]
pub(super) struct WireRunner {
    id: i64,
    name: String,
    status: String,
    busy: bool,
}

impl WireRunner {
    pub(super) fn id(&self) -> i64 {
        self.id
    }
}

impl From<WireRunner> for Runner {
    fn from(wire: WireRunner) -> Self {
        Self { id: wire.id, name: wire.name, online: wire.status == "online", busy: wire.busy }
    }
}

/// One page of runners.
#[derive(Debug, Deserialize)]
pub(super) struct RunnerPage {
    pub(super) total_count: usize,
    pub(super) runners: Vec<WireRunner>,
}

/// One page of runner groups.
#[derive(Debug, Deserialize)]
pub(super) struct GroupPage {
    pub(super) total_count: usize,
    pub(super) runner_groups: Vec<WireGroup>,
}

/// A runner group.
#[derive(Debug, Deserialize)]
pub(super) struct WireGroup {
    pub(super) id: i64,
    pub(super) name: String,
    #[serde(default)]
    pub(super) default: bool,
}

/// One page of a run's jobs.
#[derive(Debug, Deserialize)]
pub(super) struct JobPage {
    pub(super) total_count: usize,
    pub(super) jobs: Vec<WireJob>,
}

/// A job.
#[derive(Debug, Deserialize)]
pub(super) struct WireJob {
    id: i64,
    #[serde(default)]
    html_url: Option<String>,
    #[serde(default)]
    pub(super) runner_name: Option<String>,
}

impl From<WireJob> for ForgeJob {
    fn from(wire: WireJob) -> Self {
        Self { id: wire.id, url: wire.html_url.unwrap_or_default() }
    }
}

#[derive(Deserialize)]
struct WireId {
    id: i64,
}

/// What generate-jitconfig returns: no `Debug`, it holds the secret.
#[derive(Deserialize)]
pub(super) struct WireRegistered {
    runner: WireId,
    encoded_jit_config: String,
}

impl From<WireRegistered> for Registered {
    fn from(wire: WireRegistered) -> Self {
        Self { id: wire.runner.id, jit_config: SecretString::from(wire.encoded_jit_config) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &'static str) -> Answer {
        Answer { status: StatusCode::from_u16(status).unwrap(), body: Bytes::from_static(body.as_bytes()) }
    }

    #[test]
    fn each_status_has_its_class() {
        let class = |status| answer(status, "{}").usable("x", None).err().map(|e| (e.class, e.ambiguous));
        assert_eq!(class(401), Some((ForgeErrorClass::Credentials, false)));
        assert_eq!(class(403), Some((ForgeErrorClass::Invisible, false)));
        assert_eq!(class(500), Some((ForgeErrorClass::Transient, true)));
        assert_eq!(class(503), Some((ForgeErrorClass::Transient, true)));
        assert_eq!(class(400), Some((ForgeErrorClass::Invalid, false)));
        for judged in [200, 201, 204, 404, 409, 422] {
            assert_eq!(class(judged), None, "{judged}");
        }
    }

    #[test]
    fn an_unreadable_body_is_never_quoted() {
        let body = r#"{"runner": {"id": "c2VjcmV0"}, "encoded_jit_config": 7}"#;
        let error = answer(201, body).read::<WireRegistered>("registering").err().unwrap();
        assert!(error.ambiguous);
        assert!(!format!("{error} {error:?}").contains("c2VjcmV0"), "{error:?}");
    }

    #[test]
    fn html_from_a_proxy_is_not_taken_over() {
        let error = answer(502, "<html>nginx secret</html>").usable("listing", None).err().unwrap();
        assert_eq!(error.to_string(), "listing: HTTP 502");
    }

    #[test]
    fn a_runner_with_fields_of_tomorrow_and_without_labels_is_read() {
        let body = r#"{"total_count": 1, "runners": [{"id": 5, "name": "r", "os": "linux", "status": "offline",
            "busy": false, "ephemeral": true, "labels": [{"name": "x"}], "new": {}}]}"#;
        let page: RunnerPage = answer(200, body).read("listing").ok().unwrap();
        let runner = Runner::from(page.runners.into_iter().next().unwrap());
        assert_eq!(runner, Runner { id: 5, name: "r".into(), online: false, busy: false });
    }
}
