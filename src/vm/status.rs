//! The status a view and a plan lead to: pure, and equal to the old one when nothing changed for a reader.

use jiff::Timestamp;

use super::{
    plan::{End, Plan, Step, later_by, result_due, silent},
    tell::warned,
    view::{Access, Presence, Timing, VmView},
};
use crate::{
    compute::Power,
    crd::{
        HealthStatus, InstanceStatus, JobStatus, KubeTime, Phase, RunnerStatus, RunnerVmStatus,
        conditions::{
            AGENT_CONNECTED, DELETING, DRAINING, Finding, LAUNCHED, READY, REGISTERED, State, conditions, cut, find,
        },
        names,
    },
    forge::ForgeJob,
    gateway::{
        events::EventKind,
        report::{AgentState, Job, Report},
    },
};

/// Longest page address of a job that is kept.
const URL_LIMIT: usize = 128;

/// What this VM's status should be.
#[must_use]
pub fn status(view: &VmView, plan: &Plan, now: Timestamp, timing: &Timing) -> RunnerVmStatus {
    let old = view.status();
    let mut new = old.clone();
    // A deletion bumps the generation: not worth a write, there is nothing else to observe in it.
    let seen = view.deletion_requested().map(|_| old.observed_generation).filter(|generation| *generation >= 0);
    new.observed_generation = seen.or(view.vm.metadata.generation).unwrap_or_default();
    marks(&mut new, plan, now, view);
    machine(&mut new, view, now);
    if let Some(agent) = &view.agent {
        // The result comes a moment before the runner's end, which is written anyway: but not for longer than a moment.
        let waited = result_due(agent).is_some_and(|due| now >= due);
        let told = old.job.as_ref().is_some_and(|job| !job.result.is_empty());
        let over = agent.report.exit.is_some() || ending(view, plan) || waited || told;
        report(&mut new, &agent.report, &agent.version, over);
        joined(&mut new, &old, view);
    }
    new.phase = phase(view, &new, plan, now, timing);
    let found = findings(view, &new, plan, now);
    new.conditions = conditions(&old.conditions, found, Some(new.observed_generation), now);
    if new != old {
        heartbeat(&mut new, view);
        acked(&mut new, view);
    }
    new
}

/// Whether what follows from such an event is in this status.
#[must_use]
pub fn has_effect(status: &RunnerVmStatus, kind: EventKind) -> bool {
    match kind {
        EventKind::JobStarted => status.job.is_some(),
        EventKind::JobCompleted => {
            status.job.as_ref().is_some_and(|job| job.completed_time.is_some() || !job.result.is_empty())
        }
        EventKind::RunnerCrashed | EventKind::Preempted => {
            find(&status.conditions, DRAINING).is_some_and(|c| c.status == "True")
        }
        _ => true,
    }
}

/// In the same write as what follows from the events, and never a reason for one.
fn acked(new: &mut RunnerVmStatus, view: &VmView) {
    let Some(heard) = &view.agent else { return };
    let settled = heard.events.settled(|kind| has_effect(new, kind));
    if let Some(agent) = &mut new.agent {
        agent.acked_sequence = i64::try_from(settled).map_or(agent.acked_sequence, |n| n.max(agent.acked_sequence));
    }
}

/// Whether writing `new` must come before the effect: it is the memory that the effect may have happened.
#[must_use]
pub fn must_precede(old: &RunnerVmStatus, new: &RunnerVmStatus) -> bool {
    old.create_requested_time != new.create_requested_time || old.runner != new.runner || old.job != new.job
}

fn marks(new: &mut RunnerVmStatus, plan: &Plan, now: Timestamp, view: &VmView) {
    match &plan.step {
        Step::Create => new.create_requested_time = new.create_requested_time.take().or(Some(KubeTime(now))),
        Step::End(End { never_created: true, .. }) => new.create_requested_time = None,
        Step::Register { attempt } => {
            let name = names::runner_name(view.name(), *attempt);
            new.runner = Some(RunnerStatus { name, attempt: *attempt, id: None, version: String::new() });
        }
        _ => {}
    }
}

