//! `cargo playground`: a whole world on one machine, and what one does with it.
//!
//! ```text
//!   playground            stage (world, pool "linux") -> live: the fleet, until Ctrl-C
//!   playground --jobs N   stage -> batch: jobs, deletion, one line of figures
//!   playground job        --HTTP--> the running playground's GitHub     (found through `state`)
//!   playground fault      --HTTP--> its GitHub or its Compute
//!   playground compute, github     one simulator alone
//! ```
//!
//! Started by cargo, it has cargo build the other binaries first: `cargo run` builds only this one.

mod alone;
mod batch;
mod build;
mod cli;
mod fault;
mod http;
mod job;
mod live;
mod signals;
mod stage;
mod state;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::Parser;

use self::cli::{Cli, Command};
use crate::world::Trouble;

pub use self::build::{build_agent, build_binaries};

/// What the command line asks for.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    match runtime.block_on(Box::pin(dispatch(cli))) {
        Ok(code) => code,
        Err(error) => failed(error.as_ref()),
    }
}

async fn dispatch(cli: Cli) -> Result<ExitCode, Trouble> {
    match cli.command {
        None => Box::pin(play(cli.jobs, cli.kubeconfig)).await,
        Some(Command::Job(job)) => job::run(&state::find().await?, job).await,
        Some(Command::Fault { fault }) => fault::run(&state::find().await?, fault).await,
        Some(Command::Compute) => alone::compute().await,
        Some(Command::Github) => alone::github().await,
    }
}

/// Sets the stage, plays, and clears it away, whatever happened in between.
async fn play(jobs: Option<u32>, kubeconfig: Option<std::path::PathBuf>) -> Result<ExitCode, Trouble> {
    state::none_running().await?;
    build_binaries().await?;
    let mut stage = stage::Stage::new();
    let acting = Box::pin(async {
        stage.set(kubeconfig.as_deref()).await?;
        match jobs {
            Some(jobs) => batch::run(&stage, jobs).await,
            None => live::show(&stage).await,
        }
    });
    let ended = tokio::select! {
        ended = acting => ended,
        () = signals::told_to_end() => Ok(signals::exit_code(jobs.is_some())),
    };
    stage.clear().await?;
    ended
}

/// Writes a line for the user; nobody is left to tell that stdout is closed.
pub(crate) fn say(line: &str) {
    writeln!(io::stdout(), "{line}").ok();
}

/// One clear line, with the causes.
pub(crate) fn failed(error: &dyn std::error::Error) -> ExitCode {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text = format!("{text}: {source}");
        cause = source.source();
    }
    writeln!(io::stderr(), "error: {text}").ok();
    ExitCode::FAILURE
}
