//! Published interface descriptions, fetched at test time from pinned registry packages and never committed.
//!
//! The registry's own client (pip) downloads the package; the one file wanted from it is kept under
//! `$XDG_CACHE_HOME/miglet/published/<package>-<version>/` (or `~/.cache/...`). A finished file appears there by
//! rename, so parallel tests may fetch at once and nobody ever reads half of one.
//!
//! Without the client the check is skipped with a loud line, unless `MIGLET_REQUIRE_PUBLISHED` is set.

pub mod discovery;
pub mod openapi;

use std::{
    env,
    io::{self, Write},
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use tokio::process::Command;

/// How long a registry client may take.
const FETCH_TIMEOUT: Duration = Duration::from_secs(300);
/// What takes one file out of a wheel; Python is there whenever pip is.
const EXTRACT: &str = "import sys, zipfile, glob, shutil
with zipfile.ZipFile(glob.glob(sys.argv[1] + '/*.whl')[0]) as wheel, open(sys.argv[3], 'wb') as out:
    shutil.copyfileobj(wheel.open(sys.argv[2]), out)";

/// Why a published description could not be had.
#[derive(Debug, thiserror::Error)]
pub enum PublishedError {
    /// The registry's client is not installed (or cannot be started).
    #[error("cannot run {program}, which fetches published descriptions")]
    Client {
        /// What was run.
        program: String,
        /// Why it did not start.
        source: io::Error,
    },
    /// The registry's client said no.
    #[error("{program} failed: {stderr}")]
    Failed {
        /// What was run.
        program: String,
        /// What it printed.
        stderr: String,
    },
    /// The client took longer than any download should.
    #[error("{program} did not finish in time")]
    Timeout {
        /// What was run.
        program: String,
    },
    /// The cache folder could not be used.
    #[error("cannot use the cache at {path}")]
    Cache {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No home, no cache folder.
    #[error("neither XDG_CACHE_HOME nor HOME is set, so there is no place to keep published descriptions")]
    NoCache,
    /// The file is there but is not what it should be.
    #[error("cannot understand {path}")]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

/// One file inside one pinned Python package.
#[derive(Clone, Copy, Debug)]
pub struct PythonFile {
    /// Package name.
    pub package: &'static str,
    /// Exact version.
    pub version: &'static str,
    /// Path inside the wheel.
    pub member: &'static str,
}

/// Whether a missing registry client is an error rather than a reason to skip the check.
#[must_use]
pub fn required() -> bool {
    env::var_os("MIGLET_REQUIRE_PUBLISHED").is_some()
}

/// `None`, said loudly, for a description that cannot be fetched here and is not required; the error otherwise.
///
/// # Errors
/// When `MIGLET_REQUIRE_PUBLISHED` is set, or the failure is not about fetching.
pub fn skippable<T>(fetched: Result<T, PublishedError>) -> Result<Option<T>, PublishedError> {
    match fetched {
        Ok(value) => Ok(Some(value)),
        Err(
            error @ (PublishedError::Client { .. } | PublishedError::Failed { .. } | PublishedError::Timeout { .. }),
        ) if !required() => {
            shout(&format!(
                "SKIPPED: requests and responses are not checked against the published description: {error}"
            ));
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Straight to stderr: what a passing test prints the usual way is swallowed by the test harness.
fn shout(line: &str) {
    writeln!(io::stderr(), "{line}").unwrap_or_default();
}

/// Fetches one file of a Python package, or finds it in the cache.
///
/// # Errors
/// When pip is missing or fails, or the cache cannot be written.
pub async fn fetch(file: &PythonFile) -> Result<PathBuf, PublishedError> {
    let name = file.member.rsplit('/').next().unwrap_or(file.member);
    let target = cache()?.join(format!("{}-{}", file.package, file.version)).join(name);
    if target.exists() {
        return Ok(target);
    }
    let failed = |source| PublishedError::Cache { path: target.clone(), source };
    let folder = target.parent().unwrap_or(&target);
    std::fs::create_dir_all(folder).map_err(failed)?;
    let scratch = tempfile::tempdir_in(folder).map_err(failed)?;
    let extracted = scratch.path().join("extracted");
    let requirement = format!("{}=={}", file.package, file.version);
    run("python3", &["-m", "pip", "download", "--quiet", "--no-deps", "--dest", &text(scratch.path()), &requirement])
        .await?;
    run("python3", &["-c", EXTRACT, &text(scratch.path()), file.member, &text(&extracted)]).await?;
    std::fs::rename(&extracted, &target).map_err(failed)?;
    Ok(target)
}

/// Where fetched files are kept: shared by every checkout of this user.
///
/// # Errors
/// When the user has neither a cache folder nor a home.
pub fn cache() -> Result<PathBuf, PublishedError> {
    let base = env::var_os("XDG_CACHE_HOME").filter(|v| !v.is_empty()).map(PathBuf::from);
    let base = base.or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    base.map(|base| base.join("miglet/published")).ok_or(PublishedError::NoCache)
}

/// Runs a registry client to its end.
///
/// # Errors
/// When it cannot start, fails, or takes too long.
pub async fn run(program: &str, arguments: &[&str]) -> Result<Output, PublishedError> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let program = || program.to_owned();
    let output = tokio::time::timeout(FETCH_TIMEOUT, command.output())
        .await
        .map_err(|_elapsed| PublishedError::Timeout { program: program() })?
        .map_err(|source| PublishedError::Client { program: program(), source })?;
    if output.status.success() {
        return Ok(output);
    }
    Err(PublishedError::Failed { program: program(), stderr: String::from_utf8_lossy(&output.stderr).into_owned() })
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
