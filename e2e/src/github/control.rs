//! The simulator's hostile side, also over HTTP under `/_fake/`, for a playground and for tests of other languages.
//!
//! ```text
//!   POST /_fake/control      one Control        POST   /_fake/faults  one Rule
//!   POST /_fake/jobs         one Job -> {id}    DELETE /_fake/faults  forgets them
//!   GET  /_fake/jobs[/ID]    states             GET    /_fake/violations
//! ```

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    extract::{Path, State},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    Shared,
    job::{Job, JobId, JobState, JobStatus},
    limits::Limits,
    registration::Wanted,
    scope::Scope,
    state,
};
use crate::{faults::Rule, runner::wire::Message};

/// One thing GitHub does to its users.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Control {
    /// Drops an idle runner's registration.
    RemoveIdleRegistration {
        /// Runner id.
        id: u64,
    },
    /// Assigns a job that is gone when the runner asks for it: the registration is consumed, the listener hears nothing.
    Ghost {
        /// Runner id.
        id: u64,
    },
    /// Tells an idle runner to update itself.
    UpdateRunner {
        /// Runner id.
        id: u64,
    },
    /// Shows a runner as busy, and refuses to delete it, for a while.
    RefuseDelete {
        /// Runner id.
        id: u64,
        /// How long.
        seconds: u64,
    },
    /// Cancels a job.
    CancelJob {
        /// Job id.
        id: u64,
    },
    /// No credential sees this scope any more: 404 on everything there.
    LoseScope {
        /// `acme`, `acme/app`, `enterprises/acme`.
        scope: Scope,
    },
    /// They see it again.
    RestoreScope {
        /// As in `LoseScope`.
        scope: Scope,
    },
    /// Suspends an installation: no new tokens, and the old ones are refused.
    RevokeInstallation {
        /// Installation id.
        installation_id: u64,
    },
    /// Takes the suspension back.
    RestoreInstallation {
        /// Installation id.
        installation_id: u64,
    },
    /// Every installation token ends now.
    ExpireTokens {},
    /// A personal token is refused from now on.
    RevokeToken {
        /// The token.
        token: String,
    },
    /// Sets the server's clock ahead, or back.
    SkewClock {
        /// Seconds ahead.
        seconds: i64,
    },
    /// Puts rate limits in force.
    SetLimits {
        /// The limits.
        limits: Limits,
    },
    /// Refuses sessions to this version of the runner, or accepts them again.
    DeprecateRunners {
        /// Whether it is refused.
        deprecated: bool,
    },
    /// Tells until when versions of the runner get jobs; before that it says nothing of it, as GitHub does outside Enterprise
    /// Cloud.
    EndSupport {
        /// Seconds since 1970.
        at: i64,
    },
    /// Lists of runners show what is true now until they are thawed; a runner asked for by id is never stale.
    FreezeLists {
        /// Whether they are frozen.
        frozen: bool,
    },
    /// Somebody else registers a runner.
    AddForeignRunner {
        /// Where.
        scope: Scope,
        /// Its name.
        name: String,
        /// Whether it shows as online.
        online: bool,
    },
}

impl Shared {
    /// Does it; the id of the runner made, if one was.
    pub(crate) fn control(&self, control: Control) -> Option<u64> {
        let mut state = self.lock();
        match control {
            Control::RemoveIdleRegistration { id } => state.drop_idle(id),
            Control::Ghost { id } => state.haunt(id),
            Control::UpdateRunner { id } => state.tell(id, Message::Update("2.337.0".to_owned())),
            Control::RefuseDelete { id, seconds } => state.hold(id, Duration::from_secs(seconds)),
            Control::CancelJob { id } => state.cancel(id),
            Control::LoseScope { scope } => drop(state.hidden.insert(scope)),
            Control::RestoreScope { scope } => drop(state.hidden.remove(&scope)),
            Control::RevokeInstallation { installation_id } => state.credentials.revoke(installation_id, true),
            Control::RestoreInstallation { installation_id } => state.credentials.revoke(installation_id, false),
            Control::ExpireTokens {} => state.credentials.expire_tokens(),
            Control::RevokeToken { token } => state.credentials.revoke_token(&token),
            Control::SkewClock { seconds } => self.clock.skew(seconds),
            Control::SetLimits { limits } => state.meter.set(limits),
            Control::DeprecateRunners { deprecated } => state.deprecated = deprecated,
            Control::EndSupport { at } => state.support_end = Some(at),
            Control::FreezeLists { frozen } => state.freeze(frozen),
            Control::AddForeignRunner { scope, name, online } => return Some(state.add_foreign(scope, name, online)),
        }
        None
    }
}

