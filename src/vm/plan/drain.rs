//! The end of a VM: its registration first, then its instance, then the object.
//!
//! DELETE of the registration is the only question that cannot lose a job: 204 means it was idle and can get none any
//! more, 422 that it has one. A 404 alone proves nothing.

use std::time::Duration;

use jiff::Timestamp;

use super::{
    Order, Plan, Step, Topic, Wait, later, later_by,
    life::{clear_name, corroborated, never_asked, silent},
    orders::abort_unsaid,
};
use crate::{
    compute::{DeleteTarget, GroupAction},
    forge::Deletion,
    gateway::report::AgentState,
    vm::view::{Access, Presence, Timing, VmView},
};

/// Where the registration is on its way out.
enum Registration {
    /// Gone, or never made.
    Gone,
    /// Out of reach for good: the forge will drop it.
    LeftBehind,
    /// Something can be done about it.
    Act(Step),
    /// It has to be waited for.
    Wait(Wait),
}

/// What to do about a VM whose deletion was requested then.
pub(super) fn plan(view: &VmView, requested: Timestamp, now: Timestamp, timing: &Timing) -> Plan {
    let registration = registration(view, now, timing);
    let cut = cut(view, requested, now);
    let dead = view.dead(now, timing).is_some();
    if matches!(registration, Registration::Gone | Registration::LeftBehind) || dead || cut {
        if let Some(step) = farewell(view, &registration, cut).or_else(|| instance(view, now, timing)) {
            return Plan::act(step);
        }
        if !view.instance_gone(now, timing) {
            // Meanwhile a registration that can be removed is.
            return match registration {
                Registration::Act(step) => Plan::act(step),
                Registration::Wait(_) | Registration::Gone | Registration::LeftBehind => Plan::wait(timing.poll),
            };
        }
    }
    match registration {
        Registration::Gone => Plan::act(Step::Release { left_behind: false }),
        Registration::LeftBehind => Plan::act(Step::Release { left_behind: true }),
        // The job is long over, and so is the user's patience. What is left is offline, and the sweep's business.
        registration if hopeless(view, &registration, requested, now) && view.instance_gone(now, timing) => {
            Plan::act(Step::Release { left_behind: true })
        }
        Registration::Act(step) => Plan::act(step),
        Registration::Wait(wait) => Plan { wait: Some(wait), ..Plan::wait(timing.poll) },
    }
}

/// The last thing an agent is told, once; nothing waits for what it does about it. One whose runner has ended turns its
/// machine off and says so. One whose job is not waited for interrupts it. One that said its machine stops working waits for this word before it stops an idle listener.
fn farewell(view: &VmView, registration: &Registration, cut: bool) -> Option<Step> {
    let agent = view.agent.as_ref().filter(|agent| agent.connected)?;
    let unsaid = |topic| !view.memory.orders.contains_key(&topic);
    if agent.report.exit.is_some() {
        return unsaid(Topic::Shutdown).then(|| Step::Tell(Order::shutdown()));
    }
    if cut && agent.report.state == AgentState::Busy {
        return abort_unsaid(view).then(|| Step::Tell(Order::abort()));
    }
    let waits = agent.report.notice.is_some() || agent.report.draining;
    let due = waits && matches!(registration, Registration::Gone) && unsaid(Topic::Drain);
    due.then(|| Step::Tell(Order::drain()))
}

/// Whether the forge was given all the time there is, and has not let go: it says no, or does not answer.
fn hopeless(view: &VmView, registration: &Registration, requested: Timestamp, now: Timestamp) -> bool {
    let answers = matches!(registration, Registration::Act(_)) && view.memory.forge_trouble.is_none();
    grace_over(view, requested, now) && !answers
}

/// Whether the wait for the job is over, by the user's own deadline or word.
pub(super) fn cut(view: &VmView, requested: Timestamp, now: Timestamp) -> bool {
    view.terminate_now().is_some() || grace_over(view, requested, now)
}

fn grace_over(view: &VmView, requested: Timestamp, now: Timestamp) -> bool {
    now >= later_by(requested, view.vm.spec.lifecycle.termination_grace_period_seconds)
}

