//! The table of callers and answers.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::*;
use crate::{
    compute::{GroupAction, Instance, InstanceId},
    crd::KubeTime,
};

const CREATED: i64 = 1_800_000_000;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(CREATED + seconds).expect("a time")
}

fn vm(status: Value) -> RunnerVm {
    let mut vm: RunnerVm = serde_json::from_value(json!({
        "apiVersion": "miglet.dev/v1alpha1", "kind": "RunnerVM",
        "metadata": {"name": "linux-a", "namespace": "ci", "resourceVersion": "7"},
        "spec": {
            "pool": {"name": "linux", "uid": "u"},
            "project": "acme-ci",
            "group": {"name": "ci-linux", "zone": "us-central1-a"},
            "github": {"url": "https://github.com/acme", "credentialsSecretRef": {"name": "app"}, "labels": ["x"]},
        },
        "status": status,
    }))
    .expect("a RunnerVM");
    vm.metadata.creation_timestamp = Some(KubeTime(at(0)));
    vm
}

fn bound_vm() -> RunnerVm {
    vm(json!({
        "agent": {"keyThumbprint": "key-1", "bootId": "boot-1"},
        "instance": {"id": "42", "group": "ci-linux", "zone": "us-central1-a"},
        "runner": {"name": "linux-a-1", "attempt": 1},
    }))
}

fn caller() -> Caller {
    Caller {
        identity: VmIdentity {
            project_id: "acme-ci".into(),
            zone: "us-central1-a".into(),
            instance_id: InstanceId(42),
            instance_name: "linux-a".into(),
            created: at(5),
            email: String::new(),
        },
        thumbprint: "key-1".into(),
        boot_id: "boot-1".into(),
    }
}

fn list(id: Option<u64>, power: Power) -> Listing {
    let instance = Instance {
        name: "linux-a".into(),
        id: id.map(InstanceId),
        url: None,
        zone: None,
        power,
        action: GroupAction::None,
        errors: Vec::new(),
    };
    Listing { asked_at: at(9), instances: [("linux-a".to_owned(), instance)].into() }
}

fn running() -> Listing {
    list(Some(42), Power::Running)
}

fn first(caller: &Caller, vm: &RunnerVm) -> Decision {
    decide(caller, vm, Some(&running()), at(10))
}

fn with(change: impl FnOnce(&mut Caller)) -> Caller {
    let mut caller = caller();
    change(&mut caller);
    caller
}

#[test]
fn a_young_listed_instance_of_an_unbound_vm_makes_first_contact() {
    assert_eq!(first(&caller(), &vm(json!({}))), Decision::FirstContact);
    assert_eq!(decide(&caller(), &vm(Value::Null), None, at(10)), Decision::AskList);
}

#[test]
fn an_instance_that_is_not_the_runnervms_is_refused() {
    let cases = [
        (with(|c| c.identity.instance_name = "linux-b".into()), Refusal::UnknownVm),
        (with(|c| c.identity.project_id = "evil".into()), Refusal::OtherProject),
        (with(|c| c.identity.zone = "us-central1-b".into()), Refusal::OtherZone),
        (with(|c| c.identity.created = at(-61)), Refusal::OlderThanVm),
        (with(|c| c.identity.instance_id = InstanceId(43)), Refusal::OtherInstance),
    ];
    for (caller, reason) in cases {
        assert_eq!(first(&caller, &vm(json!({}))), Decision::Refuse(reason));
        assert_eq!(first(&caller, &bound_vm()), Decision::Refuse(reason), "also when it is bound");
    }
}

#[test]
fn two_clocks_may_differ_by_a_minute() {
    assert_eq!(first(&with(|c| c.identity.created = at(-60)), &vm(json!({}))), Decision::FirstContact);
}

#[test]
fn a_list_without_the_instance_is_no_refusal_yet() {
    let empty = Listing { asked_at: at(9), instances: BTreeMap::new() };
    assert_eq!(decide(&caller(), &vm(json!({})), Some(&empty), at(10)), Decision::NotYet);
    let queued = list(None, Power::Absent);
    assert_eq!(decide(&caller(), &vm(json!({})), Some(&queued), at(10)), Decision::NotYet);
}

#[test]
fn an_instance_that_goes_down_makes_no_first_contact() {
    let down = list(Some(42), Power::Down);
    assert_eq!(decide(&caller(), &vm(json!({})), Some(&down), at(10)), Decision::Refuse(Refusal::InstanceDown));
}

#[test]
fn first_contact_closes_with_the_deadlines_the_registration_and_the_deletion() {
    let late = decide(&caller(), &vm(json!({})), Some(&running()), at(5 + 901));
    assert_eq!(late, Decision::Refuse(Refusal::TooLate));
    let registered = vm(json!({"runner": {"name": "linux-a-1", "attempt": 1}}));
    assert_eq!(first(&caller(), &registered), Decision::Refuse(Refusal::AlreadyRegistered));
    let mut deleted = vm(json!({}));
    deleted.metadata.deletion_timestamp = Some(KubeTime(at(8)));
    assert_eq!(first(&caller(), &deleted), Decision::Refuse(Refusal::Deleting));
}

#[test]
fn the_bound_key_in_the_bound_boot_reconnects_without_a_list_at_any_age() {
    let mut vm = bound_vm();
    vm.metadata.deletion_timestamp = Some(KubeTime(at(8)));
    assert_eq!(decide(&caller(), &vm, None, at(400_000)), Decision::Reconnect);
}

#[test]
fn another_key_in_the_bound_boot_never_takes_over() {
    let thief = with(|c| c.thumbprint = "key-2".into());
    assert_eq!(first(&thief, &bound_vm()), Decision::Refuse(Refusal::KeyMismatch));
}

#[test]
fn another_boot_ends_the_vm_whatever_its_key() {
    assert_eq!(first(&with(|c| c.boot_id = "boot-2".into()), &bound_vm()), Decision::Rebooted);
    let both = with(|c| (c.boot_id, c.thumbprint) = ("boot-2".into(), "key-2".into()));
    assert_eq!(first(&both, &bound_vm()), Decision::Rebooted);
}
