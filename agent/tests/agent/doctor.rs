//! What `miglet doctor` says about healthy and other machines.

use std::{collections::HashMap, sync::Arc};

use axum::Router;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinHandle,
};

use crate::world::{RUNNER, World};

/// Answers anything.
async fn github() -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new().fallback(|| async { "hello" });
    (url, tokio::spawn(async move { axum::serve(listener, router).await.unwrap() }))
}

/// Speaks TLS under a certificate that only its PEM text vouches for.
async fn private_forge() -> (String, String, JoinHandle<()>) {
    let signed = rcgen::generate_simple_self_signed(vec!["127.0.0.1".into()]).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(signed.signing_key.serialize_der()).into();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_single_cert(vec![signed.cert.der().clone()], key).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let serving = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // A client that does not trust us breaks off.
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut request = [0; 1024];
            if stream.read(&mut request).await.is_ok() {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.ok();
            }
        }
    });
    (url, signed.cert.pem(), serving)
}

#[tokio::test]
async fn a_companys_own_authority_is_trusted_where_the_machine_trusts_it() {
    let world = World::new(RUNNER).await;
    let (url, ca, serving) = private_forge().await;
    let (findings, _) = examined(&world, &["--github-url", &url]).await;
    assert_eq!(findings["github"][0], "failure", "{:?}", findings["github"]);
    let file = world.dir.path().join("ca.pem");
    std::fs::write(&file, ca).unwrap();
    let mut command = world.command("doctor");
    let output = command.args(["--github-url", &url]).env("SSL_CERT_FILE", file).output().await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains(&format!("ok    github     {url}/ answered 200 OK")), "{text}");
    serving.abort();
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
    for (check, expected, advice) in [
        ("clock", "failure", "time service"),
        ("tls", "failure", "compare the CA"),
        ("github", "failure", "a way out"),
        ("runner", "warning", "miglet install"),
    ] {
        let [verdict, found, told] = &findings[check];
        assert!(verdict == expected && told.contains(advice), "{check}: {found} -> {told}");
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
