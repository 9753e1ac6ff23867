//! One machine: directories, a metadata server, a scripted runner, an agent process that can be killed and restarted.

use std::{
    collections::{HashMap, VecDeque},
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    extract::{Query, Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
    routing::{get, put},
};
use miglet_agent::{paths::Paths, record, runner::Runner};
use rustix::process::{Pid, Signal};
use tokio::{
    net::TcpListener,
    process::{Child, Command},
    task::JoinHandle,
    time::timeout,
};

use crate::operator::{Identity, Operator, PATIENCE};

/// Status, body, whether it has an ETag.
pub(crate) type Oddity = (u16, &'static str, bool);

/// What is wrong with the metadata server.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Trouble {
    Status(u16),
    /// Something that is neither what was asked for nor text.
    Garbage,
    /// More than anything there can be.
    Endless,
    /// No answer.
    Silence,
}

/// What the metadata server was asked and told.
#[derive(Clone, Default)]
pub(crate) struct Metadata {
    pub(crate) attributes: Arc<Mutex<HashMap<String, String>>>,
    pub(crate) audiences: Arc<Mutex<Vec<String>>>,
    pub(crate) statuses: Arc<Mutex<Vec<String>>>,
    pub(crate) trouble: Arc<Mutex<Option<Trouble>>>,
    /// What it takes the time for, instead of the time.
    pub(crate) date: Arc<Mutex<Option<String>>>,
    /// What the cloud announces, by path below `instance/`.
    pub(crate) notices: Arc<tokio::sync::watch::Sender<HashMap<&'static str, &'static str>>>,
    /// What it answers instead, one a question: status, body, whether it has an ETag.
    pub(crate) oddities: Arc<Mutex<VecDeque<Oddity>>>,
    /// How often it was asked for notices.
    pub(crate) asked: Arc<AtomicUsize>,
}

impl Metadata {
    async fn serve(self) -> (String, JoinHandle<()>) {
        let base = "/computeMetadata/v1/instance";
        let router = Router::new()
            .route(&format!("{base}/attributes/"), get(attributes))
            .route(&format!("{base}/service-accounts/default/identity"), get(identity))
            .route(&format!("{base}/id"), get(id))
            .route(&format!("{base}/guest-attributes/miglet/status"), put(status))
            .route(&format!("{base}/preempted"), get(async |m, h, q| notice("preempted", m, h, q).await))
            .route(
                &format!("{base}/maintenance-event"),
                get(async |m, h, q| notice("maintenance-event", m, h, q).await),
            )
            .layer(axum::middleware::from_fn_with_state(self.clone(), troubled))
            .with_state(self);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
        let host = listener.local_addr().expect("address").to_string();
        (host, tokio::spawn(async move { axum::serve(listener, router).await.expect("served") }))
    }
}

async fn troubled(State(m): State<Metadata>, request: Request, next: Next) -> Response {
    let trouble = *m.trouble.lock().expect("lock");
    match trouble {
        None => next.run(request).await,
        Some(Trouble::Status(status)) => StatusCode::from_u16(status).expect("status").into_response(),
        Some(Trouble::Garbage) => vec![b'{', 0xff, 0, b'"'].into_response(),
        Some(Trouble::Endless) => vec![b' '; 2 * 1024 * 1024].into_response(),
        Some(Trouble::Silence) => std::future::pending().await,
    }
}

fn flavored(headers: &HeaderMap) -> bool {
    headers.get("metadata-flavor").is_some_and(|value| value == "Google")
}

async fn attributes(
    State(m): State<Metadata>,
    headers: HeaderMap,
    Query(query): Query<HashMap<String, String>>,
) -> Result<Json<HashMap<String, String>>, StatusCode> {
    if !flavored(&headers) || query.get("recursive").is_none_or(|recursive| recursive != "true") {
        return Err(StatusCode::FORBIDDEN);
    }
    Ok(Json(m.attributes.lock().expect("lock").clone()))
}

/// The Date header is the real one unless a test sets another.
async fn id(State(m): State<Metadata>) -> (HeaderMap, &'static str) {
    let date = m.date.lock().expect("lock").clone();
    let headers = date.map(|date| (header::DATE, date.parse().expect("header")));
    (headers.into_iter().collect(), "7")
}

async fn identity(
    State(m): State<Metadata>,
    headers: HeaderMap,
    Query(query): Query<HashMap<String, String>>,
) -> Result<String, StatusCode> {
    if !flavored(&headers) || query.get("format").is_none_or(|format| format != "full") {
        return Err(StatusCode::BAD_REQUEST);
    }
    let audience = query.get("audience").cloned().ok_or(StatusCode::BAD_REQUEST)?;
    m.audiences.lock().expect("lock").push(audience.clone());
    Ok(format!("token for {audience}\n"))
}

/// Held until the value's ETag, here the value itself, is not the one the client knows.
async fn notice(
    name: &'static str,
    State(m): State<Metadata>,
    headers: HeaderMap,
    Query(query): Query<HashMap<String, String>>,
) -> Result<(HeaderMap, String), (StatusCode, &'static str)> {
    if !flavored(&headers) || query.get("wait_for_change").is_none_or(|wait| wait != "true") {
        return Err((StatusCode::FORBIDDEN, ""));
    }
    m.asked.fetch_add(1, Ordering::Relaxed);
    let odd = m.oddities.lock().expect("lock").pop_front();
    if let Some((status, body, tagged)) = odd {
        let tag = tagged.then(|| (header::ETAG, "odd".parse().expect("header")));
        let status = StatusCode::from_u16(status).expect("status");
        return if status.is_success() { Ok((tag.into_iter().collect(), body.into())) } else { Err((status, body)) };
    }
    let mut values = m.notices.subscribe();
    let quiet = if name == "preempted" { "FALSE" } else { "NONE" };
    let value = |values: &HashMap<&str, &'static str>| values.get(name).copied().unwrap_or(quiet);
    let known = query.get("last_etag").cloned().unwrap_or_default();
    let seconds = query.get("timeout_sec").and_then(|s| s.parse().ok()).expect("a timeout");
    timeout(Duration::from_secs(seconds), values.wait_for(|values| value(values) != known)).await.ok();
    let value = value(&values.borrow());
    Ok((HeaderMap::from_iter([(header::ETAG, value.parse().expect("header"))]), value.to_owned()))
}

async fn status(State(m): State<Metadata>, body: String) {
    m.statuses.lock().expect("lock").push(body);
}

/// The machine and, beside it, the operator's identity.
pub(crate) struct World {
    pub(crate) identity: Identity,
    pub(crate) metadata: Metadata,
    pub(crate) paths: Paths,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) metadata_host: String,
    serving: JoinHandle<()>,
}

