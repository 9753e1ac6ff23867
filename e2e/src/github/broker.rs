//! The side runners talk to, under `/_runner/`; the wire is described in [`crate::runner::wire`].

use std::{collections::VecDeque, sync::Arc, time::Instant};

use axum::{
    Json, Router,
    extract::{Path, State},
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use http::{HeaderMap, StatusCode, header::AUTHORIZATION};
use tokio::sync::Notify;
use uuid::Uuid;

use super::{Shared, job::JobStatus, scope::Scope, state};
use crate::runner::wire::{Message, Opening, Order, Outcome, Session};

/// The assertion a runner signs is not valid beyond this.
const CLOCK_TOLERANCE_SECONDS: u64 = 300;

/// Routes below `/_runner`.
pub(crate) fn routes(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/sessions", post(open))
        .route("/sessions/{session}", delete(close))
        .route("/sessions/{session}/messages", get(messages))
        .route("/sessions/{session}/jobs/{job}/acquire", post(acquire))
        .route("/sessions/{session}/jobs/{job}/result", post(result))
        .with_state(shared)
}

/// Opens a session for the registration whose credentials are shown.
async fn open(State(shared): State<Arc<Shared>>, headers: HeaderMap, Json(opening): Json<Opening>) -> Response {
    let mut state = shared.lock();
    let bearer = headers.get(AUTHORIZATION).and_then(|v| v.to_str().ok()).and_then(|v| v.strip_prefix("Bearer "));
    let (client, secret) = bearer.and_then(|b| b.split_once('.')).unwrap_or_default();
    let client = Uuid::parse_str(client).unwrap_or_default();
    let Some(runner) = state.runners.values().find(|r| r.client == client && r.secret == secret) else {
        return StatusCode::UNAUTHORIZED.into_response();
    };
    if opening.unix_seconds.abs_diff(shared.clock.seconds()) > CLOCK_TOLERANCE_SECONDS {
        return StatusCode::PRECONDITION_FAILED.into_response();
    }
    if state.deprecated {
        return StatusCode::UPGRADE_REQUIRED.into_response();
    }
    if state.online(runner) {
        return (StatusCode::CONFLICT, Json(state.options.conflict.clone())).into_response();
    }
    let (runner, old) = (runner.id, runner.session.clone());
    if let Some(old) = old {
        state.sessions.remove(&old);
    }
    let id = Uuid::new_v4().to_string();
    let fresh = state::Session {
        runner,
        ghost: false,
        inbox: VecDeque::new(),
        wake: Arc::new(Notify::new()),
        polls: 0,
        last_seen: Instant::now(),
    };
    state.sessions.insert(id.clone(), fresh);
    if let Some(registered) = state.registered.get_mut(&runner) {
        registered.used = true;
    }
    if let Some(runner) = state.runners.get_mut(&runner) {
        (runner.os, runner.version) = (opening.os, Some(opening.version));
        (runner.session, runner.last_seen) = (Some(id.clone()), Instant::now());
    }
    state.dispatch();
    (StatusCode::CREATED, Json(Session { id })).into_response()
}

/// Ends a session; the registration stays.
async fn close(State(shared): State<Arc<Shared>>, Path(session): Path<String>) -> StatusCode {
    let mut state = shared.lock();
    if let Some(closed) = state.sessions.remove(&session)
        && let Some(runner) = state.runners.get_mut(&closed.runner)
    {
        (runner.session, runner.last_seen) = (None, Instant::now());
    }
    StatusCode::NO_CONTENT
}

/// One long poll of a session; ends with the connection.
struct Poll {
    shared: Arc<Shared>,
    session: String,
    wake: Arc<Notify>,
}

impl Poll {
    fn start(shared: Arc<Shared>, session: String) -> Option<Self> {
        let mut state = shared.lock();
        let open = state.sessions.get_mut(&session)?;
        open.polls += 1;
        let wake = open.wake.clone();
        state.dispatch();
        drop(state);
        Some(Self { shared, session, wake })
    }

    /// A message, nothing yet, or `Err` when the runner is gone.
    fn look(&self) -> Result<Option<Message>, StatusCode> {
        let mut state = self.shared.lock();
        let session = state.sessions.get_mut(&self.session).ok_or(StatusCode::NOT_FOUND)?;
        Ok(session.inbox.pop_front())
    }
}

impl Drop for Poll {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        let Some(session) = state.sessions.get_mut(&self.session) else { return };
        (session.polls, session.last_seen) = (session.polls.saturating_sub(1), Instant::now());
        let runner = session.runner;
        if let Some(runner) = state.runners.get_mut(&runner) {
            runner.last_seen = Instant::now();
        }
    }
}

/// Holds the poll until there is a message. A runner removed meanwhile learns it from its next poll, as with GitHub.
async fn messages(State(shared): State<Arc<Shared>>, Path(session): Path<String>) -> Response {
    let gone = {
        let state = shared.lock();
        state.sessions.get(&session).is_none_or(|s| !s.ghost && !state.runners.contains_key(&s.runner))
    };
    let Some(poll) = (!gone).then(|| Poll::start(shared.clone(), session)).flatten() else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let hold = shared.lock().options.poll;
    let ends = tokio::time::Instant::now() + hold;
    loop {
        match poll.look() {
            Ok(Some(message)) => return Json(message).into_response(),
            Err(status) => return status.into_response(),
            Ok(None) => {}
        }
        if tokio::time::timeout_at(ends, poll.wake.notified()).await.is_err() {
            return StatusCode::ACCEPTED.into_response();
        }
    }
}

/// The runner takes its job.
async fn acquire(State(shared): State<Arc<Shared>>, Path((session, job)): Path<(String, u64)>) -> Response {
    let mut state = shared.lock();
    let runner = state.sessions.get(&session).map(|s| s.runner).unwrap_or_default();
    let Some(registration) = state.runners.get_mut(&runner).filter(|r| r.job == Some(job)) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    registration.assigned = None;
    let Some(order) = state.jobs.get_mut(&job).filter(|j| j.status == JobStatus::InProgress) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    order.attempts += 1;
    let (work, run_id) = (order.job.clone(), order.run_id);
    let repository_id = 700_000
        + state
            .scopes
            .keys()
            .position(|s| *s == Scope::parse(&work.repository))
            .map_or(0, |n| u64::try_from(n).unwrap_or_default());
    let api_url = shared.url();
    Json(Order {
        id: job,
        run_id,
        repository_id,
        key: work.name.to_lowercase().replace(|c: char| !c.is_ascii_alphanumeric(), "_"),
        repository: work.repository,
        workflow: work.workflow,
        name: work.name,
        steps: work.steps,
        api_url,
        fault: work.fault,
    })
    .into_response()
}

/// The runner says how its job ended. Only the runner that has the job is believed.
async fn result(
    State(shared): State<Arc<Shared>>,
    Path((session, job)): Path<(String, u64)>,
    Json(outcome): Json<Outcome>,
) -> StatusCode {
    let mut state = shared.lock();
    let runner = state.sessions.get(&session).map(|s| s.runner).unwrap_or_default();
    if state.runners.get(&runner).is_none_or(|r| r.job != Some(job)) {
        return StatusCode::NOT_FOUND;
    }
    state.complete(job, outcome.conclusion, outcome.output);
    StatusCode::NO_CONTENT
}
