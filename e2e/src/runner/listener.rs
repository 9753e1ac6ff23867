//! Runner.Listener: configuration, session, polling, one worker process per job, signals, exit code.
//!
//! Polling is a task of its own, so that a poll is never cut off by a signal or by the worker's end and nothing it
//! fetched is lost on the way.

mod session;
mod supervise;

use std::{path::Path, time::Duration};

use tokio::signal::unix::{Signal, SignalKind, signal};

use self::session::{Event, Polling, Refused};
use super::{
    VERSION,
    client::Client,
    exit, files,
    settings::{self, Settings, SettingsError},
    terminal,
    wire::{Message, Order},
};

/// Environment that asks for a distinct exit code of a deprecated version.
const TELL_DEPRECATED: &str = "ACTIONS_RUNNER_RETURN_VERSION_DEPRECATED_EXIT_CODE";

/// How the process was asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    Interrupt,
    Terminate,
}

/// The signals that end a listener.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) -> Stop {
        tokio::select! {
            _ = self.interrupt.recv() => Stop::Interrupt,
            _ = self.terminate.recv() => Stop::Terminate,
        }
    }
}

/// Runs the command; the exit code.
pub(super) async fn run(root: &Path, arguments: &[String]) -> u8 {
    if let Err(error) = files::open_log(root) {
        terminal::error(&format!(
            "Unhandled exception. Access to the path '{}/_diag' is denied: {error}",
            root.display()
        ));
        return exit::ABORTED;
    }
    match arguments.first().map(String::as_str) {
        Some("run") => {}
        Some("--version") => {
            terminal::line(VERSION);
            return exit::SUCCESS;
        }
        other => {
            terminal::error(&format!("This stand-in runs JIT configs only, not {other:?}."));
            return exit::TERMINATED;
        }
    }
    match configure(root, arguments) {
        Ok(settings) => listen(root, settings).await,
        Err(error @ SettingsError::NotConfigured) => {
            terminal::error(&error.to_string());
            exit::TERMINATED
        }
        Err(error) => {
            terminal::error(&format!("An error occurred: {error}"));
            exit::TERMINATED
        }
    }
}

fn configure(root: &Path, arguments: &[String]) -> Result<Settings, SettingsError> {
    if let Some(jit) = settings::argument(arguments, "jitconfig") {
        settings::unpack(root, &jit)?;
    }
    Settings::read(root)
}

/// What the listener holds while it is connected.
struct Listener<'a> {
    root: &'a Path,
    settings: Settings,
    client: Client,
    signals: Signals,
    session: String,
}

async fn listen(root: &Path, settings: Settings) -> u8 {
    let Ok(mut signals) = Signals::listen() else { return exit::RETRYABLE };
    let client = Client::new(&settings);
    let session = match session::open(&client, &mut signals).await {
        Ok(session) => session,
        Err(refused) => return explain(refused),
    };
    terminal::line("");
    terminal::success("Connected to GitHub");
    terminal::line("");
    terminal::line(&format!("Current runner version: '{VERSION}'"));
    terminal::stamped("Listening for Jobs");
    let mut listener = Listener { root, settings, client, signals, session };
    listener.serve().await
}

fn explain(refused: Refused) -> u8 {
    match refused {
        Refused::Stopped => exit::SUCCESS,
        Refused::Conflict => exit::SESSION_CONFLICT,
        Refused::Deleted => {
            terminal::line(
                "Failed to create a session. The runner registration has been deleted from the server, please \
                 re-configure. Runner registrations are automatically deleted for runners that have not connected to \
                 the service recently.",
            );
            exit::TERMINATED
        }
        Refused::Clock => {
            terminal::error(
                "The local machine's clock may be out of sync with the server time by more than five minutes. Please \
                 sync your clock with your domain or internet time and try again.",
            );
            exit::TERMINATED
        }
        Refused::Deprecated => {
            let text = format!("Runner version v{VERSION} is deprecated and cannot receive messages.");
            terminal::error(&format!("An error occured: {text}"));
            let tell = std::env::var(TELL_DEPRECATED).is_ok_and(|value| value == "1" || value == "true");
            if tell { exit::DEPRECATED } else { exit::TERMINATED }
        }
    }
}

impl Listener<'_> {
    async fn serve(&mut self) -> u8 {
        let mut polling = Polling::start(&self.client, &self.session);
        loop {
            tokio::select! {
                _ = self.signals.next() => {
                    terminal::line("Exiting...");
                    return self.leave().await;
                }
                event = polling.next() => match event {
                    Event::Gone => {
                        terminal::line("The runner no longer exists on the server. Cleaning up local configuration.");
                        files::forget_configuration(self.root);
                        return exit::SUCCESS;
                    }
                    Event::Nonsense => {
                        terminal::error("An error occurred: Unexpected character encountered while parsing value: n.");
                        self.leave().await;
                        return exit::RETRYABLE;
                    }
                    Event::Message(Message::Job(id)) => if let Some(order) = self.acquire(id).await {
                        return self.work(order, polling).await;
                    },
                    Event::Message(Message::Update(version)) => return self.update(&version).await,
                    Event::Message(Message::Cancel(_)) => {}
                },
            }
        }
    }

    /// A job that is gone by now is only mentioned in the log: that is how a ghost is made.
    async fn acquire(&self, id: u64) -> Option<Order> {
        let path = format!("/sessions/{}/jobs/{id}/acquire", self.session);
        let answer = self.client.post(&path, &()).await;
        let order = answer.as_ref().ok().filter(|a| a.status.is_success()).and_then(|a| a.json());
        if order.is_none() {
            let why = answer.map_or_else(|e| e.to_string(), |a| a.status.to_string());
            files::diagnose(self.root, &format!("Skipping message Job. Job message not found '{id}'. {why}"));
        }
        order
    }

    /// Deletes the session; the files stay.
    async fn leave(&self) -> u8 {
        drop(self.client.delete(&format!("/sessions/{}", self.session)).await);
        exit::SUCCESS
    }

    /// A detached process finishes the update a moment after we are gone.
    async fn update(&self, version: &str) -> u8 {
        for text in [
            "Runner update in progress, do not shutdown runner.".to_owned(),
            format!("Downloading {version} runner"),
            "Waiting for current job finish running.".to_owned(),
            "Generate and execute update script.".to_owned(),
            "Runner will exit shortly for update, should be back online within 10 seconds.".to_owned(),
        ] {
            terminal::line(&text);
        }
        let mut script = std::process::Command::new("/bin/sh");
        script.args(["-c", "sleep 1; : > update.finished"]).current_dir(self.root);
        detach(&mut script);
        drop(script.spawn());
        self.leave().await;
        exit::UPDATING
    }
}

/// Nothing of ours is held by it, no signal of ours reaches it.
fn detach(command: &mut std::process::Command) {
    use std::{os::unix::process::CommandExt, process::Stdio};
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
}

/// Pause after a broken connection.
const PAUSE: Duration = Duration::from_secs(1);
