//! An error of Google's client into [`ComputeError`]: by HTTP status and reason, because the gRPC code of Compute's bodies
//! is always `Unknown`.

use std::time::Duration;

use google_cloud_compute_v1::Error;
use google_cloud_gax::error::rpc::StatusDetails;

use super::classify;
use crate::compute::{ComputeError, ErrorClass, Group};

/// What is known about an answer that was no success.
struct Fault {
    class: ErrorClass,
    ambiguous: bool,
    message: String,
}

/// The error of a call.
pub(super) fn failed(action: &'static str, group: &Group, error: &Error) -> ComputeError {
    let Fault { class, ambiguous, message } = match error.http_status_code() {
        Some(status) => answered(status, error),
        None => unanswered(error),
    };
    ComputeError { action, group: group.clone(), class, ambiguous, message, retry_after: retry_after(error) }
}

/// The error of a call that got no answer in time.
pub(super) fn timed_out(action: &'static str, group: &Group, after: Duration) -> ComputeError {
    let message = format!("no answer within {after:?}");
    ComputeError {
        action,
        group: group.clone(),
        class: ErrorClass::Transient,
        ambiguous: true,
        message,
        retry_after: None,
    }
}

/// The error of an answer that cannot be used.
pub(super) fn unusable(action: &'static str, group: &Group, message: &str) -> ComputeError {
    ComputeError {
        action,
        group: group.clone(),
        class: ErrorClass::Config,
        ambiguous: false,
        message: message.to_owned(),
        retry_after: None,
    }
}

fn answered(status: u16, error: &Error) -> Fault {
    let text = error.status().map(|s| s.message.clone()).or_else(|| body(error)).unwrap_or_default();
    let class = classify::http(status, reason(error), &text);
    // A body that could not be read after a success means that it happened, only that nobody knows what.
    let ambiguous = status >= 500 || status == 408 || status < 300;
    let message = classify::cut(&format!("HTTP {status}: {text}"));
    Fault { class: if status < 300 { ErrorClass::Transient } else { class }, ambiguous, message }
}

fn body(error: &Error) -> Option<String> {
    error.http_payload().map(|bytes| String::from_utf8_lossy(bytes).into_owned())
}

fn reason(error: &Error) -> &str {
    let details = error.status().map(|s| s.details.as_slice()).unwrap_or_default();
    let reasons = details.iter().filter_map(|detail| match detail {
        StatusDetails::ErrorInfo(info) => Some(info.reason.as_str()),
        _ => None,
    });
    reasons.into_iter().next().unwrap_or_default()
}

fn unanswered(error: &Error) -> Fault {
    // Nothing was sent: no credentials, no connection, no valid request.
    let unsent = error.is_authentication() || error.is_connect() || error.is_binding() || error.is_serialization();
    let refused = error.is_binding() || error.is_serialization();
    let class = if refused { ErrorClass::Config } else { ErrorClass::Transient };
    Fault { class, ambiguous: !unsent, message: classify::cut(&chain(error)) }
}

/// The message with those of its causes: the client's own says little.
fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

fn retry_after(error: &Error) -> Option<Duration> {
    let value = error.http_headers()?.get("retry-after")?.to_str().ok()?;
    value.trim().parse().ok().map(Duration::from_secs)
}
