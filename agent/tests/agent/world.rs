//! One machine: directories, a metadata server, a scripted runner, an agent process that can be killed and restarted.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use miglet_agent::{paths::Paths, record, runner::Runner};
use rustix::process::{Pid, Signal};
use tokio::{
    process::{Child, Command},
    task::JoinHandle,
};

use crate::{
    metadata::Metadata,
    operator::{Identity, Operator, PATIENCE},
};

/// The machine and, beside it, the operator's identity.
pub(crate) struct World {
    pub(crate) identity: Identity,
    pub(crate) metadata: Metadata,
    pub(crate) paths: Paths,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) metadata_host: String,
    serving: JoinHandle<()>,
}

/// The listener's usual life, steered by files: `go` gives it a job, `end` ends the job.
pub(crate) const RUNNER: &str = r#"#!/bin/bash
echo "$ACTIONS_RUNNER_INPUT_JITCONFIG" > jit
umask > umask
unset ACTIONS_RUNNER_INPUT_JITCONFIG
trap 'echo "Exiting..."; [ ! -e go ] || echo "2026-11-21 00:00:02Z: Job build completed with result: Failed"; exit 0' INT
echo "√ Connected to GitHub"
echo "Current runner version: '2.336.0'"
echo "2026-11-21 00:00:00Z: Listening for Jobs"
until [ -e go ]; do sleep 0.02; done
echo "2026-11-21 00:00:01Z: Running job: build"
GITHUB_REPOSITORY=acme/app GITHUB_WORKFLOW=ci GITHUB_RUN_ID=42 GITHUB_RUN_ATTEMPT=1 GITHUB_JOB=build-key \
    bash -e "$ACTIONS_RUNNER_HOOK_JOB_STARTED"
until [ -e end ]; do sleep 0.02; done
echo "2026-11-21 00:00:02Z: Job build completed with result: Succeeded"
"#;

impl World {
    pub(crate) async fn new(runner: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("mig").tempdir().expect("dir");
        let paths = Paths { state: dir.path().join("s"), data: dir.path().join("d"), runner: dir.path().join("r") };
        std::fs::create_dir_all(paths.runner.join("bin")).expect("runner");
        std::fs::write(dir.path().join("config.yaml"), "").expect("configuration");
        std::fs::write(paths.listener(), runner).expect("listener");
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(paths.listener(), executable).expect("mode");
        let metadata = Metadata::default();
        let (metadata_host, serving) = metadata.clone().serve().await;
        Self { identity: Identity::new(), metadata, paths, dir, metadata_host, serving }
    }

    pub(crate) async fn operator(&self) -> Operator {
        Operator::start(&self.identity, "127.0.0.1:0").await
    }

    /// Where the operator is and what its CA is, agents learn from the instance's attributes.
    pub(crate) fn introduce(&self, operator: &Operator) {
        let attributes = [
            ("miglet-endpoint", format!("https://{}", operator.address)),
            ("miglet-ca", self.identity.ca.clone()),
            ("miglet-audience", "fleet".to_owned()),
        ];
        let attributes = attributes.map(|(name, value)| (name.to_owned(), value));
        *self.metadata.attributes.lock().expect("lock") = attributes.into();
    }

    pub(crate) fn agent(&self, operator: &Operator) -> Child {
        self.agent_with(operator, &[])
    }

    /// An agent with further environment.
    pub(crate) fn agent_with(&self, operator: &Operator, environment: &[(&str, &str)]) -> Child {
        self.introduce(operator);
        self.spawn_with(environment)
    }

    /// An agent that knows what the metadata server says.
    pub(crate) fn spawn(&self) -> Child {
        self.spawn_with(&[])
    }

    fn spawn_with(&self, environment: &[(&str, &str)]) -> Child {
        let mut command = self.command("run");
        command.envs(environment.iter().copied()).stderr(self.log()).kill_on_drop(true).spawn().expect("agent starts")
    }

    /// What the cloud announces from now on.
    pub(crate) fn announce(&self, path: &'static str, value: &'static str) {
        self.metadata.notices.send_modify(|values| {
            values.insert(path, value);
        });
    }

