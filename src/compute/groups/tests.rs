use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use async_trait::async_trait;
use jiff::SignedDuration;
use tokio::time::Instant;
use uuid::Uuid;

use self::deletions::{delete_all, url};
use super::*;
use crate::compute::{GroupAction, Location, Power};

mod deletions;

/// A clock that moves with tokio's paused time.
#[derive(Debug)]
struct TestClock(Instant);

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        let passed = SignedDuration::try_from(self.0.elapsed()).unwrap();
        Timestamp::from_second(1_800_000_000).unwrap() + passed
    }
}

/// A cloud that refuses what Google refuses: taken names, doubled names, more than 1,000, mixtures, the zero request id.
#[derive(Debug, Default)]
struct Cloud {
    world: Mutex<World>,
    lists: AtomicUsize,
    creates: AtomicUsize,
    settings: AtomicUsize,
    lists_fail: AtomicBool,
}

#[derive(Debug, Default)]
struct World {
    members: BTreeMap<String, Instance>,
    foreign: Vec<String>,
    requests: BTreeMap<Uuid, Operation>,
    batches: Vec<Vec<String>>,
    /// The targets of every deletion call, refused ones included.
    deleted: Vec<Vec<DeleteTarget>>,
    /// Targets that make no sense to it: a call with one of them is refused as a whole.
    malformed: Vec<DeleteTarget>,
    /// What every deletion call is refused with.
    refusal: Option<ErrorClass>,
    /// Replies to deletion calls to lose.
    lost_deletions: u32,
    /// Replies to lose: `true` after the effect, `false` before it.
    lost: Vec<bool>,
    stockout: bool,
    slow_operation: Option<Vec<crate::compute::LaunchError>>,
}

fn member(name: &str) -> Instance {
    Instance {
        name: name.into(),
        id: None,
        url: None,
        zone: None,
        power: Power::Absent,
        action: GroupAction::Creating,
        errors: vec![],
    }
}

fn failure(class: ErrorClass, ambiguous: bool) -> ComputeError {
    ComputeError { class, ambiguous, message: format!("{class:?}"), ..abandoned("testing", &group()) }
}

impl World {
    fn create(&mut self, names: &[String], request: Uuid) -> Result<Operation, ComputeError> {
        if let Some(known) = self.requests.get(&request) {
            return Ok(known.clone());
        }
        self.batches.push(names.to_vec());
        if self.stockout {
            return Err(failure(ErrorClass::Capacity, false));
        }
        if names.iter().any(|n| self.members.contains_key(n) || self.foreign.contains(n)) {
            return Err(failure(ErrorClass::AlreadyExists, false));
        }
        let done = self.slow_operation.is_none();
        let operation = Operation { name: request.to_string(), done, errors: vec![] };
        self.members.extend(names.iter().map(|n| (n.clone(), member(n))));
        self.requests.insert(request, operation.clone());
        Ok(operation)
    }
}

