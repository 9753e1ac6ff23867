//! The lines a runner prints, byte for byte.
//!
//! Writing may fail when nobody reads any more; the real runner does not care either.

use std::io::Write;

use jiff::{Timestamp, tz::TimeZone};

/// A line on stdout.
pub(super) fn line(text: &str) {
    let mut out = std::io::stdout().lock();
    drop(writeln!(out, "{text}").and_then(|()| out.flush()));
}

/// A line on stderr.
pub(super) fn error(text: &str) {
    drop(writeln!(std::io::stderr().lock(), "{text}"));
}

/// A line on stdout with the time before it.
pub(super) fn stamped(text: &str) {
    line(&format!("{}: {text}", now()));
}

/// A line on stdout with a check mark.
pub(super) fn success(text: &str) {
    line(&format!("√ {text}"));
}

/// `2026-11-21 00:00:00Z`, the .NET "u" format.
#[allow(clippy::disallowed_methods, reason = "the stand-in is another program with a clock of its own")]
pub(super) fn now() -> String {
    Timestamp::now().to_zoned(TimeZone::UTC).strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}
