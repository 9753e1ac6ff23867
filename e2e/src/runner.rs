//! A stand-in for actions/runner: same files, lines, signals and exit codes; runs a job's real shell steps.
//!
//! The real runner is not to be had from any package registry, so this one is written from its published behaviour and
//! talks to our simulated GitHub ([`wire`]). One executable plays both processes, told apart by the name it is
//! started by, as the links of [`install`] name it:
//!
//! ```text
//!   bin/Runner.Listener run   JIT config -> files -> session -> poll -> acquire --spawns--> bin/Runner.Worker spawnclient
//!        lines on stdout, exit code          <- one JSON line: conclusion, output --------     hooks, steps (bash)
//! ```
//!
//! One thread, plain HTTP/1.1: hundreds run at a time.

mod client;
mod files;
mod install;
mod listener;
mod settings;
mod steps;
mod terminal;
pub mod wire;
mod worker;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

pub use self::install::{InstallError, install};

/// The version this stands in for.
pub const VERSION: &str = "2.336.0";

/// Exit codes of Runner.Listener.
pub mod exit {
    /// Job done, asked to stop, or the runner no longer exists.
    pub const SUCCESS: u8 = 0;
    /// Bad configuration, deleted registration, refused version.
    pub const TERMINATED: u8 = 1;
    /// An unexpected failure; worth another start.
    pub const RETRYABLE: u8 = 2;
    /// A self-update of a single-job runner is under way.
    pub const UPDATING: u8 = 4;
    /// Another listener held the session all the time.
    pub const SESSION_CONFLICT: u8 = 5;
    /// The version is deprecated, and the caller wanted to know.
    pub const DEPRECATED: u8 = 7;
    /// An unhandled exception.
    pub const ABORTED: u8 = 134;
    /// Base of the job result codes for hosted runners.
    pub const HOSTED: u8 = 100;
}

/// Plays the listener or the worker, by the name the process was started as.
#[must_use]
pub fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let called = PathBuf::from(arguments.first().map(String::as_str).unwrap_or_default());
    let root = root(&called);
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return ExitCode::from(exit::RETRYABLE);
    };
    let code = if called.file_name().is_some_and(|name| name == "Runner.Worker") {
        runtime.block_on(worker::run(&root))
    } else {
        runtime.block_on(listener::run(&root, arguments.get(1..).unwrap_or_default()))
    };
    // A daemon that holds a pipe must not hold us: blocked reads are left behind.
    runtime.shutdown_background();
    ExitCode::from(code)
}

/// The runner's folder: above `bin`, through which this was started. The link is not followed, as all runners share its target.
fn root(called: &Path) -> PathBuf {
    let absolute = std::path::absolute(called).unwrap_or_else(|_| called.to_owned());
    absolute.parent().and_then(Path::parent).map(Path::to_owned).unwrap_or_default()
}
