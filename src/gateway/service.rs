//! One agent's stream, from its hello to its end.
//!
//! The response starts before the hello was read: a client that waits for it before it sends anything must not wait
//! for ever. So every refusal is the status that ends the stream.

use std::{sync::Arc, time::Duration};

use miglet_proto::{
    PROTOCOL_MINOR,
    v1::{
        self, AgentMessage, OperatorMessage, Welcome, agent_message, agent_service_server::AgentService,
        operator_message::Message,
    },
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, info, warn};

use super::{
    attestation::{Attestor, Claim, Denied, key},
    convert,
    events::{Event, Heard},
    peer::Peer,
    rate::TokenBucket,
    refusals::Refusal,
    report::{Command, Report},
    server::GatewayConfig,
    sessions::{Introduction, Session},
    settings::{heartbeat, settings},
};
use crate::{
    crd::{RunnerVm, conditions::cut},
    wakes::Key,
};

/// Messages that may wait for a slow connection.
const OUTGOING_QUEUE: usize = 8;
/// A connection that takes nothing for this long is gone.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest boot id and version: what the RunnerVM's status takes.
const WORD_LIMIT: usize = 64;

type Outgoing = mpsc::Sender<Result<OperatorMessage, Status>>;

/// The gRPC service; clones share it.
#[derive(Clone, Debug)]
pub(super) struct Service(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: GatewayConfig,
    attestor: Attestor,
    shutdown: CancellationToken,
}

/// An open session and the ends of its stream.
struct Stream {
    session: Session,
    acks: watch::Receiver<u64>,
    bucket: TokenBucket,
    incoming: Streaming<AgentMessage>,
    outgoing: Outgoing,
}

impl Service {
    pub(super) fn new(config: GatewayConfig, attestor: Attestor, shutdown: CancellationToken) -> Self {
        Self(Arc::new(Inner { config, attestor, shutdown }))
    }
}

#[tonic::async_trait]
impl AgentService for Service {
    type SessionStream = ReceiverStream<Result<OperatorMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        let peer = peer.ok_or_else(|| Status::internal("a connection without a key"))?;
        if !peer.may_open_stream() {
            return Err(Status::resource_exhausted(Refusal::TooManySessions.to_string()));
        }
        let (outgoing, response) = mpsc::channel(OUTGOING_QUEUE);
        let (inner, incoming) = (Arc::clone(&self.0), request.into_inner());
        tokio::spawn(async move {
            let end = inner.guarded(peer, incoming, outgoing.clone()).await;
            // An error is the agent's leaving first: nobody is left to be told.
            drop(timeout(SEND_TIMEOUT, outgoing.send(Err(end))).await);
        });
        Ok(Response::new(ReceiverStream::new(response)))
    }
}

impl Inner {
    /// The session, as long as this process leads and lives.
    async fn guarded(&self, peer: Peer, incoming: Streaming<AgentMessage>, outgoing: Outgoing) -> Status {
        let mut serving = self.config.serving.clone();
        tokio::select! {
            biased;
            () = self.shutdown.cancelled() => Status::unavailable("the operator is shutting down"),
            () = stopped_serving(&mut serving) => Status::unavailable("this operator does not lead"),
            () = outgoing.closed() => Status::cancelled("the agent left"),
            end = self.run(peer, incoming, outgoing.clone()) => end,
        }
    }

    async fn run(&self, peer: Peer, mut incoming: Streaming<AgentMessage>, outgoing: Outgoing) -> Status {
        // Boxed, so that what is needed once is not kept room for as long as the session lasts.
        let admission = Box::pin(self.admit(&peer, &mut incoming));
        let attested = timeout(self.config.caps.attest_timeout, admission).await;
        let (vm, claim, report) = match attested {
            Ok(Ok(admitted)) => admitted,
            Ok(Err(status)) => return status,
            Err(_) => return Status::deadline_exceeded("the session was not opened in time"),
        };
        let _open = peer.opened();
        let sessions = &self.attestor.sessions;
        let agent = Introduction { version: claim.version, minor: claim.minor };
        let (session, commands) = sessions.open(key(&vm), agent, report, self.attestor.now());
        let acks = sessions.acks(&session, acked(&vm));
        // Closed whatever way this ends, also when the future is dropped.
        let session = Closing { inner: self, session };
        info!(vm = %session.session.vm(), "an agent opened its session");
        let caps = self.config.caps;
        let bucket = TokenBucket::new(caps.messages_per_second, caps.message_burst, Instant::now());
        let stream = Stream { session: session.session.clone(), acks, bucket, incoming, outgoing };
        let end = self.exchange(stream, commands).await;
        info!(vm = %session.session.vm(), reason = end.message(), "an agent's session ended");
        end
    }

