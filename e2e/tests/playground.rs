//! The playground as people run it: its process, its output, its exit code, and what it leaves behind.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "support code of tests fails the test it serves"
)]

use std::{
    collections::HashSet,
    process::Stdio,
    time::{Duration, Instant},
};

use miglet_e2e::control_plane::{ControlPlane, product_crds};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::timeout,
};

/// A control plane and a few VMs start in this.
const PATIENCE: Duration = Duration::from_secs(120);

/// A playground with a home of its own.
struct Playground {
    home: TempDir,
}

impl Playground {
    fn new() -> Self {
        Self { home: tempfile::Builder::new().prefix("mplay").tempdir().unwrap() }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_playground"));
        // Not started by cargo: it takes the binaries that lie beside it.
        command.args(arguments).env_remove("CARGO").kill_on_drop(true);
        command.env("XDG_RUNTIME_DIR", self.home.path()).env("TMPDIR", self.home.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        command
    }

    fn start(&self, arguments: &[&str]) -> (Child, Lines<BufReader<ChildStdout>>) {
        let mut child = self.command(arguments).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        (child, lines)
    }

    async fn run(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let output = timeout(PATIENCE, self.command(arguments).output()).await.expect("ends in time").unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    }

    /// Processes that were started with this home: their environment says so.
    fn processes(&self) -> HashSet<u32> {
        let home = self.home.path().to_str().unwrap();
        let ids = std::fs::read_dir("/proc").unwrap().flatten();
        let ids = ids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        ids.filter(|id| {
            let environment = std::fs::read(format!("/proc/{id}/environ")).unwrap_or_default();
            String::from_utf8_lossy(&environment).contains(home)
        })
        .collect()
    }

    fn files(&self) -> Vec<std::path::PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.home.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path.clone());
                }
                // The folder of the state file may stay, as any cache folder.
                if path != self.home.path().join("miglet") {
                    found.push(path);
                }
            }
        }
        found
    }

    /// Nothing of it is left, soon after its end.
    async fn assert_gone(&self) {
        let begun = Instant::now();
        while !self.processes().is_empty() || !self.files().is_empty() {
            assert!(begun.elapsed() < Duration::from_secs(15), "left: {:?}, {:?}", self.processes(), self.files());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

async fn line_with(lines: &mut Lines<BufReader<ChildStdout>>, wanted: &str) -> String {
    let search = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains(wanted) {
                return line;
            }
        }
        panic!("it ended without {wanted:?}");
    };
    timeout(PATIENCE, search).await.unwrap_or_else(|_| panic!("no line with {wanted:?}"))
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_raw(child.id().unwrap().cast_signed()).unwrap(), signal).unwrap();
}

#[tokio::test]
async fn jobs_end_with_their_figures_and_nothing_is_left() {
    let playground = Playground::new();
    let (code, output) = playground.run(&["--jobs", "3"]).await;
    let last: Value = serde_json::from_str(output.lines().last().unwrap()).unwrap();
    assert_eq!(code, Some(0), "{output}");
    assert_eq!((&last["jobs"], &last["succeeded"], &last["lost"]), (&3.into(), &3.into(), &0.into()), "{last}");
    assert_eq!((&last["leaked_instances"], &last["leaked_runners"]), (&0.into(), &0.into()), "{last}");
    assert!(last["vms_created"].as_u64().unwrap() >= 3, "{last}");
    assert!(last["writes_per_vm"].as_f64().unwrap() > 1.0, "{last}");
    playground.assert_gone().await;
}

