//! Hooks as a job meets them: the user's scripts, and a socket that anybody on the machine may try.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use miglet_proto::v1;
use tokio::time::timeout;

use crate::{
    operator::PATIENCE,
    world::{RUNNER, World},
};

#[tokio::test]
async fn the_users_scripts_of_settings_and_image_run_around_the_job() {
    let hooks = r#"bash -e "$ACTIONS_RUNNER_HOOK_JOB_COMPLETED" >> seen
echo "$? $ACTIONS_RUNNER_HOOK_JOB_STARTED" >> codes
echo "2026-11-21 00:00:02Z: Job"#;
    let runner = RUNNER.replace(
        "until [ -e end ]; do sleep 0.02; done\necho \"2026-11-21 00:00:02Z: Job",
        &format!("until [ -e end ]; do sleep 0.02; done\n{hooks}"),
    );
    let world = World::new(&runner).await;
    let at = |name: &str| world.dir.path().join(name);
    std::fs::write(at("before.sh"), format!("echo before $GITHUB_JOB > {}\n", at("r/before").display())).unwrap();
    std::fs::write(at("after.sh"), "echo after\n").unwrap();
    let env = format!("ACTIONS_RUNNER_HOOK_JOB_COMPLETED={}\nLANG=C\n", at("after.sh").display());
    std::fs::write(world.paths.runner.join(".env"), env).unwrap();
    let mut operator = world.operator().await;
    let before = at("before.sh").display().to_string();
    let _agent = world.agent_with(&operator, &[("MIGLET_HOOK_JOB_STARTED", &before)]);
    let mut session = world.busy_session(&mut operator).await;
    assert_eq!(session.report.job.as_ref().unwrap().run_attempt, 1, "named by our hook");
    world.end_job(&mut session).await;
    assert_eq!(world.runner_file("before").as_deref(), Some("before build-key"));
    assert_eq!(world.runner_file("seen").as_deref(), Some("after"));
    assert_eq!(world.runner_file(".env").as_deref(), Some("LANG=C"));
}

#[tokio::test]
async fn the_scripts_a_pool_names_run_around_the_job() {
    let world = World::new(RUNNER).await;
    let script = world.dir.path().join("before.sh");
    std::fs::write(&script, format!("echo before > {}\n", world.paths.runner.join("before").display())).unwrap();
    let mut operator = world.operator().await;
    let job_started_hook = script.display().to_string();
    let runner = Some(v1::RunnerSettings { job_started_hook, ..v1::RunnerSettings::default() });
    *operator.settings.lock().unwrap() = Some(v1::Settings { revision: "1".into(), agent: None, runner });
    let (_agent, mut session) = world.busy(&mut operator).await;
    assert_eq!(session.report.job.as_ref().unwrap().run_attempt, 1, "named by our hook");
    world.end_job(&mut session).await;
    assert_eq!(world.runner_file("before").as_deref(), Some("before"));
    assert_eq!(session.report.runner_version, "2.336.0", "as the runner says");
}

#[tokio::test]
async fn ten_thousand_calls_of_the_hook_socket_cost_the_job_its_own_time_only() {
    let world = World::new(RUNNER).await;
    let mut operator = world.operator().await;
    let (_agent, mut session) = world.busy(&mut operator).await;
    let shim = world.record().unwrap().shim.unwrap();
    let figure = |name: &str| {
        let status = std::fs::read_to_string(format!("/proc/{}/status", shim.pid)).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
        line.trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let open = || std::fs::read_dir(format!("/proc/{}/fd", shim.pid)).unwrap().count();
    let (memory, descriptors, reports) = (figure("VmRSS:"), open(), session.reports);
    let socket = world.paths.hook_socket();
    let begun = Instant::now();
    let flood = tokio::task::spawn_blocking(move || {
        for n in 0..10_000 {
            let mut stream = UnixStream::connect(&socket).expect("connected");
            let name = format!("evil/{n}");
            let job = format!(r#"{{"repository":"{name}","workflow":"w","run_id":{n},"run_attempt":1,"key":"k"}}"#);
            stream.write_all(format!(r#"{{"event":"job-completed","job":{job}}}"#).as_bytes()).ok();
            stream.shutdown(std::net::Shutdown::Write).ok();
            stream.read_to_end(&mut Vec::new()).ok();
        }
    });
    timeout(2 * PATIENCE, flood).await.expect("each call is answered soon").unwrap();
    println!("10000 calls in {:?}", begun.elapsed());
    assert!(figure("VmRSS:") < memory + 2048, "the shim grew from {memory} kB to {} kB", figure("VmRSS:"));
    assert!(open() <= descriptors + 2, "descriptors leak");
    world.end_job(&mut session).await;
    assert_eq!(session.report.job.as_ref().unwrap().repository, "acme/app", "the first word counts");
    // One a second, and what the job's end has to say. Only now the reports of the flood have all been taken.
    let (told, expected) = (session.reports - reports, begun.elapsed().as_secs() + 5);
    assert!(told as u64 <= expected, "{told} reports where there was news for {expected}");
}

#[tokio::test]
async fn a_job_that_holds_the_socket_open_delays_nobody_for_long() {
    let world = World::new(RUNNER).await;
    let mut operator = world.operator().await;
    let (_agent, mut session) = world.idle(&mut operator).await;
    let silent = UnixStream::connect(world.paths.hook_socket()).unwrap();
    let begun = Instant::now();
    world.start_job(&mut session).await;
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    drop(silent);
}

#[tokio::test]
async fn a_hook_without_an_agent_ends_well_and_soon() {
    let world = World::new(RUNNER).await;
    let socket = world.dir.path().join("nobody.sock");
    let hook = world.command("hook").arg("job-started").arg("--socket").arg(socket).status();
    assert!(timeout(Duration::from_secs(5), hook).await.expect("bounded").unwrap().success());
}
