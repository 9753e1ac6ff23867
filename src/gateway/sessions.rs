//! The session table: where the gateway and the VM controller meet, in this process only.
//!
//! A session is opened with a generation; whoever closes or reports must show the same one, so that a connection that
//! dies late never touches its successor. What was last reported outlives the connection: silence is not news.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use tokio::sync::mpsc;

use super::report::{Command, Report};
use crate::wakes::{Key, Wakes};

/// Commands that may wait for a slow connection; more are refused.
const COMMAND_QUEUE: usize = 8;

/// What the VM controller sees of an agent.
#[derive(Clone, Debug, PartialEq)]
pub struct AgentView {
    /// Whether its stream is open now.
    pub connected: bool,
    /// When it was last heard, by our clock.
    pub last_heard: Timestamp,
    /// Since when it says that it has no job, in the same state, while it does.
    pub idle_since: Option<Timestamp>,
    /// Version it runs.
    pub version: String,
    /// What it last said, moved forward only.
    pub report: Report,
}

/// A right to speak for a VM until a newer one is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    vm: Key,
    generation: u64,
}

#[derive(Debug)]
struct Entry {
    generation: u64,
    view: AgentView,
    commands: mpsc::Sender<Command>,
}

/// The agent cannot be told anything now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// There is no open session.
    #[error("the agent is not connected")]
    NotConnected,
    /// It does not take its commands.
    #[error("the agent does not take its commands")]
    Full,
}

/// The table; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Sessions {
    table: Arc<Mutex<Table>>,
    wakes: Wakes,
}

#[derive(Debug, Default)]
struct Table {
    entries: HashMap<Key, Entry>,
    rebooted: HashMap<Key, String>,
    generations: u64,
}

impl Sessions {
    /// A table that wakes the VM controller through `wakes`.
    #[must_use]
    pub fn new(wakes: Wakes) -> Self {
        Self { table: Arc::default(), wakes }
    }

    /// Opens a session for an agent that proved who it is; an older one of the same VM ends.
    #[must_use]
    pub fn open(&self, vm: Key, version: String, report: Report, now: Timestamp) -> (Session, mpsc::Receiver<Command>) {
        let (commands, receiver) = mpsc::channel(COMMAND_QUEUE);
        let mut table = self.lock();
        table.generations += 1;
        let generation = table.generations;
        let report = match table.entries.get(&vm) {
            Some(entry) => entry.view.report.advanced_to(report),
            None => report,
        };
        let idle_since = idle_since(table.entries.get(&vm).map(|e| &e.view), &report, now);
        let view = AgentView { connected: true, last_heard: now, idle_since, version, report };
        table.entries.insert(vm.clone(), Entry { generation, view, commands });
        drop(table);
        self.wakes.wake(vm.clone());
        (Session { vm, generation }, receiver)
    }

    /// Takes a report in; wakes the controller only for what it decides on. False when this session
    /// was replaced: the connection must end.
    #[must_use]
    pub fn report(&self, session: &Session, report: Report, now: Timestamp) -> bool {
        let mut table = self.lock();
        let Some(entry) = table.entries.get_mut(&session.vm).filter(|e| e.generation == session.generation) else {
            return false;
        };
        let next = entry.view.report.advanced_to(report);
        let news = matter(&next) != matter(&entry.view.report);
        entry.view.idle_since = idle_since(Some(&entry.view), &next, now);
        entry.view.report = next;
        entry.view.last_heard = now;
        drop(table);
        if news {
            self.wakes.wake(session.vm.clone());
        }
        true
    }

    /// The connection of this session is gone.
    pub fn close(&self, session: &Session) {
        let mut table = self.lock();
        let Some(entry) = table.entries.get_mut(&session.vm).filter(|e| e.generation == session.generation) else {
            return;
        };
        entry.view.connected = false;
        drop(table);
        self.wakes.wake(session.vm.clone());
    }

    /// Another boot of a bound VM called in with a valid identity: that VM is over.
    pub fn rebooted(&self, vm: &Key, boot_id: String) {
        self.lock().rebooted.insert(vm.clone(), boot_id);
        self.wakes.wake(vm.clone());
    }

    /// Whether another boot of this VM called in.
    #[must_use]
    pub fn was_rebooted(&self, vm: &Key) -> bool {
        self.lock().rebooted.contains_key(vm)
    }

    /// What is known of a VM's agent in this process.
    #[must_use]
    pub fn view(&self, vm: &Key) -> Option<AgentView> {
        self.lock().entries.get(vm).map(|entry| entry.view.clone())
    }

