//! From a pool's Secret to a client: [`Forges`].
//!
//! A Secret is read by name (the operator may get Secrets, never list them) and again every minute, so a rotated key is
//! picked up without a restart. Clients are kept per content and scope: rate-limit budget, tokens and group ids survive
//! the reading. The rate limit is GitHub's, per credential, so scopes of one credential share a connection.

mod secret;

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;

use self::secret::{Contents, Digest};
use super::{
    Scope, SharedRunners,
    github::{Connection, Github, GithubError},
    scope::{UrlError, scope},
};
use crate::{clock::Clock, compute::Observe, crd::GitHub};

/// The ClusterRole that lets the operator read a pool's Secret and keep diagnostics, bound in the pool's namespace.
pub const CREDENTIALS_ROLE: &str = "miglet-pool-credentials";
/// How long a Secret that could not be read is not tried again: long enough to spare the API server, short enough for
/// somebody who is mending it.
const FAILURE_MAX_AGE: Duration = Duration::from_secs(5);
/// How long a client nobody asks for is kept.
const IDLE_CLIENT: Duration = Duration::from_secs(15 * 60);

/// How [`Forges`] behaves.
#[derive(Clone)]
pub struct ForgesConfig {
    /// How old a reading of a Secret may be.
    pub secret_max_age: Duration,
    /// How long one call may take.
    pub request_timeout: Duration,
    /// The operator's service account, `namespace:name`, for the command that grants it the Secret.
    pub service_account: String,
    /// Told of every call: backend, method, outcome.
    pub observe: Observe,
}

impl Default for ForgesConfig {
    fn default() -> Self {
        Self {
            secret_max_age: Duration::from_secs(60),
            request_timeout: Duration::from_secs(30),
            service_account: "miglet-system:miglet-operator".to_owned(),
            observe: Arc::new(|_, _, _| ()),
        }
    }
}

impl fmt::Debug for ForgesConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForgesConfig").field("service_account", &self.service_account).finish_non_exhaustive()
    }
}

/// Why there is no client. What it says is what to do.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CredentialsError {
    /// There is no such Secret.
    #[error(
        "Secret {namespace}/{name} does not exist: create it with github_app_id, github_app_installation_id and \
         github_app_private_key, or with github_token"
    )]
    NotFound {
        /// Namespace of the Secret.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// The operator may not read it.
    #[error("the operator may not read Secret {namespace}/{name}: run {}", grant(service_account, namespace))]
    Forbidden {
        /// Namespace of the Secret.
        namespace: String,
        /// Its name.
        name: String,
        /// The operator's service account.
        service_account: String,
    },
    /// It does not hold what it should.
    #[error("Secret {namespace}/{name} cannot be used: {what}")]
    Malformed {
        /// Namespace of the Secret.
        namespace: String,
        /// Its name.
        name: String,
        /// What is wrong, without its contents.
        what: String,
    },
    /// The pool's URL names no scope.
    #[error("spec.github.url cannot be used: {0}")]
    Url(#[from] UrlError),
    /// The API server did not give it; it may be better in a moment.
    #[error("reading Secret {namespace}/{name}")]
    Unreadable {
        /// Namespace of the Secret.
        namespace: String,
        /// Its name.
        name: String,
        /// What the API server said.
        #[source]
        source: Arc<kube::Error>,
    },
    /// The API server did not answer in time.
    #[error("reading Secret {namespace}/{name}: no answer within {after:?}")]
    Unanswered {
        /// Namespace of the Secret.
        namespace: String,
        /// Its name.
        name: String,
        /// How long was waited.
        after: Duration,
    },
}

impl CredentialsError {
    /// Reason of a condition.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "SecretNotFound",
            Self::Forbidden { .. } => "SecretForbidden",
            Self::Malformed { .. } => "SecretMalformed",
            Self::Url(_) => "InvalidURL",
            Self::Unreadable { .. } | Self::Unanswered { .. } => "SecretUnreadable",
        }
    }

    /// Whether the Secret is definitely not there: the API server answered, and that is what it said.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// Whether the API server answered that there is nothing for us: no Secret, or no right to read it. A namespace that
    /// goes loses its Secrets and its RoleBindings in any order, and neither can come back.
    #[must_use]
    pub fn is_withheld(&self) -> bool {
        matches!(self, Self::NotFound { .. } | Self::Forbidden { .. })
    }
}

fn grant(service_account: &str, namespace: &str) -> String {
    format!(
        "`kubectl create rolebinding {CREDENTIALS_ROLE} --clusterrole={CREDENTIALS_ROLE} \
         --serviceaccount={service_account} --namespace={namespace}`"
    )
}

/// Name of a Secret: namespace, name.
type Name = (String, String);
type Reading = Result<Arc<Contents>, CredentialsError>;
/// The last reading of one Secret, and when it was asked for. Locked while it is read, so that one reads for all.
type Slot = Arc<tokio::sync::Mutex<Option<(Timestamp, Reading)>>>;

/// Clients for the credentials of all pools; clones share everything.
#[derive(Clone)]
pub struct Forges(Arc<Inner>);

struct Inner {
    client: kube::Client,
    clock: Arc<dyn Clock>,
    config: ForgesConfig,
    slots: Mutex<BTreeMap<Name, Slot>>,
    clients: Mutex<Clients>,
}

