//! `miglet listener`: what a job's processes inherit.

use std::{os::unix::fs::PermissionsExt, path::PathBuf, process::Command};

use crate::world::only_root;

/// Tells what it is.
const TELL: &str = "#!/bin/sh\n\
    echo \"$1\"; umask; ulimit -c; ulimit -Hc; id -u; id -ru; id -G; cat /proc/self/oom_score_adj; echo $HOME $USER\n";

struct Listener {
    dir: tempfile::TempDir,
}

impl Listener {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let listener = Self { dir };
        std::fs::write(listener.program(), TELL).unwrap();
        std::fs::set_permissions(listener.program(), std::fs::Permissions::from_mode(0o755)).unwrap();
        listener
    }

    fn program(&self) -> PathBuf {
        self.dir.path().join("tell")
    }

    /// What it says when started by a process with this OOM score.
    fn says(&self, score: &str, arguments: &[&str]) -> (Vec<String>, String) {
        let start = format!("echo {score} > /proc/self/oom_score_adj; exec \"$@\"");
        let mut command = Command::new("sh");
        command.args(["-c", &start, "sh", env!("CARGO_BIN_EXE_miglet"), "listener"]).args(arguments);
        let output = command.arg(self.program()).current_dir(self.dir.path()).output().unwrap();
        let lines = String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
        (lines, String::from_utf8(output.stderr).unwrap())
    }
}

#[test]
fn a_listener_makes_no_core_dumps_and_its_files_are_its_own() {
    let (said, problems) = Listener::new().says("500", &[]);
    assert_eq!(said.get(..4).unwrap_or_default(), ["run", "0077", "0", "0"], "{problems}");
    let own = rustix::process::geteuid().as_raw().to_string();
    assert_eq!((&said[4], said[7].as_str()), (&own, "500"), "neither its user nor a job's score is changed");
}

#[test]
fn a_listener_becomes_its_user_for_good_and_is_the_first_to_go_when_memory_runs_out() {
    if !only_root("can become someone else; the real machine's tests do") {
        return;
    }
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
    let entry: Vec<&str> = passwd.lines().find(|line| line.starts_with("nobody:")).unwrap().split(':').collect();
    let (said, problems) = Listener::new().says("-500", &["--user", "nobody"]);
    assert_eq!(said.get(4..8).unwrap_or_default(), [entry[2], entry[2], entry[3], "0"], "{said:?} {problems}");
    assert_eq!(said[8], format!("{} nobody", entry[5]));
}

#[test]
fn a_listener_without_its_user_or_its_cgroup_does_not_start() {
    for arguments in [["--user", "no-such-user"], ["--members", "/nonexistent/cgroup.procs"]] {
        let (said, problems) = Listener::new().says("500", &arguments);
        assert!(said.is_empty() && problems.contains("could not"), "{said:?} {problems}");
    }
}
