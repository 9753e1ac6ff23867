//! Instance templates, global and regional: stored by path, never changed.

use serde_json::{Value, json};

use super::{
    Inner,
    errors::ApiError,
    managers::{list, merge},
    operation::Subject,
    rest::Call,
    state::{PREFIX, Place, new_id, now},
};

/// A template resource from what a client sent.
pub(crate) fn resource(project: &str, path: &str, body: &Value) -> Value {
    let mut resource = body.clone();
    merge(
        &mut resource,
        &json!({
            "kind": "compute#instanceTemplate",
            "id": new_id().to_string(),
            "name": path.rsplit('/').next(),
            "creationTimestamp": now().to_string(),
            "selfLink": format!("{PREFIX}projects/{project}/{path}"),
        }),
    );
    resource
}

impl Inner {
    pub(crate) fn template(&self, path: &str) -> Result<Value, ApiError> {
        let missing = || ApiError::not_found(&format!("projects/{}/{path}", self.options.project));
        self.world().templates.get(path).cloned().ok_or_else(missing)
    }

    pub(crate) fn list_templates(&self, prefix: &str) -> Value {
        let world = self.world();
        let chosen = world.templates.iter().filter(|(path, _)| path.starts_with(prefix));
        list("compute#instanceTemplateList", chosen.map(|(_, template)| template.clone()).collect())
    }

    pub(crate) fn insert_template(&self, place: Option<Place>, call: &Call) -> Result<Value, ApiError> {
        let name = call.body.get("name").and_then(Value::as_str).ok_or_else(|| ApiError::invalid("name is missing"))?;
        let home = place.as_ref().map_or_else(|| "global".to_owned(), Place::path);
        let target = format!("{home}/instanceTemplates/{name}");
        let project = &self.options.project;
        let mut world = self.world();
        if let Some(earlier) = world.repeated(project, call.query("requestId"))? {
            return Ok(earlier);
        }
        if world.templates.contains_key(&target) {
            return Err(ApiError::exists(&target));
        }
        let template = resource(project, &target, &call.body);
        world.templates.insert(target.clone(), template);
        let kind = "compute.instanceTemplates.insert".to_owned();
        let subject = Subject { place, kind, target, target_id: new_id() };
        let delay = self.options.delays.operation;
        Ok(world.operate(subject, call.query("requestId"), delay, None).body(project))
    }
}
