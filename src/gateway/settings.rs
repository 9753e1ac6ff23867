//! What the operator wants of an agent: pure, from a VM's snapshot and what its pool says now.
//!
//! ```text
//!   RunnerPool.spec.agent ─> agent  ┐
//!   RunnerVM.spec.runner ──> runner ┴─> Settings { revision } ──> Welcome, UpdateConfig ──> the agent's reports
//!   the forge's offer ─────┘                                                               repeat the revision
//! ```
//!
//! How an agent works follows the pool, because changing it harms no job. Which runner it starts is the VM's snapshot:
//! a change there replaces VMs. The offer is not part of the snapshot: a version that GitHub has withdrawn since is no
//! use to a VM that boots now.
//!
//! Nothing is said before this process has looked at the pool, and a VM has no copy of `agent`: one may be days old, and
//! guards that were raised since would be low again for a moment and cut the job they were raised for.

use aws_lc_rs::digest;
use serde::Serialize;

use crate::{
    crd::{AgentSettings, Checksums, Lifecycle, RunnerSettings, RunnerVmSpec},
    forge::Offer,
};

/// Letters of a revision.
const REVISION: usize = 16;

/// What a pool says now, for all its VMs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// How agents work.
    pub agent: AgentSettings,
    /// What the forge offers; `None` when it does not say.
    pub offer: Option<Offer>,
}

/// What the operator wants of one agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Settings {
    /// Names this content; empty while it has none.
    pub revision: String,
    /// How it works; `None` while the pool was not looked at.
    pub agent: Option<AgentSettings>,
    /// Age at which its machine may end without being asked: nothing that the pool allows takes longer. 0 as long.
    pub maximum_lifetime_seconds: u32,
    /// Which runner it starts; `None` as long.
    pub runner: Option<RunnerChoice>,
}

/// Which runner is started, and where it can be fetched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RunnerChoice {
    /// To be installed; empty: whatever is there.
    pub version: String,
    /// What may be fetched.
    pub archives: Vec<Archive>,
    /// Everything else, as the VM's spec says.
    pub settings: RunnerSettings,
}

/// An archive of the chosen version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Archive {
    /// x64 or arm64.
    pub architecture: &'static str,
    /// SHA-256, hexadecimal.
    pub sha256: String,
    /// The forge's own URL; empty when it offers another version.
    pub url: String,
}

/// What is wanted of the agent of a VM.
#[must_use]
pub fn settings(spec: &RunnerVmSpec, policy: Option<&Policy>) -> Settings {
    let Some(policy) = policy else { return Settings::default() };
    let (agent, runner) = (work(spec, &policy.agent), choose(&spec.runner, policy.offer.as_ref()));
    let Lifecycle { max_lifetime_seconds, termination_grace_period_seconds, .. } = spec.lifecycle;
    let longest = max_lifetime_seconds.saturating_add(termination_grace_period_seconds);
    let maximum_lifetime_seconds = u32::try_from(longest).unwrap_or_default();
    let mut settings =
        Settings { revision: String::new(), agent: Some(agent), maximum_lifetime_seconds, runner: Some(runner) };
    settings.revision = revision(&settings);
    settings
}

/// The seconds between two reports of this VM's agent. A pool's period goes with the pool's timeout, a VM keeps the
/// timeout it was made with: a third of it lets two reports be lost before the agent counts as silent.
#[must_use]
pub fn heartbeat(spec: &RunnerVmSpec, seconds: i32) -> i32 {
    seconds.min(spec.lifecycle.heartbeat_timeout_seconds / 3).max(1)
}

fn work(spec: &RunnerVmSpec, agent: &AgentSettings) -> AgentSettings {
    let period = agent.heartbeat_period_seconds.map(|seconds| heartbeat(spec, seconds));
    AgentSettings { heartbeat_period_seconds: period, ..agent.clone() }
}

fn choose(runner: &RunnerSettings, offer: Option<&Offer>) -> RunnerChoice {
    let offered = offer.map(|offer| offer.version.clone());
    let version = runner.version.clone().or(offered).unwrap_or_default();
    let same = offer.filter(|offer| offer.version == version);
    let archive = |architecture| {
        let download = same.and_then(|offer| offer.downloads.iter().find(|d| d.architecture == architecture));
        // What the user pinned is stronger than what the forge says.
        let pinned = pinned(runner.checksums.as_ref(), architecture);
        let sha256 = pinned.or_else(|| download.and_then(|download| download.sha256.clone()))?;
        let url = download.map(|download| download.url.clone()).unwrap_or_default();
        Some(Archive { architecture, sha256, url })
    };
    let archives = ["x64", "arm64"].into_iter().filter_map(archive).collect();
    RunnerChoice { version, archives, settings: runner.clone() }
}

