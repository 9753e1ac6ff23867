//! Clients of the socket, slow and wrong ones among them.

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);
/// Long enough for an answer that comes too early.
const MOMENT: Duration = Duration::from_millis(200);

/// An agent's socket with nothing behind it.
struct Agent {
    dir: tempfile::TempDir,
    status: watch::Sender<Status>,
    inputs: mpsc::Receiver<Input>,
    serving: JoinHandle<()>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Agent {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let status = watch::Sender::new(Status::default());
        let (inputs_in, inputs) = mpsc::channel(4);
        let serving = serve(&dir.path().join("agent.sock"), status.subscribe(), inputs_in).unwrap();
        Self { dir, status, inputs, serving }
    }

    async fn client(&self) -> UnixStream {
        UnixStream::connect(self.dir.path().join("agent.sock")).await.unwrap()
    }

    fn becomes(&self, closed: bool, active: bool) {
        self.status.send_replace(Status { closed, active, ..Status::default() });
    }
}

async fn send(client: &mut UnixStream, request: &[u8]) {
    client.write_all(request).await.unwrap();
    client.shutdown().await.unwrap();
}

async fn answer_to(client: &mut UnixStream) -> Vec<u8> {
    let mut answer = Vec::new();
    timeout(PATIENCE, client.read_to_end(&mut answer)).await.expect("the socket's end").unwrap();
    answer
}

fn drain() -> Vec<u8> {
    serde_json::to_vec(&Request::Drain { id: "d".into(), deadline_ms: None }).unwrap()
}

async fn is_silent(client: &mut UnixStream) -> bool {
    timeout(MOMENT, client.read_u8()).await.is_err()
}

#[tokio::test]
async fn a_drain_that_is_sent_late_is_still_a_drain() {
    let mut agent = Agent::new();
    agent.becomes(false, true);
    let mut client = agent.client().await;
    sleep(Duration::from_secs(1)).await;
    send(&mut client, &drain()).await;
    let input = timeout(PATIENCE, agent.inputs.recv()).await.expect("an order");
    assert!(matches!(input, Some(Input::Drain { .. })), "{input:?}");
    agent.becomes(true, true);
    assert!(is_silent(&mut client).await, "the job runs");
    agent.becomes(true, false);
    assert!(serde_json::from_slice::<Status>(&answer_to(&mut client).await).is_ok_and(|status| !status.active));
}

#[tokio::test]
async fn a_drain_is_not_answered_before_new_work_is_refused() {
    let mut agent = Agent::new();
    let mut client = agent.client().await;
    send(&mut client, &drain()).await;
    timeout(PATIENCE, agent.inputs.recv()).await.expect("an order");
    assert!(is_silent(&mut client).await, "a registration may be on its way");
    agent.becomes(true, false);
    assert!(!answer_to(&mut client).await.is_empty());
}

#[tokio::test]
async fn what_is_no_request_is_not_answered() {
    let agent = Agent::new();
    let whole = drain();
    for request in [&b""[..], b"garbage", &whole[..whole.len() / 2], &[b' '; 2000]] {
        let mut client = agent.client().await;
        // The agent may hang up before it was all sent.
        client.write_all(request).await.ok();
        client.shutdown().await.ok();
        let mut answer = Vec::new();
        timeout(PATIENCE, client.read_to_end(&mut answer)).await.expect("the socket's end").ok();
        assert!(answer.is_empty(), "{request:?}");
    }
    assert!(ask(&agent.dir.path().join("agent.sock")).await.is_ok());
}