#[derive(Default)]
struct Clients {
    connections: HashMap<(Digest, String), Arc<Connection>>,
    scopes: HashMap<(Digest, Scope), (Arc<Github>, Timestamp)>,
}

impl fmt::Debug for Forges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Forges").field("config", &self.0.config).finish_non_exhaustive()
    }
}

impl Forges {
    /// Reads Secrets through `client`.
    #[must_use]
    pub fn new(client: kube::Client, clock: Arc<dyn Clock>, config: ForgesConfig) -> Self {
        Self(Arc::new(Inner { client, clock, config, slots: Mutex::default(), clients: Mutex::default() }))
    }

    /// The runners of the scope a pool names, seen with the credentials it names.
    pub async fn runners(&self, namespace: &str, github: &GitHub) -> Result<SharedRunners, CredentialsError> {
        let scope = scope(&github.url)?;
        let name = (namespace.to_owned(), github.credentials_secret_ref.name.clone());
        let contents = self.contents(&name).await?;
        self.client(&contents, scope).map(|client| client as SharedRunners).map_err(|error| malformed(name, &error))
    }

    async fn contents(&self, name: &Name) -> Reading {
        let slot = self.slot(name);
        let mut reading = slot.lock().await;
        let now = self.0.clock.now();
        if let Some((_, known)) = reading.as_ref().filter(|(asked, known)| self.fresh(*asked, known, now)) {
            return known.clone();
        }
        let next = self.read(name).await;
        *reading = Some((now, next.clone()));
        next
    }

    fn slot(&self, name: &Name) -> Slot {
        let mut slots = self.0.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.entry(name.clone()).or_default().clone()
    }

    fn fresh(&self, asked: Timestamp, known: &Reading, now: Timestamp) -> bool {
        let max_age = self.0.config.secret_max_age;
        let max_age = if known.is_ok() { max_age } else { max_age.min(FAILURE_MAX_AGE) };
        Duration::try_from(now.duration_since(asked)).is_ok_and(|age| age < max_age)
    }

    async fn read(&self, (namespace, name): &Name) -> Reading {
        let secrets: Api<Secret> = Api::namespaced(self.0.client.clone(), namespace);
        let after = self.0.config.request_timeout;
        let (namespace, name) = (namespace.clone(), name.clone());
        match tokio::time::timeout(after, secrets.get(&name)).await {
            Ok(Ok(secret)) => secret::contents(&secret).map(Arc::new).map_err(|what| CredentialsError::Malformed {
                namespace,
                name,
                what: what.to_owned(),
            }),
            Ok(Err(kube::Error::Api(status))) if status.code == 404 && status.reason == "NotFound" => {
                Err(CredentialsError::NotFound { namespace, name })
            }
            Ok(Err(kube::Error::Api(status))) if status.code == 403 => Err(CredentialsError::Forbidden {
                namespace,
                name,
                service_account: self.0.config.service_account.clone(),
            }),
            Ok(Err(error)) => Err(CredentialsError::Unreadable { namespace, name, source: Arc::new(error) }),
            Err(_) => Err(CredentialsError::Unanswered { namespace, name, after }),
        }
    }

    /// What the owner of a namespace runs to let the operator do there what it must not do everywhere.
    #[must_use]
    pub fn grant(&self, namespace: &str) -> String {
        grant(&self.0.config.service_account, namespace)
    }

    /// The client for these contents and this scope; drops those nobody asked for in a while.
    fn client(&self, contents: &Contents, scope: Scope) -> Result<Arc<Github>, GithubError> {
        let now = self.0.clock.now();
        let oldest = now.saturating_sub(IDLE_CLIENT).unwrap_or(Timestamp::MIN);
        let mut clients = self.0.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (contents.digest, scope);
        if let Some((client, used)) = clients.scopes.get_mut(&key) {
            *used = now;
            return Ok(client.clone());
        }
        clients.scopes.retain(|_, (_, used)| *used >= oldest);
        clients.connections.retain(|_, connection| Arc::strong_count(connection) > 1);
        let connection = self.connection(&mut clients, contents, &key.1.api)?;
        let client = Arc::new(Github::new(connection, &key.1, self.0.clock.clone()));
        clients.scopes.insert(key, (client.clone(), now));
        Ok(client)
    }

    fn connection(
        &self,
        clients: &mut Clients,
        contents: &Contents,
        api: &str,
    ) -> Result<Arc<Connection>, GithubError> {
        let key = (contents.digest, api.to_owned());
        if let Some(connection) = clients.connections.get(&key) {
            return Ok(connection.clone());
        }
        let calls = (self.0.config.request_timeout, self.0.config.observe.clone());
        let connection = Arc::new(Connection::new(api, &contents.credential, self.0.clock.clone(), calls)?);
        clients.connections.insert(key, connection.clone());
        Ok(connection)
    }
}

fn malformed((namespace, name): Name, error: &GithubError) -> CredentialsError {
    let what = match error {
        GithubError::Key => "github_app_private_key is not an RSA private key in PEM form".to_owned(),
        GithubError::Client(_) => "no GitHub client can be made with it".to_owned(),
    };
    CredentialsError::Malformed { namespace, name, what }
}

#[cfg(test)]
mod tests;
