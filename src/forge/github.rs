//! GitHub behind the port [`Runners`].
//!
//! Every call is made once. Whether and when to repeat one is for the controllers: a registration whose reply was lost must
//! be looked up first, never asked for again.

mod answer;
mod connection;
mod downloads;
mod pages;
mod remembered;
mod support;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use http::Method;
use jiff::Timestamp;
use secrecy::SecretString;
use serde_json::json;

pub(in crate::forge) use self::connection::Connection;
use self::{
    answer::{Answer, GroupPage, JobPage, RunnerPage, WireRegistered, WireRunner, unexpected},
    connection::Call,
    pages::{PER_PAGE, Pages, Progress},
    remembered::Remembered,
};
use super::{
    Deletion, ForgeError, ForgeErrorClass, ForgeJob, Offer, Owner, Registered, Registration, Run, Runner, Runners,
    Scope, Support,
};
use crate::clock::Clock;

/// How long a runner group's id is remembered.
const GROUP_MAX_AGE: Duration = Duration::from_secs(30 * 60);
/// How long it is remembered that there is none.
const NO_GROUP_MAX_AGE: Duration = Duration::from_secs(60);
/// How long any other failure to find out is shared.
const GROUP_FAILURE_MAX_AGE: Duration = Duration::from_secs(5);
/// The id of the only runner group a repository has.
const REPOSITORY_GROUP: i64 = 1;
/// How often a list is started again because it changed while it was read.
const LIST_TRIES: usize = 3;
/// Pages of a run's jobs: a matrix has at most 256.
const MOST_JOB_PAGES: usize = 3;
/// The most pages: GitHub allows 10,000 runners.
const MOST_PAGES: usize = 200;

/// Who we are to GitHub.
#[derive(Clone, Debug)]
pub enum Credential {
    /// A GitHub App's installation.
    App {
        /// The App's id.
        id: u64,
        /// The installation's id.
        installation: u64,
        /// The App's RSA key, PEM.
        private_key: SecretString,
    },
    /// A token of a person or machine user.
    Token(SecretString),
}

/// Why there is no client: the API root or the key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum GithubError {
    /// The key of the App is no RSA key in PEM form.
    #[error("the private key is not an RSA key in PEM form")]
    Key,
    /// Anything else.
    #[error("making the GitHub client")]
    Client(#[source] Box<octocrab::Error>),
}

impl From<octocrab::Error> for GithubError {
    fn from(error: octocrab::Error) -> Self {
        match error {
            octocrab::Error::JWT { .. } => Self::Key,
            other => Self::Client(Box::new(other)),
        }
    }
}

type Group = Result<i64, ForgeError>;

/// One scope of GitHub with one credential.
#[derive(Debug)]
pub(in crate::forge) struct Github {
    connection: Arc<Connection>,
    actions: String,
    owner: Owner,
    clock: Arc<dyn Clock>,
    seen: Mutex<Option<Timestamp>>,
    groups: tokio::sync::Mutex<BTreeMap<Option<String>, (Timestamp, Group)>>,
    offer: Remembered<Offer>,
    support: support::Versions,
}

impl Github {
    pub(in crate::forge) fn new(connection: Arc<Connection>, scope: &Scope, clock: Arc<dyn Clock>) -> Self {
        Self {
            connection,
            actions: scope.owner.actions(),
            owner: scope.owner.clone(),
            clock,
            seen: Mutex::default(),
            groups: tokio::sync::Mutex::default(),
            offer: Remembered::default(),
            support: support::Versions::default(),
        }
    }

    async fn get_path(&self, action: &str, name: &'static str, path: String) -> Result<Answer, ForgeError> {
        let path = format!("{}/{path}", self.actions);
        self.connection.call(Call { action, name, method: Method::GET, path, body: None, spare: false }).await
    }

    /// A read of the scope's runners. It shows whether the credential sees them, as of when it was asked.
    async fn runners(&self, action: &str, name: &'static str, query: String) -> Result<RunnerPage, ForgeError> {
        let asked = self.clock.now();
        let answer = self.get_path(action, name, format!("runners?{query}")).await;
        let page = answer.and_then(|answer| answer.read::<RunnerPage>(action));
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match &page {
            Ok(_) => *seen = (*seen).max(Some(asked)),
            Err(e) if matches!(e.class, ForgeErrorClass::Invisible | ForgeErrorClass::Credentials) => *seen = None,
            Err(_) => {}
        }
        page
    }

