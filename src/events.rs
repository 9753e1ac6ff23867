//! Kubernetes events: what a user reads under `kubectl describe`. Never an API: everything to act on is in status too.
//!
//! kube's Recorder groups events by everything but their note and would show the first note for ever, so each distinct
//! note gets a recorder of its own; identical ones within six minutes become one series.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event as NamedEvent},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{
    Api, Client,
    api::PostParams,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tracing::{debug, warn};

use crate::crd::{conditions::cut, names};

/// The API server refuses notes of more than 1,024 bytes.
const NOTE_LIMIT: usize = 250;
/// Recorders kept, each for one note.
const KEPT: usize = 64;
const TIMEOUT: Duration = Duration::from_secs(5);

/// Publishes events; clones share the recorders.
#[derive(Clone)]
pub struct Events {
    client: Client,
    recorders: Arc<Mutex<Vec<(String, Recorder)>>>,
}

/// Something that is told once.
#[derive(Clone, Debug)]
pub struct Once<'a> {
    /// The event's own name.
    pub name: String,
    /// How bad it is.
    pub type_: EventType,
    /// CamelCase reason.
    pub reason: &'a str,
    /// For people.
    pub note: String,
    /// When it was told.
    pub at: Timestamp,
}

/// What became of something that is told once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Telling {
    /// It was told, or nobody will ever take it.
    New,
    /// It was told before.
    Old,
    /// Nobody knows: it can be told again.
    Unanswered,
}

impl Events {
    /// A publisher.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client, recorders: Arc::default() }
    }

    /// Something a user may want to know.
    pub async fn say(&self, about: &ObjectReference, reason: &str, note: impl Into<String>) {
        self.publish(about, EventType::Normal, reason, note.into()).await;
    }

    /// Something a user should look at.
    pub async fn warn(&self, about: &ObjectReference, reason: &str, note: impl Into<String>) {
        self.publish(about, EventType::Warning, reason, note.into()).await;
    }

    /// Something told once, whoever tells it: the event's name is its own, and a second one under it is not taken.
    pub async fn once(&self, about: &ObjectReference, once: Once<'_>) -> Telling {
        let reason = once.reason;
        let event = named(about, once);
        let api = Api::<NamedEvent>::namespaced(self.client.clone(), about.namespace.as_deref().unwrap_or_default());
        let params = PostParams::default();
        match tokio::time::timeout(TIMEOUT, api.create(&params, &event)).await {
            Ok(Ok(_)) => Telling::New,
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => Telling::Old,
            // It would be refused again: a namespace that goes takes no events any more.
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 400 | 403 | 404 | 422) => {
                warn!(%status, reason, "Event was refused");
                Telling::New
            }
            Ok(Err(error)) => {
                debug!(%error, reason, "Event was not taken");
                Telling::Unanswered
            }
            Err(_) => Telling::Unanswered,
        }
    }

    /// A failure to publish is only logged: no decision hangs on an event.
    async fn publish(&self, about: &ObjectReference, type_: EventType, reason: &str, note: String) {
        let note = cut(&note, NOTE_LIMIT);
        let recorder = self.recorder(&format!("{}/{reason}/{note}", about.uid.as_deref().unwrap_or_default()));
        let event =
            Event { type_, reason: reason.to_owned(), note: Some(note), action: reason.to_owned(), secondary: None };
        match tokio::time::timeout(TIMEOUT, recorder.publish(&event, about)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(%error, reason, "Event was not taken"),
            Err(_) => debug!(reason, "Event got no answer"),
        }
    }

    fn recorder(&self, key: &str) -> Recorder {
        let mut recorders = self.recorders.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, recorder)) = recorders.iter().find(|(known, _)| known == key) {
            return recorder.clone();
        }
        let recorder = Recorder::new(self.client.clone(), Reporter::from(names::REPORTER.to_owned()));
        recorders.push((key.to_owned(), recorder.clone()));
        if recorders.len() > KEPT {
            recorders.remove(0);
        }
        recorder
    }
}

/// As kube's recorder makes them, but under this name.
fn named(about: &ObjectReference, Once { name, type_, reason, note, at }: Once<'_>) -> NamedEvent {
    let word = match type_ {
        EventType::Normal => "Normal",
        EventType::Warning => "Warning",
    };
    let metadata = ObjectMeta { name: Some(name), namespace: about.namespace.clone(), ..ObjectMeta::default() };
    NamedEvent {
        metadata,
        action: Some(reason.to_owned()),
        reason: Some(reason.to_owned()),
        event_time: Some(MicroTime(at)),
        regarding: Some(about.clone()),
        note: Some(cut(&note, NOTE_LIMIT)),
        reporting_controller: Some(names::REPORTER.to_owned()),
        reporting_instance: Some(names::REPORTER.to_owned()),
        type_: Some(word.to_owned()),
        ..NamedEvent::default()
    }
}
