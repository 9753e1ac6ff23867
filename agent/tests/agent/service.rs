//! The agent as a service of systemd.

use tokio::time::timeout;

use crate::{
    operator::PATIENCE,
    world::{RUNNER, World},
};

/// Makes the agent the very process that systemd started.
const SYSTEMD: &str = "INVOCATION_ID=1 SYSTEMD_EXEC_PID=$$ exec \"$@\"";

#[tokio::test]
async fn a_service_that_runs_as_root_runs_no_jobs_as_root() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root is refused");
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
