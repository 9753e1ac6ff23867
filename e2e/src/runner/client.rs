//! The stand-in's side of the wire: plain HTTP/1.1, every request with a deadline.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client as Http, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde::{Serialize, de::DeserializeOwned};

use super::settings::Settings;

/// GitHub holds a poll for 50 s; silence longer than this is a broken connection.
const POLL: Duration = Duration::from_secs(100);
/// Everything else answers at once.
const CALL: Duration = Duration::from_secs(15);

/// A request failed without an answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    #[error("could not make a request to {0}: {1}")]
    Request(String, http::Error),
    #[error("could not connect to {0}")]
    Connect(String, #[source] hyper_util::client::legacy::Error),
    #[error("lost the connection to {0}")]
    Body(String, #[source] hyper::Error),
    #[error("no answer from {0} within {1:?}")]
    Timeout(String, Duration),
}

/// An answer.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    body: Bytes,
}

impl Answer {
    /// The body, when it is what it should be.
    pub(super) fn json<T: DeserializeOwned>(&self) -> Option<T> {
        serde_json::from_slice(&self.body).ok()
    }
}

/// Talks to the simulator.
#[derive(Clone, Debug)]
pub(super) struct Client {
    http: Http<HttpConnector, Full<Bytes>>,
    base: String,
    bearer: String,
}

impl Client {
    pub(super) fn new(settings: &Settings) -> Self {
        let http = Http::builder(TokioExecutor::new()).build_http();
        Self { http, base: format!("{}/_runner", settings.server), bearer: settings.bearer.clone() }
    }

    pub(super) async fn post(&self, path: &str, body: &impl Serialize) -> Result<Answer, ClientError> {
        self.send(Method::POST, path, serde_json::to_vec(body).unwrap_or_default(), CALL).await
    }

    pub(super) async fn poll(&self, path: &str) -> Result<Answer, ClientError> {
        self.send(Method::GET, path, Vec::new(), POLL).await
    }

    pub(super) async fn delete(&self, path: &str) -> Result<Answer, ClientError> {
        self.send(Method::DELETE, path, Vec::new(), CALL).await
    }

    async fn send(&self, method: Method, path: &str, body: Vec<u8>, limit: Duration) -> Result<Answer, ClientError> {
        let exchange = async {
            let request = Request::builder()
                .method(method)
                .uri(format!("{}{path}", self.base))
                .header("authorization", format!("Bearer {}", self.bearer))
                .header("content-type", "application/json")
                .body(Full::new(body.into()))
                .map_err(|e| ClientError::Request(self.base.clone(), e))?;
            let response = self.http.request(request).await.map_err(|e| ClientError::Connect(self.base.clone(), e))?;
            let status = response.status();
            let body = response.into_body().collect().await.map_err(|e| ClientError::Body(self.base.clone(), e))?;
            Ok(Answer { status, body: body.to_bytes() })
        };
        let timeout = || ClientError::Timeout(self.base.clone(), limit);
        tokio::time::timeout(limit, exchange).await.map_err(|_| timeout())?
    }
}
