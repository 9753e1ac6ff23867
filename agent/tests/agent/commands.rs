//! Orders that change how an agent works.

use miglet_proto::v1::{self, AgentState, CommandOutcome, command::Command as Wanted};

use crate::{
    JIT,
    world::{RUNNER, World},
};

fn update(revision: &str, agent: v1::AgentConfig) -> Wanted {
    let settings = v1::Settings { revision: revision.into(), agent: Some(agent), runner: None };
    Wanted::UpdateConfig(v1::UpdateConfig { settings: Some(settings) })
}

#[tokio::test]
async fn settings_hold_as_a_whole_or_not_at_all() {
    let world = World::new(RUNNER).await;
    let mut operator = world.operator().await;
    let _agent = world.agent(&operator);
    let mut session = operator.session().await;
    session.until_state(AgentState::Ready).await;
    let sound = v1::AgentConfig { heartbeat_period_seconds: 3000, ..v1::AgentConfig::default() };
    session.send("c1", update("good", sound)).await;
    assert_eq!(session.outcome("c1").await, CommandOutcome::Done);
    session.until("reported", |s| s.report.settings_revision == "good").await;
    let disk = v1::Threshold { warn_percent: 50, act_percent: 101 };
    let guards = v1::Guards { disk: Some(disk), ..v1::Guards::default() };
    let unsound = v1::AgentConfig { heartbeat_period_seconds: 3601, guards: Some(guards), ..sound };
    session.send("c2", update("bad", unsound)).await;
    assert_eq!(session.outcome("c2").await, CommandOutcome::Refused);
    let detail = &session.acks.last().expect("acked").detail;
    assert!(detail.contains("heartbeat-seconds") && detail.contains("guard-disk-act-percent"), "{detail}");
    assert_eq!(session.report.settings_revision, "good");
    session.until("told", |s| s.report.error.contains("cannot be used")).await;
    let status = world.command("status").output().await.expect("status");
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.contains("heartbeat-seconds = 3000 (operator)"), "{status}");
    assert!(status.contains("log-level = trace (environment)"), "{status}");
    session.send("c3", update("better", sound)).await;
    assert_eq!(session.outcome("c3").await, CommandOutcome::Done);
    session.until("in order again", |s| s.report.error.is_empty()).await;
}

#[tokio::test]
async fn a_log_level_holds_for_its_time_only() {
    let world = World::new(RUNNER).await;
    let mut operator = world.operator().await;
    let _agent = world.agent(&operator);
    let mut session = operator.session().await;
    session.until("its own level", |s| s.report.log_level() == v1::LogLevel::Trace).await;
    let set = v1::SetLogLevel { level: v1::LogLevel::Error.into(), for_seconds: 1 };
    session.send("l1", Wanted::SetLogLevel(set)).await;
    session.until("another level", |s| s.report.log_level() == v1::LogLevel::Error).await;
    session.until("its own level again", |s| s.report.log_level() == v1::LogLevel::Trace).await;
}

#[tokio::test]
async fn diagnostics_come_in_pieces_with_what_was_logged_and_without_secrets() {
    let world = World::new(RUNNER).await;
    let diag = world.paths.runner.join("_diag");
    std::fs::create_dir(&diag).expect("made");
    let log = format!("{}\nToken: 5ecret ghs_{}\n", "x".repeat(40_000), "a1".repeat(18));
    std::fs::write(diag.join("Runner_20261121-100000-utc.log"), log).expect("written");
    let mut operator = world.operator().await;
    let _agent = world.agent_with(&operator, &[("MIGLET_LOG_LEVEL", "info")]);
    let mut session = operator.session().await;
    session.until_state(AgentState::Ready).await;
    session.register("r1", JIT).await;
    session.until_state(AgentState::Idle).await;
    session.send("d1", Wanted::CollectDiagnostics(v1::CollectDiagnostics {})).await;
    session.until("whole", |s| s.chunks.last().is_some_and(|chunk| chunk.last)).await;
    assert!((0..).zip(&session.chunks).all(|(n, chunk)| chunk.sequence == n && chunk.command_id == "d1"));
    let text = |name: &str| -> String {
        session.chunks.iter().filter(|chunk| chunk.name == name).map(|chunk| chunk.text.as_str()).collect()
    };
    let runner = text("runner.log");
    assert!(runner.len() > 32 * 1024 && runner.contains("[redacted]"), "{} bytes", runner.len());
    assert!(!runner.contains("5ecret") && !runner.contains("ghs_"));
    assert!(text("agent.log").contains("session opened") && text("status.txt").contains("vm-1"));
    assert!(text("shim.log").contains("the listener runs"), "{}", text("shim.log"));
}
