//! The operator dies at any instant, replies are lost, lists lag: the end is the same.
//!
//! Each effect of a life has its kill just before (the request never leaves the process) and just after (it is done,
//! and the process does not know). One life takes both: killed before, the next operator gets to the same effect.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use futures::{StreamExt, stream};
use k8s_openapi::jiff::SignedDuration;
use kube::{
    ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use miglet_e2e::{
    faults::{Action, Faults, Rule},
    github::{JobId, JobStatus},
    world::{Intervals, Patience, World, WorldOptions, signal_hook},
};
use miglet_operator::crd::{RunnerPool, RunnerVm};
use rustix::process::Signal;
use serde_json::json;

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Whom an effect is asked of.
#[derive(Clone, Copy, PartialEq)]
enum Whom {
    Kubernetes,
    Compute,
    GitHub,
}

/// One effect of the operator.
#[derive(Clone, Copy)]
struct Effect {
    name: &'static str,
    whom: Whom,
    method: &'static str,
    path: &'static str,
    /// It is the first such request after this effect.
    behind: Option<&'static Effect>,
}

impl Effect {
    const fn new(name: &'static str, whom: Whom, method: &'static str, path: &'static str) -> Self {
        Self { name, whom, method, path, behind: None }
    }

    fn rule(&self, action: Action) -> Rule {
        Rule::path(self.path, action).method(self.method).times(1)
    }

    fn faults(&self, world: &World) -> Faults {
        match self.whom {
            Whom::Kubernetes => world.proxy.faults().clone(),
            Whom::Compute => world.compute.server().faults.clone(),
            Whom::GitHub => world.github.server().faults.clone(),
        }
    }
}

const CREATE_CALL: Effect = Effect::new("createInstances", Whom::Compute, "POST", "/createInstances");
const REGISTRATION: Effect = Effect::new("generate-jitconfig", Whom::GitHub, "POST", "/generate-jitconfig");
const DEREGISTRATION: Effect = Effect::new("DELETE runner", Whom::GitHub, "DELETE", "/actions/runners/");
const DELETE_CALL: Effect = Effect::new("deleteInstances", Whom::Compute, "POST", "/deleteInstances");
const VM_DELETION: Effect = Effect::new("RunnerVM delete", Whom::Kubernetes, "DELETE", "/runnervms/");

const LAUNCH: [Effect; 4] = [
    Effect::new("pool finalizer", Whom::Kubernetes, "PATCH", "/runnerpools/"),
    Effect::new("pool status", Whom::Kubernetes, "PUT", "/runnerpools/"),
    Effect::new("RunnerVM create", Whom::Kubernetes, "POST", "/runnervms"),
    Effect::new("status mark", Whom::Kubernetes, "PUT", "/runnervms/"),
];
const FIRST_CONTACT: [Effect; 4] = [
    CREATE_CALL,
    Effect::new("binding patch", Whom::Kubernetes, "PATCH", "/status"),
    REGISTRATION,
    Effect {
        behind: Some(&REGISTRATION),
        ..Effect::new("runner id status write", Whom::Kubernetes, "PUT", "/runnervms/")
    },
];
const JOB_END: [Effect; 3] = [VM_DELETION, DEREGISTRATION, DELETE_CALL];
const POOL_END: [Effect; 5] = [
    VM_DELETION,
    DEREGISTRATION,
    DELETE_CALL,
    Effect::new("RunnerVM finalizer", Whom::Kubernetes, "PATCH", "/runnervms/"),
    Effect::new("pool finalizer", Whom::Kubernetes, "PATCH", "/runnerpools/"),
];

/// When in a life the kills are armed.
#[derive(Clone, Copy, PartialEq)]
enum Stage {
    Launch,
    JobEnd,
    PoolEnd,
}

/// Effects at work at once: mostly they wait for leases and second looks.
const AT_ONCE: usize = 3;

/// As short as the rules between them allow: most of a crash's time is waiting for the lease to run out.
fn intervals() -> Intervals {
    Intervals { lease: 2.0, request_timeout: 1.5, absence: 1.2, idle_sighting: 1.2, ..Intervals::default() }
}

/// A world whose operator dies before and after one effect.
struct Siege {
    world: World,
    effect: Effect,
    /// Kills to come, last first: whether the effect happens.
    kills: Vec<bool>,
    fired: Vec<Arc<AtomicBool>>,
    /// Whom the next kill is for.
    process: Arc<AtomicU32>,
}

impl Siege {
    async fn start(effect: Effect) -> Result<Self> {
        let world = World::start(WorldOptions { intervals: intervals(), ..WorldOptions::default() }).await?;
        Ok(Self { world, effect, kills: vec![true, false], fired: Vec::new(), process: Arc::default() })
    }

    /// An operator that ended for want of its lease, on a busy machine, was not killed: the kill waits for its successor.
    fn arm(&mut self) -> Result {
        let operator = self.world.operators.first().ok_or("no operator to kill")?;
        self.process.store(operator.id(), Ordering::SeqCst);
        if self.fired.last().is_some_and(|fired| !fired.load(Ordering::SeqCst)) {
            return Ok(());
        }
        let Some(after) = self.kills.pop() else { return Ok(()) };
        let (kill, fired) = signal_hook(&self.process, Signal::KILL);
        self.fired.push(fired);
        let rule = self.effect.rule(if after { Action::CallAfter(kill) } else { Action::CallInstead(kill) });
        let faults = self.effect.faults(&self.world);
        match self.effect.behind {
            None => faults.add(rule),
            Some(first) => {
                let arm = Arc::new(move || faults.add(rule.clone()));
                first.faults(&self.world).add(first.rule(Action::CallAfter(arm)));
            }
        }
        Ok(())
    }

    /// As `Patience::until`; meanwhile a dead operator is replaced, and its successor awaits the next kill.
    async fn until<T: std::fmt::Debug>(
        &mut self,
        what: &str,
        look: impl AsyncFn(&World) -> Result<T>,
        good: impl Fn(&T) -> bool,
    ) -> Result<T> {
        let end = Instant::now() + Patience::default().0;
        loop {
            if self.world.operators.iter_mut().any(|o| !matches!(o.exit_status(), Ok(None))) {
                self.world.restart_operator().await?;
                self.arm()?;
            }
            let seen = look(&self.world).await?;
            if good(&seen) {
                return Ok(seen);
            }
            if Instant::now() > end {
                let log = self.world.operator_logs();
                return Err(format!("{}: waited for {what}; last seen: {seen:?}\n{log}", self.effect.name).into());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn settled(&mut self, count: usize) -> Result<Vec<String>> {
        let look = async |world: &World| Ok(world.everywhere().await?);
        self.until("the pool's size, everywhere", look, |seen| seen.settled(count)).await.map(|seen| seen.idle)
    }

    async fn job_done(&mut self, id: JobId) -> Result {
        let look = async |world: &World| world.github.job(id).ok_or_else(|| "no such job".into());
        let done = self.until("the job's end", look, |job| job.status == JobStatus::Completed).await?;
        assert!(done.output.contains("hello") && !done.lost && done.attempts == 1, "{done:?}");
        Ok(())
    }

    async fn pool_gone(&mut self) -> Result {
        let look = async |world: &World| Ok(world.api::<RunnerPool>().get_opt("linux").await?.is_some());
        self.until("the pool to go", look, |there| !there).await.map(drop)
    }

    fn check(&self) -> Result {
        self.world.check_nothing_twice()?;
        let fired: Vec<_> = self.fired.iter().map(|fired| fired.load(Ordering::SeqCst)).collect();
        if fired != [true, true] {
            return Err(format!("the operator was to be killed before and after: {fired:?}").into());
        }
        // Two VMs and the one that takes the place of the job's, and at most one more for each crash.
        let created = self.world.compute.created_names().len();
        if (3..=5).contains(&created) { Ok(()) } else { Err(format!("{created} instances were created").into()) }
    }

    /// A whole life of a pool: launch, one job, deletion.
    async fn life(&mut self, stage: Stage) -> Result {
        if stage == Stage::Launch {
            self.arm()?;
        }
        self.world.apply_pool("linux", 2, json!({})).await?;
        let first = self.settled(2).await?;
        if stage == Stage::JobEnd {
            self.arm()?;
        }
        let id = self.world.github.queue_job(World::job("echo hello"));
        self.job_done(id).await?;
        let gone = |world: &World| world.github.job(id).and_then(|job| job.runner_name).unwrap_or_default();
        let used = gone(&self.world);
        let look = async |world: &World| Ok(world.vms().await?.iter().map(ResourceExt::name_any).collect::<Vec<_>>());
        assert!(first.iter().any(|vm| used.starts_with(vm)) || stage == Stage::Launch, "{used} of {first:?}");
        self.until("the job's VM to go", look, |names| !names.iter().any(|vm| used.starts_with(vm))).await?;
        self.settled(2).await?;
        if stage == Stage::PoolEnd {
            self.arm()?;
        }
        self.world.delete_pool("linux").await?;
        self.pool_gone().await?;
        self.world.check_nothing_left().await?;
        self.check()
    }
}

async fn besiege(stage: Stage, effects: &[Effect]) -> Result {
    let lives = effects.iter().map(|effect| async move {
        let mut siege = Siege::start(*effect).await?;
        siege.life(stage).await.map_err(|error| format!("killed at {}: {error}", effect.name).into())
    });
    let ends: Vec<Result> = stream::iter(lives).buffer_unordered(AT_ONCE).collect().await;
    ends.into_iter().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_each_effect_before_a_creation_the_pool_still_gets_its_size() -> Result {
    besiege(Stage::Launch, &LAUNCH).await
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_each_effect_from_creation_to_registration_the_pool_still_gets_its_size() -> Result {
    besiege(Stage::Launch, &FIRST_CONTACT).await
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_each_effect_after_a_job_its_vm_is_still_replaced() -> Result {
    besiege(Stage::JobEnd, &JOB_END).await
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_each_effect_of_a_deletion_nothing_is_left() -> Result {
    besiege(Stage::PoolEnd, &POOL_END).await
}

async fn pause(world: &World, paused: bool) -> Result {
    let patch = Patch::Merge(json!({"spec": {"paused": paused}}));
    world.api::<RunnerPool>().patch("linux", &PatchParams::default(), &patch).await?;
    Ok(())
}

async fn delete_and_check(world: &World) -> Result {
    let api = world.api::<RunnerPool>();
    for pool in api.list(&ListParams::default()).await? {
        world.delete_pool(&pool.name_any()).await?;
    }
    let pools = || async { api.list(&ListParams::default()).await.map(|list| list.items.len()) };
    Patience::default().until("the pools to go", pools, |left| left.as_ref().is_ok_and(|left| *left == 0)).await??;
    world.check_nothing_left().await?;
    world.check_nothing_twice()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_reply_to_a_creation_makes_nothing_twice() -> Result {
    let world = World::start(WorldOptions { intervals: intervals(), ..WorldOptions::default() }).await?;
    // The first batch loses one reply; the identical call is made again. The second loses all. Of one machine each: two that
    // are asked for a moment apart are two batches.
    world.compute.server().faults.add(CREATE_CALL.rule(Action::LoseReply));
    world.apply_pool("linux", 1, json!({})).await?;
    world.settled(1).await?;
    assert_eq!(world.compute.created_names().len(), 1);
    world.compute.server().faults.add(CREATE_CALL.rule(Action::LoseReply).times(3));
    world.apply_pool("more", 1, json!({})).await?;
    world.settled(2).await?;
    assert_eq!(world.compute.created_names().len(), 2, "nobody knew, and lists told");
    assert_eq!(world.compute.server().traffic.count(|e| e.path.contains("/createInstances")), 5);
    delete_and_check(&world).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_reply_to_a_registration_leaves_none_behind_and_sends_one() -> Result {
    let world = World::start(WorldOptions { intervals: intervals(), ..WorldOptions::default() }).await?;
    world.github.server().faults.add(REGISTRATION.rule(Action::LoseReply).times(2));
    world.apply_pool("linux", 2, json!({})).await?;
    let idle = world.settled(2).await?;
    let registered = world.github.registered();
    assert_eq!(registered.len(), 4, "each lost one was replaced: {registered:?}");
    let used: Vec<_> = registered.iter().filter(|r| r.used).map(|r| r.name.clone()).collect();
    assert_eq!(used.len(), 2, "{registered:?}");
    assert!(idle.iter().all(|vm| used.contains(&format!("{vm}-2"))), "{idle:?} use {used:?}");
    assert_eq!(world.compute.created_names().len(), 2, "no VM was lost over it");
    delete_and_check(&world).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_deleted_when_nobody_knows_of_its_creation_and_lists_lag_leaks_nothing() -> Result {
    let intervals = Intervals { absence: 2.4, ..intervals() };
    let world = World::start(WorldOptions { intervals, ..WorldOptions::default() }).await?;
    // As 30 s are to the minute between two lists.
    world.compute.stale_lists(Duration::from_millis(1200));
    world.compute.server().faults.add(CREATE_CALL.rule(Action::LoseReply).times(3));
    world.apply_pool("linux", 1, json!({})).await?;
    let patience = Patience::default();
    patience.until("the instance", || async { world.compute.created_names() }, |names| names.len() == 1).await?;
    let vm = world.compute.created_names().remove(0);
    pause(&world, true).await?;
    world.api::<RunnerVm>().delete(&vm, &DeleteParams::default()).await?;
    patience.until("the instance to go", || async { world.compute.instance(&vm) }, Option::is_none).await?;
    let object = world.api::<RunnerVm>().get_opt(&vm).await?;
    assert!(object.is_some(), "the object must not go before its instance");
    let events = world.events().await?;
    assert!(!events.iter().any(|event| event.starts_with("LeftoverRemoved")), "{events:?}");
    assert_eq!(world.compute.server().traffic.count(|e| e.path.contains("/createInstances")), 3, "all were lost");
    world.compute.stale_lists(Duration::ZERO);
    pause(&world, false).await?;
    world.settled(1).await?;
    delete_and_check(&world).await
}

/// What was just sent looks, in a cache that lags, like something whose reply was lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_lags_behind_undoes_nothing_that_was_just_done() -> Result {
    let world = World::start(WorldOptions { intervals: intervals(), ..WorldOptions::default() }).await?;
    world.proxy.lag_watches(Duration::from_millis(700));
    world.apply_pool("linux", 3, json!({})).await?;
    world.settled(3).await?;
    let registered = world.github.registered();
    assert!(registered.len() == 3 && registered.iter().all(|r| r.used), "{registered:?}");
    assert_eq!(world.compute.created_names().len(), 3);
    delete_and_check(&world).await
}

/// A mark without its call makes everybody wait until the call can have no effect any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_creation_is_not_marked_before_it_may_be_asked_for() -> Result {
    let mut siege = Siege::start(Effect::new("RunnerVM create", Whom::Kubernetes, "POST", "/runnervms")).await?;
    siege.kills = vec![true];
    siege.arm()?;
    siege.world.apply_pool("linux", 1, json!({})).await?;
    siege.settled(1).await?;
    let vms = siege.world.vms().await?;
    let status = vms.first().and_then(|vm| vm.status.clone()).ok_or("no status")?;
    let (requested, launched) = (status.create_requested_time.ok_or("no mark")?, status.launched_time.ok_or("none")?);
    let waited = launched.0.duration_since(requested.0);
    assert!(waited < SignedDuration::from_millis(3500), "the instance came {waited:?} after its mark");
    delete_and_check(&siege.world).await
}
