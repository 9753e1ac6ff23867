//! Holds the Lease, or waits for it.
//!
//! ```text
//!   look ──> none            create it           (409: look again)
//!        ──> released        take it             (resourceVersion: one wins)
//!        ──> somebody else's wait until its record has not changed for its whole duration, by our own clock; then take it
//!        ──> ours            renew it            (no answer: again, until our own deadline: lost)
//! ```
//!
//! Another holder's `renewTime` is compared with itself only, never with our clock: clocks differ between machines.
//! A lease that was deleted is made anew and counts as released: the first start of an installation looks the same.

use std::{
    future::Future,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{Api, Client, api::PostParams};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Leadership, Moment, Term};
use crate::clock::Clock;

/// Which lease, as whom, how long.
#[derive(Clone, Debug)]
pub struct LeaseSettings {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// This process; another start of it is somebody else.
    pub identity: String,
    /// How long one renewal lasts. Others see it rounded up to whole seconds.
    pub duration: Duration,
    /// How often the lease is renewed, or looked at by a standby.
    pub renew: Duration,
    /// How long nothing is created after a take-over from a holder that did not release: the timeout of one request.
    pub settle: Duration,
}

/// Why an elector ended, or could not look.
#[derive(Debug, thiserror::Error)]
pub enum ElectorError {
    /// Somebody else holds the lease now.
    #[error("lost the lease {name} to {holder:?}")]
    Taken {
        /// The lease.
        name: String,
        /// Who holds it.
        holder: String,
    },
    /// The lease could not be renewed in time.
    #[error("did not renew the lease {name} within its duration")]
    Expired {
        /// The lease.
        name: String,
    },
    /// A call about the lease failed.
    #[error("{action} the lease {name}")]
    Call {
        /// What was tried.
        action: &'static str,
        /// The lease.
        name: String,
        /// Why it failed.
        #[source]
        source: Box<kube::Error>,
    },
    /// A call about the lease was not answered in time.
    #[error("{action} the lease {name}: no answer in {limit:?}")]
    NoAnswer {
        /// What was tried.
        action: &'static str,
        /// The lease.
        name: String,
        /// How long it was waited for.
        limit: Duration,
    },
}

/// What to do about the lease.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Create,
    Renew,
    Take { clean: bool },
    Wait { remaining: Duration },
    Lost { holder: String },
}

/// Since when somebody else's record has been the same.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Unchanged {
    version: Option<String>,
    since: Instant,
}

/// Pure: what to do about the lease as it is.
fn decide(found: Option<&Lease>, unchanged: &Unchanged, me: &str, leading: bool, now: Instant) -> Step {
    let Some(lease) = found else { return Step::Create };
    let spec = lease.spec.as_ref();
    let holder = spec.and_then(|s| s.holder_identity.as_deref()).unwrap_or_default();
    if holder == me {
        return Step::Renew;
    }
    if leading {
        return Step::Lost { holder: holder.to_owned() };
    }
    if holder.is_empty() {
        return Step::Take { clean: true };
    }
    let seconds = spec.and_then(|s| s.lease_duration_seconds).and_then(|s| u64::try_from(s).ok()).unwrap_or_default();
    match Duration::from_secs(seconds).checked_sub(now.saturating_duration_since(unchanged.since)) {
        Some(remaining) if !remaining.is_zero() => Step::Wait { remaining },
        _ => Step::Take { clean: false },
    }
}

/// Pure: the lease as this process' own. `found` keeps its resourceVersion: of two writers one wins.
fn held(found: Option<&Lease>, settings: &LeaseSettings, now: MicroTime) -> Lease {
    let mut lease = found.cloned().unwrap_or_default();
    let before = lease.spec.take().unwrap_or_default();
    let mine = before.holder_identity.as_deref() == Some(settings.identity.as_str());
    lease.metadata.name = Some(settings.name.clone());
    lease.metadata.namespace = Some(settings.namespace.clone());
    lease.spec = Some(LeaseSpec {
        acquire_time: if mine { before.acquire_time } else { Some(now.clone()) },
        holder_identity: Some(settings.identity.clone()),
        lease_duration_seconds: i32::try_from(settings.duration.as_millis().div_ceil(1000)).ok(),
        lease_transitions: Some(before.lease_transitions.unwrap_or(0).saturating_add(i32::from(!mine))),
        renew_time: Some(now),
        ..LeaseSpec::default()
    });
    lease
}

/// Pure: the lease for anybody to take.
fn released(found: &Lease) -> Lease {
    let spec = found.spec.clone().map(|spec| LeaseSpec { holder_identity: None, ..spec });
    Lease { metadata: found.metadata.clone(), spec }
}

/// Holds the lease, or waits for it.
pub struct Elector {
    api: Api<Lease>,
    settings: LeaseSettings,
    clock: Arc<dyn Clock>,
    term: Arc<RwLock<Option<Term>>>,
    leading: watch::Sender<bool>,
    unchanged: Unchanged,
    /// Whether the take-over under way, whose answer may have been lost, is from a holder that released.
    clean: bool,
}

