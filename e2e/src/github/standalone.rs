//! The simulator alone, for people who write clients: one organization, one repository, an App and a token.

use std::{io, path::PathBuf};

use serde::Serialize;

use super::{GithubError, GithubOptions, GithubSim};

/// A running simulator and what a client needs to use it.
#[derive(Debug, Serialize)]
pub struct Standalone {
    /// Base URL of the API.
    pub endpoint: String,
    /// The organization.
    pub org: String,
    /// The repository, `owner/name`.
    pub repository: String,
    /// App id.
    pub app_id: u64,
    /// Its installation.
    pub installation_id: u64,
    /// Its private key, in a file that goes with this value.
    pub private_key_file: PathBuf,
    /// A personal access token.
    pub token: String,
    /// The simulator itself; it ends with this value.
    #[serde(skip)]
    pub sim: GithubSim,
    #[serde(skip)]
    _folder: tempfile::TempDir,
}

/// Starts a simulator with something in it.
///
/// # Errors
/// When it cannot listen, make a key or write it to a file.
pub async fn standalone() -> Result<Standalone, GithubError> {
    let sim = GithubSim::start(GithubOptions { checked: false, ..GithubOptions::default() }).await?;
    let (org, repository) = ("acme".to_owned(), "acme/app".to_owned());
    sim.add_org(&org);
    sim.add_repository(&repository);
    let app = sim.add_app()?;
    let (private_key_file, folder) = write(&app.private_key_pem)?;
    Ok(Standalone {
        endpoint: sim.url(),
        org,
        repository,
        app_id: app.app_id,
        installation_id: app.installation_id,
        private_key_file,
        token: sim.add_token(),
        sim,
        _folder: folder,
    })
}

/// A private folder holds the key.
fn write(key: &str) -> io::Result<(PathBuf, tempfile::TempDir)> {
    let folder = tempfile::Builder::new().prefix("miglet-github-").tempdir()?;
    let path = folder.path().join("app.private-key.pem");
    std::fs::write(&path, key)?;
    Ok((path, folder))
}
