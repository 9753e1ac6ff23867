//! An operator for one agent: TLS with a CA of its own, any client certificate, sessions handed to the test.

mod tls;

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use miglet_proto::PROTOCOL_MINOR;
use miglet_proto::v1::{
    self, AgentState, Command, EventKind, OperatorMessage, Report, Welcome,
    agent_message::Message,
    agent_service_server::{AgentService, AgentServiceServer},
    command::Command as Wanted,
    operator_message,
};
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

pub(crate) use self::tls::{BY_NAME, Identity};
use self::tls::{Stream, Thumbprint};

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

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
