//! `miglet hook`: tells the shim which job runs here, from the environment GitHub's runner gives its hooks.
//!
//! The runner waits for its hooks without a timeout and fails the user's job when one exits non-zero. So this is
//! bounded to two seconds and always ends well; what it says is a hint that a job could say too.

mod scripts;

use std::{path::Path, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};

use crate::runner::{Identity, TEXT_LIMIT, clean};

pub use scripts::{Scripts, install};

/// The longest message a hook may send.
pub const MESSAGE_LIMIT: usize = 4096;

/// A hook never takes longer.
const DEADLINE: Duration = Duration::from_secs(2);

/// When the runner calls a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// Before the job's first step.
    JobStarted,
    /// After its last.
    JobCompleted,
}

impl Event {
    /// Every event.
    pub const ALL: [Self; 2] = [Self::JobStarted, Self::JobCompleted];

    /// As in the command line and the script's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::JobStarted => "job-started",
            Self::JobCompleted => "job-completed",
        }
    }

    /// The runner's setting that holds the script's path.
    #[must_use]
    pub fn runner_variable(self) -> &'static str {
        match self {
            Self::JobStarted => "ACTIONS_RUNNER_HOOK_JOB_STARTED",
            Self::JobCompleted => "ACTIONS_RUNNER_HOOK_JOB_COMPLETED",
        }
    }
}

/// One line of JSON over the hook socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Which hook speaks.
    pub event: Event,
    /// The job it speaks about.
    pub job: Identity,
}

/// A message that is not one.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// Larger than any honest one.
    #[error("hook message of more than {MESSAGE_LIMIT} bytes")]
    TooLong,
    /// Not the expected JSON.
    #[error("hook message is not valid")]
    Invalid(#[from] serde_json::Error),
    /// Names no job.
    #[error("hook message names no repository")]
    Empty,
}

impl Message {
    /// Reads what a hook, or anyone who can open its socket, has sent.
    ///
    /// # Errors
    /// When it is too long, not JSON, or empty.
    pub fn parse(bytes: &[u8]) -> Result<Self, MessageError> {
        if bytes.len() > MESSAGE_LIMIT {
            return Err(MessageError::TooLong);
        }
        let mut message: Self = serde_json::from_slice(bytes)?;
        let job = &mut message.job;
        for text in [&mut job.repository, &mut job.workflow, &mut job.key] {
            *text = clean(text, TEXT_LIMIT);
        }
        if job.repository.is_empty() { Err(MessageError::Empty) } else { Ok(message) }
    }

    /// From the environment of a hook; `get` reads a variable.
    pub fn from_environment(event: Event, get: impl Fn(&str) -> Option<String>) -> Self {
        let text = |name| clean(&get(name).unwrap_or_default(), TEXT_LIMIT);
        let job = Identity {
            repository: text("GITHUB_REPOSITORY"),
            workflow: text("GITHUB_WORKFLOW"),
            run_id: text("GITHUB_RUN_ID").parse().unwrap_or(0),
            run_attempt: text("GITHUB_RUN_ATTEMPT").parse().unwrap_or(0),
            key: text("GITHUB_JOB"),
        };
        Self { event, job }
    }
}

/// Sends the message within two seconds, or gives up quietly.
pub async fn send(socket: &Path, message: &Message) {
    let deliver = async {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        let mut stream = UnixStream::connect(socket).await?;
        stream.write_all(&line).await?;
        stream.shutdown().await?;
        // Closed by the shim once it has noted the job: a short job must not be over before.
        stream.read_to_end(&mut Vec::new()).await
    };
    // Whatever went wrong, the user's job goes on.
    timeout(DEADLINE, deliver).await.ok();
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_supervisor_that_never_answers_costs_two_seconds() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("hook.sock");
        let listener = tokio::net::UnixListener::bind(&path).expect("bound");
        let silent = tokio::spawn(async move {
            let stream = listener.accept().await;
            std::future::pending::<()>().await;
            drop(stream);
        });
        let message = Message::from_environment(Event::JobStarted, |_| None);
        let begun = tokio::time::Instant::now();
        send(&path, &message).await;
        assert_eq!(begun.elapsed(), Duration::from_secs(2));
        silent.abort();
    }

    #[test]
    fn the_environment_of_a_hook_names_the_job() {
        let message = Message::from_environment(Event::JobStarted, |name| {
            Some(
                match name {
                    "GITHUB_REPOSITORY" => "acme/app",
                    "GITHUB_WORKFLOW" => "ci",
                    "GITHUB_RUN_ID" => "18446744073709551615",
                    "GITHUB_RUN_ATTEMPT" => "2",
                    "GITHUB_JOB" => "build",
                    _ => return None,
                }
                .to_owned(),
            )
        });
        let bytes = serde_json::to_vec(&message).expect("json");
        let job = Message::parse(&bytes).expect("accepted").job;
        assert_eq!((job.repository.as_str(), job.run_id, job.run_attempt), ("acme/app", u64::MAX, 2));
    }

    #[test]
    fn an_oversized_message_is_refused() {
        assert!(matches!(Message::parse(&vec![b' '; MESSAGE_LIMIT + 1]), Err(MessageError::TooLong)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in any::<Vec<u8>>()) {
            Message::parse(&bytes).ok();
        }

        #[test]
        fn whatever_is_accepted_is_short_and_printable(repository in ".{1,600}", key in any::<String>()) {
            let job = Identity { repository, key, ..Identity::default() };
            let bytes = serde_json::to_vec(&Message { event: Event::JobStarted, job }).expect("json");
            if let Ok(message) = Message::parse(&bytes) {
                for text in [message.job.repository, message.job.key] {
                    prop_assert!(text.len() <= TEXT_LIMIT && !text.chars().any(char::is_control));
                }
            }
        }
    }
}
