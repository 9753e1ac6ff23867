//! Installed runners, each in a directory named by what it was unpacked from. A directory appears under that name only
//! when it is whole and on disk, so an entry that exists can be used.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock, syncfs};

use super::{Archive, ArchiveError, Version, archive::unpack};
use crate::paths::make_dir;

/// The program that makes a directory a runner.
pub(super) const LISTENER: &str = "bin/Runner.Listener";

/// The directory of installed runners.
#[derive(Clone, Debug)]
pub(super) struct Cache {
    dir: PathBuf,
}

/// A runner in it.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) dir: PathBuf,
    pub(super) version: Version,
}

/// The cache could not be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// Someone else installs.
    #[error("another installation into {0} is under way")]
    Locked(String),
    /// Not unpacked.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// Whole, verified, and no runner.
    #[error("the archive holds no executable bin/Runner.Listener")]
    NoRunner,
    /// The file system said no.
    #[error("could not use the cache {path}")]
    Io {
        /// What.
        path: String,
        /// Why not.
        source: io::Error,
    },
}

impl Cache {
    pub(super) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// What is there.
    pub(super) fn entries(&self) -> Vec<Entry> {
        let entry = |dir: PathBuf| {
            let name = dir.file_name()?.to_str()?.strip_prefix("runner-")?;
            let version = name.split_once('-')?.0.parse().ok()?;
            is_runner(&dir).then_some(Entry { dir, version })
        };
        fs::read_dir(&self.dir).into_iter().flatten().flatten().filter_map(|found| entry(found.path())).collect()
    }

    /// Where this runner is, or would be.
    pub(super) fn entry(&self, archive: &Archive) -> PathBuf {
        let hash = archive.sha256.to_string();
        self.dir.join(format!("runner-{}-{}", archive.version, hash.get(..16).unwrap_or(&hash)))
    }

    pub(super) fn part(&self, archive: &Archive) -> PathBuf {
        self.dir.join(format!("{}.part", archive.sha256))
    }

    /// Makes the directory and keeps others out of it for as long as the answer lives.
    pub(super) fn lock(&self) -> Result<File, CacheError> {
        make_dir(&self.dir, 0o755).map_err(self.failed())?;
        let file = File::create(self.dir.join("lock")).map_err(self.failed())?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(CacheError::Locked(self.dir.display().to_string())),
            Err(error) => Err(self.failed()(error.into())),
        }
    }

    /// Unpacks the verified archive, and only when all of it is on disk gives it its name.
    pub(super) fn adopt(&self, archive: &Archive, allowance: u64) -> Result<PathBuf, CacheError> {
        let (unpacking, part) = (self.dir.join("unpacking"), self.part(archive));
        self.remove(&unpacking)?;
        make_dir(&unpacking, 0o755).map_err(self.failed())?;
        unpack(&part, &unpacking, allowance)?;
        if !is_runner(&unpacking) {
            return Err(CacheError::NoRunner);
        }
        let entry = self.entry(archive);
        let named = || {
            syncfs(File::open(&unpacking)?)?;
            fs::rename(&unpacking, &entry)?;
            File::open(&self.dir)?.sync_all()
        };
        named().map_err(self.failed())?;
        Ok(entry)
    }

    /// Removes every other runner, and what broken attempts left.
    pub(super) fn prune(&self, keep: &Path) -> Result<(), CacheError> {
        for entry in fs::read_dir(&self.dir).map_err(self.failed())? {
            let path = entry.map_err(self.failed())?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let ours = name.starts_with("runner-") || name.ends_with(".part") || name == "unpacking";
            if ours && path != keep {
                self.remove(&path)?;
            }
        }
        Ok(())
    }

    fn remove(&self, path: &Path) -> Result<(), CacheError> {
        let removed = match path.symlink_metadata() {
            Ok(found) if found.is_dir() => fs::remove_dir_all(path),
            Ok(_) => fs::remove_file(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        };
        removed.map_err(self.failed())
    }

    fn failed(&self) -> impl Fn(io::Error) -> CacheError + use<> {
        let path = self.dir.display().to_string();
        move |source| CacheError::Io { path: path.clone(), source }
    }
}

/// Whether a runner could be started from here.
pub(super) fn is_runner(dir: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    dir.join(LISTENER).metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}
