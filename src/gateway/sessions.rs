//! The session table: where the gateway and the VM controller meet, in this process only.
//!
//! A session is opened with a generation; whoever closes or reports must show the same one, so that a connection that
//! dies late never touches its successor. What was last reported outlives the connection: silence is not news.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use tokio::sync::{mpsc, watch};

use super::{
    diagnostics::{Chunk, Diagnostics},
    events::{Event, EventKind, Heard},
    report::{Ack, Command, Report},
    settings::Policy,
};
use crate::wakes::{Key, Wakes};

mod view;

pub use self::view::AgentView;
use self::view::{idle_since, matter, result_since};

/// Commands that may wait for a slow connection; more are refused.
const COMMAND_QUEUE: usize = 8;
/// Commands of which an ack is kept: the latest. An order that is still waited for is sent again when its ack is not there.
const ASKED: usize = 64;

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
    /// Ids of what was sent, oldest first: an agent can ack anything, any number of times.
    asked: VecDeque<String>,
    acks: watch::Sender<u64>,
}

/// Who opens a session: what its hello says besides the report.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Introduction {
    /// Version of the agent.
    pub version: String,
    /// Minor version of the protocol it speaks.
    pub minor: u32,
}

impl Entry {
    /// An ack of this command counts from now on, one of the oldest does not any more.
    fn ask(&mut self, id: &str) {
        if self.asked.iter().any(|asked| asked == id) {
            return;
        }
        self.asked.push_back(id.to_owned());
        if self.asked.len() > ASKED
            && let Some(oldest) = self.asked.pop_front()
        {
            self.view.acks.remove(&oldest);
        }
    }

    /// Takes in what is known now. Whether that can change a decision.
    fn advance(&mut self, next: Report, now: Timestamp) -> bool {
        let view = &mut self.view;
        let news = matter(&next) != matter(&view.report);
        view.idle_since = idle_since(Some(view), &next, now);
        view.result_since = result_since(Some(view), &next, now);
        view.report = next;
        view.last_heard = now;
        news
    }
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
        let before = table.entries.get(&vm).map(|e| &e.view);
        let view = AgentView {
            connected: true,
            last_heard: now,
            idle_since: idle_since(before, &report, now),
            result_since: result_since(before, &report, now),
            events: before.map(|view| view.events.clone()).unwrap_or_default(),
            version: agent.version,
            minor: agent.minor,
            // It may be another process, which knows nothing of what the one before it promised: it is asked again, under
            // the same id, which the same process knows to have done.
            acks: BTreeMap::new(),
            diagnostics: before.and_then(|view| view.diagnostics.clone()),
            report,
        };
        let asked = table.entries.get(&vm).map(|entry| entry.asked.clone()).unwrap_or_default();
        table.unsupported.remove(&vm);
        let acks = watch::Sender::new(view.events.acked());
        table.entries.insert(vm.clone(), Entry { generation, view, commands, asked, acks });
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
        let news = entry.advance(next, now);
        drop(table);
        if news {
            self.wakes.wake(session.vm.clone());
        }
        true
    }

    /// Takes the answer to a command in; the first one counts.
    pub fn acked(&self, session: &Session, (id, ack): (String, Ack)) {
        let changed = self.update(session, |entry| {
            let news = entry.asked.contains(&id) && !entry.view.acks.contains_key(&id);
            if news {
                entry.view.acks.insert(id, ack);
            }
            news
        });
        if changed {
            self.wakes.wake(session.vm.clone());
        }
    }

    /// Takes a piece of diagnostics in; wakes the controller when they are whole.
    pub fn diagnosed(&self, session: &Session, chunk: Chunk) {
        let whole = self.update(session, |entry| {
            let Some(found) = entry.view.diagnostics.as_mut().filter(|found| !found.complete) else { return false };
            let found = Arc::make_mut(found);
            found.take(chunk);
            found.complete
        });
        if whole {
            self.wakes.wake(session.vm.clone());
        }
    }

    /// Changes what is known of an agent while this session is the one that speaks for it.
    fn update(&self, session: &Session, change: impl FnOnce(&mut Entry) -> bool) -> bool {
        let mut table = self.lock();
        let entry = table.entries.get_mut(&session.vm).filter(|e| e.generation == session.generation);
        entry.is_some_and(change)
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

    /// The acks of this session's events; `written` is what the RunnerVM's status says to be dealt with.
    #[must_use]
    pub fn acks(&self, session: &Session, written: u64) -> watch::Receiver<u64> {
        let mut table = self.lock();
        match table.entries.get_mut(&session.vm).filter(|e| e.generation == session.generation) {
            Some(entry) => {
                entry.view.events.resume(written);
                entry.acks.send_replace(entry.view.events.acked());
                entry.acks.subscribe()
            }
            None => watch::channel(written).1,
        }
    }

    /// Takes an event in; wakes the controller for what it has to write.
    #[must_use]
    pub fn event(&self, session: &Session, event: &Event, now: Timestamp) -> Heard {
        let mut table = self.lock();
        let Some(entry) = table.entries.get_mut(&session.vm).filter(|e| e.generation == session.generation) else {
            return Heard::Gone;
        };
        let heard = entry.view.events.hear(event);
        if heard == Heard::New {
            let next = entry.view.report.told(event);
            let waits = entry.view.events.waiting().next().is_some();
            if entry.advance(next, now) || waits {
                self.wakes.wake(session.vm.clone());
            }
        }
        // Also for a replay: its ack was lost.
        entry.acks.send_replace(entry.view.events.acked());
        heard
    }

    /// The status of this VM, as it is written, has these effects.
    pub fn settle(&self, vm: &Key, is_written: impl Fn(EventKind) -> bool) {
        let mut table = self.lock();
        if let Some(entry) = table.entries.get_mut(vm)
            && entry.view.events.settle(is_written)
        {
            entry.acks.send_replace(entry.view.events.acked());
        }
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
        entry.ask(id);
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

    /// Forgets a VM that is gone; its connection ends. Events that waited for a write are acked, for there is nothing
    /// left to write to, and returned.
    #[must_use]
    pub fn forget(&self, vm: &Key) -> Vec<EventKind> {
        let mut table = self.lock();
        table.rebooted.remove(vm);
        table.unsupported.remove(vm);
        let Some(mut entry) = table.entries.remove(vm) else { return Vec::new() };
        let waiting = entry.view.events.waiting().collect();
        entry.view.events.settle(|_| true);
        entry.acks.send_replace(entry.view.events.acked());
        waiting
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

impl Session {
    /// The VM it speaks for.
    #[must_use]
    pub fn vm(&self) -> &Key {
        &self.vm
    }
}

#[cfg(test)]
mod tests;
