//! An API server for the gateway's three calls: status patches with their precondition, reads, and events.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
};

use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use kube::{
    Client,
    client::Body,
    runtime::{
        reflector::{self, Store},
        watcher,
    },
};
use miglet_operator::crd::RunnerVm;
use serde_json::{Value, json};

/// The objects, the events, and what to go wrong.
pub(crate) struct KubeServer {
    state: Mutex<State>,
}

struct State {
    vms: Vec<RunnerVm>,
    events: Vec<Value>,
    patches: usize,
    /// The next patch finds that somebody else wrote.
    conflict_once: bool,
    writer: reflector::store::Writer<RunnerVm>,
}

impl KubeServer {
    pub(crate) fn new(vms: Vec<RunnerVm>) -> Arc<Self> {
        let mut writer = reflector::store::Writer::default();
        fill(&mut writer, &vms);
        let state = State { vms, events: Vec::new(), patches: 0, conflict_once: false, writer };
        Arc::new(Self { state: Mutex::new(state) })
    }

    /// The watch has not delivered anything yet.
    pub(crate) fn forget_the_watch(&self) {
        self.state.lock().unwrap().writer = reflector::store::Writer::default();
    }

    /// The watch delivers everything.
    pub(crate) fn deliver(&self) {
        let mut state = self.state.lock().unwrap();
        let vms = state.vms.clone();
        fill(&mut state.writer, &vms);
    }

    pub(crate) fn client(self: &Arc<Self>) -> Client {
        let server = Arc::clone(self);
        Client::new(
            tower::service_fn(move |request: Request<Body>| {
                let server = Arc::clone(&server);
                async move { Ok::<_, Infallible>(server.answer(request).await) }
            }),
            "default",
        )
    }

    pub(crate) fn store(&self) -> Store<RunnerVm> {
        self.state.lock().unwrap().writer.as_reader()
    }

    pub(crate) fn vm(&self, name: &str) -> RunnerVm {
        let state = self.state.lock().unwrap();
        state.vms.iter().find(|vm| vm.metadata.name.as_deref() == Some(name)).unwrap().clone()
    }

    pub(crate) fn patches(&self) -> usize {
        self.state.lock().unwrap().patches
    }

    pub(crate) fn events(&self) -> Vec<Value> {
        self.state.lock().unwrap().events.clone()
    }

    pub(crate) fn conflict_once(&self) {
        self.state.lock().unwrap().conflict_once = true;
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let path: Vec<&str> = parts.uri.path().split('/').collect();
        let mut state = self.state.lock().unwrap();
        match (parts.method, path.as_slice()) {
            (Method::POST, [.., "events"]) => {
                state.events.push(body.clone());
                reply(StatusCode::CREATED, &body)
            }
            (Method::GET, [.., "runnervms", name]) => {
                let vm = state.vms.iter().find(|vm| vm.metadata.name.as_deref() == Some(*name)).unwrap();
                reply(StatusCode::OK, &serde_json::to_value(vm).unwrap())
            }
            (Method::PATCH, [.., "runnervms", name, "status"]) => state.patch(name, &body),
            (method, path) => panic!("no such call: {method} {path:?}"),
        }
    }
}

fn fill(writer: &mut reflector::store::Writer<RunnerVm>, vms: &[RunnerVm]) {
    writer.apply_watcher_event(&watcher::Event::Init);
    for vm in vms {
        writer.apply_watcher_event(&watcher::Event::InitApply(vm.clone()));
    }
    writer.apply_watcher_event(&watcher::Event::InitDone);
}

impl State {
    fn patch(&mut self, name: &str, patch: &Value) -> Response<Body> {
        self.patches += 1;
        let vm = self.vms.iter_mut().find(|vm| vm.metadata.name.as_deref() == Some(name)).unwrap();
        let version: u64 = vm.metadata.resource_version.as_deref().unwrap().parse().unwrap();
        if std::mem::take(&mut self.conflict_once) {
            vm.metadata.resource_version = Some((version + 1).to_string());
        }
        if patch["metadata"]["resourceVersion"].as_str() != vm.metadata.resource_version.as_deref() {
            let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Conflict",
                                "message": "changed", "code": 409});
            return reply(StatusCode::CONFLICT, &status);
        }
        let mut object = serde_json::to_value(&*vm).unwrap();
        for (field, value) in patch["status"].as_object().unwrap() {
            object["status"][field] = value.clone();
        }
        object["metadata"]["resourceVersion"] = json!((version + 2).to_string());
        *vm = serde_json::from_value(object.clone()).unwrap();
        self.writer.apply_watcher_event(&watcher::Event::Apply(vm.clone()));
        reply(StatusCode::OK, &object)
    }
}

fn reply(status: StatusCode, body: &Value) -> Response<Body> {
    Response::builder().status(status).body(Body::from(body.to_string().into_bytes())).unwrap()
}
