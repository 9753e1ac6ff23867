//! One credential's connection to one API root: transport, tokens, gate.
//!
//! octocrab gives authentication and transport. What it must not do here:
//! - **retry**: its retry layer repeats POSTs at once, so the crate is built without it;
//! - **page**: it follows absolute `next` links without credentials, so pages are asked for by number;
//! - **mint in parallel**: concurrent first calls mint a token each, so one call warms the token up for all;
//! - **wait for ever**: it knows no whole-request deadline, so every call has one here;
//! - **model**: its models refuse what GitHub really sends, so bodies are read by our own.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use http_body_util::{BodyExt, Limited};
use octocrab::{
    Octocrab,
    models::{AppId, InstallationId},
};
use secrecy::ExposeSecret;
use serde_json::Value;

use super::{Credential, GithubError, answer::Answer};
use crate::{
    clock::Clock,
    compute::Observe,
    forge::{
        ForgeError, ForgeErrorClass,
        gate::{Bounds, Gate, Urgency},
        limits::{self, Signs},
    },
};

/// The longest answer that is read.
const LONGEST_BODY: usize = 8 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// One credential's way to one API root.
pub(in crate::forge) struct Connection {
    crab: Octocrab,
    minting: Option<tokio::sync::Mutex<()>>,
    gate: Gate,
    timeout: Duration,
    observe: Observe,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("gate", &self.gate).finish_non_exhaustive()
    }
}

/// One call.
pub(super) struct Call<'a> {
    /// For errors: what is tried.
    pub(super) action: &'a str,
    /// For metrics.
    pub(super) name: &'static str,
    pub(super) method: Method,
    /// Path and query under the API root.
    pub(super) path: String,
    pub(super) body: Option<Value>,
    /// Nobody needs its answer.
    pub(super) spare: bool,
}

impl Call<'_> {
    fn urgency(&self) -> Urgency {
        match self.method {
            Method::DELETE => Urgency::Delete,
            Method::POST => Urgency::Post,
            _ if self.spare => Urgency::Spare,
            _ => Urgency::Read,
        }
    }

    fn failed(&self, class: ForgeErrorClass, ambiguous: bool, message: String) -> ForgeError {
        ForgeError { action: self.action.to_owned(), class, ambiguous, message, retry_after: None }
    }
}

impl Connection {
    /// A connection; makes no call yet. Needs a tokio runtime.
    pub(in crate::forge) fn new(
        api: &str,
        credential: &Credential,
        clock: Arc<dyn Clock>,
        (timeout, observe): (Duration, Observe),
    ) -> Result<Self, GithubError> {
        let builder = Octocrab::builder().set_connect_timeout(Some(CONNECT_TIMEOUT)).base_uri(api)?;
        let (crab, minting) = match credential {
            Credential::Token(token) => (builder.personal_token(token.clone()).build()?, None),
            Credential::App { id, installation, private_key } => {
                let app = builder.app_from_rsa_pem(AppId(*id), private_key.expose_secret())?.build()?;
                (app.installation(InstallationId(*installation))?, Some(tokio::sync::Mutex::default()))
            }
        };
        Ok(Self { crab, minting, gate: Gate::new(clock, Bounds::default()), timeout, observe })
    }

    /// Makes one call, once. An answer of any status is an [`Answer`], except the ones that no call can use.
    pub(super) async fn call(&self, call: Call<'_>) -> Result<Answer, ForgeError> {
        let result = self.attempt(&call).await;
        (self.observe)("github", call.name, result.as_ref().map_or_else(|e| e.class.as_str(), |_| "Ok"));
        result
    }

