//! What the command line tells people: what the agent does, its settings, and what is wrong with them.

use tokio::time::timeout;

use crate::{
    JIT,
    operator::PATIENCE,
    world::{RUNNER, World, only_root},
};

#[tokio::test]
async fn status_tells_people_what_the_agent_knows() {
    let world = World::new(RUNNER).await;
    let mut operator = world.operator().await;
    let (_agent, _session) = world.idle(&mut operator).await;
    let output = world.command("status").output().await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    for line in ["State:    idle", "Operator: connected", "RunnerVM: vm-1", "Runner:   vm-1 (Listening)", "(metadata)"]
    {
        assert!(text.contains(line), "{line:?} in {text}");
    }
    assert!(!text.contains(JIT));
    let output = world.command("status").arg("--json").output().await.unwrap();
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&status["state"], &status["vm_name"]), (&"idle".into(), &"vm-1".into()), "{status}");
    assert!(!status.to_string().contains(JIT));
}

#[tokio::test]
async fn unusable_settings_are_all_told_and_end_with_78() {
    let world = World::new(RUNNER).await;
    let output = world.command("run").env("MIGLET_MACHINE", "toaster").output().await.unwrap();
    assert_eq!(output.status.code(), Some(78));
    let text = String::from_utf8(output.stderr).unwrap();
    for wanted in ["miglet-endpoint", "miglet-ca", "miglet-audience", "toaster"] {
        assert!(text.contains(wanted), "{wanted} in {text}");
    }
}

#[tokio::test]
async fn settings_nobody_can_use_are_told_outside_the_machine() {
    let world = World::new(RUNNER).await;
    let output = timeout(PATIENCE, world.command("run").output()).await.expect("it ends").unwrap();
    assert_eq!(output.status.code(), Some(78));
    assert!(world.told("miglet-endpoint"), "{:?}", world.metadata.statuses.lock().unwrap());
}

#[tokio::test]
async fn config_tells_every_value_and_where_it_came_from() {
    let world = World::new(RUNNER).await;
    let operator = world.operator().await;
    world.introduce(&operator);
    world.metadata.attributes.lock().unwrap().insert("miglet-from-tomorrow".into(), "1".into());
    std::fs::write(world.config_file(), "machine: systemd\nendpoint: https://file:1\n").unwrap();
    let output = world.command("config").args(["--heartbeat-seconds", "7"]).output().await.unwrap();
    let (text, warnings) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    for (key, from, value) in [
        ("heartbeat-seconds", "flag", "7"),
        ("log-level", "environment", "trace"),
        ("endpoint", "file", "https://file:1"),
        ("audience", "metadata", "fleet"),
        ("ca", "metadata", "PEM text of 1 certificate(s)"),
    ] {
        let line = text.lines().find(|line| line.starts_with(&format!("{key} "))).unwrap();
        assert!(line.contains(from) && line.ends_with(value), "{line}");
    }
    assert!(output.status.success() && warnings.contains("miglet-from-tomorrow"), "{warnings}");
    assert!(
        text.lines().any(|line| line.starts_with("runner-version ") && line.trim_end().ends_with("unset")),
        "{text}"
    );
    let output = world.command("config").arg("--json").output().await.unwrap();
    let values: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    let endpoint = values.iter().find(|value| value["key"] == "endpoint").unwrap();
    assert_eq!((&endpoint["value"], &endpoint["source"]), (&"https://file:1".into(), &"file".into()));
    std::fs::write(world.config_file(), "machin: systemd\nmachine: toaster\n").unwrap();
    let output = world.command("config").output().await.unwrap();
    let problems = String::from_utf8(output.stderr).unwrap();
    assert!(problems.contains("\"machin\"") && problems.contains("toaster"), "{problems}");
    assert_eq!(output.status.code(), Some(78));
}

/// What a person asks is answered as the units would: with their proxy, say. What was typed wins.
#[tokio::test]
async fn the_units_environment_holds_for_a_persons_commands_too() {
    if !only_root("can mount another /etc") {
        return;
    }
    let world = World::new(RUNNER).await;
    let file = "MIGLET_ORPHAN_SECONDS=77\nMIGLET_HEARTBEAT_SECONDS=\"9\"\n";
    let etc = r#"mount -t tmpfs none /etc && mkdir /etc/miglet && printf "$0" > /etc/miglet/environment && exec "$@""#;
    let mut command = world.begun_by_for("config", "unshare", &["--mount", "sh", "-c", etc, file]);
    let output = command.env("MIGLET_HEARTBEAT_SECONDS", "7").output().await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line = |key: &str| text.lines().find(|line| line.starts_with(&format!("{key} "))).unwrap_or_default();
    assert!(line("orphan-seconds").contains("environment") && line("orphan-seconds").ends_with("77"), "{text}");
    assert!(line("heartbeat-seconds").ends_with('7'), "{text}");
}