    /// One that may leave core files in the machine's directory, as far as its user is concerned.
    pub(crate) fn dumping(&self) -> Command {
        let mut command = self.begun_by("sh", &["-c", "ulimit -c unlimited; exec \"$@\"", "sh"]);
        command.current_dir(self.dir.path()).stderr(self.log());
        command
    }

    /// An agent that another program becomes, whose arguments end with the agent's command line.
    pub(crate) fn begun_by(&self, program: &str, arguments: &[&str]) -> Command {
        self.begun_by_for("run", program, arguments)
    }

    /// Likewise, for another subcommand.
    pub(crate) fn begun_by_for(&self, subcommand: &str, program: &str, arguments: &[&str]) -> Command {
        let agent = self.command(subcommand);
        let mut command = Command::new(program);
        command.args(arguments).arg(agent.as_std().get_program()).args(agent.as_std().get_args());
        for (name, value) in agent.as_std().get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    pub(crate) fn command(&self, subcommand: &str) -> Command {
        self.command_of(env!("CARGO_BIN_EXE_miglet").as_ref(), subcommand)
    }

    /// Another program in the place of the agent's.
    pub(crate) fn command_of(&self, program: &Path, subcommand: &str) -> Command {
        let mut command = Command::new(program);
        command.arg(subcommand).stdin(Stdio::null());
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("MIGLET_")) {
            command.env_remove(name);
        }
        command.env("MIGLET_CACHE_DIR", self.cache_dir());
        command.env("MIGLET_CONFIG", self.config_file());
        command.env("GCE_METADATA_HOST", &self.metadata_host).env("MIGLET_BOOT_ID", "boot-1");
        command.env("MIGLET_STATE_DIR", &self.paths.state).env("MIGLET_DATA_DIR", &self.paths.data);
        command.env("MIGLET_RUNNER_DIR", &self.paths.runner).env("MIGLET_LOG_LEVEL", "trace");
        command
    }

    pub(crate) fn cache_dir(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    /// Empty until a test writes it.
    pub(crate) fn config_file(&self) -> PathBuf {
        self.dir.path().join("config.yaml")
    }

    /// What the agents logged.
    pub(crate) fn log_lines(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    /// Whether the metadata server was told this.
    pub(crate) fn told(&self, text: &str) -> bool {
        self.metadata.statuses.lock().expect("lock").iter().any(|status| status.contains(text))
    }

    fn log(&self) -> std::fs::File {
        std::fs::OpenOptions::new().create(true).append(true).open(self.dir.path().join("log")).expect("log")
    }

    pub(crate) fn touch(&self, name: &str) {
        std::fs::write(self.paths.runner.join(name), "").expect("touched");
    }

    pub(crate) fn runner_file(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.paths.runner.join(name)).ok().map(|text| text.trim().to_owned())
    }

    pub(crate) fn record(&self) -> Option<Runner> {
        record::read(&self.paths.runner_record()).expect("a record is whole at any time")
    }

    /// Every file below the machine's directory that holds this text.
    pub(crate) fn files_with(&self, text: &str) -> Vec<PathBuf> {
        let output = std::process::Command::new("grep").args(["-rlF", text]).arg(self.dir.path()).output();
        String::from_utf8(output.expect("grep").stdout).expect("paths").lines().map(PathBuf::from).collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.serving.abort();
        let Ok(Some(runner)) = record::read(&self.paths.runner_record()) else { return };
        if let Some(shim) = runner.shim {
            shim.signal(Signal::KILL);
        }
        if let Some(listener) = runner.listener.filter(|l| l.is_alive()).and_then(|l| Pid::from_raw(l.pid)) {
            rustix::process::kill_process_group(listener, Signal::KILL).ok();
        }
    }
}

/// Waits until this holds.
pub(crate) async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "never {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Whether the rest of a test can be done here: only root can do this. Said aloud where it cannot.
pub(crate) fn only_root(can: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: only root {can}");
    }
    root
}

pub(crate) fn kill(child: &Child, signal: Signal) {
    let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed())).expect("running");
    rustix::process::kill_process(pid, signal).expect("signalled");
}

/// The most memory a process ever had.
pub(crate) fn peak_kb(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a figure");
    peak.trim().trim_end_matches(" kB").parse().expect("a number")
}
