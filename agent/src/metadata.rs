//! The instance metadata server: attributes, identity tokens, and the guest attribute that tells why a VM never
//! called in. Plain HTTP/1 to one host, a connection a request: it is asked a handful of times in a VM's life.

use std::{collections::BTreeMap, fmt, time::Duration};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header, response::Parts};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use secrecy::SecretString;
use tokio::{net::TcpStream, time::timeout};

/// Where every Compute Engine instance finds it.
pub const DEFAULT_HOST: &str = "metadata.google.internal";
/// The agent's last error, readable from outside with `getGuestAttributes`.
const STATUS_PATH: &str = "instance/guest-attributes/miglet/status";
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long the server holds a question for a change, as Google's own guest agent asks it; and when it is overdue.
const WATCH: (u64, Duration) = (60, Duration::from_secs(70));
/// All attributes together; one alone may have 256 KiB.
const BODY_LIMIT: usize = 1024 * 1024;

/// A client for one metadata server.
#[derive(Clone, Debug)]
pub struct Metadata {
    host: String,
}

/// A value and the mark that tells it from its other versions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Watched {
    /// The value.
    pub value: String,
    /// Empty when the server gave none.
    pub etag: String,
}

/// The metadata server did not give what was asked.
#[derive(Debug, thiserror::Error)]
#[error("could not {method} {path} at the metadata server {host}: {reason}")]
pub struct MetadataError {
    method: Method,
    path: String,
    host: String,
    reason: String,
}

impl Metadata {
    /// A client for `host` or `host:port`.
    #[must_use]
    pub fn new(host: impl Into<String>) -> Self {
        Self { host: host.into() }
    }

    /// Every attribute of the instance, the project's not among them.
    ///
    /// # Errors
    /// When the server does not answer properly.
    pub async fn attributes(&self) -> Result<BTreeMap<String, String>, MetadataError> {
        let path = "instance/attributes/?recursive=true";
        match self.call(Method::GET, path, String::new()).await? {
            (StatusCode::OK, text) => serde_json::from_str(&text).map_err(|e| self.error(Method::GET, path, e)),
            (status, _) => Err(self.error(Method::GET, path, status)),
        }
    }

    /// A fresh identity token of the instance, for this audience.
    ///
    /// # Errors
    /// When the server does not give one; without a service account there is none.
    pub async fn identity_token(&self, audience: &str) -> Result<SecretString, MetadataError> {
        let query = form_urlencoded::Serializer::new(String::new())
            .append_pair("audience", audience)
            .append_pair("format", "full")
            .finish();
        let path = "instance/service-accounts/default/identity";
        match self.call(Method::GET, &format!("{path}?{query}"), String::new()).await? {
            (StatusCode::OK, token) => Ok(SecretString::from(token.trim())),
            (status, _) => Err(self.error(Method::GET, path, status)),
        }
    }

    /// The server's Date header: the host's own clock, to be had before any TLS. `None` when it sends none.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn date(&self) -> Result<Option<String>, MetadataError> {
        let (head, _) = self.call_within(TIMEOUT, Method::GET, "instance/id", String::new()).await?;
        Ok(head.headers.get(header::DATE).and_then(|date| date.to_str().ok()).map(str::to_owned))
    }

    /// The value at this path once it differs from the one with this mark, or after a while in any case. At once when
    /// no mark is known.
    ///
    /// # Errors
    /// When the server does not answer properly.
    pub async fn watch(&self, path: &str, etag: &str) -> Result<Watched, MetadataError> {
        // No value has this mark.
        let known = if etag.is_empty() { "NONE" } else { etag };
        let query = form_urlencoded::Serializer::new(String::new())
            .append_pair("wait_for_change", "true")
            .append_pair("last_etag", known)
            .append_pair("timeout_sec", &WATCH.0.to_string())
            .finish();
        let asked = format!("{path}?{query}");
        let (head, value) = self.call_within(WATCH.1, Method::GET, &asked, String::new()).await?;
        if head.status != StatusCode::OK {
            return Err(self.error(Method::GET, path, head.status));
        }
        let etag = head.headers.get(header::ETAG).and_then(|etag| etag.to_str().ok()).unwrap_or_default().to_owned();
        Ok(Watched { value, etag })
    }

    /// Leaves a line for people who wonder why this VM never called in.
    ///
    /// # Errors
    /// When the server does not take it; guest attributes may be switched off.
    pub async fn put_status(&self, text: &str) -> Result<(), MetadataError> {
        let (status, _) = self.call(Method::PUT, STATUS_PATH, text.to_owned()).await?;
        if status.is_success() { Ok(()) } else { Err(self.error(Method::PUT, STATUS_PATH, status)) }
    }

    async fn call(&self, method: Method, path: &str, body: String) -> Result<(StatusCode, String), MetadataError> {
        let (head, text) = self.call_within(TIMEOUT, method, path, body).await?;
        Ok((head.status, text))
    }

    async fn call_within(
        &self,
        limit: Duration,
        method: Method,
        path: &str,
        body: String,
    ) -> Result<(Parts, String), MetadataError> {
        let answer = timeout(limit, self.exchange(&method, path, body)).await;
        let answer = answer.unwrap_or_else(|_| Err(format!("no answer in {} s", limit.as_secs()).into()));
        answer.map_err(|error| self.error(method, path, error))
    }

    async fn exchange(&self, method: &Method, path: &str, body: String) -> Result<(Parts, String), BoxError> {
        let address = if self.host.contains(':') { self.host.clone() } else { format!("{}:80", self.host) };
        let stream = TcpStream::connect(address).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(format!("/computeMetadata/v1/{path}"))
            .header(header::HOST, &self.host)
            .header("metadata-flavor", "Google")
            .body(Full::new(Bytes::from(body)))?;
        let response = sender.send_request(request).await?;
        let (head, body) = response.into_parts();
        let bytes = Limited::new(body, BODY_LIMIT).collect().await?.to_bytes();
        connection.abort();
        Ok((head, String::from_utf8(bytes.to_vec())?))
    }

    fn error(&self, method: Method, path: &str, reason: impl fmt::Display) -> MetadataError {
        MetadataError { method, path: path.to_owned(), host: self.host.clone(), reason: reason.to_string() }
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;
