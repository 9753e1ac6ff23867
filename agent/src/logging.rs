//! Compact lines on stderr. Under systemd each starts with its priority, `<4>`, which the journal takes off again, and
//! has no time of its own, which the journal adds; elsewhere it has its time. The level can be changed later: it stands
//! in settings that may take a while to read.

use std::{fmt, io};

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

/// Changes what is logged.
pub type Level = reload::Handle<LevelFilter, Registry>;

/// Starts logging; once in a process.
#[must_use]
pub fn start(level: LevelFilter) -> Level {
    let (filter, handle) = reload::Layer::new(level);
    let lines = tracing_subscriber::fmt::layer().with_ansi(false).with_target(false).compact().with_writer(io::stderr);
    let lines = if to_the_journal(std::env::var("JOURNAL_STREAM").ok().as_deref()) {
        lines.map_event_format(|format| Prefixed(format.with_level(false).without_time())).boxed()
    } else {
        lines.boxed()
    };
    tracing_subscriber::registry().with(filter).with(lines).init();
    handle
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
}
