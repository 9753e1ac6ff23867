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
    forge::{Deletion, Runner},
    gateway::{
        report::{AgentState, Exit, ExitKind, Report},
        sessions::AgentView,
    },
    vm::{
        memory::{Creation, Memory},
        view::{Access, Presence, Timing, VmView},
    },
};

pub(super) const RUNNER: i64 = 7;

pub(super) fn timing() -> Timing {
    Timing {
        absence: Duration::from_secs(60),
        idle_sighting: Duration::from_secs(100),
        scope_read: Duration::from_secs(60),
        create_deadline: Duration::from_secs(90),
        poll: Duration::from_secs(30),
    }
}

pub(super) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).expect("a time")
}

/// A VM without a status, made at 0, under an operator that leads since then.
pub(super) fn view() -> VmView {
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
    };
    let mut vm = RunnerVm::new("linux-x", spec);
    vm.metadata.creation_timestamp = Some(KubeTime(at(0)));
    vm.metadata.generation = Some(1);
    VmView {
        vm,
        presence: Presence::Unknown,
        agent: None,
        rebooted: false,
        access: Access::Usable { seen: None },
        memory: Memory { saw_unbound: true, ..Memory::default() },
        leading_since: at(0),
    }
}

pub(super) fn instance(power: Power) -> Instance {
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

trait Build: Sized {
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
            });
            s.instance = Some(InstanceStatus { id: "1".into(), group: "ci".into(), zone: "us-central1-a".into() });
            s.runner = Some(RunnerStatus { name: "linux-x-1".into(), attempt: 1, id: None });
        });
        view.agent = Some(AgentView {
            connected: true,
            last_heard: at(20),
            idle_since: None,
            version: "1".into(),
            report: Report { state, ..Report::default() },
        });
        view
    }

    fn registered(self, state: AgentState) -> Self {
        let mut view = self
            .bound(state)
            .status(|s| s.runner = Some(RunnerStatus { name: "linux-x-1".into(), attempt: 1, id: Some(RUNNER) }))
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
    assert_eq!(plan.step, Step::Wait, "it should wait");
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

#[test]
fn a_new_vm_is_asked_for() {
    assert_eq!(step(&view(), 0), Step::Create);
}

#[test]
fn a_vm_that_was_accepted_is_not_asked_for_twice_however_long_no_list_shows_it() {
    assert_eq!(step(&view().marked().absent(2, 250), 251), Step::Wait);
}

#[test]
fn a_mark_of_a_process_before_is_acted_on_only_after_two_lists_without_it() {
    let marked = || view().marked().memory(|m| m.creation = None);
    assert_eq!(step(&marked(), 200), Step::Wait, "no list");
    assert_eq!(step(&marked().absent(1, 149), 200), Step::Wait, "the call could still be under way at 90");
    assert_eq!(step(&marked().absent(1, 150), 200), Step::Create);
}

#[test]
fn a_creation_repeated_long_after_the_first_has_its_own_time_to_show() {
    let again = view().marked().memory(|m| m.creation = Some(Creation::Unknown { at: at(200) })).absent(1, 210);
    assert_eq!(step(&again, 211), Step::Wait);
    assert_eq!(step(&again.deleting(205), 211), Step::Wait, "it may appear yet");
}

#[test]
fn a_foreign_instance_under_the_name_ends_the_vm_and_is_not_touched() {
    let taken = Creation::Refused { error: error(ErrorClass::AlreadyExists), name_taken: true };
    let end = end(&view().marked().memory(|m| m.creation = Some(taken)), 5).expect("an end");
    assert_eq!((end.reason, end.never_created), ("NameTaken", true));
}

#[test]
fn a_vm_without_a_mark_is_let_go_at_once() {
    assert_eq!(step(&view().deleting(5), 5), Step::Release { left_behind: false });
}

#[test]
fn a_stockout_ends_the_vm_and_backs_the_group_off() {
    let mut view = view().marked();
    let error = LaunchError { class: ErrorClass::Capacity, code: "STOCKOUT".into(), message: "sold out".into() };
    view.presence = Presence::Present(Instance { errors: vec![error], ..instance(Power::Absent) });
    let end = end(&view, 30).expect("an end");
    assert_eq!((end.reason, end.back_off.map(|b| b.0)), ("Stockout", Some(ErrorClass::Capacity)));
}

#[test]
fn the_launch_timeout_needs_a_list_from_after_it() {
    assert_eq!(reason(&view().marked().absent(2, 299), 400), None);
    assert_eq!(reason(&view().marked().absent(2, 300), 400), Some("LaunchTimeout"));
}

#[test]
fn no_deadline_counts_the_time_when_no_process_led() {
    let mut launching = view().marked().memory(|m| m.creation = None).absent(1001, 1002);
    launching.leading_since = at(1000);
    assert_eq!(reason(&launching, 1003), None);
    let mut booting = view().running();
    booting.leading_since = at(1000);
    assert_eq!(step(&booting, 1003), Step::Wait);
}

#[test]
fn a_vm_that_never_calls_in_is_asked_for_its_last_words_and_ended_with_them() {
    let silent = view().running().status(|s| {
        s.instance = Some(InstanceStatus { id: "1".into(), group: "ci".into(), zone: "us-central1-a".into() });
    });
    assert_eq!(step(&silent, 609), Step::Wait);
    assert_eq!(step(&silent, 610), Step::AskLastWords);
    let end = end(&silent.memory(|m| m.last_words = Some("no route".into())), 611).expect("an end");
    assert_eq!(end.reason, "RegistrationTimeout");
    assert!(end.message.contains("no route"), "{}", end.message);
}

#[test]
fn github_in_trouble_is_not_blamed_on_the_vm() {
    let waiting = view().bound(AgentState::Ready).heard(700);
    assert_eq!(
        reason(&waiting.clone().memory(|m| m.last_words = Some(String::new())), 700),
        Some("RegistrationTimeout")
    );
    assert_eq!(reason(&waiting.memory(|m| m.forge_trouble = Some("500".into())), 700), None);
}

#[test]
fn a_bound_vm_is_registered_under_the_name_that_was_written_down() {
    assert_eq!(step(&view().bound(AgentState::Ready), 21), Step::Register { attempt: 1 });
}

#[test]
fn a_registration_of_which_nobody_knows_is_looked_for_before_the_next() {
    let lost = view().bound(AgentState::Ready).memory(|m| m.registrations_asked = 1);
    let looks = Step::ClearName { name: "linux-x-1".into() };
    assert_eq!(step(&lost, 21), looks);
    let looked = lost.memory(|m| m.name_looked = Some(at(21)));
    assert_eq!(step(&looked, 50), Step::Wait);
    assert_eq!(step(&looked, 51), looks);
    assert_eq!(step(&looked.memory(|m| m.name_cleared = true), 22), Step::Register { attempt: 2 });
}

#[test]
fn after_a_restart_a_written_name_is_looked_for_before_anything_is_asked() {
    let bound = view().bound(AgentState::Ready).memory(|m| m.saw_unbound = false);
    assert_eq!(step(&bound, 21), Step::ClearName { name: "linux-x-1".into() });
}

#[test]
fn a_name_is_clear_when_it_was_removed_or_stayed_absent_until_a_request_must_have_arrived() {
    let looked = |second, removed| {
        let mut memory = Memory::default();
        memory.name_looked(at(second), removed, at(10));
        memory.name_cleared
    };
    assert!(!looked(9, None));
    assert!(looked(10, None));
    assert!(looked(1, Some(Deletion::Deleted)));
    assert!(looked(1, Some(Deletion::NotFound)));
    assert!(!looked(99, Some(Deletion::Busy)));
}

#[test]
fn a_registration_that_may_not_have_arrived_is_never_sent_again() {
    let mut lost = view().registered(AgentState::Ready).memory(|m| m.config_sent = None);
    lost.agent.as_mut().expect("connected").report.runner_name.clear();
    assert_eq!(reason(&lost, 22), Some("DeliveryLost"));
}

#[test]
fn a_runner_ends_its_vm_with_what_its_end_means() {
    let ended = |kind| reason(&view().registered(AgentState::Ended).exited(kind), 25);
    assert_eq!(ended(ExitKind::JobDone), Some("JobCompleted"));
    assert_eq!(ended(ExitKind::WithoutJob), Some("RunnerExitedWithoutJob"));
    assert_eq!(ended(ExitKind::Failed), Some("RunnerFailed"));
}

#[test]
fn an_old_vm_is_drained() {
    let busy = view().registered(AgentState::Busy).heard(86_400);
    assert_eq!(reason(&busy, 86_399), None);
    assert_eq!(reason(&busy, 86_400), Some("MaxLifetime"));
    assert_eq!(waits_for(&busy.deleting(86_400), 86_400), Some("WaitingForJob"));
}

#[test]
fn silence_alone_ends_nothing_and_is_looked_into() {
    let silent = view().registered(AgentState::Busy).heard(20);
    assert_eq!(step(&silent, 109), Step::Wait);
    assert_eq!(step(&silent, 110), Step::Look { id: RUNNER });
    let busy = Runner { id: RUNNER, name: String::new(), online: false, busy: true };
    assert_eq!(step(&silent.clone().memory(|m| m.looked(at(110), Some(busy))), 111), Step::Wait);
    let offline = Runner { id: RUNNER, name: String::new(), online: false, busy: false };
    let once = silent.memory(|m| m.looked(at(110), Some(offline.clone())));
    assert_eq!(reason(&once, 111), None);
    assert_eq!(reason(&once.memory(|m| m.looked(at(210), Some(offline))), 211), Some("AgentLost"));
}

#[test]
fn the_longer_an_agent_is_silent_the_rarer_github_is_asked() {
    let runner = Runner { id: RUNNER, name: String::new(), online: false, busy: true };
    let silent = view().registered(AgentState::Busy).heard(20).memory(|m| m.looked(at(4000), Some(runner)));
    assert_eq!(step(&silent, 4500), Step::Wait);
    assert_eq!(step(&silent, 6000), Step::Look { id: RUNNER });
}

#[test]
fn a_ghost_is_replaced_when_it_said_idle_long_enough_and_the_scope_is_visible() {
    let ghost = view().registered(AgentState::Idle).idle_since(20).memory(|m| m.looked(at(115), None)).seen(110);
    assert_eq!(reason(&ghost.clone().heard(119), 121), None);
    assert_eq!(reason(&ghost.clone().heard(120), 121), Some("RegistrationGone"));
    assert_eq!(reason(&ghost.clone().heard(120).seen(50), 121), None, "the scope was seen too long ago");
    let mut blind = ghost.heard(120);
    blind.access = Access::Usable { seen: None };
    assert_eq!(reason(&blind, 121), None, "the scope is not visible");
}

#[test]
fn another_boot_another_instance_and_a_stopped_one_are_dead() {
    let idle = || view().registered(AgentState::Idle);
    let mut rebooted = idle();
    rebooted.rebooted = true;
    assert_eq!(reason(&rebooted, 21), Some("Rebooted"));
    let mut replaced = idle();
    replaced.presence = Presence::Present(Instance { id: Some(InstanceId(2)), ..instance(Power::Running) });
    assert_eq!(reason(&replaced, 21), Some("InstanceReplaced"));
    let mut down = idle();
    down.presence = Presence::Present(instance(Power::Down));
    assert_eq!(reason(&down, 21), Some("InstanceDown"));
    assert_eq!(reason(&idle().absent(30, 89), 90), None);
    assert_eq!(reason(&idle().absent(30, 90), 90), Some("InstanceGone"));
}

#[test]
fn an_idle_runner_is_removed_at_github_before_its_instance() {
    let idle = view().registered(AgentState::Idle).deleting(30);
    assert_eq!(step(&idle, 31), Step::Deregister { id: RUNNER });
    assert_eq!(step(&idle.memory(|m| m.deletion = Some((at(31), Deletion::Deleted))), 32), url());
}

#[test]
fn a_busy_runner_is_waited_for_and_asked_about_again() {
    let busy = view().registered(AgentState::Idle).deleting(30).memory(|m| m.deletion = Some((at(31), Deletion::Busy)));
    assert_eq!(waits_for(&busy, 60), Some("WaitingForJob"));
    assert_eq!(step(&busy, 61), Step::Deregister { id: RUNNER });
}

#[test]
fn the_word_of_a_silent_agent_does_not_hold_up_a_drain() {
    let busy = view().registered(AgentState::Busy).deleting(30);
    assert_eq!(waits_for(&busy, 109), Some("WaitingForJob"));
    assert_eq!(step(&busy, 110), Step::Deregister { id: RUNNER });
}

#[test]
fn a_404_proves_nothing_while_the_vm_lives_and_its_agent_says_busy_or_nothing() {
    let gone = |state| {
        view().registered(state).deleting(30).memory(|m| m.deletion = Some((at(200), Deletion::NotFound))).seen(200)
    };
    assert_eq!(waits_for(&gone(AgentState::Busy).heard(200), 201), Some("WaitingForProof"));
    assert_eq!(step(&gone(AgentState::Idle).idle_since(20).heard(200), 201), Step::NoteRegistrationGone);
    assert_eq!(step(&gone(AgentState::Ended).exited(ExitKind::JobDone), 201), Step::NoteRegistrationGone);
    let mut unheard = gone(AgentState::Idle);
    unheard.agent = None;
    assert_eq!(waits_for(&unheard, 201), Some("WaitingForProof"));
    unheard.presence = Presence::Present(instance(Power::Down));
    assert!(matches!(step(&unheard, 201), Step::DeleteInstance(_)), "a dead machine is given back at once");
}

#[test]
fn a_404_after_a_lost_delivery_is_proof_when_the_agent_has_no_runner() {
    let mut lost = view().registered(AgentState::Ready).deleting(30).idle_since(20).heard(200).seen(200);
    lost.agent.as_mut().expect("connected").report.runner_name.clear();
    let lost = lost.memory(|m| m.deletion = Some((at(200), Deletion::NotFound)));
    assert_eq!(step(&lost, 201), Step::NoteRegistrationGone);
}

#[test]
fn a_404_while_the_scope_was_not_seen_for_a_while_asks_for_the_scope() {
    let gone = view().registered(AgentState::Ended).exited(ExitKind::JobDone).deleting(30);
    let gone = gone.memory(|m| m.deletion = Some((at(200), Deletion::NotFound))).seen(100);
    assert_eq!(step(&gone, 201), Step::CheckScope);
    assert_eq!(step(&gone.seen(201), 202), Step::NoteRegistrationGone);
}

#[test]
fn the_object_goes_only_after_two_lists_without_the_instance() {
    let gone = view().registered(AgentState::Idle).deleting(30).memory(|m| m.registration_gone = true);
    let asked = gone.memory(|m| m.delete_asked = Some(at(40)));
    assert_eq!(step(&asked, 41), Step::Wait, "it was asked for a moment ago");
    assert_eq!(step(&asked, 70), url(), "it is still there");
    assert_eq!(step(&asked.clone().absent(50, 109), 110), Step::Wait);
    assert_eq!(step(&asked.absent(50, 110), 110), Step::Release { left_behind: false });
}

#[test]
fn only_the_users_deadline_and_word_cut_a_job() {
    let busy = view().registered(AgentState::Busy).deleting(30).heard(432_029);
    assert_eq!(waits_for(&busy, 432_029), Some("WaitingForJob"));
    assert_eq!(step(&busy, 432_030), url());
    let mut now = busy.heard(40);
    now.vm.metadata.annotations = Some([(names::TERMINATE_NOW.to_owned(), "leak".to_owned())].into());
    assert_eq!(step(&now, 41), url());
}

#[test]
fn a_forge_that_never_answers_holds_the_object_no_longer_than_the_grace() {
    let gone = view().registered(AgentState::Busy).deleting(30).absent(40, 432_100);
    let troubled = gone.clone().memory(|m| m.forge_trouble = Some("401".into()));
    assert_eq!(step(&troubled, 432_029), Step::Deregister { id: RUNNER });
    assert_eq!(step(&gone, 432_110), Step::Deregister { id: RUNNER }, "it still answers");
    assert_eq!(step(&troubled, 432_110), Step::Release { left_behind: true });
}

#[test]
fn a_blocked_forge_is_waited_for_and_touches_nothing() {
    let mut blocked = view().registered(AgentState::Idle).deleting(30);
    blocked.access = Access::Blocked("the Secret does not exist".into());
    assert_eq!(waits_for(&blocked, 40), Some("WaitingForGitHub"));
}

#[test]
fn with_its_namespace_gone_an_idle_listener_is_stopped_and_a_busy_one_finishes() {
    let mut lost = view().registered(AgentState::Idle).deleting(30);
    lost.access = Access::Lost;
    assert_eq!(step(&lost, 31), Step::TellDrain);
    let told = lost.memory(|m| m.drain_told = true);
    assert_eq!(waits_for(&told, 32), Some("CredentialsGone"));
    let ended = told.exited(ExitKind::WithoutJob);
    assert_eq!(step(&ended, 33), url());
    assert_eq!(step(&ended.absent(40, 100), 101), Step::Release { left_behind: true });
}

#[test]
fn no_pass_asks_to_be_run_again_at_once() {
    assert!(planned(&view(), 0).again >= Duration::from_millis(20));
    assert_eq!(later(Timestamp::MAX, Duration::from_secs(1)), Timestamp::MAX);
}
