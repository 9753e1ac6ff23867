//! What this process knows of a pool besides its objects: lost with the process, and nothing depends on its surviving.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use jiff::Timestamp;

use super::{history::History, view::VmFact};

/// VMs remembered, so that each counts once: more than a pool can have.
const JUDGED: usize = 20_000;

/// The VMs that were judged: a bounded number, the latest.
#[derive(Clone, Debug, Default)]
pub struct Judged {
    uids: HashSet<String>,
    order: VecDeque<String>,
}

impl Judged {
    /// Whether this VM was not judged before. Now it is.
    pub fn is_new(&mut self, uid: &str) -> bool {
        if !self.uids.insert(uid.to_owned()) {
            return false;
        }
        self.order.push_back(uid.to_owned());
        if self.order.len() > JUDGED
            && let Some(oldest) = self.order.pop_front()
        {
            self.uids.remove(&oldest);
        }
        true
    }
}

/// One pool's memory.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// How its VMs fared.
    pub history: History,
    /// The VMs that are part of it.
    pub judged: Judged,
    /// Objects asked for without an answer, and until when they may appear.
    pub expected: BTreeMap<String, Timestamp>,
    /// When its status was last written.
    pub written: Option<Timestamp>,
    /// Since when it has too few runners, and none that is new became ready.
    pub short_since: Option<Timestamp>,
}

impl Memory {
    /// Takes what one VM shows into account.
    pub fn history_of(&mut self, vm: &VmFact, now: Timestamp) {
        if vm.ready() && self.judged.is_new(&vm.uid) {
            self.history.registered();
            // Somebody is always on the way where jobs end all day: a shortage is old when nobody arrives any more.
            self.short_since = None;
        }
        if let Some(reason) = &vm.end {
            // Whatever ends a runner that was idle before is no failure to register: a job that kills its listener
            // must not hold up the pool.
            if History::is_failure(reason) && self.judged.is_new(&vm.uid) {
                self.history.failed((reason, &vm.end_message), now);
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crd::Phase;

    fn vm(uid: &str, phase: Phase, end: Option<&str>) -> VmFact {
        VmFact {
            name: uid.into(),
            uid: uid.into(),
            resource_version: "1".into(),
            created: None,
            phase,
            leaving: end.is_some(),
            deleting: end.is_some(),
            end: end.map(Into::into),
            end_message: String::new(),
            runner_version: String::new(),
            outdated: false,
            owned: true,
        }
    }

    fn after(vms: &[VmFact]) -> Memory {
        let mut memory = Memory { short_since: Some(Timestamp::MIN), ..Memory::default() };
        vms.iter().for_each(|vm| memory.history_of(vm, Timestamp::UNIX_EPOCH));
        memory
    }

    #[test]
    fn a_vm_counts_once_however_often_it_is_seen() {
        let failed = vm("a", Phase::Terminating, Some("RegistrationTimeout"));
        assert_eq!(after(&[failed.clone(), failed.clone(), failed]).history.failures(), 1);
    }

    #[test]
    fn a_runner_that_was_idle_and_fails_later_is_no_failure_to_register() {
        let memory = after(&[vm("a", Phase::Idle, None), vm("a", Phase::Terminating, Some("RunnerFailed"))]);
        assert_eq!((memory.history.failures(), memory.history.healthy()), (0, Some(true)));
    }

    #[test]
    fn a_job_that_ended_is_no_failure() {
        assert_eq!(after(&[vm("a", Phase::Terminating, Some("JobCompleted"))]).history.healthy(), None);
    }

    #[test]
    fn a_shortage_starts_anew_when_a_new_vm_arrives_and_only_then() {
        assert_eq!(after(&[vm("a", Phase::Booting, None)]).short_since, Some(Timestamp::MIN));
        let mut memory = after(&[vm("a", Phase::Idle, None)]);
        assert_eq!(memory.short_since, None);
        memory.short_since = Some(Timestamp::UNIX_EPOCH);
        memory.history_of(&vm("a", Phase::Idle, None), Timestamp::UNIX_EPOCH);
        assert_eq!(memory.short_since, Some(Timestamp::UNIX_EPOCH), "it was there before");
    }
}
