//! Gathers a pool's view: the caches, the groups, the forge; a live list when something may be created.

use jiff::Timestamp;
use kube::{Api, ResourceExt};
use rand::Rng;
use tracing::{debug, warn};

use super::{
    Context, Error,
    settings::check,
    version,
    view::{Check, GroupFact, Offered, PoolView, VmFact},
};
use crate::{
    compute::Group,
    crd::{RunnerPool, RunnerVm},
    forge::{ForgeError, ForgeErrorClass, Support, credentials::CredentialsError},
    kubernetes,
};

/// Names drawn for one pass.
const NAMES: usize = 500;

/// Everything known about this pool now.
pub(super) async fn observe(context: &Context, pool: &RunnerPool) -> Result<PoolView, Error> {
    let uid = pool.uid().unwrap_or_default();
    let now = context.clock.now();
    let mut vms = cached(context, pool);
    let wanted = usize::try_from(pool.spec.replicas.min(pool.spec.limits.max)).unwrap_or_default();
    let deleting = pool.metadata.deletion_timestamp.is_some();
    if deleting || vms.iter().filter(|vm| !vm.leaving).count() < wanted {
        vms = live(context, pool).await?;
    }
    let (forge, groups) =
        if deleting { (Check::Good, Vec::new()) } else { (forge(context, pool).await, groups(context, pool).await) };
    let offer = offer(context, pool, forge == Check::Good && !deleting).await;
    let support = support(context, pool, &vms, &offer).await;
    let swept = deleting && vms.is_empty() && swept(context, pool).await;
    let (history, expected) = context.memory.fold(&uid, |memory| {
        for vm in &vms {
            memory.history_of(vm, now);
        }
        memory.expected.retain(|name, until| *until > now && !vms.iter().any(|vm| vm.name == *name));
        (memory.history.clone(), memory.expected.len())
    });
    Ok(PoolView { pool: pool.clone(), vms, expected, forge, offer, support, groups, history, random: random(), swept })
}

/// Whether a sweep finds nothing of the pool outside; a failed one proves nothing.
async fn swept(context: &Context, pool: &RunnerPool) -> bool {
    context.sweeper.sweep(context, pool, true).await.unwrap_or_else(|error| {
        warn!(pool = pool.name_any(), error = &error as &dyn std::error::Error, "Last sweep failed");
        false
    })
}

fn random() -> Vec<u64> {
    let mut source = rand::rng();
    (0..NAMES).map(|_| source.random()).collect()
}

fn cached(context: &Context, pool: &RunnerPool) -> Vec<VmFact> {
    let of_pool = |vm: &RunnerVm| vm.namespace() == pool.namespace() && Some(&vm.spec.pool.uid) == pool.uid().as_ref();
    context.vms.state().iter().filter(|vm| of_pool(vm)).map(|vm| VmFact::of(vm, pool)).collect()
}

/// What exists for certain: a pass that creates never trusts the cache alone.
async fn live(context: &Context, pool: &RunnerPool) -> Result<Vec<VmFact>, Error> {
    let api = Api::<RunnerVm>::namespaced(context.client.clone(), &pool.namespace().unwrap_or_default());
    // Not by label: a VM whose label somebody took away counts all the same.
    let fact = |vm: RunnerVm| (Some(&vm.spec.pool.uid) == pool.uid().as_ref()).then(|| VmFact::of(&vm, pool));
    Ok(kubernetes::list(&api, context.request_timeout, "listing the pool's VMs", fact).await?)
}

async fn groups(context: &Context, pool: &RunnerPool) -> Vec<GroupFact> {
    let gce = &pool.spec.compute.gce;
    let named = gce.groups.iter().enumerate().filter_map(|(i, g)| Group::of(&gce.project, g).map(|g| (i, g)));
    futures::future::join_all(named.map(|(index, group)| async move {
        let settings = check(&context.groups.settings(&group).await);
        let back_off = context.groups.backed_off(&group);
        let size = context.groups.latest(&group).map(|listing| listing.instances.len()).unwrap_or_default();
        GroupFact { group, index, settings, back_off, size }
    }))
    .await
}