fn pinned(checksums: Option<&Checksums>, architecture: &str) -> Option<String> {
    let checksums = checksums?;
    if architecture == "x64" { checksums.x64.clone() } else { checksums.arm64.clone() }
}

/// A name that changes with the content and with nothing else.
fn revision(settings: &Settings) -> String {
    // Writing plain data as JSON cannot fail.
    let text = serde_json::to_vec(settings).unwrap_or_default();
    let digest = digest::digest(&digest::SHA256, &text);
    let mut name: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    name.truncate(REVISION);
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{crd::Guards, forge::Download};

    fn spec(runner: serde_json::Value) -> RunnerVmSpec {
        serde_json::from_value(serde_json::json!({
            "pool": {"name": "linux", "uid": "u"}, "project": "acme-ci",
            "group": {"name": "ci", "zone": "z"}, "runner": runner,
            "github": {"url": "https://github.com/acme", "credentialsSecretRef": {"name": "a"}, "labels": ["x"]},
        }))
        .unwrap()
    }

    fn policy() -> Policy {
        let download = |architecture: &str| Download {
            architecture: architecture.into(),
            url: format!("https://github.com/{architecture}.tar.gz"),
            sha256: (architecture == "x64").then(|| "a".repeat(64)),
        };
        let offer = Offer { version: "2.337.0".into(), downloads: vec![download("x64"), download("arm64")] };
        Policy { agent: AgentSettings::default(), offer: Some(offer) }
    }

    #[test]
    fn without_a_version_the_forges_offer_is_chosen_where_its_hash_is_known() {
        let runner = settings(&spec(serde_json::json!({})), Some(&policy())).runner.unwrap();
        assert_eq!(runner.version, "2.337.0");
        let archives: Vec<_> = runner.archives.iter().map(|a| (a.architecture, a.url.as_str())).collect();
        assert_eq!(archives, [("x64", "https://github.com/x64.tar.gz")]);
    }

    #[test]
    fn a_version_that_is_not_offered_is_fetched_by_the_users_own_hash_and_never_from_the_offers_url() {
        let pinned = serde_json::json!({"version": "2.330.0", "checksums": {"arm64": "b".repeat(64)}});
        let runner = settings(&spec(pinned), Some(&policy())).runner.unwrap();
        let expected = Archive { architecture: "arm64", sha256: "b".repeat(64), url: String::new() };
        assert_eq!((runner.version.as_str(), runner.archives), ("2.330.0", vec![expected]));
    }

    #[test]
    fn a_machine_may_get_as_old_as_its_pool_allows() {
        let mut made = spec(serde_json::json!({}));
        (made.lifecycle.max_lifetime_seconds, made.lifecycle.termination_grace_period_seconds) = (2_592_000, 432_000);
        assert_eq!(settings(&made, Some(&policy())).maximum_lifetime_seconds, 3_024_000);
    }

    #[test]
    fn a_pool_nobody_looked_at_yet_leaves_everything_open() {
        let made = spec(serde_json::json!({}));
        assert_eq!(settings(&made, None), Settings::default());
        let raised = Guards { max_runtime_seconds: Some(7200), ..Guards::default() };
        let agent = AgentSettings { guards: Some(raised.clone()), ..AgentSettings::default() };
        let known = settings(&made, Some(&Policy { agent, ..policy() }));
        assert_eq!(known.agent.and_then(|agent| agent.guards), Some(raised));
    }

    #[test]
    fn an_agent_reports_three_times_within_its_own_vms_timeout_whatever_the_pool_says_now() {
        let mut made = spec(serde_json::json!({}));
        let agent = AgentSettings { heartbeat_period_seconds: Some(200), ..AgentSettings::default() };
        let policy = Policy { agent, ..policy() };
        for (timeout, period) in [(900, 200), (90, 30), (2, 1)] {
            made.lifecycle.heartbeat_timeout_seconds = timeout;
            let agent = settings(&made, Some(&policy)).agent.unwrap();
            assert_eq!(agent.heartbeat_period_seconds, Some(period), "of {timeout}");
        }
    }

    #[test]
    fn a_revision_follows_the_content() {
        let of = |runner| settings(&spec(runner), Some(&policy())).revision;
        assert_eq!(of(serde_json::json!({})), of(serde_json::json!({})));
        assert_ne!(of(serde_json::json!({})), of(serde_json::json!({"metadataAccess": "Allowed"})));
    }
}
