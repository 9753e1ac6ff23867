//! Instances that boot as local processes.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc, time::Duration};

use http::Method;
use miglet_e2e::compute::{Agent, ComputeOptions, ComputeSim, ProcessMachines};

use crate::client::{ZONE, create, eventually, rest, running, with};

/// Machines whose agent is this shell script.
async fn scripted(script: &str) -> (ComputeSim, Arc<ProcessMachines>) {
    let agent = Agent {
        program: "/bin/sh".into(),
        arguments: vec!["-c".to_owned(), script.to_owned()],
        stop: Vec::new(),
        environment: BTreeMap::from([("MIGLET_EXTRA".to_owned(), "extra".to_owned())]),
        prepare: Arc::new(|runner| fs::write(runner.join("run.sh"), "#!/bin/sh\n")),
    };
    let machines = Arc::new(ProcessMachines::new(agent).unwrap());
    let mut options = ComputeOptions { machines: machines.clone(), ..ComputeOptions::default() };
    options.delays.preemption = Duration::from_millis(500);
    (with(options).await, machines)
}

fn alive(pid: &str) -> bool {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.trim()).join("stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

/// Waits for a complete line that the script wrote into its state folder.
async fn written(machines: &ProcessMachines, instance: &str, file: &str) -> String {
    let read = || fs::read_to_string(machines.directory(instance)?.join("run").join(file)).ok();
    eventually(file, || read().is_some_and(|text| text.ends_with('\n'))).await;
    read().unwrap().trim().to_owned()
}

const DAEMON: &str = "setsid sleep 300 & echo $! > $MIGLET_STATE_DIR/daemon; \
    env -i /bin/sleep 301 & echo $! > $MIGLET_STATE_DIR/bare; echo $$ > $MIGLET_STATE_DIR/self; sleep 302";

#[tokio::test]
async fn the_agent_gets_its_environment_and_its_words_reach_the_serial_console() {
    let script = "echo booted as $GCE_METADATA_HOST $MIGLET_MACHINE $MIGLET_EXTRA; ls $MIGLET_RUNNER_DIR; \
        test -d $MIGLET_DATA_DIR && echo ok > $MIGLET_STATE_DIR/ready; sleep 300";
    let (compute, machines) = scripted(script).await;
    create(&compute, &["linux-1"]).await;
    written(&machines, "linux-1", "ready").await;
    let host = compute.instance("linux-1").unwrap().metadata_host.unwrap();
    let output = rest(&compute, Method::GET, &format!("zones/{ZONE}/instances/linux-1/serialPort"), "").await.json();
    assert_eq!(output["contents"], format!("booted as {host} process extra\nrun.sh\n"));
    compute.assert_conforms();
}

#[tokio::test]
async fn deleting_an_instance_kills_even_what_left_its_session_or_its_environment() {
    let (compute, machines) = scripted(DAEMON).await;
    create(&compute, &["linux-1"]).await;
    let mut pids = Vec::new();
    for file in ["self", "daemon", "bare"] {
        pids.push(written(&machines, "linux-1", file).await);
    }
    assert!(pids.iter().all(|pid| alive(pid)));
    let delete = format!(r#"{{"instances":["zones/{ZONE}/instances/linux-1"]}}"#);
    let path = format!("zones/{ZONE}/instanceGroupManagers/linux/deleteInstances");
    assert_eq!(rest(&compute, Method::POST, &path, &delete).await.status, 200);
    eventually("linux-1 is gone", || compute.instance("linux-1").is_none()).await;
    assert!(!pids.iter().any(|pid| alive(pid)), "gone means dead");
    compute.assert_conforms();
}

#[tokio::test]
async fn dropping_the_simulator_leaves_no_process_and_no_file() {
    let (compute, machines) = scripted(DAEMON).await;
    create(&compute, &["linux-1", "linux-2"]).await;
    let mut pids = Vec::new();
    for instance in ["linux-1", "linux-2"] {
        for file in ["self", "daemon"] {
            pids.push(written(&machines, instance, file).await);
        }
    }
    let directory = machines.directory("linux-1").unwrap();
    compute.assert_conforms();
    drop(compute);
    assert!(!pids.iter().any(|pid| alive(pid)));
    // The lives still hold machines until the runtime has dropped them.
    eventually("the lives are over", || Arc::strong_count(&machines) == 1).await;
    drop(machines);
    assert!(!directory.exists());
}

#[tokio::test]
async fn an_agent_that_ends_well_switches_the_machine_off_and_a_crashed_one_comes_back() {
    let script = "echo started; test -f $MIGLET_STATE_DIR/again && exit 0; touch $MIGLET_STATE_DIR/again; \
        setsid sleep 300 & echo $! > $MIGLET_STATE_DIR/daemon; exit 3";
    let (compute, machines) = scripted(script).await;
    create(&compute, &["linux-1"]).await;
    let daemon = written(&machines, "linux-1", "daemon").await;
    assert!(alive(&daemon));
    eventually("it is off", || compute.instance("linux-1").unwrap().status == Some("TERMINATED")).await;
    assert!(!alive(&daemon), "off means everything is dead");
    let output = rest(&compute, Method::GET, &format!("zones/{ZONE}/instances/linux-1/serialPort"), "").await.json();
    assert_eq!(output["contents"], "started\nstarted\n", "the console of a machine that is off can still be read");
    compute.assert_conforms();
}

#[tokio::test]
async fn preemption_lets_the_agent_react_before_the_power_goes() {
    let script = "trap 'echo bye > $MIGLET_DATA_DIR/../../last-words; exit 0' TERM; \
        echo up > $MIGLET_STATE_DIR/up; while :; do sleep 0.05; done";
    let (compute, machines) = scripted(script).await;
    create(&compute, &["linux-1"]).await;
    written(&machines, "linux-1", "up").await;
    let words = machines.directory("linux-1").unwrap().parent().unwrap().join("last-words");
    compute.preempt("linux-1").unwrap();
    eventually("it is off", || compute.instance("linux-1").unwrap().status == Some("TERMINATED")).await;
    assert_eq!(fs::read_to_string(words).unwrap(), "bye\n");
    compute.assert_conforms();
}

#[tokio::test]
async fn a_hung_boot_runs_and_never_starts_an_agent() {
    let (compute, machines) = scripted("echo up > $MIGLET_STATE_DIR/up; sleep 300").await;
    compute.hung_boots(1);
    create(&compute, &["linux-1"]).await;
    running(&compute, &["linux-1"]).await;
    create(&compute, &["linux-2"]).await;
    written(&machines, "linux-2", "up").await;
    assert!(machines.agent_pid("linux-1").is_none() && machines.agent_pid("linux-2").is_some());
    compute.assert_conforms();
}
