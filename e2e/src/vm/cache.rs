//! What is expensive and depends on its inputs only: made once, kept under the user's cache folder by content key.

use std::{
    env,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use aws_lc_rs::digest;

use super::VmError;

/// Entries of a kind that stay: the newest, and one to go back to.
const KEPT: usize = 2;

/// The entry `kind-key`; `make` fills a folder when there is none. Two processes may get here at once: the first one
/// makes it, the second one waits and finds it done.
pub(super) fn once(kind: &str, key: &str, make: impl FnOnce(&Path) -> Result<(), VmError>) -> Result<PathBuf, VmError> {
    let cache = folder()?;
    let entry = cache.join(format!("{kind}-{key}"));
    let path = cache.join(format!("{kind}.lock"));
    let lock = File::create(&path).map_err(VmError::io(&path))?;
    lock.lock().map_err(VmError::io(&path))?;
    if !entry.is_dir() {
        let building = tempfile::Builder::new().prefix("building-").tempdir_in(&cache).map_err(VmError::io(&cache))?;
        make(building.path())?;
        prune(&cache, kind);
        fs::rename(building.path(), &entry).map_err(VmError::io(&entry))?;
    }
    Ok(entry)
}

/// Removes the older entries of a kind. One that cannot be removed costs space, not correctness.
fn prune(cache: &Path, kind: &str) {
    let named = |path: &PathBuf| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&format!("{kind}-")));
    let entries = fs::read_dir(cache).into_iter().flatten().flatten().map(|entry| entry.path()).filter(named);
    let mut dated: Vec<_> = entries.filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path))).collect();
    dated.sort();
    let excess = (dated.len() + 1).saturating_sub(KEPT);
    for (_, old) in dated.into_iter().take(excess) {
        fs::remove_dir_all(old).unwrap_or_default();
    }
}

/// `~/.cache/miglet/vm`.
fn folder() -> Result<PathBuf, VmError> {
    let user = env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()).map(PathBuf::from);
    let user = user.or_else(|| env::home_dir().map(|home| home.join(".cache")));
    let user = user.ok_or_else(|| VmError::io("the cache folder (set HOME)")(io::ErrorKind::NotFound.into()))?;
    let folder = user.join("miglet/vm");
    fs::create_dir_all(&folder).map_err(VmError::io(&folder))?;
    Ok(folder)
}

/// A short hash over all parts.
pub(super) fn key<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(&part.len().to_le_bytes());
        context.update(part);
    }
    context.finish().as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}
