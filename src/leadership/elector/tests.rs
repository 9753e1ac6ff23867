use std::{collections::VecDeque, convert::Infallible, sync::Mutex};

use axum::{body::Body, http::Request, response::Response};
use http_body_util::BodyExt;
use kube::ResourceExt;
use serde_json::json;
use tokio::{task::JoinHandle, time::timeout};

use super::*;
use crate::{clock::SystemClock, leadership::NotLeading};

const PATIENCE: Duration = Duration::from_secs(20);

fn settings(identity: &str) -> LeaseSettings {
    LeaseSettings {
        namespace: "miglet-system".to_owned(),
        name: "miglet-operator".to_owned(),
        identity: identity.to_owned(),
        duration: Duration::from_secs(1),
        renew: Duration::from_millis(50),
        settle: Duration::from_secs(60),
    }
}

fn lease(holder: Option<&str>) -> Lease {
    let spec = LeaseSpec {
        holder_identity: holder.map(str::to_owned),
        lease_duration_seconds: Some(15),
        lease_transitions: Some(4),
        ..LeaseSpec::default()
    };
    Lease { spec: Some(spec), ..Lease::default() }
}

fn step(found: Option<&Lease>, leading: bool, unchanged_for: u64) -> Step {
    let since = Instant::now();
    let now = since + Duration::from_secs(unchanged_for);
    decide(found, &Unchanged { version: None, since }, "me", leading, now)
}

#[test]
fn a_missing_lease_is_created_and_a_released_one_taken() {
    assert_eq!(step(None, false, 0), Step::Create);
    assert_eq!(step(Some(&lease(None)), false, 0), Step::Take { clean: true });
    assert_eq!(step(Some(&lease(Some(""))), false, 0), Step::Take { clean: true });
}

#[test]
fn somebody_elses_lease_is_taken_only_after_it_was_unchanged_for_its_duration() {
    let lease = lease(Some("other"));
    assert_eq!(step(Some(&lease), false, 5), Step::Wait { remaining: Duration::from_secs(10) });
    assert_eq!(step(Some(&lease), false, 15), Step::Take { clean: false });
}

#[test]
fn a_leader_that_finds_somebody_else_has_lost_even_if_that_one_released() {
    assert_eq!(step(Some(&lease(Some("other"))), true, 60), Step::Lost { holder: "other".to_owned() });
    assert_eq!(step(Some(&lease(None)), true, 0), Step::Lost { holder: String::new() });
}

#[test]
fn a_lease_in_our_name_is_renewed_because_the_answer_to_the_take_over_may_have_been_lost() {
    assert_eq!(step(Some(&lease(Some("me"))), false, 0), Step::Renew);
}

#[test]
fn taking_counts_a_transition_and_renewing_does_not() {
    let at = |second| MicroTime(jiff::Timestamp::from_second(second).unwrap());
    let taken = held(Some(&lease(Some("other"))), &settings("me"), at(1)).spec.unwrap();
    assert_eq!((taken.lease_transitions, taken.acquire_time.clone()), (Some(5), Some(at(1))));
    assert_eq!(taken.lease_duration_seconds, Some(1));
    let found = Lease { spec: Some(taken), ..Lease::default() };
    let renewed = held(Some(&found), &settings("me"), at(2)).spec.unwrap();
    assert_eq!((renewed.lease_transitions, renewed.acquire_time), (Some(5), Some(at(1))));
    assert_eq!(renewed.renew_time, Some(at(2)));
}

/// What an API server does with one Lease, and what can go wrong on the way.
#[derive(Default)]
struct Store {
    lease: Option<Lease>,
    version: u64,
    /// For the next writes: the answer is lost after the effect.
    lost_replies: VecDeque<()>,
    /// Nothing is answered at all.
    silent: bool,
}

#[derive(Clone, Default)]
struct Server(Arc<Mutex<Store>>);

impl Server {
    fn client(&self) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let server = server.clone();
            async move { Ok::<_, Infallible>(server.answer(request).await) }
        });
        Client::new(service, "miglet-system")
    }

    async fn answer(&self, request: Request<kube::client::Body>) -> Response {
        let write = request.method() != "GET";
        let bytes = request.into_body().collect().await.unwrap().to_bytes();
        let (status, body, lost) = {
            let mut store = self.0.lock().unwrap();
            let (status, body) = if store.silent {
                (0, json!(null))
            } else if write {
                store.write(serde_json::from_slice(&bytes).unwrap())
            } else {
                store.read()
            };
            let lost = status == 0 || (write && store.lost_replies.pop_front().is_some());
            (status, body, lost)
        };
        if lost {
            std::future::pending::<()>().await;
        }
        Response::builder().status(status).body(Body::from(body.to_string())).unwrap()
    }

    fn start(&self, identity: &str) -> Running {
        let (elector, leadership) = Elector::new(self.client(), settings(identity), Arc::new(SystemClock));
        let stop = CancellationToken::new();
        Running { leadership, task: tokio::spawn(elector.run(stop.clone())), stop }
    }

    fn holder(&self) -> Option<String> {
        self.0.lock().unwrap().lease.clone()?.spec?.holder_identity
    }
}

