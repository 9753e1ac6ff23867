//! The port to the machine itself. Its real form is switched on by the packaged unit only; a simulated machine is a process
//! and can touch nothing but itself.

use std::{
    io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use async_trait::async_trait;
use tokio::{io::AsyncWriteExt, process::Command, time::timeout};

use crate::{
    firewall::{MetadataAccess, ruleset},
    notify,
    user::{Account, UserError},
};

/// What the shim runs in on a machine run by systemd: limits of its own, and none of the agent's hardening.
const RUNNER_UNIT: &str = "miglet-runner.service";
const KEEP_AWAY: &str = "keep jobs from the metadata server";
/// The timer that ends a machine nobody ended. Packaged with the default age, for agents that never come so far.
const LAST_RESORT: &str = "miglet-last-resort.timer";
/// The service manager answers at once, except while it is being overwhelmed.
const TIMEOUT: Duration = Duration::from_secs(30);

/// What the agent can do to its machine. A machine that cannot do something refuses.
#[async_trait]
pub trait Machine: Send + Sync {
    /// Turns it off. The agent ends after this.
    async fn power_off(&self) -> Result<(), MachineError>;

    /// Has it turned off at this age, counted from its boot, by something that does not depend on this agent; never
    /// where there is none. Asked again, the last age holds.
    async fn limit_lifetime(&self, age: Option<Duration>) -> Result<(), MachineError>;

    /// Whether that was asked for since its boot.
    fn has_limited_lifetime(&self) -> bool {
        false
    }

    /// Makes sure that jobs get no more than they should. Asked before the operator is called, and again right before
    /// a runner is started.
    async fn confine(&self, _jobs: &Jobs) -> Result<(), MachineError> {
        Ok(())
    }

    /// Starts `miglet shim` where it outlives this agent.
    async fn start_shim(&self, _program: &Path, _state: &Path) -> Result<(), MachineError> {
        Err(MachineError::refused("start the runner's supervisor"))
    }

    /// The user the runner runs as; `None` for the agent's own.
    fn runner_user<'a>(&self, _jobs: &'a Jobs) -> Option<&'a str> {
        None
    }

    /// The agent's settings are good: whoever waits for its start need wait no longer.
    fn ready(&self) {}

    /// The agent's main loop turns. Told every [`ALIVE_PERIOD`].
    fn alive(&self) {}
}

/// What jobs are and may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Jobs {
    /// Who they run as.
    pub user: String,
    /// Whether that may be root.
    pub allow_root: bool,
    /// Whether they may have the machine's cloud identity.
    pub metadata_access: MetadataAccess,
}

/// How often a machine is told that the agent is alive.
pub const ALIVE_PERIOD: Duration = Duration::from_secs(10);

/// The machine did not obey.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// A program did not do its work.
    #[error("could not {action} with {program}: {reason}{advice}")]
    Program {
        /// What was tried.
        action: &'static str,
        /// Which program.
        program: String,
        /// Why not.
        reason: String,
        /// What to do.
        advice: &'static str,
    },
    /// Nobody to run jobs as.
    #[error(transparent)]
    User(#[from] UserError),
    /// They would lock the agent out.
    #[error(
        "jobs that run as root cannot be kept from the metadata server: set runner-metadata-access to allowed as well"
    )]
    RootAccess,
    /// The operating system said no.
    #[error("could not {action}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
}

impl MachineError {
    fn refused(action: &'static str) -> Self {
        Self::Io { action, source: io::ErrorKind::Unsupported.into() }
    }
}

/// Which machine this is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// A process that stands for a machine: its end is the power-off.
    #[default]
    Process,
    /// A machine run by systemd.
    Systemd,
}

impl Kind {
    /// The machine of this kind.
    #[must_use]
    pub fn machine(self) -> Box<dyn Machine> {
        match self {
            Self::Process => Box::new(Process),
            Self::Systemd => Box::new(Systemd::default()),
        }
    }
}

/// A simulated machine.
#[derive(Debug)]
pub struct Process;

#[async_trait]
impl Machine for Process {
    async fn power_off(&self) -> Result<(), MachineError> {
        Ok(())
    }

    /// A process that must not outlive its world is ended by who started it.
    async fn limit_lifetime(&self, _: Option<Duration>) -> Result<(), MachineError> {
        Ok(())
    }

    async fn start_shim(&self, program: &Path, state: &Path) -> Result<(), MachineError> {
        let mut command = Command::new(program);
        command.arg("shim").arg("--state-dir").arg(state);
        // Not the agent's pipes: they die with it. It keeps its log itself.
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut child =
            spawned.map_err(|source| MachineError::Io { action: "start the runner's supervisor", source })?;
        tokio::spawn(async move { child.wait().await });
        Ok(())
    }
}

/// A machine run by systemd.
#[derive(Debug)]
pub struct Systemd {
    /// Where its programs are; empty: in the search path.
    bin: PathBuf,
    etc: PathBuf,
    /// The service manager's own folder until the next boot.
    units: PathBuf,
}

impl Default for Systemd {
    fn default() -> Self {
        Self { bin: PathBuf::new(), etc: PathBuf::from("/etc"), units: PathBuf::from("/run/systemd/system") }
    }
}

