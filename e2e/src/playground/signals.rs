//! Ctrl-C, termination, a closed terminal: all of them end the playground in order.

use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};

/// Returns when this process is told to end.
pub(super) async fn told_to_end() {
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let waits = kinds.into_iter().filter_map(|kind| signal(kind).ok());
    let waits = waits.map(|mut signal| Box::pin(async move { signal.recv().await }));
    futures::future::select_all(waits).await;
}

/// Ctrl-C is how a playground ends, but jobs that were cut short are no success.
pub(super) fn exit_code(cut_short: bool) -> ExitCode {
    if cut_short { ExitCode::from(130) } else { ExitCode::SUCCESS }
}