/// A machine that runs sooner than this after it was asked for is about to call in: its binding and its registration
/// are written then, and the news that it runs rides along. Written at once it would also make the binding conflict
/// (at 500 instant VMs: 1.3 writes more for each).
const BOOT_SECONDS: i32 = 2;

/// What the lists show of the machine.
fn machine(new: &mut RunnerVmStatus, view: &VmView, now: Timestamp) {
    let (Presence::Present(instance), Some(requested)) = (&view.presence, &new.create_requested_time) else { return };
    let boots = instance.power == Power::Running && now >= later_by(requested.0, BOOT_SECONDS);
    if (boots || new.agent.is_some()) && new.launched_time.is_none() {
        new.launched_time = Some(KubeTime(now));
    }
    if new.instance.is_none()
        && new.launched_time.is_some()
        && let (Some(id), Some(zone)) = (instance.id, &instance.zone)
    {
        let group = view.vm.spec.group.name.clone();
        new.instance = Some(InstanceStatus { id: id.to_string(), group, zone: zone.clone() });
    }
}

/// What the agent says.
fn report(new: &mut RunnerVmStatus, report: &Report, version: &str, over: bool) {
    if let Some(agent) = &mut new.agent {
        agent.version = version.to_owned();
        let state = report.state.max(AgentState::Ready);
        // Registering lasts a second or two: not worth a write of its own.
        agent.state = if state == AgentState::Registering { AgentState::Ready } else { state }.as_str().to_owned();
    }
    if let Some(job) = &report.job {
        let told = job_status(job);
        new.job = Some(if over { told } else { JobStatus { completed_time: None, result: String::new(), ..told } });
    }
}

/// What GitHub said about the job stays: the agent does not know it.
fn joined(new: &mut RunnerVmStatus, old: &RunnerVmStatus, view: &VmView) {
    let Some(job) = &mut new.job else { return };
    if let Some(before) = &old.job {
        (job.id, job.url) = (before.id, before.url.clone());
    }
    if let Some(found) = &view.memory.job {
        join(job, found);
    }
}

/// Adds what GitHub says about a job to what its agent says.
pub(super) fn join(job: &mut JobStatus, found: &ForgeJob) {
    job.id = Some(found.id).filter(|id| *id > 0);
    // Cut, it would lead nowhere.
    job.url = Some(cut(&found.url, URL_LIMIT)).filter(|url| *url == found.url).unwrap_or_default();
}

/// Nobody wants it any more, or that is being decided.
fn ending(view: &VmView, plan: &Plan) -> bool {
    matches!(plan.step, Step::End(_)) || view.deletion_requested().is_some()
}

fn job_status(job: &Job) -> JobStatus {
    let summary =
        if job.repository.is_empty() { job.name.clone() } else { format!("{} · {}", job.repository, job.name) };
    JobStatus {
        summary: cut(&summary, 192),
        name: cut(&job.name, 128),
        repository: cut(&job.repository, 128),
        workflow: cut(&job.workflow, 128),
        run_id: job.run_id,
        run_attempt: job.run_attempt.and_then(|attempt| i32::try_from(attempt).ok()),
        key: cut(&job.key, 128),
        id: None,
        url: String::new(),
        started_time: job.started.map(whole_seconds),
        completed_time: job.completed.map(whole_seconds),
        result: cut(&job.result, 32),
    }
}

/// As Kubernetes keeps it: a finer time would differ from what was read back, and be written again on every pass.
fn whole_seconds(time: Timestamp) -> KubeTime {
    KubeTime(Timestamp::from_second(time.as_second()).unwrap_or(time))
}

