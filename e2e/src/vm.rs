//! Real machines: a Debian disk with the agent's package, booted under QEMU where a simulated instance would be a process.
//!
//! ```text
//!   rootfs   Debian packages --mmdebstrap--> root folder as a tar, kernel, initrd     cached by the list of packages
//!   root     the tar unpacked, and the package's scripts run in a chroot: bake-image, startup-script
//!   disk     root + agent .deb (bake-image) + what a test needs --mke2fs--> image      cached by all of that
//!   archive  the runner stand-in as the release archive that GitHub offers and agents fetch
//!   qemu     one process a VM; its own metadata server at 169.254.169.254:80, the host's loopback at 169.254.169.2
//!   shell    a root shell over a virtio port: what an administrator, or fate, does to a VM
//! ```
//!
//! Emulated, not accelerated: /dev/kvm may open and then hang where VMs are nested, and 25 s to a running agent will do.
//! Everything needs root (apt in a chroot, files of root in the image) and the tools of [`Unavailable`]; where they are
//! missing a test says so loudly and passes, unless `MIGLET_REQUIRE_VM` is set.

mod archive;
mod cache;
mod command;
mod disk;
mod package;
mod qemu;
mod root;
mod rootfs;
mod shell;
mod support;

use std::{io, path::PathBuf};

pub use self::{
    archive::runner_archive,
    disk::{Disk, UPGRADE},
    package::Package,
    qemu::VmMachines,
    root::StockImage,
    shell::{Said, Shell},
    support::{Unavailable, available},
};

/// Where a VM finds the host's loopback: QEMU's user network translates it. The metadata address itself cannot be the
/// host's (refused by QEMU 7.2), so it is a forward, and the host has another address of that network.
pub const HOST: &str = "169.254.169.2";

/// A machine, or what it is made of, could not be made.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// Missing tools or rights.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// A program failed.
    #[error("{program} failed ({status}): {output}")]
    Failed {
        /// What was run.
        program: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// The end of what it said.
        output: String,
    },
    /// The file system.
    #[error("could not use {path}")]
    Io {
        /// What.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Not what it should be.
    #[error("{0}")]
    Odd(String),
}

impl VmError {
    fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}
