//! Compact lines on stderr. Under systemd each starts with its priority, `<4>`, which the journal takes off again, and
//! has no time of its own, which the journal adds; elsewhere it has its time. The level can be changed later: it stands
//! in settings that may take a while to read. The latest lines are kept for diagnostics.

use std::{
    collections::VecDeque,
    fmt, io,
    sync::{Arc, Mutex, PoisonError},
};

use rustix::fs::fstat;
use tracing::{Event, Level as Severity, Subscriber, level_filters::LevelFilter};
use tracing_subscriber::{
    Layer, Registry,
    fmt::{
        FmtContext, FormatEvent, FormatFields, MakeWriter,
        format::{Compact, Format, Writer},
    },
    layer::SubscriberExt,
    registry::LookupSpan,
    reload,
    util::SubscriberInitExt,
};

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
    let lines = if to_the_journal(std::env::var("JOURNAL_STREAM").ok().as_deref()) {
        lines.map_event_format(|format| Prefixed(format.with_level(false).without_time())).boxed()
    } else {
        lines.boxed()
    };
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

/// Whether stderr is what systemd connected to the journal, which it names by device and inode: a child inherits the
/// variable even where its stderr leads elsewhere.
fn to_the_journal(stream: Option<&str>) -> bool {
    let parsed = stream.and_then(|stream| stream.split_once(':'));
    let Some((device, inode)) = parsed.and_then(|(d, i)| Some((d.parse().ok()?, i.parse().ok()?))) else {
        return false;
    };
    fstat(io::stderr()).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == (device, inode))
}

/// The priority in front.
struct Prefixed(Format<Compact, ()>);

impl<S, N> FormatEvent<S, N> for Prefixed
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        write!(writer, "<{}>", priority(*event.metadata().level()))?;
        self.0.format_event(context, writer, event)
    }
}

/// As syslog counts.
fn priority(level: Severity) -> u8 {
    match level {
        Severity::ERROR => 3,
        Severity::WARN => 4,
        Severity::INFO => 6,
        _ => 7,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn only_the_stream_that_stderr_really_is_counts_as_the_journal() {
        let stat = fstat(io::stderr()).expect("stderr");
        assert!(to_the_journal(Some(&format!("{}:{}", stat.st_dev, stat.st_ino))));
        for other in [None, Some(""), Some("8:1x"), Some(&*format!("{}:{}", stat.st_dev, stat.st_ino.wrapping_add(1)))]
        {
            assert!(!to_the_journal(other), "{other:?}");
        }
    }

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
