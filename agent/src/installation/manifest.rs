//! Which version the image's runner is, from the list of its parts that .NET lays beside it. The runner itself would say
//! it too, but it would have to be started: as root, or by an agent that may become somebody else.

use std::{collections::BTreeMap, fs::File, io, io::Read, path::Path};

use rustix::fs::{Mode, OFlags, open};
use serde::{Deserialize, de::IgnoredAny};

use super::Version;

/// Where the list is in a runner's directory.
const MANIFEST: &str = "bin/Runner.Listener.deps.json";
/// Ours among the parts in it, before its version.
const PART: &str = "Runner.Listener/";
/// The real one has 100 KiB.
const LIMIT: u64 = 4 * 1024 * 1024;

/// Parts by the platform they are for.
#[derive(Deserialize)]
struct Manifest {
    targets: BTreeMap<String, BTreeMap<String, IgnoredAny>>,
}

/// The runner's version is not known.
#[derive(Debug, thiserror::Error)]
pub(super) enum ManifestError {
    /// Not there, or not to be read.
    #[error("could not read {MANIFEST}")]
    Io(#[from] io::Error),
    /// Something else.
    #[error("could not understand {MANIFEST}")]
    Json(#[from] serde_json::Error),
    /// Of something else.
    #[error("{MANIFEST} names no version of Runner.Listener")]
    Unnamed,
}

/// The version of the runner in this directory.
pub(super) fn version(dir: &Path) -> Result<Version, ManifestError> {
    let manifest: Manifest = serde_json::from_slice(&read(&dir.join(MANIFEST))?)?;
    let mut parts = manifest.targets.values().flat_map(BTreeMap::keys);
    parts.find_map(|part| part.strip_prefix(PART)?.parse().ok()).ok_or(ManifestError::Unnamed)
}

/// Once it was a job's, what is in there may be anything: a pipe that nobody writes to, a link to elsewhere, no end.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(open(path, flags, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a plain file"));
    }
    let mut bytes = Vec::new();
    file.take(LIMIT).read_to_end(&mut bytes).map(|_| bytes)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    /// As it comes with the runner, shortened.
    const REAL: &str = r#"{
      "runtimeTarget": {"name": ".NETCoreApp,Version=v8.0/linux-x64", "signature": ""},
      "compilationOptions": {},
      "targets": {
        ".NETCoreApp,Version=v8.0": {},
        ".NETCoreApp,Version=v8.0/linux-x64": {
          "Newtonsoft.Json/13.0.3": {"runtime": {"lib/net6.0/Newtonsoft.Json.dll": {"assemblyVersion": "13.0.0.0"}}},
          "Runner.Listener/2.336.0": {"dependencies": {"Newtonsoft.Json": "13.0.3", "Runner.Common": "1.0.0"}},
          "Runner.Common/1.0.0": {}
        }
      },
      "libraries": {"Runner.Listener/2.336.0": {"type": "project", "serviceable": false, "sha512": ""}}
    }"#;

    fn told(write: impl FnOnce(&Path)) -> Result<Version, String> {
        let dir = tempfile::tempdir().expect("dir");
        fs::create_dir(dir.path().join("bin")).expect("made");
        write(&dir.path().join(MANIFEST));
        version(dir.path()).map_err(|error| crate::error::in_full(&error))
    }

    #[test]
    fn a_runner_is_of_the_version_of_its_listener_and_of_no_other_part() {
        assert_eq!(told(|path| fs::write(path, REAL).expect("written")), "2.336.0".parse());
        let others = REAL.replace("Runner.Listener/2.336.0", "Runner.Listener/2.336.0-mine");
        let error = told(|path| fs::write(path, others).expect("written")).expect_err("none");
        assert!(error.ends_with("names no version of Runner.Listener"), "{error}");
    }

    #[test]
    fn a_runner_without_a_version_says_why() {
        let error = told(|_| {}).expect_err("none");
        assert!(error.contains("bin/Runner.Listener.deps.json: No such file"), "{error}");
        let error = told(|path| fs::write(path, "[]").expect("written")).expect_err("none");
        assert!(error.starts_with("could not understand"), "{error}");
    }

    #[test]
    fn what_a_job_put_in_its_place_is_neither_followed_nor_waited_for() {
        let elsewhere = tempfile::NamedTempFile::new().expect("file");
        fs::write(elsewhere.path(), REAL).expect("written");
        told(|path| symlink(elsewhere.path(), path).expect("linked")).expect_err("a link");
        let pipe = |path: &Path| {
            let made = std::process::Command::new("mkfifo").arg(path).status().expect("mkfifo");
            assert!(made.success());
        };
        let error = told(pipe).expect_err("a pipe");
        assert!(error.ends_with("not a plain file"), "{error}");
        let endless = |path: &Path| {
            let file = File::create(path).expect("file");
            file.set_len(1 << 40).expect("length");
        };
        told(endless).expect_err("a terabyte");
    }
}