impl Elector {
    /// An elector and what it decides about. `client` should be its own: renewals must not queue behind other calls.
    #[must_use]
    pub fn new(client: Client, settings: LeaseSettings, clock: Arc<dyn Clock>) -> (Self, Leadership) {
        let (leading, watched) = watch::channel(false);
        let term = Arc::new(RwLock::new(None));
        let leadership = Leadership { term: term.clone(), leading: watched, clock: Some(clock.clone()) };
        let api = Api::namespaced(client, &settings.namespace);
        let unchanged = Unchanged { version: None, since: Instant::now() };
        (Self { api, settings, clock, term, leading, unchanged, clean: true }, leadership)
    }

    /// Waits for the lease and renews it until `stop`; then releases it. Stop what acts first, this last.
    ///
    /// # Errors
    /// The lease was held and lost: the process must end, because what it began may now be somebody else's.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), ElectorError> {
        loop {
            let pause = match self.pass().await {
                Ok(pause) => pause,
                Err(error @ (ElectorError::Taken { .. } | ElectorError::Expired { .. })) => {
                    self.end();
                    return Err(error);
                }
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "Cannot keep up with the lease");
                    self.settings.renew / 2
                }
            };
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(pause) => {}
            }
        }
        self.release().await;
        Ok(())
    }

    /// One look and what follows from it; how long until the next.
    async fn pass(&mut self) -> Result<Duration, ElectorError> {
        if self.current().is_some_and(|term| term.may_act(self.now()).is_err()) {
            return Err(ElectorError::Expired { name: self.settings.name.clone() });
        }
        let found = self.call("reading", self.api.get_opt(&self.settings.name)).await?;
        let version = found.as_ref().and_then(|lease| lease.metadata.resource_version.clone());
        if self.unchanged.version != version {
            self.unchanged = Unchanged { version, since: Instant::now() };
        }
        let leading = self.current().is_some();
        match decide(found.as_ref(), &self.unchanged, &self.settings.identity, leading, Instant::now()) {
            Step::Wait { remaining } => return Ok(remaining.min(self.settings.renew)),
            Step::Lost { holder } => return Err(ElectorError::Taken { name: self.settings.name.clone(), holder }),
            Step::Take { clean } => self.clean = clean,
            Step::Create | Step::Renew => {}
        }
        self.hold(found.as_ref()).await?;
        Ok(self.settings.renew)
    }

    /// Writes the lease as ours; the term counts from before the request was sent.
    async fn hold(&mut self, found: Option<&Lease>) -> Result<(), ElectorError> {
        let sent = self.now();
        let lease = held(found, &self.settings, MicroTime(sent.wall));
        let params = PostParams::default();
        match found {
            Some(_) => self.call("renewing", self.api.replace(&self.settings.name, &params, &lease)).await?,
            None => self.call("creating", self.api.create(&params, &lease)).await?,
        };
        let settle = if self.clean { Duration::ZERO } else { self.settings.settle };
        let begun = self.current().map(|term| (term.taken, term.settle));
        let (taken, settle) = begun.unwrap_or_else(|| (Instant::now(), settle));
        *self.term.write().unwrap_or_else(PoisonError::into_inner) =
            Some(Term { renewed: sent, duration: self.settings.duration, taken, settle });
        if !self.leading.send_replace(true) {
            tracing::info!(lease = self.settings.name, clean = self.clean, "Leading");
        }
        Ok(())
    }

    /// Gives the lease back, if it is ours; what cannot be given back runs out.
    async fn release(&self) {
        let led = self.current().is_some();
        self.end();
        if !led {
            return;
        }
        if let Err(error) = self.try_release().await {
            tracing::warn!(error = &error as &dyn std::error::Error, "Cannot release the lease: it runs out by itself");
        }
    }

    async fn try_release(&self) -> Result<(), ElectorError> {
        let name = &self.settings.name;
        let Some(found) = self.call("reading", self.api.get_opt(name)).await? else { return Ok(()) };
        let holder = found.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref());
        if holder == Some(self.settings.identity.as_str()) {
            self.call("releasing", self.api.replace(name, &PostParams::default(), &released(&found))).await?;
            tracing::info!(lease = name, "Lease released");
        }
        Ok(())
    }

    /// No effect may begin from here on.
    fn end(&self) {
        *self.term.write().unwrap_or_else(PoisonError::into_inner) = None;
        self.leading.send_replace(false);
    }

    fn current(&self) -> Option<Term> {
        *self.term.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Moment {
        Moment::now(self.clock.as_ref())
    }

    /// A third of the duration: a lost request leaves time for another before the term is over.
    async fn call<T>(
        &self,
        action: &'static str,
        call: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, ElectorError> {
        let (limit, name) = (self.settings.duration / 3, &self.settings.name);
        match tokio::time::timeout(limit, call).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(source)) => Err(ElectorError::Call { action, name: name.clone(), source: Box::new(source) }),
            Err(_) => Err(ElectorError::NoAnswer { action, name: name.clone(), limit }),
        }
    }
}

#[cfg(test)]
mod tests;
