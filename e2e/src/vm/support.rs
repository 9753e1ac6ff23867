//! Whether this machine can boot VMs, and what is missing if it cannot.

use std::{
    env, fs,
    io::{self, Write},
};

/// Programs that are needed, and the Debian packages they come in.
const TOOLS: [(&str, &str); 5] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("mmdebstrap", "mmdebstrap"),
    ("mke2fs", "e2fsprogs"),
    ("dpkg-deb", "dpkg"),
    ("tar", "tar"),
];

/// Debian releases whose packages we know. The VM's release is the host's, because binaries built here run there.
const RELEASES: [(&str, Release); 2] = [
    ("bookworm", Release { name: "bookworm", libraries: ["libicu72", "libssl3"] }),
    ("trixie", Release { name: "trixie", libraries: ["libicu76", "libssl3t64"] }),
];

/// A Debian release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Release {
    /// Its code name.
    pub(super) name: &'static str,
    /// What a runner needs, where names contain versions.
    pub(super) libraries: [&'static str; 2],
}

/// VMs cannot be booted here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// Not the processor the disk is for.
    #[error("real VMs are x86-64, this machine is not")]
    Architecture,
    /// Not root.
    #[error("making a disk needs root: it installs packages in a chroot")]
    NotRoot,
    /// Not Debian.
    #[error("the VM's binaries are built here, so this has to be Debian ({known}), and is {found:?}")]
    Release {
        /// What is known.
        known: String,
        /// What this is.
        found: String,
    },
    /// Programs are missing.
    #[error("missing programs: apt-get install --no-install-recommends {}", .0.join(" "))]
    Tools(Vec<&'static str>),
}

/// Whether VMs can be booted here. `Ok(false)`, said loudly, when not: the caller skips what it wanted to do.
///
/// # Errors
/// When they cannot and `MIGLET_REQUIRE_VM` is set.
pub fn available() -> Result<bool, Unavailable> {
    match check() {
        Ok(_) => Ok(true),
        Err(missing) if env::var_os("MIGLET_REQUIRE_VM").is_some() => Err(missing),
        Err(missing) => {
            // Straight to stderr: what a passing test prints the usual way is swallowed by the test harness.
            writeln!(io::stderr(), "SKIPPED: nothing was tested on a real VM: {missing}").unwrap_or_default();
            Ok(false)
        }
    }
}

/// The release to install, if all is there.
pub(super) fn check() -> Result<Release, Unavailable> {
    if env::consts::ARCH != "x86_64" {
        return Err(Unavailable::Architecture);
    }
    let release = release(&fs::read_to_string("/etc/os-release").unwrap_or_default())?;
    let path = env::var_os("PATH").unwrap_or_default();
    let absent = |tool: &str| !env::split_paths(&path).any(|folder| folder.join(tool).is_file());
    let missing: Vec<_> = TOOLS.iter().filter(|(tool, _)| absent(tool)).map(|(_, package)| *package).collect();
    if !missing.is_empty() {
        return Err(Unavailable::Tools(missing));
    }
    if rustix::process::geteuid().is_root() { Ok(release) } else { Err(Unavailable::NotRoot) }
}

fn release(os: &str) -> Result<Release, Unavailable> {
    let value = os.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")).unwrap_or_default();
    let found = value.trim_matches('"');
    let release = RELEASES.iter().find(|(name, _)| *name == found).map(|(_, release)| *release);
    release.ok_or_else(|| Unavailable::Release {
        known: RELEASES.map(|(name, _)| name).join(", "),
        found: found.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vms_release_is_the_hosts_when_its_packages_are_known() {
        let os = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_CODENAME=bookworm\nID=debian\n";
        assert_eq!(release(os).expect("known").libraries, ["libicu72", "libssl3"]);
        let error = release("VERSION_CODENAME=\"noble\"\n").expect_err("unknown").to_string();
        assert!(error.contains("noble") && error.contains("trixie"), "{error}");
    }
}
