//! Custom resource definitions: read from a folder, applied, and waited for.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
    runtime::{conditions::is_crd_established, wait::await_condition},
};

use super::error::Error;

const ESTABLISH_TIMEOUT: Duration = Duration::from_secs(20);

/// The product's own definitions, `crds/` at the top of the repository.
///
/// # Errors
/// When the folder or a file in it cannot be read.
pub fn product_crds() -> Result<Vec<CustomResourceDefinition>, Error> {
    read_crds(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join("crds"))
}

/// The definitions in a folder's YAML files, one a file, in the order of the names.
///
/// # Errors
/// When the folder or a file in it cannot be read.
pub fn read_crds(folder: &Path) -> Result<Vec<CustomResourceDefinition>, Error> {
    let reading = || format!("read {}", folder.display());
    let entries = fs::read_dir(folder).map_err(Error::io(reading()))?;
    let mut files = entries.map(|entry| entry.map(|e| e.path())).collect::<Result<Vec<PathBuf>, _>>();
    let files = files.as_mut().map_err(|error| Error::io(reading())(std::io::Error::from(error.kind())))?;
    // The folder's kustomization is YAML too.
    let is_definition = |path: &PathBuf| {
        path.extension().is_some_and(|extension| extension == "yaml") && !path.ends_with("kustomization.yaml")
    };
    files.retain(is_definition);
    files.sort();
    files.iter().map(|path| read_crd(path)).collect()
}

fn read_crd(path: &Path) -> Result<CustomResourceDefinition, Error> {
    let text = fs::read_to_string(path).map_err(Error::io(format!("read {}", path.display())))?;
    serde_saphyr::from_str(&text)
        .map_err(|error| Error::Malformed { what: path.display().to_string(), message: error.to_string() })
}

/// Applies the definitions and waits until each is established, that is, served.
///
/// # Errors
/// When the API server refuses one, or takes too long.
pub(super) async fn apply(client: Client, crds: &[CustomResourceDefinition]) -> Result<(), Error> {
    let api: Api<CustomResourceDefinition> = Api::all(client);
    let params = PatchParams::apply("miglet-e2e").force();
    for crd in crds {
        let name = crd.name_any();
        api.patch(&name, &params, &Patch::Apply(crd))
            .await
            .map_err(Error::api(format!("apply the definition {name}")))?;
    }
    for crd in crds {
        let name = crd.name_any();
        let established = await_condition(api.clone(), &name, is_crd_established());
        let waited = tokio::time::timeout(ESTABLISH_TIMEOUT, established).await;
        let late =
            || Error::TimedOut { what: format!("the definition {name} to be served"), waited: ESTABLISH_TIMEOUT };
        waited.map_err(|_| late())?.map_err(|_| late())?;
    }
    Ok(())
}
