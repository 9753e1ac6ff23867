//! Runs a job's scripts in bash: own process group, output kept, stopped as the real runner stops them.
//!
//! A kill that fails has nobody left to hit, which is as good.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::Command,
    sync::watch,
    task::JoinSet,
};

use super::worker::Orders;

/// Output kept of a job.
const KEPT: usize = 64 * 1024;
/// How long a stopped script has after SIGINT, and then after SIGTERM.
const PATIENCE: [Duration; 2] = [Duration::from_millis(7500), Duration::from_millis(2500)];
/// A daemon may hold the pipes after the script's end: they are read for this long.
const DRAIN: Duration = Duration::from_secs(2);

/// Times left-over processes are looked for, at most.
const LOOKS: u32 = 10;
/// Pause between two looks.
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

/// How a script ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Succeeded,
    Failed,
    Stopped(Orders),
}

/// The last bytes of an output.
#[derive(Clone, Debug, Default)]
pub(super) struct Tail(Arc<Mutex<VecDeque<u8>>>);

impl Tail {
    pub(super) fn add(&self, bytes: &[u8]) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(bytes);
        let excess = kept.len().saturating_sub(KEPT);
        kept.drain(..excess);
    }

    pub(super) fn text(&self) -> String {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(kept.make_contiguous()).into_owned()
    }
}

/// What scripts of one job share.
#[derive(Debug)]
pub(super) struct Shell {
    pub(super) environment: Vec<(&'static str, String)>,
    pub(super) workspace: PathBuf,
    pub(super) stop: watch::Receiver<Option<Orders>>,
    pub(super) output: Tail,
}

impl Shell {
    /// Runs `bash -e SCRIPT` in the workspace.
    pub(super) async fn run(&mut self, script: &Path) -> End {
        let mut command = Command::new("bash");
        command.arg("-e").arg(script).current_dir(&self.workspace).process_group(0).kill_on_drop(true);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => {
                self.output.add(format!("could not run bash: {error}\n").as_bytes());
                return End::Failed;
            }
        };
        let mut readers = JoinSet::new();
        if let (Some(out), Some(err)) = (child.stdout.take(), child.stderr.take()) {
            readers.spawn(copy(out, self.output.clone()));
            readers.spawn(copy(err, self.output.clone()));
        }
        let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).unwrap_or_default()));
        let end = tokio::select! {
            status = child.wait() => if status.is_ok_and(|s| s.success()) { End::Succeeded } else { End::Failed },
            order = stopped(&mut self.stop) => {
                halt(group, order, &mut child).await;
                End::Stopped(order)
            }
        };
        drop(tokio::time::timeout(DRAIN, async { while readers.join_next().await.is_some() {} }).await);
        end
    }

    /// A cancelled job still runs its last hook.
    pub(super) fn forget_cancel(&mut self) {
        if *self.stop.borrow() == Some(Orders::Cancel) {
            self.stop.mark_unchanged();
        }
    }

    /// Kills what the job left running. A process may fork, or be in the middle of an exec and show no environment:
    /// so until a later look finds nothing.
    pub(super) async fn clean_up(&self, tracking: &str) {
        for _ in 0..LOOKS {
            let killed = kill_marked(tracking);
            tokio::time::sleep(BETWEEN_LOOKS).await;
            if !killed && !kill_marked(tracking) {
                return;
            }
        }
    }
}

/// Kills processes that carry this tracking id, which they were born with; whether there was one.
fn kill_marked(tracking: &str) -> bool {
    let wanted = format!("RUNNER_TRACKING_ID={tracking}");
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    let marked = pids.filter(|pid| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|entry| entry == wanted.as_bytes())
    });
    marked.filter_map(Pid::from_raw).filter(|pid| kill_process(*pid, Signal::KILL).is_ok()).count() > 0
}

/// Waits for an order that was not yet obeyed.
async fn stopped(stop: &mut watch::Receiver<Option<Orders>>) -> Orders {
    loop {
        if stop.changed().await.is_err() {
            // The sender ends only after it said that the listener is gone.
            return std::future::pending().await;
        }
        if let Some(order) = *stop.borrow_and_update() {
            return order;
        }
    }
}

/// SIGINT, SIGTERM, SIGKILL; without patience when nobody waits for the result.
async fn halt(group: Option<Pid>, order: Orders, child: &mut tokio::process::Child) {
    let Some(group) = group else { return };
    if order != Orders::Orphaned {
        for (signal, patience) in [Signal::INT, Signal::TERM].into_iter().zip(PATIENCE) {
            kill_process_group(group, signal).unwrap_or_default();
            if tokio::time::timeout(patience, child.wait()).await.is_ok() {
                break;
            }
        }
    }
    kill_process_group(group, Signal::KILL).unwrap_or_default();
    drop(child.wait().await);
}

async fn copy(mut from: impl AsyncRead + Unpin, to: Tail) {
    let mut buffer = vec![0; 8192];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        to.add(buffer.get(..count).unwrap_or_default());
    }
}
