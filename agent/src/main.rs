//! `miglet`: the agent's command line.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Parser, Subcommand};
use miglet_agent::{
    Ports,
    backoff::Backoff,
    clock, doctor,
    drain::{self, Drained},
    environment_file, error, hook,
    installation::{InstallError, Installed, Linker, Origin},
    logging, machine,
    metadata::Metadata,
    paths::{Paths, make_dir},
    settings::{self, Collected, Environment, Flags, InstallFlags, KEYS, Settings, SettingsError, Start, reference},
    shim, status,
};
use rustix::process::DumpableBehavior;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::level_filters::LevelFilter;

/// EX_CONFIG of sysexits.h: starting again will not help.
const EXIT_CONFIG: u8 = 78;

/// At each, every source is tried.
const INSTALL_ATTEMPTS: u32 = 5;

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
        flags: Flags,
    },
    /// Install the configured runner now, as when an image is made
    Install {
        #[command(flatten)]
        flags: InstallFlags,
    },
    /// Show every setting, its value and where it came from
    Config {
        #[command(flatten)]
        flags: Flags,
        /// As JSON
        #[arg(long)]
        json: bool,
        /// Print the reference page instead
        #[arg(long, hide = true)]
        reference: bool,
    },
    /// Find out what keeps this machine from running jobs, and what to do about it
    Doctor {
        #[command(flatten)]
        flags: Flags,
        /// Where the forge is, for an Enterprise Server
        #[arg(long, default_value = "https://github.com", value_name = "URL")]
        github_url: http::Uri,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what the agent on this machine knows
    Status {
        /// The configuration file [env: MIGLET_CONFIG]
        #[arg(long)]
        config: Option<String>,
        /// State directory of the agent [env: MIGLET_STATE_DIR]
        #[arg(long)]
        state_dir: Option<String>,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Make the user that jobs run as, unless it is there
    #[command(hide = true)]
    CreateUser {
        #[command(flatten)]
        flags: Flags,
    },
    /// Become the runner's listener (started by the supervisor)
    #[command(hide = true)]
    Listener(shim::ListenerArgs),
    /// Take no new work on this machine, and come back when its runner has ended; a second drain aborts the job
    Drain {
        /// Interrupt a job that still runs after so many seconds; without it a job takes the time it takes
        #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(..=2_592_000))]
        deadline: Option<u32>,
        /// The configuration file [env: MIGLET_CONFIG]
        #[arg(long)]
        config: Option<String>,
        /// State directory of the agent [env: MIGLET_STATE_DIR]
        #[arg(long)]
        state_dir: Option<String>,
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

impl Command {
    /// The others are started by a unit, or by the agent, with the environment they need.
    fn is_asked_by_a_person(&self) -> bool {
        use Command::{Config, Doctor, Drain, Install, Status};
        matches!(self, Install { .. } | Config { .. } | Doctor { .. } | Status { .. } | Drain { .. })
    }
}

type BoxError = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Command::Listener(args) = &cli.command {
        let error = shim::become_listener(args);
        report(&error);
        return ExitCode::FAILURE;
    }
    // Registrations and keys pass through this memory: no core file, and no look into it but root's. Programs started
    // from here are their own again.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).ok();
    let is_hook = matches!(cli.command, Command::Hook { .. });
    if cli.command.is_asked_by_a_person()
        && let Err(error) = environment_file::adopt()
    {
        writeln!(io::stderr(), "miglet: warning: {} is not used: {error}", environment_file::ENVIRONMENT_FILE).ok();
    }
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
        Command::Run { flags } => {
            let ended = run(&flags).await;
            if let Err(error) = &ended {
                leave_word(&flags, error.as_ref()).await;
            }
            ended
        }
        Command::Install { flags: InstallFlags(flags) } => install(&flags).await,
        Command::Config { reference: true, .. } => Ok(write!(io::stdout(), "{}", reference::page())?),
        Command::Config { flags, json, .. } => show_config(&flags, json).await,
        Command::Doctor { flags, github_url, json } => examine(&flags, &github_url, json).await,
        Command::Status { config, state_dir, json } => {
            let flags = Flags::of([("config", config), ("state-dir", state_dir)]);
            show_status(&flags, json).await
        }
        Command::Drain { deadline, config, state_dir } => {
            drain_machine(&Flags::of([("config", config), ("state-dir", state_dir)]), deadline).await
        }
        Command::Shim(args) => {
            let log = logging::start(LevelFilter::INFO);
            keep(&log, &Paths::of_state(args.state_dir.clone()).shim_log());
            let ended = shim::run(args).await;
            if let Err(error) = &ended {
                log.note(&told(error));
            }
            Ok(ended?)
        }
        Command::CreateUser { flags } => {
            let _level = logging::start(LevelFilter::INFO);
            match Collected::new(&flags, &environment()).jobs()? {
                Some(jobs) => Ok(machine::Systemd::default().create_user(&jobs).await?),
                None => Ok(()),
            }
        }
        // Handled before there was a thread too many.
        Command::Listener(_) => Ok(()),
        Command::Hook { event, socket } => {
            let message = hook::Message::from_environment(event, |name| std::env::var(name).ok());
            hook::send(&socket, &message).await;
            Ok(())
        }
    }
}

async fn run(flags: &Flags) -> Result<(), BoxError> {
    let log = logging::start(LevelFilter::INFO);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = CancellationToken::new();
    let stopper = stop.clone();
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        stopper.cancel();
    });
    let Some(settings) = stop.run_until_cancelled(load(flags)).await.transpose()? else { return Ok(()) };
    settings.suit(Start::own(&environment()))?;
    keep(&log, &settings.paths.agent_log());
    log.set_level(settings.log_level);
    for warning in &settings.warnings {
        tracing::warn!(warning, "settings");
    }
    for setting in &settings.sources {
        tracing::debug!(key = setting.key, value = setting.value, source = %setting.source, "setting");
    }
    let ports = Ports::real(&settings, log);
    ports.machine.ready();
    let ended = Box::pin(miglet_agent::run(settings, ports, stop)).await?;
    tracing::info!(?ended, "agent ended");
    Ok(())
}

