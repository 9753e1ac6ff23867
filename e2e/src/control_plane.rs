//! A real Kubernetes control plane on this machine: etcd, kube-apiserver, kube-controller-manager.
//!
//! ```text
//!   etcd (Unix socket) <-- kube-apiserver (TLS, random loopback port) <-- kube-controller-manager
//!                             ^ RBAC, tokens, audit log                      (garbage collection, namespaces,
//!                             |                                               service accounts)
//!              clients, kubectl, operator (directly or through crate::proxy)
//! ```
//!
//! Decisions:
//! - The definitions a start is given are served *before* kube-controller-manager runs: its garbage collector looks for
//!   new kinds only every 30 s, and until then ignores their owners and their foreground and orphan finalizers.
//! - Nothing here is bound to an async runtime, so that the tests of one binary, each with a runtime of its own, can
//!   share one control plane ([`ControlPlane::shared`]). Clients are made on demand.
//! - Nothing outlives the test process, however it ends: see [`process`].

mod adopt;
mod audit;
mod binaries;
mod components;
mod crds;
mod credentials;
mod error;
pub(crate) mod kubeconfig;
pub mod process;
mod start;

use std::{
    path::{Path, PathBuf},
    process::Output,
    time::Duration,
};

use k8s_openapi::{
    api::authentication::v1::{TokenRequest, TokenRequestSpec},
    api::core::v1::ServiceAccount,
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{Api, Client, api::PostParams};
use tempfile::TempDir;
use tokio::sync::OnceCell;

pub use self::{
    audit::AuditEntry,
    binaries::Binaries,
    crds::{product_crds, read_crds},
    error::Error,
};
use self::{kubeconfig::Access, process::Process};

/// One kubectl command may wait for objects, but not for ever.
const KUBECTL_TIMEOUT: Duration = Duration::from_secs(120);
/// Longer than any test.
const TOKEN_SECONDS: i64 = 6 * 60 * 60;

/// A running control plane; stopped and removed when dropped.
#[derive(Debug)]
pub struct ControlPlane {
    // Dropped in this order: the folder goes last.
    processes: Vec<Process>,
    binaries: Binaries,
    url: String,
    /// Certificate of its authority; unknown of an adopted one.
    authority: Option<String>,
    admin: PathBuf,
    folder: TempDir,
}

impl ControlPlane {
    /// Starts one without custom resources.
    ///
    /// # Errors
    /// When the programs cannot be had or do not become ready.
    pub async fn start() -> Result<Self, Error> {
        Self::start_with_crds(&[]).await
    }

    /// Starts one that serves these definitions, and whose garbage collector knows them from the beginning.
    ///
    /// # Errors
    /// When the programs cannot be had, do not become ready, or a definition is refused.
    pub async fn start_with_crds(crds: &[CustomResourceDefinition]) -> Result<Self, Error> {
        start::start(crds).await
    }

    /// The one control plane of this process, with the product's definitions; started by the first caller.
    ///
    /// # Errors
    /// As [`Self::start_with_crds`].
    pub async fn shared() -> Result<&'static Self, Error> {
        static SHARED: OnceCell<ControlPlane> = OnceCell::const_new();
        SHARED.get_or_try_init(async || Self::start_with_crds(&product_crds()?).await).await
    }

    /// `https://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The processes, for tests that look after them.
    #[must_use]
    pub fn process_ids(&self) -> Vec<u32> {
        self.processes.iter().map(Process::id).collect()
    }

    /// The administrator's kubeconfig.
    #[must_use]
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.admin.clone()
    }

    /// A client of the administrator, for the current runtime.
    ///
    /// # Errors
    /// When the client cannot be made.
    pub async fn admin(&self) -> Result<Client, Error> {
        client(&self.admin_kubeconfig()).await
    }

    /// A new token of a service account (which must exist).
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn token(&self, namespace: &str, name: &str) -> Result<String, Error> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.admin().await?, namespace);
        let spec = TokenRequestSpec { expiration_seconds: Some(TOKEN_SECONDS), ..Default::default() };
        let request = TokenRequest { spec: Some(spec), ..Default::default() };
        let answer = accounts.create_token_request(name, &PostParams::default(), &request).await;
        let answer = answer.map_err(Error::api(format!("get a token of service account {namespace}/{name}")))?;
        answer.status.and_then(|status| status.token).ok_or_else(|| Error::Malformed {
            what: format!("the token of service account {namespace}/{name}"),
            message: "the answer has none".to_owned(),
        })
    }

    /// A kubeconfig of a service account (which must exist).
    ///
    /// # Errors
    /// When no token is given or the file cannot be written.
    pub async fn kubeconfig_for_service_account(&self, namespace: &str, name: &str) -> Result<PathBuf, Error> {
        let token = self.token(namespace, name).await?;
        let access = Access { server: &self.url, authority: self.authority.as_deref(), token: &token };
        access.write(self.file(&format!("{namespace}.{name}.kubeconfig")))
    }

    /// A client of a service account (which must exist), for the current runtime.
    ///
    /// # Errors
    /// As [`Self::kubeconfig_for_service_account`].
    pub async fn client_for_service_account(&self, namespace: &str, name: &str) -> Result<Client, Error> {
        client(&self.kubeconfig_for_service_account(namespace, name).await?).await
    }

    /// Applies definitions to a running control plane and waits until they are served. For garbage collection by
    /// owner, better give them to [`Self::start_with_crds`].
    ///
    /// # Errors
    /// When the API server refuses one, or takes too long.
    pub async fn apply_crds(&self, crds: &[CustomResourceDefinition]) -> Result<(), Error> {
        crds::apply(self.admin().await?, crds).await
    }

    /// Runs kubectl as the administrator and returns its output, whatever the exit status.
    ///
    /// # Errors
    /// When it cannot be run or does not end in time.
    pub async fn kubectl_output(&self, args: &[&str]) -> Result<Output, Error> {
        let mut command = tokio::process::Command::new(self.binaries.path("kubectl"));
        command.args(args).kill_on_drop(true).stdin(std::process::Stdio::null());
        // kubectl keeps a discovery cache: not in the user's HOME, which an adopted cluster's login helpers may need.
        command.env("KUBECONFIG", self.admin_kubeconfig()).env("KUBECACHEDIR", self.folder.path().join("kube-cache"));
        if !self.processes.is_empty() {
            command.env("HOME", self.folder.path());
        }
        let doing = || format!("run kubectl {}", args.join(" "));
        let output = tokio::time::timeout(KUBECTL_TIMEOUT, command.output()).await;
        output.map_err(|_| Error::TimedOut { what: doing(), waited: KUBECTL_TIMEOUT })?.map_err(Error::io(doing()))
    }

    /// Runs kubectl as the administrator and returns what it printed.
    ///
    /// # Errors
    /// When it fails.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String, Error> {
        let output = self.kubectl_output(args).await?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(Error::Kubectl { args: args.join(" "), status: output.status, stderr })
    }

    /// Where kubectl is, for people.
    #[must_use]
    pub fn kubectl_path(&self) -> PathBuf {
        self.binaries.path("kubectl")
    }

    /// Every call to the API server so far, oldest first.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn audit(&self) -> Result<Vec<AuditEntry>, Error> {
        audit::read(&self.file("audit.log"))
    }

    /// A path in this control plane's own folder.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// A client for the current runtime.
pub(crate) async fn client(kubeconfig: &Path) -> Result<Client, Error> {
    Client::try_from(kubeconfig::load(kubeconfig).await?)
        .map_err(Error::api(format!("make a client from {}", kubeconfig.display())))
}
