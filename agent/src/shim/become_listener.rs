//! `miglet listener`: what happens between fork and exec of the listener, in a program of its own, for what a process
//! may do there is `unsafe` in Rust. It ends as the listener itself, under the same process id. Not setpriv: it leaves
//! the OOM score, and is not on every image.

use std::{io, os::unix::process::CommandExt, path::PathBuf, process::Command};

use rustix::{
    fs::Mode,
    process::{Gid, Resource, Rlimit, Uid, setrlimit, umask},
    thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};

use crate::user::{Account, UserError};

/// How to become the listener.
#[derive(Clone, Debug, clap::Args)]
pub struct ListenerArgs {
    /// Its user; the present one unless given.
    #[arg(long)]
    pub user: Option<String>,
    /// The file whose writer becomes a member of the job's cgroup.
    #[arg(long)]
    pub members: Option<PathBuf>,
    /// Its executable.
    pub program: PathBuf,
}

/// The listener was not started.
#[derive(Debug, thiserror::Error)]
pub enum ListenerError {
    /// The operating system refused something.
    #[error("could not {action}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// Nobody to become.
    #[error("could not start bin/Runner.Listener")]
    User(#[from] UserError),
}

/// Becomes the listener; comes back only when that failed. For a process with one thread: what is given up here is given
/// up by this thread.
#[must_use]
pub fn become_listener(args: &ListenerArgs) -> ListenerError {
    let mut command = Command::new(&args.program);
    command.arg("run");
    match confine(args, &mut command) {
        Ok(()) => ListenerError::Io { action: "start bin/Runner.Listener", source: command.exec() },
        Err(error) => error,
    }
}

fn confine(args: &ListenerArgs, command: &mut Command) -> Result<(), ListenerError> {
    let failed = |action| move |source| ListenerError::Io { action, source };
    if let Some(members) = &args.members {
        std::fs::write(members, "0").map_err(failed("enter the job's cgroup"))?;
    }
    expose().map_err(failed("give up the protection from the OOM killer"))?;
    umask(Mode::from_raw_mode(0o077));
    // A core dump fills the disk, and may hold the job's secrets.
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    setrlimit(Resource::Core, none).map_err(|error| failed("forbid core dumps")(error.into()))?;
    // Reading the accounts needs what is given up next.
    let Some(user) = &args.user else { return Ok(()) };
    // Whether root is allowed was decided before a registration was asked for.
    let account = Account::find("/etc".as_ref(), user, true)?;
    command.env("HOME", &account.home).env("SHELL", &account.shell).env("USER", user).env("LOGNAME", user);
    give_up(&account).map_err(|error| failed("become the jobs' user")(error.into()))
}

/// Agent and shim are protected; a job must be the first to go.
fn expose() -> io::Result<()> {
    const PATH: &str = "/proc/self/oom_score_adj";
    let protected = std::fs::read_to_string(PATH)?.trim().parse::<i32>().is_ok_and(|score| score < 0);
    if protected { std::fs::write(PATH, "0") } else { Ok(()) }
}

/// Groups first: without root they could not be changed any more.
fn give_up(account: &Account) -> rustix::io::Result<()> {
    let groups: Vec<Gid> = account.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    let (uid, gid) = (Uid::from_raw(account.uid), Gid::from_raw(account.gid));
    set_thread_groups(&groups)?;
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)
}
