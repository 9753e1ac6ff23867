//! What helps to find a fault, collected when the operator asks: the agent's log, what the shim and the runner wrote, and
//! facts about the machine. Bounded, and without what looks like a secret.
//!
//! The runner's directory is in the hands of jobs, and the agent is root: a link in it could make us read any file of the
//! machine and send it away. So nothing there is opened through a link, and only plain files with one name that belong to
//! the directory's owner are read.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

use miglet_proto::v1::DiagnosticsChunk;
use rustix::fs::{Dir, Mode, OFlags, open, openat};

use crate::{paths::Paths, redaction::redact};

/// The most of one runner's log.
const LOG_LIMIT: u64 = 56 * 1024;
/// The most of anything small.
const SMALL_LIMIT: u64 = 8 * 1024;
/// Bytes in one message; the gateway takes 64 KiB.
const CHUNK: usize = 32 * 1024;
/// Names looked at in the runner's directory of logs.
const NAMES: usize = 1000;
/// What tells most about a machine for its size.
const FACTS: [&str; 7] = [
    "/etc/os-release",
    "/proc/version",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/self/mountinfo",
    "/proc/pressure/memory",
];

/// What is asked for besides files: the agent's own words.
#[derive(Clone, Debug, Default)]
pub struct Words {
    /// Its latest log lines.
    pub log: String,
    /// Its status, as `miglet status` shows it.
    pub status: String,
}

/// Texts by name. Blocks, for a moment.
#[must_use]
pub fn collect(paths: &Paths, words: &Words) -> Vec<(&'static str, String)> {
    let diag = paths.runner.join("_diag");
    let texts = [
        ("status.txt", words.status.clone()),
        ("agent.log", words.log.clone()),
        ("shim.log", text(tail(&paths.shim_log(), SMALL_LIMIT))),
        ("runner.log", text(newest(&diag, "Runner_", LOG_LIMIT))),
        ("worker.log", text(newest(&diag, "Worker_", LOG_LIMIT))),
        ("system.txt", facts()),
    ];
    texts.map(|(name, text)| (name, redact(&text))).into()
}

