//! Drains beside agents that answer oddly, or come back late.

use tokio::{net::UnixListener, task::JoinHandle};

use super::*;

fn paths(dir: &tempfile::TempDir) -> Paths {
    let path = dir.path().to_owned();
    Paths { state: path.clone(), data: path.clone(), runner: path }
}

/// Answers one request after the other with whether its runner is active.
fn agent(paths: &Paths, answers: Vec<bool>) -> JoinHandle<()> {
    let listener = UnixListener::bind(paths.agent_socket()).unwrap();
    tokio::spawn(async move {
        for active in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.read_to_end(&mut Vec::new()).await.unwrap();
            let status = serde_json::to_vec(&Status { active, ..Status::default() }).unwrap();
            stream.write_all(&status).await.unwrap();
        }
    })
}

#[tokio::test]
async fn an_answer_while_the_runner_is_active_is_no_end() {
    let dir = tempfile::tempdir().unwrap();
    let agent = agent(&paths(&dir), vec![true, true, false]);
    let drained = drain(&paths(&dir), "d".into(), Some(Duration::from_secs(20))).await.unwrap();
    assert!(matches!(drained, Drained::Told(status) if !status.active));
    agent.await.unwrap();
}

#[tokio::test]
async fn an_agent_between_two_lives_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    drop(UnixListener::bind(paths(&dir).agent_socket()).unwrap());
    let next = paths(&dir);
    let next = tokio::spawn(async move {
        sleep(Duration::from_secs(1)).await;
        std::fs::remove_file(next.agent_socket()).unwrap();
        agent(&next, vec![false]).await.unwrap();
    });
    let drained = drain(&paths(&dir), "d".into(), None).await.unwrap();
    assert!(matches!(drained, Drained::Told(_)), "{drained:?}");
    next.await.unwrap();
}

#[tokio::test]
async fn an_agent_that_never_comes_back_is_waited_for_within_the_deadline() {
    let dir = tempfile::tempdir().unwrap();
    drop(UnixListener::bind(paths(&dir).agent_socket()).unwrap());
    let begun = Instant::now();
    let drained = drain(&paths(&dir), "d".into(), Some(Duration::from_secs(1))).await.unwrap();
    assert!(matches!(drained, Drained::Nothing), "{drained:?}");
    assert!((Duration::from_millis(400)..RESTART / 2).contains(&begun.elapsed()), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn where_no_agent_was_none_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let begun = Instant::now();
    let drained = drain(&paths(&dir), "d".into(), None).await.unwrap();
    assert!(matches!(drained, Drained::Nothing) && begun.elapsed() < RESTART / 2, "{drained:?}");
}