    /// Reads the hello and finds out whose it is.
    async fn admit(
        &self,
        peer: &Peer,
        incoming: &mut Streaming<AgentMessage>,
    ) -> Result<(Arc<RunnerVm>, Claim, Report), Status> {
        let first = incoming.message().await?.and_then(|message| message.message);
        let Some(agent_message::Message::Hello(hello)) = first else { return Err(self.turn_away(Refusal::BadHello)) };
        let boot_id = cut(&hello.boot_id, WORD_LIMIT);
        if boot_id.is_empty() || boot_id != hello.boot_id {
            return Err(self.turn_away(Refusal::BadHello));
        }
        let report = Report::from(hello.report.unwrap_or_default());
        let claim = Claim {
            token: hello.identity_token,
            thumbprint: peer.thumbprint.to_string(),
            boot_id,
            version: cut(&hello.agent_version, WORD_LIMIT),
            minor: hello.protocol_minor,
            state: report.state,
        };
        match self.attestor.attest(&claim).await {
            Ok(vm) => Ok((vm, claim, report)),
            Err(Denied::Refused(reason)) => Err(Status::permission_denied(reason.to_string())),
            Err(Denied::NotNow(why)) => Err(Status::unavailable(why)),
            Err(Denied::Unsupported(why)) => Err(Status::failed_precondition(why)),
        }
    }

    fn turn_away(&self, reason: Refusal) -> Status {
        self.attestor.refusals.count(reason);
        Status::invalid_argument(reason.to_string())
    }

    /// Both directions until the session ends; returns why it did.
    async fn exchange(&self, mut stream: Stream, mut commands: mpsc::Receiver<(String, Command)>) -> Status {
        let mut next = Some(Message::Welcome(self.welcome(stream.session.vm())));
        // Before the agent tells again what the operator before this one has dealt with.
        if *stream.acks.borrow() > 0 {
            stream.acks.mark_changed();
        }
        loop {
            if let Some(message) = next.take()
                && let Err(end) = stream.send(message).await
            {
                return end;
            }
            tokio::select! {
                command = commands.recv() => match command {
                    Some((id, command)) => next = Some(Message::Command(stream.command(id, command))),
                    None => {
                        // A VM that is gone takes its unacked events along. The agent may have left too.
                        drop(stream.send(stream.acked()).await);
                        return replaced();
                    }
                },
                Ok(()) = stream.acks.changed() => {
                    stream.acks.mark_unchanged();
                    next = Some(stream.acked());
                }
                message = stream.incoming.message() => {
                    if let Err(end) = self.hear(&mut stream, message) {
                        return end;
                    }
                }
            }
        }
    }

    /// What the VM's agent is to know first. Its settings are those of the moment: what changes later is sent as a command.
    fn welcome(&self, vm: &Key) -> Welcome {
        let object = self.attestor.vm(vm);
        let wanted = object.as_ref().map(|vm| {
            let policy = self.attestor.sessions.policy(&vm.spec.pool.uid);
            settings(&vm.spec, policy.as_ref())
        });
        let usual = i32::try_from(self.config.heartbeat_period.as_secs()).unwrap_or(i32::MAX);
        let period = object.map_or(usual, |vm| heartbeat(&vm.spec, usual));
        Welcome {
            vm_name: vm.name.clone(),
            heartbeat_period_seconds: u32::try_from(period).unwrap_or_default(),
            protocol_minor: PROTOCOL_MINOR,
            settings: wanted.map(convert::wire_settings),
        }
    }

