//! The gateway's Service: what a cluster's network makes of the leader's EndpointSlice.
//!
//! ```text
//!   agent ──> one address ──> the endpoint the slice names now ──> that operator's gateway
//! ```
//!
//! As in a cluster, a connection stays where it was made when the slice changes, and one that meets no endpoint is
//! closed. All pods are on loopback: of an endpoint only the port matters.

use std::{net::SocketAddr, sync::Arc};

use futures::StreamExt;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{
    Api, Client,
    runtime::{WatchStreamExt, watcher},
};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

/// Name of the gateway's Service and of its slice.
pub(super) const SERVICE: &str = "miglet-gateway";

/// The Service's network. Ends when dropped, with its connections.
#[derive(Debug)]
pub(super) struct Service {
    address: SocketAddr,
    cut: Arc<watch::Sender<bool>>,
    _tasks: JoinSet<()>,
}

impl Service {
    /// Follows the slice in `namespace`.
    pub(super) async fn start(client: Client, namespace: &str) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (found, port) = watch::channel(None);
        let cut = Arc::new(watch::channel(false).0);
        let mut tasks = JoinSet::new();
        tasks.spawn(follow(Api::namespaced(client, namespace), found));
        tasks.spawn(accept(listener, port, Arc::clone(&cut)));
        Ok(Self { address, cut, _tasks: tasks })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Cuts every connection and lets none through, or lets them through again.
    pub(super) fn cut(&self, cut: bool) {
        self.cut.send_replace(cut);
    }
}

/// Keeps the port of the slice's one endpoint.
async fn follow(api: Api<EndpointSlice>, found: watch::Sender<Option<u16>>) {
    let mut slices = std::pin::pin!(watcher::watch_object(api, SERVICE).default_backoff());
    while let Some(slice) = slices.next().await {
        if let Ok(slice) = slice {
            found.send_replace(slice.as_ref().and_then(port));
        }
    }
}

fn port(slice: &EndpointSlice) -> Option<u16> {
    slice.endpoints.as_ref()?.first()?;
    slice.ports.as_ref()?.first()?.port.and_then(|port| u16::try_from(port).ok())
}

async fn accept(listener: TcpListener, port: watch::Receiver<Option<u16>>, cut: Arc<watch::Sender<bool>>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((agent, _)) = listener.accept().await else { continue };
        let (port, mut cut) = (*port.borrow(), cut.subscribe());
        connections.spawn(async move {
            tokio::select! {
                () = carry(agent, port) => {}
                _ = cut.wait_for(|cut| *cut) => {}
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn carry(mut agent: TcpStream, port: Option<u16>) {
    let Some(port) = port else { return };
    if let Ok(mut operator) = TcpStream::connect(("127.0.0.1", port)).await {
        // An error is one side's going away.
        drop(copy_bidirectional(&mut agent, &mut operator).await);
    }
}
