//! The latest lines: on stderr, in memory, and in a file for whoever comes later.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tracing_subscriber::fmt::MakeWriter;

/// What is kept of them in memory, in bytes.
pub(super) const KEPT: usize = 64 * 1024;
/// What the file holds until it is written anew with what is kept.
const FILE: usize = 2 * KEPT;

/// Writes to stderr and keeps what was written last.
#[derive(Clone, Default)]
pub(super) struct Tail(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    lines: VecDeque<u8>,
    file: Option<(File, usize)>,
}

impl Tail {
    /// Keeps the lines in this file as well, after those that are in it: of a process that is no more.
    pub(super) fn keep_in(&self, path: &Path) -> io::Result<()> {
        let file = File::options().read(true).append(true).create(true).mode(0o600).open(path)?;
        let mut earlier = Vec::new();
        (&file).take(FILE as u64).read_to_end(&mut earlier)?;
        let mut kept = self.lock();
        let own = std::mem::replace(&mut kept.lines, earlier.into());
        kept.file = Some((file, 0));
        kept.lines.extend(own);
        kept.trim();
        kept.write_anew()
    }

    /// A line that is on stderr anyway.
    pub(super) fn note(&self, line: &str) {
        self.lock().add(format!("{line}\n").as_bytes());
    }

    pub(super) fn text(&self) -> String {
        let kept = self.lock();
        let (front, back) = kept.lines.as_slices();
        String::from_utf8_lossy(&[front, back].concat()).into_owned()
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn add(&mut self, bytes: &[u8]) {
        self.lines.extend(bytes);
        self.trim();
        // A full disk costs lines in the file, nothing else.
        self.append(bytes).ok();
    }

    fn trim(&mut self) {
        let surplus = self.lines.len().saturating_sub(KEPT);
        self.lines.drain(..surplus);
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some((file, length)) = &mut self.file else { return Ok(()) };
        if *length + bytes.len() > FILE {
            return self.write_anew();
        }
        *length += bytes.len();
        file.write_all(bytes)
    }

    fn write_anew(&mut self) -> io::Result<()> {
        let Some((file, length)) = &mut self.file else { return Ok(()) };
        let lines = self.lines.make_contiguous();
        *length = lines.len();
        file.set_len(0)?;
        file.write_all(lines)
    }
}

impl Write for &Tail {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.lock().add(bytes);
        io::stderr().write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl<'a> MakeWriter<'a> for Tail {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    fn fill(tail: &Tail) {
        for number in 0..5000 {
            tail.note(&format!("line {number}, and some more of it"));
        }
    }

    #[test]
    fn only_the_latest_lines_are_kept() {
        let tail = Tail::default();
        fill(&tail);
        let text = tail.text();
        assert!(text.len() <= KEPT && text.ends_with("line 4999, and some more of it\n"), "{}", text.len());
    }

    #[test]
    fn lines_outlive_their_process_in_a_file_of_roots_own_that_never_grows_beyond_its_size() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("log");
        let first = Tail::default();
        first.note("before there was a file");
        first.keep_in(&path).expect("kept");
        first.note("the last words");
        let second = Tail::default();
        second.note("again");
        second.keep_in(&path).expect("kept");
        let all = "before there was a file\nthe last words\nagain\n";
        assert_eq!((second.text(), fs::read_to_string(&path).expect("read")), (all.to_owned(), all.to_owned()));
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        fill(&second);
        let written = fs::read_to_string(&path).expect("read");
        assert!(written.len() <= FILE && written.ends_with(&second.text()), "{}", written.len());
    }

    #[test]
    fn a_file_that_cannot_be_written_costs_no_line_elsewhere() {
        let tail = Tail::default();
        tail.keep_in(Path::new("/nonexistent/log")).expect_err("no such place");
        tail.note("said");
        assert_eq!(tail.text(), "said\n");
    }
}
