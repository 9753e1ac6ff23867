//! RunnerPool: how many runners, of what kind, where.

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{AgentSettings, KubeCondition, Lifecycle, RunnerSettings};

/// How many runners, of what kind, where.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "miglet.dev",
    version = "v1alpha1",
    kind = "RunnerPool",
    plural = "runnerpools",
    shortname = "rpool",
    category = "runners",
    namespaced,
    status = "RunnerPoolStatus",
    derive = "PartialEq",
    doc = "A RunnerPool keeps a number of single-job GitHub Actions runners alive on virtual machines of Google Cloud \
           managed instance groups. Each VM is shown as a RunnerVM: it runs one job and is replaced.",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    validation = ("self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')", "metadata.name must start with a lower-case letter and contain only lower-case letters, digits and '-': it becomes part of instance names"),
    validation = ("!has(self.spec.agent.heartbeatPeriodSeconds) || self.spec.agent.heartbeatPeriodSeconds < self.spec.lifecycle.heartbeatTimeoutSeconds", "agent.heartbeatPeriodSeconds must be less than lifecycle.heartbeatTimeoutSeconds"),
    printcolumn(name = "Desired", type_ = "integer", json_path = ".spec.replicas", description = "Runners asked for"),
    printcolumn(name = "Current", type_ = "integer", json_path = ".status.replicas", description = "VMs that can take or are running a job"),
    printcolumn(name = "Ready", type_ = "integer", json_path = ".status.readyReplicas", description = "Runners idle or busy"),
    printcolumn(name = "Busy", type_ = "integer", json_path = ".status.busyReplicas", description = "Runners with a job"),
    printcolumn(name = "Idle", type_ = "integer", json_path = ".status.idleReplicas", description = "Runners waiting for a job"),
    printcolumn(name = "Status", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason", description = "Reason of the condition Ready"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "GitHub", type_ = "string", json_path = ".spec.github.url", priority = 1),
    printcolumn(name = "Paused", type_ = "boolean", json_path = ".spec.paused", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", priority = 1)
)]
#[serde(rename_all = "camelCase")]
pub struct RunnerPoolSpec {
    /// How many runners to keep: idle ones and busy ones together. Defaults to 1. `kubectl scale` and autoscalers
    /// write here.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 10000))]
    pub replicas: i32,
    /// Hard bounds, whatever is asked for.
    #[serde(default)]
    pub limits: Limits,
    /// While true nothing is created and nothing is scaled down. Jobs, deletions and the removal of leftovers go on.
    /// Defaults to false.
    #[serde(default)]
    pub paused: bool,
    /// What happens to the VMs when the pool is deleted. `Delete`, the default, drains every runner (jobs finish) and
    /// deletes the instances; `Orphan` removes only the Kubernetes objects and touches nothing outside.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
    /// Where the runners register.
    pub github: GitHub,
    /// Where the VMs come from.
    pub compute: Compute,
    /// What every RunnerVM of the pool gets.
    #[serde(default)]
    pub template: Template,
    /// Deadlines of a VM's life.
    #[serde(default)]
    pub lifecycle: Lifecycle,
    /// How the agents work. A change reaches running agents within seconds and replaces no VM.
    #[serde(default)]
    pub agent: AgentSettings,
    /// Which runner is started, and how. A change replaces idle VMs one at a time.
    #[serde(default)]
    pub runner: RunnerSettings,
}

fn one() -> i32 {
    1
}

/// Hard bounds of a pool.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// The most VMs that may exist at once, counting those that are being created and those whose instance is not yet
    /// proven gone. Defaults to 1000. Fewer runners than `replicas` are kept when this is smaller.
    #[serde(default = "thousand")]
    #[schemars(range(min = 0, max = 10000))]
    pub max: i32,
}

fn thousand() -> i32 {
    1000
}

impl Default for Limits {
    fn default() -> Self {
        Self { max: thousand() }
    }
}

/// What happens to the VMs when the pool is deleted: `Delete` drains every runner (jobs finish) and deletes the
/// instances; `Orphan` removes only the Kubernetes objects and touches nothing outside.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeletionPolicy {
    /// Drain every runner and delete the instances.
    #[default]
    Delete,
    /// Remove only the Kubernetes objects.
    Orphan,
}

