//! The port to the machine itself. Its real form is switched on by the packaged unit only; a simulated machine is a
//! process and can touch nothing but itself.

use std::{path::PathBuf, time::Duration};

use async_trait::async_trait;
use tokio::{
    process::Command,
    time::{interval, timeout},
};

use crate::notify::{self, Notice};

/// What the agent can do to its machine.
#[async_trait]
pub trait Machine: Send + Sync {
    /// Turns it off. The agent ends after this.
    async fn power_off(&self) -> Result<(), MachineError>;

    /// The agent's settings are good: whoever waits for its start need wait no longer.
    fn ready(&self) {}

    /// The agent's main loop turns. Told every [`ALIVE_PERIOD`].
    fn alive(&self) {}
}

/// How often a machine is told that the agent is alive.
pub const ALIVE_PERIOD: Duration = Duration::from_secs(10);

/// Waits for this, and keeps telling the machine that it does.
pub async fn alive_during<T>(machine: &dyn Machine, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    let mut alive = interval(ALIVE_PERIOD);
    loop {
        tokio::select! {
            done = &mut work => return done,
            _ = alive.tick() => machine.alive(),
        }
    }
}

/// The machine did not obey.
#[derive(Debug, thiserror::Error)]
#[error("could not power off the machine with {program}: {reason}")]
pub struct MachineError {
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
            Self::Systemd => Box::new(Systemd { systemctl: PathBuf::from("systemctl") }),
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
}

/// A machine run by systemd.
#[derive(Debug)]
pub struct Systemd {
    systemctl: PathBuf,
}

#[async_trait]
impl Machine for Systemd {
    async fn power_off(&self) -> Result<(), MachineError> {
        let failed = |reason: String| MachineError { program: self.systemctl.display().to_string(), reason };
        let mut command = Command::new(&self.systemctl);
        let output = timeout(Duration::from_secs(30), command.arg("poweroff").kill_on_drop(true).output());
        let output =
            output.await.map_err(|_| failed("no answer in 30 s".into()))?.map_err(|e| failed(e.to_string()))?;
        if output.status.success() {
            return Ok(());
        }
        Err(failed(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim())))
    }

    fn ready(&self) {
        notify::tell(Notice::Ready);
    }

    fn alive(&self) {
        notify::tell(Notice::Alive);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[derive(Default)]
    struct Watched(AtomicUsize);

    #[async_trait]
    impl Machine for Watched {
        async fn power_off(&self) -> Result<(), MachineError> {
            Ok(())
        }

        fn alive(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_watchdog_is_fed_during_long_work_and_starves_with_it() {
        let watched = Watched::default();
        alive_during(&watched, tokio::time::sleep(ALIVE_PERIOD * 6)).await;
        let fed = watched.0.load(Ordering::Relaxed);
        assert!((6..=7).contains(&fed), "{fed}");
    }

    #[tokio::test]
    async fn a_machine_that_refuses_to_go_off_is_an_error_that_says_why() {
        let dir = tempfile::tempdir().expect("dir");
        let systemctl = dir.path().join("systemctl");
        std::fs::write(&systemctl, "#!/bin/sh\necho \"$1: inhibited\" >&2\nexit 1\n").expect("script");
        std::fs::set_permissions(&systemctl, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("mode");
        let error = Systemd { systemctl }.power_off().await.expect_err("refused").to_string();
        assert!(error.ends_with("poweroff: inhibited"), "{error}");
    }
}
