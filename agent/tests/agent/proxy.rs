//! A machine whose only way out is a proxy.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use crate::{
    operator::BY_NAME,
    world::{RUNNER, World},
};

/// One that connects to the operator whoever is asked for.
struct Proxy {
    url: String,
    /// The first lines of what it was asked.
    asked: Arc<Mutex<Vec<String>>>,
    serving: JoinHandle<()>,
}

impl Proxy {
    async fn to(operator: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("proxy");
        let url = format!("http://{}", listener.local_addr().expect("proxy"));
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let heard = asked.clone();
        let serving = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(tunnel(client, operator, heard.clone()));
            }
        });
        Self { url, asked, serving }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn tunnel(mut client: TcpStream, operator: SocketAddr, heard: Arc<Mutex<Vec<String>>>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = client.read_u8().await else { return };
        head.push(byte);
    }
    heard.lock().expect("proxy").push(String::from_utf8_lossy(&head).lines().next().unwrap_or_default().to_owned());
    let mut there = TcpStream::connect(operator).await.expect("proxy");
    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.expect("proxy");
    copy_bidirectional(&mut client, &mut there).await.ok();
}

#[tokio::test]
async fn the_session_goes_through_the_proxy_and_the_runner_knows_it() {
    let world =
        World::new(&RUNNER.replace("umask > umask", "umask > umask; echo \"$https_proxy$HTTPS_PROXY\" > proxy")).await;
    let mut operator = world.operator().await;
    let proxy = Proxy::to(operator.address).await;
    let endpoint = format!("https://{BY_NAME}:8443");
    let environment = [("MIGLET_ENDPOINT", endpoint.as_str()), ("HTTPS_PROXY", &proxy.url), ("NO_PROXY", "127.0.0.1")];
    let _agent = world.agent_with(&operator, &environment);
    let _session = operator.idle_session().await;
    assert_eq!(proxy.asked.lock().unwrap().first().map(String::as_str), Some("CONNECT gateway.test:8443 HTTP/1.1"));
    assert_eq!(world.runner_file("proxy"), Some(proxy.url.clone()));
}
