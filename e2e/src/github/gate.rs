//! What every REST request passes: who is asking, rate limits, standard headers, and the check against GitHub's own
//! description of its API.

use std::sync::Arc;

use axum::{
    body::{Body, Bytes, to_bytes},
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use uuid::Uuid;

use super::{Shared, credentials::Credential, refusal::Refusal};
use crate::published::openapi::Exchange;

/// Bodies above this are not read.
const LARGEST_BODY: usize = 1 << 20;

/// Lets a request through, or answers it.
pub(crate) async fn pass(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, LARGEST_BODY).await.unwrap_or_default();
    let (method, uri) = (parts.method.clone(), parts.uri.clone());
    let who = shared.lock().credentials.identify(&parts.headers, shared.clock.seconds());
    let admitted = who.clone().and_then(|who| charge(&shared, &who, &method, &uri).map(|()| who));
    let mut response = match admitted {
        Ok(who) => {
            let mut request = Request::from_parts(parts, Body::from(body.clone()));
            request.extensions_mut().insert(who);
            next.run(request).await
        }
        Err(refusal) => refusal.into_response(),
    };
    if let Ok(who) = who {
        sign(&shared, &who, response.headers_mut());
    }
    check(&shared, (&method, &uri, &body), response).await
}

/// Looking at one's limit costs nothing.
fn charge(shared: &Shared, who: &Credential, method: &Method, uri: &Uri) -> Result<(), Refusal> {
    if uri.path() == "/rate_limit" {
        return Ok(());
    }
    shared.lock().meter.charge(&who.who(), method, shared.clock.seconds())
}

/// The headers every answer carries.
fn sign(shared: &Shared, who: &Credential, headers: &mut HeaderMap) {
    let budget = shared.lock().meter.budget(&who.who(), shared.clock.seconds());
    let values = [
        ("x-ratelimit-limit", budget.limit.to_string()),
        ("x-ratelimit-remaining", budget.remaining.to_string()),
        ("x-ratelimit-used", budget.used.to_string()),
        ("x-ratelimit-reset", budget.reset.to_string()),
        ("x-ratelimit-resource", "core".to_owned()),
        ("x-github-request-id", Uuid::new_v4().simple().to_string()),
        ("x-github-media-type", "github.v3; format=json".to_owned()),
    ];
    for (name, value) in values {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
}

/// Compares what was asked and answered with the published description.
async fn check(shared: &Shared, (method, uri, asked): (&Method, &Uri, &Bytes), response: Response) -> Response {
    let (parts, body) = response.into_parts();
    let body = to_bytes(body, usize::MAX).await.unwrap_or_default();
    shared.contract.check(&Exchange {
        method: method.as_str(),
        path: uri.path(),
        query: uri.query().unwrap_or_default(),
        request: asked,
        status: parts.status.as_u16(),
        response: &body,
    });
    Response::from_parts(parts, Body::from(body))
}
