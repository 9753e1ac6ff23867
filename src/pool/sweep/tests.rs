use super::*;

fn config() -> SweepConfig {
    let minute = Duration::from_mins(1);
    SweepConfig { interval: minute, sightings: minute, runner_list: minute, limit: 2 }
}

fn runner(id: i64, name: &str, online: bool) -> Runner {
    Runner { id, name: name.into(), online, busy: false }
}

#[test]
fn only_offline_registrations_of_this_pool_without_an_object_are_strays() {
    let runners = [
        runner(1, "linux-abc-vm1-1", false),
        runner(2, "linux-abc-vm2-1", false),
        runner(3, "linux-abc-vm3-1", true),
        runner(4, "linux-xyz-vm4-1", false),
    ];
    let vms = BTreeSet::from(["linux-abc-vm1".to_owned()]);
    let strays = stray_runners(&runners, "linux-abc-", &vms, &BTreeSet::new());
    assert_eq!(strays.iter().filter_map(runner_id).collect::<Vec<_>>(), [2]);
}

#[test]
fn a_leftover_is_removed_only_when_seen_twice_far_enough_apart_and_a_few_at_a_time() {
    let found: BTreeSet<_> = (1..=3).map(|id| Stray::Runner { id, name: String::new() }).collect();
    let mut seen = BTreeMap::new();
    let start = Timestamp::UNIX_EPOCH;
    assert!(due(&mut seen, &found, &[], start, &config()).is_empty());
    assert!(due(&mut seen, &found, &[], later(start, Duration::from_secs(59)), &config()).is_empty());
    assert_eq!(due(&mut seen, &found, &[], later(start, Duration::from_mins(1)), &config()).len(), 2);
}

#[test]
fn a_leftover_that_was_gone_in_between_starts_over() {
    let found = BTreeSet::from([Stray::Runner { id: 1, name: String::new() }]);
    let mut seen = BTreeMap::new();
    let start = Timestamp::UNIX_EPOCH;
    assert!(due(&mut seen, &found, &[], start, &config()).is_empty());
    assert!(due(&mut seen, &BTreeSet::new(), &[], start, &config()).is_empty());
    assert!(due(&mut seen, &found, &[], later(start, Duration::from_mins(9)), &config()).is_empty());
}

fn instance(name: &str) -> Stray {
    let location = crate::compute::Location::Zone("z".into());
    let group = Group { project: "p".into(), name: "g".into(), location };
    Stray::Instance { group, name: name.into(), url: None }
}

#[test]
fn a_leftover_instance_waits_for_its_registration_which_goes_first_unless_it_has_a_job() {
    let found = BTreeSet::from([instance("linux-abc-vm1")]);
    let (start, late) = (Timestamp::UNIX_EPOCH, later(Timestamp::UNIX_EPOCH, Duration::from_mins(9)));
    let mut seen = BTreeMap::from([(instance("linux-abc-vm1"), start)]);
    let idle = runner(1, "linux-abc-vm1-1", true);
    let busy = Runner { busy: true, ..idle.clone() };
    let strays = |runner: Runner| stray_runners(&[runner], "linux-abc-", &BTreeSet::new(), &found);
    assert_eq!(strays(busy.clone()).len(), 0);
    assert_eq!(strays(idle.clone()).len(), 1);
    assert!(due(&mut seen, &found, &[busy], late, &config()).is_empty(), "a job runs there");
    assert!(due(&mut seen, &found, &[idle], late, &config()).is_empty(), "a job may come");
    assert_eq!(due(&mut seen, &found, &[], late, &config()).len(), 1);
}

#[test]
fn the_forges_list_is_read_again_for_a_leftover_instance_and_once_for_a_pools_last_sweep() {
    let at = |minutes| later(Timestamp::UNIX_EPOCH, Duration::from_mins(minutes));
    let config = SweepConfig { runner_list: Duration::from_mins(60), ..config() };
    let mut seen = Seen { runners_at: Some(at(5)), ..Seen::default() };
    assert!(!seen.needs_runners(false, at(6), &config));
    assert!(seen.needs_runners(true, at(6), &config));
    seen.closing = true;
    assert!(!seen.needs_runners(true, at(6), &config));
    seen.strays.insert(instance("linux-abc-vm1"), at(6));
    assert!(seen.needs_runners(true, at(7), &config));
    seen.runners_at = Some(at(7));
    assert!(!seen.needs_runners(true, at(8), &config));
}
