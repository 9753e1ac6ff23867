//! The listener of every simulated service: loopback, a random port, a log of requests, injected faults.
//!
//! axum alone cannot close a connection without an answer (its services are infallible), which is what a lost reply
//! looks like. So the accept loop is ours: hyper over the router, with the fault decided in between.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{Router, body::Body};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::{rt::TokioIo, server::conn::auto, service::TowerToHyperService};
use tokio::{net::TcpListener, task::JoinHandle};
use tower::ServiceExt;

use crate::faults::{Action, Faults, delay};

/// One request that was answered (or cut off).
#[derive(Clone, Debug)]
pub struct Exchange {
    /// HTTP method.
    pub method: String,
    /// Path with its query.
    pub path: String,
    /// Status; `None` when the connection was closed instead.
    pub status: Option<u16>,
}

/// What a service was asked; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Traffic(Arc<Mutex<Vec<Exchange>>>);

impl Traffic {
    /// Every exchange so far, oldest first.
    #[must_use]
    pub fn all(&self) -> Vec<Exchange> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many exchanges satisfy `filter`.
    #[must_use]
    pub fn count(&self, filter: impl Fn(&Exchange) -> bool) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().filter(|e| filter(e)).count()
    }

    /// Forgets what happened so far.
    pub fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn add(&self, method: String, path: String, status: Option<u16>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Exchange { method, path, status });
    }
}

/// A connection closed on purpose.
#[derive(Debug, thiserror::Error)]
#[error("the connection was cut by an injected fault")]
struct Cut;

/// A service that listens until it is dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    /// What it was asked.
    pub traffic: Traffic,
    /// What goes wrong.
    pub faults: Faults,
    task: JoinHandle<()>,
}

impl Server {
    /// Serves `router` on a random loopback port.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start(router: Router) -> io::Result<Self> {
        Self::bind(router, SocketAddr::from(([127, 0, 0, 1], 0)), Faults::default()).await
    }

    /// Serves `router` on this address, with faults that may be shared with others.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn bind(router: Router, address: SocketAddr, faults: Faults) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let traffic = Traffic::default();
        let task = tokio::spawn(accept(listener, router, traffic.clone(), faults.clone()));
        Ok(Self { address, traffic, faults, task })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Accepts until aborted; the connections end with it.
async fn accept(listener: TcpListener, router: Router, traffic: Traffic, faults: Faults) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let service = tower::service_fn({
            let (router, traffic, faults) = (router.clone(), traffic.clone(), faults.clone());
            move |request: Request<Incoming>| answer(router.clone(), traffic.clone(), faults.clone(), request)
        });
        connections.spawn(async move {
            let builder = auto::Builder::new(hyper_util::rt::TokioExecutor::new());
            // An error here is the client's going away, or a cut we made.
            drop(builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service)).await);
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn answer(
    router: Router,
    traffic: Traffic,
    faults: Faults,
    request: Request<Incoming>,
) -> Result<Response<Body>, Cut> {
    let method = request.method().to_string();
    let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
    let result = apply(router, faults.take(&method, &path), request).await;
    traffic.add(method, path, result.as_ref().ok().map(|r| r.status().as_u16()));
    result
}

/// Forwards the request to the service, or does to it what the fault says. Every service that takes faults calls this.
async fn apply(router: Router, fault: Option<Action>, request: Request<Incoming>) -> Result<Response<Body>, Cut> {
    match fault {
        None => Ok(forward(router, request).await),
        Some(Action::Answer { status, body, headers }) => Ok(canned(status, &body, &headers)),
        Some(Action::Delay { millis }) => {
            tokio::time::sleep(delay(millis)).await;
            Ok(forward(router, request).await)
        }
        Some(Action::LoseReply) => {
            forward(router, request).await;
            Err(Cut)
        }
        Some(Action::Break) => Err(Cut),
        Some(Action::Hang) => std::future::pending().await,
        Some(Action::Call(hook)) => {
            hook();
            Ok(forward(router, request).await)
        }
        Some(Action::CallAfter(hook)) => {
            let response = forward(router, request).await;
            hook();
            Ok(response)
        }
        Some(Action::CallInstead(hook)) => {
            hook();
            Err(Cut)
        }
    }
}

async fn forward(router: Router, request: Request<Incoming>) -> Response<Body> {
    let result: Result<_, Infallible> = router.oneshot(request.map(Body::new)).await;
    result.unwrap_or_else(|never| match never {})
}

fn canned(status: u16, body: &serde_json::Value, headers: &[(String, String)]) -> Response<Body> {
    let mut response = Response::builder().status(status).header("content-type", "application/json; charset=utf-8");
    for (name, value) in headers {
        response = response.header(name, value);
    }
    response.body(Body::from(body.to_string())).unwrap_or_default()
}
