//! Compact lines on stderr. Under systemd each starts with its priority, `<4>`, which the journal takes off again, and
//! has no time of its own, which the journal adds; elsewhere it has its time. The level can be changed later: it stands
//! in settings that may take a while to read. The latest lines are kept for
//! diagnostics.

mod tail;

use std::{fmt, io, path::Path};

use rustix::fs::fstat;
use tracing::{Event, Level as Severity, Subscriber, level_filters::LevelFilter};
use tracing_subscriber::{
    Layer, Registry,
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::{Compact, Format, Writer},
    },
    layer::SubscriberExt,
    registry::LookupSpan,
    reload,
    util::SubscriberInitExt,
};

use tail::Tail;

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
    std::panic::set_hook(Box::new(|panic| tracing::error!("{}", panic.to_string().replace('\n', " "))));
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

    /// Keeps the latest lines in this file too, after those of an earlier process: what one said before it crashed is
    /// wanted most.
    ///
    /// # Errors
    /// When the file cannot be used.
    pub fn keep_in(&self, path: &Path) -> io::Result<()> {
        self.tail.keep_in(path)
    }

    /// Keeps a line that is said some other way.
    pub fn note(&self, line: &str) {
        self.tail.note(line);
    }

    /// The latest lines.
    #[must_use]
    pub fn tail(&self) -> String {
        self.tail.text()
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
    fn a_panic_is_among_the_lines_that_are_kept() {
        const FILE: &str = "MIGLET_TEST_LOG";
        if let Some(file) = std::env::var_os(FILE) {
            start(LevelFilter::INFO).keep_in(Path::new(&file)).expect("kept");
            panic!("first\nsecond");
        }
        let file = tempfile::NamedTempFile::new().expect("file");
        // Once in a process, so not in this one.
        let name = "logging::tests::a_panic_is_among_the_lines_that_are_kept";
        let mut other = std::process::Command::new(std::env::current_exe().expect("own"));
        let output = other.args(["--exact", name]).env(FILE, file.path()).output().expect("run");
        let lines = std::fs::read_to_string(file.path()).expect("log");
        assert!(!output.status.success() && lines.contains("first second"), "{lines:?}");
    }
}
