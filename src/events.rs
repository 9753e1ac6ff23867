//! Kubernetes events: what a user reads under `kubectl describe`. Never an API: everything to act on is in status too.
//!
//! kube's Recorder groups events by everything but their note and would show the first note for ever, so each distinct
//! note gets a recorder of its own; identical ones within six minutes become one series.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tracing::debug;

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
