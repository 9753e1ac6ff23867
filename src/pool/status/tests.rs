//! What a reader sees of one pool, and that `Ready` keeps still while its VMs come and go.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::{
    crd::{KubeTime, RunnerPool},
    pool::{
        history::History,
        plan::tests::{group, no_offer, now, pool, vm},
    },
    vm::plan::later,
};

const REPLICAS: i32 = 3;

fn view(phases: &[Phase]) -> PoolView {
    let mut pool = pool(REPLICAS, 10, false);
    pool.metadata.generation = Some(1);
    PoolView {
        pool,
        vms: phases.iter().enumerate().map(|(number, phase)| vm(number, *phase, false, false)).collect(),
        expected: 0,
        forge: Check::Good,
        offer: no_offer(),
        support: None,
        groups: vec![group(0, true, false, 0), group(1, true, false, 0)],
        history: History::default(),
        random: Vec::new(),
        swept: false,
    }
}

fn state(status: &RunnerPoolStatus, kind: &str) -> Option<(String, String)> {
    find(&status.conditions, kind).map(|condition| (condition.status.clone(), condition.reason.clone()))
}

fn full() -> RunnerPoolStatus {
    status(&view(&[Phase::Idle; 3]), None, now())
}

fn is(status: &RunnerPoolStatus, kind: &str, state_: &str) -> bool {
    state(status, kind).is_some_and(|(status, _)| status == state_)
}

fn bad() -> Check {
    Check::Bad { reason: "AutoscalerOn".into(), message: "turn it off".into() }
}

#[test]
fn a_new_pool_is_reconciling_until_it_has_its_size() {
    let starting = status(&view(&[Phase::Idle, Phase::Booting, Phase::Launching]), Some(now()), now());
    assert!(is(&starting, READY, "False") && is(&starting, RECONCILING, "True"), "{starting:?}");
    assert_eq!((starting.replicas, starting.ready_replicas, starting.idle_replicas), (3, 1, 1));
    assert!(is(&full(), READY, "True") && state(&full(), RECONCILING).is_none());
}

#[test]
fn a_lasting_shortage_is_told_and_a_short_one_is_not() {
    let mut short = view(&[Phase::Idle, Phase::Booting]);
    short.pool.status = Some(full());
    let lifecycle = &short.pool.spec.lifecycle;
    let patience = lifecycle.launch_timeout_seconds + lifecycle.registration_timeout_seconds;
    let after = |seconds| later(now(), Duration::from_secs(u64::try_from(seconds).expect("positive")));
    assert!(is(&status(&short, Some(now()), after(patience - 1)), READY, "True"));
    let overdue = status(&short, Some(now()), after(patience));
    assert!(is(&overdue, READY, "False") && is(&overdue, RECONCILING, "True"));
}

#[test]
fn what_only_a_person_can_mend_is_stalled_and_says_why() {
    let mut view = view(&[Phase::Idle; 3]);
    for group in &mut view.groups {
        group.settings = bad();
    }
    let status = status(&view, None, now());
    assert_eq!(state(&status, STALLED), Some(("True".into(), "AutoscalerOn".into())));
    assert_eq!(state(&status, READY), Some(("False".into(), "AutoscalerOn".into())));
    assert_eq!(state(&status, RECONCILING), None, "one or the other");
}

#[test]
fn one_bad_group_of_two_is_told_without_harm() {
    let mut view = view(&[Phase::Idle; 3]);
    view.groups[0].settings = bad();
    let status = status(&view, None, now());
    assert_eq!(state(&status, GROUP_HEALTHY), Some(("True".into(), "SomeUnhealthy".into())));
    assert!(is(&status, READY, "True"));
}

#[test]
fn capacity_is_missing_only_when_every_group_backs_off() {
    let mut view = view(&[Phase::Idle]);
    view.groups = vec![group(0, true, true, 0), group(1, true, false, 0)];
    assert_eq!(state(&status(&view, None, now()), CAPACITY_AVAILABLE), Some(("True".into(), "SomeBackingOff".into())));
    view.groups = vec![group(0, true, true, 0)];
    let dry = status(&view, Some(now()), now());
    assert!(is(&dry, CAPACITY_AVAILABLE, "False"));
    assert_eq!(state(&dry, READY).expect("told").1, "NoCapacity");
}

#[test]
fn no_answer_of_the_forge_is_unknown_and_not_a_failure() {
    let mut view = view(&[Phase::Idle; 3]);
    view.forge = Check::Unknown { reason: "Unavailable".into(), message: "500".into() };
    let status = status(&view, None, now());
    assert!(is(&status, CREDENTIALS_VALID, "Unknown") && is(&status, READY, "True"));
    assert_eq!(state(&status, STALLED), None);
}

#[test]
fn a_pool_that_goes_is_neither_ready_nor_reconciling() {
    let mut view = view(&[Phase::Draining]);
    view.pool.metadata.deletion_timestamp = Some(KubeTime(now()));
    let status = status(&view, None, now());
    assert_eq!(state(&status, READY), Some(("False".into(), "Deleting".into())));
    assert_eq!((state(&status, RECONCILING), state(&status, STALLED)), (None, None));
}

/// Single-job VMs between their making and their end.
fn phases() -> impl Strategy<Value = Vec<Phase>> {
    let phase = prop_oneof![
        Just(Phase::Launching),
        Just(Phase::Booting),
        Just(Phase::Registering),
        Just(Phase::Idle),
        Just(Phase::Busy),
    ];
    prop::collection::vec(phase, 0..4)
}

/// The statuses a pool gets that once was full, looked at every few seconds.
fn lived(days: Vec<(Vec<Phase>, u64)>) -> Vec<RunnerPoolStatus> {
    let mut object: RunnerPool = view(&[]).pool;
    object.status = Some(full());
    let (mut time, mut short_since) = (now(), None);
    days.into_iter()
        .map(|(phases, seconds)| {
            time = later(time, Duration::from_secs(seconds));
            let view = PoolView { pool: object.clone(), ..view(&phases) };
            let short = view.active().filter(|vm| vm.ready()).count() < view.desired();
            short_since = if short { short_since.or(Some(time)) } else { None };
            let status = status(&view, short_since, time);
            object.status = Some(status.clone());
            status
        })
        .collect()
}

proptest! {
    #[test]
    fn ready_does_not_flap_while_vms_come_and_go(days in prop::collection::vec((phases(), 0..30_u64), 1..30)) {
        // At most 29 times 30 s: shorter than the 900 s a VM may take by default.
        for status in lived(days) {
            prop_assert!(is(&status, READY, "True"), "{:?}", status.conditions);
            prop_assert!(state(&status, RECONCILING).is_none() && state(&status, STALLED).is_none());
        }
    }

    #[test]
    fn a_second_look_at_the_same_pool_is_no_news(phases in phases()) {
        let mut view = view(&phases);
        let first = status(&view, Some(now()), now());
        view.pool.status = Some(first.clone());
        prop_assert_eq!(status(&view, Some(now()), later(now(), Duration::from_secs(60))), first);
    }
}
