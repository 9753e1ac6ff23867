//! A simulator, a client for its REST API, and runners as child processes.

use std::{process::Stdio, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use miglet_e2e::{
    github::{AppCredentials, GithubOptions, GithubSim},
    runner,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};

/// Nothing here takes longer.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// An answer of the REST API.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

/// A simulator with the organization acme, its repository acme/app, and a personal token.
pub(crate) struct Rig {
    pub(crate) sim: GithubSim,
    pub(crate) token: String,
}

pub(crate) async fn rig() -> Rig {
    rig_with(GithubOptions { poll: Duration::from_millis(300), ..GithubOptions::default() }).await
}

pub(crate) async fn rig_with(options: GithubOptions) -> Rig {
    let sim = GithubSim::start(options).await.expect("the simulator starts");
    sim.add_org("acme");
    sim.add_repository("acme/app");
    let token = sim.add_token();
    Rig { sim, token }
}

/// The Unix time.
#[allow(clippy::disallowed_methods, reason = "a test makes tokens with times of its own")]
pub(crate) fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// A JWT as an App signs it.
pub(crate) fn jwt(app: &AppCredentials, claims: &Value) -> String {
    let key = EncodingKey::from_rsa_pem(app.private_key_pem.as_bytes()).expect("the key is a PEM");
    jsonwebtoken::encode(&Header::new(Algorithm::RS256), claims, &key).expect("it can be signed")
}

impl Rig {
    /// A request with any credential.
    pub(crate) async fn send(&self, method: Method, path: &str, bearer: &str, body: Option<Value>) -> Answer {
        self.attempt(method, path, bearer, body).await.expect("an answer")
    }

    /// A request that may get no answer.
    pub(crate) async fn try_send(&self, method: Method, path: &str, body: Value) -> Option<Answer> {
        self.attempt(method, path, &self.token, Some(body)).await
    }

    async fn attempt(&self, method: Method, path: &str, bearer: &str, body: Option<Value>) -> Option<Answer> {
        let http: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
        let bytes = body.map(|b| Bytes::from(b.to_string())).unwrap_or_default();
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.sim.url()));
        if !bearer.is_empty() {
            request = request.header("authorization", format!("Bearer {bearer}"));
        }
        let request = request.header("content-type", "application/json").body(Full::new(bytes)).expect("a request");
        let response = tokio::time::timeout(LIMIT, http.request(request)).await.expect("in time").ok()?;
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.ok()?.to_bytes();
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Some(Answer { status: parts.status, headers: parts.headers, body })
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &self.token, None).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.send(Method::POST, path, &self.token, Some(body)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.send(Method::DELETE, path, &self.token, None).await
    }

    /// Registers a runner in acme; its id and JIT config.
    pub(crate) async fn register(&self, name: &str) -> (u64, String) {
        let body = json!({"name": name, "runner_group_id": 1, "labels": ["self-hosted", "linux", "x64"]});
        let answer = self.post("/orgs/acme/actions/runners/generate-jitconfig", body).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        let jit = answer.body["encoded_jit_config"].as_str().expect("a JIT config").to_owned();
        (answer.body["runner"]["id"].as_u64().expect("an id"), jit)
    }

    /// Registers a runner and starts it; returns once it listens.
    pub(crate) async fn runner(&self, name: &str) -> Runner {
        let (id, jit) = self.register(name).await;
        let mut runner = Runner::start(id, &jit, &[]);
        runner.until("Listening for Jobs").await;
        runner
    }

    /// Waits until something is so.
    pub(crate) async fn until(&self, what: &str, condition: impl Fn(&GithubSim) -> bool) {
        let wait = async {
            while !condition(&self.sim) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(LIMIT, wait).await.unwrap_or_else(|_| panic!("never: {what}: {:?}", self.sim.runners()));
    }
}

/// A runner process; killed when dropped.
pub(crate) struct Runner {
    pub(crate) id: u64,
    pub(crate) folder: tempfile::TempDir,
    pub(crate) child: Child,
    pub(crate) seen: Vec<String>,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Runner {
    pub(crate) fn start(id: u64, jit: &str, environment: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        runner::install(folder.path()).expect("a runner");
        Self::start_in(folder, id, jit, environment)
    }

    pub(crate) fn start_in(folder: tempfile::TempDir, id: u64, jit: &str, environment: &[(&str, &str)]) -> Self {
        let mut command = Command::new(folder.path().join("bin/Runner.Listener"));
        command.arg("run").env("ACTIONS_RUNNER_INPUT_JITCONFIG", jit).envs(environment.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().expect("the listener starts");
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        Self { id, folder, child, seen: Vec::new(), lines }
    }

    /// Reads lines until one contains this.
    pub(crate) async fn until(&mut self, text: &str) {
        loop {
            let line = tokio::time::timeout(LIMIT, self.lines.next_line()).await;
            let line = line.unwrap_or_else(|_| panic!("{text:?} was not printed in time: {:?}", self.seen));
            let line = line.expect("readable").unwrap_or_else(|| panic!("{text:?} was never printed: {:?}", self.seen));
            self.seen.push(line);
            if self.seen.last().is_some_and(|line| line.contains(text)) {
                return;
            }
        }
    }

    /// Waits for its end; the exit code.
    pub(crate) async fn exit(&mut self) -> i32 {
        let status = tokio::time::timeout(LIMIT, self.child.wait()).await.expect("it ends").expect("a status");
        while let Ok(Ok(Some(line))) = tokio::time::timeout(Duration::from_secs(1), self.lines.next_line()).await {
            self.seen.push(line);
        }
        status.code().unwrap_or(-1)
    }

    /// Everything it said on stderr; after its end.
    pub(crate) async fn complaints(&mut self) -> String {
        let mut text = String::new();
        let mut from = self.child.stderr.take().expect("a pipe");
        tokio::io::AsyncReadExt::read_to_string(&mut from, &mut text).await.expect("readable");
        text
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = self.child.id().and_then(|id| rustix::process::Pid::from_raw(id as i32)).expect("it runs");
        rustix::process::kill_process(pid, signal).expect("it can be signalled");
    }

    pub(crate) fn has(&self, file: &str) -> bool {
        self.folder.path().join(file).exists()
    }
}