fn phase(view: &VmView, new: &RunnerVmStatus, plan: &Plan, now: Timestamp, timing: &Timing) -> Phase {
    let ending = ending(view, plan);
    let exited = view.agent.as_ref().is_some_and(|agent| agent.report.exit.is_some());
    if ending {
        let registered = new.runner.as_ref().is_some_and(|runner| runner.id.is_some());
        let over = !registered || exited || view.memory.registration_gone || view.dead(now, timing).is_some();
        let deleting = view.memory.delete_asked.is_some();
        return if over || deleting { Phase::Terminating } else { Phase::Draining };
    }
    match &view.agent {
        Some(agent) if agent.report.state >= AgentState::Busy => Phase::Busy,
        Some(agent) if agent.report.state == AgentState::Idle => Phase::Idle,
        // After a restart of the operator the agent needs a moment to call in again: nothing has changed meanwhile.
        None if new.runner.as_ref().is_some_and(|runner| runner.id.is_some()) => new.phase,
        _ if new.agent.is_some() => Phase::Registering,
        _ if new.launched_time.is_some() => Phase::Booting,
        _ => Phase::Launching,
    }
}

fn findings(view: &VmView, new: &RunnerVmStatus, plan: &Plan, now: Timestamp) -> Vec<Finding> {
    let ready = matches!(new.phase, Phase::Idle | Phase::Busy);
    let connected = connected(view, new, now);
    vec![
        if ready && connected.state != State::False {
            Finding::new(READY, true, new.phase.as_str(), warning(view))
        } else {
            Finding::new(READY, false, new.phase.as_str(), why_not_ready(view, plan))
        },
        launched(new),
        registered(view, new),
        connected,
        draining(view, plan),
        deleting(plan, view, new),
    ]
}

/// A limit that is neared; what was said before while the agent is not back after a restart of the operator.
fn warning(view: &VmView) -> String {
    match &view.agent {
        Some(agent) => agent.report.guard.as_ref().map(|guard| guard.detail.clone()).unwrap_or_default(),
        None => warned(&view.status()).unwrap_or_default().to_owned(),
    }
}

fn why_not_ready(view: &VmView, plan: &Plan) -> String {
    if let Step::End(end) = &plan.step {
        return end.message.clone();
    }
    if let Some(wait) = &plan.wait {
        return wait.message.clone();
    }
    if view.deletion_requested().is_some() {
        return draining(view, plan).message;
    }
    match (&view.access, &view.memory.forge_trouble) {
        (Access::Blocked(why), _) => why.clone(),
        (_, Some(trouble)) => trouble.clone(),
        // Why it ends stays the reason while it does.
        _ if view.deletion_requested().is_some() => draining(view, plan).message,
        _ => String::new(),
    }
}

fn launched(new: &RunnerVmStatus) -> Finding {
    match (&new.launched_time, &new.create_requested_time) {
        (Some(_), _) => Finding::new(LAUNCHED, true, "Running", ""),
        (None, Some(_)) => Finding::new(LAUNCHED, false, "Requested", "the group is making the instance"),
        (None, None) => Finding::new(LAUNCHED, false, "NotRequested", ""),
    }
}

fn registered(view: &VmView, new: &RunnerVmStatus) -> Finding {
    let held = view.agent.as_ref().is_some_and(|agent| agent.report.state >= AgentState::Idle);
    let exited = view.agent.as_ref().is_some_and(|agent| agent.report.exit.is_some());
    match &new.runner {
        // GitHub takes a single-job registration away with its runner: that it did is not worth a write of its own.
        _ if exited => Finding::new(REGISTERED, false, "RunnerEnded", ""),
        _ if view.memory.registration_gone && removal_is_told(&view.status()) => {
            Finding::new(REGISTERED, false, "Removed", "")
        }
        Some(runner) if runner.id.is_some() && (held || view.agent.is_none()) => {
            Finding::new(REGISTERED, true, "Registered", "")
        }
        Some(_) => Finding::new(REGISTERED, false, "Registering", ""),
        None => Finding::new(REGISTERED, false, "NoAgent", "the agent has not called in"),
    }
}

