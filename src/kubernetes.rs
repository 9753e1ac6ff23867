//! Calls to the API server: each with a bound, and what their failures mean.
//!
//! kube's client has no timeout of its own and retries 429, 503 and 504 up to fifteen times, POST included: a bound
//! around the whole call is the only one there is, and a create must count on its effect after a lost reply.

use std::{future::Future, time::Duration};

use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client};

/// A call that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum KubeError {
    /// It was refused, or broke off.
    #[error("{action}")]
    Call {
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: kube::Error,
    },
    /// There was no answer.
    #[error("{action}: no answer in {after:?}")]
    Timeout {
        /// What was tried.
        action: &'static str,
        /// How long it was waited for.
        after: Duration,
    },
}

impl KubeError {
    /// Somebody wrote the object in between: not a failure, the next pass sees what they wrote.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Call { source: kube::Error::Api(status), .. } if status.is_conflict())
    }

    /// It is not allowed: whoever may grant rights can.
    #[must_use]
    pub fn is_forbidden(&self) -> bool {
        matches!(self, Self::Call { source: kube::Error::Api(status), .. } if status.is_forbidden())
    }

    /// The object is not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Call { source: kube::Error::Api(status), .. } if status.is_not_found())
    }

    /// Whether the call may have had its effect all the same: everything but an answer.
    #[must_use]
    pub fn is_ambiguous(&self) -> bool {
        !matches!(self, Self::Call { source: kube::Error::Api(status), .. } if status.code < 500)
    }
}

/// Makes a call within `limit`.
///
/// # Errors
/// When it was refused, broke off, or got no answer in time.
pub async fn call<T>(
    limit: Duration,
    action: &'static str,
    call: impl Future<Output = kube::Result<T>>,
) -> Result<T, KubeError> {
    match tokio::time::timeout(limit, call).await {
        Ok(result) => result.map_err(|source| KubeError::Call { action, source }),
        Err(_) => Err(KubeError::Timeout { action, after: limit }),
    }
}

/// Whether the namespace is certainly going (or gone): no answer is not an answer.
pub async fn namespace_goes(client: &Client, limit: Duration, namespace: &str) -> bool {
    let found = call(limit, "reading a namespace", Api::<Namespace>::all(client.clone()).get_opt(namespace)).await;
    found.is_ok_and(|found| found.is_none_or(|ns| ns.metadata.deletion_timestamp.is_some()))
}
