//! The life of a VM that nobody wants gone: forward when it can, over when a fact says so.

use jiff::Timestamp;

use super::{End, Plan, Step, later, later_by, until};
use crate::{
    compute::{ErrorClass, LaunchError, Power},
    forge::Run,
    gateway::{
        report::{AgentState, ExitKind, GuardKind, Notice},
        sessions::AgentView,
    },
    vm::{
        memory::Creation,
        view::{Access, Presence, Timing, VmView},
    },
};

/// Why a VM ends whose runner is too old for GitHub.
pub const VERSION_REFUSED: &str = "RunnerVersionRefused";
/// The listener's exit code that says so.
const DEPRECATED: i32 = 7;

/// An end if some fact says so, else the next step forward.
pub(super) fn plan(view: &VmView, now: Timestamp, timing: &Timing) -> Plan {
    let end = taken_away(view)
        .or_else(|| ended_by_itself(view))
        .or_else(|| drained(view))
        .or_else(|| view.dead(now, timing).map(|(reason, message)| End::new(reason, message)))
        .or_else(|| refused(view))
        .or_else(|| launch_failed(view, now))
        .or_else(|| delivery_lost(view))
        .or_else(|| too_old(view, now))
        .or_else(|| ghost(view, now, timing))
        .or_else(|| lost(view, now, timing));
    match end {
        Some(end) => Plan::act(Step::End(end)),
        None => {
            let next = find_job(view).or_else(|| unregistered(view, now));
            next.unwrap_or_else(|| forward(view, now, timing))
        }
    }
}

/// The cloud takes the machine away, or a limit was passed on it. More than how its runner ended: it says why.
fn taken_away(view: &VmView) -> Option<End> {
    let report = &view.agent.as_ref()?.report;
    if let Some(guard) = report.guard.as_ref().filter(|guard| guard.acted) {
        let reason = match guard.kind {
            GuardKind::Runtime => "JobTimeLimit",
            GuardKind::Disk => "DiskFull",
            GuardKind::Memory => "MemoryFull",
        };
        return Some(End::new(reason, format!("a limit of the agent's settings was passed: {}", guard.detail)));
    }
    Some(match report.notice? {
        Notice::Preempted => {
            End::new("Preempted", "Google preempts the machine; a job that ran on it was interrupted and has failed")
        }
        Notice::Maintenance => End::new(
            "HostMaintenance",
            "Google stops the machine for maintenance of its host; a job that runs may finish until then",
        ),
    })
}

/// Somebody on the machine wants it to take no new work: `miglet drain`, or its shutdown.
fn drained(view: &VmView) -> Option<End> {
    let report = &view.agent.as_ref()?.report;
    report.draining.then(|| End::new("DrainedOnMachine", "`miglet drain` or a shutdown on the machine asked for it"))
}

/// The agent reported how its runner ended.
fn ended_by_itself(view: &VmView) -> Option<End> {
    let report = &view.agent.as_ref()?.report;
    let exit = report.exit.as_ref()?;
    let result = report.job.as_ref().map(|job| job.result.as_str()).filter(|result| !result.is_empty());
    Some(match exit.kind {
        ExitKind::JobDone => End::new("JobCompleted", format!("the job ended: {}", result.unwrap_or("how is unknown"))),
        ExitKind::WithoutJob => {
            End::new("RunnerExitedWithoutJob", format!("the runner ended without a job. {}", exit.detail))
        }
        ExitKind::Failed if exit.code == DEPRECATED => {
            let version = view.agent.as_ref().map(|agent| agent.report.runner_version.as_str()).unwrap_or_default();
            End::new(VERSION_REFUSED, format!("runner {version}: {}", exit.detail))
        }
        ExitKind::Failed => {
            End::new("RunnerFailed", format!("the runner ended with code {}. {}", exit.code, exit.detail))
        }
    })
}

/// The create call certainly had no effect.
fn refused(view: &VmView) -> Option<End> {
    let Some(Creation::Refused { error, name_taken }) = &view.memory.creation else { return None };
    let reason = if *name_taken { "NameTaken" } else { error.class.as_str() };
    Some(End { never_created: true, ..End::new(reason, error.to_string()) })
}