impl state::State {
    /// Queues a job.
    pub(crate) fn queue(&mut self, job: Job) -> JobId {
        let id = self.next_id();
        self.jobs.insert(id, JobState::new(id, job));
        self.dispatch();
        JobId(id)
    }

    fn freeze(&mut self, frozen: bool) {
        self.stale = None;
        self.stale = frozen.then(|| self.listed());
    }

    fn drop_idle(&mut self, id: u64) {
        if self.runners.get(&id).is_some_and(|r| r.job.is_none()) {
            self.runners.remove(&id);
        }
    }

    fn haunt(&mut self, id: u64) {
        let phantom = self.next_id();
        self.tell(id, Message::Job(phantom));
        let session = self.runners.remove(&id).and_then(|r| r.session);
        if let Some(session) = session.and_then(|s| self.sessions.get_mut(&s)) {
            session.ghost = true;
        }
    }

    fn hold(&mut self, id: u64, time: Duration) {
        if let Some(runner) = self.runners.get_mut(&id) {
            runner.keep_until = Some(Instant::now() + time);
        }
    }

    fn cancel(&mut self, id: u64) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        match (job.status, job.runner_id) {
            (JobStatus::InProgress, Some(runner)) => self.tell(runner, Message::Cancel(id)),
            (JobStatus::Queued, _) => {
                job.status = JobStatus::Completed;
                job.conclusion = Some(crate::runner::wire::Conclusion::Canceled);
            }
            _ => {}
        }
    }

    fn add_foreign(&mut self, scope: Scope, name: String, online: bool) -> u64 {
        let labels = vec!["self-hosted".to_owned()];
        let runner = self.register(Wanted { scope, name, group: 1, labels, work_folder: "_work".to_owned() });
        runner.foreign = Some(online);
        runner.id
    }
}

/// Routes below `/_fake`.
pub(crate) fn routes(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/control", post(control))
        .route("/jobs", post(queue).get(jobs))
        .route("/jobs/{id}", get(job))
        .route("/faults", post(add_fault).delete(clear_faults))
        .route("/violations", get(violations))
        .with_state(shared)
}

async fn control(State(shared): State<Arc<Shared>>, Json(control): Json<Control>) -> Response {
    Json(json!({"id": shared.control(control)})).into_response()
}

async fn queue(State(shared): State<Arc<Shared>>, Json(job): Json<Job>) -> Response {
    Json(json!({"id": shared.lock().queue(job)})).into_response()
}

async fn jobs(State(shared): State<Arc<Shared>>) -> Json<Vec<JobState>> {
    Json(shared.lock().jobs.values().cloned().collect())
}

async fn job(State(shared): State<Arc<Shared>>, Path(id): Path<u64>) -> Response {
    let found = shared.lock().jobs.get(&id).cloned();
    found.map_or_else(|| StatusCode::NOT_FOUND.into_response(), |job| Json(job).into_response())
}

async fn add_fault(State(shared): State<Arc<Shared>>, Json(rule): Json<Rule>) -> StatusCode {
    shared.faults.add(rule);
    StatusCode::NO_CONTENT
}

async fn clear_faults(State(shared): State<Arc<Shared>>) -> StatusCode {
    shared.faults.clear();
    StatusCode::NO_CONTENT
}

async fn violations(State(shared): State<Arc<Shared>>) -> Json<Vec<String>> {
    Json(shared.contract.violations())
}
