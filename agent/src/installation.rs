//! A runner to run: the one baked into the image when its version will do, else one from the cache, else one fetched,
//! verified and unpacked.
//!
//! ```text
//!  image's, of an acceptable version? --yes--> use it
//!        | no
//!  one in the cache, of an acceptable version? --yes--> use the latest; what is there is whole and was verified
//!        | no
//!  each source in order: space? -> fetch, resumed -> SHA-256 -> unpack -> rename into the cache, remove the others
//! ```
//!
//! Without a configured version anything there will do, and nothing is ever fetched. The hash stands in the settings, not
//! beside the archive, so a source may be any mirror: it can refuse a runner, not replace it.

mod archive;
mod cache;
mod download;
mod libraries;
mod manifest;
mod source;
mod version;

use std::path::PathBuf;

use http::Uri;

use crate::{
    error::in_full,
    fetch::{Client, FetchError},
};

pub use archive::{ArchiveError, unpack_stream};
pub use cache::CacheError;
pub use download::DownloadError;
pub use libraries::{Linker, Missing};
pub use source::{Sha256, architecture, redacted, sources};
pub use version::Version;

use cache::{LISTENER, is_runner};
pub(crate) use download::free_space;

/// Which runner, and where from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installation {
    /// The image's runner.
    pub runner_dir: PathBuf,
    /// Where fetched ones go.
    pub cache_dir: PathBuf,
    /// The version that will do.
    pub version: Option<Version>,
    /// The oldest one that is there that will do as well. With neither any will.
    pub minimum: Option<Version>,
    /// What is fetched when none is there that will do; unset: nothing can be.
    pub archive: Option<Archive>,
}

/// A runner that may have to be fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Archive {
    /// Its version.
    pub version: Version,
    /// Of the file.
    pub sha256: Sha256,
    /// In order of preference.
    pub sources: Vec<Uri>,
}

/// A runner that can be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// Its directory.
    pub dir: PathBuf,
    /// Where it came from.
    pub origin: Origin,
    /// Its version, where it mattered.
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
    /// There is none that will do, and what would cannot be fetched.
    #[error(
        "no runner {wanted} is on this machine, and without its SHA-256 none can be fetched: bake one in, or set \
         spec.runner.checksums on the pool or runner-sha256 here"
    )]
    Unacceptable {
        /// Which one would do.
        wanted: String,
    },
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
        if let Some(installed) = self.present() {
            return Ok(installed);
        }
        let archive = self.archive.as_ref().ok_or_else(|| self.lacking())?;
        let cache = cache::Cache::new(&self.cache_dir);
        let _lock = cache.lock()?;
        let installed = fetch(&cache, archive).await?;
        if prune {
            cache.prune(&installed.dir)?;
        }
        Ok(installed)
    }

    fn lacking(&self) -> InstallError {
        let dir = self.runner_dir.display().to_string();
        match (self.version, self.minimum) {
            (_, Some(minimum)) => InstallError::Unacceptable { wanted: format!("{minimum} or later") },
            (Some(version), None) => InstallError::Unacceptable { wanted: version.to_string() },
            (None, None) if self.runner_dir.join(LISTENER).exists() => InstallError::NotExecutable(dir),
            (None, None) => InstallError::Nothing(dir),
        }
    }

    /// A runner that will do and need not be fetched.
    #[must_use]
    pub fn present(&self) -> Option<Installed> {
        if is_runner(&self.runner_dir) {
            let any = self.version.is_none() && self.minimum.is_none();
            let version = if any { None } else { self.baked_in() };
            if any || version.is_some_and(|version| self.accepts(version)) {
                return Some(Installed { dir: self.runner_dir.clone(), origin: Origin::Image, version });
            }
        }
        let mut entries = cache::Cache::new(&self.cache_dir).entries();
        entries.retain(|entry| self.accepts(entry.version) && self.is_the_one(entry));
        let latest = entries.into_iter().max_by_key(|entry| entry.version)?;
        Some(Installed { dir: latest.dir, origin: Origin::Cache, version: Some(latest.version) })
    }

    fn accepts(&self, version: Version) -> bool {
        match (self.version, self.minimum) {
            (None, None) => true,
            (exactly, minimum) => exactly == Some(version) || minimum.is_some_and(|minimum| minimum <= version),
        }
    }

    /// Of the version that is named with its hash, only what was unpacked from that very archive.
    fn is_the_one(&self, entry: &cache::Entry) -> bool {
        let named = self.archive.as_ref().filter(|archive| archive.version == entry.version);
        named.is_none_or(|archive| entry.dir == cache::Cache::new(&self.cache_dir).entry(archive))
    }

    /// The version of the image's runner.
    fn baked_in(&self) -> Option<Version> {
        let version = manifest::version(&self.runner_dir);
        let dir = self.runner_dir.display();
        let unknown =
            |error| tracing::warn!(%dir, reason = in_full(&error), "the image's runner is of no known version");
        version.map_err(unknown).ok()
    }
}

async fn fetch(cache: &cache::Cache, archive: &Archive) -> Result<Installed, InstallError> {
    let client = Client::new()?;
    let download =
        download::Download { client: &client, part: cache.part(archive), wanted: archive.sha256, free_space };
    let mut reasons = Vec::new();
    for source in &archive.sources {
        match download.from(source).await {
            Ok(()) => {
                let dir = adopt(cache.clone(), archive.clone()).await?;
                // Not worth failing for: pruned with the next one.
                std::fs::remove_file(cache.part(archive)).ok();
                let (origin, version) = (Origin::Source(crate::fetch::host(source)), Some(archive.version));
                return Ok(Installed { dir, origin, version });
            }
            Err(error) => {
                let reason = in_full(&error);
                tracing::warn!(reason, "a source did not give the runner");
                reasons.push(reason);
            }
        }
    }
    Err(InstallError::Sources { version: archive.version, reasons })
}

/// Seconds of work, so not on the thread that everything else runs on.
async fn adopt(cache: cache::Cache, archive: Archive) -> Result<PathBuf, CacheError> {
    let size = cache.part(&archive).metadata().map_or(0, |part| part.len());
    let work = move || cache.adopt(&archive, download::allowance(size));
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| {
        Err(CacheError::Io { path: "unpacking".to_owned(), source: std::io::Error::other(error) })
    })
}

#[cfg(test)]
mod tests;