/// The listener's usual life, steered by files: `go` gives it a job, `end` ends the job.
pub(crate) const RUNNER: &str = r#"#!/bin/bash
echo "$ACTIONS_RUNNER_INPUT_JITCONFIG" > jit
umask > umask
unset ACTIONS_RUNNER_INPUT_JITCONFIG
trap 'echo "Exiting..."; [ ! -e go ] || echo "2026-11-21 00:00:02Z: Job build completed with result: Failed"; exit 0' INT
echo "√ Connected to GitHub"
echo "Current runner version: '2.336.0'"
echo "2026-11-21 00:00:00Z: Listening for Jobs"
until [ -e go ]; do sleep 0.02; done
echo "2026-11-21 00:00:01Z: Running job: build"
GITHUB_REPOSITORY=acme/app GITHUB_WORKFLOW=ci GITHUB_RUN_ID=42 GITHUB_RUN_ATTEMPT=1 GITHUB_JOB=build-key \
    bash -e "$ACTIONS_RUNNER_HOOK_JOB_STARTED"
until [ -e end ]; do sleep 0.02; done
echo "2026-11-21 00:00:02Z: Job build completed with result: Succeeded"
"#;

impl World {
    pub(crate) async fn new(runner: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("mig").tempdir().expect("dir");
        let paths = Paths { state: dir.path().join("s"), data: dir.path().join("d"), runner: dir.path().join("r") };
        std::fs::create_dir_all(paths.runner.join("bin")).expect("runner");
        std::fs::write(dir.path().join("config.yaml"), "").expect("configuration");
        std::fs::write(paths.listener(), runner).expect("listener");
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(paths.listener(), executable).expect("mode");
        let metadata = Metadata::default();
        let (metadata_host, serving) = metadata.clone().serve().await;
        Self { identity: Identity::new(), metadata, paths, dir, metadata_host, serving }
    }

    pub(crate) async fn operator(&self) -> Operator {
        Operator::start(&self.identity, "127.0.0.1:0").await
    }

    /// Where the operator is and what its CA is, agents learn from the instance's attributes.
    pub(crate) fn introduce(&self, operator: &Operator) {
        let attributes = [
            ("miglet-endpoint", format!("https://{}", operator.address)),
            ("miglet-ca", self.identity.ca.clone()),
            ("miglet-audience", "fleet".to_owned()),
        ];
        let attributes = attributes.map(|(name, value)| (name.to_owned(), value));
        *self.metadata.attributes.lock().expect("lock") = attributes.into();
    }

    pub(crate) fn agent(&self, operator: &Operator) -> Child {
        self.agent_with(operator, &[])
    }

