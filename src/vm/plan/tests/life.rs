//! A VM nobody wants gone.

use super::*;

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
    let waiting = view().bound(AgentState::Ready).heard(700).memory(|m| m.last_words = Some(String::new()));
    assert_eq!(reason(&waiting, 700), None, "it is GitHub's turn, or ours");
    let given = waiting.memory(|m| m.config_sent = Some(at(90)));
    assert_eq!(reason(&given, 689), None);
    assert_eq!(reason(&given, 690), Some("RegistrationTimeout"));
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
    let mut refused = view().registered(AgentState::Ended).exited(ExitKind::Failed);
    let report = &mut refused.agent.as_mut().expect("connected").report;
    report.exit.as_mut().expect("an exit").code = 7;
    assert_eq!(reason(&refused, 25), Some("RunnerVersionRefused"));
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
    let ghost = view().registered(AgentState::Idle).idle_since(20).memory(|m| m.looked(at(115), None)).seen(116);
    assert_eq!(reason(&ghost.clone().heard(119), 121), None);
    assert_eq!(reason(&ghost.clone().heard(120), 121), Some("RegistrationGone"));
    assert_eq!(reason(&ghost.clone().heard(120).seen(114), 121), None, "the scope was last seen before the 404");
    let mut blind = ghost.heard(120);
    blind.access = Access::Usable { seen: None };
    assert_eq!(reason(&blind, 121), None, "the scope is not visible");
}

#[test]
fn an_agents_word_of_a_ghost_is_looked_into_at_once_and_needs_githubs_own() {
    let haunted = |state| {
        let mut view = view().registered(state).heard(30);
        if let Some(agent) = &mut view.agent {
            agent.report.ghost = true;
        }
        view
    };
    let idle = haunted(AgentState::Idle);
    assert_eq!(step(&idle, 31), Step::Look { id: RUNNER });
    let gone = idle.clone().memory(|m| m.looked(at(31), None));
    assert_eq!(step(&gone, 32), Step::CheckScope);
    assert_eq!(reason(&gone.seen(32), 33), Some("RegistrationGone"));
    let there = Runner { id: RUNNER, name: String::new(), online: true, busy: false };
    let there = idle.memory(|m| m.looked(at(31), Some(there))).heard(130);
    assert_eq!(step(&there, 130), Step::Wait, "a word that is not true costs GitHub a call now and then");
    assert_eq!(step(&there.heard(132), 132), Step::Look { id: RUNNER });
    let busy = haunted(AgentState::Busy).memory(|m| m.looked(at(31), None)).seen(32);
    assert_eq!(step(&busy, 33), Step::Wait, "with a job on the machine its word is the job's");
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
fn a_machine_that_stops_has_its_time_while_its_agent_speaks() {
    let mut busy = view().registered(AgentState::Busy).heard(20);
    busy.presence = Presence::Present(instance(Power::Stopping));
    assert_eq!(reason(&busy, 21), None, "its job may still be told");
    let mut silent = busy.clone();
    silent.agent.as_mut().expect("connected").connected = false;
    assert_eq!(reason(&silent, 21), Some("InstanceDown"));
    busy.presence = Presence::Present(instance(Power::Down));
    assert_eq!(reason(&busy, 21), Some("InstanceDown"), "power outweighs words");
}

#[test]
fn a_group_that_answers_404_for_a_while_ends_no_vm_whose_agent_speaks() {
    let mut speaks = view().registered(AgentState::Idle).absent(30, 90);
    assert_eq!(reason(&speaks, 90), Some("InstanceGone"));
    speaks.agent.as_mut().expect("known").connected = true;
    assert_eq!(reason(&speaks, 90), None);
}

fn with_job(repository: &str) -> VmView {
    let mut view = view().registered(AgentState::Busy).heard(30);
    if let Some(agent) = &mut view.agent {
        let (run_id, run_attempt) = (Some(42), Some(2));
        let job = Job { name: "build".into(), repository: repository.into(), run_id, run_attempt, ..Job::default() };
        agent.report.job = Some(job);
    }
    view
}

#[test]
fn the_job_is_asked_for_once_it_says_which_run_it_belongs_to() {
    assert_eq!(step(&with_job(""), 31), Step::Wait);
    let run = Run { repository: "acme/app".into(), id: 42, attempt: 2 };
    assert_eq!(step(&with_job("acme/app"), 31), Step::FindJob(run));
    assert_eq!(step(&with_job("acme/app").memory(|m| m.job_looked = true), 31), Step::Wait);
    let mut blocked = with_job("acme/app");
    blocked.access = Access::Blocked("no".into());
    assert_eq!(step(&blocked, 31), Step::Wait);
}

fn told(view: VmView, change: impl FnOnce(&mut Report)) -> VmView {
    let mut view = view;
    change(&mut view.agent.as_mut().expect("connected").report);
    view
}

#[test]
fn a_machine_that_is_taken_away_ends_its_vm_with_the_reason_whatever_became_of_its_runner() {
    let busy = || view().registered(AgentState::Busy).heard(30);
    let noticed = |notice| move |report: &mut Report| report.notice = Some(notice);
    assert_eq!(reason(&told(busy(), noticed(Notice::Preempted)), 31), Some("Preempted"));
    assert_eq!(reason(&told(busy().exited(ExitKind::JobDone), noticed(Notice::Preempted)), 31), Some("Preempted"));
    assert_eq!(reason(&told(busy(), noticed(Notice::Maintenance)), 31), Some("HostMaintenance"));
    let guard = |acted| {
        move |report: &mut Report| {
            report.guard = Some(Guard { kind: GuardKind::Disk, acted, detail: "96 %".into() });
        }
    };
    assert_eq!(reason(&told(busy(), guard(false)), 31), None, "a warning ends nothing");
    let end = end(&told(busy(), guard(true)), 31).expect("an end");
    assert_eq!(end.reason, "DiskFull");
    assert!(end.message.contains("96 %"), "{}", end.message);
}

#[test]
fn a_machine_drained_from_within_ends_and_one_whose_runner_has_ended_says_how() {
    let drained = |view| told(view, |report| report.draining = true);
    assert_eq!(reason(&drained(view().registered(AgentState::Idle).heard(30)), 31), Some("DrainedOnMachine"));
    assert_eq!(
        reason(&drained(view().registered(AgentState::Busy).exited(ExitKind::JobDone)), 31),
        Some("JobCompleted")
    );
}
