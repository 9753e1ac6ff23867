//! Where the running playground is: a file in the user's runtime folder, gone with the playground.

use std::{env, fs, io, os::unix::fs::OpenOptionsExt, path::PathBuf};

use reqwest::Method;
use serde::{Deserialize, Serialize};

use super::http;
use crate::world::Trouble;

/// How to reach a running playground.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Running {
    pub(super) process: u32,
    pub(super) compute: String,
    pub(super) github: String,
}

/// Written for other commands; removed when dropped.
#[derive(Debug)]
pub(super) struct StateFile(PathBuf);

impl StateFile {
    pub(super) fn write(running: &Running) -> Result<Self, Trouble> {
        let path = path()?;
        let named = |error: io::Error| format!("write {}: {error}", path.display());
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(named)?;
        }
        let file = fs::File::options().mode(0o600).write(true).create(true).truncate(true).open(&path);
        serde_json::to_writer(file.map_err(named)?, running)?;
        Ok(Self(path))
    }
}

impl Drop for StateFile {
    fn drop(&mut self) {
        // Somebody may have cleaned up before us.
        fs::remove_file(&self.0).ok();
    }
}

/// `XDG_RUNTIME_DIR`, or else the cache folder, which every user has.
fn path() -> Result<PathBuf, Trouble> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let folder = set("XDG_RUNTIME_DIR").or_else(|| set("XDG_CACHE_HOME"));
    let folder = folder.or_else(|| env::home_dir().map(|home| home.join(".cache")));
    let folder = folder.ok_or("no place for the playground's state: set XDG_RUNTIME_DIR or HOME")?;
    Ok(folder.join("miglet").join("playground.json"))
}

/// What the file says, if that playground still answers: one that was killed leaves its file behind.
async fn alive() -> Result<Option<Running>, Trouble> {
    let path = path()?;
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("read {}: {error}", path.display()).into()),
    };
    let Ok(running) = serde_json::from_str::<Running>(&text) else { return Ok(None) };
    let answers = http::call(Method::GET, &format!("{}/_fake/jobs", running.github), None).await.is_ok();
    Ok(answers.then_some(running))
}

/// The running playground.
pub(super) async fn find() -> Result<Running, Trouble> {
    alive().await?.ok_or_else(|| "no playground is running: start `cargo playground` in another terminal".into())
}

/// There is one place for one playground.
pub(super) async fn none_running() -> Result<(), Trouble> {
    match alive().await? {
        None => Ok(()),
        Some(running) => Err(format!("a playground is running already, process {}", running.process).into()),
    }
}
