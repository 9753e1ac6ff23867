//! A simulated GitHub: Apps, installations, self-hosted runners, JIT configs, and jobs that runners really run.
//!
//! ```text
//!   agent ---------------------------> releases: the runner's archive
//!   operator --REST (/ and /api/v3)--> rest: gate (who, limits, headers, contract) -> endpoints --+
//!   runner stand-in --/_runner/------> broker: session, poll, acquire, result -------------------+-- state
//!   test, playground --methods, /_fake/--> control: jobs, faults, lost scopes, ghosts, limits ---+
//! ```
//!
//! Time passes inside the lock (`State::advance`): there is no task, so a dropped simulator leaves nothing behind.

mod broker;
mod call;
mod clock;
mod contract;
mod control;
mod credentials;
mod gate;
mod job;
mod limits;
mod options;
mod refusal;
mod registration;
mod releases;
mod rest;
mod scope;
mod standalone;
mod state;

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use axum::Router;
use bytes::Bytes;

use self::{clock::Clock, contract::Contract, registration::Group, releases::Release, state::State};
pub use self::{
    control::Control,
    credentials::{AppCredentials, KeyError},
    job::{Job, JobId, JobState, JobStatus},
    limits::Limits,
    options::GithubOptions,
    scope::Scope,
    standalone::{Standalone, standalone},
};
use crate::{
    faults::Faults,
    published::openapi::{OpenApi, PublishedError},
    server::{Exchange, Server},
};

/// The simulator could not start.
#[derive(Debug, thiserror::Error)]
pub enum GithubError {
    /// No port.
    #[error("could not listen for the simulated GitHub")]
    Listen(#[from] io::Error),
    /// The description is required and missing.
    #[error(transparent)]
    Published(#[from] PublishedError),
    /// No key.
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// A job did not end in time.
#[derive(Debug, thiserror::Error)]
#[error("job {id:?} did not end within {limit:?}: {last:?}")]
pub struct JobTimeout {
    id: JobId,
    limit: Duration,
    last: Option<Box<JobState>>,
}

/// What handlers share.
#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    clock: Clock,
    faults: Faults,
    contract: Contract,
    url: OnceLock<String>,
    release: OnceLock<Release>,
}

impl Shared {
    /// The state, brought up to now.
    fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.advance();
        state
    }

    fn url(&self) -> String {
        self.url.get().cloned().unwrap_or_default()
    }
}

/// A runner, as a test looks at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunnerView {
    /// Runner id.
    pub id: u64,
    /// Name.
    pub name: String,
    /// Where it is registered.
    pub scope: Scope,
    /// Labels.
    pub labels: Vec<String>,
    /// Id of its group.
    pub group: u64,
    /// Whether it is connected.
    pub online: bool,
    /// Whether it has a job.
    pub busy: bool,
}

/// A registration that was made once, whether or not it is still there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registered {
    /// Runner name.
    pub name: String,
    /// Whether a listener ever connected with it.
    pub used: bool,
}

/// A simulated GitHub that serves until it is dropped.
#[derive(Debug)]
pub struct GithubSim {
    shared: Arc<Shared>,
    server: Server,
}

impl GithubSim {
    /// Listens on a random loopback port.
    ///
    /// # Errors
    /// When it cannot listen, or when the published description is required and cannot be had.
    pub async fn start(options: GithubOptions) -> Result<Self, GithubError> {
        Self::bind(options, SocketAddr::from(([127, 0, 0, 1], 0))).await
    }

