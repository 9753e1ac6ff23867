//! The status a view leads to: pure, and equal to the old one when nothing changed for a reader.
//!
//! `Ready` must not flap: single-job VMs come and go all day. It becomes true once this generation reached its size, and
//! stays so while the spec is valid and some group is usable. `Reconciling` is for a new generation or for a shortage
//! that lasts longer than a VM may take; `Stalled` for what only a person can mend. Both are present only while true.

use jiff::Timestamp;

use super::{
    plan::usable,
    version,
    view::{Check, GroupFact, PoolView, VmFact, selector},
};
use crate::crd::{
    Phase, RunnerPoolStatus,
    conditions::{
        CAPACITY_AVAILABLE, CREDENTIALS_VALID, Finding, GROUP_HEALTHY, PAUSED, READY, RECONCILING,
        REGISTRATION_HEALTHY, STALLED, State, conditions, find,
    },
};

/// What this pool's status should be. `short_since` is when the pool began to have too few runners.
#[must_use]
pub fn status(view: &PoolView, short_since: Option<Timestamp>, now: Timestamp) -> RunnerPoolStatus {
    let old = view.pool.status.clone().unwrap_or_default();
    let generation = view.pool.metadata.generation.unwrap_or_default();
    let count = |filter: fn(&VmFact) -> bool| i32::try_from(view.active().filter(|vm| filter(vm)).count());
    let name = view.pool.metadata.name.as_deref().unwrap_or_default();
    let findings = findings(view, &old, short_since, now);
    RunnerPoolStatus {
        observed_generation: generation,
        replicas: count(|_| true).unwrap_or_default(),
        ready_replicas: count(VmFact::ready).unwrap_or_default(),
        busy_replicas: count(|vm| vm.phase == Phase::Busy).unwrap_or_default(),
        idle_replicas: count(|vm| vm.phase == Phase::Idle).unwrap_or_default(),
        selector: selector(name),
        conditions: conditions(&old.conditions, findings, Some(generation), now),
    }
}

fn findings(view: &PoolView, old: &RunnerPoolStatus, short: Option<Timestamp>, now: Timestamp) -> Vec<Finding> {
    let credentials = checked(CREDENTIALS_VALID, "Valid", &view.forge);
    let groups = groups(view);
    let capacity = capacity(view, now);
    let trouble = [&credentials, &groups].into_iter().find(|finding| finding.state == State::False).cloned();
    let mut findings = ready(view, old, trouble.as_ref(), short, now);
    findings.extend([credentials, groups, capacity, registration(view), version::finding(view, now), paused(view)]);
    findings
}

/// Ready, and Reconciling or Stalled while they are true.
fn ready(
    view: &PoolView,
    old: &RunnerPoolStatus,
    trouble: Option<&Finding>,
    short: Option<Timestamp>,
    now: Timestamp,
) -> Vec<Finding> {
    if view.pool.metadata.deletion_timestamp.is_some() {
        let message = format!("{} VMs are still there", view.vms.len());
        return vec![Finding::new(READY, false, "Deleting", message)];
    }
    if let Some(trouble) = trouble {
        let (reason, message) = (trouble.reason.clone(), trouble.message.clone());
        return vec![
            Finding::new(READY, false, reason.clone(), message.clone()),
            Finding::new(STALLED, true, reason, message),
        ];
    }
    let overdue = short.is_some_and(|since| now >= patience(view, since));
    if reached(view, old) && !overdue {
        let reason = if view.pool.spec.paused { "Paused" } else { "Ready" };
        return vec![Finding::new(READY, true, reason, bounded(view))];
    }
    if view.pool.spec.paused {
        return vec![Finding::new(READY, false, "Paused", "nothing is created while spec.paused is true")];
    }
    let ready = view.active().filter(|vm| vm.ready()).count();
    let (reason, message) = progress(view, ready, now);
    vec![Finding::new(READY, false, reason.clone(), message.clone()), Finding::new(RECONCILING, true, reason, message)]
}

/// Whether this generation has its size now, or had it before.
fn reached(view: &PoolView, old: &RunnerPoolStatus) -> bool {
    let generation = view.pool.metadata.generation;
    let before =
        find(&old.conditions, READY).is_some_and(|c| c.status == "True" && c.observed_generation == generation);
    before || view.active().filter(|vm| vm.ready()).count() >= view.desired()
}

