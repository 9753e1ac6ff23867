//! The agent's settings: flags, then the environment, then a file, then the instance's metadata, then defaults.
//!
//! ```text
//!  flags > MIGLET_* > /etc/miglet/config.yaml > operator > metadata attributes miglet-* > defaults
//!     '-----------'-------------'-- collect ------'----------------'-------------------'--> check --> Settings
//! ```
//!
//! What the operator wants comes later, over the session, and outweighs the instance's template: the pool says it, and a
//! template is shared by machines of many ages. What stands on the machine itself was put there for this machine.
//!
//! Every key stands once, in [`KEYS`]: its flag, its variable, its help text and its line in the reference page follow
//! from that. Every problem is told, not only the first. An unknown key in the file or the environment is a mistake and
//! ends the start; an unknown attribute is only a warning, because one instance template serves agents of several
//! versions.

mod check;
mod collect;
mod file;
mod flags;
mod keys;
pub mod reference;
mod service;

use std::{collections::BTreeMap, fmt, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};
use tracing::level_filters::LevelFilter;

use crate::{hook::Scripts, installation::Installation, machine, metadata::MetadataError, paths::Paths, plan::Limits};

pub use collect::{Collected, Environment};
pub use flags::{Flags, InstallFlags};
pub use keys::{KEYS, Key};
pub use service::Start;

/// Everything the agent needs to know before it starts.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Host of the operator's gateway.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// PEM certificates that the gateway's certificate must lead to.
    pub ca: String,
    /// First part of the identity token's audience.
    pub audience: String,
    /// Where things are kept.
    pub paths: Paths,
    /// Which runner is used, and where it is had from.
    pub installation: Installation,
    /// What kind of machine this is.
    pub machine: machine::Kind,
    /// What jobs are and may do there.
    pub jobs: machine::Jobs,
    /// Between two heartbeats, until the operator says otherwise.
    pub heartbeat: Duration,
    /// The user's scripts around a job.
    pub hooks: Scripts,
    /// When a job, or a machine that nobody wants, ends.
    pub limits: Limits,
    /// The age beyond which no machine lives, its agent dead or alive; none where 0.
    pub maximum_lifetime: Duration,
    /// host or host:port of the metadata server.
    pub metadata_host: String,
    /// Identifies this boot.
    pub boot_id: String,
    /// Room on the disk for events. No key: many agents on one machine are the only ones that need less.
    pub spool_bytes: u64,
    /// What is logged.
    pub log_level: LevelFilter,
    /// The `miglet` executable, for the shim.
    pub program: PathBuf,
    /// Where each value came from.
    pub sources: Vec<Sourced>,
    /// What is odd about them, but no reason to stop.
    pub warnings: Vec<String>,
    /// What they were made from, without the operator's.
    collected: Collected,
}

impl Settings {
    /// These settings with what the operator wants, where nobody on this machine says otherwise: all of it or nothing.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn with_operator(&self, values: &[(&'static str, String)]) -> Result<Self, SettingsError> {
        let mut collected = self.collected.clone();
        collected.overlay(values);
        Ok(Self { collected: self.collected.clone(), ..collected.settings()? })
    }

    /// Whether somebody on this machine says which runner is used: then the operator need not be waited for.
    #[must_use]
    pub fn pin_runner(&self) -> bool {
        let local = [Source::Flag, Source::Environment, Source::File];
        self.sources.iter().any(|setting| setting.key == "runner-version" && local.contains(&setting.source))
    }
}

/// One key and where its value came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sourced {
    /// The key's name, as in its flag.
    pub key: String,
    /// The value, cut, without what is secret in it.
    pub value: String,
    /// Who gave it.
    pub source: Source,
}

/// Where a value came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// A command line flag.
    Flag,
    /// An environment variable.
    Environment,
    /// The configuration file.
    File,
    /// The operator, over the session.
    Operator,
    /// An attribute of the instance.
    Metadata,
    /// Nobody.
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Flag => "flag",
            Self::Environment => "environment",
            Self::File => "file",
            Self::Operator => "operator",
            Self::Metadata => "metadata",
            Self::Default => "default",
        })
    }
}

/// The settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// Something is missing or wrong; all of it is listed.
    #[error("the settings have {} problem(s):\n{}", .0.len(), .0.join("\n"))]
    Invalid(Vec<String>),
    /// The metadata server did not answer.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
}

/// Collects and checks the settings.
///
/// # Errors
/// When one is missing or wrong, or the metadata server does not answer: what it would have said is not known then.
pub async fn load(flags: &Flags, environment: &Environment) -> Result<Settings, SettingsError> {
    let mut collected = Collected::new(flags, environment);
    collected.ask_metadata().await?;
    collected.settings()
}

/// Values by key, with their source.
type Values = BTreeMap<&'static str, (String, Source)>;

#[cfg(test)]
mod tests;