    /// All pages of a list of runners; started again when it changed under the reader.
    async fn whole(&self, action: &str, name: &'static str, filter: &str) -> Result<Vec<Runner>, ForgeError> {
        for _ in 0..LIST_TRIES {
            if let Some(all) = self.once(action, name, filter).await? {
                return Ok(all.into_iter().map(Runner::from).collect());
            }
        }
        Err(transient(action, "the list kept changing while it was read"))
    }

    async fn once(
        &self,
        action: &str,
        name: &'static str,
        filter: &str,
    ) -> Result<Option<Vec<WireRunner>>, ForgeError> {
        let mut pages = Pages::default();
        for number in 1..=MOST_PAGES {
            let query = format!("{filter}per_page={PER_PAGE}&page={number}");
            let page = self.runners(action, name, query).await?;
            let entries = page.runners.into_iter().map(|r| (r.id(), r)).collect();
            match pages.add(page.total_count, entries) {
                Progress::More => {}
                Progress::Whole => return Ok(Some(pages.into_entries())),
                Progress::Torn => return Ok(None),
            }
        }
        Err(transient(action, "the list does not end"))
    }

    async fn find_group(&self, name: Option<&str>) -> Group {
        let action = name
            .map_or_else(|| "finding the default runner group".to_owned(), |n| format!("finding runner group `{n}`"));
        for number in 1..=MOST_PAGES {
            let path = format!("runner-groups?per_page={PER_PAGE}&page={number}");
            let page: GroupPage = self.get_path(&action, "group", path).await?.read(&action)?;
            let is_it = |group: &&answer::WireGroup| name.map_or(group.default, |name| group.name == name);
            if let Some(group) = page.runner_groups.iter().find(is_it) {
                return Ok(group.id);
            }
            if page.runner_groups.len() < PER_PAGE || number * PER_PAGE >= page.total_count {
                break;
            }
        }
        Err(no_group(action))
    }
}

fn transient(action: &str, message: &str) -> ForgeError {
    ForgeError {
        action: action.to_owned(),
        class: ForgeErrorClass::Transient,
        ambiguous: false,
        message: message.to_owned(),
        retry_after: None,
    }
}

fn no_group(action: String) -> ForgeError {
    let message = "no such runner group, or this credential does not see it".to_owned();
    ForgeError { action, class: ForgeErrorClass::NotFound, ambiguous: false, message, retry_after: None }
}

/// How long an answer about a group holds.
fn group_max_age(group: &Group) -> Duration {
    match group {
        Ok(_) => GROUP_MAX_AGE,
        Err(error) => match error.class {
            ForgeErrorClass::RateLimit | ForgeErrorClass::Transient => GROUP_FAILURE_MAX_AGE,
            _ => NO_GROUP_MAX_AGE,
        },
    }
}

#[async_trait]
impl Runners for Github {
    async fn register(&self, registration: &Registration) -> Result<Registered, ForgeError> {
        let action = format!("registering runner {}", registration.name);
        let body = json!({
            "name": registration.name,
            "runner_group_id": registration.group,
            "labels": registration.labels,
        });
        let path = format!("{}/runners/generate-jitconfig", self.actions);
        let method = Method::POST;
        let call = Call { action: &action, name: "register", method, path, body: Some(body), spare: false };
        let answer = self.connection.call(call).await?;
        if answer.status.as_u16() == 422 && answer.message().to_ascii_lowercase().contains("already exists") {
            return Err(answer.refused(&action, ForgeErrorClass::NameTaken));
        }
        answer.read::<WireRegistered>(&action).map(Registered::from)
    }

    async fn get(&self, id: i64) -> Result<Option<Runner>, ForgeError> {
        let action = format!("reading runner {id}");
        let answer = self.get_path(&action, "get", format!("runners/{id}")).await?;
        if answer.status.as_u16() == 404 {
            return Ok(None);
        }
        answer.read::<WireRunner>(&action).map(|runner| Some(runner.into()))
    }

