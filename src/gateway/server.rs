//! The gateway as a whole: its settings, and everything wired together.
//!
//! A process that does not lead serves nobody: it answers "unavailable" and ends the sessions it has, so that every
//! agent ends up at the leader.

use std::{fmt, sync::Arc, time::Duration};

use jiff::SignedDuration;
use kube::{
    Client,
    runtime::{events::Recorder, reflector::Store},
};
use miglet_proto::v1::agent_service_server::AgentServiceServer;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use url::Url;

use super::{
    admission::GroupListing,
    attestation::{Attestor, Unlisted},
    identity::Verifier,
    keys::Keys,
    listener::Accepting,
    peer::Unknown,
    refusals::{Observer, Refusals},
    service::Service,
    sessions::Sessions,
    tls::{self, Certificates, TlsError, TlsFiles},
};
use crate::{
    clock::Clock,
    crd::{RunnerVm, names},
};

const HANDSHAKEN_QUEUE: usize = 64;
const KEEPALIVE_PERIOD: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// One session, and one that replaces it on the same connection.
const STREAMS_PER_CONNECTION: u32 = 2;
const HEADER_LIMIT: u32 = 8 * 1024;
const WINDOW: u32 = 64 * 1024;
/// How long open streams may take to end once the process does.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// What agents may cost.
#[derive(Clone, Copy, Debug)]
pub struct Caps {
    /// Connections that have not proved who they are, all together.
    pub unknown_connections: usize,
    /// The same, from one address. Not small: behind a NAT a fleet is one address.
    pub unknown_connections_per_address: usize,
    /// For the TLS handshake.
    pub handshake_timeout: Duration,
    /// From accept to an open session.
    pub attest_timeout: Duration,
    /// Size of a message, in bytes.
    pub message_bytes: usize,
    /// Messages a session may send, steadily.
    pub messages_per_second: u32,
    /// Messages a session may send at once.
    pub message_burst: u32,
}

impl Default for Caps {
    fn default() -> Self {
        Self {
            unknown_connections: 512,
            unknown_connections_per_address: 128,
            handshake_timeout: Duration::from_secs(5),
            attest_timeout: Duration::from_secs(10),
            message_bytes: 64 * 1024,
            messages_per_second: 20,
            message_burst: 100,
        }
    }
}

/// The gateway's settings.
#[derive(Clone)]
pub struct GatewayConfig {
    /// Its certificate.
    pub tls: TlsFiles,
    /// What tokens must be made for: their audience is `<audience>/<thumbprint>`.
    pub audience: String,
    /// Where Google's signing keys are: `https://www.googleapis.com/oauth2/v3/certs`.
    pub jwks_url: Url,
    /// How often agents report without news.
    pub heartbeat_period: Duration,
    /// How long a verified instance may be missing from its group's list before that is a refusal.
    pub listing_grace: SignedDuration,
    /// Bounds.
    pub caps: Caps,
    /// Whether this process leads.
    pub serving: watch::Receiver<bool>,
    /// Counts refusals by reason.
    pub on_refusal: Observer,
    /// Counts agents' events, by kind and what became of them.
    pub on_event: EventObserver,
}

/// Told the kind of every event and what became of it: labels of a counter.
pub type EventObserver = Arc<dyn Fn(&'static str, &'static str) + Send + Sync>;

impl fmt::Debug for GatewayConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GatewayConfig")
            .field("audience", &self.audience)
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}

/// The gateway cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// Its certificate cannot be used.
    #[error("loading the gateway's certificate")]
    Tls(#[from] TlsError),
    /// The client that fetches Google's keys cannot be made.
    #[error("preparing to fetch Google's signing keys: {0}")]
    Keys(String),
    /// The server ended.
    #[error("serving agents")]
    Serve(#[from] tonic::transport::Error),
}

/// What the gateway asks of the world.
#[derive(Clone)]
pub struct Backends {
    /// The RunnerVMs, watched.
    pub store: Store<RunnerVm>,
    /// Lists instance groups.
    pub listing: Arc<dyn GroupListing>,
    /// Binds RunnerVMs and writes events.
    pub client: Client,
    /// Tells the time.
    pub clock: Arc<dyn Clock>,
    /// Asked right before a RunnerVM is bound: whether this process still may. `serving` is told later than a lease ends.
    pub may_act: Arc<dyn Fn() -> bool + Send + Sync>,
}

impl fmt::Debug for Backends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backends").finish_non_exhaustive()
    }
}

/// The gateway.
#[derive(Debug)]
pub struct Gateway {
    config: GatewayConfig,
    attestor: Attestor,
}

impl Gateway {
    /// A gateway that admits agents of the RunnerVMs in the backends' store to `sessions`.
    ///
    /// # Errors
    /// When the client that fetches Google's keys cannot be made.
    pub fn new(config: GatewayConfig, sessions: Sessions, backends: Backends) -> Result<Self, GatewayError> {
        let keys = Keys::new(config.jwks_url.clone()).map_err(|error| GatewayError::Keys(error.to_string()))?;
        let recorder = Recorder::new(backends.client.clone(), names::REPORTER.into());
        let attestor = Attestor {
            verifier: Verifier::new(config.audience.clone(), keys),
            backends,
            sessions,
            refusals: Refusals::new(Arc::clone(&config.on_refusal), recorder),
            unlisted: Unlisted::new(config.listing_grace),
        };
        Ok(Self { config, attestor })
    }

    /// Serves agents on `listener` until `shutdown`.
    ///
    /// # Errors
    /// When the certificate cannot be loaded, or the server fails.
    pub async fn serve(self, listener: TcpListener, shutdown: CancellationToken) -> Result<(), GatewayError> {
        // Whatever way this ends, nothing keeps running behind it.
        let stop = shutdown.child_token();
        let _stopped = stop.clone().drop_guard();
        let acceptor = tls::acceptor(Certificates::watched(self.config.tls.clone(), stop.clone()).await?)?;
        let caps = self.config.caps;
        let accepting = Accepting {
            unknown: Unknown::new(caps.unknown_connections, caps.unknown_connections_per_address),
            handshake_timeout: caps.handshake_timeout,
            attest_timeout: caps.attest_timeout,
            refusals: self.attestor.refusals.clone(),
        };
        let (connections, incoming) = mpsc::channel(HANDSHAKEN_QUEUE);
        tokio::spawn(accepting.run(listener, acceptor, connections, stop.clone()));
        let service = Service::new(self.config, self.attestor, stop.clone());
        let serve = Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE_PERIOD))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .http2_max_header_list_size(HEADER_LIMIT)
            .max_concurrent_streams(STREAMS_PER_CONNECTION)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .add_service(AgentServiceServer::new(service).max_decoding_message_size(caps.message_bytes))
            .serve_with_incoming_shutdown(ReceiverStream::new(incoming), stop.clone().cancelled_owned());
        let cut = async {
            stop.cancelled().await;
            tokio::time::sleep(SHUTDOWN_GRACE).await;
        };
        tokio::select! {
            served = serve => Ok(served?),
            () = cut => Ok(()),
        }
    }
}
