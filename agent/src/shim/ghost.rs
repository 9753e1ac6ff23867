//! Finds out that the listener is a ghost: it was offered a job that was gone when it asked for it. Its registration is
//! used up by that, and it waits on, for ever, without a word on stdout (known upstream, and open); only its diagnostic
//! log tells. That log belongs to the runner's user, so what is found there is a hint: the operator asks the forge.
//!
//! Looked at while the runner waits for its job, and only then: a job could write there too.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Seek, SeekFrom},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::OFlags;

use crate::lines::Lines;

/// How often the log is looked at.
pub(super) const PERIOD: Duration = Duration::from_secs(5);
/// A waiting listener writes a line a poll, which is a minute; the rest of more than this comes with the next look.
const LOOK_LIMIT: u64 = 1024 * 1024;
const LINE_LIMIT: usize = 1024;
const MARK: &[u8] = b"Skipping message Job";

/// Follows the log of one listener.
#[derive(Debug)]
pub(super) struct Log {
    directory: PathBuf,
    /// Which file was read, and how far.
    read: Option<(PathBuf, u64)>,
    lines: Lines,
}

impl Log {
    /// The log of the runner installed here.
    pub(super) fn new(runner: &Path) -> Self {
        Self { directory: runner.join("_diag"), read: None, lines: Lines::new(LINE_LIMIT) }
    }

    /// Whether what was written since the last look tells of a skipped job. A log that cannot be read tells nothing.
    pub(super) fn tells_of_a_ghost(&mut self) -> bool {
        let Some(newest) = self.newest() else { return false };
        let from = match &self.read {
            Some((path, from)) if *path == newest => *from,
            _ => {
                self.lines = Lines::new(LINE_LIMIT);
                0
            }
        };
        let bytes = read_from(&newest, from).unwrap_or_default();
        self.read = Some((newest, from + bytes.len() as u64));
        let mut found = false;
        self.lines.feed(&bytes, |line| found |= line.windows(MARK.len()).any(|part| part == MARK));
        found
    }

    /// `Runner_<start>-utc.log`: their names sort by time.
    fn newest(&self) -> Option<PathBuf> {
        let entries = std::fs::read_dir(&self.directory).ok()?.flatten();
        let name = |path: &PathBuf| path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"Runner_"));
        entries.map(|entry| entry.path()).filter(name).max()
    }
}

/// Never through a link, never waiting for a pipe.
fn read_from(path: &Path, from: u64) -> std::io::Result<Vec<u8>> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
    let mut file: File = OpenOptions::new().read(true).custom_flags(flags.cast_signed()).open(path)?;
    let mut bytes = Vec::new();
    if file.metadata()?.is_file() {
        file.seek(SeekFrom::Start(from))?;
        file.take(LOOK_LIMIT).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn write(dir: &Path, name: &str, text: &str) {
        let file = OpenOptions::new().create(true).append(true).open(dir.join("_diag").join(name));
        file.and_then(|mut file| file.write_all(text.as_bytes())).expect("written");
    }

    fn log() -> (tempfile::TempDir, Log) {
        let dir = tempfile::tempdir().expect("dir");
        std::fs::create_dir(dir.path().join("_diag")).expect("diag");
        let log = Log::new(dir.path());
        (dir, log)
    }

    #[test]
    fn a_skipped_job_is_found_once_wherever_a_look_cuts_its_line() {
        let (dir, mut log) = log();
        assert!(!log.tells_of_a_ghost(), "no log yet");
        write(dir.path(), "Runner_20261121-000000-utc.log", "[2026 INFO Listener] polling\n[2026 WARN] Skipping mess");
        assert!(!log.tells_of_a_ghost());
        write(dir.path(), "Runner_20261121-000000-utc.log", "age Job. Job message not found '7'. 404\n");
        assert!(log.tells_of_a_ghost());
        assert!(!log.tells_of_a_ghost(), "told once");
    }

    #[test]
    fn the_log_of_a_listener_that_was_started_again_is_read_from_its_start() {
        let (dir, mut log) = log();
        write(dir.path(), "Runner_20261121-000000-utc.log", &"x\n".repeat(500));
        write(dir.path(), "Worker_20261121-000001-utc.log", "Skipping message Job\n");
        assert!(!log.tells_of_a_ghost());
        write(dir.path(), "Runner_20261121-000002-utc.log", "Skipping message Job. gone\n");
        assert!(log.tells_of_a_ghost());
    }

    #[test]
    fn neither_links_nor_pipes_nor_floods_are_followed() {
        let (dir, mut log) = log();
        std::fs::write(dir.path().join("elsewhere"), "Skipping message Job\n").expect("file");
        let link = dir.path().join("_diag/Runner_1.log");
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), &link).expect("link");
        assert!(!log.tells_of_a_ghost());
        let pipe = dir.path().join("_diag/Runner_2.log");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).expect("pipe");
        assert!(!log.tells_of_a_ghost(), "and it comes back");
        write(dir.path(), "Runner_3.log", &"y".repeat(3 * LOOK_LIMIT as usize));
        write(dir.path(), "Runner_3.log", "\nSkipping message Job\n");
        let looks = (0..4).map(|_| log.tells_of_a_ghost()).collect::<Vec<_>>();
        assert_eq!(looks, [false, false, false, true]);
    }
}
