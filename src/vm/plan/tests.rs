//! One VM at one moment, and what is done about it.

use std::time::Duration;

use jiff::Timestamp;

use super::{End, Plan, Step, later, plan};
use crate::{
    compute::{ComputeError, DeleteTarget, ErrorClass, Group, GroupAction, Instance, InstanceId, LaunchError, Power},
    crd::{
        AgentStatus, GitHub, GroupRef, InstanceStatus, KubeTime, Lifecycle, PoolRef, RunnerStatus, RunnerVm,
        RunnerVmSpec, RunnerVmStatus, SecretRef, names,
    },
    forge::{Deletion, Run, Runner},
    gateway::{
        events::Ledger,
        report::{AgentState, Exit, ExitKind, Guard, GuardKind, Job, Notice, Report},
        sessions::AgentView,
        settings::Settings,
    },
    vm::{
        memory::{Creation, Memory},
        view::{Access, Presence, Timing, VmView},
    },
};

pub(in crate::vm) const RUNNER: i64 = 7;

pub(in crate::vm) fn timing() -> Timing {
    Timing {
        absence: Duration::from_secs(60),
        idle_sighting: Duration::from_secs(100),
        scope_read: Duration::from_secs(60),
        create_deadline: Duration::from_secs(90),
        poll: Duration::from_secs(30),
    }
}

pub(in crate::vm) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).expect("a time")
}

/// A VM without a status, made at 0, under an operator that leads since then.
pub(in crate::vm) fn view() -> VmView {
    let group = GroupRef { name: "ci".into(), zone: Some("us-central1-a".into()), region: None };
    let github = GitHub {
        url: "https://github.com/acme".into(),
        credentials_secret_ref: SecretRef { name: "acme".into() },
        runner_group: None,
        labels: vec!["linux".into()],
    };
    let spec = RunnerVmSpec {
        pool: PoolRef { name: "linux".into(), uid: "pool".into() },
        project: "acme-ci".into(),
        group,
        github,
        template: crate::crd::Template::default(),
        lifecycle: Lifecycle::default(),
        runner: crate::crd::RunnerSettings::default(),
    };
    let mut vm = RunnerVm::new("linux-x", spec);
    vm.metadata.creation_timestamp = Some(KubeTime(at(0)));
    vm.metadata.generation = Some(1);
    VmView {
        vm,
        presence: Presence::Unknown,
        agent: None,
        rebooted: false,
        unsupported: None,
        // None that an agent would have to be told.
        settings: Settings::default(),
        access: Access::Usable { seen: None },
        memory: Memory { saw_unbound: true, ..Memory::default() },
        leading_since: at(0),
    }
}

pub(in crate::vm) fn instance(power: Power) -> Instance {
    Instance {
        name: "linux-x".into(),
        id: Some(InstanceId(1)),
        url: Some("url".into()),
        zone: Some("us-central1-a".into()),
        power,
        action: GroupAction::None,
        errors: Vec::new(),
    }
}

pub(in crate::vm) trait Build: Sized {
    fn status(self, change: impl FnOnce(&mut RunnerVmStatus)) -> Self;
    fn memory(self, change: impl FnOnce(&mut Memory)) -> Self;
    fn marked(self) -> Self;
    fn running(self) -> Self;
    fn bound(self, state: AgentState) -> Self;
    fn registered(self, state: AgentState) -> Self;
    fn deleting(self, second: i64) -> Self;
    fn absent(self, first: i64, last: i64) -> Self;
    fn exited(self, kind: ExitKind) -> Self;
    fn heard(self, second: i64) -> Self;
    fn idle_since(self, second: i64) -> Self;
    fn seen(self, second: i64) -> Self;
}

impl Build for VmView {
    fn status(mut self, change: impl FnOnce(&mut RunnerVmStatus)) -> Self {
        change(self.vm.status.get_or_insert_default());
        self
    }

    fn memory(mut self, change: impl FnOnce(&mut Memory)) -> Self {
        change(&mut self.memory);
        self
    }

    fn marked(self) -> Self {
        self.status(|s| s.create_requested_time = Some(KubeTime(at(0))))
            .memory(|m| m.creation = Some(Creation::Accepted { at: at(1) }))
    }

