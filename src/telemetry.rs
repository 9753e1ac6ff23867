//! The log: one subscriber, to stderr, JSON for machines or text for people.
//!
//! Nothing is filtered for secrets here: a secret is a `SecretString`, whose `Debug` shows nothing and which has no
//! `Display`, so that it cannot get into a log line in the first place.

use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    fmt::{self, MakeWriter},
    layer::SubscriberExt,
    util::{SubscriberInitExt, TryInitError},
};

use crate::config::{Log, LogFormat};

/// The log could not be started.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The level is none.
    #[error("reading the log level")]
    Level(#[from] tracing_subscriber::filter::ParseError),
    /// There is a log already.
    #[error("starting the log")]
    Started(#[from] TryInitError),
}

/// Starts the log of this process.
///
/// # Errors
/// The level cannot be read, or there is a log already.
pub fn start(log: &Log) -> Result<(), TelemetryError> {
    let filter = EnvFilter::try_new(&log.level)?;
    Ok(tracing_subscriber::registry().with(layer(log.format, std::io::stderr)).with(filter).try_init()?)
}

fn layer<W>(format: LogFormat, writer: W) -> Box<dyn Layer<Registry> + Send + Sync>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    match format {
        LogFormat::Json => fmt::layer().json().flatten_event(true).with_current_span(true).with_writer(writer).boxed(),
        LogFormat::Text => {
            let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
            fmt::layer().compact().with_ansi(terminal).with_writer(writer).boxed()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        sync::{Arc, Mutex},
    };

    use secrecy::SecretString;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, what: impl FnOnce()) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::registry().with(layer(format, move || writer.clone()));
        tracing::subscriber::with_default(subscriber, what);
        String::from_utf8(lines.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn a_json_line_is_an_object_with_the_fields_of_its_event() {
        let line = logged(LogFormat::Json, || tracing::info!(vm = "linux-1", "Phase changed"));
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(line["message"], "Phase changed");
        assert_eq!(line["vm"], "linux-1");
        assert_eq!(line["level"], "INFO");
    }

    #[test]
    fn a_secret_in_an_event_shows_nothing_of_itself() {
        for format in [LogFormat::Json, LogFormat::Text] {
            let secret = SecretString::from("hunter2");
            let line = logged(format, || tracing::info!(token = ?secret, "Read the Secret"));
            assert!(line.contains("Read the Secret") && !line.contains("hunter2"), "{line}");
        }
    }
}