    /// Sends a command down the open stream.
    ///
    /// # Errors
    /// When there is none, or it does not take commands. Nothing was sent then.
    pub fn send(&self, vm: &Key, command: Command) -> Result<(), SendError> {
        let table = self.lock();
        let entry = table.entries.get(vm).filter(|e| e.view.connected).ok_or(SendError::NotConnected)?;
        entry.commands.try_send(command).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => SendError::Full,
            mpsc::error::TrySendError::Closed(_) => SendError::NotConnected,
        })
    }

    /// The VMs something is known of.
    #[must_use]
    pub fn known(&self) -> BTreeSet<Key> {
        let table = self.lock();
        table.entries.keys().chain(table.rebooted.keys()).cloned().collect()
    }

    /// Forgets a VM that is gone; its connection ends.
    pub fn forget(&self, vm: &Key) {
        let mut table = self.lock();
        table.entries.remove(vm);
        table.rebooted.remove(vm);
    }

    /// Open sessions.
    #[must_use]
    pub fn connected(&self) -> usize {
        self.lock().entries.values().filter(|e| e.view.connected).count()
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Since when the agent says that it has no job: a state that changed starts anew.
fn idle_since(before: Option<&AgentView>, report: &Report, now: Timestamp) -> Option<Timestamp> {
    let kept = before.filter(|view| view.report.state == report.state).and_then(|view| view.idle_since);
    report.jobless().then(|| kept.unwrap_or(now))
}

/// What of a report can change a decision. The rest can change with every message: an agent that makes it so must not
/// keep the controller, or GitHub, busy.
fn matter(report: &Report) -> Report {
    Report { health: None, error: String::new(), ..report.clone() }
}

impl Session {
    /// The VM it speaks for.
    #[must_use]
    pub fn vm(&self) -> &Key {
        &self.vm
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::report::AgentState;

    fn now() -> Timestamp {
        Timestamp::UNIX_EPOCH
    }

    #[test]
    fn a_late_close_does_not_touch_the_newer_session() {
        let sessions = Sessions::default();
        let (old, _old_commands) = sessions.open(Key::new("ci", "vm"), "1".into(), Report::default(), now());
        let (new, _commands) = sessions.open(Key::new("ci", "vm"), "1".into(), Report::default(), now());
        sessions.close(&old);
        assert!(sessions.view(new.vm()).expect("there").connected);
        assert!(!sessions.report(&old, Report::default(), now()), "a replaced session must end");
        assert!(sessions.report(&new, Report::default(), now()));
    }

    #[test]
    fn idleness_is_counted_from_the_first_report_of_one_state_without_a_job() {
        let at = |second| Timestamp::from_second(second).expect("a time");
        let says = |state, runner: &str| Report { state, runner_name: runner.into(), ..Report::default() };
        let sessions = Sessions::default();
        let (session, _commands) = sessions.open(Key::new("ci", "vm"), "1".into(), says(AgentState::Ready, ""), at(1));
        let since = |report, second| {
            assert!(sessions.report(&session, report, at(second)));
            sessions.view(session.vm()).expect("there").idle_since
        };
        assert_eq!(since(says(AgentState::Ready, ""), 2), Some(at(1)));
        assert_eq!(since(says(AgentState::Registering, "r"), 3), None, "a runner that starts may get a job");
        assert_eq!(since(says(AgentState::Idle, "r"), 4), Some(at(4)));
        assert_eq!(since(says(AgentState::Idle, "r"), 5), Some(at(4)));
        assert_eq!(since(says(AgentState::Busy, "r"), 6), None);
        assert_eq!(since(says(AgentState::Idle, "r"), 7), None, "busy once is busy");
    }

    #[tokio::test]
    async fn an_agent_that_only_changes_its_words_wakes_nobody() {
        use futures::StreamExt;
        let wakes = Wakes::default();
        let mut woken = Box::pin(wakes.stream(std::time::Duration::ZERO));
        let sessions = Sessions::new(wakes);
        let (session, _commands) = sessions.open(Key::new("ci", "vm"), "1".into(), Report::default(), now());
        assert!(woken.next().await.is_some(), "the session itself is news");
        for error in ["a", "b", "c"] {
            assert!(sessions.report(&session, Report { error: error.into(), ..Report::default() }, now()));
        }
        assert!(futures::poll!(woken.next()).is_pending());
        assert!(sessions.report(&session, Report { state: AgentState::Ready, ..Report::default() }, now()));
        assert!(futures::poll!(woken.next()).is_ready());
    }

    #[test]
    fn a_command_to_a_closed_session_is_an_error() {
        let sessions = Sessions::default();
        let (session, _commands) = sessions.open(Key::new("ci", "vm"), "1".into(), Report::default(), now());
        sessions.close(&session);
        let result = sessions.send(session.vm(), Command::Drain { reason: String::new() });
        assert_eq!(result, Err(SendError::NotConnected));
    }
}