impl Systemd {
    /// Makes the jobs' user unless it is there; with a home and a login shell, as jobs expect them of GitHub's own
    /// machines.
    ///
    /// # Errors
    /// When it cannot be made, or must not be used.
    pub async fn create_user(&self, jobs: &Jobs) -> Result<(), MachineError> {
        match Account::find(&self.etc, &jobs.user, jobs.allow_root) {
            Err(UserError::Missing(name)) => {
                let arguments = ["--create-home", "--user-group", "--shell", "/bin/bash", "--", &name];
                self.run("make the jobs' user", "useradd", &arguments, "").await
            }
            found => Ok(found.map(drop)?),
        }
    }

    /// Whether jobs could be confined; changes nothing.
    ///
    /// # Errors
    /// Why they could not.
    pub async fn could_confine(&self, jobs: &Jobs) -> Result<Account, MachineError> {
        let (account, rules) = self.rules(jobs)?;
        if jobs.metadata_access == MetadataAccess::Blocked {
            self.run(KEEP_AWAY, "nft", &["--check", "-f", "-"], &rules).await?;
        }
        Ok(account)
    }

    fn rules(&self, jobs: &Jobs) -> Result<(Account, String), MachineError> {
        let account = Account::find(&self.etc, &jobs.user, jobs.allow_root)?;
        if account.uid == 0 && jobs.metadata_access == MetadataAccess::Blocked {
            return Err(MachineError::RootAccess);
        }
        let rules = ruleset(jobs.metadata_access, account.uid);
        Ok((account, rules))
    }

    /// Writes the timer's age over the packaged one; true unless it was there.
    fn age(&self, age: Duration) -> io::Result<bool> {
        let path = self.age_file();
        // The empty one takes back the packaged one.
        let text = format!("[Timer]\nOnBootSec=\nOnBootSec={}\n", age.as_secs());
        if std::fs::read_to_string(&path).is_ok_and(|present| present == text) {
            return Ok(false);
        }
        path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        std::fs::write(path, text).map(|()| true)
    }

    fn age_file(&self) -> PathBuf {
        self.units.join(format!("{LAST_RESORT}.d/age.conf"))
    }

    /// Runs a program to its end, within a bound.
    async fn run(
        &self,
        action: &'static str,
        program: &str,
        arguments: &[&str],
        input: &str,
    ) -> Result<(), MachineError> {
        let failed = |reason: String| {
            let path = self.bin.join(program).display().to_string();
            MachineError::Program { action, advice: advice(program), program: path, reason }
        };
        let mut command = Command::new(self.bin.join(program));
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let ended = async {
            let mut child = command.spawn()?;
            if let Some(mut stdin) = child.stdin.take() {
                // One that does not read its input says why itself.
                stdin.write_all(input.as_bytes()).await.ok();
            }
            child.wait_with_output().await
        };
        let ended =
            timeout(TIMEOUT, ended).await.map_err(|_| failed(format!("no answer in {} s", TIMEOUT.as_secs())))?;
        let output = ended.map_err(|error| failed(error.to_string()))?;
        if output.status.success() {
            return Ok(());
        }
        Err(failed(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim())))
    }
}

#[async_trait]
impl Machine for Systemd {
    async fn power_off(&self) -> Result<(), MachineError> {
        self.run("power off the machine", "systemctl", &["poweroff"], "").await
    }

    /// The age counts from the boot, so neither an upgrade nor another setting makes a machine younger.
    async fn limit_lifetime(&self, age: Option<Duration>) -> Result<(), MachineError> {
        const ACTION: &str = "arm the timer of the machine's last resort";
        let Some(age) = age else { return self.run(ACTION, "systemctl", &["stop", LAST_RESORT], "").await };
        let changed = self.age(age).map_err(|source| MachineError::Io { action: ACTION, source })?;
        if !changed && self.run(ACTION, "systemctl", &["is-active", LAST_RESORT], "").await.is_ok() {
            return Ok(());
        }
        self.run(ACTION, "systemctl", &["daemon-reload"], "").await?;
        self.run(ACTION, "systemctl", &["restart", LAST_RESORT], "").await
    }

    fn has_limited_lifetime(&self) -> bool {
        self.age_file().exists()
    }

    async fn confine(&self, jobs: &Jobs) -> Result<(), MachineError> {
        let (_, rules) = self.rules(jobs)?;
        match self.run(KEEP_AWAY, "nft", &["-f", "-"], &rules).await {
            // There is nothing to be removed where nothing could be made.
            Err(error) if jobs.metadata_access == MetadataAccess::Allowed => {
                tracing::debug!(%error, "no rules removed");
                Ok(())
            }
            applied => applied,
        }
    }

    async fn start_shim(&self, _program: &Path, _state: &Path) -> Result<(), MachineError> {
        // Its place in the order of units is for the shutdown, where Docker goes after it. At the start it would wait for a
        // Docker that is still starting, and use up its registration with that.
        let start = ["start", "--job-mode=ignore-dependencies", RUNNER_UNIT];
        self.run("start the runner's supervisor", "systemctl", &start, "").await
    }

    fn runner_user<'a>(&self, jobs: &'a Jobs) -> Option<&'a str> {
        Some(&jobs.user)
    }

    fn ready(&self) {
        notify::tell(notify::State::Ready);
    }

    fn alive(&self) {
        notify::tell(notify::State::Alive);
    }
}

fn advice(program: &str) -> &'static str {
    if program == "nft" { "; install nftables, or set runner-metadata-access to allowed" } else { "" }
}

#[cfg(test)]
mod tests;
