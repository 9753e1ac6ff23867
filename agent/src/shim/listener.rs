//! Starts the listener and reads what it says.

use std::{
    io,
    os::unix::process::CommandExt,
    process::{Child, Stdio},
};

use secrecy::{ExposeSecret, SecretString};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{ChildStderr, ChildStdout},
    task::JoinHandle,
};

use super::{confinement::Confinement, supervision::Shared};
use crate::{clock::Moment, hook, lines::Lines, paths::Paths};

/// The runner takes its registration from here and removes it from its children's environment.
const JIT_VARIABLE: &str = "ACTIONS_RUNNER_INPUT_JITCONFIG";
/// Asks for code 7 instead of 1 when the forge refuses the runner's version.
const TELL_DEPRECATED: &str = "ACTIONS_RUNNER_RETURN_VERSION_DEPRECATED_EXIT_CODE";
/// Longer lines are cut.
const LINE_LIMIT: usize = 4096;

/// Starts `bin/Runner.Listener run` in a process group of its own. Not run.sh: it turns every exit code into 0, and
/// a signal to it leaves the listener behind.
pub(super) fn start(paths: &Paths, confinement: &Confinement, jit: &SecretString) -> io::Result<Child> {
    let mut command = confinement.command(&paths.listener());
    command.current_dir(&paths.runner).process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for (name, _) in std::env::vars_os().filter(|(name, _)| is_ours(&name.to_string_lossy())) {
        command.env_remove(name);
    }
    for event in hook::Event::ALL {
        command.env(event.runner_variable(), paths.hook_script(event.name()));
    }
    command.env(TELL_DEPRECATED, "1").env(JIT_VARIABLE, jit.expose_secret()).spawn()
}

/// The agent's settings are no job's business, nor is what systemd tells a service. The state directory stays: it says to
/// which machine a process belongs where many simulated ones share a host.
fn is_ours(variable: &str) -> bool {
    const OF_THE_SERVICE: [&str; 9] = [
        "NOTIFY_SOCKET",
        "WATCHDOG_PID",
        "WATCHDOG_USEC",
        "INVOCATION_ID",
        "JOURNAL_STREAM",
        "SYSTEMD_EXEC_PID",
        "MEMORY_PRESSURE_WATCH",
        "MEMORY_PRESSURE_WRITE",
        "MEMORY_PRESSURE_FD",
    ];
    OF_THE_SERVICE.contains(&variable) || (variable.starts_with("MIGLET_") && variable != "MIGLET_STATE_DIR")
}

/// Reads both pipes to their ends.
pub(super) fn read(child: &mut Child, shared: &Shared) -> io::Result<Vec<JoinHandle<()>>> {
    let mut readers = Vec::with_capacity(2);
    if let Some(out) = child.stdout.take() {
        readers.push(tokio::spawn(read_lines(ChildStdout::from_std(out)?, shared.clone())));
    }
    if let Some(err) = child.stderr.take() {
        readers.push(tokio::spawn(read_lines(ChildStderr::from_std(err)?, shared.clone())));
    }
    Ok(readers)
}

/// Never waits for anything but the pipe, so the runner is never blocked by what becomes of its lines.
async fn read_lines(mut pipe: impl AsyncRead + Unpin, shared: Shared) {
    let (mut lines, mut buffer) = (Lines::new(LINE_LIMIT), vec![0; 16 * 1024]);
    while let Ok(count) = pipe.read(&mut buffer).await {
        let Some(bytes) = buffer.get(..count).filter(|b| !b.is_empty()) else { break };
        let now = Moment::now();
        lines.feed(bytes, |line| shared.line(line, now));
    }
    lines.finish(|line| shared.line(line, Moment::now()));
}
