//! Calls to the API server: each with a bound, and what their failures mean.
//!
//! kube's client has no timeout of its own and retries 429, 503 and 504 up to fifteen times, POST included: a bound
//! around the whole call is the only one there is, and a create must count on its effect after a lost reply.

use std::{fmt, future::Future, time::Duration};

use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client, api::ListParams};
use serde::de::DeserializeOwned;

/// Objects of one page of a list. An object takes several times its text while it is parsed, managed fields and all: a
/// fleet in one piece would be the largest thing in the process, and what it took is not given back.
pub const PAGE: u32 = 100;

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

/// Lists all objects of one moment, page by page, each within `limit`; keeps of each object what `keep` makes of it.
///
/// # Errors
/// When a page was refused, broke off, or did not come in time: never a shorter list.
pub async fn list<K, T>(
    api: &Api<K>,
    limit: Duration,
    action: &'static str,
    keep: impl Fn(K) -> Option<T>,
) -> Result<Vec<T>, KubeError>
where
    K: Clone + fmt::Debug + DeserializeOwned,
{
    let mut kept = Vec::new();
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let page = call(limit, action, api.list(&params)).await?;
        kept.extend(page.items.into_iter().filter_map(&keep));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok(kept),
        }
    }
}

/// Whether the namespace is certainly going (or gone): no answer is not an answer.
pub async fn namespace_goes(client: &Client, limit: Duration, namespace: &str) -> bool {
    let found = call(limit, "reading a namespace", Api::<Namespace>::all(client.clone()).get_opt(namespace)).await;
    found.is_ok_and(|found| found.is_none_or(|ns| ns.metadata.deletion_timestamp.is_some()))
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::{Arc, Mutex},
    };

    use bytes::Bytes;
    use http::{Request, Response};
    use http_body_util::Full;
    use kube::{ResourceExt, client::Body};
    use serde_json::{Value, json};

    use super::*;

    const WAIT: Duration = Duration::from_secs(5);

    /// An API server with these pages, and what it was asked.
    fn server(pages: Vec<(u16, Value)>) -> (Api<Namespace>, Arc<Mutex<Vec<String>>>) {
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let (log, pages) = (asked.clone(), Arc::new(Mutex::new(pages.into_iter())));
        let service = tower::service_fn(move |request: Request<Body>| {
            log.lock().unwrap().push(request.uri().query().unwrap_or_default().to_owned());
            let (status, body) = pages.lock().unwrap().next().unwrap();
            let answer = Response::builder().status(status).body(Full::new(Bytes::from(body.to_string()))).unwrap();
            async move { Ok::<_, Infallible>(answer) }
        });
        (Api::all(Client::new(service, "default")), asked)
    }

    fn page(names: &[&str], next: &str) -> (u16, Value) {
        let items: Vec<_> = names.iter().map(|name| json!({"metadata": {"name": name}})).collect();
        let kind = json!({"apiVersion": "v1", "kind": "NamespaceList", "metadata": {"continue": next}, "items": items});
        (200, kind)
    }

    #[tokio::test]
    async fn a_list_is_read_to_its_last_page_and_keeps_what_is_wanted() {
        let (api, asked) = server(vec![page(&["a", "b"], "more"), page(&["c"], "")]);
        let keep = |object: Namespace| Some(object.name_any()).filter(|name| name != "b");
        assert_eq!(list(&api, WAIT, "testing", keep).await.unwrap(), ["a", "c"]);
        let asked = asked.lock().unwrap();
        assert!(asked[0].contains("limit=100") && !asked[0].contains("continue"), "{asked:?}");
        assert!(asked[1].contains("limit=100") && asked[1].contains("continue=more"), "{asked:?}");
        assert_eq!(asked.len(), 2);
    }

    #[tokio::test]
    async fn a_list_that_breaks_off_is_an_error_and_never_a_shorter_list() {
        let gone = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "reason": "Expired", "code": 410, "message": "The provided continue parameter is too old"});
        let (api, _) = server(vec![page(&["a"], "more"), (410, gone)]);
        assert!(list(&api, WAIT, "testing", Some).await.is_err());
    }
}
