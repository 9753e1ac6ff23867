//! Where runners register: the port [`Runners`], in words no forge owns, and its backend for GitHub.
//!
//! ```text
//!   controllers ── Forges ───────────────────── Runners ── github (octocrab)
//!                  credentials from Secrets,    (port)
//!                  one client and one gate a credential
//! ```

pub mod credentials;
mod gate;
pub mod github;
mod limits;
pub mod scope;

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;
use secrecy::SecretString;

/// Who runners work for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// An organisation.
    Organization(String),
    /// A repository.
    Repository {
        /// Its owner.
        owner: String,
        /// Its name.
        name: String,
    },
    /// An enterprise.
    Enterprise(String),
}

/// Where runners register.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Scope {
    /// Root of the REST API, such as `https://api.github.com` or `https://ghes.example.com/api/v3`.
    pub api: String,
    /// Who the runners work for.
    pub owner: Owner,
}

/// One registration as the forge lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runner {
    /// The forge's id.
    pub id: i64,
    /// Its name.
    pub name: String,
    /// Whether its listener is connected.
    pub online: bool,
    /// Whether it has a job.
    pub busy: bool,
}

/// What to register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// A fresh name.
    pub name: String,
    /// The runner group's id.
    pub group: i64,
    /// Its labels.
    pub labels: Vec<String>,
}

/// A registration that was just made: its id, and the secret that starts its runner.
#[derive(Debug)]
pub struct Registered {
    /// The forge's id.
    pub id: i64,
    /// What the listener is started with. Exists here and in the VM's session only.
    pub jit_config: SecretString,
}

/// One attempt of a workflow run: what a job says about itself, and so only a hint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// `owner/name`.
    pub repository: String,
    /// The run's id.
    pub id: i64,
    /// Which attempt of it.
    pub attempt: u32,
}

/// A job as the forge knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForgeJob {
    /// The forge's id.
    pub id: i64,
    /// Where people see it.
    pub url: String,
}

/// The runner's release that a forge offers to a scope. GitHub rolls releases out step by step, so scopes differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// Its version, such as `2.336.0`.
    pub version: String,
    /// Its archives for Linux.
    pub downloads: Vec<Download>,
}

/// Until when a forge works with a version of the runner; for ever where it has set no end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Support {
    /// From then on it registers none.
    pub registers_until: Option<Timestamp>,
    /// From then on it gives it no jobs.
    pub runs_until: Option<Timestamp>,
}

/// One archive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Download {
    /// x64 or arm64.
    pub architecture: String,
    /// Where it is.
    pub url: String,
    /// SHA-256, hexadecimal; without one nobody can tell whether an archive is the right one.
    pub sha256: Option<String>,
}

/// What a DELETE of a registration said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deletion {
    /// 204: it was idle, it can get no job any more.
    Deleted,
    /// 422: it has a job.
    Busy,
    /// 404: it is gone, or this credential no longer sees it.
    NotFound,
}

/// What kind of trouble an error means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ForgeErrorClass {
    /// 401, or an App or key the forge does not accept: a person must act.
    Credentials,
    /// 403 or 404 on the scope itself: the credential does not see it (any more).
    Invisible,
    /// 409: the name is taken.
    NameTaken,
    /// 422: it does not accept what was sent.
    Invalid,
    /// Primary or secondary rate limit.
    RateLimit,
    /// Named thing (runner group) does not exist.
    NotFound,
    /// No answer, 5xx, an answer that cannot be read.
    Transient,
}

impl ForgeErrorClass {
    /// For conditions, events and metric labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Credentials => "CredentialsRefused",
            Self::Invisible => "ScopeNotVisible",
            Self::NameTaken => "NameTaken",
            Self::Invalid => "Rejected",
            Self::RateLimit => "RateLimited",
            Self::NotFound => "NotFound",
            Self::Transient => "Unavailable",
        }
    }
}

/// A call to the forge that did not succeed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{action}: {message}")]
pub struct ForgeError {
    /// What was tried, such as `registering runner linux-…-1`.
    pub action: String,
    /// What kind of trouble.
    pub class: ForgeErrorClass,
    /// Whether the call may have had its effect all the same.
    pub ambiguous: bool,
    /// What the forge said, without secrets, cut.
    pub message: String,
    /// How long the forge asked to be left alone.
    pub retry_after: Option<Duration>,
}

/// The port to one scope of a forge with one credential. Every call has a timeout of its own.
#[async_trait]
pub trait Runners: Send + Sync + fmt::Debug {
    /// Registers a runner for one job. Not idempotent: after an ambiguous failure look the name up.
    async fn register(&self, registration: &Registration) -> Result<Registered, ForgeError>;

    /// The runner of this id; `None` is a 404, which is not proof that it is gone.
    async fn get(&self, id: i64) -> Result<Option<Runner>, ForgeError>;

    /// The runner of exactly this name; `None` when an answered list does not have it.
    async fn find(&self, name: &str) -> Result<Option<Runner>, ForgeError>;

    /// Removes a registration.
    async fn delete(&self, id: i64) -> Result<Deletion, ForgeError>;

    /// Every runner of the scope, all pages: an unreadable page is an error, never a shorter list. At most every five
    /// minutes, please.
    async fn list(&self) -> Result<Vec<Runner>, ForgeError>;

    /// The id of a runner group, of the default one when no name is given. Remembered for a while.
    async fn group(&self, name: Option<&str>) -> Result<i64, ForgeError>;

    /// The job of this run that the forge gave to the runner of this name. Least urgent of all: refused when the credential
    /// has no room. `None` when there is none, or the credential may not read it, or the run is none of this scope's.
    async fn job(&self, run: &Run, runner: &str) -> Result<Option<ForgeJob>, ForgeError>;

    /// Makes sure by a small read that this credential sees the scope's runners.
    async fn check(&self) -> Result<(), ForgeError>;

    /// Which release of the runner the forge offers here. Remembered for an hour.
    async fn offer(&self) -> Result<Offer, ForgeError>;

    /// Until when the forge accepts this version of the runner; `None` where it does not say. Remembered for an hour.
    async fn support(&self, version: &str) -> Result<Option<Support>, ForgeError>;

    /// When a read last showed that this credential sees the scope's runners. Any successful `find`, `list` or `check`
    /// counts.
    fn seen(&self) -> Option<Timestamp>;
}

/// A shared [`Runners`].
pub type SharedRunners = Arc<dyn Runners>;
