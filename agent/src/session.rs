//! The one stream to the operator, for as long as the agent lives: attest, say hello, report, obey, come back.
//!
//! Reports are level-based: only the newest state is ever waiting to be sent, so neither a slow nor an absent operator
//! makes the agent grow. Answers to commands are lost with their session; the operator asks again under the same id.
//! Events are sent from the oldest unacked one on in each new session, and before the report that shows the same: what an
//! operator writes because of a report then has the event's number with it.

use std::{path::PathBuf, time::Duration};

use miglet_proto::{
    PROTOCOL_MINOR,
    v1::{self, agent_message::Message, agent_service_client::AgentServiceClient, operator_message},
};
use secrecy::ExposeSecret;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, Interval, interval_at, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Endpoint};

use crate::{
    backoff::Backoff,
    clock,
    error::in_full,
    health::Sampler,
    metadata::{Metadata, MetadataError},
    outbox::Outbox,
    plan::{Answer, Input},
    settings::Settings,
    tls::Dialer,
    wire,
};

/// The operator may first have to ask the cloud for a fresh list.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(30);
/// A clock that is off by more than this may be why nobody can be trusted.
const SKEW_ODD_SECONDS: u64 = 60;
const SEND_TIMEOUT: Duration = Duration::from_secs(30);
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(10));
/// The operator closes its side of a finished session at once.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);
/// Operators of older protocols know no events: reports tell them the same, and nothing waits for their acks.
const EVENTS_MINOR: u32 = 1;
/// No command is larger than a JIT config.
const MESSAGE_LIMIT: usize = 512 * 1024;

/// Why a session ended or did not begin.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    #[error("could not connect to the operator at {gateway}")]
    Connect {
        gateway: String,
        #[source]
        source: tonic::transport::Error,
    },
    #[error("the operator ended the session: {} ({:?})", .0.message(), .0.code())]
    Status(#[from] tonic::Status),
    #[error("the operator did not answer within {} s", .0.as_secs())]
    Timeout(Duration),
    #[error("the operator's first message was not a welcome")]
    NoWelcome,
    #[error("the operator closed the session")]
    Closed,
}

/// What the session is given and gives.
pub struct Session {
    /// Where and who.
    pub settings: Settings,
    /// First part and thumbprint.
    pub audience: String,
    /// To the gateway.
    pub dialer: Dialer,
    /// The newest report.
    pub reports: watch::Receiver<v1::Report>,
    /// Answers to commands; closed when the machine goes off.
    pub answers: mpsc::Receiver<Answer>,
    /// Pieces of diagnostics.
    pub diagnostics: mpsc::Receiver<v1::DiagnosticsChunk>,
    /// Between two heartbeats.
    pub heartbeats: watch::Receiver<Duration>,
    /// Events to tell.
    pub outbox: Outbox,
    /// To the driver.
    pub inputs: mpsc::Sender<Input>,
    /// Where the runner works.
    pub place: watch::Receiver<PathBuf>,
}

/// An open stream.
struct Open {
    outgoing: mpsc::Sender<v1::AgentMessage>,
    incoming: Streaming<v1::OperatorMessage>,
    /// Whether the operator knows events.
    events: bool,
}

impl Session {
    /// Holds sessions, one after the other, until the agent ends. Nothing makes it give up: the operator may be away
    /// for long, and a refusal may be its mistake.
    pub async fn run(mut self) {
        let metadata = Metadata::new(self.settings.metadata_host.clone());
        let mut sampler = Sampler::new(self.place.clone());
        let (mut backoff, mut told) = (Backoff::default(), String::new());
        loop {
            while self.answers.try_recv().is_ok() {}
            // The rest of an answer whose beginning was lost is worth nothing.
            while self.diagnostics.try_recv().is_ok() {}
            let error = match self.open(&metadata, &mut sampler).await {
                Ok(open) => {
                    backoff.reset();
                    tracing::info!(gateway = %self.settings.host, "session opened");
                    match self.hold(open, &mut sampler).await {
                        Ok(()) => return,
                        Err(error) => error,
                    }
                }
                Err(error) => error,
            };
            let error = in_full(&error) + &clock_trouble(&metadata, &error).await.unwrap_or_default();
            let wait = backoff.wait();
            tracing::warn!(error, retry_in_ms = wait.as_millis(), "no session");
            if self.inputs.send(Input::Disconnected { error: error.clone() }).await.is_err() {
                return;
            }
            tokio::join!(sleep(wait), tell(&metadata, &mut told, error));
        }
    }

    async fn open(&mut self, metadata: &Metadata, sampler: &mut Sampler) -> Result<Open, SessionError> {
        let token = metadata.identity_token(&self.audience).await?;
        let report = v1::Report { health: Some(sampler.sample()), ..self.reports.borrow_and_update().clone() };
        let hello = v1::Hello {
            identity_token: token.expose_secret().to_owned(),
            boot_id: self.settings.boot_id.clone(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol_minor: PROTOCOL_MINOR,
            report: Some(report),
        };
        let (outgoing, messages) = mpsc::channel(16);
        // The channel is empty and open.
        outgoing.try_send(wire::message(Message::Hello(hello))).ok();
        let mut client = self.connect().await?;
        let welcomed = timeout(WELCOME_TIMEOUT, async {
            let mut incoming = client.session(ReceiverStream::new(messages)).await?.into_inner();
            match incoming.message().await?.and_then(|m| m.message) {
                Some(operator_message::Message::Welcome(welcome)) => Ok((incoming, welcome)),
                Some(_) => Err(SessionError::NoWelcome),
                None => Err(SessionError::Closed),
            }
        });
        let (incoming, welcome) = welcomed.await.unwrap_or(Err(SessionError::Timeout(WELCOME_TIMEOUT)))?;
        let events = welcome.protocol_minor >= EVENTS_MINOR;
        self.inputs.send(wire::connected(welcome)).await.map_err(|_| SessionError::Closed)?;
        Ok(Open { outgoing, incoming, events })
    }

    async fn connect(&self) -> Result<AgentServiceClient<tonic::transport::Channel>, SessionError> {
        let host = if self.settings.host.contains(':') {
            format!("[{}]", self.settings.host)
        } else {
            self.settings.host.clone()
        };
        let authority = format!("{host}:{}", self.settings.port);
        // The scheme says http because the TLS is the dialer's, not tonic's.
        let failed = |source| SessionError::Connect { gateway: authority.clone(), source };
        let endpoint = Endpoint::from_shared(format!("http://{authority}"))
            .map_err(failed)?
            .http2_keep_alive_interval(KEEP_ALIVE.0)
            .keep_alive_timeout(KEEP_ALIVE.1)
            .keep_alive_while_idle(true);
        let dialer = self.dialer.clone();
        let channel = endpoint.connect_with_connector(tower::service_fn(move |_| dialer.clone().dial()));
        let channel = channel.await.map_err(failed)?;
        Ok(AgentServiceClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT))
    }

