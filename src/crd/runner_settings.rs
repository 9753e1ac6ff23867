//! Which runner a pool's VMs start, and how.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which runner is started, and how. A change replaces idle VMs one at a time; busy ones finish.
///
/// Without `version` and `minimumVersion` the version is the one GitHub offers for the pool's url now. A runner in the
/// machine's image is used when its version will do; any other is fetched, verified and kept on the machine.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("!has(self.version) || !has(self.minimumVersion)", "at most one of version and minimumVersion may be set"))]
#[x_kube(validation = ("!has(self.checksums) || has(self.version)", "checksums belong to version: set it as well"))]
pub struct RunnerSettings {
    /// Exactly this version, such as `2.336.0`. GitHub gives no jobs to versions that are outdated for 30 days: see the
    /// pool's condition RunnerVersionCurrent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 5, max = 20), regex(pattern = r"^[0-9]{1,6}\.[0-9]{1,6}\.[0-9]{1,6}$"))]
    pub version: Option<String>,
    /// The oldest version in the machine's image that is used as it is, such as `2.330.0`. What is older is replaced on
    /// the machine by the version GitHub offers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 5, max = 20), regex(pattern = r"^[0-9]{1,6}\.[0-9]{1,6}\.[0-9]{1,6}$"))]
    pub minimum_version: Option<String>,
    /// SHA-256 of the archives of `version`, needed to fetch one that GitHub does not offer any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksums: Option<Checksums>,
    /// URLs of the runner's archive that are tried before GitHub's own, such as a bucket near the machines.
    /// `{version}` and `{arch}` (x64 or arm64) are filled in. What they give must have the known SHA-256. No
    /// passwords here: whoever can read the pool can read them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    #[schemars(length(max = 4), inner(length(min = 8, max = 256), regex(pattern = r"^https?://[^\s?#@]+$")))]
    pub sources: Vec<String>,
    /// Whether jobs reach the machine's metadata server, and with it the identity of the machine's service account.
    /// Defaults to Blocked.
    #[serde(default)]
    pub metadata_access: MetadataAccess,
    /// The user's own scripts around each job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hooks: Option<Hooks>,
}

/// SHA-256 of the runner's archives, hexadecimal.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Checksums {
    /// Of the archive for linux-x64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 64, max = 64), regex(pattern = r"^[0-9a-f]{64}$"))]
    pub x64: Option<String>,
    /// Of the archive for linux-arm64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 64, max = 64), regex(pattern = r"^[0-9a-f]{64}$"))]
    pub arm64: Option<String>,
}

/// Whether jobs reach the machine's metadata server.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MetadataAccess {
    /// They do not: no cloud identity for jobs.
    #[default]
    Blocked,
    /// They do.
    Allowed,
}

/// Scripts on the machine, run as the runner's user before and after each job. One that fails fails the job.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Hooks {
    /// Absolute path of a `.sh` file that is run before the first step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 5, max = 256), regex(pattern = r"^/[A-Za-z0-9._/-]+\.sh$"))]
    pub job_started: Option<String>,
    /// Absolute path of a `.sh` file that is run after the last step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 5, max = 256), regex(pattern = r"^/[A-Za-z0-9._/-]+\.sh$"))]
    pub job_completed: Option<String>,
}
