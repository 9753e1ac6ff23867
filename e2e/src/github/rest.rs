//! The published REST API: the part of it that concerns Apps and self-hosted runners.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Shared,
    call::Call,
    clock::rfc3339,
    credentials::Credential,
    gate,
    job::JobState,
    refusal::Refusal,
    registration::{Registration, Wanted},
    releases,
    scope::Scope,
    state::State as World,
};

type Sim = State<Arc<Shared>>;
type Answer = Result<Response, Refusal>;

/// Routes of the REST API, behind the gate that counts, checks and signs every answer.
pub(crate) fn routes(shared: Arc<Shared>) -> Router {
    let mut router = Router::new()
        .route("/app/installations/{installation_id}/access_tokens", post(access_token))
        .route("/rate_limit", get(rate_limit))
        .route("/repos/{owner}/{repo}/actions/runs/{run_id}/attempts/{attempt_number}/jobs", get(jobs));
    for scope in ["/orgs/{org}", "/repos/{owner}/{repo}", "/enterprises/{enterprise}"] {
        let at = |tail: &str| format!("{scope}/actions/{tail}");
        router = router
            .route(&at("runners"), get(list))
            .route(&at("runners/downloads"), get(downloads))
            .route(&at("runners/deprecations/{version}"), get(support))
            .route(&at("runners/generate-jitconfig"), post(generate))
            .route(&at("runners/registration-token"), post(registration_token))
            .route(&at("runners/{runner_id}"), get(one).delete(remove));
        if !scope.starts_with("/repos") {
            router = router.route(&at("runner-groups"), get(groups));
            router = router.route(&at("runner-groups/{runner_group_id}"), get(group));
        }
    }
    router
        .fallback(|| async { Refusal::not_found() })
        .layer(axum::middleware::from_fn_with_state(shared.clone(), gate::pass))
        .with_state(shared)
}

async fn access_token(State(sim): Sim, call: Call) -> Answer {
    let Credential::App(app) = call.who else {
        return Err(Refusal::new(StatusCode::UNAUTHORIZED, "A JSON web token could not be decoded"));
    };
    let (token, expires) = sim.lock().credentials.mint(app, call.id("installation_id")?, sim.clock.seconds())?;
    let body = json!({
        "token": token,
        "expires_at": rfc3339(expires),
        "permissions": {"organization_self_hosted_runners": "write", "administration": "write", "actions": "read",
            "metadata": "read"},
        "repository_selection": "all",
    });
    Ok((StatusCode::CREATED, Json(body)).into_response())
}

async fn rate_limit(State(sim): Sim, call: Call) -> Answer {
    let budget = sim.lock().meter.budget(&call.who.who(), sim.clock.seconds());
    let figures =
        json!({"limit": budget.limit, "remaining": budget.remaining, "used": budget.used, "reset": budget.reset});
    let resources = json!({"core": figures, "search": figures, "actions_runner_registration": figures});
    Ok(Json(json!({"resources": resources, "rate": figures})).into_response())
}

/// The body of `generate-jitconfig`.
#[derive(Deserialize)]
struct Asked {
    name: String,
    runner_group_id: u64,
    labels: Vec<String>,
    #[serde(default = "default_work_folder")]
    work_folder: String,
}

fn default_work_folder() -> String {
    "_work".to_owned()
}

async fn generate(State(sim): Sim, call: Call) -> Answer {
    let scope = call.scope();
    let mut state = sim.lock();
    let known = state.groups(&call.who, &scope)?.iter().map(|g| g.id).collect::<Vec<_>>();
    let asked: Asked = call.body()?;
    valid(&asked)?;
    if !known.contains(&asked.runner_group_id) {
        return Err(Refusal::not_found());
    }
    if state.runners.values().any(|r| r.scope == scope && r.name.eq_ignore_ascii_case(&asked.name)) {
        return Err(Refusal::new(
            StatusCode::CONFLICT,
            format!("Already exists - A runner with the name {} already exists.", asked.name),
        ));
    }
    let url = state.options.runner_url.clone().unwrap_or_else(|| call.origin.clone());
    let (group, labels, work_folder) = (asked.runner_group_id, asked.labels, asked.work_folder);
    let runner = state.register(Wanted { scope, name: asked.name, group, labels, work_folder });
    let body = json!({"runner": runner.json(false), "encoded_jit_config": runner.jit_config(&url)});
    Ok((StatusCode::CREATED, Json(body)).into_response())
}

