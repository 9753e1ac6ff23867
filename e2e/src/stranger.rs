//! An agent of a test's own making: it speaks the agents' protocol with any key, any token and any words, and need not
//! be honest. One stranger is one key; each session is a connection of its own.

use std::{io, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use miglet_agent::key::{AgentKey, KeyError};
use miglet_proto::{
    PROTOCOL_MINOR,
    v1::{
        AgentMessage, Hello, OperatorMessage, Report, RunnerExit, RunnerExitKind, agent_message,
        agent_service_client::AgentServiceClient, operator_message,
    },
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{net::TcpSocket, sync::mpsc, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming, transport::Endpoint};

/// Longest wait for a connection or a message.
const WAIT: Duration = Duration::from_secs(15);

/// Somebody with a key.
#[derive(Debug)]
pub struct Stranger {
    key: AgentKey,
    /// The boot it claims.
    pub boot_id: String,
}

/// An open session: what is said into it and what comes out of it.
#[derive(Debug)]
pub struct Voice {
    outgoing: mpsc::Sender<AgentMessage>,
    incoming: Streaming<OperatorMessage>,
}

impl Stranger {
    /// Somebody with a key of his own.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn new() -> Result<Self, KeyError> {
        let folder = tempfile::tempdir().map_err(|source| KeyError::Io {
            action: "make a place for",
            path: String::new(),
            source,
        })?;
        Self::with_key(&folder.path().join("key"))
    }

    /// Somebody with the key in this file.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn with_key(path: &Path) -> Result<Self, KeyError> {
        Ok(Self { key: AgentKey::load_or_create(path)?, boot_id: "a-boot".to_owned() })
    }

    /// The same key on another boot.
    #[must_use]
    pub fn booted(self, boot_id: &str) -> Self {
        Self { boot_id: boot_id.to_owned(), ..self }
    }

    /// What identifies the key.
    #[must_use]
    pub fn thumbprint(&self) -> String {
        self.key.thumbprint()
    }

    /// A hello like an honest agent's, with this token.
    #[must_use]
    pub fn hello(&self, token: &str) -> Hello {
        Hello {
            identity_token: token.to_owned(),
            boot_id: self.boot_id.clone(),
            agent_version: "0.0.0".to_owned(),
            protocol_minor: PROTOCOL_MINOR,
            report: Some(Report::default()),
        }
    }

    /// A TLS connection to the gateway, over which nothing was said yet.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn dial(&self, gateway: SocketAddr, ca: &str) -> io::Result<TlsStream<tokio::net::TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(CertificateDer::pem_slice_iter(ca.as_bytes()).flatten());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.map_err(io::Error::other)?.with_root_certificates(roots);
        let config = config.with_client_auth_cert(vec![self.key.certificate()], self.key.private_key());
        let mut config = config.map_err(io::Error::other)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        let stream = TcpSocket::new_v4()?.connect(gateway).await?;
        TlsConnector::from(Arc::new(config)).connect(ServerName::from(gateway.ip()), stream).await
    }

    /// Says this hello over a new connection, and waits for the welcome.
    ///
    /// # Errors
    /// The status that the operator turned it away with.
    pub async fn open(&self, gateway: SocketAddr, ca: &str, hello: Hello) -> Result<Voice, Status> {
        let opened = timeout(WAIT, self.try_open(gateway, ca, hello)).await;
        opened.unwrap_or_else(|_| Err(Status::deadline_exceeded("the operator did not answer the hello")))
    }

    async fn try_open(&self, gateway: SocketAddr, ca: &str, hello: Hello) -> Result<Voice, Status> {
        let stream = self.dial(gateway, ca).await.map_err(|error| Status::unknown(error.to_string()))?;
        let mut stream = Some(TokioIo::new(stream));
        let connector = tower::service_fn(move |_: http::Uri| {
            let stream = stream.take().ok_or_else(|| io::Error::other("one connection, one session"));
            async move { stream }
        });
        let endpoint = Endpoint::from_static("http://gateway.test").connect_with_connector(connector).await;
        let channel = endpoint.map_err(|error| Status::unknown(error.to_string()))?;
        let (outgoing, messages) = mpsc::channel(64);
        let mut incoming = AgentServiceClient::new(channel).session(ReceiverStream::new(messages)).await?.into_inner();
        let hello = AgentMessage { message: Some(agent_message::Message::Hello(hello)) };
        // The stream may have ended already: what it ended with is read below.
        drop(outgoing.send(hello).await);
        match incoming.message().await?.and_then(|message| message.message) {
            Some(operator_message::Message::Welcome(_)) => Ok(Voice { outgoing, incoming }),
            other => Err(Status::internal(format!("no welcome: {other:?}"))),
        }
    }
}

impl Voice {
    /// Says something; false once the session is over.
    pub async fn say(&self, message: agent_message::Message) -> bool {
        self.outgoing.send(AgentMessage { message: Some(message) }).await.is_ok()
    }

    /// Reports a state; false once the session is over.
    pub async fn report(&self, report: Report) -> bool {
        self.say(agent_message::Message::Report(report)).await
    }

    /// What the operator says next; `None` when it says nothing for `time`.
    ///
    /// # Errors
    /// The status that the session ended with.
    pub async fn next(&mut self, time: Duration) -> Result<Option<operator_message::Message>, Status> {
        match timeout(time, self.incoming.message()).await {
            Err(_) => Ok(None),
            Ok(Ok(Some(message))) => Ok(message.message),
            Ok(Ok(None)) => Err(Status::ok("the operator ended the session")),
            Ok(Err(status)) => Err(status),
        }
    }

    /// What the session ends with; deadline exceeded when it does not end.
    pub async fn end(&mut self) -> Code {
        loop {
            match self.next(WAIT).await {
                Ok(Some(_)) => {}
                Ok(None) => return Code::DeadlineExceeded,
                Err(status) => return status.code(),
            }
        }
    }
}

/// The words of a runner that ended well without having had a job.
#[must_use]
pub fn unused() -> Report {
    let exit = RunnerExit { code: 0, kind: RunnerExitKind::WithoutJob.into(), detail: String::new() };
    Report { exit: Some(exit), ..Report::default() }
}