/// The group cannot make the machine, or took too long.
fn launch_failed(view: &VmView, now: Timestamp) -> Option<End> {
    let status = view.status();
    if status.launched_time.is_some() || status.agent.is_some() {
        return None;
    }
    if let Presence::Present(instance) = &view.presence
        && let Some(error) = instance.errors.iter().find(|e| is_final(e))
    {
        let back_off = Some((error.class, error.message.clone()));
        return Some(End { back_off, ..End::new(error.class.as_str(), format!("{}: {}", error.code, error.message)) });
    }
    // While no process led, nobody could ask the group (again).
    let since = match view.memory.creation {
        None => status.create_requested_time?.0.max(view.leading_since),
        Some(_) => status.create_requested_time?.0,
    };
    let deadline = later_by(since, view.vm.spec.lifecycle.launch_timeout_seconds);
    let running = matches!(&view.presence, Presence::Present(i) if i.power == Power::Running);
    // Only a list from after the deadline can say that it does not run.
    let looked = view.memory.listed.is_some_and(|at| at >= deadline);
    (now >= deadline && looked && !running).then(|| {
        let message = format!("the instance did not run within {} s", view.vm.spec.lifecycle.launch_timeout_seconds);
        let back_off = Some((ErrorClass::Capacity, message.clone()));
        End { back_off, ..End::new("LaunchTimeout", message) }
    })
}

/// Errors the group would only repeat; anything else it may still get over.
fn is_final(error: &LaunchError) -> bool {
    matches!(error.class, ErrorClass::Capacity | ErrorClass::Quota | ErrorClass::Config)
}

/// A registration was noted as about to be sent, and the agent does not have it: it will never be sent again.
fn delivery_lost(view: &VmView) -> Option<End> {
    let runner = view.status().runner?;
    runner.id?;
    let agent = view.agent.as_ref().filter(|agent| agent.connected)?;
    let lost = view.memory.config_sent.is_none() && agent.report.runner_name.is_empty();
    lost.then(|| End::new("DeliveryLost", "the registration was made but may not have reached the VM"))
}

/// Maximum lifetime: starts a drain, cuts nothing.
fn too_old(view: &VmView, now: Timestamp) -> Option<End> {
    let seconds = view.vm.spec.lifecycle.max_lifetime_seconds;
    (now >= later_by(view.created()?, seconds))
        .then(|| End::new("MaxLifetime", format!("older than {seconds} s; a job that runs may finish")))
}

/// The agent waits for jobs that can never come: the forge no longer knows its runner.
fn ghost(view: &VmView, now: Timestamp, timing: &Timing) -> Option<End> {
    let (looked, None) = view.memory.look.as_ref()? else { return None };
    (corroborated(view, *looked, now, timing)).then(|| {
        End::new("RegistrationGone", "GitHub no longer knows this runner, which still waits for a job: it was replaced")
    })
}

/// Whether a 404 of this time means that the registration is gone (never while a job runs, as far as we are told).
pub(super) fn corroborated(view: &VmView, not_found: Timestamp, now: Timestamp, timing: &Timing) -> bool {
    let Access::Usable { seen: Some(seen) } = view.access else { return false };
    let visible = later(seen, timing.scope_read) >= not_found;
    // Seen offline and without a job until it was gone: most likely our own DELETE, of which the answer was lost.
    let proven = view.dead(now, timing).is_some() || (silent(view, now) && long_offline(view, timing));
    let Some(agent) = &view.agent else { return visible && proven };
    let exited = agent.report.exit.is_some();
    let idle = agent.idle_since.is_some_and(|since| agent.last_heard >= later(since, timing.idle_sighting));
    // A living runner is at stake: GitHub must have shown the scope after its 404, not only shortly before.
    let idle = (idle && agent.report.jobless() || agent.report.haunted()) && seen >= not_found;
    visible && (proven || exited || idle)
}

