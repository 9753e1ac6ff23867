//! What controllers see of the cloud: [`Groups`] shares calls, gathers them, and remembers which group to leave alone.
//!
//! - **Lists** are shared: who needs one not older than a moment gets the latest that is, or waits for one call with all
//!   others. A list's time is when it was asked for, so nothing that happened later can be read out of it.
//! - **Creations** are gathered for a moment and sent by name, at most 1,000 a call; each name gets its own answer.
//! - **Deletions** likewise, URLs and bare names apart, and at a distance from each other: however many machines end, they
//!   cost two calls a second.
//! - **Back-off** is per group and grows; a pause that is over lets the next creation through as a probe.
//!
//! Creations and deletions run in tasks of their own: who stops waiting does not stop them half way.

mod backoff;
mod coalesce;
mod creation;
mod deletion;
mod gather;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;

pub use self::backoff::{BackOff, Pause, Pauses};
use self::{
    backoff::{Strike, struck},
    coalesce::Coalesced,
    gather::{Gather, Pace, Waiting, answer},
};
use super::{ComputeError, DeleteTarget, ErrorClass, Group, GroupSettings, Instance, Instances, Observe, Operation};
use crate::clock::Clock;

/// Google's bound on instances in one call.
const MOST_PER_CALL: usize = 1000;

/// How [`Groups`] behaves.
#[derive(Clone)]
pub struct GroupsConfig {
    /// How long names are gathered before a call goes out.
    pub batch_window: Duration,
    /// How far apart batches of deletions go to one group: what comes in between goes in the next. Short, because a pass of
    /// the VM's controller waits for the answer, and so many passes are under way at once and no more.
    pub deletion_distance: Duration,
    /// How old a group's settings may be.
    pub settings_max_age: Duration,
    /// How long one call may take (the port sees to it), and how long an accepted creation is followed for its verdict.
    pub request_timeout: Duration,
    /// The pause before an unanswered call is repeated; it doubles.
    pub retry_pause: Duration,
    /// How long a group is left alone after which failure.
    pub pauses: Pauses,
    /// Told of every call: backend, method, outcome.
    pub observe: Observe,
    /// Asked right before everything that changes the cloud: whether this process still may, being the leader.
    pub may_act: Arc<dyn Fn() -> bool + Send + Sync>,
}

impl Default for GroupsConfig {
    fn default() -> Self {
        Self {
            batch_window: Duration::from_millis(50),
            deletion_distance: Duration::from_millis(200),
            settings_max_age: Duration::from_secs(60),
            request_timeout: Duration::from_secs(30),
            retry_pause: Duration::from_millis(500),
            pauses: Pauses::default(),
            observe: Arc::new(|_, _, _| ()),
            may_act: Arc::new(|| true),
        }
    }
}

impl fmt::Debug for GroupsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupsConfig").field("batch_window", &self.batch_window).finish_non_exhaustive()
    }
}

/// One list of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// When the call was started: the list shows nothing that happened later for sure.
    pub asked_at: Timestamp,
    /// The instances by name.
    pub instances: BTreeMap<String, Instance>,
}

