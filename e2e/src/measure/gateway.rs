//! A gateway that welcomes every agent: TLS and the protocol, and nothing behind it.

use std::{fs, net::SocketAddr, path::Path, pin::Pin, time::Duration};

use miglet_proto::{
    PROTOCOL_MINOR,
    v1::{
        AgentMessage, EventAck, OperatorMessage, Welcome, agent_message,
        agent_service_server::{AgentService, AgentServiceServer},
        operator_message::Message,
    },
};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use std::sync::Arc;
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use crate::world::{Trouble, gateway_keys};

/// The product's own.
const HEARTBEAT: u32 = 15;
const PATIENCE: Duration = Duration::from_secs(30);

/// A running gateway.
pub(super) struct Gateway {
    pub(super) address: SocketAddr,
    pub(super) ca: String,
    sessions: mpsc::Receiver<Orders>,
    task: JoinHandle<()>,
}

impl Gateway {
    pub(super) async fn start(folder: &Path) -> Result<Self, Trouble> {
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let keys = gateway_keys::make(folder)?;
        let chain = vec![CertificateDer::from_pem_slice(&fs::read(&keys.certificate)?)?];
        let key = PrivateKeyDer::from_pem_slice(&fs::read(&keys.key)?)?;
        let mut config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (opened, sessions) = mpsc::channel(16);
        let service = AgentServiceServer::new(Welcoming { opened });
        let streams = accepted(listener, TlsAcceptor::from(Arc::new(config)));
        let serving = tonic::transport::Server::builder().add_service(service).serve_with_incoming(streams);
        let task = tokio::spawn(async move { serving.await.unwrap_or_default() });
        Ok(Self { address, ca: keys.ca, sessions, task })
    }

    /// Waits for the next agent's hello; what it can be told with.
    pub(super) async fn session(&mut self) -> Result<Orders, Trouble> {
        let opened = tokio::time::timeout(PATIENCE, self.sessions.recv()).await;
        opened.map_err(|_| "no agent called in within 30 s")?.ok_or_else(|| "the gateway ended".into())
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Accepted = Result<TlsStream<tokio::net::TcpStream>, std::io::Error>;

fn accepted(listener: TcpListener, tls: TlsAcceptor) -> impl Stream<Item = Accepted> {
    tokio_stream::wrappers::TcpListenerStream::new(listener).then(move |tcp| {
        let tls = tls.clone();
        async move { tls.accept(tcp?).await }
    })
}

/// Messages to one agent.
pub(super) type Orders = mpsc::Sender<Result<OperatorMessage, Status>>;

struct Welcoming {
    opened: mpsc::Sender<Orders>,
}

#[tonic::async_trait]
impl AgentService for Welcoming {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<OperatorMessage, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let mut incoming = request.into_inner();
        incoming.message().await?;
        let (sender, receiver) = mpsc::channel(4);
        let welcome = Welcome {
            vm_name: "measured".into(),
            heartbeat_period_seconds: HEARTBEAT,
            protocol_minor: PROTOCOL_MINOR,
            settings: None,
        };
        // Both fail only when somebody is gone already.
        sender.send(Ok(OperatorMessage { message: Some(Message::Welcome(welcome)) })).await.ok();
        self.opened.send(sender.clone()).await.ok();
        tokio::spawn(async move {
            // Holds the stream open, and empties it, for as long as the agent is there.
            while let Ok(Some(message)) = incoming.message().await {
                if let Some(agent_message::Message::Event(event)) = message.message {
                    let ack = Message::EventAck(EventAck { sequence: event.sequence });
                    sender.send(Ok(OperatorMessage { message: Some(ack) })).await.ok();
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}
