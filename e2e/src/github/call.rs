//! One REST request, taken apart the same way for every endpoint; and one page of a list with its `Link` header.

use std::{collections::HashMap, sync::Arc};

use axum::{
    Json, RequestExt,
    body::Bytes,
    extract::{FromRequest, OriginalUri, Path, Query, Request},
    response::{IntoResponse, Response},
};
use http::{HeaderValue, header};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{Shared, credentials::Credential, refusal::Refusal, scope::Scope};

/// Where the API is mounted besides the root, as on GitHub Enterprise Server.
pub(crate) const ENTERPRISE_PREFIX: &str = "/api/v3";

/// One REST request.
pub(crate) struct Call {
    pub(crate) who: Credential,
    params: HashMap<String, String>,
    query: HashMap<String, String>,
    /// Scheme, host and prefix this was asked at: what links in the answer start with.
    pub(crate) base: String,
    /// Scheme and host alone.
    pub(crate) origin: String,
    path: String,
    body: Bytes,
}

impl FromRequest<Arc<Shared>> for Call {
    type Rejection = Refusal;

    async fn from_request(mut request: Request, _: &Arc<Shared>) -> Result<Self, Refusal> {
        let Path(params) = request.extract_parts().await.map_err(|_| Refusal::not_found())?;
        let Query(query) = request.extract_parts().await.map_err(|_| Refusal::invalid("Invalid query"))?;
        let OriginalUri(uri) = request.extract_parts().await.unwrap_or_else(|never| match never {});
        let who = request.extensions().get().cloned().ok_or_else(Refusal::bad_credentials)?;
        let host = request.headers().get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or("localhost");
        let origin = format!("http://{host}");
        let prefix = if uri.path().starts_with(ENTERPRISE_PREFIX) { ENTERPRISE_PREFIX } else { "" };
        let (base, path) = (format!("{origin}{prefix}"), uri.path().to_owned());
        let body = request.extract().await.map_err(|_| Refusal::invalid("Problems reading the body"))?;
        Ok(Self { who, params, query, base, origin, path, body })
    }
}

impl Call {
    /// Whose runners this is about.
    pub(crate) fn scope(&self) -> Scope {
        let part = |name: &str| self.params.get(name).map(String::as_str).unwrap_or_default();
        match (self.params.contains_key("enterprise"), self.params.contains_key("repo")) {
            (true, _) => Scope::parse(&format!("enterprises/{}", part("enterprise"))),
            (_, true) => Scope::parse(&format!("{}/{}", part("owner"), part("repo"))),
            _ => Scope::parse(part("org")),
        }
    }

    /// A number in the path.
    pub(crate) fn id(&self, name: &str) -> Result<u64, Refusal> {
        self.params.get(name).and_then(|text| text.parse().ok()).ok_or_else(Refusal::not_found)
    }

    /// A part of the path.
    pub(crate) fn param(&self, name: &str) -> Option<&str> {
        self.params.get(name).map(String::as_str)
    }

    /// A query parameter.
    pub(crate) fn query(&self, name: &str) -> Option<&str> {
        self.query.get(name).map(String::as_str)
    }

    /// The JSON body.
    pub(crate) fn body<T: DeserializeOwned>(&self) -> Result<T, Refusal> {
        serde_json::from_slice(&self.body).map_err(|error| Refusal::invalid(format!("Invalid request.\n\n{error}")))
    }

    /// One page of a list under `key`, with the links to the others.
    pub(crate) fn page(&self, key: &str, items: &[Value]) -> Response {
        let number = |name: &str, default| self.query(name).and_then(|n| n.parse().ok()).unwrap_or(default);
        let size = number("per_page", 30_usize).clamp(1, 100);
        let page = number("page", 1_usize).max(1);
        let some: Vec<_> = items.iter().skip((page - 1) * size).take(size).collect();
        let mut response = Json(json!({"total_count": items.len(), key: some})).into_response();
        let links = self.links(page, items.len().div_ceil(size));
        if let (false, Ok(value)) = (links.is_empty(), HeaderValue::from_str(&links)) {
            response.headers_mut().insert(header::LINK, value);
        }
        response
    }

    fn links(&self, page: usize, last: usize) -> String {
        let link = |to: usize, rel: &str| {
            let mut query: Vec<_> = self.query.iter().filter(|(name, _)| *name != "page").collect();
            query.sort();
            let mut text = url::form_urlencoded::Serializer::new(String::new());
            text.extend_pairs(query).append_pair("page", &to.to_string());
            format!("<{}{}?{}>; rel=\"{rel}\"", self.origin, self.path, text.finish())
        };
        let mut links = Vec::new();
        if page > 1 {
            links.push(link(page - 1, "prev"));
        }
        if page < last {
            links.extend([link(page + 1, "next"), link(last, "last")]);
        }
        if page > 1 {
            links.push(link(1, "first"));
        }
        links.join(", ")
    }
}