/// When its removal is all that is new, and the VM was terminating anyway, it is not worth a write.
fn removal_is_told(old: &RunnerVmStatus) -> bool {
    let told = find(&old.conditions, REGISTERED).is_some_and(|condition| condition.reason == "Removed");
    told || old.phase != Phase::Terminating
}

fn connected(view: &VmView, new: &RunnerVmStatus, now: Timestamp) -> Finding {
    let silent = silent(view, now) || new.agent.is_none();
    if let Some(why) = view.unsupported.as_ref().filter(|_| silent) {
        return Finding::new(AGENT_CONNECTED, false, "ProtocolUnsupported", why.clone());
    }
    if new.agent.is_none() {
        return Finding::new(AGENT_CONNECTED, false, "NeverConnected", "");
    }
    if !silent {
        return Finding::new(AGENT_CONNECTED, true, "Connected", "");
    }
    let seconds = view.vm.spec.lifecycle.heartbeat_timeout_seconds;
    Finding::new(AGENT_CONNECTED, false, "Silent", format!("not heard for {seconds} s; silence alone deletes nothing"))
}

/// Why it drains is said once, when it starts: later passes keep the reason and may say what is waited for.
fn draining(view: &VmView, plan: &Plan) -> Finding {
    if let Step::End(end) = &plan.step {
        return Finding::new(DRAINING, true, end.reason, end.message.clone());
    }
    if view.deletion_requested().is_none() {
        return Finding::new(DRAINING, false, "NotRequested", "");
    }
    if let Some(why) = view.terminate_now() {
        let message = format!("miglet.dev/terminate-now: {why}; the job is not waited for");
        return Finding::new(DRAINING, true, "TerminateNow", message);
    }
    let status = view.status();
    match find(&status.conditions, DRAINING).filter(|c| c.status == "True") {
        Some(before) => Finding::new(DRAINING, true, before.reason.clone(), before.message.clone()),
        None => {
            let (reason, why) = removal(view.memory.removed_for);
            Finding::new(DRAINING, true, reason, format!("{why}; a running job is waited for"))
        }
    }
}

/// Who deleted the object, as far as this process knows.
fn removal(reason: Option<&'static str>) -> (&'static str, &'static str) {
    match reason {
        Some(reason @ "ScaledDown") => (reason, "the pool needs fewer runners"),
        Some(reason @ "Outdated") => (reason, "the pool was changed since this VM was made"),
        Some(reason @ "PoolDeleted") => (reason, "the pool is being deleted"),
        _ => ("Deleted", "the object was deleted"),
    }
}

fn deleting(plan: &Plan, view: &VmView, new: &RunnerVmStatus) -> Finding {
    let over = new.phase == Phase::Terminating;
    if let Some(wait) = &plan.wait {
        return Finding::new(DELETING, over, wait.reason, wait.message.clone());
    }
    if over {
        return Finding::new(DELETING, true, "DeletingInstance", "");
    }
    match view.deletion_requested() {
        Some(_) => Finding::new(DELETING, false, "WaitingForRegistration", "GitHub has to let go of the runner first"),
        None => Finding::new(DELETING, false, "NotRequested", ""),
    }
}

/// Rides along with a write that happens anyway.
fn heartbeat(new: &mut RunnerVmStatus, view: &VmView) {
    let Some(agent) = &view.agent else { return };
    new.last_heartbeat_time = Some(KubeTime(agent.last_heard));
    new.health = agent.report.health.map(|health| HealthStatus {
        cpu_percent: health.cpu,
        memory_percent: health.memory,
        disk_percent: health.disk,
    });
    if let Some(runner) = new.runner.as_mut().filter(|runner| runner.id.is_some() && runner.version.is_empty()) {
        runner.version = agent.report.runner_version.clone();
    }
}

#[cfg(test)]
mod tests;
