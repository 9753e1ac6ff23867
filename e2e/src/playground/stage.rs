//! The world of the playground: like production, but lively.

use std::{path::Path, time::Duration};

use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, ResourceExt};
use miglet_operator::crd::{Phase, RunnerPool};
use serde_json::json;

use super::{
    say,
    state::{Running, StateFile},
};
use crate::{
    compute::Delays,
    control_plane::{ControlPlane, product_crds},
    github::GithubOptions,
    world::{Intervals, Patience, Plane, Trouble, World, WorldOptions},
};

/// Namespace of the pool.
pub(super) const NAMESPACE: &str = "ci";
/// Namespace of the operator, as in the manifests.
const SYSTEM: &str = "miglet-system";
/// Name of the pool.
pub(super) const POOL: &str = "linux";
/// Its size.
pub(super) const REPLICAS: i32 = 3;

/// Everything that has to be cleared away in the end.
pub(super) struct Stage {
    /// The cluster, when it is the user's.
    adopted: Option<&'static ControlPlane>,
    /// The definitions in it were made by us.
    defined: bool,
    world: Option<World>,
    state: Option<StateFile>,
}

impl Stage {
    pub(super) fn new() -> Self {
        Self { adopted: None, defined: false, world: None, state: None }
    }

    /// The world, once the stage is set.
    pub(super) fn world(&self) -> Result<&World, Trouble> {
        self.world.as_ref().ok_or_else(|| "the playground is not set up".into())
    }

    /// Starts everything, step by step, up to three idle runners.
    pub(super) async fn set(&mut self, kubeconfig: Option<&Path>) -> Result<(), Trouble> {
        let plane = self.plane(kubeconfig).await?;
        say(&format!("control plane ready        {}", plane.url()));
        let options = WorldOptions {
            plane: Plane::Given(plane),
            namespaces: Some((NAMESPACE.to_owned(), SYSTEM.to_owned())),
            intervals: intervals(),
            delays: delays(),
            github: github(),
            checked: false,
            operator: false,
            ..WorldOptions::default()
        };
        let world = self.world.insert(World::start(options).await?);
        say(&format!("simulators ready           Compute {}, GitHub {}", world.compute.url(), world.github.url()));
        let running = Running { process: std::process::id(), compute: world.compute.url(), github: world.github.url() };
        self.state = Some(StateFile::write(&running)?);
        world.start_operator().await?;
        leading(world).await?;
        say(&format!("operator leading           logs in {}", world.logs().display()));
        world.apply_pool(POOL, REPLICAS, json!({})).await?;
        say(&format!("pool \"{POOL}\" applied       {REPLICAS} replicas in namespace {NAMESPACE}"));
        let wanted = usize::try_from(REPLICAS)?;
        let idle = || world.in_phase(Phase::Idle);
        Patience::default()
            .until("idle runners", idle, |idle| idle.as_ref().is_ok_and(|idle| idle.len() >= wanted))
            .await??;
        say(&format!("{REPLICAS} runners idle"));
        Ok(())
    }

    async fn plane(&mut self, kubeconfig: Option<&Path>) -> Result<&'static ControlPlane, Trouble> {
        let crds = product_crds()?;
        let Some(path) = kubeconfig else { return Ok(ControlPlane::shared().await?) };
        // The world wants it for the whole life of the process, and this process has one world.
        let plane: &'static ControlPlane = Box::leak(Box::new(ControlPlane::adopt(path).await?));
        self.adopted = Some(plane);
        let existing = plane.existing(&crds, &[NAMESPACE, SYSTEM]).await?;
        if !existing.is_empty() {
            let existing = existing.join(" and ");
            return Err(
                format!("the cluster has {existing} already: the playground would not leave it as it was").into()
            );
        }
        self.defined = true;
        plane.apply_crds(&crds).await?;
        Ok(plane)
    }

    /// Ends everything; in the user's cluster, nothing stays that was made there.
    pub(super) async fn clear(mut self) -> Result<(), Trouble> {
        let adopted = self.adopted;
        let left = match adopted {
            Some(plane) => self.leave(plane).await,
            None => Ok(()),
        };
        drop(self.state.take());
        drop(self.world.take());
        if let Some(plane) = adopted {
            plane.remove_files()?;
        }
        left
    }

    async fn leave(&self, plane: &ControlPlane) -> Result<(), Trouble> {
        if let Some(world) = &self.world {
            delete_pool(world).await?;
            world.leave_cluster().await?;
        }
        if !self.defined {
            return Ok(());
        }
        for crd in product_crds()? {
            plane.kubectl(&["delete", "crd", "--ignore-not-found", "--timeout=60s", &crd.name_any()]).await?;
        }
        Ok(())
    }
}

/// Deletes the pool, if there is one, and waits until it is gone.
pub(super) async fn delete_pool(world: &World) -> Result<(), Trouble> {
    let api = world.api::<RunnerPool>();
    if api.get_opt(POOL).await?.is_some() {
        world.delete_pool(POOL).await?;
    }
    let gone = Patience::default().until("the pool to go", || api.get_opt(POOL), |pool| matches!(pool, Ok(None)));
    gone.await??;
    Ok(())
}

async fn leading(world: &World) -> Result<(), Trouble> {
    let leases = Api::<Lease>::namespaced(world.client.clone(), SYSTEM);
    let holder = async || {
        let lease = leases.get_opt("miglet-operator").await.ok().flatten();
        lease.and_then(|lease| lease.spec).and_then(|spec| spec.holder_identity)
    };
    let led = Patience::default().until("the operator to lead", holder, |holder| holder.is_some()).await;
    let log = || world.operators.iter().map(|operator| operator.log()).collect::<String>();
    led.map_err(|error| format!("{error}\n{}", log()))?;
    Ok(())
}

fn intervals() -> Intervals {
    Intervals {
        list: 1.0,
        absence: 5.0,
        idle_sighting: 10.0,
        scope_read: 10.0,
        runner_list: 15.0,
        sweep: 5.0,
        request_timeout: 10.0,
        secret: 5.0,
        heartbeat: 5.0,
        backoff: 10.0,
        lease: 10.0,
    }
}

/// A boot one can watch.
fn delays() -> Delays {
    let moment = Duration::from_millis(500);
    Delays {
        operation: moment,
        create: moment,
        provision: moment,
        stage: moment,
        delete: moment,
        retry: Duration::from_secs(1),
        repair: moment,
        preemption: Duration::from_secs(5),
    }
}

fn github() -> GithubOptions {
    GithubOptions { poll: Duration::from_secs(2), lost_after: Duration::from_secs(10), ..GithubOptions::default() }
}
