//! Instances as resources of their own, apart from the group that manages them.

use std::io::Read;

use serde_json::{Value, json};

use super::{
    Inner,
    errors::ApiError,
    lifecycle::template_attributes,
    managers::{list, merge},
    operation::Subject,
    rest::Call,
    state::{Command, PREFIX, Place, Vm, World},
};

/// The most of a serial console that is kept.
const CONSOLE: u64 = 1 << 20;

impl Inner {
    fn instance_path(&self, zone: &str, name: &str) -> String {
        format!("projects/{}/zones/{zone}/instances/{name}", self.options.project)
    }

    fn find<'a>(&self, world: &'a World, zone: &str, name: &str) -> Result<(&'a Vm, u64), ApiError> {
        let vm = world.vm(name).filter(|vm| vm.view.zone == zone);
        let vm = vm.and_then(|vm| Some((vm, vm.view.id?)));
        vm.ok_or_else(|| ApiError::not_found(&self.instance_path(zone, name)))
    }

    pub(crate) fn instance(&self, world: &World, zone: &str, name: &str) -> Result<Value, ApiError> {
        let (vm, id) = self.find(world, zone, name)?;
        Ok(self.instance_body(vm, id))
    }

    pub(crate) fn list_instances(&self, world: &World, zone: &str) -> Value {
        let living = world.vms.values().filter(|vm| !vm.gone && vm.view.zone == zone);
        let bodies = living.filter_map(|vm| Some(self.instance_body(vm, vm.view.id?)));
        list("compute#instanceList", bodies.collect())
    }

    fn instance_body(&self, vm: &Vm, id: u64) -> Value {
        let zone = &vm.view.zone;
        let base = format!("{PREFIX}projects/{}/zones/{zone}", self.options.project);
        let machine_type = vm.properties.get("machineType").and_then(Value::as_str).unwrap_or_default();
        let mut body = vm.properties.clone();
        let attributes = vm.metadata.as_ref().map(|(metadata, _)| metadata.attributes());
        let attributes = attributes.unwrap_or_else(|| template_attributes(&vm.properties));
        let items: Vec<Value> = attributes.iter().map(|(key, value)| json!({"key": key, "value": value})).collect();
        merge(
            &mut body,
            &json!({
                "kind": "compute#instance",
                "id": id.to_string(),
                "name": vm.name,
                "status": vm.view.status.map(super::state::Status::name),
                "creationTimestamp": vm.created.to_string(),
                "machineType": format!("{base}/machineTypes/{machine_type}"),
                "zone": base,
                "selfLink": format!("{base}/instances/{}", vm.name),
                "metadata": {"items": items},
            }),
        );
        body
    }

    pub(crate) fn guest_attributes(
        &self,
        world: &World,
        (zone, name): (&str, &str),
        call: &Call,
    ) -> Result<Value, ApiError> {
        let (vm, _) = self.find(world, zone, name)?;
        let query = call.query("queryPath").unwrap_or_default();
        let link = format!("{PREFIX}{}/guestAttributes", self.instance_path(zone, name));
        let missing = || ApiError::not_found(&format!("{}/guestAttributes/{query}", self.instance_path(zone, name)));
        let found = vm.metadata.as_ref().map(|(metadata, _)| metadata.guest_attributes(query.trim_end_matches('/')));
        let found = found.filter(|found| !found.is_empty()).ok_or_else(missing)?;
        let entry = |(namespace, key, value): (String, String, String)| json!({"namespace": namespace, "key": key, "value": value});
        let items: Vec<Value> = found.into_iter().map(entry).collect();
        Ok(
            json!({"kind": "compute#guestAttributes", "queryPath": query, "selfLink": link, "queryValue": {"items": items}}),
        )
    }

    pub(crate) fn serial_port(
        &self,
        world: &World,
        (zone, name): (&str, &str),
        call: &Call,
    ) -> Result<Value, ApiError> {
        let (vm, _) = self.find(world, zone, name)?;
        let start: usize = call.query("start").and_then(|start| start.parse().ok()).unwrap_or(0);
        let contents = match &vm.console {
            Some(path) => {
                let mut bytes = Vec::new();
                // A console that cannot be read says nothing, like one that was never written.
                drop(std::fs::File::open(path).and_then(|file| file.take(CONSOLE).read_to_end(&mut bytes)));
                String::from_utf8_lossy(&bytes).into_owned()
            }
            None => vm.transcript.clone(),
        };
        let rest = contents.get(start..).unwrap_or_default();
        Ok(json!({
            "kind": "compute#serialPortOutput",
            "selfLink": format!("{PREFIX}{}/serialPort", self.instance_path(zone, name)),
            "contents": rest, "start": start.to_string(), "next": contents.len().max(start).to_string(),
        }))
    }

    /// Stops or deletes an instance directly, behind its group's back.
    pub(crate) fn change_instance(
        &self,
        (zone, name): (&str, &str),
        verb: &str,
        call: &Call,
    ) -> Result<Value, ApiError> {
        let project = &self.options.project;
        let mut world = self.world();
        if let Some(earlier) = world.repeated(project, call.query("requestId"))? {
            return Ok(earlier);
        }
        let (vm, target_id) = self.find(&world, zone, name)?;
        vm.tell(if verb == "delete" { Command::DeleteElsewhere } else { Command::PowerOff });
        let subject = Subject {
            place: Some(Place::Zone(zone.to_owned())),
            kind: verb.to_owned(),
            target: format!("zones/{zone}/instances/{name}"),
            target_id,
        };
        let delay = self.options.delays.operation;
        Ok(world.operate(subject, call.query("requestId"), delay, None).body(project))
    }
}
