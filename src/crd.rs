//! The vocabulary: what users write and read, and the names everything else agrees on.
//!
//! `crds/*.yaml` are generated from here (`cargo crdgen`); the `///` texts of fields are what `kubectl explain` shows.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSON, JSONSchemaProps,
};
pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition as KubeCondition, Time as KubeTime};
use kube::CustomResourceExt;

pub mod conditions;
#[allow(unreachable_pub, reason = "KubeSchema repeats each struct inside a function")]
mod lifecycle;
pub mod names;
#[allow(unreachable_pub, reason = "KubeSchema repeats each struct inside a function")]
mod runner_pool;
#[allow(unreachable_pub, reason = "KubeSchema repeats each struct inside a function")]
mod runner_vm;

pub use lifecycle::Lifecycle;
pub use runner_pool::{
    Compute, DeletionPolicy, Gce, GitHub, GroupRef, Limits, RunnerPool, RunnerPoolSpec, RunnerPoolStatus, SecretRef,
    Template, TemplateMetadata,
};
pub use runner_vm::{
    AgentStatus, HealthStatus, InstanceStatus, JobStatus, Phase, PoolRef, RunnerStatus, RunnerVm, RunnerVmSpec,
    RunnerVmStatus,
};

/// Every CustomResourceDefinition, ready to be applied.
#[must_use]
pub fn definitions() -> Vec<CustomResourceDefinition> {
    [RunnerPool::crd(), RunnerVm::crd()].into_iter().map(with_unobserved_status).collect()
}

/// Gives a new object `status: {observedGeneration: -1}`.
///
/// kstatus (Flux, Argo CD) calls an object without any status "Current": a pool would look finished before anybody
/// looked at it. The derive has no attribute for the status' default, hence this pass over the schema.
fn with_unobserved_status(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    for version in &mut crd.spec.versions {
        let properties = version
            .schema
            .as_mut()
            .and_then(|schema| schema.open_api_v3_schema.as_mut())
            .and_then(|schema| schema.properties.as_mut());
        if let Some(status) = properties.and_then(|p| p.get_mut("status")) {
            status.nullable = None;
            status.default = Some(JSON(serde_json::json!({"observedGeneration": -1})));
            bound_conditions(status);
        }
    }
    crd
}

/// `Condition` is Kubernetes' own type: its schema comes without the bounds the API server puts on its own objects.
fn bound_conditions(status: &mut JSONSchemaProps) {
    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSONSchemaPropsOrArray;
    let items = status
        .properties
        .as_mut()
        .and_then(|p| p.get_mut("conditions"))
        .and_then(|conditions| conditions.items.as_mut());
    let Some(JSONSchemaPropsOrArray::Schema(items)) = items else { return };
    for (name, max) in [("type", 316), ("reason", 1024), ("message", 32768), ("status", 7)] {
        if let Some(property) = items.properties.as_mut().and_then(|p| p.get_mut(name)) {
            property.max_length = Some(max);
        }
    }
}
