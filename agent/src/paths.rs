//! Where the agent keeps what; shim, hook and agent agree through this.
//!
//! The state directory is root's alone (key, registration marker, the runner's record, the sockets that take orders).
//! The data directory may be entered by the runner's user: the hook scripts and their socket.

use std::path::{Path, PathBuf};

/// The agent's directories and the files in them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// Root only.
    pub state: PathBuf,
    /// Readable by the runner.
    pub data: PathBuf,
    /// The runner's installation.
    pub runner: PathBuf,
}

impl Paths {
    /// As far as the state directory leads: where the rest is, is told there.
    #[must_use]
    pub fn of_state(state: PathBuf) -> Self {
        Self { state, data: PathBuf::new(), runner: PathBuf::new() }
    }

    /// The agent's private key, PEM.
    #[must_use]
    pub fn key(&self) -> PathBuf {
        self.state.join("agent.key")
    }

    /// Exists once a registration was accepted: there is never a second.
    #[must_use]
    pub fn registration(&self) -> PathBuf {
        self.state.join("registration.json")
    }

    /// The shim's record of the runner.
    #[must_use]
    pub fn runner_record(&self) -> PathBuf {
        self.state.join("runner.json")
    }

    /// What the shim is told at its start, everything but the registration.
    #[must_use]
    pub fn assignment(&self) -> PathBuf {
        self.state.join("assignment.json")
    }

    /// Where the shim takes the registration, once.
    #[must_use]
    pub fn handover_socket(&self) -> PathBuf {
        self.state.join("handover.sock")
    }

    /// Where the shim serves the agent.
    #[must_use]
    pub fn shim_socket(&self) -> PathBuf {
        self.state.join("shim.sock")
    }

    /// What the shim said last.
    #[must_use]
    pub fn shim_log(&self) -> PathBuf {
        self.state.join("shim.log")
    }

    /// What the agent said last, and its predecessor.
    #[must_use]
    pub fn agent_log(&self) -> PathBuf {
        self.state.join("agent.log")
    }

    /// Where the agent tells its status.
    #[must_use]
    pub fn agent_socket(&self) -> PathBuf {
        self.state.join("agent.sock")
    }

    /// Where hooks leave their message.
    #[must_use]
    pub fn hook_socket(&self) -> PathBuf {
        self.data.join("hook.sock")
    }

    /// Events that wait for their ack. In the data directory: it is on the disk, the state directory is not.
    #[must_use]
    pub fn event_spool(&self) -> PathBuf {
        self.data.join("events.spool")
    }

    /// The script the runner calls for this event.
    #[must_use]
    pub fn hook_script(&self, event: &str) -> PathBuf {
        self.data.join(format!("{event}.sh"))
    }

    /// The listener's executable.
    #[must_use]
    pub fn listener(&self) -> PathBuf {
        self.runner.join("bin/Runner.Listener")
    }

    /// Touched by the runner when its self-update is done.
    #[must_use]
    pub fn update_finished(&self) -> PathBuf {
        self.runner.join("update.finished")
    }
}

/// Makes a directory, with its parents, that has this mode.
///
/// # Errors
/// When it cannot be made, or belongs to someone who does not let us.
pub fn make_dir(path: &Path, mode: u32) -> std::io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    std::fs::DirBuilder::new().recursive(true).mode(mode).create(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}
