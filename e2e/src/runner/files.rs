//! Files a runner keeps: its configuration, and its diagnostic log.

use std::{io::Write, path::Path};

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

/// A line in `_diag/Runner_*.log`.
pub(super) fn diagnose(root: &Path, text: &str) {
    let path = root.join("_diag").join(format!("Runner_{}-utc.log", std::process::id()));
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    drop(file.and_then(|mut file| writeln!(file, "[{} INFO Runner] {text}", terminal::now())));
}
