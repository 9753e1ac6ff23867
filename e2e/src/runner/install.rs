//! Lays out a runner's folder as the release archive does.

use std::{
    fs, io,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use super::VERSION;

/// Says where the stand-in's executable is.
const VARIABLE: &str = "MIGLET_RUNNER_STAND_IN";

const RUN: &str = "#!/bin/bash
# The shape of the real one: runs the listener, restarts it on 2, hides most exit codes.
cd \"$(dirname \"${BASH_SOURCE[0]}\")\" || exit 1
while :; do
  ./bin/Runner.Listener run \"$@\"
  code=$?
  case $code in
    2) echo 'Runner listener exit with retryable error, re-launch runner in 5 seconds.'; sleep 5 ;;
    3|4) for _ in $(seq 30); do [ -f update.finished ] && break; sleep 1; done; rm -f update.finished ;;
    7) exit 7 ;;
    *) echo \"Exiting runner...\"; exit 0 ;;
  esac
done
";

const CONFIG: &str = "#!/bin/bash
if [ \"$(id -u)\" -eq 0 ] && [ -z \"$RUNNER_ALLOW_RUNASROOT\" ]; then echo 'Must not run with sudo' >&2; exit 1; fi
cd \"$(dirname \"${BASH_SOURCE[0]}\")\" || exit 1
if [ \"$1\" = remove ]; then exec ./bin/Runner.Listener \"$@\"; fi
exec ./bin/Runner.Listener configure \"$@\"
";

/// The stand-in's executable was not found, or the folder could not be made.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// Not built.
    #[error(
        "found no runner-stand-in next to {0} (build it with: cargo build -p miglet-e2e --bins, or set {VARIABLE})"
    )]
    Missing(PathBuf),
    /// File system.
    #[error("could not lay out a runner in {folder}")]
    Io {
        /// Where.
        folder: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Lays out a runner in this folder: `bin`, `externals`, `run.sh`, `config.sh`.
///
/// # Errors
/// When the stand-in's executable is not found, or on I/O errors.
pub fn install(folder: &Path) -> Result<(), InstallError> {
    let program = program()?;
    lay_out(folder, &program).map_err(|source| InstallError::Io { folder: folder.to_owned(), source })
}

fn lay_out(folder: &Path, program: &Path) -> io::Result<()> {
    for name in ["bin", "externals/node24/bin"] {
        fs::create_dir_all(folder.join(name))?;
    }
    for name in ["bin/Runner.Listener", "bin/Runner.Worker"] {
        symlink(program, folder.join(name))?;
    }
    let manifest = serde_json::json!({"targets": {"linux": {format!("Runner.Listener/{VERSION}"): {}}}});
    fs::write(folder.join("bin/Runner.Listener.deps.json"), manifest.to_string())?;
    for (name, text) in [("run.sh", RUN), ("config.sh", CONFIG)] {
        fs::write(folder.join(name), text)?;
        fs::set_permissions(folder.join(name), fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// The environment says where, or it lies next to us (a test's executable is one folder deeper).
fn program() -> Result<PathBuf, InstallError> {
    if let Some(path) = std::env::var_os(VARIABLE) {
        return Ok(path.into());
    }
    let own = std::env::current_exe().unwrap_or_default();
    let beside = own.ancestors().skip(1).take(2).map(|folder| folder.join("runner-stand-in"));
    beside.into_iter().find(|path| path.is_file()).ok_or(InstallError::Missing(own))
}
