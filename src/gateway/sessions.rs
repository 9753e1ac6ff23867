//! The session table: where the gateway and the VM controller meet, in this process only.
//!
//! A session is opened with a generation; whoever closes or reports must show the same one, so that a connection that
//! dies late never touches its successor. What was last reported outlives the connection: silence is not news.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use tokio::sync::mpsc;

use super::{
    diagnostics::{Chunk, Diagnostics},
    report::{Ack, Command, Report},
    settings::Policy,
};
use crate::wakes::{Key, Wakes};

/// Commands that may wait for a slow connection; more are refused.
const COMMAND_QUEUE: usize = 8;
/// Acks kept of one agent; it can send any number.
const ACKS: usize = 64;

/// What the VM controller sees of an agent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AgentView {
    /// Whether its stream is open now.
    pub connected: bool,
    /// When it was last heard, by our clock.
    pub last_heard: Timestamp,
    /// Since when it says that it has no job, in the same state, while it does.
    pub idle_since: Option<Timestamp>,
    /// Version it runs.
    pub version: String,
    /// Minor version of the protocol it speaks.
    pub minor: u32,
    /// What it answered to commands, by their ids.
    pub acks: BTreeMap<String, Ack>,
    /// What it was asked for last, as far as it has come.
    pub diagnostics: Option<Arc<Diagnostics>>,
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
    commands: mpsc::Sender<(String, Command)>,
}

/// Who opens a session: what its hello says besides the report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Introduction {
    /// Version of the agent.
    pub version: String,
    /// Minor version of the protocol it speaks.
    pub minor: u32,
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
    unsupported: HashMap<Key, String>,
    policies: HashMap<String, Policy>,
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
    pub fn open(
        &self,
        vm: Key,
        agent: Introduction,
        report: Report,
        now: Timestamp,
    ) -> (Session, mpsc::Receiver<(String, Command)>) {
        let (commands, receiver) = mpsc::channel(COMMAND_QUEUE);
        let mut table = self.lock();
        table.generations += 1;
        let generation = table.generations;
        let report = match table.entries.get(&vm) {
            Some(entry) => entry.view.report.advanced_to(report),
            None => report,
        };
        let idle_since = idle_since(table.entries.get(&vm).map(|e| &e.view), &report, now);
        let before = table.entries.get(&vm).map(|entry| &entry.view);
        let view = AgentView {
            connected: true,
            last_heard: now,
            idle_since,
            version: agent.version,
            minor: agent.minor,
            acks: before.map(|view| view.acks.clone()).unwrap_or_default(),
            diagnostics: before.and_then(|view| view.diagnostics.clone()),
            report,
        };
        table.unsupported.remove(&vm);
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

    /// Takes the answer to a command in; the first one counts.
    pub fn acked(&self, session: &Session, (id, ack): (String, Ack)) {
        let changed = self.update(session, |view| {
            let news = view.acks.len() < ACKS && !view.acks.contains_key(&id);
            if news {
                view.acks.insert(id, ack);
            }
            news
        });
        if changed {
            self.wakes.wake(session.vm.clone());
        }
    }

    /// Takes a piece of diagnostics in; wakes the controller when they are whole.
    pub fn diagnosed(&self, session: &Session, chunk: Chunk) {
        let whole = self.update(session, |view| {
            let Some(found) = view.diagnostics.as_mut().filter(|found| !found.complete) else { return false };
            let found = Arc::make_mut(found);
            found.take(chunk);
            found.complete
        });
        if whole {
            self.wakes.wake(session.vm.clone());
        }
    }

    /// Changes what is known of an agent while this session is the one that speaks for it.
    fn update(&self, session: &Session, change: impl FnOnce(&mut AgentView) -> bool) -> bool {
        let mut table = self.lock();
        let entry = table.entries.get_mut(&session.vm).filter(|e| e.generation == session.generation);
        entry.is_some_and(|entry| change(&mut entry.view))
    }

    /// The diagnostics that came are kept elsewhere now.
    pub fn diagnostics_taken(&self, vm: &Key) {
        if let Some(entry) = self.lock().entries.get_mut(vm) {
            entry.view.diagnostics = None;
        }
    }

    /// What a pool says now, for all its VMs; these are woken when it is something new.
    pub fn set_policy(&self, pool_uid: &str, policy: Policy, vms: impl Iterator<Item = Key>) {
        let mut table = self.lock();
        if table.policies.get(pool_uid) == Some(&policy) {
            return;
        }
        table.policies.insert(pool_uid.to_owned(), policy);
        drop(table);
        vms.for_each(|vm| self.wakes.wake(vm));
    }

    /// What a pool said last, if it was looked at.
    #[must_use]
    pub fn policy(&self, pool_uid: &str) -> Option<Policy> {
        self.lock().policies.get(pool_uid).cloned()
    }

    /// Forgets a pool that is gone.
    pub fn forget_policy(&self, pool_uid: &str) {
        self.lock().policies.remove(pool_uid);
    }

    /// An agent of this VM speaks a version of the protocol that we do not.
    pub fn unsupported(&self, vm: &Key, why: &str) {
        let before = self.lock().unsupported.insert(vm.clone(), why.to_owned());
        if before.as_deref() != Some(why) {
            self.wakes.wake(vm.clone());
        }
    }

    /// Why this VM's agent cannot be talked to, if that was so when it last called in.
    #[must_use]
    pub fn why_unsupported(&self, vm: &Key) -> Option<String> {
        self.lock().unsupported.get(vm).cloned()
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

    /// Sends a command down the open stream, under an id that the agent does once.
    ///
    /// # Errors
    /// When there is none, or it does not take commands. Nothing was sent then.
    pub fn send(&self, vm: &Key, id: &str, command: Command) -> Result<(), SendError> {
        let mut table = self.lock();
        let entry = table.entries.get_mut(vm).filter(|e| e.view.connected).ok_or(SendError::NotConnected)?;
        let collects = matches!(command, Command::CollectDiagnostics);
        entry.commands.try_send((id.to_owned(), command)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => SendError::Full,
            mpsc::error::TrySendError::Closed(_) => SendError::NotConnected,
        })?;
        if collects {
            entry.view.diagnostics = Some(Arc::new(Diagnostics::awaited(id)));
        }
        Ok(())
    }

    /// The VMs something is known of.
    #[must_use]
    pub fn known(&self) -> BTreeSet<Key> {
        let table = self.lock();
        table.entries.keys().chain(table.rebooted.keys()).chain(table.unsupported.keys()).cloned().collect()
    }

    /// Forgets a VM that is gone; its connection ends.
    pub fn forget(&self, vm: &Key) {
        let mut table = self.lock();
        table.entries.remove(vm);
        table.rebooted.remove(vm);
        table.unsupported.remove(vm);
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
        let (old, _old_commands) =
            sessions.open(Key::new("ci", "vm"), Introduction::default(), Report::default(), now());
        let (new, _commands) = sessions.open(Key::new("ci", "vm"), Introduction::default(), Report::default(), now());
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
        let (session, _commands) =
            sessions.open(Key::new("ci", "vm"), Introduction::default(), says(AgentState::Ready, ""), at(1));
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
        let (session, _commands) =
            sessions.open(Key::new("ci", "vm"), Introduction::default(), Report::default(), now());
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
        let (session, _commands) =
            sessions.open(Key::new("ci", "vm"), Introduction::default(), Report::default(), now());
        sessions.close(&session);
        let result = sessions.send(session.vm(), "c", Command::CollectDiagnostics);
        assert_eq!(result, Err(SendError::NotConnected));
    }
}
