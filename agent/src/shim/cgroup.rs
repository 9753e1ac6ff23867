//! The job's own cgroup, version 2, below the shim's unit. Its limits are the unit's; its use is that all of a job can be
//! killed in one write, whatever it forks meanwhile.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// A cgroup of version 2.
#[derive(Debug)]
pub(super) struct Cgroup {
    dir: PathBuf,
}

impl Cgroup {
    /// A new one named `job` below this process's own.
    pub(super) fn create() -> io::Result<Self> {
        let membership = fs::read_to_string("/proc/self/cgroup")?;
        Self::below(Path::new("/sys/fs/cgroup"), &membership)
    }

    fn below(root: &Path, membership: &str) -> io::Result<Self> {
        // On a hybrid hierarchy the line is there, but not below this root.
        let own = membership.lines().find_map(|line| line.strip_prefix("0::/")).ok_or(io::ErrorKind::Unsupported)?;
        if !root.join("cgroup.controllers").exists() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let dir = root.join(own).join("job");
        match fs::create_dir(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(Self { dir }),
        }
    }

    /// The file whose writer becomes a member.
    pub(super) fn members(&self) -> PathBuf {
        self.dir.join("cgroup.procs")
    }

    /// Kills every member; true when none is left.
    pub(super) fn kill(&self) -> bool {
        // Kernels before 5.14 lack it: there the shim's children are killed one by one.
        fs::write(self.dir.join("cgroup.kill"), "1").ok();
        let events = fs::read_to_string(self.dir.join("cgroup.events")).unwrap_or_default();
        !events.lines().any(|line| line == "populated 1")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a kernel would show of a unit.
    fn hierarchy() -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("dir");
        fs::write(root.path().join("cgroup.controllers"), "memory pids\n").expect("controllers");
        fs::create_dir_all(root.path().join("system.slice/miglet-runner.service")).expect("unit");
        root
    }

    #[test]
    fn a_job_gets_a_group_below_its_unit_and_is_killed_until_nothing_is_left() {
        let root = hierarchy();
        let cgroup = Cgroup::below(root.path(), "0::/system.slice/miglet-runner.service\n").expect("made");
        let dir = root.path().join("system.slice/miglet-runner.service/job");
        assert_eq!(cgroup.members(), dir.join("cgroup.procs"));
        fs::write(dir.join("cgroup.events"), "populated 1\nfrozen 0\n").expect("events");
        assert!(!cgroup.kill());
        assert_eq!(fs::read_to_string(dir.join("cgroup.kill")).expect("written"), "1");
        fs::write(dir.join("cgroup.events"), "populated 0\nfrozen 0\n").expect("events");
        assert!(cgroup.kill());
    }

    #[test]
    fn another_hierarchy_is_left_alone() {
        let root = hierarchy();
        assert!(Cgroup::below(root.path(), "12:pids:/system.slice/x.service\n").is_err());
        fs::remove_file(root.path().join("cgroup.controllers")).expect("removed");
        assert!(Cgroup::below(root.path(), "0::/system.slice/miglet-runner.service\n").is_err());
    }
}
