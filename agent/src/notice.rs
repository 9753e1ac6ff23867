//! The cloud's notices that it takes the machine away: long polls of the metadata server, one a value.
//!
//! The server answers when the value changes, or after a minute with the old one. Nothing it may answer ends the watch:
//! during maintenance of the host it says 503 for a while, and a network in trouble says anything.

use std::time::Duration;

use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{
    backoff::Backoff,
    metadata::{Metadata, Watched},
    plan::Input,
};

/// An answer that came sooner and says nothing new was no long poll: a server that ignores `wait_for_change` is asked
/// once a second instead of all the time.
const PAUSE: Duration = Duration::from_secs(1);

/// What is announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Notice {
    /// The host is maintained and the machine stopped for it. (One that is moved while it runs notices nothing.)
    Maintenance,
    /// The power goes within seconds.
    Preempted,
}

impl Notice {
    /// Where it is announced.
    const PATHS: [&'static str; 2] = ["instance/preempted", "instance/maintenance-event"];

    /// What a value means.
    #[must_use]
    pub fn read(path: &str, value: &str) -> Option<Self> {
        match (path, value.trim()) {
            ("instance/preempted", "TRUE") => Some(Self::Preempted),
            ("instance/maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE") => Some(Self::Maintenance),
            _ => None,
        }
    }
}

/// Watches for notices until the receiver is gone.
pub async fn watch(metadata: Metadata, inputs: mpsc::Sender<Input>) {
    let mut watches: JoinSet<()> =
        Notice::PATHS.into_iter().map(|path| watch_one(metadata.clone(), path, inputs.clone())).collect();
    tokio::select! {
        () = inputs.closed() => {}
        () = async { while watches.join_next().await.is_some() {} } => {}
    }
}

async fn watch_one(metadata: Metadata, path: &'static str, inputs: mpsc::Sender<Input>) {
    let (mut backoff, mut known) = (Backoff::default(), Watched::default());
    loop {
        let asked = Instant::now();
        match metadata.watch(path, &known.etag).await {
            Ok(seen) => {
                backoff.reset();
                if let Some(notice) = Notice::read(path, &seen.value).filter(|_| seen.value != known.value) {
                    tracing::warn!(?notice, "the cloud takes this machine away");
                    if inputs.send(Input::Notice(notice)).await.is_err() {
                        return;
                    }
                }
                let quick = asked.elapsed() < PAUSE && seen.value == known.value;
                known = seen;
                if quick {
                    sleep(PAUSE).await;
                }
            }
            Err(error) => {
                let wait = backoff.wait();
                tracing::debug!(%error, retry_in_ms = wait.as_millis(), "cannot watch for notices");
                sleep(wait).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_takes_the_machine_away_is_a_notice() {
        let [preempted, maintenance] = Notice::PATHS;
        assert_eq!(Notice::read(preempted, "TRUE\n"), Some(Notice::Preempted));
        assert_eq!(Notice::read(maintenance, "TERMINATE_ON_HOST_MAINTENANCE"), Some(Notice::Maintenance));
        for (path, value) in [
            (preempted, "FALSE"),
            (preempted, ""),
            (preempted, "<html>TRUE</html>"),
            (maintenance, "NONE"),
            (maintenance, "MIGRATE_ON_HOST_MAINTENANCE"),
            (maintenance, "TRUE"),
        ] {
            assert_eq!(Notice::read(path, value), None, "{path} {value}");
        }
    }
}
