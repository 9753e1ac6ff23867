//! Calls that add and remove members of a group, by name and by size.

use std::collections::BTreeSet;

use rand::{Rng, distr::Alphanumeric, seq::IteratorRandom};
use serde_json::Value;

use super::{
    Inner,
    errors::{ApiError, OperationError},
    managers::Effect,
    rest::Call,
    state::{Command, Doing, GroupKey, Status, World, below_project},
};

/// The most instances one call may name.
const MOST: usize = 1000;
const MEMBERS_OF_CREATION: &str = "CreateInstances cannot be used when UpdatePolicy type is set to PROACTIVE and \
    replacementMethod to SUBSTITUTE. Please set UpdatePolicy type to OPPORTUNISTIC or replacementMethod to RECREATE.";

impl Inner {
    pub(crate) fn grow(&self, world: &mut World, key: &GroupKey, count: i64) -> Effect {
        let base =
            world.groups.get(key).and_then(|group| group.body.get("baseInstanceName")?.as_str()).unwrap_or(&key.1);
        let base = base.to_owned();
        for _ in 0..count {
            let letters = rand::rng().sample_iter(Alphanumeric).map(|letter| char::from(letter.to_ascii_lowercase()));
            let suffix: String = letters.take(4).collect();
            world.add_vm(key, &format!("{base}-{suffix}"), self.options.create_retries)?;
        }
        Ok(None)
    }

    /// Absolute, and free to pick any victim: exactly what makes it unfit for steady use.
    pub(crate) fn resize(&self, world: &mut World, key: &GroupKey, call: &Call) -> Effect {
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

    pub(crate) fn create_instances(&self, world: &mut World, key: &GroupKey, call: &Call) -> Effect {
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

    pub(crate) fn delete_instances(&self, world: &mut World, key: &GroupKey, call: &Call) -> Effect {
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
        if ours && same_project && is_rfc1035(name) { Ok((Some(zone), name)) } else { Err(malformed()) }
    }
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
pub(crate) fn condemn(world: &mut World, key: &GroupKey, victims: &[u64]) {
    for sequence in victims {
        let Some(vm) = world.vms.get_mut(sequence) else { continue };
        vm.change(|view| {
            view.doing = Doing::Deleting;
            view.status = view.status.map(|_| Status::Stopping);
        });
        vm.tell(Command::Delete);
        if let Some(group) = world.groups.get_mut(key) {
            group.target -= 1;
        }
    }
}

pub(crate) fn recreate_instances(world: &mut World, key: &GroupKey, call: &Call) -> Effect {
    for reference in references(call)? {
        let name = reference.rsplit('/').next().unwrap_or(reference);
        let found = world.members(key).find(|(_, vm)| vm.name == name);
        let (_, vm) = found.ok_or_else(|| ApiError::invalid(format!("'{reference}' is not a member of the group.")))?;
        vm.tell(Command::Recreate);
    }
    Ok(None)
}

fn is_rfc1035(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=63).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(allowed)
        && !name.ends_with('-')
}
