//! Ends whatever a runner leaves behind. The shim is a subreaper, so every orphan below it becomes its child: killing
//! children until none is left ends them all, whatever session or group they fled to. Where the job has a cgroup, that
//! is killed as a whole as well.

use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use tokio::time::{Instant, sleep};

use super::cgroup::Cgroup;

/// A process in an uninterruptible wait cannot be waited for longer than this.
const DEADLINE: Duration = Duration::from_secs(2);

/// Collects dead children, and the exit code of the one asked for if it is among them.
///
/// Every child is collected here and nowhere else: adopted orphans too, or they would stay zombies for the whole job.
pub(super) fn reap(wanted: Option<Pid>) -> Option<i32> {
    let mut code = None;
    while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
        if Some(pid) == wanted {
            code = Some(exit_code(status));
        }
    }
    code
}

fn exit_code(status: WaitStatus) -> i32 {
    status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal)).unwrap_or(-1)
}

/// Kills everything below this process, and everything in the job's cgroup, and waits until it is gone, for a bounded
/// time.
pub(super) async fn kill_all(cgroup: Option<&Cgroup>) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        // First, because it is atomic: nothing forks its way out of it.
        let empty = cgroup.is_none_or(Cgroup::kill);
        reap(None);
        let children = children();
        if (children.is_empty() && empty) || Instant::now() > deadline {
            return;
        }
        for child in children {
            // Gone in between: the wanted end.
            rustix::process::kill_process(child, Signal::KILL).ok();
        }
        sleep(Duration::from_millis(2)).await;
    }
}

/// The children of every thread of this process.
fn children() -> Vec<Pid> {
    let Ok(threads) = std::fs::read_dir("/proc/self/task") else { return Vec::new() };
    let lists = threads.flatten().filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    lists.flat_map(|list| list.split_ascii_whitespace().filter_map(parse_pid).collect::<Vec<_>>()).collect()
}

fn parse_pid(text: &str) -> Option<Pid> {
    Pid::from_raw(text.parse().ok()?)
}
