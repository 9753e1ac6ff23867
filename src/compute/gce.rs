//! Google Compute Engine behind the port [`Instances`].
//!
//! - Google's own client (`google-cloud-compute-v1`) with application-default credentials: key file, workload identity
//!   or metadata server, `GCE_METADATA_HOST` included.
//! - Its hidden retries are off: who retries, and with which request id, is decided in [`super::groups::Groups`] alone.
//! - Every call is cut off after the configured time, credentials included.
//! - A group's members are created and deleted by name. The group is never resized: sizes are absolute and lose
//!   concurrent updates, and a smaller size picks its own victims.

mod classify;
mod fault;
mod wire;

use std::{future::Future, time::Duration};

use async_trait::async_trait;
use gcloud_sdk::google_cloud_auth::{
    build_errors,
    credentials::{self, Credentials},
};
use google_cloud_compute_v1::{client, model};
use google_cloud_gax::{client_builder, retry_policy::NeverRetry};
use uuid::Uuid;

use super::{ComputeError, DeleteTarget, ErrorClass, Group, GroupSettings, Instance, Instances, Location, Operation};

/// Guest attribute an agent leaves its last error in.
const LAST_WORDS: &str = "miglet/status";
/// The most pages one list may have: a server that never stops must not hold a pass for ever.
const MOST_PAGES: usize = 100;

/// How to reach Google.
#[derive(Clone, Debug)]
pub struct GceConfig {
    /// Root of the API; Google's when absent.
    pub endpoint: Option<String>,
    /// How long one HTTP call may take.
    pub request_timeout: Duration,
}

