//! `miglet shim`: the runner's parent, which outlives every agent.
//!
//! ```text
//!  agent --- assignment.json ----------------> shim --- environment ---> bin/Runner.Listener run
//!    |------ handover.sock: the JIT config ----' | |  <--- stdout, stderr (bounded) ---'
//!    '------ shim.sock: snapshots <-> orders ----' '--- runner.json: every snapshot, before anyone is told
//! ```
//!
//! It has its own session (a signal to the agent's group does not reach it), is a subreaper (what a job leaves behind
//! becomes its child and is killed) and owns the pipes (an agent's death breaks none). On a machine run by systemd it has
//! a unit of its own, with the jobs' limits and user, and the job a cgroup of its own below. It decides nothing about
//! the fleet: it supervises one runner to its end, writes that end down, and goes.

mod become_listener;
mod cgroup;
mod confinement;
mod ghost;
mod handover;
mod leftovers;
mod listener;
mod progress;
mod server;
mod supervision;
mod verdict;

use std::{path::PathBuf, time::Duration};

use rustix::fs::Mode;
use serde::{Deserialize, Serialize};
use tokio::{sync::mpsc, time::timeout};

use crate::{
    hook,
    paths::Paths,
    process::Process,
    record::{self, RecordError},
    runner::Runner,
    supervisor::Registration,
    user::UserError,
};
use confinement::Confinement;

pub use become_listener::{ListenerArgs, ListenerError, become_listener};
pub use progress::Progress;
pub use server::Order;
pub(crate) use supervision::INTERRUPT_DEADLINE;

/// Where a shim finds everything else: a unit's command line is the same on every machine.
#[derive(Clone, Debug, clap::Args)]
pub struct ShimArgs {
    /// State directory of the agent that starts it.
    #[arg(long)]
    pub state_dir: PathBuf,
}

/// A shim's work, in a file of its state directory; only the registration's secret comes another way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// Whose runner.
    pub registration: Registration,
    /// Data directory.
    pub data_dir: PathBuf,
    /// The runner's installation.
    pub runner_dir: PathBuf,
    /// Who the runner runs as; the shim's own user unless given.
    pub user: Option<String>,
    /// The user's scripts around the job; none in an assignment of an agent that knows none.
    #[serde(default)]
    pub hooks: hook::Scripts,
}

/// The shim cannot do its work.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// The operating system refused something.
    #[error("the runner's supervisor could not {action}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// Nobody to run the runner as.
    #[error(transparent)]
    User(#[from] UserError),
    /// The record cannot be written.
    #[error(transparent)]
    Record(#[from] RecordError),
}

impl ShimError {
    fn in_full(&self) -> String {
        std::error::Error::source(self).map_or_else(|| self.to_string(), |source| format!("{self}: {source}"))
    }
}

/// Maps an I/O error to what was tried.
fn failed(action: &'static str) -> impl FnOnce(std::io::Error) -> ShimError {
    move |source| ShimError::Io { action, source }
}

/// Supervises one runner to its end.
///
/// # Errors
/// When it could not even begin, which its record says too; the runner's own failures are only there.
pub async fn run(args: ShimArgs) -> Result<(), ShimError> {
    detach()?;
    let assignment = Paths::of_state(args.state_dir.clone()).assignment();
    let assignment = std::fs::read(assignment).map_err(failed("read its assignment"))?;
    let assignment: Assignment =
        serde_json::from_slice(&assignment).map_err(|error| failed("understand its assignment")(error.into()))?;
    let paths = Paths { state: args.state_dir, data: assignment.data_dir, runner: assignment.runner_dir };
    let runner = Runner {
        command_id: assignment.registration.command_id,
        name: assignment.registration.runner_name,
        shim: Process::of(std::process::id().cast_signed()),
        ..Runner::default()
    };
    record::write(&paths.runner_record(), &runner)?;
    let done = supervise(&paths, runner.clone(), assignment.user.as_deref(), &assignment.hooks).await;
    if let Err(error) = &done {
        record::write(&paths.runner_record(), &runner.failed(&error.in_full()))?;
    }
    std::fs::remove_file(paths.shim_socket()).ok();
    done
}

async fn supervise(
    paths: &Paths,
    runner: Runner,
    user: Option<&str>,
    scripts: &hook::Scripts,
) -> Result<(), ShimError> {
    let (orders_in, orders) = mpsc::channel(8);
    let shared = supervision::Shared::new(runner.clone());
    let (publish, snapshots) = tokio::sync::watch::channel(runner);
    let agents = server::serve_agents(&paths.shim_socket(), snapshots, orders_in).map_err(failed("open its socket"))?;
    let program = std::env::current_exe().map_err(failed("find its own program"))?;
    hook::install(paths, &program, scripts).map_err(failed("write the hook scripts"))?;
    let confinement = Confinement::new(user)?;
    let uid = confinement.uid();
    let hooks =
        server::serve_hooks(&paths.hook_socket(), uid, shared.clone()).map_err(failed("open the hook socket"))?;
    confinement.own(&paths.runner).map_err(failed("give the runner its directory"))?;
    let jit = handover::receive(&paths.handover_socket()).await.map_err(failed("open the handover socket"))?;
    supervision::Supervision::new(paths.clone(), shared, confinement, publish, orders)
        .map_err(failed("watch its children"))?
        .finish(jit)
        .await;
    hooks.abort();
    // The record is on disk; connected agents get a moment to take the last snapshot from the socket.
    timeout(Duration::from_secs(2), agents.drained()).await.ok();
    Ok(())
}

/// Leaves the agent's session and becomes the parent of whatever the runner leaves behind.
fn detach() -> Result<(), ShimError> {
    // Refused only for a process group leader, which is what was wanted.
    rustix::process::setsid().ok();
    rustix::process::umask(Mode::from_raw_mode(0o077));
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|e| failed("become a subreaper")(e.into()))
}
