//! `/healthz`: do the loops still turn; `/readyz`: is what they need there.
//!
//! ```text
//!   loop ── Heartbeat.touch(), each turn ──> Health ──> /healthz   503 names the loop that stopped: the kubelet restarts us
//!   start-up ── Gate.open() ──────────────>        ──> /readyz    503 names what is missing: CRDs, caches
//! ```
//!
//! A standby is Ready: roll-outs do not wait for it to lead. What depends on other services (GitHub, Compute) is in
//! neither answer: restarting this process would not mend them.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Router, extract::State, http::StatusCode, routing::get};
use tokio::time::Instant;

/// What the two answers are made of; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    loops: Mutex<BTreeMap<&'static str, Turn>>,
    gates: Mutex<BTreeMap<&'static str, Arc<AtomicBool>>>,
}

/// A loop's last turn.
#[derive(Clone, Copy, Debug)]
struct Turn {
    at: Instant,
    limit: Duration,
}

/// Proof of life of one loop. Dropped, the loop is over and no longer expected.
#[derive(Debug)]
pub struct Heartbeat {
    health: Health,
    name: &'static str,
    limit: Duration,
}

impl Heartbeat {
    /// The loop turns.
    pub fn touch(&self) {
        let turn = Turn { at: Instant::now(), limit: self.limit };
        self.health.0.loops.lock().unwrap_or_else(PoisonError::into_inner).insert(self.name, turn);
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.health.0.loops.lock().unwrap_or_else(PoisonError::into_inner).remove(self.name);
    }
}

/// Something that must be there before this process is ready: closed until opened.
#[derive(Clone, Debug)]
pub struct Gate(Arc<AtomicBool>);

impl Gate {
    /// It is there.
    pub fn open(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// It is gone again.
    pub fn close(&self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Health {
    /// Expects the loop `name` to turn at least every `limit`, from now on.
    #[must_use]
    pub fn heartbeat(&self, name: &'static str, limit: Duration) -> Heartbeat {
        let heartbeat = Heartbeat { health: self.clone(), name, limit };
        heartbeat.touch();
        heartbeat
    }

    /// Makes readiness wait for `name`.
    #[must_use]
    pub fn gate(&self, name: &'static str) -> Gate {
        let mut gates = self.0.gates.lock().unwrap_or_else(PoisonError::into_inner);
        Gate(gates.entry(name).or_default().clone())
    }

    /// Loops that did not turn in time.
    #[must_use]
    pub fn stuck(&self) -> Vec<&'static str> {
        let loops = self.0.loops.lock().unwrap_or_else(PoisonError::into_inner);
        loops.iter().filter(|(_, turn)| turn.at.elapsed() > turn.limit).map(|(name, _)| *name).collect()
    }

    /// What readiness waits for.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        let gates = self.0.gates.lock().unwrap_or_else(PoisonError::into_inner);
        gates.iter().filter(|(_, open)| !open.load(Ordering::Acquire)).map(|(name, _)| *name).collect()
    }

    /// `/healthz` and `/readyz`.
    pub fn router(&self) -> Router {
        Router::new()
            .route("/healthz", get(async |State(health): State<Self>| answer("stuck", &health.stuck())))
            .route("/readyz", get(async |State(health): State<Self>| answer("waiting for", &health.missing())))
            .with_state(self.clone())
    }
}

fn answer(what: &str, names: &[&str]) -> (StatusCode, String) {
    if names.is_empty() {
        return (StatusCode::OK, "ok\n".to_owned());
    }
    (StatusCode::SERVICE_UNAVAILABLE, format!("{what}: {}\n", names.join(", ")))
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::Request};
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;

    async fn ask(health: &Health, path: &str) -> (u16, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = health.router().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_stops_turning_is_named_until_it_turns_again() {
        let health = Health::default();
        let heartbeat = health.heartbeat("pool controller", Duration::from_secs(60));
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(ask(&health, "/healthz").await, (200, "ok\n".to_owned()));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(ask(&health, "/healthz").await, (503, "stuck: pool controller\n".to_owned()));
        heartbeat.touch();
        assert_eq!(ask(&health, "/healthz").await.0, 200);
    }

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_ended_is_not_expected_to_turn() {
        let health = Health::default();
        drop(health.heartbeat("sweep", Duration::from_secs(1)));
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(ask(&health, "/healthz").await.0, 200);
    }

    #[tokio::test]
    async fn readiness_waits_for_every_gate_and_names_the_closed_ones() {
        let health = Health::default();
        let (definitions, caches) = (health.gate("CustomResourceDefinitions"), health.gate("caches"));
        definitions.open();
        assert_eq!(ask(&health, "/readyz").await, (503, "waiting for: caches\n".to_owned()));
        caches.open();
        assert_eq!(ask(&health, "/readyz").await.0, 200);
        definitions.close();
        assert_eq!(ask(&health, "/readyz").await.0, 503);
    }
}
