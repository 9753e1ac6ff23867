//! Google's words into ours: pure, tolerant of values this version does not know.
//!
//! Enums are read by their wire names: a value Google adds tomorrow becomes `Unknown` or `Other`, never a failed list.

use google_cloud_compute_v1::model;

use super::classify;
use crate::compute::{DeleteTarget, GroupAction, GroupSettings, Instance, InstanceId, LaunchError, Operation, Power};

/// One entry of a list; `None` for one without any name, which could not be addressed.
pub(super) fn instance(entry: model::ManagedInstance) -> Option<Instance> {
    let url = entry.instance.filter(|url| !url.is_empty());
    let name = entry.name.filter(|n| !n.is_empty()).or_else(|| url.as_deref().and_then(|u| segment(u, "instances")))?;
    let id = entry.id.filter(|id| *id != 0).map(InstanceId);
    let status = entry.instance_status.as_ref().and_then(|s| s.name()).unwrap_or_default();
    Some(Instance {
        name,
        id,
        zone: url.as_deref().and_then(|u| segment(u, "zones")),
        url,
        power: power(status),
        action: action(entry.current_action.as_ref().and_then(|a| a.name()).unwrap_or_default()),
        errors: entry.last_attempt.and_then(|a| a.errors).map_or_else(Vec::new, |e| {
            e.errors.into_iter().map(|e| launch_error(e.code.as_deref(), e.message.as_deref(), None)).collect()
        }),
    })
}

fn power(status: &str) -> Power {
    match status {
        "" => Power::Absent,
        "PENDING" | "PROVISIONING" | "STAGING" => Power::Starting,
        "RUNNING" => Power::Running,
        // REPAIRING is the host's repair: the machine is down and what ran on it is lost.
        "PENDING_STOP" | "STOPPING" | "SUSPENDING" => Power::Stopping,
        "STOPPED" | "TERMINATED" | "SUSPENDED" | "REPAIRING" | "DEPROVISIONING" => Power::Down,
        _ => Power::Unknown,
    }
}

fn action(name: &str) -> GroupAction {
    match name {
        "" | "NONE" => GroupAction::None,
        "CREATING" | "CREATING_WITHOUT_RETRIES" => GroupAction::Creating,
        "DELETING" | "ABANDONING" => GroupAction::Deleting,
        _ => GroupAction::Other,
    }
}

fn launch_error(code: Option<&str>, message: Option<&str>, status: Option<u16>) -> LaunchError {
    let (code, message) = (code.unwrap_or_default(), message.unwrap_or_default());
    LaunchError {
        class: classify::launch(code, message, status),
        code: code.to_owned(),
        message: classify::cut(message),
    }
}

/// An operation. One that ended with an HTTP error but without a list of errors still has one here.
pub(super) fn operation(wire: model::Operation) -> Operation {
    let done = wire.status.as_ref().and_then(|s| s.name()) == Some("DONE");
    let status = wire.http_error_status_code.and_then(|s| u16::try_from(s).ok());
    let mut errors: Vec<_> = wire.error.map_or_else(Vec::new, |e| {
        e.errors.into_iter().map(|e| launch_error(e.code.as_deref(), e.message.as_deref(), status)).collect()
    });
    if errors.is_empty() && status.is_some_and(|s| s >= 400) {
        errors.push(launch_error(None, wire.http_error_message.as_deref(), status));
    }
    Operation { name: wire.name.unwrap_or_default(), done, errors }
}

/// A group's settings and its template's.
pub(super) fn settings(group: &model::InstanceGroupManager, template: &model::InstanceTemplate) -> GroupSettings {
    let status = group.status.as_ref();
    let update = group.update_policy.as_ref();
    let properties = template.properties.as_ref();
    let on_failure = group.instance_lifecycle_policy.as_ref().and_then(|p| p.default_action_on_failure.as_ref());
    GroupSettings {
        autoscaler: status.and_then(|s| s.autoscaler.as_ref()).is_some_and(|a| !a.is_empty()),
        // Absent means Google's default, REPAIR.
        repairs: on_failure.and_then(|a| a.name()) != Some("DO_NOTHING"),
        proactive_updates: update.and_then(|u| u.r#type.as_ref()).and_then(|t| t.name()) == Some("PROACTIVE"),
        redistributes: group.region.as_ref().is_some_and(|r| !r.is_empty())
            && update.and_then(|u| u.instance_redistribution_type.as_ref()).and_then(|t| t.name()) != Some("NONE"),
        autohealing: group.auto_healing_policies.iter().any(|p| p.health_check.is_some()),
        stateful: stateful(group),
        service_account: properties.is_some_and(|p| p.service_accounts.iter().any(|a| a.email.is_some())),
        metadata_keys: properties
            .and_then(|p| p.metadata.as_ref())
            .map_or_else(Vec::new, |m| m.items.iter().filter_map(|i| i.key.clone()).collect()),
    }
}

fn stateful(group: &model::InstanceGroupManager) -> bool {
    let flagged = group.status.as_ref().and_then(|s| s.stateful.as_ref()).and_then(|s| s.has_stateful_config);
    flagged == Some(true) || group.stateful_policy.as_ref().is_some_and(|p| p.preserved_state.is_some())
}

/// Where a group's template is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TemplateName {
    pub(super) project: String,
    /// `None` for a global template.
    pub(super) region: Option<String>,
    pub(super) name: String,
}

/// The template a new VM of the group gets: the group's own, or the version without a target size.
pub(super) fn template(group: &model::InstanceGroupManager, project: &str) -> Option<TemplateName> {
    let versions = group.versions.iter();
    let version = versions.clone().find(|v| v.target_size.is_none()).or_else(|| group.versions.first());
    let url = group
        .instance_template
        .as_deref()
        .filter(|u| !u.is_empty())
        .or_else(|| version.and_then(|v| v.instance_template.as_deref()))?;
    Some(TemplateName {
        project: segment(url, "projects").unwrap_or_else(|| project.to_owned()),
        region: segment(url, "regions"),
        name: segment(url, "instanceTemplates")?,
    })
}

/// What follows `collection` in a resource URL, full or partial.
fn segment(url: &str, collection: &str) -> Option<String> {
    let mut parts = url.split('/');
    parts.find(|part| *part == collection)?;
    parts.next().filter(|part| !part.is_empty()).map(str::to_owned)
}

/// How a delete call names its instances.
pub(super) fn delete_names(targets: &[DeleteTarget]) -> Vec<String> {
    targets
        .iter()
        .map(|target| match target {
            DeleteTarget::Url(name) | DeleteTarget::Name(name) => name.clone(),
        })
        .collect()
}

/// The value of a guest attribute, made harmless: it was written by whoever controls the VM.
pub(super) fn last_words(attributes: &model::GuestAttributes) -> Option<String> {
    let items = attributes.query_value.iter().flat_map(|v| v.items.iter());
    let value = items.filter_map(|i| i.value.as_deref()).next().or(attributes.variable_value.as_deref())?;
    let clean = classify::cut(value);
    Some(clean).filter(|c| !c.is_empty())
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