fn registration(view: &VmView, now: Timestamp, timing: &Timing) -> Registration {
    let Some(runner) = view.status().runner else { return Registration::Gone };
    if view.memory.registration_gone {
        return Registration::Gone;
    }
    match &view.access {
        Access::Lost => return without_credentials(view, now, timing),
        Access::Blocked(why) => {
            return Registration::Wait(Wait { reason: "WaitingForGitHub", message: why.clone() });
        }
        Access::Usable { .. } => {}
    }
    match runner.id {
        None if view.memory.name_cleared || never_asked(view) => Registration::Gone,
        None => match clear_name(view, runner.name, now, timing).step {
            Step::Wait => Registration::Wait(Wait {
                reason: "WaitingForRegistration",
                message: "GitHub did not answer whether it made a registration: looking for it until that is certain"
                    .into(),
            }),
            step => Registration::Act(step),
        },
        Some(id) => by_id(view, id, now, timing),
    }
}

fn by_id(view: &VmView, id: i64, now: Timestamp, timing: &Timing) -> Registration {
    let busy = Wait { reason: "WaitingForJob", message: "a job runs; the VM goes when it has ended".into() };
    let agent_busy = view.agent.as_ref().is_some_and(|a| a.report.state == AgentState::Busy && a.report.exit.is_none());
    let heard = agent_busy && !silent(view, now);
    if heard && view.dead(now, timing).is_none() && view.memory.deletion.is_none() && !overdue(view, now) {
        // What the agent says is believed while it says it and it only makes us wait, and costs GitHub no call.
        return Registration::Wait(busy);
    }
    match view.memory.deletion {
        Some((_, Deletion::Deleted)) => Registration::Gone,
        Some((at, Deletion::NotFound)) if corroborated(view, at, now, timing) => {
            Registration::Act(Step::NoteRegistrationGone)
        }
        Some((at, Deletion::NotFound)) if now < later(at, timing.poll) => not_found(view, at),
        Some((at, Deletion::Busy)) if now < later(at, retry_busy(view, timing)) => Registration::Wait(busy),
        _ => Registration::Act(Step::Deregister { id }),
    }
}

/// Past the time any job can take: the agent's word is no longer enough.
fn overdue(view: &VmView, now: Timestamp) -> bool {
    view.deletion_requested().is_some_and(|requested| cut(view, requested, now))
}

/// GitHub learns of a job's end a moment after the listener's.
fn retry_busy(view: &VmView, timing: &Timing) -> Duration {
    let ended = view.agent.as_ref().is_some_and(|agent| agent.report.exit.is_some());
    if ended { timing.poll / 4 } else { timing.poll }
}

/// A 404 of this time that nothing corroborates yet.
fn not_found(view: &VmView, at: Timestamp) -> Registration {
    if let Access::Usable { seen } = view.access
        && seen.is_none_or(|seen| seen < at)
    {
        return Registration::Act(Step::CheckScope);
    }
    Registration::Wait(Wait {
        reason: "WaitingForProof",
        message: "GitHub does not know the runner, which proves nothing while the VM lives: waiting for its agent to \
                  say that the runner ended or is idle"
            .into(),
    })
}

/// The namespace goes and took the Secret along: idle listeners are stopped by their agents, busy ones finish.
fn without_credentials(view: &VmView, now: Timestamp, timing: &Timing) -> Registration {
    if view.dead(now, timing).is_some() || view.instance_gone(now, timing) {
        return Registration::LeftBehind;
    }
    let agent = view.agent.as_ref();
    if agent.is_some_and(|agent| agent.report.exit.is_some()) {
        return Registration::LeftBehind;
    }
    Registration::Wait(Wait {
        reason: "CredentialsGone",
        message: "the Secret is gone with its namespace; waiting for the runner to end".into(),
    })
}

/// What to do about the instance now; nothing while a deletion is under way or there is none.
fn instance(view: &VmView, now: Timestamp, timing: &Timing) -> Option<Step> {
    view.status().create_requested_time?;
    let Presence::Present(instance) = &view.presence else { return None };
    let asked = view.memory.delete_asked.is_some_and(|at| now < later(at, timing.absence / 2));
    if asked || instance.action == GroupAction::Deleting {
        return None;
    }
    Some(Step::DeleteInstance(match &instance.url {
        Some(url) => DeleteTarget::Url(url.clone()),
        None => DeleteTarget::Name(instance.name.clone()),
    }))
}
