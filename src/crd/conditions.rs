//! Condition types, and the one way conditions are set.
//!
//! `lastTransitionTime` moves only when the status does; messages are cut so that no object grows past its budget.

use jiff::Timestamp;

use super::{KubeCondition, KubeTime};

/// Longest message of a condition, in bytes.
pub(super) const MESSAGE_LIMIT: usize = 300;

/// Everything works, and this generation reached its size.
pub const READY: &str = "Ready";
/// The operator is working towards this generation. Only present while true.
pub const RECONCILING: &str = "Reconciling";
/// No progress without a change by a person. Only present while true.
pub const STALLED: &str = "Stalled";
/// The Secret can be read and GitHub accepts it for the pool's url.
pub const CREDENTIALS_VALID: &str = "CredentialsValid";
/// Some group can be asked for a VM now.
pub const CAPACITY_AVAILABLE: &str = "CapacityAvailable";
/// The groups' settings cannot harm a job.
pub const GROUP_HEALTHY: &str = "GroupHealthy";
/// New VMs do call in and register.
pub const REGISTRATION_HEALTHY: &str = "RegistrationHealthy";
/// GitHub will go on giving jobs to the runner version the pool asks for.
pub const RUNNER_VERSION_CURRENT: &str = "RunnerVersionCurrent";
/// The pool is paused.
pub const PAUSED: &str = "Paused";
/// The instance runs.
pub const LAUNCHED: &str = "Launched";
/// The runner is known to GitHub and its agent holds it.
pub const REGISTERED: &str = "Registered";
/// The agent's session is open, or was within the heartbeat timeout.
pub const AGENT_CONNECTED: &str = "AgentConnected";
/// The VM takes no further job.
pub const DRAINING: &str = "Draining";
/// The instance is being deleted.
pub const DELETING: &str = "Deleting";

/// A condition's status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// Not known (yet).
    Unknown,
}

impl State {
    /// As Kubernetes spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

impl From<bool> for State {
    fn from(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
}

/// One condition as a decision: when it was last in transition is not part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Condition type.
    pub kind: &'static str,
    /// Its status.
    pub state: State,
    /// CamelCase reason.
    pub reason: String,
    /// What happened and what to do, for people.
    pub message: String,
}

impl Finding {
    /// A finding.
    #[must_use]
    pub fn new(
        kind: &'static str,
        state: impl Into<State>,
        reason: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self { kind, state: state.into(), reason: reason.into(), message: message.into() }
    }
}

/// Turns findings into conditions: the whole list, in their order; a transition time is kept while the status is.
#[must_use]
pub fn conditions(
    old: &[KubeCondition],
    findings: Vec<Finding>,
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<KubeCondition> {
    findings
        .into_iter()
        .map(|finding| {
            let before = old.iter().find(|c| c.type_ == finding.kind && c.status == finding.state.as_str());
            KubeCondition {
                type_: finding.kind.to_owned(),
                status: finding.state.as_str().to_owned(),
                reason: finding.reason,
                message: cut(&finding.message, MESSAGE_LIMIT),
                observed_generation: generation,
                last_transition_time: before.map_or(KubeTime(now), |c| c.last_transition_time.clone()),
            }
        })
        .collect()
}

/// The condition of this type, if it is there.
#[must_use]
pub fn find<'a>(conditions: &'a [KubeCondition], kind: &str) -> Option<&'a KubeCondition> {
    conditions.iter().find(|c| c.type_ == kind)
}

/// At most `limit` bytes, without control characters: for text that came from outside.
///
/// Bytes, not characters: what an object may take in etcd is counted in bytes, and an agent may say anything.
#[must_use]
pub fn cut(text: &str, limit: usize) -> String {
    let mut kept = 0;
    let fits = |c: &char| {
        kept += c.len_utf8();
        kept <= limit
    };
    text.chars().filter(|c| !c.is_control()).take_while(fits).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_by_bytes_at_a_characters_end() {
        assert_eq!(cut("a\u{1b}b\nc", 3), "abc");
        assert_eq!(cut("abcd", 3), "abc");
        assert_eq!(cut("a\u{e9}\u{1F980}b", 3), "a\u{e9}");
        assert_eq!(cut("\u{1F980}", 3), "");
    }
}
