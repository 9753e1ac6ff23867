//! A proxy in front of the API server: the place for faults and kill triggers between the operator and Kubernetes.
//!
//! ```text
//!   operator --http, its own token--> Server (faults, traffic) --https, same token--> kube-apiserver
//! ```
//!
//! Requests are small and are read whole; answers stream, so that watches work. A hook after forwarding
//! ([`crate::faults::Action::CallAfter`]) runs when the API server has done it and the operator does not know yet.
//!
//! The way upstream is a kube client without credentials: it trusts the right authority and leaves the caller's token
//! alone. Its retries are off, so that one request stays one request.

use std::{io, path::PathBuf, time::Duration};

use axum::{Router, body::Body, extract::State};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use kube::{Client, config::AuthInfo};
use tokio::sync::watch;

use crate::{
    control_plane::{ControlPlane, Error, kubeconfig, kubeconfig::Access},
    faults::Faults,
    server::{Server, Traffic},
};

/// Until the API server begins to answer. A watch begins at once.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// Parts of one answer that may be late at once; more have to wait.
const PARTS_UNDER_WAY: usize = 1024;

/// A running proxy.
#[derive(Debug)]
pub struct ApiProxy<'a> {
    control_plane: &'a ControlPlane,
    server: Server,
    lag: watch::Sender<Duration>,
}

impl<'a> ApiProxy<'a> {
    /// Starts one in front of this control plane, on a random loopback port.
    ///
    /// # Errors
    /// When no client can be made or no port be bound.
    pub async fn start(control_plane: &'a ControlPlane) -> Result<Self, Error> {
        let (lag, lagging) = watch::channel(Duration::ZERO);
        let router = Router::new().fallback(forward).with_state((upstream(control_plane).await?, lagging));
        let server = Server::start(router).await.map_err(Error::io("start the API server's proxy"))?;
        Ok(Self { control_plane, server, lag })
    }

    /// `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// What goes wrong on the way.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.server.faults
    }

    /// Watches tell what happened this much later, from now on.
    pub fn lag_watches(&self, lag: Duration) {
        self.lag.send_replace(lag);
    }

    /// What passed.
    #[must_use]
    pub fn traffic(&self) -> &Traffic {
        &self.server.traffic
    }

    /// A kubeconfig of a service account (which must exist) that leads through the proxy.
    ///
    /// # Errors
    /// When no token is given or the file cannot be written.
    pub async fn kubeconfig_for_service_account(&self, namespace: &str, name: &str) -> Result<PathBuf, Error> {
        let token = self.control_plane.token(namespace, name).await?;
        let access = Access { server: &self.url(), authority: None, token: &token };
        let port = self.server.address().port();
        access.write(self.control_plane.file(&format!("{namespace}.{name}.proxy-{port}.kubeconfig")))
    }

    /// A client of a service account (which must exist) that goes through the proxy.
    ///
    /// # Errors
    /// As [`Self::kubeconfig_for_service_account`].
    pub async fn client_for_service_account(&self, namespace: &str, name: &str) -> Result<Client, Error> {
        crate::control_plane::client(&self.kubeconfig_for_service_account(namespace, name).await?).await
    }
}

/// Knows the server and its authority, and brings no token of its own.
async fn upstream(control_plane: &ControlPlane) -> Result<Client, Error> {
    let mut config = kubeconfig::load(&control_plane.admin_kubeconfig()).await?;
    config.auth_info = AuthInfo::default();
    Client::try_from(config).map_err(Error::api("make the proxy's client"))
}

type Upstream = (Client, watch::Receiver<Duration>);

async fn forward(State((client, lag)): State<Upstream>, request: Request<Body>) -> Response<Body> {
    let watch = request.uri().query().is_some_and(|query| query.contains("watch=true"));
    let (mut parts, body) = request.into_parts();
    let body = match body.collect().await {
        Ok(whole) => whole.to_bytes().to_vec(),
        Err(error) => return bad_gateway(&error.to_string()),
    };
    remove_hop_by_hop(&mut parts.headers);
    let sent = client.send(Request::from_parts(parts, body.into()));
    match tokio::time::timeout(ANSWER_TIMEOUT, sent).await {
        Ok(Ok(mut response)) => {
            remove_hop_by_hop(response.headers_mut());
            response.map(|body| match watch {
                true => late(body.map_err(io::Error::other).into_data_stream(), lag),
                false => Body::new(body.map_err(io::Error::other)),
            })
        }
        Ok(Err(error)) => bad_gateway(&error.to_string()),
        Err(_) => bad_gateway("the API server did not answer in time"),
    }
}

/// Each part of the answer that much later than it came.
fn late(parts: impl Stream<Item = io::Result<Bytes>> + Send + 'static, lag: watch::Receiver<Duration>) -> Body {
    let late = parts.map(move |part| {
        let due = tokio::time::Instant::now() + *lag.borrow();
        async move {
            tokio::time::sleep_until(due).await;
            part
        }
    });
    Body::from_stream(late.buffered(PARTS_UNDER_WAY))
}

/// These are about one connection, not about the request; hyper sets its own.
fn remove_hop_by_hop(headers: &mut HeaderMap) {
    for name in [header::HOST, header::CONNECTION, header::TRANSFER_ENCODING, header::CONTENT_LENGTH] {
        headers.remove(name);
    }
}

fn bad_gateway(message: &str) -> Response<Body> {
    let mut response = Response::new(Body::from(format!("the API server's proxy: {message}")));
    *response.status_mut() = StatusCode::BAD_GATEWAY;
    response
}
