//! RunnerVM: one virtual machine with one runner for one job.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{GitHub, GroupRef, KubeCondition, KubeTime, Lifecycle, RunnerSettings, Template};

/// What this VM was made from.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[kube(
    group = "miglet.dev",
    version = "v1alpha1",
    kind = "RunnerVM",
    root = "RunnerVm",
    plural = "runnervms",
    shortname = "rvm",
    category = "runners",
    namespaced,
    status = "RunnerVmStatus",
    derive = "PartialEq",
    doc = "A RunnerVM is one virtual machine with one GitHub Actions runner for one job. The operator makes and removes \
           them. Deleting one is a graceful drain: it waits for the job; the annotation miglet.dev/terminate-now does not. \
           The annotation miglet.dev/log-level=Debug makes its agent log more while it is there; \
           miglet.dev/collect-diagnostics=ID puts what helps to find a fault into a ConfigMap.",
    validation = ("self.spec == oldSelf.spec", "spec is immutable: edit the RunnerPool, its idle VMs are replaced"),
    printcolumn(name = "Pool", type_ = "string", json_path = ".spec.pool.name"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Job", type_ = "string", json_path = ".status.job.summary", description = "Repository and job, while it runs or after"),
    printcolumn(name = "Zone", type_ = "string", json_path = ".status.instance.zone"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Group", type_ = "string", json_path = ".spec.group.name", priority = 1),
    printcolumn(name = "Instance", type_ = "string", json_path = ".status.instance.id", priority = 1),
    printcolumn(name = "Result", type_ = "string", json_path = ".status.job.result", priority = 1),
    printcolumn(name = "Agent", type_ = "string", json_path = ".status.agent.version", priority = 1),
    printcolumn(name = "Runner", type_ = "string", json_path = ".status.runner.version", priority = 1, description = "Version of the runner"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = 1)
)]
#[serde(rename_all = "camelCase")]
pub struct RunnerVmSpec {
    /// The pool this VM was made for.
    pub pool: PoolRef,
    /// The Google Cloud project of the instance.
    #[schemars(length(min = 1, max = 94))]
    pub project: String,
    /// The managed instance group the instance belongs to.
    pub group: GroupRef,
    /// Where the runner registers, as the pool said when this VM was made.
    pub github: GitHub,
    /// Labels and annotations, as the pool said when this VM was made.
    #[serde(default)]
    pub template: Template,
    /// Deadlines, as the pool said when this VM was made.
    #[serde(default)]
    pub lifecycle: Lifecycle,
    /// Which runner is started, and how, as the pool said when this VM was made.
    #[serde(default)]
    pub runner: RunnerSettings,
}

/// A pool's name and identity.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PoolRef {
    /// Name of the RunnerPool.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// UID of the RunnerPool: a pool made again under the same name is another pool.
    #[schemars(length(min = 1, max = 64))]
    pub uid: String,
}

/// Where a VM is in its life. For people: derived from the facts on every pass, never the memory of what was done.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Phase {
    /// The instance is being asked for.
    #[default]
    Launching,
    /// The instance runs; its agent has not called in.
    Booting,
    /// The agent called in; its runner is being registered.
    Registering,
    /// The runner waits for a job.
    Idle,
    /// The runner has a job.
    Busy,
    /// The runner takes no further job; one that runs may finish.
    Draining,
    /// The registration is gone; the instance is being deleted.
    Terminating,
}

impl Phase {
    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Launching => "Launching",
            Self::Booting => "Booting",
            Self::Registering => "Registering",
            Self::Idle => "Idle",
            Self::Busy => "Busy",
            Self::Draining => "Draining",
            Self::Terminating => "Terminating",
        }
    }
}

/// What is observed of a VM.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RunnerVmStatus {
    /// The generation of the spec this status is about; -1 before the operator has seen the object.
    #[serde(default = "unobserved")]
    #[schemars(range(min = -1, max = 9_007_199_254_740_991_i64))]
    pub observed_generation: i64,
    /// Where the VM is in its life, for people.
    #[serde(default)]
    pub phase: Phase,
    /// When the instance was first asked for. From here on it may exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub create_requested_time: Option<KubeTime>,
    /// When the instance was first seen running.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub launched_time: Option<KubeTime>,
    /// The instance, once it exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<InstanceStatus>,
    /// The agent on the VM, once it has proved who it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentStatus>,
    /// The runner's registration at GitHub, once it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runner: Option<RunnerStatus>,
    /// The job this VM was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobStatus>,
    /// How the machine is doing, as of lastHeartbeatTime.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthStatus>,
    /// When the agent was last heard, as of the last write of this status: silence alone is not written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_heartbeat_time: Option<KubeTime>,
    /// Launched, Registered, Ready, AgentConnected, Draining and Deleting, with the step as the reason.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(length(max = 16))]
    pub conditions: Vec<KubeCondition>,
}

