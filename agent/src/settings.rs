//! The agent's settings: flags, then the environment, then the instance's metadata, then defaults. Every key stands
//! once, in [`KEYS`]; every problem is told, not only the first.

mod load;

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{machine, metadata::MetadataError, paths::Paths};

pub use load::{Flags, load};

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
    /// What kind of machine this is.
    pub machine: machine::Kind,
    /// Between two heartbeats, until the operator says otherwise.
    pub heartbeat: Duration,
    /// host or host:port of the metadata server.
    pub metadata_host: String,
    /// Identifies this boot.
    pub boot_id: String,
    /// The `miglet` executable, for the shim.
    pub program: PathBuf,
    /// Where each value came from.
    pub sources: Vec<Sourced>,
}

/// One key and where its value came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sourced {
    /// The key's name, as in its flag.
    pub key: String,
    /// The value, cut.
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
    /// An attribute of the instance.
    Metadata,
    /// Nobody.
    Default,
}

/// One setting.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Its flag, without dashes in front.
    pub name: &'static str,
    /// Its environment variable.
    pub variable: &'static str,
    /// Its instance attribute, if it may come from there.
    pub attribute: Option<&'static str>,
    /// Its value when nobody gives one.
    pub default: Option<&'static str>,
}

const fn key(name: &'static str, variable: &'static str, default: Option<&'static str>) -> Key {
    Key { name, variable, attribute: None, default }
}

const fn with_attribute(key: Key, attribute: &'static str) -> Key {
    Key { attribute: Some(attribute), ..key }
}

/// Every setting there is.
pub const KEYS: [Key; 10] = [
    with_attribute(key("endpoint", "MIGLET_ENDPOINT", None), "miglet-endpoint"),
    with_attribute(key("ca", "MIGLET_CA", None), "miglet-ca"),
    with_attribute(key("audience", "MIGLET_AUDIENCE", None), "miglet-audience"),
    key("runner-dir", "MIGLET_RUNNER_DIR", Some("/opt/actions-runner")),
    key("state-dir", "MIGLET_STATE_DIR", Some("/run/miglet")),
    key("data-dir", "MIGLET_DATA_DIR", Some("/var/lib/miglet")),
    key("machine", "MIGLET_MACHINE", Some("process")),
    key("heartbeat-seconds", "MIGLET_HEARTBEAT_SECONDS", Some("15")),
    key("metadata-host", "GCE_METADATA_HOST", Some(crate::metadata::DEFAULT_HOST)),
    key("boot-id", "MIGLET_BOOT_ID", None),
];

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
