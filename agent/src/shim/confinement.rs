//! What the listener is and may: its user, its cgroup, its directories.

use std::{
    fs, io,
    os::unix::fs::lchown,
    path::{Path, PathBuf},
    process::Command,
};

use super::{ShimError, cgroup::Cgroup, failed};
use crate::user::Account;

/// How the listener is started.
#[derive(Debug)]
pub(super) struct Confinement {
    /// This program; found out at once, for after an upgrade the kernel calls it deleted.
    program: PathBuf,
    account: Option<Account>,
    /// The job's own.
    pub(super) cgroup: Option<Cgroup>,
}

impl Confinement {
    /// For this user; without one for a process that stands for a machine, which touches no cgroup.
    pub(super) fn new(user: Option<&str>) -> Result<Self, ShimError> {
        let program = std::env::current_exe().map_err(failed("find its own program"))?;
        let Some(user) = user else { return Ok(Self { program, account: None, cgroup: None }) };
        // Whether root is allowed was decided before a registration was asked for.
        let account = Some(Account::find(Path::new("/etc"), user, true)?);
        let cgroup = Cgroup::create().inspect_err(|error| {
            tracing::warn!(%error, "no cgroup of its own for the job: its processes are killed one by one");
        });
        Ok(Self { program, account, cgroup: cgroup.ok() })
    }

    /// Who the hooks run as, unless it is the shim's own user.
    pub(super) fn uid(&self) -> Option<u32> {
        self.account.as_ref().map(|account| account.uid)
    }

    /// The command that becomes the listener.
    pub(super) fn command(&self, listener: &Path) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("listener");
        if let Some(account) = &self.account {
            command.arg("--user").arg(&account.name);
        }
        if let Some(cgroup) = &self.cgroup {
            command.arg("--members").arg(cgroup.members());
        }
        command.arg(listener);
        command
    }

    /// Gives the runner what it writes: its own directory, the files in it, and all below `_diag` and `_work`. The rest,
    /// ten thousand files, stays root's, and the runner may still replace whole directories when it updates itself.
    pub(super) fn own(&self, runner: &Path) -> io::Result<()> {
        let Some(Account { uid, gid, .. }) = &self.account else { return Ok(()) };
        let give = |path: &Path| lchown(path, Some(*uid), Some(*gid));
        give(runner)?;
        for name in ["_diag", "_work"] {
            match fs::create_dir(runner.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => each(&runner.join(name), &give)?,
            }
        }
        for entry in fs::read_dir(runner)? {
            let entry = entry?;
            if !entry.file_type()?.is_dir() {
                give(&entry.path())?;
            }
        }
        Ok(())
    }
}

/// This path and all below it; links are not followed.
fn each(path: &Path, act: &impl Fn(&Path) -> io::Result<()>) -> io::Result<()> {
    act(path)?;
    if !path.symlink_metadata()?.is_dir() {
        return Ok(());
    }
    fs::read_dir(path)?.try_for_each(|entry| each(&entry?.path(), act))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    #[test]
    fn the_runner_owns_what_it_writes_and_nothing_its_links_lead_to() {
        // Only root can give something away; others can give it to themselves.
        let uid = if rustix::process::geteuid().is_root() { 54_321 } else { rustix::process::geteuid().as_raw() };
        let gid = if uid == 54_321 { 54_321 } else { rustix::process::getegid().as_raw() };
        let dir = tempfile::tempdir().expect("dir");
        let runner = dir.path().join("runner");
        fs::create_dir_all(runner.join("bin")).expect("bin");
        fs::create_dir_all(runner.join("_work/_tool/node")).expect("tools");
        for file in ["bin/Runner.Listener", "config.sh", "_work/_tool/node/file", "../outside"] {
            fs::write(runner.join(file), "").expect("file");
        }
        symlink(dir.path().join("outside"), runner.join("_work/link")).expect("link");
        let account = Account { name: "x".into(), uid, gid, groups: vec![], home: "/".into(), shell: "/bin/sh".into() };
        let confinement = Confinement { program: "/x".into(), account: Some(account), cgroup: None };
        confinement.own(&runner).expect("owned");
        let owner = |path: &str| runner.join(path).symlink_metadata().expect("there").uid();
        for path in ["", "config.sh", "_diag", "_work/_tool/node/file", "_work/link"] {
            assert_eq!(owner(path), uid, "{path}");
        }
        let own = rustix::process::geteuid().as_raw();
        for path in ["bin", "bin/Runner.Listener", "../outside"] {
            assert_eq!(owner(path), own, "{path}");
        }
    }
}