fn unobserved() -> i64 {
    -1
}

impl Default for RunnerVmStatus {
    fn default() -> Self {
        Self {
            observed_generation: unobserved(),
            phase: Phase::default(),
            create_requested_time: None,
            launched_time: None,
            instance: None,
            agent: None,
            runner: None,
            job: None,
            health: None,
            last_heartbeat_time: None,
            conditions: Vec::new(),
        }
    }
}

/// An instance of a managed instance group.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct InstanceStatus {
    /// Google's numeric id: what the VM is. Names can be reused, ids cannot.
    #[schemars(length(max = 32))]
    pub id: String,
    /// Name of its managed instance group.
    #[schemars(length(max = 63))]
    pub group: String,
    /// Zone it runs in.
    #[schemars(length(max = 63))]
    pub zone: String,
}

/// The agent on a VM.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct AgentStatus {
    /// SHA-256 of the agent's public key, base64url: the identity this VM was bound to on first contact.
    #[schemars(length(max = 64))]
    pub key_thumbprint: String,
    /// Boot the agent was bound in: another boot is another machine.
    #[schemars(length(max = 64))]
    pub boot_id: String,
    /// Version of the agent.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub version: String,
    /// State the agent last reported.
    #[serde(default)]
    #[schemars(length(max = 32))]
    pub state: String,
    /// Up to which number the agent's events are dealt with: what follows from them is in this status. Numbers are
    /// milliseconds since that boot, about.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(range(min = 0, max = 9_007_199_254_740_991_i64))]
    pub acked_sequence: i64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "the signature is serde's")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

/// A registration at GitHub.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RunnerStatus {
    /// Name of the runner at GitHub.
    #[schemars(length(max = 64))]
    pub name: String,
    /// How many names were tried: a lost reply costs one.
    #[schemars(range(min = 1, max = 1000))]
    pub attempt: i32,
    /// GitHub's id of the runner. Written before its registration is sent: from here on no second one ever is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 9_007_199_254_740_991_i64))]
    pub id: Option<i64>,
    /// Version of the runner that was started, as its agent found it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 20))]
    pub version: String,
}

/// A job.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct JobStatus {
    /// Repository and job in short.
    #[schemars(length(max = 192))]
    pub summary: String,
    /// Display name of the job.
    #[schemars(length(max = 128))]
    pub name: String,
    /// Repository, as `owner/name`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 128))]
    pub repository: String,
    /// Name of the workflow.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 128))]
    pub workflow: String,
    /// GitHub's id of the workflow run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 9_007_199_254_740_991_i64))]
    pub run_id: Option<i64>,
    /// Which attempt of that run it belongs to: re-running makes another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2_147_483_647))]
    pub run_attempt: Option<i32>,
    /// Key of the job in its workflow file, as `jobs.<key>`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 128))]
    pub key: String,
    /// GitHub's id of the job, once GitHub was asked for it. Absent when the App may not read the repository's Actions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 9_007_199_254_740_991_i64))]
    pub id: Option<i64>,
    /// Page of the job at GitHub. Absent when it is unusually long.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 128))]
    pub url: String,
    /// When the runner took it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_time: Option<KubeTime>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_time: Option<KubeTime>,
    /// GitHub's result, once it ended: Succeeded, SucceededWithIssues, Failed, Canceled, Skipped, Abandoned or Unknown.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 32))]
    pub result: String,
}

/// How a machine is doing.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct HealthStatus {
    /// Processor time used, in percent of all cores.
    #[schemars(range(min = 0, max = 100))]
    pub cpu_percent: i32,
    /// Memory used, in percent.
    #[schemars(range(min = 0, max = 100))]
    pub memory_percent: i32,
    /// Disk used where the runner works, in percent.
    #[schemars(range(min = 0, max = 100))]
    pub disk_percent: i32,
}