    async fn find(&self, name: &str) -> Result<Option<Runner>, ForgeError> {
        let encoded: String = url::form_urlencoded::byte_serialize(name.as_bytes()).collect();
        let found = self.whole(&format!("looking for runner {name}"), "find", &format!("name={encoded}&")).await?;
        Ok(found.into_iter().find(|runner| runner.name == name))
    }

    async fn delete(&self, id: i64) -> Result<Deletion, ForgeError> {
        let action = format!("removing runner {id}");
        let path = format!("{}/runners/{id}", self.actions);
        let call = Call { action: &action, name: "delete", method: Method::DELETE, path, body: None, spare: false };
        let answer = self.connection.call(call).await?;
        match answer.status.as_u16() {
            204 => Ok(Deletion::Deleted),
            422 => Ok(Deletion::Busy),
            404 => Ok(Deletion::NotFound),
            // A success of another kind proves nothing.
            200..300 => Err(transient(&action, "GitHub answered neither 204 nor an error")),
            _ => Err(answer.refused(&action, unexpected(answer.status))),
        }
    }

    async fn list(&self) -> Result<Vec<Runner>, ForgeError> {
        self.whole("listing runners", "list", "").await
    }

    async fn group(&self, name: Option<&str>) -> Result<i64, ForgeError> {
        if matches!(self.owner, Owner::Repository { .. }) {
            let action = || "finding the runner group of a repository".to_owned();
            return name.map_or(Ok(REPOSITORY_GROUP), |_| Err(no_group(action())));
        }
        let mut groups = self.groups.lock().await;
        let key = name.map(str::to_owned);
        let now = self.clock.now();
        if let Some((asked, known)) = groups.get(&key) {
            let age = Duration::try_from(now.duration_since(*asked)).unwrap_or_default();
            if age < group_max_age(known) {
                return known.clone();
            }
        }
        let found = self.find_group(name).await;
        groups.insert(key, (now, found.clone()));
        found
    }

    async fn job(&self, run: &Run, runner: &str) -> Result<Option<ForgeJob>, ForgeError> {
        // A job may name any repository: it does not get another one read.
        let Some(repository) = self.owner.repository(&run.repository) else { return Ok(None) };
        let action = format!("looking for the job of runner {runner}");
        for page in 1..=MOST_JOB_PAGES {
            let path = format!(
                "{repository}/actions/runs/{}/attempts/{}/jobs?per_page={PER_PAGE}&page={page}",
                run.id, run.attempt
            );
            let call = Call { action: &action, name: "job", method: Method::GET, path, body: None, spare: true };
            let answer = match self.connection.call(call).await {
                Err(error) if error.class == ForgeErrorClass::Invisible => return Ok(None),
                other => other?,
            };
            if answer.status.as_u16() == 404 {
                return Ok(None);
            }
            let jobs: JobPage = answer.read(&action)?;
            let last = jobs.jobs.len() < PER_PAGE || page * PER_PAGE >= jobs.total_count;
            let ours = jobs.jobs.into_iter().find(|job| job.runner_name.as_deref() == Some(runner));
            if ours.is_some() || last {
                return Ok(ours.map(ForgeJob::from));
            }
        }
        Ok(None)
    }

    async fn check(&self) -> Result<(), ForgeError> {
        self.runners("reading the runners", "check", "per_page=1".to_owned()).await.map(drop)
    }

    async fn offer(&self) -> Result<Offer, ForgeError> {
        let ask = || async {
            let action = "asking which runner GitHub offers";
            downloads::offer(action, &self.get_path(action, "downloads", "runners/downloads".to_owned()).await?)
        };
        self.offer.get(self.clock.now(), ask).await
    }

    async fn support(&self, version: &str) -> Result<Option<Support>, ForgeError> {
        let ask = || async {
            let action = format!("asking until when GitHub accepts runner {version}");
            let path = format!("runners/deprecations/{version}");
            support::support(&action, &self.get_path(&action, "deprecations", path).await?)
        };
        self.support.get(version, self.clock.now(), ask).await
    }

    fn seen(&self) -> Option<Timestamp> {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
