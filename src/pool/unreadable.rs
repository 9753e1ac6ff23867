//! Tells the owner of a pool that cannot be read what is wrong with it, where they look: in its status.

use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
};
use serde_json::json;
use tokio::sync::mpsc;
use tracing::warn;

use super::Context;
use crate::{
    crd::{
        RunnerPool,
        conditions::{Finding, READY, STALLED, conditions},
        names,
    },
    watch::Unreadable,
};

/// Reports until the sender is gone.
pub async fn report(context: Context, mut found: mpsc::Receiver<Unreadable>) {
    while let Some(pool) = found.recv().await {
        let name = pool.metadata.name.clone().unwrap_or_default();
        warn!(pool = name, error = pool.error, "Pool cannot be read");
        if let Err(error) = write(&context, &pool).await {
            warn!(pool = name, %error, "Its status could not be written");
        }
    }
}

async fn write(context: &Context, pool: &Unreadable) -> Result<(), super::Error> {
    context.leadership.may_act().map_err(super::Error::Leadership)?;
    let message = format!("the object cannot be read: {}; fix or delete it", pool.error);
    let generation = pool.metadata.generation;
    let found = vec![
        Finding::new(READY, false, "Unreadable", message.clone()),
        Finding::new(STALLED, true, "Unreadable", message),
    ];
    let conditions = conditions(&[], found, generation, context.clock.now());
    let patch = Patch::Merge(json!({"status": {"observedGeneration": generation, "conditions": conditions}}));
    let params = PatchParams { field_manager: Some(names::POOL_MANAGER.into()), ..PatchParams::default() };
    let api = api(context.client.clone(), pool.metadata.namespace.as_deref().unwrap_or_default());
    let name = pool.metadata.name.as_deref().unwrap_or_default();
    context.kube("writing the status of an unreadable pool", api.patch_status(name, &params, &patch)).await?;
    Ok(())
}

fn api(client: Client, namespace: &str) -> Api<DynamicObject> {
    Api::namespaced_with(client, namespace, &ApiResource::erase::<RunnerPool>(&()))
}
