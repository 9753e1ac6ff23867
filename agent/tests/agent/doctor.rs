//! What `miglet doctor` says about healthy and other machines.

use std::collections::HashMap;

use axum::Router;
use serde_json::Value;
use tokio::{net::TcpListener, task::JoinHandle};

use crate::world::{RUNNER, World};

/// Answers anything.
async fn github() -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new().fallback(|| async { "hello" });
    (url, tokio::spawn(async move { axum::serve(listener, router).await.unwrap() }))
}

/// Verdict, findings and advice by check, and the exit code.
async fn examined(world: &World, arguments: &[&str]) -> (HashMap<String, [String; 3]>, Option<i32>) {
    let output = world.command("doctor").arg("--json").args(arguments).output().await.unwrap();
    let findings: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let text = |finding: &Value, name: &str| finding[name].as_str().unwrap().to_owned();
    let findings =
        findings.iter().map(|f| (text(f, "check"), ["verdict", "found", "advice"].map(|name| text(f, name))));
    (findings.collect(), output.status.code())
}

#[tokio::test]
async fn a_healthy_machine_gets_no_advice() {
    let world = World::new(RUNNER).await;
    let operator = world.operator().await;
    world.introduce(&operator);
    let (url, serving) = github().await;
    let (findings, _) = examined(&world, &["--github-url", &url]).await;
    for check in ["metadata", "clock", "settings", "identity", "dns", "tls", "github", "runner", "libraries"] {
        let [verdict, found, advice] = &findings[check];
        assert!(verdict == "ok" && advice.is_empty(), "{check}: {found} -> {advice}");
    }
    for check in ["disk", "user", "cgroup"] {
        assert!(findings.contains_key(check), "{check}");
    }
    serving.abort();
}

#[tokio::test]
async fn each_trouble_has_its_advice() {
    let world = World::new(RUNNER).await;
    let operator = world.operator().await;
    world.introduce(&operator);
    let stranger = rcgen::generate_simple_self_signed(vec!["127.0.0.1".into()]).unwrap().cert.pem();
    world.metadata.attributes.lock().unwrap().insert("miglet-ca".into(), stranger);
    *world.metadata.date.lock().unwrap() = Some("Sun, 06 Nov 1994 08:49:37 GMT".into());
    std::fs::remove_dir_all(&world.paths.runner).unwrap();
    let (findings, code) = examined(&world, &["--github-url", "http://127.0.0.1:1"]).await;
    for (check, advice) in
        [("clock", "time service"), ("tls", "compare the CA"), ("github", "a way out"), ("runner", "bake a runner")]
    {
        let [verdict, found, told] = &findings[check];
        assert!(verdict == "failure" && told.contains(advice), "{check}: {found} -> {told}");
    }
    assert_eq!(code, Some(1));

    let endpoint = format!("https://{}.example:1", "x".repeat(64));
    let (findings, _) = examined(&world, &["--github-url", "http://127.0.0.1:1", "--endpoint", &endpoint]).await;
    assert!(findings["dns"][2].contains("DNS servers"), "{:?}", findings["dns"]);
}

#[tokio::test]
async fn a_machine_without_a_metadata_server_is_told_so_in_plain_lines() {
    let world = World::new(RUNNER).await;
    let arguments = ["--metadata-host", "127.0.0.1:1", "--github-url", "http://127.0.0.1:1"];
    let output = world.command("doctor").args(arguments).output().await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line = |check: &str| text.lines().find(|l| l.split_whitespace().nth(1) == Some(check)).unwrap();
    assert!(
        line("metadata").starts_with("FAIL") && line("metadata").contains("-> run this on a Compute Engine"),
        "{text}"
    );
    assert!(line("settings").contains("endpoint is missing") && line("settings").contains("`miglet config`"), "{text}");
    assert_eq!(output.status.code(), Some(1));
}