#[async_trait]
impl Instances for Cloud {
    async fn list(&self, _: &Group) -> Result<Vec<Instance>, ComputeError> {
        self.lists.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(300)).await;
        if self.lists_fail.load(Ordering::Relaxed) {
            return Err(failure(ErrorClass::Transient, true));
        }
        Ok(self.world.lock().unwrap().members.values().cloned().collect())
    }

    async fn create(&self, _: &Group, names: &[String], request: Uuid) -> Result<Operation, ComputeError> {
        self.creates.fetch_add(1, Ordering::Relaxed);
        let unique: std::collections::BTreeSet<_> = names.iter().collect();
        if names.len() > 1000 || unique.len() != names.len() || request.is_nil() {
            return Err(failure(ErrorClass::Config, false));
        }
        let mut world = self.world.lock().unwrap();
        match world.lost.pop() {
            None => world.create(names, request),
            Some(after) => {
                if after {
                    world.create(names, request)?;
                }
                Err(failure(ErrorClass::Transient, true))
            }
        }
    }

    async fn delete(&self, _: &Group, targets: &[DeleteTarget], _: Uuid) -> Result<Operation, ComputeError> {
        let urls = targets.iter().filter(|t| matches!(t, DeleteTarget::Url(_))).count();
        if targets.len() > 1000 || (urls != 0 && urls != targets.len()) {
            return Err(failure(ErrorClass::Config, false));
        }
        let mut world = self.world.lock().unwrap();
        world.deleted.push(targets.to_vec());
        if let Some(class) = world.refusal {
            return Err(failure(class, false));
        }
        if targets.iter().any(|target| world.malformed.contains(target)) {
            return Err(failure(ErrorClass::Config, false));
        }
        if world.lost_deletions > 0 {
            world.lost_deletions -= 1;
            return Err(failure(ErrorClass::Transient, true));
        }
        Ok(Operation { name: "o".into(), done: true, errors: vec![] })
    }

    async fn operation(&self, _: &Group, name: &str) -> Result<Operation, ComputeError> {
        let errors = self.world.lock().unwrap().slow_operation.clone().unwrap_or_default();
        Ok(Operation { name: name.into(), done: true, errors })
    }

    async fn settings(&self, _: &Group) -> Result<GroupSettings, ComputeError> {
        self.settings.fetch_add(1, Ordering::Relaxed);
        Ok(GroupSettings::default())
    }

    async fn last_words(&self, _: &Group, _: &str, _: &str) -> Result<Option<String>, ComputeError> {
        Ok(None)
    }
}

fn group() -> Group {
    Group { project: "p".into(), name: "g".into(), location: Location::Zone("us-central1-a".into()) }
}

fn groups() -> (Groups, Arc<Cloud>) {
    groups_with(GroupsConfig::default())
}

fn groups_with(config: GroupsConfig) -> (Groups, Arc<Cloud>) {
    let cloud = Arc::new(Cloud::default());
    (Groups::new(cloud.clone(), Arc::new(TestClock(Instant::now())), config), cloud)
}

async fn create_all(groups: &Groups, names: impl IntoIterator<Item = String>) -> Vec<Result<(), CreateError>> {
    let group = group();
    futures::future::join_all(names.into_iter().map(|name| {
        let (groups, group) = (groups.clone(), group.clone());
        async move { groups.create(&group, &name).await }
    }))
    .await
}

