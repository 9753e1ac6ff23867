//! Runners whose supervisor died.

use miglet_proto::v1::Notice;
use rustix::process::Signal;

use crate::world::{RUNNER, World, eventually};

#[tokio::test]
async fn a_preemption_interrupts_a_job_whose_supervisor_died() {
    let world = World::new(RUNNER).await;
    let mut operator = world.operator().await;
    let (_agent, mut session) = world.busy(&mut operator).await;
    let runner = world.record().unwrap();
    let (shim, listener) = (runner.shim.unwrap(), runner.listener.unwrap());
    shim.signal(Signal::KILL);
    eventually("the shim is gone", || !shim.is_alive()).await;
    assert!(listener.is_alive());
    world.announce("preempted", "TRUE");
    session.until("ended", |s| s.report.exit.is_some()).await;
    assert!(session.report.notice() == Notice::Preempted && !listener.is_alive());
}