/// The answer to a command, in pieces.
pub fn chunks(command_id: &str, texts: &[(&'static str, String)]) -> Vec<DiagnosticsChunk> {
    let mut chunks = Vec::new();
    let mut add = |name: &str, text: &str| {
        let sequence = u32::try_from(chunks.len()).unwrap_or(u32::MAX);
        let (command_id, name, text) = (command_id.to_owned(), name.to_owned(), text.to_owned());
        chunks.push(DiagnosticsChunk { command_id, name, text, last: false, sequence });
    };
    for (name, text) in texts {
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let (piece, tail) = rest.split_at(rest.floor_char_boundary(CHUNK));
            add(name, piece);
            rest = tail;
        }
    }
    add("", "");
    if let Some(last) = chunks.last_mut() {
        last.last = true;
    }
    chunks
}

/// Why there is nothing is worth as much.
fn text(read: io::Result<String>) -> String {
    read.unwrap_or_else(|error| format!("[{error}]\n"))
}

fn facts() -> String {
    let one = |path: &str| {
        let content = File::open(path).and_then(|file| {
            let mut content = String::new();
            file.take(SMALL_LIMIT).read_to_string(&mut content).map(|_| content)
        });
        format!("==> {path}\n{}\n", text(content))
    };
    FACTS.into_iter().map(one).collect()
}

/// The end of a file of our own.
fn tail(path: &Path, limit: u64) -> io::Result<String> {
    end_of(File::open(path)?, limit)
}

fn end_of(mut file: File, limit: u64) -> io::Result<String> {
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(limit)))?;
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The end of the newest log of this kind: its name holds its time.
fn newest(directory: &Path, prefix: &str, limit: u64) -> io::Result<String> {
    let directory = open(directory, OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let mut names = Vec::new();
    for entry in Dir::read_from(&directory)?.take(NAMES) {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let ours = name.starts_with(prefix) && Path::new(&name).extension().is_some_and(|kind| kind == "log");
        names.extend(ours.then_some(name));
    }
    let Some(name) = names.into_iter().max() else { return Ok(String::new()) };
    end_of(plain_file(directory, &PathBuf::from(name))?, limit)
}

fn plain_file(directory: OwnedFd, name: &Path) -> io::Result<File> {
    // A pipe must not hold us up, so nothing waits for a writer.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(openat(&directory, name, flags, Mode::empty())?);
    let (found, owner) = (file.metadata()?, File::from(directory).metadata()?.uid());
    if found.is_file() && found.nlink() == 1 && found.uid() == owner {
        Ok(file)
    } else {
        Err(io::Error::other("not a plain file of the runner's"))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn place() -> (tempfile::TempDir, Paths) {
        let dir = tempfile::tempdir().expect("dir");
        let paths = Paths { state: dir.path().join("s"), data: dir.path().join("d"), runner: dir.path().join("r") };
        std::fs::create_dir_all(paths.runner.join("_diag")).expect("made");
        std::fs::create_dir_all(&paths.state).expect("made");
        (dir, paths)
    }

    fn found(paths: &Paths, name: &str) -> String {
        let texts = collect(paths, &Words { log: "agent says ghp_abcdefghijklmnop".into(), status: "ok".into() });
        texts.into_iter().find(|(found, _)| *found == name).expect("there").1
    }

    #[test]
    fn the_newest_logs_and_the_agents_words_are_there_without_secrets() {
        let (_dir, paths) = place();
        for (name, text) in [("Runner_20260101-000000-utc.log", "old"), ("Runner_20261121-000000-utc.log", "new")] {
            std::fs::write(paths.runner.join("_diag").join(name), text).expect("written");
        }
        assert_eq!(found(&paths, "runner.log"), "new");
        assert_eq!(found(&paths, "agent.log"), "agent says [redacted]");
        assert!(found(&paths, "system.txt").contains("MemTotal"));
    }

    #[test]
    fn a_job_cannot_make_the_agent_read_other_files() {
        let (dir, paths) = place();
        let (key, diag) = (paths.state.join("agent.key"), paths.runner.join("_diag"));
        std::fs::write(&key, "5ecret").expect("written");
        symlink(&key, diag.join("Runner_1.log")).expect("linked");
        std::fs::hard_link(&key, diag.join("Worker_1.log")).expect("linked");
        for name in ["runner.log", "worker.log"] {
            assert!(!found(&paths, name).contains("5ecret"), "{name}");
        }
        std::fs::remove_dir_all(&diag).expect("removed");
        let elsewhere = dir.path().join("elsewhere");
        std::fs::create_dir(&elsewhere).expect("made");
        std::fs::write(elsewhere.join("Runner_1.log"), "5ecret").expect("written");
        symlink(&elsewhere, &diag).expect("linked");
        assert!(!found(&paths, "runner.log").contains("5ecret"));
    }

    #[test]
    fn a_log_of_any_size_becomes_pieces_of_a_bounded_one() {
        let (_dir, paths) = place();
        let log = paths.runner.join("_diag/Worker_1.log");
        std::fs::write(log, "ä".repeat(1024 * 1024)).expect("written");
        let chunks = chunks("c", &[("worker.log", found(&paths, "worker.log"))]);
        assert!(chunks.iter().all(|chunk| chunk.text.len() <= CHUNK && chunk.command_id == "c"));
        let total: usize = chunks.iter().map(|chunk| chunk.text.len()).sum();
        assert!(total > 50 * 1024 && total < 60 * 1024, "{total}");
        let ends: Vec<_> = chunks.iter().filter(|chunk| chunk.last).map(|chunk| chunk.sequence).collect();
        assert_eq!(ends, [u32::try_from(chunks.len()).expect("few") - 1]);
    }
}