impl Store {
    fn read(&self) -> (u16, serde_json::Value) {
        self.lease.as_ref().map_or_else(|| failure(404, "NotFound"), |lease| (200, json!(lease)))
    }

    fn write(&mut self, mut lease: Lease) -> (u16, serde_json::Value) {
        let current = self.lease.as_ref().and_then(ResourceExt::resource_version);
        if lease.resource_version() != current {
            return failure(409, "Conflict");
        }
        self.version += 1;
        lease.metadata.resource_version = Some(self.version.to_string());
        self.lease = Some(lease.clone());
        (200, json!(lease))
    }
}

fn failure(code: u16, reason: &str) -> (u16, serde_json::Value) {
    (
        code,
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code, "message": reason}),
    )
}

struct Running {
    leadership: Leadership,
    task: JoinHandle<Result<(), ElectorError>>,
    stop: CancellationToken,
}

impl Running {
    async fn leads(&self) {
        timeout(PATIENCE, self.leadership.watch().wait_for(|leading| *leading)).await.expect("never led").unwrap();
    }

    async fn end(self) -> Result<(), ElectorError> {
        timeout(PATIENCE, self.task).await.expect("never ended").unwrap()
    }
}

#[tokio::test]
async fn of_two_processes_one_leads_and_the_other_follows_its_release_at_once() {
    let server = Server::default();
    let first = server.start("first");
    first.leads().await;
    let second = server.start("second");
    assert_eq!(second.leadership.may_act(), Err(NotLeading::Standby));
    let old = first.leadership.clone();
    first.stop.cancel();
    first.end().await.unwrap();
    assert_eq!(old.may_act(), Err(NotLeading::Standby), "released");
    second.leads().await;
    assert_eq!(server.holder().as_deref(), Some("second"));
    assert_eq!(second.leadership.may_create(), Ok(()), "a release needs no settling");
    second.stop.cancel();
    second.end().await.unwrap();
}

#[tokio::test]
async fn a_crashed_leader_is_followed_after_its_lease_and_nothing_is_created_at_first() {
    let server = Server::default();
    let first = server.start("first");
    first.leads().await;
    first.task.abort();
    let second = server.start("second");
    second.leads().await;
    assert_eq!(second.leadership.may_act(), Ok(()));
    assert!(matches!(second.leadership.may_create(), Err(NotLeading::Settling { .. })));
}

#[tokio::test]
async fn a_leader_that_gets_no_answers_stops_acting_and_ends() {
    let server = Server::default();
    let running = server.start("first");
    running.leads().await;
    let leadership = running.leadership.clone();
    server.0.lock().unwrap().silent = true;
    let error = running.end().await.unwrap_err();
    assert!(matches!(error, ElectorError::Expired { .. }), "{error}");
    assert!(leadership.may_act().is_err());
    assert!(!*leadership.watch().borrow());
}

#[tokio::test]
async fn a_leader_whose_lease_was_taken_ends_and_names_the_holder() {
    let server = Server::default();
    let running = server.start("first");
    running.leads().await;
    {
        let mut store = server.0.lock().unwrap();
        let mut taken = store.lease.clone().unwrap();
        taken.spec.as_mut().unwrap().holder_identity = Some("second".to_owned());
        assert_eq!(store.write(taken).0, 200);
    }
    let error = running.end().await.unwrap_err();
    assert_eq!(error.to_string(), r#"lost the lease miglet-operator to "second""#);
    assert_eq!(server.holder().as_deref(), Some("second"), "what is not ours is not released");
}

#[tokio::test]
async fn a_lost_answer_to_the_take_over_still_counts_as_a_take_over_from_a_crashed_leader() {
    let server = Server::default();
    let mut dead = lease(Some("dead"));
    dead.spec.as_mut().unwrap().lease_duration_seconds = Some(1);
    dead.metadata.resource_version = Some("0".to_owned());
    server.0.lock().unwrap().lease = Some(dead);
    server.0.lock().unwrap().lost_replies.push_back(());
    let running = server.start("me");
    running.leads().await;
    assert!(matches!(running.leadership.may_create(), Err(NotLeading::Settling { .. })));
    running.stop.cancel();
    running.end().await.unwrap();
}
