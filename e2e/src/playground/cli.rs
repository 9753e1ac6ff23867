//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// A whole world on this machine: Kubernetes, a simulated Google and GitHub, the real operator and agents.
#[derive(Debug, Parser)]
#[command(name = "cargo playground", max_term_width = 120, args_conflicts_with_subcommands = true)]
pub(super) struct Cli {
    /// Run this many jobs, delete the pool, print a line of figures, and end
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(super) jobs: Option<u32>,
    /// Use the cluster of this kubeconfig's current context; what is made there is taken back in the end
    #[arg(long, value_name = "FILE")]
    pub(super) kubeconfig: Option<PathBuf>,
    #[command(subcommand)]
    pub(super) command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Queue a job in the running playground and follow it to its result
    Job(Job),
    /// Make something go wrong in the running playground
    Fault {
        #[command(subcommand)]
        fault: Fault,
    },
    /// Serve a simulated Google Compute alone: prints one JSON line, serves until Ctrl-C
    Compute,
    /// Serve a simulated GitHub alone: prints one JSON line, serves until Ctrl-C
    Github,
}

#[derive(Debug, Args)]
pub(super) struct Job {
    /// Shell script, run by bash with -e
    pub(super) steps: String,
    /// Name of the job
    #[arg(long, default_value = "build")]
    pub(super) name: String,
    /// Labels the runner must have [default: self-hosted, linux]
    #[arg(long = "label", value_name = "LABEL")]
    pub(super) labels: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Fault {
    /// A zone runs out of capacity
    Stockout {
        #[arg(long, default_value = crate::world::ZONE)]
        zone: String,
        /// It has some again
        #[arg(long)]
        off: bool,
    },
    /// A region gets a vCPU quota
    Quota {
        /// vCPUs (a VM has 2); unlimited when absent
        vcpus: Option<u32>,
        #[arg(long, default_value = "us-central1")]
        region: String,
    },
    /// Google takes a VM back
    Preempt { vm: String },
    /// A VM's power fails
    PowerOff { vm: String },
    /// The next VMs boot and never start anything
    HungBoot {
        #[arg(default_value_t = 1)]
        count: u32,
    },
    /// Lists of instances show what was true this long ago
    StaleLists { seconds: f64 },
    /// Identity tokens come from a clock that is ahead (or behind, when negative)
    ClockSkew {
        #[arg(allow_negative_numbers = true)]
        seconds: i64,
    },
    /// Calls to GitHub or Compute go wrong, as far as their path contains PATH
    Http(Http),
    /// GitHub's App no longer sees the organisation: 404 on everything there
    LoseOrg,
    /// It sees it again
    RestoreOrg,
    /// Everything is well again
    Clear,
}

/// Which simulator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Service {
    Github,
    Compute,
}

#[derive(Debug, Args)]
pub(super) struct Http {
    pub(super) service: Service,
    /// Part of the path, e.g. /generate-jitconfig or createInstances
    pub(super) path: String,
    #[command(flatten)]
    pub(super) effect: Effect,
    /// Only this HTTP method
    #[arg(long)]
    pub(super) method: Option<String>,
    /// Only so many calls; all when absent
    #[arg(long)]
    pub(super) times: Option<u32>,
    /// Let so many calls through first
    #[arg(long, default_value_t = 0)]
    pub(super) skip: u32,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct Effect {
    /// Answer with this HTTP status, without the effect
    #[arg(long, value_parser = clap::value_parser!(u16).range(200..=599))]
    pub(super) status: Option<u16>,
    /// Answer late
    #[arg(long, value_name = "SECONDS")]
    pub(super) latency: Option<f64>,
    /// Do it, then close the connection instead of answering
    #[arg(long)]
    pub(super) lost_reply: bool,
    /// Close the connection without the effect
    #[arg(long)]
    pub(super) cut: bool,
    /// Never answer
    #[arg(long)]
    pub(super) hang: bool,
}
