//! The runner's record on disk: how a new agent learns what the shim saw while no agent was there.

use std::path::Path;

use crate::{durable, runner::Runner};

/// The record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file system said no.
    #[error("could not {action} the runner's record {path}")]
    Io {
        /// read or write.
        action: &'static str,
        /// Which file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// Not a record.
    #[error("the runner's record {path} is not valid")]
    Invalid {
        /// Which file.
        path: String,
        /// Why.
        source: serde_json::Error,
    },
}

/// Reads the record; `None` when no runner was ever started.
///
/// # Errors
/// When the file is there but unreadable or damaged.
pub fn read(path: &Path) -> Result<Option<Runner>, RecordError> {
    let shown = || path.display().to_string();
    let bytes = durable::read(path).map_err(|source| RecordError::Io { action: "read", path: shown(), source })?;
    bytes
        .map(|bytes| serde_json::from_slice(&bytes))
        .transpose()
        .map_err(|source| RecordError::Invalid { path: shown(), source })
}

/// Writes the record so that it survives a crash at any instant.
///
/// # Errors
/// When it cannot be written.
pub fn write(path: &Path, runner: &Runner) -> Result<(), RecordError> {
    let shown = || path.display().to_string();
    let bytes = serde_json::to_vec(runner).map_err(|source| RecordError::Invalid { path: shown(), source })?;
    durable::write(path, &bytes).map_err(|source| RecordError::Io { action: "write", path: shown(), source })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::runner::{Exit, ExitKind, Identity, Job, JobResult, Phase};

    proptest! {
        #[test]
        fn what_is_written_is_read_and_what_is_torn_is_refused(
            text in any::<String>(), code in any::<i32>(), run_id in any::<u64>(), keep in 0usize..300,
        ) {
            let runner = Runner {
                name: text.clone(),
                phase: Phase::Exited,
                job: Some(Job {
                    name: text.clone(),
                    identity: Identity { run_id, ..Identity::default() },
                    result: Some(JobResult::Abandoned),
                    ..Job::default()
                }),
                exit: Some(Exit { code, kind: ExitKind::Failed, detail: text }),
                ..Runner::default()
            };
            let dir = tempfile::tempdir().expect("dir");
            let path = dir.path().join("runner.json");
            write(&path, &runner).expect("written");
            prop_assert_eq!(read(&path).expect("read"), Some(runner));
            let whole = std::fs::read(&path).expect("bytes");
            std::fs::write(&path, &whole[..keep.min(whole.len() - 1)]).expect("torn");
            prop_assert!(read(&path).is_err());
        }

        #[test]
        fn any_bytes_are_survived(bytes in any::<Vec<u8>>()) {
            let dir = tempfile::tempdir().expect("dir");
            let path = dir.path().join("runner.json");
            std::fs::write(&path, &bytes).expect("written");
            read(&path).ok();
        }
    }
}