/// Whether the forge showed the runner offline and without a job, in looks far enough apart.
fn long_offline(view: &VmView, timing: &Timing) -> bool {
    let Some((looked, Some(_))) = &view.memory.look else { return false };
    view.memory.offline_since.is_some_and(|since| *looked >= later(since, timing.idle_sighting))
}

/// The agent is silent, and GitHub has seen its runner offline and without a job for a while: a drain can lose nothing.
fn lost(view: &VmView, now: Timestamp, timing: &Timing) -> Option<End> {
    (silent(view, now) && long_offline(view, timing))
        .then(|| End::new("AgentLost", "the agent is silent and GitHub sees its runner offline and without a job"))
}

/// Whether the agent was not heard within the heartbeat timeout, counted from our own take-over at the earliest.
#[must_use]
pub fn silent(view: &VmView, now: Timestamp) -> bool {
    now >= later_by(heard(view), view.vm.spec.lifecycle.heartbeat_timeout_seconds)
}

/// When the agent was last heard, or could have been.
fn heard(view: &VmView) -> Timestamp {
    view.agent.as_ref().map_or(view.leading_since, |agent| agent.last_heard.max(view.leading_since))
}

/// A VM that runs, but whose runner is not idle at GitHub yet: it has until the registration timeout.
fn unregistered(view: &VmView, now: Timestamp) -> Option<Plan> {
    let status = view.status();
    let seconds = view.vm.spec.lifecycle.registration_timeout_seconds;
    // Before this process took over nobody was there to call in to; and it may have waited long for its registration.
    let since = status.launched_time?.0.max(view.leading_since);
    let since = view.memory.config_sent.map_or(since, |sent| since.max(sent));
    if now < later_by(since, seconds) || registered(view) || our_turn(view) {
        return None;
    }
    if view.memory.last_words.is_none() && status.instance.is_some() {
        return Some(Plan::act(Step::AskLastWords));
    }
    // What it says now is news of what it left behind.
    let error = view.agent.as_ref().map(|agent| agent.report.error.as_str()).filter(|error| !error.is_empty());
    let words = error.or(view.memory.last_words.as_deref()).or(view.unsupported.as_deref()).unwrap_or_default();
    let said = if words.is_empty() { String::new() } else { format!("; it said (unverified): {words}") };
    let what = if status.agent.is_some() { "the runner did not become idle" } else { "the VM never called in" };
    let message = format!("{what} within {seconds} s of running{said}");
    Some(Plan::act(Step::End(End::new("RegistrationTimeout", message))))
}

/// Its runner is, or was before this process took over, held by its agent.
fn registered(view: &VmView) -> bool {
    match &view.agent {
        Some(agent) => agent.report.state >= AgentState::Idle,
        None => view.status().runner.is_some_and(|runner| runner.id.is_some()),
    }
}

/// The VM did its part and waits for a registration: if none comes, another VM would fare no better.
fn our_turn(view: &VmView) -> bool {
    // One that still looks for a runner to start is not done with its own part.
    let waits = |agent: &AgentView| agent.connected && !agent.report.preparing && agent.report.runner_name.is_empty();
    view.memory.config_sent.is_none() && view.agent.as_ref().is_some_and(waits)
}

/// The hook has told which run the job belongs to: GitHub knows the rest.
fn find_job(view: &VmView) -> Option<Plan> {
    let job = view.agent.as_ref()?.report.job.as_ref()?;
    let known = view.memory.job_looked || view.status().job.is_some_and(|job| job.id.is_some());
    if known || job.repository.is_empty() || !matches!(view.access, Access::Usable { .. }) {
        return None;
    }
    let run = Run { repository: job.repository.clone(), id: job.run_id?, attempt: job.run_attempt? };
    Some(Plan::act(Step::FindJob(run)))
}

