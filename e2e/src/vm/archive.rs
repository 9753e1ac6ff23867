//! The runner stand-in as GitHub's release archive.

use std::{fs, os::unix::fs::symlink, path::Path, process::Command};

use bytes::Bytes;

use super::{VmError, command::run};
use crate::runner;

/// Packs the stand-in as GitHub packs the runner. Blocks, for seconds.
///
/// # Errors
/// When it is not built.
pub fn runner_archive() -> Result<Bytes, VmError> {
    let folder = tempfile::tempdir().map_err(VmError::io(std::env::temp_dir()))?;
    let root = folder.path().join("root");
    unpacked(&root)?;
    let archive = folder.path().join("runner.tar.gz");
    // Owned by nobody in particular, as the release is.
    let tar = ["--owner=1001", "--group=1001", "--numeric-owner", "-czf"];
    run(Command::new("tar").args(tar).arg(&archive).arg("-C").arg(&root).arg("."))?;
    fs::read(&archive).map(Bytes::from).map_err(VmError::io(&archive))
}

/// What the archive unpacks to.
pub(super) fn unpacked(into: &Path) -> Result<(), VmError> {
    runner::install(into).map_err(|error| VmError::Odd(error.to_string()))?;
    own_programs(&into.join("bin"))
}

/// The stand-in's links lead out of its folder; an archive has to bring the program itself.
fn own_programs(bin: &Path) -> Result<(), VmError> {
    let (listener, worker) = (bin.join("Runner.Listener"), bin.join("Runner.Worker"));
    let program = fs::canonicalize(&listener).map_err(VmError::io(&listener))?;
    for link in [&listener, &worker] {
        fs::remove_file(link).map_err(VmError::io(link))?;
    }
    // A debug build is mostly names of things, which an emulated machine would unpack for a while.
    if run(Command::new("strip").arg("-o").arg(&listener).arg(&program)).is_err() {
        fs::copy(&program, &listener).map_err(VmError::io(&listener))?;
    }
    symlink("Runner.Listener", &worker).map_err(VmError::io(&worker))
}
