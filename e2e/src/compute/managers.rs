//! Instance groups: the resource, its members, and the calls that change them, zonal and regional alike.

use std::time::Instant;

use serde_json::{Map, Value, json};

use super::{
    Inner,
    defaults::{default_properties, default_settings},
    errors::{ApiError, Attempt, OperationError},
    members::{condemn, recreate_instances},
    operation::Subject,
    options::{GroupSpec, Location},
    state::{Doing, Group, GroupKey, PREFIX, Place, Vm, World, below_project, fingerprint, new_id, now},
};
use crate::compute::rest::Call;

/// What a call did: an operation that succeeds or fails.
pub(crate) type Effect = Result<Option<OperationError>, ApiError>;

impl Inner {
    /// Makes a group and its template as specified.
    pub(crate) fn make_group(&self, spec: &GroupSpec) {
        let project = &self.options.project;
        let template = format!("global/instanceTemplates/{}-template", spec.name);
        let mut properties = default_properties(project, spec);
        merge(&mut properties, &spec.properties);
        let (place, zones) = match &spec.location {
            Location::Zone(zone) => (Place::Zone(zone.clone()), vec![zone.clone()]),
            Location::Region { name, zones } => (Place::Region(name.clone()), zones.clone()),
        };
        let mut body = default_settings(project, &place, &zones);
        let url = format!("{PREFIX}projects/{project}/{template}");
        merge(&mut body, &json!({"name": spec.name, "baseInstanceName": spec.name, "instanceTemplate": url}));
        merge(&mut body, &spec.settings);
        let mut world = self.world();
        let resource = super::templates::resource(project, &template, &json!({"properties": properties}));
        world.templates.insert(template, resource);
        world.groups.insert((place, spec.name.clone()), group(zones, body));
    }

    pub(crate) fn group_body(&self, world: &World, key: &GroupKey) -> Result<Value, ApiError> {
        let project = &self.options.project;
        let base = format!("{PREFIX}projects/{project}");
        let (place, name) = key;
        let group = world.groups.get(key).ok_or_else(|| self.no_group(key))?;
        let mut body = Value::Object(group.body.clone());
        let template = group.body.get("instanceTemplate").cloned().unwrap_or_default();
        let actions = actions(world, key);
        let stable = actions.iter().all(|(action, count)| action == "none" || *count == json!(0));
        let (field, _) = place.field();
        let computed = json!({
            "kind": "compute#instanceGroupManager",
            "id": group.id.to_string(),
            "creationTimestamp": group.created.to_string(),
            "fingerprint": group.fingerprint,
            "targetSize": group.target,
            "versions": [{"instanceTemplate": template}],
            "currentActions": actions,
            "instanceGroup": format!("{base}/{}/instanceGroups/{name}", place.path()),
            "selfLink": format!("{base}/{}", path(key)),
            field: format!("{base}/{}", place.path()),
            "status": {"isStable": stable, "stateful": {"hasStatefulConfig": false},
                "versionTarget": {"isReached": true}},
        });
        merge(&mut body, &computed);
        if let Some(settings) = group.body.get("status") {
            merge(&mut body, &json!({"status": settings}));
        }
        Ok(body)
    }

    pub(crate) fn list_groups(&self, world: &World, place: &Place) -> Result<Value, ApiError> {
        let keys = world.groups.keys().filter(|(p, _)| p == place);
        let items = keys.map(|key| self.group_body(world, key)).collect::<Result<Vec<_>, _>>()?;
        let kind = match place {
            Place::Zone(_) => "compute#instanceGroupManagerList",
            Place::Region(_) => "compute#regionInstanceGroupManagerList",
        };
        Ok(list(kind, items))
    }

    /// The group as clients see it: possibly a while ago, possibly in pages.
    pub(crate) fn list_managed(&self, world: &World, key: &GroupKey, call: &Call) -> Result<Value, ApiError> {
        let group = world.groups.get(key).ok_or_else(|| self.no_group(key))?;
        let then = Instant::now().checked_sub(world.hostile.lag).unwrap_or_else(Instant::now);
        let items: Vec<Value> =
            world.vms.values().filter(|vm| vm.group == *key).filter_map(|vm| self.managed(vm, then)).collect();
        let paginated = group.body.get("listManagedInstancesResults").is_some_and(|mode| mode == "PAGINATED");
        let wanted = call.query("maxResults").and_then(|n| n.parse().ok()).filter(|_| paginated);
        let size = world.hostile.page.or(wanted).unwrap_or(usize::MAX).max(1);
        let start: usize = call.query("pageToken").and_then(|token| token.parse().ok()).unwrap_or(0);
        let next = start.saturating_add(size);
        let more = next < items.len();
        let page: Vec<Value> = items.into_iter().skip(start).take(size).collect();
        let mut body = Map::new();
        if !page.is_empty() {
            body.insert("managedInstances".to_owned(), json!(page));
        }
        if more {
            body.insert("nextPageToken".to_owned(), json!(next.to_string()));
        }
        Ok(Value::Object(body))
    }