    /// An agent with further environment.
    pub(crate) fn agent_with(&self, operator: &Operator, environment: &[(&str, &str)]) -> Child {
        self.introduce(operator);
        self.spawn_with(environment)
    }

    /// An agent that knows what the metadata server says.
    pub(crate) fn spawn(&self) -> Child {
        self.spawn_with(&[])
    }

    fn spawn_with(&self, environment: &[(&str, &str)]) -> Child {
        let mut command = self.command("run");
        command.envs(environment.iter().copied()).stderr(self.log()).kill_on_drop(true).spawn().expect("agent starts")
    }

    /// What the cloud announces from now on.
    pub(crate) fn announce(&self, path: &'static str, value: &'static str) {
        self.metadata.notices.send_modify(|values| {
            values.insert(path, value);
        });
    }

    /// One that may leave core files in the machine's directory, as far as its user is concerned.
    pub(crate) fn dumping(&self) -> Command {
        let mut command = self.begun_by("sh", &["-c", "ulimit -c unlimited; exec \"$@\"", "sh"]);
        command.current_dir(self.dir.path()).stderr(self.log());
        command
    }

    /// An agent that another program becomes, whose arguments end with the agent's command line.
    pub(crate) fn begun_by(&self, program: &str, arguments: &[&str]) -> Command {
        let agent = self.command("run");
        let mut command = Command::new(program);
        command.args(arguments).arg(agent.as_std().get_program()).args(agent.as_std().get_args());
        for (name, value) in agent.as_std().get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    pub(crate) fn command(&self, subcommand: &str) -> Command {
        self.command_of(env!("CARGO_BIN_EXE_miglet").as_ref(), subcommand)
    }

    /// Another program in the place of the agent's.
    pub(crate) fn command_of(&self, program: &Path, subcommand: &str) -> Command {
        let mut command = Command::new(program);
        command.arg(subcommand).stdin(Stdio::null());
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("MIGLET_")) {
            command.env_remove(name);
        }
        command.env("MIGLET_CACHE_DIR", self.cache_dir());
        command.env("MIGLET_CONFIG", self.config_file());
        command.env("GCE_METADATA_HOST", &self.metadata_host).env("MIGLET_BOOT_ID", "boot-1");
        command.env("MIGLET_STATE_DIR", &self.paths.state).env("MIGLET_DATA_DIR", &self.paths.data);
        command.env("MIGLET_RUNNER_DIR", &self.paths.runner).env("MIGLET_LOG_LEVEL", "trace");
        command
    }

    pub(crate) fn cache_dir(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    /// Empty until a test writes it.
    pub(crate) fn config_file(&self) -> PathBuf {
        self.dir.path().join("config.yaml")
    }

    /// What the agents logged.
    pub(crate) fn log_lines(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    /// Whether the metadata server was told this.
    pub(crate) fn told(&self, text: &str) -> bool {
        self.metadata.statuses.lock().expect("lock").iter().any(|status| status.contains(text))
    }

    fn log(&self) -> std::fs::File {
        std::fs::OpenOptions::new().create(true).append(true).open(self.dir.path().join("log")).expect("log")
    }

    pub(crate) fn touch(&self, name: &str) {
        std::fs::write(self.paths.runner.join(name), "").expect("touched");
    }

    pub(crate) fn runner_file(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.paths.runner.join(name)).ok().map(|text| text.trim().to_owned())
    }

    pub(crate) fn record(&self) -> Option<Runner> {
        record::read(&self.paths.runner_record()).expect("a record is whole at any time")
    }

    /// Every file below the machine's directory that holds this text.
    pub(crate) fn files_with(&self, text: &str) -> Vec<PathBuf> {
        let output = std::process::Command::new("grep").args(["-rlF", text]).arg(self.dir.path()).output();
        String::from_utf8(output.expect("grep").stdout).expect("paths").lines().map(PathBuf::from).collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.serving.abort();
        let Ok(Some(runner)) = record::read(&self.paths.runner_record()) else { return };
        if let Some(shim) = runner.shim {
            shim.signal(Signal::KILL);
        }
        if let Some(listener) = runner.listener.filter(|l| l.is_alive()).and_then(|l| Pid::from_raw(l.pid)) {
            rustix::process::kill_process_group(listener, Signal::KILL).ok();
        }
    }
}

/// Waits until this holds.
pub(crate) async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "never {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) fn kill(child: &Child, signal: Signal) {
    let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed())).expect("running");
    rustix::process::kill_process(pid, signal).expect("signalled");
}

/// The most memory a process ever had.
pub(crate) fn peak_kb(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a figure");
    peak.trim().trim_end_matches(" kB").parse().expect("a number")
}
