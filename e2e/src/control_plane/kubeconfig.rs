//! Kubeconfigs, as values and as files.

use std::{
    fs,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};

use super::error::Error;

/// How to reach a server as somebody.
pub(crate) struct Access<'a> {
    /// `https://127.0.0.1:PORT`, or a proxy's `http://…`.
    pub(crate) server: &'a str,
    /// The authority's certificate, PEM; none for plain HTTP.
    pub(crate) authority: Option<&'a str>,
    /// Bearer token.
    pub(crate) token: &'a str,
}

impl Access<'_> {
    /// The kubeconfig as JSON, which is YAML too.
    fn document(&self) -> Value {
        let mut cluster = json!({ "server": self.server });
        if let (Some(pem), Some(fields)) = (self.authority, cluster.as_object_mut()) {
            fields.insert("certificate-authority-data".to_owned(), STANDARD.encode(pem).into());
        }
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "test", "cluster": cluster }],
            "users": [{ "name": "test", "user": { "token": self.token } }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
            "current-context": "test",
        })
    }

    /// Writes it where only this user can read it.
    pub(crate) fn write(&self, path: PathBuf) -> Result<PathBuf, Error> {
        let doing = format!("write {}", path.display());
        let options = fs::File::options().mode(0o600).write(true).create(true).truncate(true).open(&path);
        let file = options.map_err(Error::io(doing.clone()))?;
        serde_json::to_writer_pretty(file, &self.document()).map_err(|error| Error::io(doing)(error.into()))?;
        Ok(path)
    }
}

/// A client configuration from such a file. Retries are off: a test wants to see what the server said.
pub(crate) async fn load(path: &Path) -> Result<Config, Error> {
    let mut config =
        Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &KubeConfigOptions::default()).await?;
    config.default_retry = false;
    Ok(config)
}