    fn managed(&self, vm: &Vm, then: Instant) -> Option<Value> {
        let view = vm.seen(then)?;
        let project = &self.options.project;
        let target = if view.doing == Doing::Deleting { "DELETED" } else { "RUNNING" };
        let mut item = json!({
            "name": vm.name,
            "instance": format!("{PREFIX}projects/{project}/zones/{}/instances/{}", view.zone, vm.name),
            "currentAction": view.doing.name(),
            "targetStatus": target,
            "version": {"instanceTemplate": vm.template},
        });
        if let Some(item) = item.as_object_mut() {
            if let (Some(id), Some(status)) = (view.id, view.status) {
                item.insert("id".to_owned(), json!(id.to_string()));
                item.insert("instanceStatus".to_owned(), json!(status.name()));
            }
            if let Some(attempt) = &view.failed {
                item.insert("lastAttempt".to_owned(), attempt.body());
            }
        }
        Some(item)
    }

    pub(crate) fn list_errors(&self, world: &World, key: &GroupKey) -> Result<Value, ApiError> {
        let group = world.groups.get(key).ok_or_else(|| self.no_group(key))?;
        Ok(if group.errors.is_empty() { json!({}) } else { json!({"items": group.errors}) })
    }

    /// Runs a call that changes a group, once per request id.
    pub(crate) fn change_group(&self, key: &GroupKey, verb: &str, call: &Call) -> Result<Value, ApiError> {
        let project = &self.options.project;
        let mut world = self.world();
        if let Some(earlier) = world.repeated(project, call.query("requestId"))? {
            return Ok(earlier);
        }
        if verb != "insert" && !world.groups.contains_key(key) {
            return Err(self.no_group(key));
        }
        let failure = match verb {
            "insert" => self.insert(&mut world, key, call)?,
            "patch" => patch(&mut world, key, call)?,
            "delete" => delete(&mut world, key),
            "setInstanceTemplate" => set_template(&mut world, (project, key), call)?,
            "resize" => self.resize(&mut world, key, call)?,
            "createInstances" => self.create_instances(&mut world, key, call)?,
            "deleteInstances" => self.delete_instances(&mut world, key, call)?,
            "recreateInstances" => recreate_instances(&mut world, key, call)?,
            _ => return Err(ApiError::not_found(&format!("{}/{verb}", path(key)))),
        };
        let target_id = world.groups.get(key).map_or_else(new_id, |group| group.id);
        let resource =
            if matches!(key.0, Place::Zone(_)) { "instanceGroupManagers" } else { "regionInstanceGroupManagers" };
        let kind = format!("compute.{resource}.{verb}");
        let subject = Subject { place: Some(key.0.clone()), kind, target: path(key), target_id };
        let delay = self.options.delays.operation;
        Ok(world.operate(subject, call.query("requestId"), delay, failure).body(project))
    }

    fn insert(&self, world: &mut World, key: &GroupKey, call: &Call) -> Effect {
        if world.groups.contains_key(key) {
            return Err(ApiError::exists(&path(key)));
        }
        let zones = match &key.0 {
            Place::Zone(zone) => vec![zone.clone()],
            Place::Region(region) => {
                let zones = call.body.pointer("/distributionPolicy/zones").and_then(Value::as_array);
                let named =
                    zones.into_iter().flatten().filter_map(|zone| zone.get("zone")?.as_str()?.rsplit('/').next());
                let named: Vec<String> = named.map(str::to_owned).collect();
                if named.is_empty() {
                    ["a", "b", "c"].map(|letter| format!("{region}-{letter}")).to_vec()
                } else {
                    named
                }
            }
        };
        let mut body = call.body.clone();
        let size = body.get("targetSize").and_then(Value::as_i64).unwrap_or(0);
        let template = normalized_template(world, &self.options.project, &body)?;
        merge(&mut body, &json!({"name": key.1, "instanceTemplate": template}));
        if body.get("baseInstanceName").is_none() {
            merge(&mut body, &json!({"baseInstanceName": key.1}));
        }
        world.groups.insert(key.clone(), group(zones, body));
        self.grow(world, key, size)
    }

    pub(crate) fn no_group(&self, key: &GroupKey) -> ApiError {
        ApiError::not_found(&format!("projects/{}/{}", self.options.project, path(key)))
    }

