//! The way into a running playground: its simulators' controls.

use std::time::Duration;

use reqwest::{Client, Method};
use serde_json::Value;

/// The simulators are on this machine: no answer soon is none ever.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A simulator did not do as asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum HttpError {
    #[error("{method} {url}")]
    Call { method: Method, url: String, source: reqwest::Error },
    #[error("{method} {url} answered {status}: {body}")]
    Refused { method: Method, url: String, status: u16, body: String },
}

/// One call; what it answered, `null` when that was nothing.
pub(super) async fn call(method: Method, url: &str, body: Option<&Value>) -> Result<Value, HttpError> {
    let failed = |source| HttpError::Call { method: method.clone(), url: url.to_owned(), source };
    let client = Client::builder().timeout(TIMEOUT).no_proxy().build().map_err(failed)?;
    let mut request = client.request(method.clone(), url);
    if let Some(body) = body {
        request = request.header("content-type", "application/json").body(body.to_string());
    }
    let response = request.send().await.map_err(failed)?;
    let status = response.status();
    let text = response.text().await.map_err(failed)?;
    if status.is_success() {
        return Ok(serde_json::from_str(&text).unwrap_or_default());
    }
    Err(HttpError::Refused { method, url: url.to_owned(), status: status.as_u16(), body: text })
}
