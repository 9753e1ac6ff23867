//! Deadlines of a VM's life.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// Deadlines of a VM's life, in seconds.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Lifecycle {
    /// How long an instance may take from being asked for until it runs. Defaults to 300. Then it is deleted and
    /// replaced, and its group backs off.
    #[serde(default = "launch")]
    #[schemars(range(min = 1, max = 86400))]
    pub launch_timeout_seconds: i32,
    /// How long a running VM may take until its runner is idle at GitHub. Defaults to 600. Then it is deleted and
    /// replaced, and counted in the pool's RegistrationHealthy condition.
    #[serde(default = "registration")]
    #[schemars(range(min = 1, max = 86400))]
    pub registration_timeout_seconds: i32,
    /// How long an agent may be silent before its VM is shown as not connected. Defaults to 90. Silence alone deletes
    /// nothing.
    #[serde(default = "heartbeat")]
    #[schemars(range(min = 1, max = 86400))]
    pub heartbeat_timeout_seconds: i32,
    /// How old a VM may become before it is drained: a job that runs then still finishes. Defaults to 86400 (a day).
    #[serde(default = "max_lifetime")]
    #[schemars(range(min = 1, max = 2592000))]
    pub max_lifetime_seconds: i32,
    /// How long a drain waits for a running job before the VM is deleted under it. Defaults to 432000 (five days,
    /// GitHub's longest job). The only deadline that can cut a job off.
    #[serde(default = "grace")]
    #[schemars(range(min = 1, max = 2592000))]
    pub termination_grace_period_seconds: i32,
}

fn launch() -> i32 {
    300
}
fn registration() -> i32 {
    600
}
fn heartbeat() -> i32 {
    90
}
fn max_lifetime() -> i32 {
    86400
}
fn grace() -> i32 {
    432_000
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self {
            launch_timeout_seconds: launch(),
            registration_timeout_seconds: registration(),
            heartbeat_timeout_seconds: heartbeat(),
            max_lifetime_seconds: max_lifetime(),
            termination_grace_period_seconds: grace(),
        }
    }
}
