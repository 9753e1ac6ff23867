//! What agent and shim take while their job writes 100 MB/s.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use miglet_agent::record;
use miglet_proto::v1::{Command, OperatorMessage, RegisterRunner, command, operator_message::Message};
use tokio::process::Child;

use super::super::{gateway::Orders, memory::mib};
use crate::world::{Patience, Trouble};

/// Ten times a second, 10 MB in lines of 100 bytes, for five seconds; then how long that took.
const LISTENER: &str = r#"#!/bin/bash
echo "2026-11-21 00:00:00Z: Listening for Jobs"
echo "2026-11-21 00:00:01Z: Running job: build"
yes "$(printf 'x%.0s' {1..99})" | head -c 10000000 > lines
begun=$EPOCHREALTIME
for round in {1..50}; do
    cat lines
    next=$(((${begun/./} + round * 100000 - ${EPOCHREALTIME/./}) / 1000))
    if [ $next -gt 0 ]; then sleep "$(printf '0.%03d' $next)"; fi
done
echo $((${EPOCHREALTIME/./} - ${begun/./})) > took
sleep 1000
"#;
/// The bytes it writes, in MiB.
const WRITTEN: f64 = 500_000_000.0 / 1024.0 / 1024.0;

/// Figures in MiB.
pub(super) struct Busy {
    pub(super) agent: f64,
    pub(super) shim: f64,
    /// Of that, what it does not share with the agent: all but the program's text.
    pub(super) shim_own: f64,
    /// Taken in each second.
    pub(super) output: f64,
}

/// Puts the listener where the agent looks for it.
pub(super) fn prepare(runner: &Path) -> std::io::Result<()> {
    fs::create_dir_all(runner.join("bin"))?;
    let listener = runner.join("bin/Runner.Listener");
    fs::write(&listener, LISTENER)?;
    fs::set_permissions(listener, fs::Permissions::from_mode(0o755))
}

/// Has the agent in this folder run its listener, and looks at the peak of both.
pub(super) async fn measure(mut agent: Child, folder: &Path, orders: &Orders) -> Result<Busy, Trouble> {
    // What no runner would take, and no agent turns down.
    let files = format!(r#"{{".runner":"{0}",".credentials":"{0}"}}"#, STANDARD.encode("{}"));
    let register = RegisterRunner { runner_name: "measured".into(), encoded_jit_config: STANDARD.encode(files) };
    let command = Command { id: "register".into(), command: Some(command::Command::RegisterRunner(register)) };
    orders.send(Ok(OperatorMessage { message: Some(Message::Command(command)) })).await?;
    let took = folder.join("r/took");
    let look = || async { fs::read_to_string(&took).ok().and_then(|text| text.trim().parse::<f64>().ok()) };
    let took = Patience(Duration::from_secs(60)).until("the output", look, Option::is_some).await?;
    let runner = record::read(&folder.join("s/runner.json"))?.ok_or("there is no runner")?;
    let shim = runner.shim.and_then(|shim| u32::try_from(shim.pid).ok()).ok_or("there is no shim")?;
    let busy = Busy {
        agent: mib(agent.id().ok_or("the agent ended")?, "VmHWM")?,
        shim: mib(shim, "VmHWM")?,
        shim_own: mib(shim, "RssAnon")?,
        output: took.map_or(0.0, |microseconds| WRITTEN / microseconds * 1e6),
    };
    agent.kill().await?;
    for process in [runner.shim, runner.listener].into_iter().flatten() {
        process.signal(rustix::process::Signal::KILL);
    }
    Ok(busy)
}
