//! Everything the simulated GitHub knows. One lock, no waiting: handlers take it, change it, let go.
//!
//! ```text
//!   registered -> session (online) -> job assigned (busy, DELETE 422) -> acquired -> completed: registration gone
//!        |             |                    |  not acquired: queued again, registration gone
//!        |             | removed while idle: the next poll says so
//!        | never connected: dropped         | runner silent for long: job lost, registration gone
//! ```

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::{
    Registered,
    credentials::{Credential, Credentials},
    job::{JobState, JobStatus},
    limits::Meter,
    options::GithubOptions,
    refusal::Refusal,
    registration::{Group, Registration, Wanted},
    scope::Scope,
};
use crate::runner::wire::{Conclusion, Message};

/// How long a removed runner may be silent and still hear, when it polls again, that it is gone.
const FORGET: Duration = Duration::from_secs(120);

/// An open connection of a runner.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) runner: u64,
    /// Its registration was consumed by a job that is not there: it polls on and never hears a word.
    pub(crate) ghost: bool,
    pub(crate) inbox: VecDeque<Message>,
    pub(crate) wake: Arc<Notify>,
    pub(crate) polls: u32,
    pub(crate) last_seen: Instant,
}

/// Everything the simulated GitHub knows.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) options: GithubOptions,
    pub(crate) credentials: Credentials,
    pub(crate) meter: Meter,
    pub(crate) scopes: BTreeMap<Scope, Vec<Group>>,
    pub(crate) hidden: BTreeSet<Scope>,
    pub(crate) runners: BTreeMap<u64, Registration>,
    /// Every registration ever made, by runner id.
    pub(crate) registered: BTreeMap<u64, Registered>,
    pub(crate) sessions: HashMap<String, Session>,
    pub(crate) jobs: BTreeMap<u64, JobState>,
    pub(crate) deprecated: bool,
    /// Until when a version of the runner gets jobs; no word of it unless set.
    pub(crate) support_end: Option<i64>,
    /// What lists show instead of the truth.
    pub(crate) stale: Option<Vec<(Registration, bool)>>,
    last_id: u64,
    advanced: Instant,
}

impl State {
    pub(crate) fn new(options: GithubOptions) -> Self {
        Self {
            meter: Meter::new(options.limits.clone()),
            options,
            credentials: Credentials::default(),
            scopes: BTreeMap::new(),
            hidden: BTreeSet::new(),
            runners: BTreeMap::new(),
            registered: BTreeMap::new(),
            sessions: HashMap::new(),
            jobs: BTreeMap::new(),
            deprecated: false,
            support_end: None,
            stale: None,
            last_id: 0,
            advanced: Instant::now(),
        }
    }

    pub(crate) fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// Adds a scope with its default group, once.
    pub(crate) fn add_scope(&mut self, scope: Scope) {
        self.scopes.entry(scope).or_insert_with(|| vec![Group { id: 1, name: "Default".to_owned(), default: true }]);
    }

    /// The groups of a scope, when this credential sees it.
    pub(crate) fn groups(&self, who: &Credential, scope: &Scope) -> Result<&[Group], Refusal> {
        let lost = self.hidden.contains(scope)
            || scope.account().is_some_and(|a| self.hidden.contains(&Scope::Organization(a.to_owned())));
        let groups = self.scopes.get(scope).filter(|_| !lost).ok_or_else(Refusal::not_found)?;
        match who {
            Credential::Token(_) => Ok(groups),
            Credential::App(_) => Err(Refusal::not_accessible()),
            Credential::Installation { .. } if scope.account().is_none() => Err(Refusal::not_accessible()),
            Credential::Installation { account: Some(own), .. } if scope.account() != Some(own) => {
                Err(Refusal::not_found())
            }
            Credential::Installation { .. } => Ok(groups),
        }
    }

    /// Registers a runner.
    pub(crate) fn register(&mut self, wanted: Wanted) -> &mut Registration {
        let id = self.next_id();
        self.registered.insert(id, Registered { name: wanted.name.clone(), used: false });
        self.runners.entry(id).or_insert_with(|| Registration::new(id, wanted))
    }

    /// Whether the runner is connected.
    pub(crate) fn online(&self, runner: &Registration) -> bool {
        let session = runner.session.as_ref().and_then(|id| self.sessions.get(id));
        runner.foreign.unwrap_or_else(|| session.is_some_and(|s| self.alive(s)))
    }

    /// What lists show: every runner and whether it is online.
    pub(crate) fn listed(&self) -> Vec<(Registration, bool)> {
        let truth = || self.runners.values().map(|r| (r.clone(), self.online(r))).collect();
        self.stale.clone().unwrap_or_else(truth)
    }

