//! Debian from packages only: the root folder every VM starts from, its kernel and initrd. About a minute, once.

use std::{fs, path::PathBuf, process::Command};

use super::{VmError, cache, command::run, support};

/// What is installed: an init system, the network, what the package depends on, what jobs of users take for granted.
const PACKAGES: [&str; 13] = [
    "systemd-sysv",
    "dbus",
    "iproute2",
    "nftables",
    "sudo",
    "curl",
    "procps",
    "ca-certificates",
    "linux-image-cloud-amd64",
    "libkrb5-3",
    "zlib1g",
    "libstdc++6",
    "adduser",
];

/// Bump when the recipe below changes in a way the list of packages does not show.
const RECIPE: &str = "1";

/// The parts of an installed Debian.
#[derive(Clone, Debug)]
pub(super) struct Rootfs {
    /// The root folder without /boot.
    pub(super) tar: PathBuf,
    /// Kernel.
    pub(super) kernel: PathBuf,
    /// Its initial RAM disk.
    pub(super) initrd: PathBuf,
    /// Changes when any of it does.
    pub(super) key: String,
}

impl Rootfs {
    /// Finds or makes it. Blocks.
    pub(super) fn obtain() -> Result<Self, VmError> {
        let release = support::check()?;
        let packages = PACKAGES.iter().chain(&release.libraries).copied().collect::<Vec<_>>().join(",");
        let key = cache::key([RECIPE, release.name, &packages].map(str::as_bytes));
        let folder = cache::once("rootfs", &key, |into| {
            let hooks = [
                // The whole point of a hook: /boot leaves the tar, which is copied for every disk.
                format!(r#"--customize-hook=cp "$1"/boot/vmlinuz-* {}"#, into.join("kernel").display()),
                format!(r#"--customize-hook=cp "$1"/boot/initrd.img-* {}"#, into.join("initrd").display()),
                r#"--customize-hook=rm -rf "$1"/boot "$1"/usr/share/doc "$1"/usr/share/man "$1"/usr/share/locale"#
                    .to_owned(),
            ];
            let mut mmdebstrap = Command::new("mmdebstrap");
            mmdebstrap.args(["--quiet", "--variant=minbase", "--include", &packages]).args(hooks);
            run(mmdebstrap.arg(release.name).arg(into.join("rootfs.tar"))).map(drop)
        })?;
        let file = |name: &str| folder.join(name);
        let rootfs = Self { tar: file("rootfs.tar"), kernel: file("kernel"), initrd: file("initrd"), key };
        fs::metadata(&rootfs.tar).map_err(VmError::io(&rootfs.tar))?;
        Ok(rootfs)
    }
}