    async fn attempt(&self, call: &Call<'_>) -> Result<Answer, ForgeError> {
        let _place = self.gate.enter(call.urgency()).await.map_err(|busy| ForgeError {
            retry_after: Some(busy.0),
            ..call.failed(ForgeErrorClass::RateLimit, false, "waiting for GitHub's rate limit".to_owned())
        })?;
        self.warm_up(call).await?;
        let (status, headers, body) = match tokio::time::timeout(self.timeout, self.exchange(call)).await {
            Ok(exchanged) => exchanged?,
            Err(_) => {
                let message = format!("no answer within {:?}", self.timeout);
                return Err(call.failed(ForgeErrorClass::Transient, true, message));
            }
        };
        let answer = Answer { status, body };
        let signs = limits::signs(status.as_u16(), &headers, &answer.message());
        self.gate.answered(signs);
        answer.usable(call.action, signs.refused.then(|| self.retry_after(signs)))
    }

    fn retry_after(&self, signs: Signs) -> Duration {
        signs.retry_after.unwrap_or_else(|| self.gate.wait()).max(Duration::from_secs(1))
    }

    /// Mints the installation's token if there is none, once for all who wait.
    async fn warm_up(&self, call: &Call<'_>) -> Result<(), ForgeError> {
        let Some(minting) = &self.minting else { return Ok(()) };
        let mint = async {
            let _one = minting.lock().await;
            self.crab.installation_token().await
        };
        match tokio::time::timeout(self.timeout, mint).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(self.unminted(call, &error)),
            Err(_) => {
                let message = format!("no installation token within {:?}", self.timeout);
                Err(call.failed(ForgeErrorClass::Transient, false, message))
            }
        }
    }

    /// No token: the call itself was not made, so nothing is ambiguous.
    fn unminted(&self, call: &Call<'_>, error: &octocrab::Error) -> ForgeError {
        let octocrab::Error::GitHub { source, .. } = error else {
            let class = match error {
                octocrab::Error::JWT { .. } => ForgeErrorClass::Credentials,
                _ => ForgeErrorClass::Transient,
            };
            return call.failed(class, false, format!("getting an installation token: {}", said(error)));
        };
        let status = source.status_code;
        let signs =
            limits::signs(status.as_u16(), source.headers.as_ref().unwrap_or(&HeaderMap::new()), &source.message);
        if signs.refused {
            self.gate.answered(signs);
            let retry_after = Some(self.retry_after(signs));
            let message = "getting an installation token: rate limited".to_owned();
            return ForgeError { retry_after, ..call.failed(ForgeErrorClass::RateLimit, false, message) };
        }
        let class = if status.is_server_error() { ForgeErrorClass::Transient } else { ForgeErrorClass::Credentials };
        let message = super::answer::cut(&format!("getting an installation token: HTTP {status}: {}", source.message));
        call.failed(class, false, message)
    }

    async fn exchange(&self, call: &Call<'_>) -> Result<(StatusCode, HeaderMap, Bytes), ForgeError> {
        let path = call.path.as_str();
        let sent = match call.method {
            Method::POST => self.crab._post(path, call.body.as_ref()).await,
            Method::DELETE => self.crab._delete(path, None::<&()>).await,
            _ => self.crab._get(path).await,
        };
        let (parts, body) = sent.map_err(|error| self.unsent(call, &error))?.into_parts();
        let body = Limited::new(body, LONGEST_BODY).collect().await.map_err(|_| {
            // The status has come, the body has not: what was asked for has probably happened.
            call.failed(ForgeErrorClass::Transient, true, "the answer broke off".to_owned())
        })?;
        Ok((parts.status, parts.headers, body.to_bytes()))
    }

    fn unsent(&self, call: &Call<'_>, error: &octocrab::Error) -> ForgeError {
        match error {
            // A new token was refused after a 401: the call itself was refused, too.
            octocrab::Error::GitHub { .. } | octocrab::Error::JWT { .. } => self.unminted(call, error),
            octocrab::Error::Uri { .. } | octocrab::Error::UriParse { .. } => {
                call.failed(ForgeErrorClass::Invalid, false, "the path is not valid".to_owned())
            }
            _ => call.failed(ForgeErrorClass::Transient, true, format!("no answer: {}", said(error))),
        }
    }
}

/// The message of an error and its causes, without the backtrace octocrab puts into some of them.
fn said(error: &octocrab::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    super::answer::cut(text.split("Found at").next().unwrap_or_default())
}