    fn alive(&self, session: &Session) -> bool {
        session.polls > 0 || session.last_seen.elapsed() < self.options.offline_after
    }

    /// Puts a message into a runner's session.
    pub(crate) fn tell(&mut self, runner: u64, message: Message) {
        let session = self.runners.get(&runner).and_then(|r| r.session.clone());
        if let Some(session) = session.and_then(|id| self.sessions.get_mut(&id)) {
            session.inbox.push_back(message);
            session.wake.notify_one();
        }
    }

    /// Gives queued jobs to online idle runners that carry their labels.
    pub(crate) fn dispatch(&mut self) {
        let queued: Vec<u64> = self.jobs.values().filter(|j| j.status == JobStatus::Queued).map(|j| j.id.0).collect();
        for id in queued {
            let Some(runner) = self.jobs.get(&id).and_then(|job| self.match_for(job)) else { continue };
            self.assign(id, runner);
        }
    }

    fn match_for(&self, state: &JobState) -> Option<u64> {
        let job = &state.job;
        let free = |r: &&Registration| r.foreign.is_none() && r.job.is_none() && self.online(r);
        let fits = |r: &&Registration| r.scope.serves(&job.repository) && r.carries(&job.labels);
        let grouped = |r: &&Registration| job.group.as_deref().is_none_or(|name| self.group_of(r) == Some(name));
        self.runners.values().filter(fits).filter(grouped).find(free).map(|r| r.id)
    }

    fn group_of(&self, runner: &Registration) -> Option<&str> {
        self.scopes.get(&runner.scope)?.iter().find(|g| g.id == runner.group).map(|g| g.name.as_str())
    }

    fn assign(&mut self, job: u64, runner: u64) {
        let (Some(state), Some(registration)) = (self.jobs.get_mut(&job), self.runners.get_mut(&runner)) else {
            return;
        };
        (state.status, state.runner_id) = (JobStatus::InProgress, Some(runner));
        state.runner_name = Some(registration.name.clone());
        (registration.job, registration.assigned) = (Some(job), Some(Instant::now()));
        self.tell(runner, Message::Job(job));
    }

    /// Ends a job and, with it, its runner's registration.
    pub(crate) fn complete(&mut self, job: u64, conclusion: Conclusion, output: String) {
        if let Some(state) = self.jobs.get_mut(&job) {
            (state.status, state.conclusion, state.output) = (JobStatus::Completed, Some(conclusion), output);
            if let Some(runner) = state.runner_id {
                self.runners.remove(&runner);
            }
        }
    }

    /// Lets time have its effect; cheap enough to be called on every request.
    pub(crate) fn advance(&mut self) {
        if self.advanced.elapsed() < Duration::from_millis(100) {
            return;
        }
        self.advanced = Instant::now();
        self.note_who_is_there();
        let lost_after = self.options.lost_after;
        let lost = self.those(|r| r.job.is_some() && r.last_seen.elapsed() > lost_after);
        for (runner, job) in lost {
            if let Some(state) = job.and_then(|id| self.jobs.get_mut(&id)) {
                state.lost = true;
            }
            self.complete(job.unwrap_or_default(), Conclusion::Failed, String::new());
            self.runners.remove(&runner);
        }
        let acquire = self.options.acquire_within;
        for (runner, job) in self.those(|r| r.assigned.is_some_and(|at| at.elapsed() > acquire)) {
            if let Some(state) = job.and_then(|id| self.jobs.get_mut(&id)) {
                state.requeue();
            }
            self.runners.remove(&runner);
        }
        let unused = self.options.unused_after;
        self.runners.retain(|_, r| r.foreign.is_some() || r.busy() || r.last_seen.elapsed() < unused);
        self.dispatch();
    }

    /// Runners that are connected were seen now; sessions of removed runners that nobody uses are dropped.
    fn note_who_is_there(&mut self) {
        let runners = &self.runners;
        self.sessions.retain(|_, s| s.polls > 0 || runners.contains_key(&s.runner) || s.last_seen.elapsed() < FORGET);
        let sessions = &self.sessions;
        for runner in self.runners.values_mut() {
            let polling = runner.session.as_ref().and_then(|id| sessions.get(id)).is_some_and(|s| s.polls > 0);
            if polling {
                runner.last_seen = Instant::now();
            }
        }
    }

    fn those(&self, filter: impl Fn(&Registration) -> bool) -> Vec<(u64, Option<u64>)> {
        self.runners.values().filter(|r| filter(r)).map(|r| (r.id, r.job)).collect()
    }
}