#[tokio::test(start_paused = true)]
async fn five_hundred_machines_that_ask_at_once_cost_one_list() {
    let (groups, cloud) = groups();
    let now = groups.now();
    let group = group();
    let lists = futures::future::join_all((0..500).map(|_| groups.listing(&group, now))).await;
    assert!(lists.iter().all(Result::is_ok));
    assert_eq!(cloud.lists.load(Ordering::Relaxed), 1);
    assert!(groups.latest(&group).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_list_that_started_too_early_is_not_used_and_a_newer_one_is_asked_for() {
    let (groups, cloud) = groups();
    let group = group();
    let (early, late) = tokio::join!(groups.listing(&group, groups.now()), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let needed = groups.now();
        (needed, groups.listing(&group, needed).await.unwrap())
    });
    assert!(late.1.asked_at >= late.0 && early.unwrap().asked_at < late.0);
    assert_eq!(cloud.lists.load(Ordering::Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn a_failed_list_is_shared_by_those_who_waited_and_the_old_one_stays() {
    let (groups, cloud) = groups();
    let group = group();
    let before = groups.listing(&group, groups.now()).await.unwrap();
    cloud.lists_fail.store(true, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let now = groups.now();
    let lists = futures::future::join_all((0..100).map(|_| groups.listing(&group, now))).await;
    assert!(lists.iter().all(Result::is_err));
    assert_eq!(cloud.lists.load(Ordering::Relaxed), 2);
    assert_eq!(groups.latest(&group), Some(before));
}

#[tokio::test(start_paused = true)]
async fn names_asked_for_together_go_out_in_one_call_and_twice_the_same_is_one() {
    let (groups, cloud) = groups();
    let results = create_all(&groups, (0..400).map(|n| format!("vm-{}", n % 200))).await;
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    assert_eq!(cloud.creates.load(Ordering::Relaxed), 1);
    assert_eq!(cloud.world.lock().unwrap().members.len(), 200);
}

#[tokio::test(start_paused = true)]
async fn more_than_a_thousand_names_are_several_calls() {
    let (groups, cloud) = groups();
    let results = create_all(&groups, (0..2500).map(|n| format!("vm-{n}"))).await;
    assert!(results.iter().all(Result::is_ok));
    assert_eq!(cloud.creates.load(Ordering::Relaxed), 3);
}

#[tokio::test(start_paused = true)]
async fn a_reply_lost_after_the_effect_creates_nothing_twice() {
    let (groups, cloud) = groups();
    cloud.world.lock().unwrap().lost = vec![true];
    assert!(groups.create(&group(), "vm-a").await.is_ok());
    let world = cloud.world.lock().unwrap();
    assert_eq!(world.batches.len(), 1, "the second call was known by its request id");
}

#[tokio::test(start_paused = true)]
async fn when_nobody_ever_answers_it_is_unknown_and_the_group_rests() {
    let (groups, cloud) = groups();
    cloud.world.lock().unwrap().lost = vec![false; 9];
    let error = groups.create(&group(), "vm-a").await.unwrap_err();
    assert!(matches!(error, CreateError::Unknown(_)), "{error:?}");
    assert_eq!(cloud.creates.load(Ordering::Relaxed), 3);
    assert_eq!(groups.backed_off(&group()).unwrap().class, ErrorClass::Transient);
}

#[tokio::test(start_paused = true)]
async fn a_stockout_is_a_definite_no_and_the_group_rests_until_it_is_over() {
    let (groups, cloud) = groups();
    cloud.world.lock().unwrap().stockout = true;
    let error = groups.create(&group(), "vm-a").await.unwrap_err();
    assert!(matches!(error, CreateError::Rejected(_)), "{error:?}");
    assert_eq!(groups.backed_off(&group()).unwrap().class, ErrorClass::Capacity);
    tokio::time::sleep(Duration::from_secs(40)).await;
    assert_eq!(groups.backed_off(&group()), None);
}

#[tokio::test(start_paused = true)]
async fn recovery_makes_the_next_pause_short_again() {
    let (groups, _) = groups();
    let length = |groups: &Groups| groups.backed_off(&group()).unwrap().until.duration_since(groups.now()).as_secs();
    groups.back_off(&group(), ErrorClass::Capacity, "out");
    tokio::time::sleep(Duration::from_secs(34)).await;
    groups.back_off(&group(), ErrorClass::Capacity, "out");
    assert!(length(&groups) >= 60);
    groups.recovered(&group());
    assert_eq!(groups.backed_off(&group()), None);
    groups.back_off(&group(), ErrorClass::Capacity, "out");
    assert!(length(&groups) <= 33);
}

#[tokio::test(start_paused = true)]
async fn one_foreign_name_among_many_is_found_and_the_others_are_created() {
    let (groups, cloud) = groups();
    cloud.world.lock().unwrap().foreign.push("vm-77".into());
    let results = create_all(&groups, (0..200).map(|n| format!("vm-{n}"))).await;
    let failed: Vec<_> = results.iter().enumerate().filter(|(_, r)| r.is_err()).collect();
    assert_eq!(failed.len(), 1);
    assert!(matches!(failed[0], (77, Err(CreateError::NameTaken(_)))), "{failed:?}");
    assert_eq!(cloud.world.lock().unwrap().members.len(), 199);
    assert!(cloud.creates.load(Ordering::Relaxed) <= 17, "halving, not one by one");
    assert_eq!(groups.backed_off(&group()), None, "a taken name says nothing about the group");
}

#[tokio::test(start_paused = true)]
async fn names_the_list_knows_exist_already() {
    let (groups, cloud) = groups();
    cloud.world.lock().unwrap().members.insert("vm-1".into(), member("vm-1"));
    let results = create_all(&groups, (0..3).map(|n| format!("vm-{n}"))).await;
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    assert_eq!(cloud.creates.load(Ordering::Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn a_taken_name_after_a_lost_reply_may_be_our_own() {
    let (groups, cloud) = groups();
    {
        let mut world = cloud.world.lock().unwrap();
        world.lost = vec![false];
        world.foreign.push("vm-a".into());
    }
    let error = groups.create(&group(), "vm-a").await.unwrap_err();
    assert!(matches!(error, CreateError::Unknown(_)), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn an_operation_that_ends_with_an_error_is_a_rejection() {
    let (groups, cloud) = groups();
    let error = crate::compute::LaunchError {
        class: ErrorClass::Quota,
        code: "QUOTA_EXCEEDED".into(),
        message: "Quota 'CPUS' exceeded.".into(),
    };
    cloud.world.lock().unwrap().slow_operation = Some(vec![error]);
    let error = groups.create(&group(), "vm-a").await.unwrap_err();
    assert!(matches!(&error, CreateError::Rejected(e) if e.class == ErrorClass::Quota), "{error:?}");
    assert!(error.cause().message.contains("CPUS"));
}

#[tokio::test(start_paused = true)]
async fn who_stops_waiting_does_not_stop_the_others() {
    let (groups, cloud) = groups();
    let impatient = tokio::time::timeout(Duration::from_millis(1), groups.create(&group(), "vm-a")).await;
    assert!(impatient.is_err());
    assert!(groups.create(&group(), "vm-b").await.is_ok());
    assert_eq!(cloud.world.lock().unwrap().members.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_operator_that_lost_the_lead_sends_nothing() {
    let config = GroupsConfig { may_act: Arc::new(|| false), ..GroupsConfig::default() };
    let (groups, cloud) = groups_with(config);
    assert!(matches!(groups.create(&group(), "vm-a").await, Err(CreateError::Rejected(_))));
    assert!(groups.delete(&group(), DeleteTarget::Name("vm-a".into())).await.is_err());
    assert_eq!(cloud.creates.load(Ordering::Relaxed), 0);
    assert!(cloud.world.lock().unwrap().deleted.is_empty());
}

#[tokio::test(start_paused = true)]
async fn settings_are_read_once_a_minute() {
    let (groups, cloud) = groups();
    for _ in 0..5 {
        groups.settings(&group()).await.unwrap();
    }
    assert_eq!(cloud.settings.load(Ordering::Relaxed), 1);
    tokio::time::sleep(Duration::from_secs(61)).await;
    groups.settings(&group()).await.unwrap();
    assert_eq!(cloud.settings.load(Ordering::Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn every_call_is_counted_with_its_outcome() {
    let seen: Arc<Mutex<Vec<_>>> = Arc::default();
    let log = seen.clone();
    let observe: Observe =
        Arc::new(move |backend, method, outcome| log.lock().unwrap().push((backend, method, outcome)));
    let (groups, cloud) = groups_with(GroupsConfig { observe, ..GroupsConfig::default() });
    cloud.world.lock().unwrap().stockout = true;
    groups.create(&group(), "vm-a").await.unwrap_err();
    groups.listing(&group(), groups.now()).await.unwrap();
    assert_eq!(*seen.lock().unwrap(), [("compute", "create", "Stockout"), ("compute", "list", "Ok")]);
    seen.lock().unwrap().clear();
    cloud.world.lock().unwrap().malformed = vec![url(1)];
    delete_all(&groups, (0..2).map(url)).await;
    let mut seen = seen.lock().unwrap().clone();
    seen.sort_unstable();
    let (refused, done) = (("compute", "delete", "Misconfigured"), ("compute", "delete", "Ok"));
    assert_eq!(seen, [refused, refused, done], "the two together, then each on its own");
}