    /// Whether the group makes a failed instance again. Compute's own default is that it does.
    pub(crate) fn repairs(&self, sequence: u64) -> bool {
        let world = self.world();
        let group = world.vms.get(&sequence).and_then(|vm| world.groups.get(&vm.group));
        let policy = group.and_then(|group| group.body.get("instanceLifecyclePolicy"));
        let action = policy.and_then(|policy| policy.get("defaultActionOnFailure"));
        action.and_then(Value::as_str).unwrap_or("REPAIR") == "REPAIR" && group.is_some()
    }
}

fn group(zones: Vec<String>, body: Value) -> Group {
    let body = if let Value::Object(map) = body { map } else { Map::new() };
    Group { id: new_id(), zones, fingerprint: fingerprint(), target: 0, created: now(), body, errors: Vec::new() }
}

fn delete(world: &mut World, key: &GroupKey) -> Option<OperationError> {
    let all: Vec<u64> = world.members(key).map(|(sequence, _)| sequence).collect();
    condemn(world, key, &all);
    world.groups.remove(key);
    None
}

fn patch(world: &mut World, key: &GroupKey, call: &Call) -> Effect {
    let Some(group) = world.groups.get_mut(key) else { return Ok(None) };
    if call.body.get("fingerprint").and_then(Value::as_str).is_some_and(|sent| sent != group.fingerprint) {
        return Err(ApiError::precondition("Invalid fingerprint."));
    }
    let mut body = Value::Object(std::mem::take(&mut group.body));
    merge(&mut body, &call.body);
    if let Value::Object(mut map) = body {
        map.remove("fingerprint");
        group.body = map;
    }
    group.fingerprint = fingerprint();
    Ok(None)
}

fn set_template(world: &mut World, (project, key): (&str, &GroupKey), call: &Call) -> Effect {
    let template = normalized_template(world, project, &call.body)?;
    let Some(group) = world.groups.get_mut(key) else { return Ok(None) };
    group.body.insert("instanceTemplate".to_owned(), template);
    group.fingerprint = fingerprint();
    Ok(None)
}

/// The template a body refers to, as a full URL.
fn normalized_template(world: &World, project: &str, body: &Value) -> Result<Value, ApiError> {
    let reference = body.get("instanceTemplate").and_then(Value::as_str).unwrap_or_default();
    let template = below_project(reference).and_then(|path| world.templates.get(path));
    let link = template.and_then(|template| template.get("selfLink")).cloned();
    link.ok_or_else(|| ApiError::not_found(&format!("projects/{project}/{reference}")))
}

/// How many members are in which action.
fn actions(world: &World, key: &GroupKey) -> Map<String, Value> {
    let names = [
        "none",
        "creating",
        "creatingWithoutRetries",
        "recreating",
        "deleting",
        "abandoning",
        "restarting",
        "refreshing",
        "verifying",
        "suspending",
        "resuming",
        "stopping",
        "starting",
    ];
    let count = |doing: Doing| world.members(key).filter(|(_, vm)| vm.view.doing == doing).count();
    names
        .map(|name| {
            let number = match name {
                "none" => count(Doing::None),
                "creating" => count(Doing::Creating),
                "creatingWithoutRetries" => count(Doing::CreatingWithoutRetries),
                "recreating" => count(Doing::Recreating),
                "deleting" => count(Doing::Deleting),
                _ => 0,
            };
            (name.to_owned(), json!(number))
        })
        .into_iter()
        .collect()
}

/// An entry of `listErrors`.
pub(crate) fn listed_error(project: &str, vm: &Vm, attempt: &Attempt) -> Value {
    let instance = format!("{PREFIX}projects/{project}/zones/{}/instances/{}", vm.view.zone, vm.name);
    json!({
        "timestamp": now().to_string(),
        "error": {"code": attempt.code, "message": attempt.message},
        "instanceActionDetails": {"action": vm.view.doing.name(), "instance": instance,
            "version": {"instanceTemplate": vm.template}},
    })
}

/// Path of a group below the project.
pub(crate) fn path((place, name): &GroupKey) -> String {
    format!("{}/instanceGroupManagers/{name}", place.path())
}

/// A list resource; without `items` when there are none.
pub(crate) fn list(kind: &str, items: Vec<Value>) -> Value {
    let mut body = json!({"kind": kind});
    if !items.is_empty() {
        merge(&mut body, &json!({"items": items}));
    }
    body
}

/// RFC 7396.
pub(crate) fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let Some(target) = target.as_object_mut() else { return };
    for (name, value) in patch {
        if value.is_null() {
            target.remove(name);
        } else {
            merge(target.entry(name.clone()).or_insert(Value::Null), value);
        }
    }
}
