//! A cluster that somebody already has, used like one of ours: same methods, but nothing was started.

use std::path::Path;

use k8s_openapi::{
    api::core::v1::Namespace, apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{Api, ResourceExt};

use super::{ControlPlane, binaries::Binaries, error::Error, kubeconfig};

impl ControlPlane {
    /// The cluster of this kubeconfig's current context.
    ///
    /// # Errors
    /// When the file is of no use, or there is no kubectl.
    pub async fn adopt(kubeconfig: &Path) -> Result<Self, Error> {
        let config = kubeconfig::load(kubeconfig).await?;
        let binaries = tokio::task::spawn_blocking(Binaries::of_user).await;
        let binaries = binaries.map_err(|error| Error::io("find kubectl")(error.into()))??;
        let folder = tempfile::Builder::new().prefix("miglet-cp-").tempdir().map_err(Error::io("make a folder"))?;
        let url = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let admin = kubeconfig.canonicalize().map_err(Error::io(format!("find {}", kubeconfig.display())))?;
        Ok(Self { processes: Vec::new(), binaries, url, authority: None, admin, folder })
    }

    /// Removes what was written to disk for it: one that is used for the life of a process is never dropped.
    ///
    /// # Errors
    /// When that cannot be removed.
    pub fn remove_files(&self) -> Result<(), Error> {
        let folder = self.folder.path();
        std::fs::remove_dir_all(folder).map_err(Error::io(format!("remove {}", folder.display())))
    }

    /// Which of these definitions and namespaces the cluster has already.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn existing(&self, crds: &[CustomResourceDefinition], namespaces: &[&str]) -> Result<Vec<String>, Error> {
        let client = self.admin().await?;
        let (definitions, all) = (Api::<CustomResourceDefinition>::all(client.clone()), Api::<Namespace>::all(client));
        let failed = || Error::api(format!("look into the cluster at {}", self.url));
        let mut found = Vec::new();
        for name in crds.iter().map(ResourceExt::name_any) {
            let there = definitions.get_metadata_opt(&name).await.map_err(failed())?;
            found.extend(there.map(|_| format!("the definition {name}")));
        }
        for name in namespaces {
            let there = all.get_metadata_opt(name).await.map_err(failed())?;
            found.extend(there.map(|_| format!("the namespace {name}")));
        }
        Ok(found)
    }
}
