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
    /// The package of this source tree, built by the script that users build it with; quick when nothing changed.
    ///
    /// # Errors
    /// When it cannot be built.
    pub fn obtain() -> Result<Self, VmError> {
        let built = provisional()?;
        Ok(Self { deb: built })
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

/// Until there is packaging.
fn provisional() -> Result<PathBuf, VmError> {
    let own = env::current_exe().map_err(VmError::io("this program"))?;
    let built = own.ancestors().skip(1).take(2).map(|folder| folder.join("miglet")).find(|path| path.is_file());
    let built = built.ok_or_else(|| VmError::Odd("miglet is not built: run `cargo build --workspace`".to_owned()))?;
    let target = built.with_file_name("miglet.deb");
    let folder = tempfile::tempdir().map_err(VmError::io(env::temp_dir()))?;
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap_or(&path)).map_err(VmError::io(&path))?;
        fs::write(&path, text).map_err(VmError::io(&path))
    };
    write(
        "DEBIAN/control",
        "Package: miglet\nVersion: 0.1.0-1\nArchitecture: amd64\nMaintainer: m <m@m>\nDescription: agent\n",
    )?;
    write("etc/miglet/config.yaml", "machine: systemd\n")?;
    let unit = "[Unit]\nAfter=network-online.target\nWants=network-online.target\n[Service]\nExecStart=/usr/bin/miglet run\n\
                Restart=always\nKillMode=process\nRuntimeDirectory=miglet\nRuntimeDirectoryPreserve=yes\n[Install]\nWantedBy=multi-user.target\n";
    write("usr/lib/systemd/system/miglet.service", unit)?;
    write(
        "DEBIAN/postinst",
        "#!/bin/sh\nsystemctl enable miglet\nuseradd -m runner\n[ -d /run/systemd/system ] && systemctl daemon-reload && systemctl restart miglet\n:\n",
    )?;
    run(Command::new("chmod").arg("755").arg(folder.path().join("DEBIAN/postinst")))?;
    fs::create_dir_all(folder.path().join("usr/bin")).map_err(VmError::io("usr/bin"))?;
    run(Command::new("strip").arg("-o").arg(folder.path().join("usr/bin/miglet")).arg(&built))?;
    run(Command::new("dpkg-deb").args(["--root-owner-group", "-Znone", "--build"]).arg(folder.path()).arg(&target))?;
    Ok(target)
}
