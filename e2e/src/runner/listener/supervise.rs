//! A job: the worker process, what is said to it, and how the listener ends.

use std::{process::Stdio, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, Command},
    time::Instant,
};

use super::{
    Listener, PAUSE, Stop,
    session::{Event, Polling},
};
use crate::runner::{
    exit, files,
    settings::INPUT,
    terminal,
    wire::{Conclusion, JobFault, Message, Order, Outcome},
    worker::{Orders, Work},
};

/// After SIGTERM the process has this long.
const UNLOAD: Duration = Duration::from_secs(30);
/// Exit code when that was not enough: what SIGTERM gives by default.
const TERMINATED_BY_SIGNAL: u8 = 143;
/// Asks for the job's result as exit code.
const TELL_RESULT: &str = "ACTIONS_RUNNER_RETURN_JOB_RESULT_FOR_HOSTED";
/// Attempts to report a result.
const REPORTS: u32 = 10;

impl Listener<'_> {
    /// Runs a job to its end; the listener's exit code.
    pub(super) async fn work(&mut self, order: Order, mut polling: Polling) -> u8 {
        terminal::stamped(&format!("Running job: {}", order.name));
        misbehave(&order);
        let (outcome, stopped) = match self.spawn(&order).await {
            Ok((child, orders)) => match self.supervise(child, orders, &mut polling).await {
                Some(end) => end,
                None => return TERMINATED_BY_SIGNAL,
            },
            Err(error) => {
                files::diagnose(self.root, &format!("could not start the worker: {error}"));
                (None, None)
            }
        };
        let outcome = outcome.unwrap_or_else(|| Outcome { conclusion: Conclusion::Failed, output: String::new() });
        self.report(order.id, &outcome).await;
        let word = outcome.conclusion.word();
        terminal::stamped(&format!("Job {} completed with result: {word}", order.name));
        drop(polling);
        self.finish(&order, outcome.conclusion, stopped).await
    }

    async fn finish(&self, order: &Order, conclusion: Conclusion, stopped: Option<Stop>) -> u8 {
        if order.fault == Some(JobFault::RetryableExit) {
            terminal::error("An error occurred: Object reference not set to an instance of an object.");
            return exit::RETRYABLE;
        }
        self.leave().await;
        if stopped.is_none() && self.settings.ephemeral {
            files::forget_configuration(self.root);
        }
        match std::env::var(TELL_RESULT).is_ok_and(|value| value == "1" || value == "true") {
            true => exit::HOSTED + conclusion.number(),
            false => exit::SUCCESS,
        }
    }

    async fn spawn(&self, order: &Order) -> std::io::Result<(Child, ChildStdin)> {
        let bin = self.root.join("bin");
        let mut command = Command::new(bin.join("Runner.Worker"));
        command.args(["spawnclient", "0", "1"]).current_dir(bin).process_group(0);
        // Not killed when we go: the end of its stdin tells it to stop its steps first.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        for (name, _) in std::env::vars().filter(|(name, _)| name.to_uppercase().starts_with(INPUT)) {
            command.env_remove(name);
        }
        let extra = std::fs::read_to_string(self.root.join(".env")).unwrap_or_default();
        command.envs(extra.lines().filter_map(|line| line.split_once('=')));
        let mut child = command.spawn()?;
        let mut orders = child.stdin.take().ok_or_else(|| std::io::Error::other("no pipe to the worker"))?;
        let work = Work {
            order: order.clone(),
            runner: self.settings.name.clone(),
            folder: self.root.join(&self.settings.work),
        };
        orders.write_all(format!("{}\n", serde_json::to_string(&work)?).as_bytes()).await?;
        Ok((child, orders))
    }

    /// Waits for the worker; `None` when SIGTERM left no time.
    async fn supervise(
        &mut self,
        mut child: Child,
        mut orders: ChildStdin,
        polling: &mut Polling,
    ) -> Option<(Option<Outcome>, Option<Stop>)> {
        let mut result = BufReader::new(child.stdout.take()?).lines();
        let mut stopped = None;
        let mut deadline = Instant::now() + Duration::from_secs(u64::from(u32::MAX));
        let outcome = loop {
            let order = tokio::select! {
                line = result.next_line() => break line.ok().flatten().and_then(|l| serde_json::from_str(&l).ok()),
                () = tokio::time::sleep_until(deadline) => return None,
                stop = self.signals.next() => {
                    terminal::line("Exiting...");
                    if stop == Stop::Terminate {
                        deadline = deadline.min(Instant::now() + UNLOAD);
                    }
                    stopped = Some(stop);
                    Orders::Shutdown
                }
                event = polling.next() => match event {
                    Event::Message(Message::Cancel(_)) => Orders::Cancel,
                    _ => continue,
                },
            };
            drop(orders.write_all(format!("{}\n", order.word()).as_bytes()).await);
        };
        drop(child.wait().await);
        Some((outcome, stopped))
    }

    async fn report(&self, id: u64, outcome: &Outcome) {
        let path = format!("/sessions/{}/jobs/{id}/result", self.session);
        for _ in 0..REPORTS {
            if self.client.post(&path, outcome).await.is_ok_and(|answer| !answer.status.is_server_error()) {
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Scripted faults of the listener itself.
fn misbehave(order: &Order) {
    match order.fault {
        Some(JobFault::Flood(lines)) => {
            for number in 0..lines {
                terminal::line(&format!(
                    "[RUNNER {} INFO Terminal] flood {number} {}",
                    terminal::now(),
                    "x".repeat(200)
                ));
            }
        }
        Some(JobFault::Daemon(seconds)) => {
            use std::os::unix::process::CommandExt;
            let mut daemon = std::process::Command::new("/bin/sleep");
            drop(daemon.arg(seconds.to_string()).process_group(0).stdin(Stdio::null()).spawn());
        }
        _ => {}
    }
}
