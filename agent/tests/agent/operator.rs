//! An operator for one agent: TLS with a CA of its own, any client certificate, sessions handed to the test.

use std::{
    io,
    net::SocketAddr,
    ops::Range,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use aws_lc_rs::digest;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use miglet_proto::PROTOCOL_MINOR;
use miglet_proto::v1::{
    self, AgentState, Command, EventKind, OperatorMessage, Report, Welcome,
    agent_message::Message,
    agent_service_server::{AgentService, AgentServiceServer},
    command::Command as Wanted,
    operator_message,
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{
    DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, transport::server::Connected};

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A name of the gateway that only a proxy can resolve.
pub(crate) const BY_NAME: &str = "gateway.test";

/// A CA and the gateway's certificate; outlives an operator.
pub(crate) struct Identity {
    pub(crate) ca: String,
    tls: TlsAcceptor,
}

impl Identity {
    pub(crate) fn new() -> Self {
        Self::valid(2020..2100)
    }

    /// One whose gateway has a certificate for these years.
    pub(crate) fn valid(years: Range<i32>) -> Self {
        let mut params = CertificateParams::new(vec![]).expect("params");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("key")).expect("ca");
        let key = KeyPair::generate().expect("key");
        let mut params =
            CertificateParams::new(vec!["127.0.0.1".into(), "localhost".into(), BY_NAME.into()]).expect("params");
        (params.not_before, params.not_after) =
            (rcgen::date_time_ymd(years.start, 1, 1), rcgen::date_time_ymd(years.end, 1, 1));
        let certificate = params.signed_by(&key, &ca).expect("certificate");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_client_cert_verifier(Arc::new(AnyClient(provider)))
            .with_single_cert(vec![certificate.der().clone()], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
            .expect("config");
        config.alpn_protocols = vec![b"h2".to_vec()];
        Self { ca: ca.pem(), tls: TlsAcceptor::from(Arc::new(config)) }
    }
}

/// The operator; its connections end with it.
pub(crate) struct Operator {
    pub(crate) address: SocketAddr,
    /// What its welcomes say.
    pub(crate) settings: Arc<Mutex<Option<v1::Settings>>>,
    sessions: mpsc::Receiver<Session>,
    task: JoinHandle<()>,
}

/// One agent's session.
pub(crate) struct Session {
    pub(crate) hello: v1::Hello,
    pub(crate) thumbprint: String,
    /// Newest report.
    pub(crate) report: Report,
    /// How many there were.
    pub(crate) reports: usize,
    /// Every ack so far.
    pub(crate) acks: Vec<v1::CommandAck>,
    /// Every piece of diagnostics so far.
    pub(crate) chunks: Vec<v1::DiagnosticsChunk>,
    /// Every event so far.
    pub(crate) events: Vec<v1::Event>,
    /// Whether events are acked as they come.
    pub(crate) acking: bool,
    incoming: Streaming<v1::AgentMessage>,
    outgoing: mpsc::Sender<Result<OperatorMessage, Status>>,
}

impl Operator {
    pub(crate) async fn start(identity: &Identity, address: &str) -> Self {
        Self::refusing(identity, address, None).await
    }

    /// One that answers every hello with this status.
    pub(crate) async fn refusing(identity: &Identity, address: &str, refusal: Option<Status>) -> Self {
        Self::speaking(identity, address, refusal, PROTOCOL_MINOR).await
    }

    pub(crate) async fn speaking(identity: &Identity, address: &str, refusal: Option<Status>, minor: u32) -> Self {
        let listener = TcpListener::bind(address).await.expect("listen");
        let address = listener.local_addr().expect("address");
        let (opened, sessions) = mpsc::channel(16);
        let (streams, accepted) = mpsc::channel(16);
        let tls = identity.tls.clone();
        let accepting = async move {
            loop {
                let (tcp, _) = listener.accept().await.expect("accept");
                if let Ok(stream) = tls.accept(tcp).await {
                    streams.send(Ok::<_, io::Error>(Stream(stream))).await.ok();
                }
            }
        };
        let settings = Arc::default();
        let service = Service { opened, minor, refusal: Mutex::new(refusal), settings: Arc::clone(&settings) };
        let service = AgentServiceServer::new(service);
        let serving =
            tonic::transport::Server::builder().add_service(service).serve_with_incoming(ReceiverStream::new(accepted));
        let task = tokio::spawn(async move {
            tokio::select! { _ = accepting => {}, _ = serving => {} }
        });
        Self { address, settings, sessions, task }
    }

    /// Ends it and frees its port.
    pub(crate) async fn stop(mut self) {
        self.task.abort();
        (&mut self.task).await.ok();
    }

    pub(crate) async fn session(&mut self) -> Session {
        timeout(PATIENCE, self.sessions.recv()).await.expect("an agent calls in").expect("running")
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Session {
    pub(crate) async fn send(&self, id: &str, command: Wanted) {
        let command = Command { id: id.into(), command: Some(command) };
        self.send_raw(OperatorMessage { message: Some(operator_message::Message::Command(command)) }).await;
    }

    pub(crate) async fn send_raw(&self, message: OperatorMessage) {
        self.outgoing.send(Ok(message)).await.expect("session is open");
    }

    pub(crate) async fn register(&self, id: &str, jit: &str) {
        let register = v1::RegisterRunner { runner_name: "vm-1".into(), encoded_jit_config: jit.into() };
        self.send(id, Wanted::RegisterRunner(register)).await;
    }

    /// Takes messages until this holds.
    pub(crate) async fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let wait = async {
            while !holds(self) {
                let message = self.incoming.message().await.expect("session is open").and_then(|m| m.message);
                self.take(message).await;
            }
        };
        let done = timeout(PATIENCE, wait).await;
        let Self { report, acks, events, .. } = self;
        assert!(done.is_ok(), "never {what}; the newest report is {report:?}, acks {acks:?}, events {events:?}");
    }

    async fn take(&mut self, message: Option<Message>) {
        match message {
            Some(Message::Report(report)) => (self.report, self.reports) = (report, self.reports + 1),
            Some(Message::Ack(ack)) => self.acks.push(ack),
            Some(Message::Diagnostics(chunk)) => self.chunks.push(chunk),
            Some(Message::Event(event)) => {
                let sequence = event.sequence;
                self.events.push(event);
                if self.acking {
                    self.ack_events(sequence).await;
                }
            }
            other => panic!("unexpected message {other:?}"),
        }
    }

    pub(crate) async fn ack_events(&self, sequence: u64) {
        let ack = operator_message::Message::EventAck(v1::EventAck { sequence });
        // The agent may have left.
        self.outgoing.send(Ok(OperatorMessage { message: Some(ack) })).await.ok();
    }

    /// Takes messages until this kind of event has come.
    pub(crate) async fn until_event(&mut self, kind: EventKind) -> v1::Event {
        self.until(kind.as_str_name(), |s| s.events.iter().any(|event| event.kind() == kind)).await;
        self.events.iter().find(|event| event.kind() == kind).cloned().expect("it came")
    }

    pub(crate) async fn until_state(&mut self, state: AgentState) {
        self.until(state.as_str_name(), |s| s.report.state() == state).await;
    }

    pub(crate) async fn outcome(&mut self, id: &str) -> v1::CommandOutcome {
        self.until("acked", |s| s.acks.iter().any(|ack| ack.command_id == id)).await;
        self.acks.iter().find(|ack| ack.command_id == id).expect("acked").outcome()
    }

    /// Takes what is left until the agent closes its side.
    pub(crate) async fn until_closed(mut self) -> Report {
        let rest = async {
            while let Ok(Some(message)) = self.incoming.message().await {
                self.take(message.message).await;
            }
        };
        timeout(PATIENCE, rest).await.expect("the agent says goodbye");
        self.report
    }
}

struct Service {
    opened: mpsc::Sender<Session>,
    minor: u32,
    refusal: Mutex<Option<Status>>,
    settings: Arc<Mutex<Option<v1::Settings>>>,
}

#[tonic::async_trait]
impl AgentService for Service {
    type SessionStream = ReceiverStream<Result<OperatorMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        if let Some(status) = self.refusal.lock().expect("lock").clone() {
            return Err(status);
        }
        let thumbprint = request.extensions().get::<Thumbprint>().expect("TLS").0.clone();
        let mut incoming = request.into_inner();
        let Some(Message::Hello(hello)) = incoming.message().await?.and_then(|m| m.message) else {
            return Err(Status::invalid_argument("hello first"));
        };
        let (outgoing, messages) = mpsc::channel(16);
        let settings = self.settings.lock().expect("lock").clone();
        let protocol_minor = self.minor;
        let welcome = Welcome { vm_name: "vm-1".into(), heartbeat_period_seconds: 1, protocol_minor, settings };
        let welcome = OperatorMessage { message: Some(operator_message::Message::Welcome(welcome)) };
        outgoing.send(Ok(welcome)).await.expect("room");
        let report = hello.report.clone().unwrap_or_default();
        let session = Session {
            hello,
            thumbprint,
            report,
            reports: 0,
            acks: Vec::new(),
            chunks: Vec::new(),
            events: Vec::new(),
            acking: true,
            incoming,
            outgoing,
        };
        self.opened.send(session).await.expect("the test listens");
        Ok(Response::new(ReceiverStream::new(messages)))
    }
}

/// A TLS stream that tonic accepts without its own TLS.
struct Stream(TlsStream<TcpStream>);

#[derive(Clone)]
struct Thumbprint(String);

impl Connected for Stream {
    type ConnectInfo = Thumbprint;

    fn connect_info(&self) -> Thumbprint {
        let certificates = self.0.get_ref().1.peer_certificates().expect("client certificate");
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificates[0]).expect("certificate");
        let hash = digest::digest(&digest::SHA256, parsed.tbs_certificate.subject_pki.raw);
        Thumbprint(URL_SAFE_NO_PAD.encode(hash))
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// TLS proves possession of the key; whose key it is, is not TLS's business.
#[derive(Debug)]
struct AnyClient(Arc<CryptoProvider>);

impl ClientCertVerifier for AnyClient {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
