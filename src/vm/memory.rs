//! What this process did to a VM and saw of it: lost with the process, and nothing depends on its surviving.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;

use super::plan::{Topic, later};
use crate::{
    compute::{ComputeError, Instance},
    forge::{Deletion, ForgeJob, Runner},
};

/// What became of the create call of this process.
#[derive(Clone, Debug)]
pub enum Creation {
    /// The group took the name.
    Accepted {
        /// When the answer came.
        at: Timestamp,
    },
    /// It certainly did not: the error, and whether the name belongs to something foreign.
    Refused {
        /// What was said.
        error: ComputeError,
        /// An instance of this name was there before.
        name_taken: bool,
    },
    /// Nobody knows: only lists will tell.
    Unknown {
        /// When the last try ended.
        at: Timestamp,
    },
}

/// An order that was sent to an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// What was wanted.
    pub want: String,
    /// The id it was sent under.
    pub id: String,
    /// When it was sent under this id first.
    pub at: Timestamp,
    /// Nothing more is expected of it: the user was told that it was refused.
    pub settled: bool,
}

/// One VM's memory.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// What became of the create call.
    pub creation: Option<Creation>,
    /// The latest version of the object that this process made, and when.
    pub written: Option<(u64, Timestamp)>,
    /// Latest list that was looked at, and the first of the lists without the VM that led up to it.
    pub listed: Option<Timestamp>,
    /// First of the latest lists that do not show it.
    pub absent_since: Option<Timestamp>,
    /// When its deletion was last asked for.
    pub delete_asked: Option<Timestamp>,
    /// The object was seen unbound here: whatever name it has since was given under this process's eyes.
    pub saw_unbound: bool,
    /// Registrations asked for by this process.
    pub registrations_asked: u32,
    /// When the last of them got no certain answer.
    pub registration_unanswered: Option<Timestamp>,
    /// The registration under the current name is certainly gone, or was never made.
    pub name_cleared: bool,
    /// When the current name was last looked for without that being certain.
    pub name_looked: Option<Timestamp>,
    /// The forge refused or did not answer a registration: it is not asked for another one before this.
    pub register_after: Option<Timestamp>,
    /// When the JIT config was handed to the session.
    pub config_sent: Option<Timestamp>,
    /// What the last DELETE of the registration said, and when.
    pub deletion: Option<(Timestamp, Deletion)>,
    /// What the last look at the registration said, and when.
    pub look: Option<(Timestamp, Option<Runner>)>,
    /// When the first of the latest looks that show it offline and without a job was.
    pub offline_since: Option<Timestamp>,
    /// The forge's list does not have its runner: to be looked up by id.
    pub suspected: bool,
    /// What the agent was told last, by topic.
    pub orders: BTreeMap<Topic, Sent>,
    /// The user's id of the diagnostics that were kept, or given up.
    pub diagnostics_stored: Option<String>,
    /// Why its pool deleted it: a deletion itself cannot carry a reason, and an annotation would be one more write.
    pub removed_for: Option<&'static str>,
    /// What a VM that never called in had to say.
    pub last_words: Option<String>,
    /// Last trouble with the forge, in words.
    pub forge_trouble: Option<String>,
    /// GitHub was asked which job this is.
    pub job_looked: bool,
    /// What it said.
    pub job: Option<ForgeJob>,
    /// What became of its job was told on the pool.
    pub job_told: bool,
    /// How often that was tried.
    pub job_tries: u32,
    /// The end of the registration is known (204, or corroborated).
    pub registration_gone: bool,
}

impl Memory {
    /// Takes a list into account; lists come in the order they were asked for.
    pub fn listed(&mut self, asked_at: Timestamp, instance: Option<&Instance>) {
        if self.listed.is_some_and(|before| before >= asked_at) {
            return;
        }
        self.listed = Some(asked_at);
        self.absent_since = match instance {
            Some(_) => None,
            None => self.absent_since.or(Some(asked_at)),
        };
    }

    /// Takes a version of the object that this process made into account.
    pub fn wrote(&mut self, version: Option<&str>, now: Timestamp) {
        self.written = version.and_then(|version| version.parse().ok()).map(|version| (version, now)).or(self.written);
    }

    /// Whether a cache that shows this version does not have our own latest write yet: to decide on it would be to
    /// forget what was just done. Not believed for ever: a restored API server counts from further back.
    #[must_use]
    pub fn is_ahead_of(&self, version: Option<&str>, now: Timestamp, patience: Duration) -> bool {
        let Some((written, at)) = self.written else { return false };
        let shown = version.and_then(|version| version.parse::<u64>().ok());
        shown.is_some_and(|shown| shown < written) && now < later(at, patience)
    }

    /// Asks for a registration under a new name.
    pub fn registering(&mut self) {
        self.registrations_asked += 1;
        self.name_cleared = false;
        self.name_looked = None;
    }

    /// Takes into account what became of the name of a registration nobody answered for: `None` when it is not there.
    ///
    /// A request that was still under way when the name was looked for may make the registration yet: absence counts
    /// only once it must have arrived.
    pub fn name_looked(&mut self, at: Timestamp, removed: Option<Deletion>, settled: Timestamp) {
        self.name_looked = Some(at);
        self.name_cleared = match removed {
            Some(outcome) => outcome != Deletion::Busy,
            None => at >= settled,
        };
    }

    /// Takes a look at the registration into account.
    pub fn looked(&mut self, at: Timestamp, runner: Option<Runner>) {
        let offline = runner.as_ref().is_some_and(|r| !r.online && !r.busy);
        self.offline_since = if offline { self.offline_since.or(Some(at)) } else { None };
        self.suspected &= runner.is_none();
        self.look = Some((at, runner));
    }
}

/// The memories of all VMs, by the object's uid; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Memories(Arc<Mutex<HashMap<String, Memory>>>);

impl Memories {
    /// A VM's memory as it is now.
    #[must_use]
    pub fn get(&self, uid: &str) -> Memory {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(uid).cloned().unwrap_or_default()
    }

    /// Changes a VM's memory.
    pub fn update(&self, uid: &str, change: impl FnOnce(&mut Memory)) {
        change(self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(uid.to_owned()).or_default());
    }

    /// The VMs something is remembered of.
    #[must_use]
    pub fn known(&self) -> BTreeSet<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// Forgets a VM that is gone.
    pub fn forget(&self, uid: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }
}
