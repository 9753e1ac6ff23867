//! The Miglet operator's process: reads its configuration, runs, and says why it ended.

use std::process::ExitCode;

use miglet_operator::{config::Config, run::run, telemetry};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

#[tokio::main]
async fn main() -> ExitCode {
    // One crypto provider for every TLS stack in this process, installed before anything can pick another.
    let installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let config = Config::load();
    if telemetry::start(&config.log).is_err() || installed.is_err() {
        return ExitCode::FAILURE;
    }
    let stop = CancellationToken::new();
    tokio::spawn(stop_on_signal(stop.clone()));
    match run(config, stop).await {
        Ok(()) => {
            info!("Stopped");
            ExitCode::SUCCESS
        }
        Err(error) => {
            error!(error = &error as &dyn std::error::Error, "Ended");
            ExitCode::FAILURE
        }
    }
}

/// SIGTERM and SIGINT both mean: finish the passes under way, release the lease.
async fn stop_on_signal(stop: CancellationToken) {
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        error!("Cannot listen for signals");
        return;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    info!("Stopping");
    stop.cancel();
}
