//! Whether a group's settings can harm a job: pure. A group with wrong settings is refused, not only reported.

use super::view::Check;
use crate::compute::{ComputeError, ErrorClass, GroupSettings};

/// Metadata keys the template must set, or no agent can call in.
const REQUIRED_KEYS: [&str; 2] = ["miglet-endpoint", "miglet-ca"];

/// What is to be thought of a group.
#[must_use]
pub fn check(answer: &Result<GroupSettings, ComputeError>) -> Check {
    match answer {
        Ok(settings) => verdict(settings),
        Err(error) => failed(error),
    }
}

fn verdict(settings: &GroupSettings) -> Check {
    let rules = [
        (settings.autoscaler, "AutoscalerOn", "an autoscaler is attached and would pick busy VMs: delete it"),
        (settings.repairs, "RepairsOn", "instanceLifecyclePolicy.defaultActionOnFailure must be DO_NOTHING"),
        (settings.proactive_updates, "ProactiveUpdates", "updatePolicy.type must be OPPORTUNISTIC"),
        (settings.redistributes, "RedistributionOn", "updatePolicy.instanceRedistributionType must be NONE"),
        (settings.autohealing, "AutohealingOn", "autohealing would remake VMs that run jobs: remove the policy"),
        (settings.stateful, "Stateful", "the group must not be stateful"),
        (!settings.service_account, "NoServiceAccount", "the template needs a service account (without any role)"),
    ];
    let missing = REQUIRED_KEYS.iter().find(|key| !settings.metadata_keys.iter().any(|set| set == *key));
    let wrong = rules.into_iter().find(|(wrong, _, _)| *wrong);
    match (wrong, missing) {
        (Some((_, reason, message)), _) => Check::Bad { reason: reason.into(), message: message.into() },
        (None, Some(key)) => {
            Check::Bad { reason: "MissingMetadata".into(), message: format!("the template does not set {key}") }
        }
        (None, None) => Check::Good,
    }
}

fn failed(error: &ComputeError) -> Check {
    let (reason, message) = (format!("Group{}", error.class.as_str()), error.to_string());
    match error.class {
        ErrorClass::NotFound | ErrorClass::Config => Check::Bad { reason, message },
        ErrorClass::Capacity
        | ErrorClass::Quota
        | ErrorClass::RateLimit
        | ErrorClass::AlreadyExists
        | ErrorClass::Transient => Check::Unknown { reason, message },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn harmless() -> GroupSettings {
        GroupSettings {
            service_account: true,
            metadata_keys: vec!["miglet-endpoint".into(), "miglet-ca".into()],
            ..GroupSettings::default()
        }
    }

    #[test]
    fn each_harmful_setting_is_refused_with_its_own_reason() {
        assert_eq!(verdict(&harmless()), Check::Good);
        let cases = [
            (GroupSettings { autoscaler: true, ..harmless() }, "AutoscalerOn"),
            (GroupSettings { repairs: true, ..harmless() }, "RepairsOn"),
            (GroupSettings { proactive_updates: true, ..harmless() }, "ProactiveUpdates"),
            (GroupSettings { redistributes: true, ..harmless() }, "RedistributionOn"),
            (GroupSettings { autohealing: true, ..harmless() }, "AutohealingOn"),
            (GroupSettings { stateful: true, ..harmless() }, "Stateful"),
            (GroupSettings { service_account: false, ..harmless() }, "NoServiceAccount"),
            (GroupSettings { metadata_keys: vec!["miglet-ca".into()], ..harmless() }, "MissingMetadata"),
        ];
        for (settings, expected) in cases {
            let Check::Bad { reason, .. } = verdict(&settings) else { panic!("{expected} was accepted") };
            assert_eq!(reason, expected);
        }
    }
}