    fn running(mut self) -> Self {
        self.presence = Presence::Present(instance(Power::Running));
        self.marked().status(|s| s.launched_time = Some(KubeTime(at(10))))
    }

    fn bound(self, state: AgentState) -> Self {
        let mut view = self.running().status(|s| {
            s.agent = Some(AgentStatus {
                key_thumbprint: "k".into(),
                boot_id: "b".into(),
                version: "1".into(),
                state: String::new(),
                acked_sequence: 0,
            });
            s.instance = Some(InstanceStatus { id: "1".into(), group: "ci".into(), zone: "us-central1-a".into() });
            s.runner = Some(RunnerStatus { name: "linux-x-1".into(), attempt: 1, id: None, version: String::new() });
        });
        view.agent = Some(AgentView {
            connected: true,
            last_heard: at(20),
            idle_since: None,
            result_since: None,
            events: Ledger::default(),
            version: "1".into(),
            minor: 1,
            report: Report { state, ..Report::default() },
            ..AgentView::default()
        });
        view
    }

    fn registered(self, state: AgentState) -> Self {
        let mut view = self
            .bound(state)
            .status(|s| {
                s.runner = Some(RunnerStatus {
                    name: "linux-x-1".into(),
                    attempt: 1,
                    id: Some(RUNNER),
                    version: String::new(),
                })
            })
            .memory(|m| {
                m.registrations_asked = 1;
                m.config_sent = Some(at(20));
            });
        if let Some(agent) = &mut view.agent {
            agent.report.runner_name = "linux-x-1".into();
        }
        view.seen(20)
    }

    fn deleting(mut self, second: i64) -> Self {
        self.vm.metadata.deletion_timestamp = Some(KubeTime(at(second)));
        self
    }

    fn absent(mut self, first: i64, last: i64) -> Self {
        self.presence = Presence::Absent { first: at(first), last: at(last) };
        // What is not there has no connection.
        if let Some(agent) = &mut self.agent {
            agent.connected = false;
        }
        self.memory(|m| {
            m.listed = Some(at(last));
            m.absent_since = Some(at(first));
        })
    }

    fn exited(mut self, kind: ExitKind) -> Self {
        if let Some(agent) = &mut self.agent {
            agent.report.exit = Some(Exit { kind, code: 0, detail: String::new() });
        }
        self
    }

    fn heard(mut self, second: i64) -> Self {
        if let Some(agent) = &mut self.agent {
            agent.last_heard = at(second);
        }
        self
    }

    fn idle_since(mut self, second: i64) -> Self {
        if let Some(agent) = &mut self.agent {
            agent.idle_since = Some(at(second));
        }
        self
    }

    fn seen(mut self, second: i64) -> Self {
        self.access = Access::Usable { seen: Some(at(second)) };
        self
    }
}

fn planned(view: &VmView, second: i64) -> Plan {
    plan(view, at(second), &timing())
}

fn step(view: &VmView, second: i64) -> Step {
    planned(view, second).step
}

fn end(view: &VmView, second: i64) -> Option<End> {
    if let Step::End(end) = step(view, second) { Some(end) } else { None }
}

fn reason(view: &VmView, second: i64) -> Option<&'static str> {
    end(view, second).map(|end| end.reason)
}

fn waits_for(view: &VmView, second: i64) -> Option<&'static str> {
    let plan = planned(view, second);
    // To tell its agent something changes nothing about the VM.
    assert!(matches!(plan.step, Step::Wait | Step::Tell(_)), "it should wait: {:?}", plan.step);
    plan.wait.map(|wait| wait.reason)
}

fn url() -> Step {
    Step::DeleteInstance(DeleteTarget::Url("url".into()))
}

fn error(class: ErrorClass) -> ComputeError {
    let location = crate::compute::Location::Zone("us-central1-a".into());
    let group = Group { project: "acme-ci".into(), name: "ci".into(), location };
    ComputeError { action: "creating", group, class, ambiguous: false, message: "no".into(), retry_after: None }
}

mod drain;
mod events;
mod life;
mod model;
mod orders;
