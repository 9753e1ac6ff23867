//! A root folder, and what the package's own scripts make of it in a chroot.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use super::{Package, VmError, command::run, rootfs::Rootfs};

const BAKE: &str = include_str!("../../../agent/packaging/bake-image");
const STARTUP: &str = include_str!("../../../agent/packaging/startup-script");

/// An unpacked root folder.
#[derive(Debug)]
pub(super) struct Root(pub(super) PathBuf);

impl Root {
    /// Debian as it comes, except that apt knows no archive: everything is there that the package depends on, and a test
    /// that asks the world is none.
    pub(super) fn unpack(rootfs: &Rootfs, into: PathBuf) -> Result<Self, VmError> {
        fs::create_dir(&into).map_err(VmError::io(&into))?;
        run(Command::new("tar").arg("-xf").arg(&rootfs.tar).arg("-C").arg(&into))?;
        for sources in ["etc/apt/sources.list", "etc/apt/sources.list.d"] {
            let path = into.join(sources);
            run(Command::new("rm").arg("-rf").arg(&path))?;
        }
        Ok(Self(into))
    }

    /// A program in it. The host's own folders mean nothing in there.
    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("chroot");
        command.arg(&self.0).arg(program).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env_remove("TMPDIR");
        command
    }

    /// Installs the package as people do who make an image.
    pub(super) fn bake(&self, package: &Package) -> Result<(), VmError> {
        let deb = self.0.join("miglet.deb");
        fs::copy(&package.deb, &deb).map_err(VmError::io(&deb))?;
        run(self.command("bash").args(["-c", BAKE, "bake-image", "/miglet.deb"]))?;
        fs::remove_file(&deb).map_err(VmError::io(&deb))
    }
}

/// A stock image's root folder: no agent in it. Gone when it is dropped.
#[derive(Debug)]
pub struct StockImage {
    root: Root,
    _folder: tempfile::TempDir,
}

impl StockImage {
    /// Unpacks one. Blocks.
    ///
    /// # Errors
    /// When the tools are missing or fail.
    pub fn obtain() -> Result<Self, VmError> {
        let rootfs = Rootfs::obtain()?;
        let folder = tempfile::tempdir().map_err(VmError::io(std::env::temp_dir()))?;
        let root = Root::unpack(&rootfs, folder.path().join("root"))?;
        Ok(Self { root, _folder: folder })
    }

    /// Runs the startup script as a boot does, with a metadata server at this address. Blocks.
    ///
    /// # Errors
    /// When it ends with anything but 0.
    pub fn boot(&self, metadata: SocketAddr) -> Result<String, VmError> {
        let mut command = self.root.command("bash");
        // Its proxy is not the machine's that is played here.
        for variable in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"] {
            command.env_remove(variable);
        }
        run(command.args(["-c", STARTUP, "startup-script"]).env("GCE_METADATA_HOST", metadata.to_string()))
    }

    /// Whether there is such a file (or link, wherever it leads).
    #[must_use]
    pub fn has(&self, path: &str) -> bool {
        self.root.0.join(Path::new(path).strip_prefix("/").unwrap_or(Path::new(path))).symlink_metadata().is_ok()
    }
}
