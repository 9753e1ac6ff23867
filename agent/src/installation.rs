//! A runner to run: the one baked into the image when its version will do, else one from the cache, else one fetched,
//! verified and unpacked.
//!
//! ```text
//!  runner-dir acceptable? --yes--> use it
//!        | no
//!  cache holds version and hash? --yes--> use it
//!        | no
//!  each source in order: space? -> fetch, resumed -> SHA-256 -> unpack -> rename into the cache, remove the others
//! ```
//!
//! Without a configured version whatever is in the image is used, and nothing is ever fetched. The hash stands in the
//! settings, not beside the archive, so a source may be any mirror: it can refuse a runner, not replace it.

mod archive;
mod cache;
mod download;
mod libraries;
mod source;
mod version;

use std::{path::PathBuf, process::Stdio, time::Duration};

use http::Uri;
use tokio::{process::Command, time::timeout};

use crate::fetch::{Client, FetchError};

pub use archive::{ArchiveError, unpack_stream};
pub use cache::CacheError;
pub use download::DownloadError;
pub use libraries::{Linker, Missing};
pub use source::{Sha256, architecture, redacted, sources};
pub use version::Version;

use cache::is_runner;
pub(crate) use download::free_space;

/// .NET starts slowly on a cold disk.
const VERSION_TIMEOUT: Duration = Duration::from_secs(30);

/// Which runner, and where from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installation {
    /// The image's runner.
    pub runner_dir: PathBuf,
    /// Where fetched ones go.
    pub cache_dir: PathBuf,
    /// Unset: the image's, whatever it is.
    pub wanted: Option<Wanted>,
}

/// A runner that may have to be fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its version.
    pub version: Version,
    /// The oldest one in the image that will do as well.
    pub minimum: Option<Version>,
    /// Of its archive.
    pub sha256: Sha256,
    /// In order of preference; none: it cannot be fetched.
    pub sources: Vec<Uri>,
}

impl Wanted {
    fn accepts(&self, baked_in: Version) -> bool {
        baked_in == self.version || self.minimum.is_some_and(|minimum| minimum <= baked_in)
    }
}

/// A runner that can be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// Its directory.
    pub dir: PathBuf,
    /// Where it came from.
    pub origin: Origin,
    /// Its version, where one was asked for.
    pub version: Option<Version>,
}

/// Where a runner came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The machine's image.
    Image,
    /// An earlier installation.
    Cache,
    /// Fetched from this host now.
    Source(String),
}

/// There is no runner to be had, for now.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// No HTTP.
    #[error("could not install the runner")]
    Client(#[from] FetchError),
    /// The disk, or another installation.
    #[error("could not install the runner")]
    Cache(#[from] CacheError),
    /// No source gave it; why not, one after the other.
    #[error("no source gave runner {version}: {}", .reasons.join("; "))]
    Sources {
        /// Which runner.
        version: Version,
        /// Of each source.
        reasons: Vec<String>,
    },
    /// It would die at its start.
    #[error("the runner needs libraries that this machine lacks: {0}")]
    Libraries(Missing),
    /// Neither there nor asked for.
    #[error("there is no runner in {0}: bake one in, or set runner-version and runner-sha256")]
    Nothing(String),
    /// There, but it could not be started.
    #[error("{0}/bin/Runner.Listener is not executable: unpack the runner again, as root, and do not copy it")]
    NotExecutable(String),
}

impl Installation {
    /// A runner, fetched if there is no other way; each source is tried once. `prune`: remove the others, which must
    /// not be done while one of them runs.
    ///
    /// # Errors
    /// When there is none, or it could not run here.
    pub async fn install(&self, linker: &Linker, prune: bool) -> Result<Installed, InstallError> {
        let installed = self.find_or_fetch(prune).await?;
        let missing = linker.missing(&installed.dir).await;
        if missing.is_empty() { Ok(installed) } else { Err(InstallError::Libraries(missing)) }
    }

    async fn find_or_fetch(&self, prune: bool) -> Result<Installed, InstallError> {
        if let Some(installed) = self.present().await {
            return Ok(installed);
        }
        let nothing = || {
            let dir = self.runner_dir.display().to_string();
            let there = self.runner_dir.join("bin/Runner.Listener").exists();
            if there { InstallError::NotExecutable(dir) } else { InstallError::Nothing(dir) }
        };
        let wanted = self.wanted.as_ref().ok_or_else(nothing)?;
        let cache = cache::Cache::new(&self.cache_dir);
        let _lock = cache.lock()?;
        let installed = fetch(&cache, wanted).await?;
        if prune {
            cache.prune(&installed.dir)?;
        }
        Ok(installed)
    }

    /// A runner that will do and need not be fetched.
    pub async fn present(&self) -> Option<Installed> {
        let image = |version| Installed { dir: self.runner_dir.clone(), origin: Origin::Image, version };
        let Some(wanted) = &self.wanted else { return is_runner(&self.runner_dir).then(|| image(None)) };
        if let Some(version) = self.baked_in().await.filter(|version| wanted.accepts(*version)) {
            return Some(image(Some(version)));
        }
        let entry = cache::Cache::new(&self.cache_dir).entry(wanted);
        let version = Some(wanted.version);
        is_runner(&entry).then_some(Installed { dir: entry, origin: Origin::Cache, version })
    }

    /// The version of the image's runner, as it says itself.
    async fn baked_in(&self) -> Option<Version> {
        if !is_runner(&self.runner_dir) {
            return None;
        }
        let mut command = Command::new(self.runner_dir.join("bin/Runner.Listener"));
        let command = command.arg("--version").current_dir(&self.runner_dir).stdin(Stdio::null()).kill_on_drop(true);
        let output = timeout(VERSION_TIMEOUT, command.output()).await.ok()?.ok()?;
        String::from_utf8_lossy(&output.stdout).trim().parse().ok()
    }
}

async fn fetch(cache: &cache::Cache, wanted: &Wanted) -> Result<Installed, InstallError> {
    let client = Client::new()?;
    let download = download::Download { client: &client, part: cache.part(wanted), wanted: wanted.sha256, free_space };
    let mut reasons = Vec::new();
    if wanted.sources.is_empty() {
        reasons.push("its SHA-256 is not known here, so only the machine's image can have it".to_owned());
    }
    for source in &wanted.sources {
        match download.from(source).await {
            Ok(()) => {
                let dir = adopt(cache.clone(), wanted.clone()).await?;
                // Not worth failing for: pruned with the next one.
                std::fs::remove_file(cache.part(wanted)).ok();
                let (origin, version) = (Origin::Source(crate::fetch::host(source)), Some(wanted.version));
                return Ok(Installed { dir, origin, version });
            }
            Err(error) => {
                let reason = crate::error::in_full(&error);
                tracing::warn!(reason, "a source did not give the runner");
                reasons.push(reason);
            }
        }
    }
    Err(InstallError::Sources { version: wanted.version, reasons })
}

/// Seconds of work, so not on the thread that everything else runs on.
async fn adopt(cache: cache::Cache, wanted: Wanted) -> Result<PathBuf, CacheError> {
    let size = cache.part(&wanted).metadata().map_or(0, |part| part.len());
    let work = move || cache.adopt(&wanted, download::allowance(size));
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| {
        Err(CacheError::Io { path: "unpacking".to_owned(), source: std::io::Error::other(error) })
    })
}

#[cfg(test)]
mod tests;