/// Why an instance was not created.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CreateError {
    /// The name belongs to something that is not in the group.
    #[error("the name is taken")]
    NameTaken(#[source] ComputeError),
    /// Nothing was created, for sure.
    #[error("nothing was created")]
    Rejected(#[source] ComputeError),
    /// It may have been created: only lists can tell.
    #[error("it may have been created")]
    Unknown(#[source] ComputeError),
}

impl CreateError {
    /// What the cloud said.
    #[must_use]
    pub fn cause(&self) -> &ComputeError {
        match self {
            Self::NameTaken(error) | Self::Rejected(error) | Self::Unknown(error) => error,
        }
    }
}

/// The groups of the cloud; clones share everything.
#[derive(Clone, Debug)]
pub struct Groups(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    instances: Arc<dyn Instances>,
    clock: Arc<dyn Clock>,
    config: GroupsConfig,
    states: Mutex<BTreeMap<Group, Arc<State>>>,
}

/// What is known and under way in one group.
#[derive(Debug, Default)]
struct State {
    listing: Coalesced<Arc<Listing>>,
    settings: Coalesced<GroupSettings>,
    creations: Gather<String, Result<(), CreateError>>,
    deletions: Gather<DeleteTarget, Result<(), ComputeError>>,
    strike: Mutex<Option<Strike>>,
}

impl Groups {
    /// Groups over a port.
    #[must_use]
    pub fn new(instances: Arc<dyn Instances>, clock: Arc<dyn Clock>, config: GroupsConfig) -> Self {
        Self(Arc::new(Inner { instances, clock, config, states: Mutex::default() }))
    }

    /// A list that was asked for at or after `not_before` (a time to come counts as now).
    pub async fn listing(&self, group: &Group, not_before: Timestamp) -> Result<Arc<Listing>, ComputeError> {
        let ask = async |asked_at| {
            let entries = match self.count("list", self.port().list(group).await) {
                // A group that does not exist has no instances: like every absence it counts when it is seen twice.
                Err(error) if error.class == ErrorClass::NotFound => Vec::new(),
                listed => listed?,
            };
            let instances = entries.into_iter().map(|entry| (entry.name.clone(), entry)).collect();
            Ok(Arc::new(Listing { asked_at, instances }))
        };
        self.state(group).listing.get(not_before, &*self.0.clock, |at| Box::pin(ask(at))).await
    }

    /// The latest list, however old.
    #[must_use]
    pub fn latest(&self, group: &Group) -> Option<Arc<Listing>> {
        self.state(group).listing.latest()
    }

    /// Asks for an instance of this name. `Ok` means accepted (or that it exists): a list shows when it is there.
    pub async fn create(&self, group: &Group, name: &str) -> Result<(), CreateError> {
        let (answer, goes) = self.state(group).creations.add(name.to_owned(), self.pace(Duration::ZERO));
        if let Some(goes) = goes {
            let (groups, group) = (self.clone(), group.clone());
            tokio::spawn(async move {
                tokio::time::sleep_until(goes).await;
                groups.send_creations(&group).await;
            });
        }
        answer.await.unwrap_or_else(|_| Err(CreateError::Unknown(abandoned("creating instances in", group))))
    }

    async fn send_creations(&self, group: &Group) {
        let mut waiting = self.state(group).creations.take();
        while !waiting.is_empty() {
            let batch: Vec<_> = waiting.keys().take(MOST_PER_CALL).cloned().collect();
            for (name, outcome) in self.create_batch(group, batch).await {
                answer(&mut waiting, &name, &outcome);
            }
        }
    }

    /// Asks for an instance to be deleted. `Ok` means accepted: only its absence from lists shows that it is gone.
    pub async fn delete(&self, group: &Group, target: DeleteTarget) -> Result<(), ComputeError> {
        let (answer, goes) = self.state(group).deletions.add(target, self.pace(self.0.config.deletion_distance));
        if let Some(goes) = goes {
            let (groups, group) = (self.clone(), group.clone());
            tokio::spawn(async move {
                tokio::time::sleep_until(goes).await;
                groups.send_deletions(&group).await;
            });
        }
        answer.await.unwrap_or_else(|_| Err(abandoned("deleting instances of", group)))
    }

    async fn send_deletions(&self, group: &Group) {
        let mut waiting: Waiting<_, _> = self.state(group).deletions.take();
        for batch in deletion::calls(waiting.keys().cloned().collect()) {
            let tell = |part: &[DeleteTarget], verdict: &Result<(), ComputeError>| {
                part.iter().for_each(|target| answer(&mut waiting, target, verdict));
            };
            self.delete_batch(group, batch, tell).await;
        }
    }

    /// The group's settings, at most `settings_max_age` old.
    pub async fn settings(&self, group: &Group) -> Result<GroupSettings, ComputeError> {
        let oldest = self.now().saturating_sub(self.0.config.settings_max_age).unwrap_or(Timestamp::MIN);
        let ask = async || self.count("settings", self.port().settings(group).await);
        self.state(group).settings.get(oldest, &*self.0.clock, |_| Box::pin(ask())).await
    }

    /// What an agent that never called in left behind.
    pub async fn last_words(&self, group: &Group, zone: &str, name: &str) -> Result<Option<String>, ComputeError> {
        self.count("last_words", self.port().last_words(group, zone, name).await)
    }

    /// Leaves the group alone for a while: longer each time, until it recovers.
    pub fn back_off(&self, group: &Group, class: ErrorClass, message: &str) {
        let state = self.state(group);
        let mut strike = state.strike.lock().unwrap_or_else(PoisonError::into_inner);
        let now = (self.now(), rand::random::<f64>());
        *strike = Some(struck(strike.as_ref(), class, message, now, &self.0.config.pauses));
    }

    /// Whether, until when and why the group is left alone. A pause that is over lets everything through.
    #[must_use]
    pub fn backed_off(&self, group: &Group) -> Option<BackOff> {
        let now = self.now();
        let state = self.state(group);
        let strike = state.strike.lock().unwrap_or_else(PoisonError::into_inner);
        strike.as_ref().map(|s| s.back_off.clone()).filter(|b| now < b.until)
    }

    /// An instance of the group started: it can be used again, and the next pause is short again.
    pub fn recovered(&self, group: &Group) {
        *self.state(group).strike.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// A creation was accepted. That says nothing about room: stockouts and quotas show later.
    fn accepted(&self, group: &Group) {
        let state = self.state(group);
        let mut strike = state.strike.lock().unwrap_or_else(PoisonError::into_inner);
        strike.take_if(|s| !matches!(s.back_off.class, ErrorClass::Capacity | ErrorClass::Quota));
    }

    fn state(&self, group: &Group) -> Arc<State> {
        let mut states = self.0.states.lock().unwrap_or_else(PoisonError::into_inner);
        states.entry(group.clone()).or_default().clone()
    }

    fn now(&self) -> Timestamp {
        self.0.clock.now()
    }

    fn port(&self) -> &dyn Instances {
        &*self.0.instances
    }

    fn pace(&self, between: Duration) -> Pace {
        Pace { window: self.0.config.batch_window, between }
    }

    fn retry_pause(&self, attempt: u32) -> Duration {
        self.0.config.retry_pause * 2_u32.saturating_pow(attempt.saturating_sub(1))
    }

    fn operation_wait(&self) -> Duration {
        self.0.config.request_timeout
    }

    fn permitted(&self, action: &'static str, group: &Group) -> Result<(), ComputeError> {
        if (self.0.config.may_act)() {
            return Ok(());
        }
        let message = "not sent: this operator is no longer the leader".to_owned();
        Err(ComputeError { message, ambiguous: false, ..abandoned(action, group) })
    }

    fn count<T>(&self, method: &'static str, result: Result<T, ComputeError>) -> Result<T, ComputeError> {
        (self.0.config.observe)("compute", method, result.as_ref().map_or_else(|e| e.class.as_str(), |_| "Ok"));
        result
    }
}

impl Groups {
    /// Counts a call that answers with an operation: one that is over with an error did not succeed.
    fn count_operation(
        &self,
        method: &'static str,
        result: Result<Operation, ComputeError>,
    ) -> Result<Operation, ComputeError> {
        let outcome = match &result {
            Ok(operation) => operation.errors.first().map_or("Ok", |error| error.class.as_str()),
            Err(error) => error.class.as_str(),
        };
        (self.0.config.observe)("compute", method, outcome);
        result
    }
}

fn abandoned(action: &'static str, group: &Group) -> ComputeError {
    ComputeError {
        action,
        group: group.clone(),
        class: ErrorClass::Transient,
        ambiguous: true,
        message: "the call was abandoned".to_owned(),
        retry_after: None,
    }
}

#[cfg(test)]
mod tests;