fn valid(asked: &Asked) -> Result<(), Refusal> {
    if asked.name.is_empty() || asked.name.chars().count() > 64 {
        return Err(Refusal::invalid("Validation Failed: name must be 1 to 64 characters long"));
    }
    if asked.labels.is_empty() || asked.labels.len() > 100 {
        return Err(Refusal::invalid("Validation Failed: labels must have 1 to 100 items"));
    }
    let bad = |label: &&String| label.is_empty() || label.chars().count() > 256 || label.contains(',');
    match asked.labels.iter().find(bad) {
        Some(label) => Err(Refusal::invalid(format!("Validation Failed: invalid label {label:?}"))),
        None => Ok(()),
    }
}

async fn list(State(sim): Sim, call: Call) -> Answer {
    let scope = call.scope();
    let state = sim.lock();
    state.groups(&call.who, &scope)?;
    let named = |r: &Registration| call.query("name").is_none_or(|name| r.name.eq_ignore_ascii_case(name));
    let all = state.listed();
    let items: Vec<Value> =
        all.iter().filter(|(r, _)| r.scope == scope && named(r)).map(|(r, online)| r.json(*online)).collect();
    Ok(call.page("runners", &items))
}

/// The runner a path names, when the caller sees its scope.
fn named<'a>(state: &'a World, call: &Call) -> Result<&'a Registration, Refusal> {
    let scope = call.scope();
    state.groups(&call.who, &scope)?;
    let found = state.runners.get(&call.id("runner_id")?).filter(|r| r.scope == scope);
    found.ok_or_else(Refusal::not_found)
}

async fn one(State(sim): Sim, call: Call) -> Answer {
    let state = sim.lock();
    let runner = named(&state, &call)?;
    Ok(Json(runner.json(state.online(runner))).into_response())
}

async fn remove(State(sim): Sim, call: Call) -> Answer {
    let mut state = sim.lock();
    let runner = named(&state, &call)?;
    if runner.busy() {
        return Err(Refusal::invalid(format!("Bad request - Runner \"{}\" is still running a job\"", runner.name)));
    }
    let id = runner.id;
    state.runners.remove(&id);
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn groups(State(sim): Sim, call: Call) -> Answer {
    let scope = call.scope();
    let state = sim.lock();
    let items: Vec<_> = state.groups(&call.who, &scope)?.iter().map(|g| g.json(&scope, &call.base)).collect();
    Ok(call.page("runner_groups", &items))
}

async fn group(State(sim): Sim, call: Call) -> Answer {
    let (scope, id) = (call.scope(), call.id("runner_group_id")?);
    let state = sim.lock();
    let found = state.groups(&call.who, &scope)?.iter().find(|g| g.id == id).ok_or_else(Refusal::not_found)?;
    Ok(Json(found.json(&scope, &call.base)).into_response())
}

/// The jobs of one attempt of a run. Runs have one attempt here.
async fn jobs(State(sim): Sim, call: Call) -> Answer {
    let (scope, run) = (call.scope(), call.id("run_id")?);
    let state = sim.lock();
    state.groups(&call.who, &scope)?;
    let here = |job: &&JobState| job.run_id == run && Scope::parse(&job.job.repository) == scope;
    let known: Vec<_> = state.jobs.values().filter(here).collect();
    if known.is_empty() || call.id("attempt_number")? != 1 {
        return Err(Refusal::not_found());
    }
    let at = rfc3339(sim.clock.seconds());
    let items: Vec<Value> = known.iter().map(|job| job.json(&call.base, &call.origin, &at)).collect();
    Ok(call.page("jobs", &items))
}

async fn registration_token(State(sim): Sim, call: Call) -> Answer {
    sim.lock().groups(&call.who, &call.scope())?;
    let token = uuid::Uuid::new_v4().simple().to_string().to_uppercase();
    let body = json!({"token": token, "expires_at": rfc3339(sim.clock.seconds() + 3600)});
    Ok((StatusCode::CREATED, Json(body)).into_response())
}

async fn support(State(sim): Sim, call: Call) -> Answer {
    let state = sim.lock();
    state.groups(&call.who, &call.scope())?;
    let end = state.support_end.ok_or_else(Refusal::not_found)?;
    let version = call.param("version").unwrap_or_default();
    Ok(Json(json!({"runner_version": version, "runtime_deprecates_at": rfc3339(end)})).into_response())
}

async fn downloads(State(sim): Sim, call: Call) -> Answer {
    let state = sim.lock();
    state.groups(&call.who, &call.scope())?;
    let origin = state.options.runner_url.as_deref().unwrap_or(&call.origin);
    Ok(Json(releases::listed(sim.release.get(), origin)).into_response())
}
