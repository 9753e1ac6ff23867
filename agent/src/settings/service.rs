//! The one thing settings may not say, depending on who started the agent: that a service which runs as root is no real
//! machine. Its jobs would be root, and nothing would keep them from the machine's cloud identity.

use super::{Environment, Settings, SettingsError};
use crate::machine::Kind;

/// Who started a process, and as whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// By systemd, as a service of its own.
    pub service: bool,
    /// As root.
    pub root: bool,
}

impl Start {
    /// This process's.
    #[must_use]
    pub fn own(environment: &Environment) -> Self {
        let parent = rustix::process::getppid().map_or(0, rustix::process::Pid::as_raw_pid);
        let service = by_systemd(environment, &std::process::id().to_string(), parent == 1);
        Self { service, root: rustix::process::geteuid().is_root() }
    }
}

/// What systemd sets is inherited by everything that a service starts: simulations, and tests, may well run in one. An
/// old systemd does not say which process is its own, but a process knows its parent.
fn by_systemd(environment: &Environment, own: &str, child_of_init: bool) -> bool {
    match environment.get("SYSTEMD_EXEC_PID") {
        Some(service) => service == own,
        None => child_of_init && environment.contains_key("INVOCATION_ID"),
    }
}

impl Settings {
    /// Whether an agent that was started like this may go to work with them.
    ///
    /// # Errors
    /// When its jobs would have the whole machine.
    pub fn suit(&self, start: Start) -> Result<(), SettingsError> {
        if self.machine != Kind::Process || !start.service || !start.root {
            return Ok(());
        }
        let problem = "machine is process, in a service that runs as root: jobs would be root and have the machine's cloud \
                       identity; start it with --machine systemd, as the packaged unit does";
        Err(SettingsError::Invalid(vec![problem.to_owned()]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_process_that_systemd_started_is_its_service() {
        let by = |pairs: &[(&str, &str)], init| {
            let environment = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            by_systemd(&environment, "7", init)
        };
        let (invocation, seven, eight) = (("INVOCATION_ID", "i"), ("SYSTEMD_EXEC_PID", "7"), ("SYSTEMD_EXEC_PID", "8"));
        assert!(by(&[invocation, seven], true) && by(&[seven], false) && by(&[invocation], true));
        assert!(!by(&[invocation, eight], true) && !by(&[invocation], false) && !by(&[], true));
    }
}
