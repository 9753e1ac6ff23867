//! The port to the machine itself. Its real form is switched on by the packaged unit only; a simulated machine is a
//! process and can touch nothing but itself.

use std::{path::PathBuf, time::Duration};

use async_trait::async_trait;
use tokio::{process::Command, time::timeout};

/// The service manager answers at once, except while it is being overwhelmed.
const TIMEOUT: Duration = Duration::from_secs(30);

/// What the agent can do to its machine.
#[async_trait]
pub trait Machine: Send + Sync {
    /// Turns it off. The agent ends after this.
    async fn power_off(&self) -> Result<(), MachineError>;

    /// Has it turned off at this age, counted from its boot, by something that does not depend on this agent. Asked
    /// again, the first answer holds.
    async fn limit_lifetime(&self, age: Duration) -> Result<(), MachineError>;
}

/// The machine did not obey.
#[derive(Debug, thiserror::Error)]
#[error("could not {action} with {program}: {reason}")]
pub struct MachineError {
    action: &'static str,
    program: String,
    reason: String,
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
            Self::Systemd => Box::new(Systemd { bin: PathBuf::new() }),
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
    async fn limit_lifetime(&self, _: Duration) -> Result<(), MachineError> {
        Ok(())
    }
}

/// The timer that ends a machine nobody ended.
const LAST_RESORT: &str = "miglet-last-resort";

/// A machine run by systemd.
#[derive(Debug)]
pub struct Systemd {
    /// Where its programs are; empty: in the search path.
    bin: PathBuf,
}

impl Systemd {
    async fn run(&self, action: &'static str, program: &str, arguments: &[&str]) -> Result<String, MachineError> {
        let program = self.bin.join(program);
        let failed = |reason: String| MachineError { action, program: program.display().to_string(), reason };
        let output = timeout(TIMEOUT, Command::new(&program).args(arguments).kill_on_drop(true).output()).await;
        let output = output
            .map_err(|_| failed(format!("no answer in {} s", TIMEOUT.as_secs())))?
            .map_err(|e| failed(e.to_string()))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
        }
        Err(failed(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim())))
    }
}

#[async_trait]
impl Machine for Systemd {
    async fn power_off(&self) -> Result<(), MachineError> {
        self.run("power off the machine", "systemctl", &["poweroff"]).await.map(drop)
    }

    /// A timer of its own in the service manager. `--force`: a job that blocks the shutdown has had its time.
    async fn limit_lifetime(&self, age: Duration) -> Result<(), MachineError> {
        let action = "arm the timer of the machine's last resort";
        let timer = format!("{LAST_RESORT}.timer");
        // Armed by an agent before this one: an upgrade does not make a machine younger.
        if self.run(action, "systemctl", &["is-active", &timer]).await.is_ok() {
            return Ok(());
        }
        let (unit, when) = (format!("--unit={LAST_RESORT}"), format!("--on-boot={}s", age.as_secs()));
        let timer = ["--timer-property=AccuracySec=30s", "--property=Type=oneshot", "systemctl", "poweroff", "--force"];
        let arguments: Vec<&str> = [unit.as_str(), when.as_str()].into_iter().chain(timer).collect();
        self.run(action, "systemd-run", &arguments).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Programs that note how they are called and answer like this.
    fn systemd(script: &str) -> (tempfile::TempDir, Systemd) {
        let dir = tempfile::tempdir().expect("dir");
        for program in ["systemctl", "systemd-run"] {
            let path = dir.path().join(program);
            let text = format!("#!/bin/sh\necho \"{program} $*\" >> {}/calls\n{script}", dir.path().display());
            std::fs::write(&path, text).expect("script");
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("mode");
        }
        let bin = dir.path().to_owned();
        (dir, Systemd { bin })
    }

    #[tokio::test]
    async fn a_machine_that_refuses_to_go_off_is_an_error_that_says_why() {
        let (_dir, systemd) = systemd("echo \"$1: inhibited\" >&2\nexit 1\n");
        let error = systemd.power_off().await.expect_err("refused").to_string();
        assert!(error.ends_with("poweroff: inhibited"), "{error}");
    }

    #[tokio::test]
    async fn the_last_resort_is_a_timer_of_the_service_manager_and_armed_once() {
        let (dir, fresh) = systemd("case \"$1\" in is-active) exit 3;; esac\n");
        fresh.limit_lifetime(Duration::from_secs(86_700)).await.expect("armed");
        let calls = std::fs::read_to_string(dir.path().join("calls")).expect("calls");
        let armed = calls.lines().last().expect("a call");
        assert!(armed.starts_with("systemd-run --unit=miglet-last-resort --on-boot=86700s "), "{armed}");
        assert!(armed.ends_with("systemctl poweroff --force"), "{armed}");
        let (dir, armed) = systemd("exit 0\n");
        armed.limit_lifetime(Duration::from_secs(1)).await.expect("armed before");
        let calls = std::fs::read_to_string(dir.path().join("calls")).expect("calls");
        assert_eq!(calls, "systemctl is-active miglet-last-resort.timer\n");
    }
}
