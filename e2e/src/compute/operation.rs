//! Operations: every change answers with one, and a repeated request id with the one it had before.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use rand::Rng;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{
    errors::{ApiError, OperationError},
    state::{PREFIX, Place, World, new_id, now},
};

/// A change that was accepted.
#[derive(Debug)]
pub(crate) struct Operation {
    id: u64,
    pub(crate) name: String,
    /// Where it is; `None` is global.
    pub(crate) place: Option<Place>,
    kind: String,
    target: String,
    target_id: u64,
    request_id: Option<String>,
    inserted: Timestamp,
    started: Instant,
    takes: Duration,
    failure: Option<OperationError>,
}

/// What an operation is about.
#[derive(Debug)]
pub(crate) struct Subject {
    pub(crate) place: Option<Place>,
    /// e.g. `compute.instanceGroupManagers.createInstances`.
    pub(crate) kind: String,
    /// Path below the project.
    pub(crate) target: String,
    pub(crate) target_id: u64,
}

impl Operation {
    fn status(&self) -> &'static str {
        let elapsed = self.started.elapsed();
        match () {
            () if elapsed >= self.takes => "DONE",
            () if elapsed * 2 >= self.takes => "RUNNING",
            () => "PENDING",
        }
    }

    /// How long until it is done; zero when it is.
    pub(crate) fn remaining(&self) -> Duration {
        self.takes.saturating_sub(self.started.elapsed())
    }

    pub(crate) fn body(&self, project: &str) -> Value {
        let status = self.status();
        let place = self.place.as_ref().map_or_else(|| "global".to_owned(), Place::path);
        let base = format!("{PREFIX}projects/{project}");
        let mut body = Map::new();
        let mut set = |name: &str, value: Value| body.insert(name.to_owned(), value);
        set("kind", json!("compute#operation"));
        set("id", json!(self.id.to_string()));
        set("name", json!(self.name));
        set("operationType", json!(self.kind));
        set("targetId", json!(self.target_id.to_string()));
        set("targetLink", json!(format!("{base}/{}", self.target)));
        set("status", json!(status));
        set("progress", json!(if status == "DONE" { 100 } else { 0 }));
        set("user", json!("operator@example.com"));
        set("insertTime", json!(self.inserted.to_string()));
        set("selfLink", json!(format!("{base}/{place}/operations/{}", self.name)));
        if let Some(place) = &self.place {
            set(place.field().0, json!(format!("{base}/{}", place.path())));
        }
        if let Some(request_id) = &self.request_id {
            set("clientOperationId", json!(request_id));
        }
        if status != "PENDING" {
            set("startTime", json!(self.inserted.to_string()));
        }
        if status == "DONE" {
            set("endTime", json!((self.inserted + self.takes).to_string()));
            if let Some(failure) = &self.failure {
                set("httpErrorStatusCode", json!(failure.status));
                set("httpErrorMessage", json!(failure.title));
                set("error", json!({"errors": [{"code": failure.code, "message": failure.message}]}));
            }
        }
        Value::Object(body)
    }
}

impl World {
    /// The operation an earlier request with this id made, if any.
    pub(crate) fn repeated(&self, project: &str, request_id: Option<&str>) -> Result<Option<Value>, ApiError> {
        let Some(request_id) = request_id else { return Ok(None) };
        if !Uuid::parse_str(request_id).is_ok_and(|id| !id.is_nil()) {
            let message =
                format!("Invalid value for field 'requestId': '{request_id}'. Must be a valid non-zero UUID.");
            return Err(ApiError::invalid(message));
        }
        let earlier = self.requests.get(request_id).and_then(|name| self.operations.get(name));
        Ok(earlier.map(|operation| operation.body(project)))
    }

    /// Records a change (or its failure) and returns its name.
    pub(crate) fn operate(
        &mut self,
        subject: Subject,
        request_id: Option<&str>,
        takes: Duration,
        failure: Option<OperationError>,
    ) -> &Operation {
        let inserted = now();
        let mut random = rand::rng();
        let name = format!(
            "operation-{}-{:013x}-{:08x}-{:08x}",
            inserted.as_millisecond(),
            random.random_range(0..1_u64 << 52),
            random.random::<u32>(),
            random.random::<u32>(),
        );
        if let Some(request_id) = request_id {
            self.requests.insert(request_id.to_owned(), name.clone());
        }
        let operation = Operation {
            id: new_id(),
            name: name.clone(),
            place: subject.place,
            kind: subject.kind,
            target: subject.target,
            target_id: subject.target_id,
            request_id: request_id.map(str::to_owned),
            inserted,
            started: Instant::now(),
            takes,
            failure,
        };
        self.operations.entry(name).or_insert(operation)
    }
}
