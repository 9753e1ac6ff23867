//! Gets the description from the npm registry, by npm itself, once per machine.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
    sync::Once,
};

use serde_json::Value;

use super::simplify::trim;

/// The pinned package.
const PACKAGE: &str = "@octokit/openapi@23.0.2";
/// Name of the cache folder: the package, and how it was trimmed.
const KEY: &str = "octokit-openapi-23.0.2-1";
/// What is kept of it.
const FILES: [&str; 2] = ["api.github.com.json", "ghec.json"];

/// The description could not be had.
#[derive(Clone, Debug, thiserror::Error)]
#[error("could not get GitHub's OpenAPI description ({PACKAGE}): {what}; install Node.js with npm and tar")]
pub struct PublishedError {
    what: String,
}

impl PublishedError {
    fn new(what: &str, error: impl std::fmt::Display) -> Self {
        Self { what: format!("{what}: {error}") }
    }
}

/// Says once and loudly that nothing is checked.
#[allow(clippy::print_stderr, reason = "a skipped check has to be seen in the output of the tests")]
pub(super) fn warn(error: &PublishedError) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| eprintln!("WARNING: THE GITHUB SIMULATOR IS NOT CHECKED AGAINST GITHUB'S DESCRIPTION: {error}"));
}

/// The trimmed documents, from the cache or from the package.
pub(super) fn documents() -> Result<Vec<Value>, PublishedError> {
    let folder =
        cache().ok_or_else(|| PublishedError::new("cache folder", "neither XDG_CACHE_HOME nor HOME is set"))?;
    let folder = folder.join("miglet/published").join(KEY);
    match read(&folder) {
        Ok(documents) => Ok(documents),
        Err(_) => {
            fs::create_dir_all(&folder).map_err(|e| PublishedError::new("create the cache folder", e))?;
            download(&folder)?;
            read(&folder).map_err(|e| PublishedError::new("read the cache", e))
        }
    }
}

fn cache() -> Option<PathBuf> {
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    std::env::var_os("XDG_CACHE_HOME").filter(|v| !v.is_empty()).map(PathBuf::from).or_else(home)
}

fn read(folder: &Path) -> io::Result<Vec<Value>> {
    FILES.iter().map(|file| Ok(serde_json::from_slice(&fs::read(folder.join(file))?)?)).collect()
}

/// Parallel test processes may all get here: each works in its own folder, the last rename wins.
fn download(folder: &Path) -> Result<(), PublishedError> {
    let scratch = tempfile::tempdir_in(folder).map_err(|e| PublishedError::new("make a folder", e))?;
    let packed = run(Command::new("npm").args(["pack", "--silent", PACKAGE]).current_dir(scratch.path()))?;
    let archive = String::from_utf8_lossy(&packed).lines().last().unwrap_or_default().trim().to_owned();
    for file in FILES {
        let member = format!("package/generated/{file}");
        let text = run(Command::new("tar").args(["-xzOf", &archive, &member]).current_dir(scratch.path()))?;
        let whole: Value = serde_json::from_slice(&text).map_err(|e| PublishedError::new(file, e))?;
        let trimmed = trim(&whole, served);
        let ready = scratch.path().join(file);
        fs::write(&ready, trimmed.to_string()).map_err(|e| PublishedError::new("write the cache", e))?;
        fs::rename(&ready, folder.join(file)).map_err(|e| PublishedError::new("write the cache", e))?;
    }
    Ok(())
}

/// The paths worth keeping: everything a client of runners might call, so that a call we do not serve is known too.
fn served(path: &str) -> bool {
    let parts = ["/actions/runners", "/actions/runner-groups", "/rate_limit", "/app/installations/", "/actions/jobs"];
    parts.iter().any(|part| path.contains(part)) || path.ends_with("/installation") || path == "/app"
}

fn run(command: &mut Command) -> Result<Vec<u8>, PublishedError> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|e| PublishedError::new(&name, e))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(PublishedError::new(&name, String::from_utf8_lossy(&output.stderr).trim()))
}