    fn hear(&self, stream: &mut Stream, message: Result<Option<AgentMessage>, Status>) -> Result<(), Status> {
        let message = message?.ok_or_else(|| Status::ok("the agent ended its session"))?;
        if !stream.bucket.take(Instant::now()) {
            return Err(self.break_off(Refusal::TooManyMessages));
        }
        match message.message {
            Some(agent_message::Message::Report(report)) => {
                let now = self.attestor.now();
                let heard = self.attestor.sessions.report(&stream.session, report.into(), now);
                if heard { Ok(()) } else { Err(replaced()) }
            }
            Some(agent_message::Message::Ack(ack)) => {
                let (id, ack) = convert::ack(&ack);
                log_ack(stream.session.vm(), &id, ack.refusal.as_deref());
                self.attestor.sessions.acked(&stream.session, (id, ack));
                Ok(())
            }
            Some(agent_message::Message::Diagnostics(chunk)) => {
                self.attestor.sessions.diagnosed(&stream.session, chunk.into());
                Ok(())
            }
            Some(agent_message::Message::Event(event)) => self.hear_event(&stream.session, &event.into()),
            Some(agent_message::Message::Hello(_)) => Err(Status::invalid_argument("a second hello")),
            // Something a newer agent says: no harm in not understanding it.
            None => Ok(()),
        }
    }
}

impl Inner {
    fn hear_event(&self, session: &Session, event: &Event) -> Result<(), Status> {
        let heard = self.attestor.sessions.event(session, event, self.attestor.now());
        let (vm, kind, sequence) = (session.vm(), event.kind.as_str(), event.sequence);
        (self.config.on_event)(kind, heard.as_str());
        match heard {
            Heard::New => {
                let job = event.job.as_ref().map(|job| job.name.as_str());
                info!(%vm, kind, sequence, job, detail = event.detail, "Agent's event");
                Ok(())
            }
            Heard::Replayed => {
                debug!(%vm, kind, sequence, "an agent told an event again");
                Ok(())
            }
            Heard::TooMany => Err(self.break_off(Refusal::TooManyEvents)),
            Heard::Bad => Err(self.break_off(Refusal::BadEvent)),
            Heard::Gone => Err(replaced()),
        }
    }

    fn break_off(&self, reason: Refusal) -> Status {
        self.attestor.refusals.count(reason);
        Status::resource_exhausted(reason.to_string())
    }
}

impl Stream {
    fn acked(&self) -> Message {
        Message::EventAck(v1::EventAck { sequence: *self.acks.borrow() })
    }

    fn command(&self, id: String, command: Command) -> v1::Command {
        debug!(vm = %self.session.vm(), %id, "sending a command");
        convert::wire(id, command)
    }

    async fn send(&self, message: Message) -> Result<(), Status> {
        let message = OperatorMessage { message: Some(message) };
        match timeout(SEND_TIMEOUT, self.outgoing.send(Ok(message))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Status::cancelled("the agent left")),
            Err(_) => Err(Status::deadline_exceeded("the agent takes no messages")),
        }
    }
}

/// Closes a session when dropped.
struct Closing<'a> {
    inner: &'a Inner,
    session: Session,
}

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.inner.attestor.sessions.close(&self.session);
    }
}

/// Up to where the status says that events are dealt with.
fn acked(vm: &RunnerVm) -> u64 {
    let agent = vm.status.as_ref().and_then(|status| status.agent.as_ref());
    agent.and_then(|agent| u64::try_from(agent.acked_sequence).ok()).unwrap_or_default()
}

fn replaced() -> Status {
    Status::aborted("the session was replaced or its VM is gone")
}

fn log_ack(vm: &Key, id: &str, refusal: Option<&str>) {
    match refusal {
        Some(detail) => warn!(%vm, id, detail, "an agent refused a command"),
        None => debug!(%vm, id, "an agent did a command"),
    }
}

/// Comes back once this process does not lead. Whoever could say so is gone when the process ends: that counts too.
async fn stopped_serving(serving: &mut watch::Receiver<bool>) {
    drop(serving.wait_for(|serving| !*serving).await);
}