/// A VM may take this long before its absence is worth a word.
fn patience(view: &PoolView, since: Timestamp) -> Timestamp {
    let lifecycle = &view.pool.spec.lifecycle;
    let seconds = lifecycle.launch_timeout_seconds.saturating_add(lifecycle.registration_timeout_seconds);
    crate::vm::plan::later_by(since, seconds)
}

fn bounded(view: &PoolView) -> String {
    let spec = &view.pool.spec;
    if spec.replicas <= spec.limits.max {
        return String::new();
    }
    format!("spec.replicas is {}, limits.max allows {}", spec.replicas, spec.limits.max)
}

fn progress(view: &PoolView, ready: usize, now: Timestamp) -> (String, String) {
    let count = format!("{ready} of {} runners are ready", view.desired());
    if let Check::Unknown { reason, message } = &view.forge {
        return (reason.clone(), format!("{count}; {message}"));
    }
    if view.history.healthy() == Some(false) {
        return (
            "RegistrationFailing".into(),
            format!("{count}; new VMs do not register: {}", view.history.last_reason),
        );
    }
    if !view.groups.iter().any(|group| usable(group, now)) {
        return ("NoCapacity".into(), format!("{count}; no group can be asked for a VM now"));
    }
    ("Progressing".into(), count)
}

fn checked(kind: &'static str, good: &str, check: &Check) -> Finding {
    match check {
        Check::Good => Finding::new(kind, true, good, ""),
        Check::Bad { reason, message } => Finding::new(kind, false, reason.clone(), message.clone()),
        Check::Unknown { reason, message } => Finding::new(kind, State::Unknown, reason.clone(), message.clone()),
    }
}

/// False only when no group at all can be used; what is wrong with some is in the message.
fn groups(view: &PoolView) -> Finding {
    let problems: Vec<_> = view.groups.iter().filter_map(problem).collect();
    let text = problems.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>().join("; ");
    let good = view.groups.iter().any(|group| group.settings == Check::Good);
    let bad = view.groups.iter().all(|group| matches!(group.settings, Check::Bad { .. }));
    match problems.first() {
        None => Finding::new(GROUP_HEALTHY, true, "Healthy", ""),
        Some((reason, _)) if bad => Finding::new(GROUP_HEALTHY, false, reason.clone(), text),
        Some(_) if good => Finding::new(GROUP_HEALTHY, true, "SomeUnhealthy", text),
        Some((reason, _)) => Finding::new(GROUP_HEALTHY, State::Unknown, reason.clone(), text),
    }
}

fn problem(fact: &GroupFact) -> Option<(String, String)> {
    match &fact.settings {
        Check::Good => None,
        Check::Bad { reason, message } | Check::Unknown { reason, message } => {
            Some((reason.clone(), format!("{}: {message}", fact.group)))
        }
    }
}

fn capacity(view: &PoolView, now: Timestamp) -> Finding {
    let backing_off: Vec<_> =
        view.groups.iter().filter_map(|g| g.back_off.as_ref().filter(|b| b.until > now).map(|b| (g, b))).collect();
    let text = backing_off
        .iter()
        .map(|(g, b)| format!("{}: {} ({})", g.group, b.class.as_str(), b.message))
        .collect::<Vec<_>>()
        .join("; ");
    match backing_off.first() {
        None => Finding::new(CAPACITY_AVAILABLE, true, "Available", ""),
        Some((_, first)) if backing_off.len() == view.groups.len() => {
            Finding::new(CAPACITY_AVAILABLE, false, first.class.as_str(), text)
        }
        Some(_) => Finding::new(CAPACITY_AVAILABLE, true, "SomeBackingOff", text),
    }
}

fn registration(view: &PoolView) -> Finding {
    let history = &view.history;
    match history.healthy() {
        None => {
            Finding::new(REGISTRATION_HEALTHY, State::Unknown, "NothingYet", "no VM has registered or failed to yet")
        }
        Some(true) => Finding::new(REGISTRATION_HEALTHY, true, "Registering", ""),
        Some(false) => {
            let message = format!(
                "{} VMs in a row did not get their runner idle; the last one: {}",
                history.failures(),
                history.last_message
            );
            Finding::new(REGISTRATION_HEALTHY, false, history.last_reason.clone(), message)
        }
    }
}

fn paused(view: &PoolView) -> Finding {
    if view.pool.spec.paused {
        Finding::new(PAUSED, true, "Paused", "nothing is created or scaled down; jobs and deletions go on")
    } else {
        Finding::new(PAUSED, false, "NotPaused", "")
    }
}

#[cfg(test)]
mod tests;