    /// Listens on this address.
    ///
    /// # Errors
    /// As for `start`.
    pub async fn bind(options: GithubOptions, address: SocketAddr) -> Result<Self, GithubError> {
        let api = match options.checked {
            true => tokio::task::spawn_blocking(OpenApi::load).await.map_err(io::Error::other)??,
            false => None,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(State::new(options)),
            clock: Clock::default(),
            faults: Faults::default(),
            contract: Contract::new(api),
            url: OnceLock::new(),
            release: OnceLock::new(),
        });
        let rest = rest::routes(shared.clone());
        let router = Router::new()
            .nest("/_runner", broker::routes(shared.clone()))
            .nest("/_fake", control::routes(shared.clone()))
            .nest(releases::RELEASES, releases::routes(shared.clone()))
            .nest(call::ENTERPRISE_PREFIX, rest.clone())
            .fallback_service(rest);
        let server = Server::bind(router, address, shared.faults.clone()).await?;
        shared.url.get_or_init(|| server.url());
        Ok(Self { shared, server })
    }

    /// Base URL of the API, as `https://api.github.com` is; the same is served under `/api/v3`.
    #[must_use]
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// What it listens with: traffic and faults.
    #[must_use]
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// An organization.
    pub fn add_org(&self, name: &str) {
        self.shared.lock().add_scope(Scope::Organization(name.to_lowercase()));
    }

    /// A repository `owner/name`.
    pub fn add_repository(&self, name: &str) {
        self.shared.lock().add_scope(Scope::Repository(name.to_lowercase()));
    }

    /// An enterprise; only personal tokens see it.
    pub fn add_enterprise(&self, name: &str) {
        self.shared.lock().add_scope(Scope::Enterprise(name.to_lowercase()));
    }

    /// A runner group of an organization or enterprise; returns its id. A new default takes the flag from the old one.
    pub fn add_runner_group(&self, scope: &str, name: &str, default: bool) -> u64 {
        let scope = Scope::parse(scope);
        let mut state = self.shared.lock();
        state.add_scope(scope.clone());
        let id = 1000 + state.next_id();
        let groups = state.scopes.entry(scope).or_default();
        if default {
            groups.iter_mut().for_each(|g| g.default = false);
        }
        groups.push(Group { id, name: name.to_owned(), default });
        id
    }

    /// Runners reach this simulator by that host from now on, as the URL in their JIT configs says.
    pub fn reach_runners_by(&self, host: &str) {
        let port = self.server.address().port();
        self.shared.lock().options.runner_url = Some(format!("http://{host}:{port}"));
    }

    /// Offers the runner as this archive, with its hash, to be fetched from here; the first one stays.
    pub fn offer_runner(&self, archive: Bytes) {
        self.shared.release.get_or_init(|| Release::new(archive));
    }

    /// How often the runner was fetched to the end.
    #[must_use]
    pub fn runners_fetched(&self) -> usize {
        let whole = |exchange: &Exchange| exchange.path.starts_with(releases::RELEASES) && exchange.status == Some(200);
        self.server.traffic.count(whole)
    }

    /// A GitHub App, installed everywhere.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn add_app(&self) -> Result<AppCredentials, KeyError> {
        self.shared.lock().credentials.add_app(None)
    }

    /// A GitHub App, installed on one account only.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn add_app_on(&self, account: &str) -> Result<AppCredentials, KeyError> {
        self.shared.lock().credentials.add_app(Some(account.to_lowercase()))
    }

    /// A personal access token.
    #[must_use]
    pub fn add_token(&self) -> String {
        self.shared.lock().credentials.add_token()
    }

    /// Does something hostile; returns the id of a runner it made.
    pub fn control(&self, control: Control) -> Option<u64> {
        self.shared.control(control)
    }

    /// Credentials stop seeing this scope: 404 on everything there.
    pub fn lose_scope(&self, scope: &str) {
        self.control(Control::LoseScope { scope: Scope::parse(scope) });
    }

    /// They see it again.
    pub fn restore_scope(&self, scope: &str) {
        self.control(Control::RestoreScope { scope: Scope::parse(scope) });
    }

    /// GitHub drops an idle registration; its listener learns it at the next poll.
    pub fn remove_idle_registration(&self, id: u64) {
        self.control(Control::RemoveIdleRegistration { id });
    }

    /// Makes a ghost of an online runner: consumed by a job that is gone, it listens on for ever.
    pub fn ghost(&self, id: u64) {
        self.control(Control::Ghost { id });
    }

    /// Somebody else's runner; returns its id.
    pub fn add_foreign_runner(&self, scope: &str, name: &str, online: bool) -> u64 {
        let (scope, name) = (Scope::parse(scope), name.to_owned());
        self.control(Control::AddForeignRunner { scope, name, online }).unwrap_or_default()
    }

    /// Every registered runner, foreign ones included.
    #[must_use]
    pub fn runners(&self) -> Vec<RunnerView> {
        let state = self.shared.lock();
        let view = |r: &registration::Registration| RunnerView {
            id: r.id,
            name: r.name.clone(),
            scope: r.scope.clone(),
            labels: r.labels.clone(),
            group: r.group,
            online: state.online(r),
            busy: r.busy(),
        };
        state.runners.values().map(view).collect()
    }

    /// Every registration ever made, oldest first.
    #[must_use]
    pub fn registered(&self) -> Vec<Registered> {
        self.shared.lock().registered.values().cloned().collect()
    }

    /// Queues a job.
    pub fn queue_job(&self, job: Job) -> JobId {
        self.shared.lock().queue(job)
    }

    /// A job and what became of it.
    #[must_use]
    pub fn job(&self, id: JobId) -> Option<JobState> {
        self.shared.lock().jobs.get(&id.0).cloned()
    }

    /// Every job so far.
    #[must_use]
    pub fn jobs(&self) -> Vec<JobState> {
        self.shared.lock().jobs.values().cloned().collect()
    }

    /// Waits until a job has ended.
    ///
    /// # Errors
    /// When it has not ended in time.
    pub async fn wait_job(&self, id: JobId, limit: Duration) -> Result<JobState, JobTimeout> {
        let ends = tokio::time::Instant::now() + limit;
        loop {
            let last = self.job(id);
            match last {
                Some(job) if job.status == JobStatus::Completed => return Ok(job),
                last if tokio::time::Instant::now() >= ends => {
                    return Err(JobTimeout { id, limit, last: last.map(Box::new) });
                }
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// What departed from GitHub's published description, by whoever's fault.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        self.shared.contract.violations()
    }

    /// Fails the test when anything departed from GitHub's published description.
    ///
    /// # Panics
    /// When there is a violation.
    #[allow(clippy::panic, reason = "an assertion for tests")]
    pub fn assert_conforms(&self) {
        let violations = self.violations();
        assert!(violations.is_empty(), "GitHub's published API was violated:\n{}", violations.join("\n"));
    }
}
