//! Compact lines on stderr for the journal, which adds the time itself but simulated machines do not. The level can be
//! changed later: it stands in settings that may take a while to read. The latest lines are kept for diagnostics.

use std::{
    collections::VecDeque,
    fmt, io,
    sync::{Arc, Mutex, PoisonError},
};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::{Registry, fmt::MakeWriter, layer::SubscriberExt, reload, util::SubscriberInitExt};

/// What is kept of the latest lines, in bytes.
const KEPT: usize = 64 * 1024;

/// The log of this process; clones share it. The default one is of a process that logs some other way.
#[derive(Clone, Default)]
pub struct Log {
    level: Option<reload::Handle<LevelFilter, Registry>>,
    tail: Tail,
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").finish_non_exhaustive()
    }
}

/// Starts logging; once in a process.
#[must_use]
pub fn start(level: LevelFilter) -> Log {
    let (filter, handle) = reload::Layer::new(level);
    let tail = Tail::default();
    let lines =
        tracing_subscriber::fmt::layer().with_ansi(false).with_target(false).compact().with_writer(tail.clone());
    tracing_subscriber::registry().with(filter).with(lines).init();
    Log { level: Some(handle), tail }
}

impl Log {
    /// Changes what is logged.
    pub fn set_level(&self, level: LevelFilter) {
        if let Some(handle) = &self.level {
            // The registry lives as long as the process.
            handle.reload(level).ok();
        }
    }

    /// The latest lines.
    #[must_use]
    pub fn tail(&self) -> String {
        let kept = self.tail.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (front, back) = kept.as_slices();
        String::from_utf8_lossy(&[front, back].concat()).into_owned()
    }
}

/// Writes to stderr and keeps what was written last.
#[derive(Clone, Default)]
struct Tail(Arc<Mutex<VecDeque<u8>>>);

impl io::Write for &Tail {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(bytes);
        let surplus = kept.len().saturating_sub(KEPT);
        kept.drain(..surplus);
        drop(kept);
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
    use std::io::Write;

    use super::*;

    #[test]
    fn only_the_latest_lines_are_kept() {
        let log = Log::default();
        for number in 0..5000 {
            writeln!(&log.tail, "line {number}, and some more of it").expect("written");
        }
        let tail = log.tail();
        assert!(tail.len() <= KEPT && tail.ends_with("line 4999, and some more of it\n"), "{}", tail.len());
    }
}
