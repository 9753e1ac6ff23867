//! A machine whose image has no runner.

use std::sync::{Arc, Mutex};

use aws_lc_rs::digest;
use axum::{Router, extract::State, http::StatusCode, routing::get};
use miglet_agent::installation::Sha256;
use miglet_proto::v1::{self, AgentState, command::Command as Wanted};
use tokio::{net::TcpListener, process::Command, task::JoinHandle};

use crate::{
    JIT,
    operator::Session,
    world::{RUNNER, World, eventually},
};

/// Serves the archive once it has one.
struct Bucket {
    archive: Arc<Mutex<Option<Vec<u8>>>>,
    url: String,
    serving: JoinHandle<()>,
}

impl Drop for Bucket {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn give(State(archive): State<Arc<Mutex<Option<Vec<u8>>>>>) -> Result<Vec<u8>, StatusCode> {
    archive.lock().unwrap().clone().ok_or(StatusCode::SERVICE_UNAVAILABLE)
}

impl Bucket {
    async fn new() -> Self {
        let archive = Arc::default();
        let router = Router::new().route("/2.336.0/runner", get(give)).with_state(Arc::clone(&archive));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/{{version}}/runner?signature=5ecret", listener.local_addr().unwrap());
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { archive, url, serving }
    }

    fn fill(&self) {
        *self.archive.lock().unwrap() = Some(packed());
    }
}

fn packed() -> Vec<u8> {
    let gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut builder = tar::Builder::new(gzip);
    let mut header = tar::Header::new_gnu();
    header.set_size(RUNNER.len() as u64);
    header.set_mode(0o755);
    builder.append_data(&mut header, "bin/Runner.Listener", RUNNER.as_bytes()).unwrap();
    builder.into_inner().unwrap().finish().unwrap()
}

fn configured(world: &World, bucket: &Bucket) {
    let sha256 = Sha256::of(&digest::digest(&digest::SHA256, &packed())).unwrap();
    let file = format!("runner-version: 2.336.0\nrunner-sha256: {sha256}\nrunner-sources:\n- {}\n", bucket.url);
    std::fs::write(world.config_file(), file).unwrap();
    std::fs::remove_dir_all(&world.paths.runner).unwrap();
}

async fn output(mut command: Command) -> (Option<i32>, String) {
    let output = command.output().await.unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

#[tokio::test]
async fn a_machine_without_a_runner_says_so_until_it_has_one_and_then_runs_it() {
    let (mut world, bucket) = (World::new(RUNNER).await, Bucket::new().await);
    configured(&world, &bucket);
    let mut operator = world.operator().await;
    let _agent = world.agent(&operator);
    let mut session = operator.session().await;
    let told = |s: &Session| s.report.error.contains("no source gave runner 2.336.0");
    session.until("told", |s| told(s) && s.report.state() == AgentState::Initializing).await;
    bucket.fill();
    session.until_state(AgentState::Ready).await;
    assert_eq!((session.report.error.as_str(), session.report.runner_version.as_str()), ("", "2.336.0"));
    session.start_runner().await;
    world.paths.runner = std::fs::read_dir(world.cache_dir())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.is_dir())
        .unwrap();
    assert_eq!(world.runner_file("jit").as_deref(), Some(JIT), "the fetched one runs");
}

#[tokio::test]
async fn what_the_operator_offers_is_installed_before_the_agent_is_ready_and_a_registration_meanwhile_waits() {
    let (world, bucket) = (World::new(RUNNER).await, Bucket::new().await);
    std::fs::remove_dir_all(&world.paths.runner).unwrap();
    let mut operator = world.operator().await;
    // Not known yet: the agent waits for it.
    *operator.settings.lock().unwrap() = Some(v1::Settings { revision: "a".into(), ..v1::Settings::default() });
    let _agent = world.agent(&operator);
    let mut session = operator.session().await;
    session.until("settings in effect", |s| s.report.settings_revision == "a").await;
    assert_eq!(session.report.state(), AgentState::Initializing);
    session.register("r1", JIT).await;
    let archive = v1::RunnerArchive {
        architecture: miglet_agent::installation::architecture().into(),
        sha256: Sha256::of(&digest::digest(&digest::SHA256, &packed())).unwrap().to_string(),
        url: bucket.url.replace("{version}", "2.336.0"),
    };
    let runner = v1::RunnerSettings { version: "2.336.0".into(), archives: vec![archive], ..Default::default() };
    let settings = v1::Settings { revision: "b".into(), runner: Some(runner), ..v1::Settings::default() };
    session.send("c1", Wanted::UpdateConfig(v1::UpdateConfig { settings: Some(settings) })).await;
    assert_eq!(session.outcome("c1").await, v1::CommandOutcome::Done);
    bucket.fill();
    session.until_state(AgentState::Idle).await;
    assert_eq!(session.outcome("r1").await, v1::CommandOutcome::Done);
    assert_eq!(session.report.runner_version, "2.336.0");
    let (_, status) = output(world.command("status")).await;
    assert!(status.contains("runner-version = 2.336.0 (operator)"), "{status}");
}

#[tokio::test]
async fn install_makes_an_image_before_anything_else_is_known() {
    let (world, bucket) = (World::new(RUNNER).await, Bucket::new().await);
    configured(&world, &bucket);
    bucket.fill();
    let mut command = world.command("install");
    command.env("GCE_METADATA_HOST", "127.0.0.1:1");
    let (code, text) = output(command).await;
    assert!(code == Some(0) && text.contains("fetched from 127.0.0.1"), "{text}");
    let (code, text) = output(world.command("install")).await;
    assert!(code == Some(0) && text.contains("installed before"), "{text}");
    let (_, text) = output(world.command("config")).await;
    assert!(text.contains("/runner?…") && !text.contains("5ecret"), "{text}");
}

#[tokio::test]
async fn a_full_disk_is_told_and_waited_out() {
    let (world, bucket) = (World::new(RUNNER).await, Bucket::new().await);
    configured(&world, &bucket);
    bucket.fill();
    std::fs::create_dir(world.cache_dir()).unwrap();
    let sha256 = Sha256::of(&digest::digest(&digest::SHA256, &packed())).unwrap();
    let part = world.cache_dir().join(format!("{sha256}.part"));
    std::os::unix::fs::symlink("/dev/full", &part).unwrap();
    let mut operator = world.operator().await;
    let _agent = world.agent(&operator);
    eventually("told", || world.told(&format!("could not write {}: No space left on device", part.display()))).await;
    std::fs::remove_file(part).unwrap();
    operator.session().await.until_state(AgentState::Ready).await;
}

#[tokio::test]
async fn a_cache_that_cannot_be_written_is_named() {
    let (world, bucket) = (World::new(RUNNER).await, Bucket::new().await);
    configured(&world, &bucket);
    bucket.fill();
    let mut command = world.command("install");
    // Nobody can make a file there, root neither.
    command.args(["--cache-dir", "/sys/kernel/miglet"]);
    let (code, text) = output(command).await;
    assert!(code == Some(1) && text.contains("could not use the cache /sys/kernel/miglet: "), "{text}");
}

#[tokio::test]
async fn install_refuses_half_a_description_with_78() {
    let world = World::new(RUNNER).await;
    let mut command = world.command("install");
    command.args(["--runner-version", "2.336", "--runner-sources", "gs://bucket/runner?5ecret"]);
    let (code, text) = output(command).await;
    assert_eq!(code, Some(78));
    for wanted in ["is not a version", "must look like https://host/path"] {
        assert!(text.contains(wanted), "{wanted} in {text}");
    }
    assert!(!text.contains("5ecret"), "{text}");
    let (code, text) = output({
        let mut command = world.command("install");
        command.args(["--runner-version", "2.336.0"]);
        command
    })
    .await;
    assert!(code == Some(78) && text.contains("runner-sha256 is missing"), "{text}");
}