/// The next step of a life that goes well.
fn forward(view: &VmView, now: Timestamp, timing: &Timing) -> Plan {
    let status = view.status();
    let Some(requested) = status.create_requested_time else { return Plan::act(Step::Create) };
    match &view.presence {
        Presence::Present(_) => {}
        // Asked for by a process that is gone, or nobody knows: two lists without it, and it can be asked for again.
        Presence::Absent { .. } if !accepted(view) && view.instance_gone(now, timing) => {
            return Plan::act(Step::Create);
        }
        Presence::Absent { .. } | Presence::Unknown => return Plan::wait(timing.poll),
    }
    if status.agent.is_some() && status.runner.as_ref().is_none_or(|r| r.id.is_none()) {
        return registering(view, now, timing);
    }
    watching(view, requested.0, now, timing)
}

fn accepted(view: &VmView) -> bool {
    matches!(view.memory.creation, Some(Creation::Accepted { .. }))
}

/// Bound, and nothing was ever sent: register. A name whose reply may be lost is cleared first.
fn registering(view: &VmView, now: Timestamp, timing: &Timing) -> Plan {
    let waits = |agent: &AgentView| agent.connected && !agent.report.preparing && agent.report.runner_name.is_empty();
    if !view.agent.as_ref().is_some_and(waits) || !matches!(view.access, Access::Usable { .. }) {
        return Plan::wait(timing.poll);
    }
    if view.memory.config_sent.is_some() {
        // The cache is behind our own write of the id. Clearing the name now would remove a registration in use.
        return Plan::wait(timing.poll);
    }
    if let Some(after) = view.memory.register_after.filter(|after| now < *after) {
        return Plan::wait(until(after, now));
    }
    let Some(runner) = view.status().runner else { return Plan::act(Step::Register { attempt: 1 }) };
    if view.memory.name_cleared {
        return Plan::act(Step::Register { attempt: runner.attempt.saturating_add(1) });
    }
    if never_asked(view) {
        return Plan::act(Step::Register { attempt: runner.attempt });
    }
    clear_name(view, runner.name, now, timing)
}

/// Bound under this process's eyes, and it never asked the forge for anything.
pub(super) fn never_asked(view: &VmView) -> bool {
    view.memory.saw_unbound && view.memory.registrations_asked == 0
}

/// Looks for the name, again only after a while.
pub(super) fn clear_name(view: &VmView, name: String, now: Timestamp, timing: &Timing) -> Plan {
    match view.memory.name_looked.map(|looked| later(looked, timing.poll)) {
        Some(again) if now < again => Plan::wait(until(again, now)),
        _ => Plan::act(Step::ClearName { name }),
    }
}

/// Idle or busy, or about to be: look at GitHub when somebody is missing, and keep the deadlines.
fn watching(view: &VmView, requested: Timestamp, now: Timestamp, timing: &Timing) -> Plan {
    let runner_id = view.status().runner.and_then(|runner| runner.id);
    let haunted = view.agent.as_ref().is_some_and(|agent| agent.report.haunted());
    let doubtful = silent(view, now) || view.memory.suspected || haunted;
    if let (Some(id), true, Access::Usable { seen }) = (runner_id, doubtful, &view.access) {
        // The longer it is silent the less a look is likely to bring: a hundred silent agents are no flood of calls.
        // A ghost's word is worth a look now and then.
        let pause = timing.poll.max(until(now, heard(view)) / 4);
        let pause = if haunted { pause.max(timing.idle_sighting) } else { pause };
        let Some((at, runner)) = view.memory.look.as_ref().filter(|(at, _)| now < later(*at, pause)) else {
            return Plan::act(Step::Look { id });
        };
        if runner.is_none() && seen.is_none_or(|seen| seen < *at) {
            return Plan::act(Step::CheckScope);
        }
        return Plan::wait(until(later(*at, pause), now).min(timing.poll.max(pause / 4)));
    }
    let lifetime = later_by(view.created().unwrap_or(requested), view.vm.spec.lifecycle.max_lifetime_seconds);
    let mut deadline = lifetime;
    if runner_id.is_some() && !silent(view, now) {
        deadline = deadline.min(later_by(heard(view), view.vm.spec.lifecycle.heartbeat_timeout_seconds));
    }
    if !registered(view) {
        deadline = deadline.min(later(now, timing.poll));
    }
    Plan::wait(until(deadline, now))
}
