//! A world's objects in Kubernetes: what a user makes, and what a user reads.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Event, Namespace, Secret};
use kube::{
    Api, ResourceExt,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams, ObjectMeta, PostParams},
};
use miglet_operator::crd::{RunnerPool, RunnerVm};

use super::{GROUP, LABELS, ORG, Trouble, World, ZONE};

impl World {
    /// Writes a Secret with the App's credentials.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn put_secret(&self, name: &str) -> Result<(), Trouble> {
        let data = BTreeMap::from([
            ("github_app_id".to_owned(), self.app.app_id.to_string()),
            ("github_app_installation_id".to_owned(), self.app.installation_id.to_string()),
            ("github_app_private_key".to_owned(), self.app.private_key_pem.clone()),
        ]);
        let metadata = ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() };
        let secret = Secret { metadata, string_data: Some(data), ..Secret::default() };
        self.api::<Secret>().create(&PostParams::default(), &secret).await?;
        Ok(())
    }

    /// The manifest of a pool like the README's; `patch` is merged over it.
    #[must_use]
    pub fn pool(&self, name: &str, replicas: i32, patch: serde_json::Value) -> DynamicObject {
        let mut pool = serde_json::json!({
            "spec": {
                "replicas": replicas,
                "github": {
                    "url": format!("{}/{ORG}", self.github.url()),
                    "credentialsSecretRef": {"name": "acme-app"},
                    "labels": LABELS,
                },
                "compute": {"gce": {"project": "acme-ci", "groups": [{"name": GROUP, "zone": ZONE}]}},
            },
        });
        merge(&mut pool, patch);
        let mut object = DynamicObject::new(name, &ApiResource::erase::<RunnerPool>(&())).within(&self.namespace);
        object.data = serde_json::json!({"spec": pool.get("spec")});
        object
    }

    /// Creates a pool.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn apply_pool(&self, name: &str, replicas: i32, patch: serde_json::Value) -> Result<(), kube::Error> {
        let resource = ApiResource::erase::<RunnerPool>(&());
        let api = Api::<DynamicObject>::namespaced_with(self.client.clone(), &self.namespace, &resource);
        // As kubectl would send it: what is not in the manifest is left to the API server's defaults.
        api.create(&PostParams::default(), &self.pool(name, replicas, patch)).await.map(drop)
    }

    /// An API in the pools' namespace.
    #[must_use]
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Every RunnerVM.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn vms(&self) -> Result<Vec<RunnerVm>, kube::Error> {
        Ok(self.api::<RunnerVm>().list(&ListParams::default()).await?.items)
    }

    /// Every event of the pools' namespace, as `reason: note`.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn events(&self) -> Result<Vec<String>, kube::Error> {
        let events = self.api::<Event>().list(&ListParams::default()).await?;
        let text = |event: &Event| {
            let reason = event.reason.clone().unwrap_or_default();
            format!("{reason}: {}", event.message.clone().unwrap_or_default())
        };
        Ok(events.items.iter().map(text).collect())
    }

    /// Deletes a pool.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn delete_pool(&self, name: &str) -> Result<(), kube::Error> {
        self.api::<RunnerPool>().delete(name, &DeleteParams::default()).await.map(drop)
    }

    /// Deletes the pools' namespace.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn delete_namespace(&self) -> Result<(), kube::Error> {
        Api::<Namespace>::all(self.client.clone()).delete(&self.namespace, &DeleteParams::default()).await.map(drop)
    }

    /// What one pool says of a condition: `(status, reason, message)`.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn condition(&self, pool: &str, kind: &str) -> Result<Option<(String, String, String)>, kube::Error> {
        let pool = self.api::<RunnerPool>().get(pool).await?;
        let conditions = pool.status.unwrap_or_default().conditions;
        Ok(conditions.into_iter().find(|c| c.type_ == kind).map(|c| (c.status, c.reason, c.message)))
    }

    /// Names of the RunnerVMs in this phase.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn in_phase(&self, phase: miglet_operator::crd::Phase) -> Result<Vec<String>, kube::Error> {
        let vms = self.vms().await?;
        let phases = vms.iter().filter(|vm| vm.status.as_ref().is_some_and(|status| status.phase == phase));
        Ok(phases.map(ResourceExt::name_any).collect())
    }
}

/// JSON merge patch.
fn merge(target: &mut serde_json::Value, patch: serde_json::Value) {
    match (target, patch) {
        (serde_json::Value::Object(target), serde_json::Value::Object(patch)) => {
            for (key, value) in patch {
                merge(target.entry(key).or_insert(serde_json::Value::Null), value);
            }
        }
        (target, patch) => *target = patch,
    }
}
