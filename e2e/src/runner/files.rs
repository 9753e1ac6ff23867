//! Files a runner keeps: its configuration, and its diagnostic log.

use std::{
    fs::{File, OpenOptions, create_dir_all},
    io::{self, Write},
    path::Path,
    sync::LazyLock,
};

use super::{settings::FILES, terminal};

/// Deletes the configuration, as after a job and when the registration is gone.
pub(super) fn forget_configuration(root: &Path) {
    let deleted: Vec<_> = FILES.iter().filter(|name| std::fs::remove_file(root.join(name)).is_ok()).collect();
    if deleted.iter().any(|name| **name == ".credentials") {
        terminal::success("Removed .credentials");
    }
    if deleted.iter().any(|name| **name == ".runner") {
        terminal::success("Removed .runner");
    }
}

/// This process's log: their names sort by the time of their start.
static LOG: LazyLock<String> =
    LazyLock::new(|| format!("Runner_{}-{}-utc.log", terminal::now().replace([' ', ':'], "-"), std::process::id()));

/// Opens `_diag/Runner_*.log`, which the release archive does not bring. A real runner does so before it reads its
/// arguments, and dies where it may not.
pub(super) fn open_log(root: &Path) -> io::Result<File> {
    let folder = root.join("_diag");
    create_dir_all(&folder)?;
    OpenOptions::new().create(true).append(true).open(folder.join(&*LOG))
}

/// A line in it.
pub(super) fn diagnose(root: &Path, text: &str) {
    let written = open_log(root).and_then(|mut log| writeln!(log, "[{} INFO Runner] {text}", terminal::now()));
    // Only a log.
    drop(written);
}
