//! `miglet shim`: the runner's parent, which outlives every agent.
//!
//! ```text
//!  agent --- stdin: the JIT config, once ---> shim --- environment ---> bin/Runner.Listener run
//!    |                                        | |  <--- stdout, stderr (bounded) ---'
//!    '--- shim.sock: snapshots <-> orders ----' '--- runner.json: every snapshot, before anyone is told
//! ```
//!
//! It has its own session (a signal to the agent's group does not reach it), is a subreaper (what a job leaves behind
//! becomes its child and is killed) and owns the pipes (an agent's death breaks none). It decides nothing about the
//! fleet: it supervises one runner to its end, writes that end down, and goes.

mod leftovers;
mod listener;
mod progress;
mod server;
mod supervision;
mod verdict;

use std::{os::fd::AsFd, path::PathBuf, time::Duration};

use rustix::fs::Mode;
use secrecy::SecretString;
use tokio::{io::AsyncReadExt, net::unix::pipe, sync::mpsc, time::timeout};

use crate::{
    hook,
    paths::Paths,
    process::Process,
    record::{self, RecordError},
    runner::Runner,
};

pub use server::Order;

/// A JIT config is about 4 kB.
const JIT_LIMIT: u64 = 256 * 1024;
/// The agent writes it at once.
const JIT_DEADLINE: Duration = Duration::from_secs(30);

/// What a shim is told at its start; the JIT config comes over stdin.
#[derive(Clone, Debug, clap::Args)]
pub struct ShimArgs {
    /// State directory.
    #[arg(long)]
    pub state_dir: PathBuf,
    /// Data directory.
    #[arg(long)]
    pub data_dir: PathBuf,
    /// The runner's installation.
    #[arg(long)]
    pub runner_dir: PathBuf,
    /// The command that asked for this runner.
    #[arg(long)]
    pub command_id: String,
    /// The runner's name.
    #[arg(long)]
    pub runner_name: String,
    /// The user's script before the job.
    #[arg(long)]
    pub hook_job_started: Option<PathBuf>,
    /// The user's script after it.
    #[arg(long)]
    pub hook_job_completed: Option<PathBuf>,
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
    let paths = Paths { state: args.state_dir, data: args.data_dir, runner: args.runner_dir };
    let runner = Runner {
        command_id: args.command_id,
        name: args.runner_name,
        shim: Process::of(std::process::id().cast_signed()),
        ..Runner::default()
    };
    record::write(&paths.runner_record(), &runner)?;
    let scripts = hook::Scripts { job_started: args.hook_job_started, job_completed: args.hook_job_completed };
    let done = supervise(&paths, runner.clone(), &scripts).await;
    if let Err(error) = &done {
        record::write(&paths.runner_record(), &runner.failed(&error.in_full()))?;
    }
    std::fs::remove_file(paths.shim_socket()).ok();
    done
}

async fn supervise(paths: &Paths, runner: Runner, scripts: &hook::Scripts) -> Result<(), ShimError> {
    let (orders_in, orders) = mpsc::channel(8);
    let shared = supervision::Shared::new(runner.clone());
    let (publish, snapshots) = tokio::sync::watch::channel(runner);
    let agents = server::serve_agents(&paths.shim_socket(), snapshots, orders_in).map_err(failed("open its socket"))?;
    let program = std::env::current_exe().map_err(failed("find its own program"))?;
    hook::install(paths, &program, scripts).map_err(failed("write the hook scripts"))?;
    let hooks = server::serve_hooks(&paths.hook_socket(), shared.clone(), Vec::new())
        .map_err(failed("open the hook socket"))?;
    let jit = read_jit().await;
    supervision::Supervision::new(paths.clone(), shared, publish, orders)
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

/// The JIT config from stdin. It ends with a newline: an agent that died while writing must not start a runner with
/// half a registration.
async fn read_jit() -> Option<SecretString> {
    let stdin = std::io::stdin().as_fd().try_clone_to_owned().ok()?;
    let mut text = String::new();
    let read = async { pipe::Receiver::from_owned_fd(stdin)?.take(JIT_LIMIT).read_to_string(&mut text).await };
    timeout(JIT_DEADLINE, read).await.ok()?.ok()?;
    let jit = text.strip_suffix('\n')?;
    (!jit.is_empty()).then(|| SecretString::from(jit))
}
