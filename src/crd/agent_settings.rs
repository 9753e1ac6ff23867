//! How the agents of a pool work. Everything in here reaches agents that already run.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How agents work. A change reaches running agents within seconds and replaces no VM. What a flag, a variable or the
/// configuration file on a machine says outweighs it.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct AgentSettings {
    /// How often an agent reports when there is nothing new. When absent: what the operator is started with, 15 unless
    /// changed. At most a third of the heartbeatTimeoutSeconds its VM was made with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 300))]
    pub heartbeat_period_seconds: Option<i32>,
    /// What agents log on their machines. When absent: what the machine's image or template says, Info unless changed.
    /// For one VM and a while, annotate it instead: miglet.dev/log-level=Debug.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_level: Option<LogLevel>,
    /// What agents watch over while a job runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guards: Option<Guards>,
}

/// What an agent logs: this and everything more important.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LogLevel {
    /// Only what needs a person.
    Error,
    /// What is odd as well.
    Warn,
    /// What happens.
    Info,
    /// Why it happens.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "Error",
            Self::Warn => "Warn",
            Self::Info => "Info",
            Self::Debug => "Debug",
            Self::Trace => "Trace",
        }
    }

    /// Reads one in either case, as people type it.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Error, Self::Warn, Self::Info, Self::Debug, Self::Trace]
            .into_iter()
            .find(|level| level.as_str().eq_ignore_ascii_case(text.trim()))
    }
}

/// What an agent watches over while a job runs. What is absent is left to the machine's own settings, which end a job
/// only at GitHub's own limit of five days.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Guards {
    /// A job that runs longer is interrupted, and GitHub shows it as cancelled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 60, max = 432000))]
    pub max_runtime_seconds: Option<i32>,
    /// Disk used where the runner works.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Threshold>,
    /// Memory used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Threshold>,
}

/// How much may be used, in percent.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("!has(self.actPercent) || self.warnPercent < self.actPercent", "warnPercent must be less than actPercent"))]
pub struct Threshold {
    /// From here on it is told.
    #[schemars(range(min = 1, max = 100))]
    pub warn_percent: i32,
    /// From here on the job is interrupted. When absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub act_percent: Option<i32>,
}
