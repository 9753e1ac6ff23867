//! `cargo measure`: figures of the release build, printed as one JSON line and never asserted.
//!
//! ```text
//!   measure fleet --vms 500   real API server and operator; agents in this process, runners simulated
//!   measure agent             the agent's own binary against a gateway of ours
//! ```

mod agent;
mod crowd;
mod fleet;
mod gateway;
mod memory;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::{
    playground::{failed, say},
    world::Trouble,
};

/// Prints figures of the release build, one JSON line.
#[derive(Debug, Parser)]
#[command(name = "cargo measure", max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A fleet on an instant cloud: how fast it gets up, what it costs
    Fleet {
        /// Size of the pool
        #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=5000))]
        vms: u32,
        /// With GitHub's rate limits
        #[arg(long)]
        limits: bool,
    },
    /// The agent alone
    Agent,
}

/// What the command line asks for.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    let line = runtime.block_on(Box::pin(async {
        match cli.command {
            Command::Fleet { vms, limits } => Box::pin(fleet::measure(vms, limits)).await,
            Command::Agent => Box::pin(agent::measure()).await,
        }
    }));
    match line {
        Ok(line) => {
            say(&line);
            ExitCode::SUCCESS
        }
        Err(error) => failed(error.as_ref()),
    }
}

/// Two digits are enough for a figure.
fn round(figure: f64) -> f64 {
    (figure * 100.0).round() / 100.0
}

/// A count as a figure; none of ours is larger than that.
fn count(number: usize) -> f64 {
    f64::from(u32::try_from(number).unwrap_or(u32::MAX))
}

/// The figures as one line.
fn line(figures: &impl serde::Serialize) -> Result<String, Trouble> {
    Ok(serde_json::to_string(figures)?)
}
