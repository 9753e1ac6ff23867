//! The system libraries that the runner needs and its archive does not bring. `config.sh` checks them, but a runner
//! with a JIT config never runs that; without the check it dies at its start, after its one registration is used up.

use std::{
    collections::BTreeSet,
    fmt,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use tokio::{process::Command, time::timeout};

const TIMEOUT: Duration = Duration::from_secs(20);
/// What config.sh looks into.
const BINARIES: [&str; 3] =
    ["libcoreclr.so", "libSystem.Security.Cryptography.Native.OpenSsl.so", "libSystem.IO.Compression.Native.so"];
/// Opened by name at run time, so no binary lists them.
const OPENED: [&str; 2] = ["libssl.so", "libicuuc.so"];

/// The machine's own tools for the question.
#[derive(Clone, Debug)]
pub struct Linker {
    /// Lists what a binary needs.
    pub ldd: PathBuf,
    /// Lists what there is.
    pub ldconfig: PathBuf,
}

impl Default for Linker {
    fn default() -> Self {
        // Not in everyone's PATH.
        Self { ldd: "ldd".into(), ldconfig: "/sbin/ldconfig".into() }
    }
}

/// Libraries that are not there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Missing(BTreeSet<String>);

impl Missing {
    /// Whether all are there.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What to install on Debian and Ubuntu.
    #[must_use]
    pub fn packages(&self) -> String {
        let packages: BTreeSet<_> = self.0.iter().map(|library| package(library)).collect();
        packages.into_iter().collect::<Vec<_>>().join(" ")
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let libraries = self.0.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        write!(f, "{libraries} (install the packages: {})", self.packages())
    }
}

impl Linker {
    /// What the runner in `dir` needs and this machine lacks. What cannot be found out counts as there: a machine
    /// without these tools may well be able to run a runner.
    pub async fn missing(&self, dir: &Path) -> Missing {
        let mut missing = BTreeSet::new();
        let binaries = BINARIES.map(|name| dir.join("bin").join(name)).into_iter().filter(|path| path.is_file());
        let binaries: Vec<_> = binaries.collect();
        for binary in &binaries {
            missing.extend(not_found(&run(Command::new(&self.ldd).arg(binary)).await.unwrap_or_default()));
        }
        if let (false, Some(known)) = (binaries.is_empty(), run(Command::new(&self.ldconfig).arg("-p")).await) {
            missing.extend(OPENED.iter().filter(|name| !known.contains(**name)).map(|name| (*name).to_owned()));
        }
        Missing(missing)
    }
}

async fn run(command: &mut Command) -> Option<String> {
    let command = command.stdin(Stdio::null()).kill_on_drop(true);
    let Output { status, stdout, .. } = timeout(TIMEOUT, command.output()).await.ok()?.ok()?;
    status.success().then(|| String::from_utf8_lossy(&stdout).into_owned())
}

/// From lines like `libssl.so.3 => not found`.
fn not_found(ldd: &str) -> impl Iterator<Item = String> {
    let names = ldd.lines().filter_map(|line| line.trim().strip_suffix("=> not found"));
    // Only for tracing, and the runner works without it.
    let needed =
        names.map(|name| crate::runner::clean(name.trim(), 60)).filter(|name| !name.starts_with("liblttng-ust"));
    needed.filter(|name| !name.is_empty())
}

fn package(library: &str) -> &str {
    let known = [
        ("libssl", "libssl3"),
        ("libcrypto", "libssl3"),
        ("libicu", "libicu-dev"),
        ("libgssapi_krb5", "libgssapi-krb5-2"),
        ("libkrb5", "libkrb5-3"),
        ("libz.", "zlib1g"),
        ("libstdc++", "libstdc++6"),
        ("libgcc_s", "libgcc-s1"),
    ];
    known.iter().find(|(start, _)| library.starts_with(start)).map_or(library, |(_, package)| package)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn script(dir: &Path, name: &str, text: &str) -> PathBuf {
        let path = dir.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("script");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("mode");
        path
    }

    #[tokio::test]
    async fn what_is_missing_is_named_with_its_packages() {
        let dir = tempfile::tempdir().expect("dir");
        std::fs::create_dir(dir.path().join("bin")).expect("bin");
        std::fs::write(dir.path().join("bin/libcoreclr.so"), "").expect("library");
        let ldd = script(
            dir.path(),
            "ldd",
            "echo '\tlibz.so.1 => not found'; echo '\tlibc.so.6 => /lib/libc.so.6 (0x7f)'; echo '\tliblttng-ust.so.0 => not found'",
        );
        let ldconfig = script(dir.path(), "ldconfig", "echo '\tlibssl.so.3 (libc6,x86-64) => /lib/libssl.so.3'");
        let missing = Linker { ldd, ldconfig }.missing(dir.path()).await;
        assert_eq!(missing.to_string(), "libicuuc.so, libz.so.1 (install the packages: libicu-dev zlib1g)");
    }

    #[tokio::test]
    async fn a_machine_without_the_tools_lacks_nothing_we_know_of() {
        let dir = tempfile::tempdir().expect("dir");
        std::fs::create_dir(dir.path().join("bin")).expect("bin");
        std::fs::write(dir.path().join("bin/libcoreclr.so"), "").expect("library");
        let linker = Linker { ldd: "/nonexistent/ldd".into(), ldconfig: "/nonexistent/ldconfig".into() };
        assert!(linker.missing(dir.path()).await.is_empty());
    }
}
