//! What this process knows of a pool besides its objects: lost with the process, and nothing depends on its surviving.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use jiff::Timestamp;

use super::{history::History, view::VmFact};

/// One pool's memory.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// How its VMs fared.
    pub history: History,
    /// Objects asked for without an answer, and until when they may appear.
    pub expected: BTreeMap<String, Timestamp>,
    /// When its status was last written.
    pub written: Option<Timestamp>,
    /// Since when it has too few runners.
    pub short_since: Option<Timestamp>,
}

impl Memory {
    /// Takes what one VM shows into account.
    pub fn history_of(&mut self, vm: &VmFact, now: Timestamp) {
        if vm.ready() {
            self.history.registered(&vm.uid);
        }
        if let Some(reason) = &vm.end {
            self.history.ended(&vm.uid, (reason, &vm.end_message), now);
        }
    }
}

/// The memories of all pools, by uid; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Memories(Arc<Mutex<HashMap<String, Memory>>>);

impl Memories {
    /// Changes a pool's memory and takes something from it.
    pub fn fold<T>(&self, uid: &str, change: impl FnOnce(&mut Memory) -> T) -> T {
        change(self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(uid.to_owned()).or_default())
    }

    /// Forgets a pool that is gone.
    pub fn forget(&self, uid: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }
}
