//! Which API server, and which objects in it are this operator's.

use std::path::PathBuf;

use kube::config::{KubeConfigOptions, Kubeconfig};

/// Which API server, which objects in it.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Kubernetes")]
pub struct Cluster {
    /// Kubeconfig file. Default: $KUBECONFIG, ~/.kube/config, or the pod's service account.
    #[arg(long, env = "MIGLET_KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig. Default: its current one.
    #[arg(long, env = "MIGLET_CONTEXT")]
    pub context: Option<String>,
    /// Namespace of the operator itself: its Lease and its EndpointSlice are there.
    #[arg(long, env = "POD_NAMESPACE", default_value = "miglet-system")]
    pub namespace: String,
    /// Name of this process in the lease and in events; a random part is added.
    #[arg(long, env = "POD_NAME", default_value = "miglet-operator")]
    pub pod_name: String,
    /// Serve the pools of this namespace only. Default: all namespaces.
    #[arg(long, env = "MIGLET_WATCH_NAMESPACE")]
    pub watch_namespace: Option<String>,
    /// The operator's service account, as namespace/name: named in the commands that messages suggest.
    #[arg(long, env = "MIGLET_SERVICE_ACCOUNT", default_value = "miglet-system/miglet-operator")]
    pub service_account: String,
    /// How many objects each controller works on at once.
    #[arg(long, env = "MIGLET_CONCURRENCY", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub concurrency: u16,
}

/// The connection to the cluster could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The named kubeconfig is of no use.
    #[error("reading the kubeconfig {path}")]
    Kubeconfig {
        /// What was read.
        path: String,
        /// Why it is of no use.
        #[source]
        source: Box<kube::config::KubeconfigError>,
    },
    /// Neither a kubeconfig nor a service account was found.
    #[error("finding a cluster: give --kubeconfig, or run in a pod with a service account")]
    Inference(#[source] Box<kube::config::InferConfigError>),
}

impl Cluster {
    /// How to reach the API server.
    ///
    /// # Errors
    /// There is no usable kubeconfig and no service account.
    pub async fn connection(&self) -> Result<kube::Config, ClusterError> {
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        let shown =
            self.kubeconfig.as_ref().map_or_else(|| "$KUBECONFIG".to_owned(), |path| path.display().to_string());
        let failed = |source| ClusterError::Kubeconfig { path: shown.clone(), source: Box::new(source) };
        let kubeconfig = match (&self.kubeconfig, &self.context) {
            (None, None) => return kube::Config::infer().await.map_err(|e| ClusterError::Inference(Box::new(e))),
            (Some(path), _) => Kubeconfig::read_from(path).map_err(failed)?,
            (None, Some(_)) => Kubeconfig::read().map_err(failed)?,
        };
        kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(failed)
    }

    pub(super) fn contradiction(&self) -> Option<String> {
        match self.service_account.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => None,
            _ => Some(format!(
                "--service-account must be namespace/name, such as miglet-system/miglet-operator, not {:?}",
                self.service_account
            )),
        }
    }
}
