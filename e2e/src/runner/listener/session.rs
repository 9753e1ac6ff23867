//! Opening the session and polling it.

use std::time::Duration;

use http::StatusCode;
use tokio::{sync::mpsc, task::JoinHandle};

use super::{PAUSE, Signals};
use crate::runner::{
    VERSION,
    client::{Answer, Client, ClientError},
    terminal,
    wire::{Conflict, Message, Opening, Session},
};

/// Why there is no session.
pub(super) enum Refused {
    Stopped,
    Conflict,
    Deleted,
    Deprecated,
    Clock,
}

/// Mentions a broken connection once, and its repair.
#[derive(Default)]
struct Connection {
    broken: bool,
}

impl Connection {
    /// A usable answer, or `None` after a pause.
    async fn judge(&mut self, answer: Result<Answer, ClientError>) -> Option<Answer> {
        let error = match answer {
            Ok(answer) if !answer.status.is_server_error() => {
                if std::mem::take(&mut self.broken) {
                    terminal::stamped("Runner reconnected.");
                }
                return Some(answer);
            }
            Ok(answer) => answer.status.to_string(),
            Err(error) => error.to_string(),
        };
        if !std::mem::replace(&mut self.broken, true) {
            terminal::error(&format!(
                "{}: Runner connect error: {error}. Retrying until reconnected.",
                terminal::now()
            ));
        }
        tokio::time::sleep(PAUSE).await;
        None
    }
}

/// Opens a session; tries again while another listener holds it, and for as long as GitHub does not answer.
pub(super) async fn open(client: &Client, signals: &mut Signals) -> Result<String, Refused> {
    tokio::select! {
        _ = signals.next() => {
            terminal::line("Exiting...");
            Err(Refused::Stopped)
        }
        opened = keep_opening(client) => opened,
    }
}

async fn keep_opening(client: &Client) -> Result<String, Refused> {
    let mut connection = Connection::default();
    let mut waited = Duration::ZERO;
    loop {
        let opening = Opening { version: VERSION.to_owned(), os: "Linux".to_owned(), unix_seconds: unix_seconds() };
        let Some(answer) = connection.judge(client.post("/sessions", &opening).await).await else { continue };
        match answer.status {
            StatusCode::CONFLICT => {
                let rules: Conflict = answer.json().unwrap_or_default();
                terminal::line("A session for this runner already exists.");
                let (limit, pause) = (rules.limit_millis, Duration::from_millis(rules.retry_millis));
                if waited >= Duration::from_millis(limit) {
                    let seconds = limit / 1000;
                    terminal::line(&format!(
                        "Stop retry on SessionConflictException after retried for {seconds} seconds."
                    ));
                    return Err(Refused::Conflict);
                }
                waited += pause;
                tokio::time::sleep(pause).await;
            }
            StatusCode::PRECONDITION_FAILED => return Err(Refused::Clock),
            StatusCode::UPGRADE_REQUIRED => return Err(Refused::Deprecated),
            _ => return answer.json::<Session>().map(|session| session.id).ok_or(Refused::Deleted),
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "the stand-in is another program with a clock of its own")]
fn unix_seconds() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// What polling brings.
pub(super) enum Event {
    Message(Message),
    /// Something that is no message: an unexpected exception in the real one.
    Nonsense,
    Gone,
}

/// The polling task; ends with this value.
pub(super) struct Polling {
    events: mpsc::Receiver<Event>,
    task: JoinHandle<()>,
}

impl Polling {
    pub(super) fn start(client: &Client, session: &str) -> Self {
        let (sender, events) = mpsc::channel(1);
        let task = tokio::spawn(poll(client.clone(), format!("/sessions/{session}/messages"), sender));
        Self { events, task }
    }

    /// The next event; after the last one, waits for ever.
    pub(super) async fn next(&mut self) -> Event {
        match self.events.recv().await {
            Some(event) => event,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Polling {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn poll(client: Client, path: String, events: mpsc::Sender<Event>) {
    let mut connection = Connection::default();
    loop {
        let Some(answer) = connection.judge(client.poll(&path).await).await else { continue };
        let event = match answer.status {
            StatusCode::NOT_FOUND => Some(Event::Gone),
            StatusCode::OK => Some(answer.json().map_or(Event::Nonsense, Event::Message)),
            _ => None,
        };
        let last = matches!(event, Some(Event::Gone));
        if let Some(event) = event
            && (events.send(event).await.is_err() || last)
        {
            return;
        }
    }
}