/// Whether the forge accepts the pool: asked when it was not seen for a while.
async fn forge(context: &Context, pool: &RunnerPool) -> Check {
    let namespace = pool.namespace().unwrap_or_default();
    let runners = match context.forges.runners(&namespace, &pool.spec.github).await {
        Ok(runners) => runners,
        Err(error) => {
            let (reason, message) = (error.reason().to_owned(), error.to_string());
            return match error {
                CredentialsError::Unreadable { .. } | CredentialsError::Unanswered { .. } => {
                    Check::Unknown { reason, message }
                }
                CredentialsError::NotFound { .. }
                | CredentialsError::Forbidden { .. }
                | CredentialsError::Malformed { .. }
                | CredentialsError::Url(_) => Check::Bad { reason, message },
            };
        }
    };
    let stale = runners.seen().is_none_or(|seen| context.clock.now() >= recheck(seen, context));
    let checked = if stale { runners.check().await } else { Ok(()) };
    match checked {
        Ok(()) => runners.group(pool.spec.github.runner_group.as_deref()).await.map_or_else(judged, |_| Check::Good),
        Err(error) => judged(error),
    }
}

/// Which runner the forge offers: asked once an hour and scope, and only where it accepts the pool.
async fn offer(context: &Context, pool: &RunnerPool, accepted: bool) -> Offered {
    let unknown = |reason: &str, message: &str| Offered::Unknown { reason: reason.into(), message: message.into() };
    let namespace = pool.namespace().unwrap_or_default();
    match context.forges.runners(&namespace, &pool.spec.github).await {
        Ok(runners) if accepted => match runners.offer().await {
            Ok(offer) => Offered::Known(offer),
            Err(error) => unknown(error.class.as_str(), &error.to_string()),
        },
        _ => unknown("NotAsked", "GitHub is asked which runner it offers once the credentials are valid"),
    }
}

/// Until when the forge accepts what the pool runs: asked only of a version that is behind, once an hour.
async fn support(context: &Context, pool: &RunnerPool, vms: &[VmFact], offer: &Offered) -> Option<Support> {
    let Offered::Known(offer) = offer else { return None };
    let version = version::behind(pool, vms, &offer.version)?.version;
    let namespace = pool.namespace().unwrap_or_default();
    let runners = context.forges.runners(&namespace, &pool.spec.github).await.ok()?;
    let support = runners.support(&version).await;
    // The general rule holds then.
    support.inspect_err(|error| debug!(%error, "Support of the runner's version is unknown")).ok().flatten()
}

fn recheck(seen: Timestamp, context: &Context) -> Timestamp {
    crate::vm::plan::later(seen, context.forge_check)
}

#[allow(clippy::needless_pass_by_value, reason = "it is the end of the error's way")]
fn judged(error: ForgeError) -> Check {
    let (reason, message) = (error.class.as_str().to_owned(), error.to_string());
    match error.class {
        ForgeErrorClass::Credentials => Check::Bad {
            reason,
            message: format!("{message}; check the Secret and that the App is installed where the url points"),
        },
        ForgeErrorClass::Invisible => Check::Bad {
            reason,
            message: format!("{message}; the credentials do not see the runners of this url: nothing is deleted"),
        },
        ForgeErrorClass::NotFound => Check::Bad {
            reason: "RunnerGroupNotFound".into(),
            message: format!("{message}; check spec.github.runnerGroup"),
        },
        ForgeErrorClass::Invalid | ForgeErrorClass::NameTaken => Check::Bad { reason, message },
        ForgeErrorClass::RateLimit | ForgeErrorClass::Transient => Check::Unknown { reason, message },
    }
}