/// Where runners register, as whom, and what they can be asked for.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("!has(self.runnerGroup) || self.url.split('/').size() == 4 || self.url.split('/')[3] == 'enterprises'", "runnerGroup must not be set for a repository: runner groups belong to organisations and enterprises"))]
pub struct GitHub {
    /// The organisation (`https://github.com/acme`), repository (`https://github.com/acme/app`) or enterprise
    /// (`https://github.com/enterprises/acme`) the runners serve. A GitHub Enterprise Server host reads the same.
    #[schemars(
        length(min = 1, max = 256),
        regex(
            pattern = r"^(https://[A-Za-z0-9.-]+(:[0-9]+)?|http://(localhost|127\.0\.0\.1)(:[0-9]+)?)/[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)?$"
        )
    )]
    pub url: String,
    /// The Secret in this namespace with the credentials: either `github_app_id`, `github_app_installation_id` and
    /// `github_app_private_key`, or `github_token`. The operator must be allowed to read it: bind the ClusterRole
    /// `miglet-pool-credentials` in this namespace.
    pub credentials_secret_ref: SecretRef,
    /// The runner group to register in. When absent: the group GitHub marks as default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub runner_group: Option<String>,
    /// The labels jobs select runners by (`runs-on`). GitHub adds none of its own: name `self-hosted` too if your
    /// workflows ask for it.
    #[x_kube(merge_strategy = ListMerge::Set)]
    #[schemars(length(min = 1, max = 20), inner(length(min = 1, max = 64)))]
    pub labels: Vec<String>,
}

/// The name of a Secret in the same namespace.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// Where VMs come from.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Compute {
    /// Google Compute Engine.
    pub gce: Gce,
}

/// Managed instance groups of one Google Cloud project.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Gce {
    /// The project's id.
    #[schemars(length(min = 6, max = 94), regex(pattern = r"^([a-z0-9.-]+:)?[a-z][-a-z0-9]{4,28}[a-z0-9]$"))]
    pub project: String,
    /// The managed instance groups to create VMs in, in order of preference: the next one is used while one is out of
    /// capacity or quota, is unhealthy, or is full. Their settings are checked: see the condition GroupHealthy.
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    #[schemars(length(min = 1, max = 8))]
    pub groups: Vec<GroupRef>,
}

/// A managed instance group: its name, and either its zone or its region.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("has(self.zone) != has(self.region)", "exactly one of zone and region must be set"))]
pub struct GroupRef {
    /// Name of the managed instance group.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Zone of a zonal group, such as `us-central1-a`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub zone: Option<String>,
    /// Region of a regional group, such as `us-central1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub region: Option<String>,
}

/// What every RunnerVM of a pool gets.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Template {
    /// Labels and annotations of the RunnerVM objects. The pool's own are never copied.
    #[serde(default)]
    pub metadata: TemplateMetadata,
}

/// Labels and annotations to give.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("!has(self.labels) || self.labels.all(k, size(k) <= 63 && !k.startsWith('miglet.dev/'))", "template labels must have keys of at most 63 characters that do not start with miglet.dev/"))]
#[x_kube(validation = ("!has(self.annotations) || self.annotations.all(k, size(k) <= 63 && !k.startsWith('miglet.dev/'))", "template annotations must have keys of at most 63 characters that do not start with miglet.dev/"))]
pub struct TemplateMetadata {
    /// Labels, at most 8. A change replaces idle VMs one at a time.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 8, "additionalProperties" = {"type": "string", "maxLength": 63}))]
    pub labels: BTreeMap<String, String>,
    /// Annotations, at most 4. A change replaces idle VMs one at a time.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 4, "additionalProperties" = {"type": "string", "maxLength": 128}))]
    pub annotations: BTreeMap<String, String>,
}

/// What is observed of a pool. The VMs themselves are RunnerVMs: `kubectl get rvm -l miglet.dev/pool=NAME`.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RunnerPoolStatus {
    /// The generation of the spec this status is about; -1 before the operator has seen the pool.
    #[serde(default = "unobserved")]
    #[schemars(range(min = -1, max = 9_007_199_254_740_991_i64))]
    pub observed_generation: i64,
    /// VMs that still can take or are running a job: not finished and not draining.
    #[serde(default)]
    #[schemars(range(min = 0, max = 10000))]
    pub replicas: i32,
    /// Runners that are idle or busy.
    #[serde(default)]
    #[schemars(range(min = 0, max = 10000))]
    pub ready_replicas: i32,
    /// Runners with a job.
    #[serde(default)]
    #[schemars(range(min = 0, max = 10000))]
    pub busy_replicas: i32,
    /// Runners waiting for a job.
    #[serde(default)]
    #[schemars(range(min = 0, max = 10000))]
    pub idle_replicas: i32,
    /// Label selector of this pool's RunnerVMs, for autoscalers.
    #[serde(default)]
    #[schemars(length(max = 256))]
    pub selector: String,
    /// Ready, CredentialsValid, GroupHealthy, CapacityAvailable, RegistrationHealthy, RunnerVersionCurrent and Paused;
    /// Reconciling and Stalled only while true.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(length(max = 16))]
    pub conditions: Vec<KubeCondition>,
}

fn unobserved() -> i64 {
    -1
}

impl Default for RunnerPoolStatus {
    fn default() -> Self {
        Self {
            observed_generation: unobserved(),
            replicas: 0,
            ready_replicas: 0,
            busy_replicas: 0,
            idle_replicas: 0,
            selector: String::new(),
            conditions: Vec::new(),
        }
    }
}
