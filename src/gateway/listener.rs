//! Accepting connections: a place among the unknown first, then the handshake, both before anything costs memory.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::Instant,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{
    peer::{Connection, Peer, Place, Unknown},
    refusals::{Refusal, Refusals},
    tls,
};

/// After an accept that failed, usually for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Turns sockets into connections of somebody with a key.
#[derive(Clone, Debug)]
pub(super) struct Accepting {
    pub(super) unknown: Unknown,
    pub(super) handshake_timeout: Duration,
    pub(super) attest_timeout: Duration,
    pub(super) refusals: Refusals,
}

impl Accepting {
    /// Accepts until `shutdown`; finished handshakes go to `connections`.
    pub(super) async fn run(
        self,
        listener: TcpListener,
        acceptor: TlsAcceptor,
        connections: mpsc::Sender<std::io::Result<Connection>>,
        shutdown: CancellationToken,
    ) {
        let accepting = Arc::new(self);
        while let Some(accepted) = shutdown.run_until_cancelled(listener.accept()).await {
            let (socket, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, "accepting a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Some(place) = accepting.unknown.place(address.ip()) else {
                accepting.refusals.count(Refusal::TooManyConnections);
                continue;
            };
            let (accepting, acceptor, connections) = (Arc::clone(&accepting), acceptor.clone(), connections.clone());
            tokio::spawn(async move {
                if let Some(connection) = accepting.handshake(&acceptor, socket, address, place).await {
                    // An error is the server's end: nobody is left to serve the connection.
                    drop(connections.send(Ok(connection)).await);
                }
            });
        }
    }

    async fn handshake(
        &self,
        acceptor: &TlsAcceptor,
        socket: TcpStream,
        address: SocketAddr,
        place: Place,
    ) -> Option<Connection> {
        let deadline = Instant::now() + self.attest_timeout;
        if let Err(error) = socket.set_nodelay(true) {
            debug!(%address, %error, "a socket without TCP_NODELAY");
        }
        let handshake = tokio::time::timeout(self.handshake_timeout, acceptor.accept(socket)).await;
        let Ok(Ok(stream)) = handshake else {
            self.refusals.count(Refusal::BadHandshake);
            return None;
        };
        let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let Some(thumbprint) = certificate.and_then(tls::thumbprint) else {
            self.refusals.count(Refusal::BadHandshake);
            return None;
        };
        Some(Connection::new(stream, Peer::new(thumbprint, place, deadline, self.refusals.clone())))
    }
}