impl Default for GceConfig {
    fn default() -> Self {
        Self { endpoint: None, request_timeout: Duration::from_secs(30) }
    }
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum GceError {
    /// No usable application-default credentials.
    #[error("finding application-default credentials for Google Cloud")]
    Credentials(#[source] build_errors::Error),
    /// The HTTP client could not be made.
    #[error("making the Compute Engine client")]
    Client(#[source] client_builder::Error),
}

/// Google Compute Engine.
#[derive(Clone, Debug)]
pub struct Gce {
    zonal: client::InstanceGroupManagers,
    regional: client::RegionInstanceGroupManagers,
    instances: client::Instances,
    zone_operations: client::ZoneOperations,
    region_operations: client::RegionOperations,
    templates: client::InstanceTemplates,
    region_templates: client::RegionInstanceTemplates,
    timeout: Duration,
}

macro_rules! build {
    ($client:ident, $config:expr, $credentials:expr) => {{
        let builder = client::$client::builder().with_credentials($credentials.clone()).with_retry_policy(NeverRetry);
        let builder = match &$config.endpoint {
            Some(endpoint) => builder.with_endpoint(endpoint.clone()),
            None => builder,
        };
        builder.build().await.map_err(GceError::Client)?
    }};
}

impl Gce {
    /// Clients with application-default credentials. No call is made yet.
    pub async fn new(config: GceConfig) -> Result<Self, GceError> {
        Self::with_credentials(config, credentials::Builder::default().build().map_err(GceError::Credentials)?).await
    }

    /// Clients with these credentials. No call is made yet.
    pub async fn with_credentials(config: GceConfig, credentials: Credentials) -> Result<Self, GceError> {
        Ok(Self {
            zonal: build!(InstanceGroupManagers, config, credentials),
            regional: build!(RegionInstanceGroupManagers, config, credentials),
            instances: build!(Instances, config, credentials),
            zone_operations: build!(ZoneOperations, config, credentials),
            region_operations: build!(RegionOperations, config, credentials),
            templates: build!(InstanceTemplates, config, credentials),
            region_templates: build!(RegionInstanceTemplates, config, credentials),
            timeout: config.request_timeout,
        })
    }

    async fn call<T>(
        &self,
        action: &'static str,
        group: &Group,
        call: impl Future<Output = google_cloud_compute_v1::Result<T>> + Send,
    ) -> Result<T, ComputeError> {
        match tokio::time::timeout(self.timeout, call).await {
            Ok(answer) => answer.map_err(|error| fault::failed(action, group, &error)),
            Err(_) => Err(fault::timed_out(action, group, self.timeout)),
        }
    }

    /// One page: its entries and the token of the next.
    async fn page(
        &self,
        group: &Group,
        token: Option<String>,
    ) -> Result<(Vec<model::ManagedInstance>, Option<String>), ComputeError> {
        const ACTION: &str = "listing the instances of";
        match &group.location {
            Location::Zone(zone) => {
                let call = self.zonal.list_managed_instances().set_project(&group.project).set_zone(zone);
                let call = call.set_instance_group_manager(&group.name).set_or_clear_page_token(token);
                let page = self.call(ACTION, group, call.send()).await?;
                Ok((page.managed_instances, page.next_page_token))
            }
            Location::Region(region) => {
                let call = self.regional.list_managed_instances().set_project(&group.project).set_region(region);
                let call = call.set_instance_group_manager(&group.name).set_or_clear_page_token(token);
                let page = self.call(ACTION, group, call.send()).await?;
                Ok((page.managed_instances, page.next_page_token))
            }
        }
    }

    async fn group(&self, group: &Group) -> Result<model::InstanceGroupManager, ComputeError> {
        const ACTION: &str = "reading the settings of";
        match &group.location {
            Location::Zone(zone) => {
                let call = self.zonal.get().set_project(&group.project).set_zone(zone);
                self.call(ACTION, group, call.set_instance_group_manager(&group.name).send()).await
            }
            Location::Region(region) => {
                let call = self.regional.get().set_project(&group.project).set_region(region);
                self.call(ACTION, group, call.set_instance_group_manager(&group.name).send()).await
            }
        }
    }

    async fn template(
        &self,
        group: &Group,
        template: wire::TemplateName,
    ) -> Result<model::InstanceTemplate, ComputeError> {
        const ACTION: &str = "reading the instance template of";
        match template.region {
            Some(region) => {
                let call = self.region_templates.get().set_project(template.project).set_region(region);
                self.call(ACTION, group, call.set_instance_template(template.name).send()).await
            }
            None => {
                let call = self.templates.get().set_project(template.project);
                self.call(ACTION, group, call.set_instance_template(template.name).send()).await
            }
        }
    }
}

#[async_trait]
impl Instances for Gce {
    async fn list(&self, group: &Group) -> Result<Vec<Instance>, ComputeError> {
        let mut all = Vec::new();
        let mut token = None;
        for _ in 0..MOST_PAGES {
            let (entries, next) = self.page(group, token).await?;
            all.extend(entries.into_iter().filter_map(wire::instance));
            match next.filter(|next| !next.is_empty()) {
                Some(next) => token = Some(next),
                None => return Ok(all),
            }
        }
        Err(fault::unusable("listing the instances of", group, "the list has more pages than any group can have"))
    }

    async fn create(&self, group: &Group, names: &[String], request: Uuid) -> Result<Operation, ComputeError> {
        const ACTION: &str = "creating instances in";
        let configs = names.iter().map(|name| model::PerInstanceConfig::new().set_name(name));
        let operation = match &group.location {
            Location::Zone(zone) => {
                let body = model::InstanceGroupManagersCreateInstancesRequest::new().set_instances(configs);
                let call = self.zonal.create_instances().set_project(&group.project).set_zone(zone).set_body(body);
                let call = call.set_instance_group_manager(&group.name).set_request_id(request.to_string());
                self.call(ACTION, group, call.send()).await?
            }
            Location::Region(region) => {
                let body = model::RegionInstanceGroupManagersCreateInstancesRequest::new().set_instances(configs);
                let call = self.regional.create_instances().set_project(&group.project).set_region(region);
                let call = call.set_instance_group_manager(&group.name).set_request_id(request.to_string());
                self.call(ACTION, group, call.set_body(body).send()).await?
            }
        };
        Ok(wire::operation(operation))
    }

    async fn delete(&self, group: &Group, targets: &[DeleteTarget], request: Uuid) -> Result<Operation, ComputeError> {
        const ACTION: &str = "deleting instances of";
        let names = wire::delete_names(targets);
        // One instance that is already gone would otherwise fail the whole batch.
        let operation = match &group.location {
            Location::Zone(zone) => {
                let body = model::InstanceGroupManagersDeleteInstancesRequest::new().set_instances(names);
                let body = body.set_skip_instances_on_validation_error(true);
                let call = self.zonal.delete_instances().set_project(&group.project).set_zone(zone).set_body(body);
                let call = call.set_instance_group_manager(&group.name).set_request_id(request.to_string());
                self.call(ACTION, group, call.send()).await?
            }
            Location::Region(region) => {
                let body = model::RegionInstanceGroupManagersDeleteInstancesRequest::new().set_instances(names);
                let body = body.set_skip_instances_on_validation_error(true);
                let call = self.regional.delete_instances().set_project(&group.project).set_region(region);
                let call = call.set_instance_group_manager(&group.name).set_request_id(request.to_string());
                self.call(ACTION, group, call.set_body(body).send()).await?
            }
        };
        Ok(wire::operation(operation))
    }

    async fn operation(&self, group: &Group, name: &str) -> Result<Operation, ComputeError> {
        const ACTION: &str = "reading an operation of";
        let operation = match &group.location {
            Location::Zone(zone) => {
                let call = self.zone_operations.get().set_project(&group.project).set_zone(zone);
                self.call(ACTION, group, call.set_operation(name).send()).await?
            }
            Location::Region(region) => {
                let call = self.region_operations.get().set_project(&group.project).set_region(region);
                self.call(ACTION, group, call.set_operation(name).send()).await?
            }
        };
        Ok(wire::operation(operation))
    }

    async fn settings(&self, group: &Group) -> Result<GroupSettings, ComputeError> {
        let manager = self.group(group).await?;
        let template = wire::template(&manager, &group.project)
            .ok_or_else(|| fault::unusable("reading the settings of", group, "the group has no instance template"))?;
        let template = self.template(group, template).await?;
        Ok(wire::settings(&manager, &template))
    }

    async fn last_words(&self, group: &Group, zone: &str, name: &str) -> Result<Option<String>, ComputeError> {
        let call = self.instances.get_guest_attributes().set_project(&group.project).set_zone(zone);
        let call = call.set_instance(name).set_query_path(LAST_WORDS);
        match self.call("reading a guest attribute in", group, call.send()).await {
            Ok(attributes) => Ok(wire::last_words(&attributes)),
            Err(error) if error.class == ErrorClass::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests;