    /// Until the session ends, which is an error, or the agent says goodbye.
    async fn hold(&mut self, mut open: Open, sampler: &mut Sampler) -> Result<(), SessionError> {
        let mut heartbeat = heartbeats(*self.heartbeats.borrow_and_update());
        let mut health = sampler.sample();
        let (mut pending, mut sent) = (self.outbox.pending(), 0);
        pending.mark_changed();
        loop {
            let message = tokio::select! {
                biased;
                incoming = open.incoming.message() => {
                    self.hear(incoming?.ok_or(SessionError::Closed)?.message).await?;
                    continue;
                }
                Ok(()) = pending.changed(), if open.events => {
                    let events = pending.borrow_and_update().behind(sent);
                    for event in events {
                        sent = event.sequence;
                        send(&open.outgoing, wire::message(Message::Event(event))).await?;
                    }
                    continue;
                }
                changed = self.reports.changed() => {
                    changed.map_err(|_| SessionError::Closed)?;
                    self.report(health)
                }
                changed = self.heartbeats.changed() => {
                    changed.map_err(|_| SessionError::Closed)?;
                    heartbeat = heartbeats(*self.heartbeats.borrow_and_update());
                    continue;
                }
                Some(chunk) = self.diagnostics.recv() => wire::message(Message::Diagnostics(chunk)),
                _ = heartbeat.tick() => {
                    health = sampler.sample();
                    self.report(health)
                }
                answer = self.answers.recv() => match answer {
                    Some(answer) => wire::ack(answer),
                    None => {
                        // The end of the runner and that of the agent may come in one step: neither is told alone.
                        if self.reports.has_changed().unwrap_or(false) {
                            send(&open.outgoing, self.report(health)).await?;
                        }
                        return goodbye(open).await;
                    }
                },
            };
            send(&open.outgoing, message).await?;
        }
    }

    async fn hear(&self, message: Option<operator_message::Message>) -> Result<(), SessionError> {
        match message {
            Some(operator_message::Message::Command(command)) => {
                let reason = wire::reason(&command);
                if !reason.is_empty() {
                    tracing::info!(command = command.id, reason, "the operator says why");
                }
                self.inputs.send(wire::command(command)).await.map_err(|_| SessionError::Closed)
            }
            Some(operator_message::Message::EventAck(ack)) => {
                self.outbox.acked(ack.sequence);
                Ok(())
            }
            // A second welcome, or something a newer operator says: no harm in not understanding it.
            Some(operator_message::Message::Welcome(_)) | None => Ok(()),
        }
    }

    fn report(&mut self, health: v1::Health) -> v1::AgentMessage {
        let report = self.reports.borrow_and_update().clone();
        wire::message(Message::Report(v1::Report { health: Some(health), ..report }))
    }
}

fn heartbeats(period: Duration) -> Interval {
    let mut heartbeat = interval_at(Instant::now() + period, period);
    heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    heartbeat
}

/// A wrong clock looks like a bad certificate: what is said about it when a connection fails.
async fn clock_trouble(metadata: &Metadata, error: &SessionError) -> Option<String> {
    if !matches!(error, SessionError::Connect { .. }) {
        return None;
    }
    let date = metadata.date().await.ok()?;
    let ahead = clock::seconds_ahead(clock::unix_ms(), date.as_deref())?;
    let (off, where_to) = (ahead.unsigned_abs(), if ahead > 0 { "ahead of" } else { "behind" });
    (off > SKEW_ODD_SECONDS)
        .then(|| format!("; this machine's clock is {off} s {where_to} the metadata server's: start a time service"))
}

async fn send(outgoing: &mpsc::Sender<v1::AgentMessage>, message: v1::AgentMessage) -> Result<(), SessionError> {
    match timeout(SEND_TIMEOUT, outgoing.send(message)).await {
        Ok(sent) => sent.map_err(|_| SessionError::Closed),
        Err(_) => Err(SessionError::Timeout(SEND_TIMEOUT)),
    }
}

/// Ends our side; when the operator has ended its own, it has everything we sent.
async fn goodbye(mut open: Open) -> Result<(), SessionError> {
    drop(open.outgoing);
    let ended = async { while let Ok(Some(_)) = open.incoming.message().await {} };
    timeout(GOODBYE_TIMEOUT, ended).await.ok();
    Ok(())
}

/// Leaves a new error where people look; the same one is not written again.
pub(crate) async fn tell(metadata: &Metadata, told: &mut String, error: String) {
    if *told != error && metadata.put_status(&error).await.is_ok() {
        *told = error;
    }
}
