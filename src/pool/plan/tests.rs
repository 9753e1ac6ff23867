//! Any pool at any moment: never above its bound, never a busy victim, never a group that must be left alone.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::{
    compute::{ErrorClass, Group, Location, groups::BackOff},
    crd::RunnerPool,
    pool::{history::History, view::Offered},
};

const RETRY: Duration = Duration::from_secs(30);

pub(in crate::pool) fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).expect("a time")
}

pub(in crate::pool) fn pool(replicas: i32, max: i32, paused: bool) -> RunnerPool {
    serde_json::from_value(json!({
        "apiVersion": "miglet.dev/v1alpha1", "kind": "RunnerPool",
        "metadata": {"name": "linux", "namespace": "ci", "uid": "pool"},
        "spec": {
            "replicas": replicas, "limits": {"max": max}, "paused": paused,
            "github": {"url": "https://github.com/acme", "credentialsSecretRef": {"name": "acme"}, "labels": ["linux"]},
            "compute": {"gce": {"project": "acme-ci", "groups": [{"name": "a", "zone": "z-a"}, {"name": "b", "zone": "z-b"}]}},
        },
    }))
    .expect("a pool")
}

pub(in crate::pool) fn no_offer() -> Offered {
    Offered::Unknown { reason: "NotAsked".into(), message: String::new() }
}

pub(in crate::pool) fn vm(number: usize, phase: Phase, leaving: bool, outdated: bool) -> VmFact {
    VmFact {
        name: format!("linux-{number}"),
        uid: number.to_string(),
        resource_version: "1".into(),
        created: Timestamp::from_second(i64::try_from(number).expect("small")).ok(),
        phase,
        leaving,
        deleting: leaving,
        end: None,
        end_message: String::new(),
        runner_version: String::new(),
        outdated,
        owned: true,
    }
}

pub(in crate::pool) fn group(index: usize, good: bool, backs_off: bool, size: usize) -> GroupFact {
    let settings =
        if good { Check::Good } else { Check::Bad { reason: "AutoscalerOn".into(), message: String::new() } };
    let back_off = backs_off.then(|| BackOff {
        until: now() + Duration::from_secs(60),
        class: ErrorClass::Capacity,
        message: String::new(),
    });
    let group = Group { project: "acme-ci".into(), name: format!("g{index}"), location: Location::Zone("z".into()) };
    GroupFact { group, index, settings, back_off, size }
}

fn phase() -> impl Strategy<Value = Phase> {
    prop_oneof![
        Just(Phase::Launching),
        Just(Phase::Booting),
        Just(Phase::Registering),
        Just(Phase::Idle),
        Just(Phase::Busy),
        Just(Phase::Draining),
    ]
}

prop_compose! {
    fn view()(
        replicas in 0..30_i32, max in 0..30_i32, paused in prop::bool::weighted(0.1), expected in 0..3_usize,
        vms in prop::collection::vec((phase(), prop::bool::weighted(0.2), prop::bool::weighted(0.2)), 0..40),
        groups in prop::collection::vec((any::<bool>(), any::<bool>(), 980..1001_usize), 1..3),
        forge in prop::bool::weighted(0.9),
        random in prop::collection::vec(any::<u64>(), 40),
    ) -> PoolView {
        let unsure = Check::Unknown { reason: "Unavailable".into(), message: String::new() };
        PoolView {
            pool: pool(replicas, max, paused),
            vms: vms.into_iter().enumerate().map(|(i, (phase, leaving, old))| vm(i, phase, leaving, old)).collect(),
            expected,
            forge: if forge { Check::Good } else { unsure },
            offer: no_offer(),
            support: None,
            groups: groups.into_iter().enumerate().map(|(i, (good, off, size))| group(i, good, off, size)).collect(),
            history: History::default(),
            random,
            swept: false,
        }
    }
}

/// The pool after the plan was carried out: new VMs launch, deleted ones leave.
fn applied(mut view: PoolView, plan: &Plan) -> PoolView {
    for vm in &mut view.vms {
        if plan.delete.iter().any(|removal| removal.vm.uid == vm.uid) {
            (vm.leaving, vm.deleting) = (true, true);
        }
    }
    let first = view.vms.len();
    view.vms.extend((first..first + plan.create.len()).map(|number| vm(number, Phase::Launching, false, false)));
    view
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_pool_never_makes_more_than_its_bound(view in view()) {
        let plan = plan(&view, now(), RETRY);
        let max = usize::try_from(view.pool.spec.limits.max).expect("small");
        prop_assert!(plan.create.is_empty() || view.vms.len() + view.expected + plan.create.len() <= max);
        prop_assert!(view.active().count() + plan.create.len() <= view.desired().max(view.active().count()));
    }

    #[test]
    fn a_busy_vm_is_never_a_victim_and_never_more_go_than_are_too_many(view in view()) {
        let plan = plan(&view, now(), RETRY);
        prop_assert!(plan.delete.iter().all(|removal| removal.vm.phase != Phase::Busy && !removal.vm.leaving));
        let scaled = plan.delete.iter().filter(|removal| removal.reason == "ScaledDown").count();
        prop_assert!(scaled <= view.active().count().saturating_sub(view.desired()));
        prop_assert!(plan.delete.iter().filter(|removal| removal.reason == "Outdated").count() <= 1);
    }

    #[test]
    fn only_a_group_that_may_be_asked_is_asked_and_the_preferred_one_first(view in view()) {
        let plan = plan(&view, now(), RETRY);
        for new in &plan.create {
            prop_assert!(usable(&view.groups[new.group], now()));
        }
        if let (Some(first), Some(best)) = (plan.create.first(), view.groups.iter().find(|g| usable(g, now()) && g.size < 1000)) {
            prop_assert_eq!(first.group, best.index);
        }
    }

    #[test]
    fn a_paused_pool_and_one_github_does_not_answer_for_make_nothing(view in view()) {
        let plan = plan(&view, now(), RETRY);
        if view.pool.spec.paused {
            prop_assert!(plan.create.is_empty() && plan.delete.is_empty());
        }
        if view.forge != Check::Good {
            prop_assert!(plan.create.is_empty());
        }
    }

    #[test]
    fn a_plan_carried_out_leaves_nothing_of_it_to_do(view in view()) {
        let first = plan(&view, now(), RETRY);
        let second = plan(&applied(view.clone(), &first), now(), RETRY);
        // Where the groups' room was the bound, their next lists decide how much is left.
        let free: usize = view.groups.iter().filter(|g| usable(g, now())).map(|g| 1000 - g.size.min(1000)).sum();
        prop_assert!(second.create.is_empty() || first.create.len() == free, "more after {} of {free}", first.create.len());
        let again = |removal: &Removal| first.delete.iter().any(|before| before.vm.uid == removal.vm.uid);
        prop_assert!(!second.delete.iter().any(again));
    }
}

#[test]
fn scaling_down_takes_what_has_got_least_far_first() {
    let phases = [Phase::Idle, Phase::Busy, Phase::Launching, Phase::Booting];
    let vms = phases.into_iter().enumerate().map(|(i, phase)| vm(i, phase, false, false)).collect();
    let view = PoolView {
        pool: pool(2, 10, false),
        vms,
        expected: 0,
        forge: Check::Good,
        offer: no_offer(),
        support: None,
        groups: vec![group(0, true, false, 0)],
        history: History::default(),
        random: Vec::new(),
        swept: false,
    };
    let names: Vec<_> = plan(&view, now(), RETRY).delete.into_iter().map(|removal| removal.vm.phase).collect();
    assert_eq!(names, [Phase::Launching, Phase::Booting]);
}
