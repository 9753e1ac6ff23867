//! Why an agent is turned away: one closed list, counted, logged, and shown as an event on the RunnerVM.
//!
//! Events are coalesced here (one a VM and reason in five minutes): an agent that is refused tries again for ever, and
//! an event is a write to the API server.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use kube::{
    Resource, ResourceExt,
    runtime::events::{Event, EventType, Recorder},
};
use tracing::{debug, warn};

use crate::{crd::RunnerVm, wakes::Key};

/// Told the reason of every refusal: the label of a counter.
pub type Observer = Arc<dyn Fn(&'static str) + Send + Sync>;

/// One event a VM and reason in this time.
const EVENT_PERIOD: SignedDuration = SignedDuration::from_mins(5);
/// Remembered events; more are counted and logged only.
const EVENT_MEMORY: usize = 10_000;
const EVENT_TIMEOUT: Duration = Duration::from_secs(10);

/// Why an agent is turned away. A closed list: each is a value of a metric's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[allow(missing_docs, reason = "the texts of the errors say it")]
pub enum Refusal {
    #[error("the identity token is not a token")]
    MalformedToken,
    #[error("the identity token is not signed with RS256")]
    WrongAlgorithm,
    #[error("the identity token is signed with a key Google does not publish")]
    UnknownKey,
    #[error("the identity token's signature does not match")]
    BadSignature,
    #[error("the identity token is not from Google")]
    WrongIssuer,
    #[error("the identity token is for another audience or another key")]
    WrongAudience,
    #[error("the identity token has expired")]
    Expired,
    #[error("the identity token is from the future")]
    NotYetValid,
    #[error("the identity token names no instance: it must be asked for with format=full")]
    NoInstanceClaims,
    #[error("no RunnerVM has this instance's name")]
    UnknownVm,
    #[error("the instance is of another project than its RunnerVM")]
    OtherProject,
    #[error("the instance is in a zone its RunnerVM's group does not cover")]
    OtherZone,
    #[error("the instance is not the one of its RunnerVM")]
    OtherInstance,
    #[error("the instance is older than its RunnerVM")]
    OlderThanVm,
    #[error("the instance is going down")]
    InstanceDown,
    #[error("the RunnerVM's group does not list the instance")]
    NotListed,
    #[error("the instance is too old for a first contact")]
    TooLate,
    #[error("the RunnerVM was registered already")]
    AlreadyRegistered,
    #[error("the RunnerVM is being deleted")]
    Deleting,
    #[error("the RunnerVM is bound to another key")]
    KeyMismatch,
    #[error("the RunnerVM is bound to another boot of the instance: it is over")]
    Rebooted,
    #[error("the first message is not a valid hello")]
    BadHello,
    #[error("the agent speaks another version of the protocol")]
    ProtocolSkew,
    #[error("too many messages")]
    TooManyMessages,
    #[error("more events than any agent has to tell")]
    TooManyEvents,
    #[error("an event without a usable number")]
    BadEvent,
    #[error("too many sessions on one connection")]
    TooManySessions,
    #[error("too many connections that have not said who they are")]
    TooManyConnections,
    #[error("the TLS handshake failed")]
    BadHandshake,
    #[error("the connection did not say in time who it is")]
    TooSlow,
}

impl Refusal {
    /// For metric labels and events.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MalformedToken => "MalformedToken",
            Self::WrongAlgorithm => "WrongAlgorithm",
            Self::UnknownKey => "UnknownKey",
            Self::BadSignature => "BadSignature",
            Self::WrongIssuer => "WrongIssuer",
            Self::WrongAudience => "WrongAudience",
            Self::Expired => "Expired",
            Self::NotYetValid => "NotYetValid",
            Self::NoInstanceClaims => "NoInstanceClaims",
            Self::UnknownVm => "UnknownVm",
            Self::OtherProject => "OtherProject",
            Self::OtherZone => "OtherZone",
            Self::OtherInstance => "OtherInstance",
            Self::OlderThanVm => "OlderThanVm",
            Self::InstanceDown => "InstanceDown",
            Self::NotListed => "NotListed",
            Self::TooLate => "TooLate",
            Self::AlreadyRegistered => "AlreadyRegistered",
            Self::Deleting => "Deleting",
            Self::KeyMismatch => "KeyMismatch",
            Self::Rebooted => "Rebooted",
            Self::BadHello => "BadHello",
            Self::ProtocolSkew => "ProtocolSkew",
            Self::TooManyMessages => "TooManyMessages",
            Self::TooManyEvents => "TooManyEvents",
            Self::BadEvent => "BadEvent",
            Self::TooManySessions => "TooManySessions",
            Self::TooManyConnections => "TooManyConnections",
            Self::BadHandshake => "BadHandshake",
            Self::TooSlow => "TooSlow",
        }
    }
}

/// Makes refusals visible; clones share it.
#[derive(Clone)]
pub(super) struct Refusals {
    observer: Observer,
    recorder: Recorder,
    shown: Arc<Mutex<HashMap<(Key, Refusal), Timestamp>>>,
}

impl fmt::Debug for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refusals").finish_non_exhaustive()
    }
}

impl Refusals {
    pub(super) fn new(observer: Observer, recorder: Recorder) -> Self {
        Self { observer, recorder, shown: Arc::default() }
    }

    /// Counts a refusal of somebody unknown. Logged for debugging only: strangers could write the log full.
    pub(super) fn count(&self, reason: Refusal) {
        debug!(reason = reason.as_str(), "refused: {reason}");
        (self.observer)(reason.as_str());
    }

    /// Counts a refusal and tells it on the RunnerVM it concerns, not too often.
    pub(super) fn show(&self, reason: Refusal, vm: &Arc<RunnerVm>, now: Timestamp) {
        self.count(reason);
        let key = Key::new(vm.namespace().unwrap_or_default(), vm.name_any());
        if !self.is_news(&key, reason, now) {
            return;
        }
        warn!(vm = %key, reason = reason.as_str(), "refused an agent: {reason}");
        let (recorder, vm) = (self.recorder.clone(), Arc::clone(vm));
        tokio::spawn(async move {
            let event = event(reason);
            let reference = vm.object_ref(&());
            match tokio::time::timeout(EVENT_TIMEOUT, recorder.publish(&event, &reference)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => warn!(vm = %key, %error, "writing an event about a refused agent"),
                Err(_) => warn!(vm = %key, "writing an event about a refused agent: no answer"),
            }
        });
    }

    fn is_news(&self, key: &Key, reason: Refusal, now: Timestamp) -> bool {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        shown.retain(|_, at| now.duration_since(*at) < EVENT_PERIOD);
        if shown.len() >= EVENT_MEMORY || shown.contains_key(&(key.clone(), reason)) {
            return false;
        }
        shown.insert((key.clone(), reason), now);
        true
    }
}

fn event(reason: Refusal) -> Event {
    Event {
        type_: EventType::Warning,
        reason: "AttestationRefused".to_owned(),
        note: Some(format!("{}: refused an agent: {reason}", reason.as_str())),
        // Part of what makes two events one, for the API server and for the recorder.
        action: reason.as_str().to_owned(),
        secondary: None,
    }
}