/// Keeps what is logged for those who look for a fault later. Without it there is still stderr.
fn keep(log: &logging::Log, file: &Path) {
    let folder = file.parent().map_or(Ok(()), |folder| make_dir(folder, 0o700));
    if let Err(error) = folder.and_then(|()| log.keep_in(file)) {
        tracing::warn!(%error, file = %file.display(), "the log is not kept");
    }
}

/// An agent that cannot even start says why where it can be read from outside the machine.
async fn leave_word(flags: &Flags, error: &(dyn std::error::Error + 'static)) {
    let host = Collected::new(flags, &environment()).text("metadata-host").unwrap_or_default();
    // Without a metadata server there is only the log.
    Metadata::new(host).put_status(&told(error)).await.ok();
}

fn environment() -> Environment {
    let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
    std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect()
}

/// The settings, however long the metadata server takes to come up.
async fn load(flags: &Flags) -> Result<Settings, SettingsError> {
    let mut backoff = Backoff::default();
    loop {
        match settings::load(flags, &environment()).await {
            Err(SettingsError::Metadata(error)) => {
                let problems = Collected::new(flags, &environment()).problems().join("; ");
                tracing::warn!(%error, problems, "cannot read the settings yet");
                tokio::time::sleep(backoff.wait()).await;
            }
            other => return other,
        }
    }
}

/// What `run` would do before it calls the operator, but not for ever. There may be no metadata server where images are
/// made.
async fn install(flags: &Flags) -> Result<(), BoxError> {
    let _level = logging::start(LevelFilter::INFO);
    let mut collected = Collected::new(flags, &environment());
    if let Err(error) = collected.ask_metadata().await {
        tracing::warn!(%error, "no settings from the instance's metadata");
    }
    let installation = collected.installation()?;
    let registered = PathBuf::from(collected.text("state-dir").unwrap_or_default()).join("registration.json").exists();
    let mut backoff = Backoff::default();
    for attempt in 1.. {
        match installation.install(&Linker::default(), !registered).await {
            Ok(Installed { dir, origin, .. }) => {
                let origin = match origin {
                    Origin::Image => "part of the image".to_owned(),
                    Origin::Cache => "installed before".to_owned(),
                    Origin::Source(host) => format!("fetched from {host}"),
                };
                return Ok(writeln!(io::stdout(), "{}: {origin}", dir.display())?);
            }
            Err(error @ InstallError::Sources { .. }) if attempt < INSTALL_ATTEMPTS => {
                let wait = backoff.wait();
                tracing::warn!(error = error::in_full(&error), retry_in_ms = wait.as_millis(), "not installed yet");
                tokio::time::sleep(wait).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Shows what is known even when it cannot be used; then the problems, as `run` would tell them.
async fn show_config(flags: &Flags, json: bool) -> Result<(), BoxError> {
    let mut collected = Collected::new(flags, &environment());
    let asked = collected.ask_metadata().await;
    let sourced = collected.sourced();
    if json {
        writeln!(io::stdout(), "{}", serde_json::to_string(&sourced)?)?;
    } else {
        writeln!(io::stdout(), "{:<25} {:<12} VALUE", "KEY", "FROM")?;
        for setting in &sourced {
            writeln!(io::stdout(), "{:<25} {:<12} {}", setting.key, setting.source, setting.value)?;
        }
        for key in KEYS.iter().filter(|key| !sourced.iter().any(|setting| setting.key == key.name)) {
            writeln!(io::stdout(), "{:<25} {:<12}", key.name, "unset")?;
        }
    }
    let unasked = asked.err().map(|error| error.to_string());
    for warning in collected.warnings().iter().chain(&unasked) {
        writeln!(io::stderr(), "miglet: warning: {warning}")?;
    }
    Ok(collected.settings().map(drop)?)
}

async fn examine(flags: &Flags, github: &http::Uri, json: bool) -> Result<(), BoxError> {
    let findings = doctor::examine(Collected::new(flags, &environment()), github).await;
    if json {
        writeln!(io::stdout(), "{}", serde_json::to_string(&findings)?)?;
    } else {
        for finding in &findings {
            writeln!(io::stdout(), "{finding}")?;
        }
    }
    match findings.iter().filter(|finding| finding.verdict == doctor::Verdict::Failure).count() {
        0 => Ok(()),
        count => Err(format!("{count} failure(s): this machine will not run jobs").into()),
    }
}

async fn show_status(flags: &Flags, json: bool) -> Result<(), BoxError> {
    let state_dir = Collected::new(flags, &environment()).text("state-dir").unwrap_or_default();
    let status = status::ask(&PathBuf::from(state_dir).join("agent.sock")).await?;
    let text = if json { serde_json::to_string(&status)? } else { status.to_string() };
    Ok(writeln!(io::stdout(), "{text}")?)
}

async fn drain_machine(flags: &Flags, deadline: Option<u32>) -> Result<(), BoxError> {
    let directory = |name| PathBuf::from(Collected::new(flags, &environment()).text(name).unwrap_or_default());
    let paths = Paths { state: directory("state-dir"), data: directory("data-dir"), runner: directory("runner-dir") };
    let deadline = deadline.map(|seconds| Duration::from_secs(seconds.into()));
    let id = format!("{}-{}", std::process::id(), clock::unix_ms());
    let told = match drain::drain(&paths, id, deadline).await? {
        Drained::Told(status) => match status.runner {
            Some(runner) => format!("the runner {} has ended", runner.name),
            None => "no runner was here; none will be".to_owned(),
        },
        Drained::WithoutAgent => "the runner has ended; no agent runs here".to_owned(),
        Drained::Nothing => "neither an agent nor a runner runs here".to_owned(),
    };
    Ok(writeln!(io::stdout(), "{told}")?)
}

fn report(error: &(dyn std::error::Error + 'static)) {
    // Nobody is left to tell that stderr is closed.
    writeln!(io::stderr(), "miglet: {}", told(error)).ok();
}

fn told(error: &(dyn std::error::Error + 'static)) -> String {
    match error.downcast_ref::<SettingsError>() {
        // A list, one to a line.
        Some(SettingsError::Invalid(_)) => error.to_string(),
        _ => error::in_full(error),
    }
}
