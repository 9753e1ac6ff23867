//! Instance groups: the resource, its members, and the calls that change them, zonal and regional alike.

use std::{collections::BTreeSet, time::Instant};

use rand::{Rng, seq::IteratorRandom};
use serde_json::{Map, Value, json};

use super::{
    Inner,
    errors::{ApiError, Attempt, OperationError},
    operation::Subject,
    options::{GroupSpec, Location},
    state::{
        Command, Doing, Group, GroupKey, PREFIX, Place, Vm, World, below_project, fingerprint, new_id, now, region,
    },
};
use crate::compute::rest::Call;

/// The most instances one call may name.
const MOST: usize = 1000;
const MEMBERS_OF_CREATION: &str = "CreateInstances cannot be used when UpdatePolicy type is set to PROACTIVE and \
    replacementMethod to SUBSTITUTE. Please set UpdatePolicy type to OPPORTUNISTIC or replacementMethod to RECREATE.";

/// What a call did: an operation that succeeds or fails.
type Effect = Result<Option<OperationError>, ApiError>;

impl Inner {
    /// Makes a group and its template as specified.
    pub(crate) fn make_group(&self, spec: &GroupSpec) {
        let project = &self.options.project;
        let template = format!("global/instanceTemplates/{}-template", spec.name);
        let mut properties = default_properties(spec);
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
            "setInstanceTemplate" => set_template(&mut world, key, call)?,
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

    fn grow(&self, world: &mut World, key: &GroupKey, count: i64) -> Effect {
        let base =
            world.groups.get(key).and_then(|group| group.body.get("baseInstanceName")?.as_str()).unwrap_or(&key.1);
        let base = base.to_owned();
        for _ in 0..count {
            let suffix: String = (0..4)
                .map(|_| char::from(b"abcdefghijkmnpqrstvwxyz0123456789"[rand::rng().random_range(0..33)]))
                .collect();
            world.add_vm(key, &format!("{base}-{suffix}"), self.options.create_retries)?;
        }
        Ok(None)
    }

    /// Absolute, and free to pick any victim: exactly what makes it unfit for steady use.
    fn resize(&self, world: &mut World, key: &GroupKey, call: &Call) -> Effect {
        let size: i64 = call
            .query("size")
            .and_then(|size| size.parse().ok())
            .filter(|size| *size >= 0)
            .ok_or_else(|| ApiError::invalid("Invalid value for field 'size'"))?;
        let target = world.groups.get(key).map_or(0, |group| group.target);
        if size >= target {
            return self.grow(world, key, size - target);
        }
        let surplus = usize::try_from(target - size).unwrap_or(0);
        let candidates = world.members(key).filter(|(_, vm)| vm.view.doing != Doing::Deleting).map(|(seq, _)| seq);
        let victims = candidates.choose_multiple(&mut rand::rng(), surplus);
        condemn(world, key, &victims);
        Ok(None)
    }

    fn create_instances(&self, world: &mut World, key: &GroupKey, call: &Call) -> Effect {
        let entries = call.body.get("instances").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let names: Vec<&str> = entries.iter().filter_map(|entry| entry.get("name")?.as_str()).collect();
        if names.is_empty() || names.len() > MOST || names.len() != entries.len() {
            return Err(ApiError::invalid("Invalid value for field 'resource.instances': 1 to 1000 named instances."));
        }
        if let Some(name) = names.iter().find(|name| !is_rfc1035(name)) {
            let message = format!(
                "Invalid value for field 'resource.instances.name': '{name}'. Must be a match of regex \
                                   '[a-z](?:[-a-z0-9]{{0,61}}[a-z0-9])?'"
            );
            return Err(ApiError::invalid(message));
        }
        if self.refuses_creation(world, key) {
            return Ok(Some(OperationError::condition(MEMBERS_OF_CREATION)));
        }
        let mut unique = BTreeSet::new();
        // Names are unique in a zone, so other groups' instances stand in the way too.
        let zones = world.groups.get(key).map(|group| group.zones.clone()).unwrap_or_default();
        let taken =
            |name: &str| world.vms.values().any(|vm| !vm.gone && vm.name == name && zones.contains(&vm.view.zone));
        if let Some(name) = names.iter().find(|name| !unique.insert(**name) || taken(name)) {
            let zone = zones.first().map(String::as_str).unwrap_or_default();
            let resource = format!("projects/{}/zones/{zone}/instances/{name}", self.options.project);
            return Ok(Some(OperationError::exists(&resource)));
        }
        for name in names {
            world.add_vm(key, name, self.options.create_retries)?;
        }
        Ok(None)
    }

    fn refuses_creation(&self, world: &World, key: &GroupKey) -> bool {
        let setting = |name: &str| world.groups.get(key)?.body.get("updatePolicy")?.get(name)?.as_str();
        setting("type") == Some("PROACTIVE") && setting("replacementMethod").unwrap_or("SUBSTITUTE") == "SUBSTITUTE"
    }

    fn delete_instances(&self, world: &mut World, key: &GroupKey, call: &Call) -> Effect {
        let skip = call.body.get("skipInstancesOnValidationError").and_then(Value::as_bool).unwrap_or(false);
        let mut victims = Vec::new();
        for reference in references(call)? {
            let (zone, name) = self.parse_instance(world, key, reference)?;
            let found = world.members(key).find(|(_, vm)| {
                vm.name == name && zone.is_none_or(|zone| vm.view.zone == zone) && vm.view.doing != Doing::Deleting
            });
            match found {
                Some((sequence, _)) => victims.push(sequence),
                None if skip => {}
                None => {
                    let message = format!(
                        "Invalid value for field 'resource.instances': '{reference}'. The instance is \
                                           not a member of the instance group manager, or is already being deleted."
                    );
                    return Err(ApiError::invalid(message));
                }
            }
        }
        victims.sort_unstable();
        victims.dedup();
        condemn(world, key, &victims);
        Ok(None)
    }

    /// The zone (absent for a bare name) and name an instance reference means.
    fn parse_instance<'a>(
        &self,
        world: &World,
        key: &GroupKey,
        reference: &'a str,
    ) -> Result<(Option<&'a str>, &'a str), ApiError> {
        let malformed = || ApiError::invalid(format!("Invalid value for field 'resource.instances': '{reference}'."));
        if is_rfc1035(reference) {
            return Ok((None, reference));
        }
        let path = below_project(reference).ok_or_else(malformed)?;
        let parts: Vec<&str> = path.split('/').collect();
        let ["zones", zone, "instances", name] = parts.as_slice() else { return Err(malformed()) };
        let ours = world.groups.get(key).is_some_and(|group| group.zones.iter().any(|z| z == zone));
        let number = self.options.project_number.to_string();
        let project = reference.split_once("projects/").and_then(|(_, rest)| rest.split('/').next());
        let same_project = project.is_none_or(|project| project == self.options.project || project == number);
        if ours && same_project { Ok((Some(zone), name)) } else { Err(malformed()) }
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

fn references(call: &Call) -> Result<Vec<&str>, ApiError> {
    let list = call.body.get("instances").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let references: Vec<&str> = list.iter().filter_map(Value::as_str).collect();
    if references.is_empty() || references.len() > MOST {
        return Err(ApiError::invalid("Invalid value for field 'resource.instances': 1 to 1000 instances."));
    }
    let names = references.iter().filter(|reference| !reference.contains('/')).count();
    if names != 0 && names != references.len() {
        return Err(ApiError::invalid("Invalid value for field 'resource.instances': URLs and names cannot be mixed."));
    }
    Ok(references)
}

/// Deletes these members: the target shrinks at once.
fn condemn(world: &mut World, key: &GroupKey, victims: &[u64]) {
    for sequence in victims {
        let Some(vm) = world.vms.get_mut(sequence) else { continue };
        vm.change(|view| {
            view.doing = Doing::Deleting;
            view.status = view.status.map(|_| super::state::Status::Stopping);
        });
        vm.tell(Command::Delete);
        if let Some(group) = world.groups.get_mut(key) {
            group.target -= 1;
        }
    }
}

fn recreate_instances(world: &mut World, key: &GroupKey, call: &Call) -> Effect {
    for reference in references(call)? {
        let name = reference.rsplit('/').next().unwrap_or(reference);
        let found = world.members(key).find(|(_, vm)| vm.name == name);
        let (_, vm) = found.ok_or_else(|| ApiError::invalid(format!("'{reference}' is not a member of the group.")))?;
        vm.tell(Command::Recreate);
    }
    Ok(None)
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

fn set_template(world: &mut World, key: &GroupKey, call: &Call) -> Effect {
    let project = key.0.path();
    let template = normalized_template(world, &project, &call.body)?;
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

fn is_rfc1035(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=63).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(allowed)
        && !name.ends_with('-')
}

fn default_settings(project: &str, place: &Place, zones: &[String]) -> Value {
    let mut settings = json!({
        "updatePolicy": {"type": "OPPORTUNISTIC", "minimalAction": "REPLACE", "replacementMethod": "SUBSTITUTE"},
        "instanceLifecyclePolicy": {"defaultActionOnFailure": "DO_NOTHING", "forceUpdateOnRepair": "NO"},
        "listManagedInstancesResults": "PAGELESS",
    });
    if let Place::Region(_) = place {
        let zones = zones.iter().map(|zone| json!({"zone": format!("{PREFIX}projects/{project}/zones/{zone}")}));
        let distribution = json!({"targetShape": "ANY", "zones": zones.collect::<Vec<_>>()});
        let regional =
            json!({"distributionPolicy": distribution, "updatePolicy": {"instanceRedistributionType": "NONE"}});
        merge(&mut settings, &regional);
    }
    settings
}

fn default_properties(spec: &GroupSpec) -> Value {
    let items: Vec<Value> = spec.metadata.iter().map(|(key, value)| json!({"key": key, "value": value})).collect();
    let accounts: Vec<Value> = spec
        .service_account
        .iter()
        .map(|email| json!({"email": email, "scopes": ["https://www.googleapis.com/auth/cloud-platform"]}))
        .collect();
    let zone = match &spec.location {
        Location::Zone(zone) => zone.clone(),
        Location::Region { zones, .. } => zones.first().cloned().unwrap_or_default(),
    };
    json!({
        "machineType": spec.machine_type,
        "metadata": {"kind": "compute#metadata", "fingerprint": fingerprint(), "items": items},
        "serviceAccounts": accounts,
        "scheduling": {"provisioningModel": "STANDARD", "onHostMaintenance": "MIGRATE", "automaticRestart": false},
        "disks": [{"kind": "compute#attachedDisk", "type": "PERSISTENT", "boot": true, "autoDelete": true,
            "initializeParams": {"sourceImage": "projects/debian-cloud/global/images/family/debian-13"}}],
        "networkInterfaces": [{"kind": "compute#networkInterface", "name": "nic0",
            "network": format!("{PREFIX}projects/acme-ci/global/networks/default"),
            "subnetwork": format!("{PREFIX}projects/acme-ci/regions/{}/subnetworks/default", region(&zone))}],
    })
}
