//! The agent as a service of systemd.

use miglet_proto::v1::{AgentState, CollectDiagnostics, command::Command as Wanted};
use rustix::process::Signal;
use tokio::time::timeout;

use crate::{
    operator::PATIENCE,
    world::{RUNNER, World, kill, only_root},
};

/// Makes the agent the very process that systemd started.
const SYSTEMD: &str = "INVOCATION_ID=1 SYSTEMD_EXEC_PID=$$ exec \"$@\"";

#[tokio::test]
async fn a_service_that_runs_as_root_runs_no_jobs_as_root() {
    if !only_root("is refused") {
        return;
    }
    let world = World::new(RUNNER).await;
    let operator = world.operator().await;
    world.introduce(&operator);
    let ended = timeout(PATIENCE, world.begun_by("sh", &["-c", SYSTEMD, "sh"]).output()).await;
    let output = ended.expect("it ends at once").unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78), "{told}");
    assert!(told.contains("jobs would be root") && told.contains("--machine systemd"), "{told}");
    assert!(world.told("jobs would be root"), "where it is seen from outside");
}

#[tokio::test]
async fn what_an_agent_said_before_it_crashed_is_among_the_diagnostics_of_the_next_one() {
    let world = World::new(RUNNER).await;
    let mut operator = world.operator().await;
    let info = [("MIGLET_LOG_LEVEL", "info")];
    let mut crashed = world.agent_with(&operator, &info);
    operator.session().await.until_state(AgentState::Ready).await;
    kill(&crashed, Signal::KILL);
    crashed.wait().await.unwrap();
    let _agent = world.agent_with(&operator, &info);
    let mut session = operator.session().await;
    session.send("d1", Wanted::CollectDiagnostics(CollectDiagnostics {})).await;
    session.until("whole", |s| s.chunks.last().is_some_and(|chunk| chunk.last)).await;
    let log = session.chunks.iter().filter(|chunk| chunk.name == "agent.log").map(|chunk| chunk.text.as_str());
    assert_eq!(log.collect::<String>().matches("session opened").count(), 2);
}
