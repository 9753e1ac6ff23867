//! The agent's Debian package, and a newer one to upgrade to.

use std::{
    env, fs,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

use super::{VmError, command::run};

/// The agent's package.
#[derive(Clone, Debug)]
pub struct Package {
    /// The file.
    pub deb: PathBuf,
}

impl Package {
    /// The package of this source tree, built by the script that users build it with: minutes the first time, seconds
    /// when nothing changed. `MIGLET_AGENT_PACKAGE` names one that is there already.
    ///
    /// # Errors
    /// When it cannot be built.
    pub fn obtain() -> Result<Self, VmError> {
        if let Some(deb) = env::var_os("MIGLET_AGENT_PACKAGE") {
            return Ok(Self { deb: deb.into() });
        }
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let printed = run(&mut Command::new(workspace.join("agent/packaging/build-deb")))?;
        let deb = workspace.join(printed.trim());
        let deb = deb.canonicalize().map_err(VmError::io(deb))?;
        Ok(Self { deb })
    }

    /// The same package as a later version, whose program is another file by content.
    ///
    /// # Errors
    /// When it cannot be taken apart or put together.
    pub(super) fn upgraded(&self, into: &Path) -> Result<(), VmError> {
        let folder = tempfile::tempdir().map_err(VmError::io(env::temp_dir()))?;
        let root = folder.path().join("root");
        run(Command::new("dpkg-deb").arg("--raw-extract").arg(&self.deb).arg(&root))?;
        let control = root.join("DEBIAN/control");
        let text = fs::read_to_string(&control).map_err(VmError::io(&control))?;
        let newer = text.lines().map(|line| match line.strip_prefix("Version: ") {
            Some(version) => format!("Version: {version}+later1\n"),
            None => format!("{line}\n"),
        });
        fs::write(&control, newer.collect::<String>()).map_err(VmError::io(&control))?;
        // What follows the last section of a program is not looked at.
        let program = root.join("usr/bin/miglet");
        let mut file = fs::File::options().append(true).open(&program).map_err(VmError::io(&program))?;
        file.write_all(b"later").map_err(VmError::io(&program))?;
        run(Command::new("dpkg-deb").args(["--root-owner-group", "--build"]).arg(&root).arg(into)).map(drop)
    }
}
