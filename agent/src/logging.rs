//! Compact lines on stderr for the journal, which adds the time itself but simulated machines do not. The level can be
//! changed later: it stands in settings that may take a while to read.

use std::io;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::{Registry, layer::SubscriberExt, reload, util::SubscriberInitExt};

/// Changes what is logged.
pub type Level = reload::Handle<LevelFilter, Registry>;

/// Starts logging; once in a process.
#[must_use]
pub fn start(level: LevelFilter) -> Level {
    let (filter, handle) = reload::Layer::new(level);
    let lines = tracing_subscriber::fmt::layer().with_ansi(false).with_target(false).compact().with_writer(io::stderr);
    tracing_subscriber::registry().with(filter).with(lines).init();
    handle
}
