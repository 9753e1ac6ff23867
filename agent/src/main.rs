//! `miglet`: the agent's command line.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use miglet_agent::{
    Ports,
    backoff::Backoff,
    hook,
    settings::{self, Flags, Settings, SettingsError},
    shim, status,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::level_filters::LevelFilter;

/// EX_CONFIG of sysexits.h: starting again will not help.
const EXIT_CONFIG: u8 = 78;

/// The Miglet agent: runs one GitHub Actions runner on this machine for a Miglet operator.
#[derive(Parser)]
#[command(version, max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Connect to the operator and do its work until told to stop
    Run {
        #[command(flatten)]
        flags: Box<Flags>,
        /// off, error, warn, info, debug or trace
        #[arg(long, env = "MIGLET_LOG_LEVEL", default_value = "info")]
        log_level: LevelFilter,
    },
    /// Show what the agent on this machine knows
    Status {
        /// State directory of the agent
        #[arg(long, env = "MIGLET_STATE_DIR", default_value = "/run/miglet")]
        state_dir: PathBuf,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Supervise one runner (started by the agent)
    #[command(hide = true)]
    Shim(shim::ShimArgs),
    /// Tell which job runs (called by the runner)
    #[command(hide = true)]
    Hook {
        event: hook::Event,
        #[arg(long)]
        socket: PathBuf,
    },
}

type BoxError = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let is_hook = matches!(cli.command, Command::Hook { .. });
    match start(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        // A hook's failure would fail the user's job.
        Err(_) if is_hook => ExitCode::SUCCESS,
        Err(error) => {
            report(error.as_ref());
            let invalid = matches!(error.downcast_ref(), Some(SettingsError::Invalid(_)));
            if invalid { ExitCode::from(EXIT_CONFIG) } else { ExitCode::FAILURE }
        }
    }
}

/// One thread: the agent waits most of its life, and the shim more so.
#[tokio::main(flavor = "current_thread")]
async fn start(command: Command) -> Result<(), BoxError> {
    match command {
        Command::Run { flags, log_level } => run(&flags, log_level).await,
        Command::Status { state_dir, json } => show_status(state_dir, json).await,
        Command::Shim(args) => {
            log_to_stderr(LevelFilter::INFO);
            Ok(shim::run(args).await?)
        }
        Command::Hook { event, socket } => {
            let message = hook::Message::from_environment(event, |name| std::env::var(name).ok());
            hook::send(&socket, &message).await;
            Ok(())
        }
    }
}

async fn run(flags: &Flags, level: LevelFilter) -> Result<(), BoxError> {
    log_to_stderr(level);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = CancellationToken::new();
    let stopper = stop.clone();
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        stopper.cancel();
    });
    let Some(settings) = stop.run_until_cancelled(load(flags)).await.transpose()? else { return Ok(()) };
    for setting in &settings.sources {
        tracing::debug!(key = setting.key, value = setting.value, source = ?setting.source, "setting");
    }
    let ports = Ports::real(&settings);
    let ended = Box::pin(miglet_agent::run(settings, ports, stop)).await?;
    tracing::info!(?ended, "agent ended");
    Ok(())
}

/// The settings, however long the metadata server takes to come up.
async fn load(flags: &Flags) -> Result<Settings, SettingsError> {
    let mut backoff = Backoff::default();
    loop {
        match settings::load(flags, |name| std::env::var(name).ok()).await {
            Err(SettingsError::Metadata(error)) => {
                tracing::warn!(%error, "cannot read the settings yet");
                tokio::time::sleep(backoff.wait()).await;
            }
            other => return other,
        }
    }
}

async fn show_status(state_dir: PathBuf, json: bool) -> Result<(), BoxError> {
    let status = status::ask(&state_dir.join("agent.sock")).await?;
    let text = if json { serde_json::to_string(&status)? } else { status.to_string() };
    Ok(writeln!(io::stdout(), "{text}")?)
}

/// Compact lines for the journal, which adds the time itself but simulated machines do not.
fn log_to_stderr(level: LevelFilter) {
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(false)
        .with_target(false)
        .compact()
        .with_writer(io::stderr)
        .init();
}

fn report(error: &dyn std::error::Error) {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text = format!("{text}: {source}");
        cause = source.source();
    }
    // Nobody is left to tell that stderr is closed.
    writeln!(io::stderr(), "miglet: {text}").ok();
}