#[tokio::test]
async fn a_cluster_somebody_already_has_is_left_as_it_was() {
    let cluster = ControlPlane::start().await.unwrap();
    let everything = || async {
        let kinds = ["crd,ns,clusterroles,clusterrolebindings,apiservices", "-o", "name"];
        cluster.kubectl(&[&["get"], &kinds[..]].concat()).await.unwrap()
    };
    let before = everything().await;
    let kubeconfig = cluster.admin_kubeconfig();

    let playground = Playground::new();
    let (code, output) = playground.run(&["--kubeconfig", kubeconfig.to_str().unwrap(), "--jobs", "1"]).await;
    assert_eq!(code, Some(0), "{output}");
    let last: Value = serde_json::from_str(output.lines().last().unwrap()).unwrap();
    assert_eq!((&last["succeeded"], &last["lost"]), (&1.into(), &0.into()), "{output}");
    assert_eq!(everything().await, before);
    playground.assert_gone().await;

    cluster.apply_crds(&product_crds().unwrap()).await.unwrap();
    let (code, _) = playground.run(&["--kubeconfig", kubeconfig.to_str().unwrap(), "--jobs", "1"]).await;
    assert_eq!(code, Some(1), "definitions that somebody may use are not touched");
    assert!(everything().await.contains("runnerpools.miglet.dev"));
}

#[tokio::test]
async fn a_running_playground_takes_jobs_and_faults_and_leaves_nothing_behind() {
    let playground = Playground::new();
    let (mut child, mut lines) = playground.start(&[]);
    line_with(&mut lines, "3 runners idle").await;
    let kubeconfig = line_with(&mut lines, "export KUBECONFIG=").await;
    assert!(std::path::Path::new(kubeconfig.split_once('=').unwrap().1).is_file());

    let (code, output) = playground.run(&["job", "echo hello; exit 3"]).await;
    assert_eq!(code, Some(1), "a job that fails is told: {output}");
    assert!(output.contains("| hello") && output.contains("failed"), "{output}");
    line_with(&mut lines, "acme/app · build").await;

    let (code, _) = playground.run(&["fault", "lose-org"]).await;
    assert_eq!(code, Some(0));
    let (code, _) = playground.run(&["fault", "preempt", "nobody"]).await;
    assert_eq!(code, Some(1), "a VM that is not there cannot be preempted");
    let (code, _) = playground.run(&["fault", "clear"]).await;
    assert_eq!(code, Some(0));
    let (code, _) = playground.run(&[]).await;
    assert_eq!(code, Some(1), "there is one playground at a time");

    signal(&child, Signal::INT);
    let status = timeout(Duration::from_secs(20), child.wait()).await.expect("it ends").unwrap();
    assert_eq!(status.code(), Some(0));
    playground.assert_gone().await;
    let (code, _) = playground.run(&["job", "true"]).await;
    assert_eq!(code, Some(1), "no playground is running");
}

#[tokio::test]
async fn each_simulator_runs_alone_and_answers() {
    let playground = Playground::new();
    let (mut compute, mut lines) = playground.start(&["compute"]);
    let line: Value = serde_json::from_str(&lines.next_line().await.unwrap().unwrap()).unwrap();
    let text = |field: &str| line[field].as_str().unwrap().to_owned();
    let path = format!("compute/v1/projects/{}/zones/{}", text("project"), text("zone"));
    let url = format!("{}/{path}/instanceGroupManagers/{}", text("endpoint"), text("group"));
    let group = reqwest::Client::new().get(url).bearer_auth(text("token")).send().await.unwrap();
    assert_eq!(group.status(), 200);

    let (mut github, mut lines) = playground.start(&["github"]);
    let line: Value = serde_json::from_str(&lines.next_line().await.unwrap().unwrap()).unwrap();
    let text = |field: &str| line[field].as_str().unwrap().to_owned();
    assert!(std::fs::read_to_string(text("private_key_file")).unwrap().contains("PRIVATE KEY"));
    assert!(line["app_id"].is_u64() && line["installation_id"].is_u64() && text("repository") == "acme/app");
    let url = format!("{}/orgs/{}/actions/runners", text("endpoint"), text("org"));
    let runners = reqwest::Client::new().get(url).bearer_auth(text("token")).header("user-agent", "test");
    assert_eq!(runners.send().await.unwrap().status(), 200);

    for child in [&mut compute, &mut github] {
        signal(child, Signal::TERM);
        assert!(timeout(PATIENCE, child.wait()).await.expect("it ends").unwrap().success());
    }
    playground.assert_gone().await;
}
