//! Whether GitHub will go on giving jobs to the runner a pool asks for: pure.
//!
//! GitHub stops giving jobs to a runner 30 days after a newer release, and at once after some security fixes; it names no
//! date here. So the condition turns as soon as something newer is offered, and its lastTransitionTime says since when.

use std::cmp::Ordering;

use super::view::{Offered, PoolView};
use crate::crd::conditions::{Finding, RUNNER_VERSION_CURRENT, State};

/// The finding, from what is asked for, what is offered, and what runs.
pub(super) fn finding(view: &PoolView) -> Finding {
    let wanted = &view.pool.spec.runner;
    let offered = match &view.offer {
        Offered::Known(offer) => offer,
        Offered::Unknown { reason, message } => {
            return Finding::new(RUNNER_VERSION_CURRENT, State::Unknown, reason.clone(), message.clone());
        }
    };
    let latest = &offered.version;
    let bad = |reason: &str, message: String| Finding::new(RUNNER_VERSION_CURRENT, false, reason, message);
    let soon = "GitHub gives no jobs to a version 30 days after it was replaced";
    if let Some(version) = wanted.version.as_ref().filter(|version| older(version, latest)) {
        let known = if wanted.checksums.is_some() {
            ""
        } else {
            "; only images that have it can start it: GitHub does not offer it, and spec.runner.checksums is not set"
        };
        let what = "set spec.runner.version to the newer one, or leave it out";
        return bad("Outdated", format!("GitHub offers {latest}, the pool asks for {version}: {soon}; {what}{known}"));
    }
    if let Some(minimum) = wanted.minimum_version.as_ref().filter(|minimum| older(latest, minimum)) {
        let message = format!(
            "GitHub offers {latest} here, older than spec.runner.minimumVersion {minimum}: it is used all the same"
        );
        return bad("MinimumNotOffered", message);
    }
    let behind = view.active().filter(|vm| older(&vm.runner_version, latest));
    let (count, oldest) = behind.fold((0_usize, None::<&str>), |(count, oldest), vm| {
        let oldest = oldest.filter(|oldest| older(oldest, &vm.runner_version)).unwrap_or(&vm.runner_version);
        (count + 1, Some(oldest))
    });
    // Those of a pool that asks for this very version were made before it did, and are being replaced.
    match oldest.filter(|_| wanted.version.is_none()) {
        Some(oldest) => bad(
            "ImageOutdated",
            format!(
                "GitHub offers {latest}, {count} VMs run {oldest} or so: {soon}; new VMs that do, too, have it from their \
                 image: put a newer runner into it, or set spec.runner.minimumVersion"
            ),
        ),
        None => Finding::new(RUNNER_VERSION_CURRENT, true, "Current", format!("GitHub offers {latest}")),
    }
}

/// Whether one version is older than another; what is no version is not.
fn older(version: &str, than: &str) -> bool {
    let numbers = |text: &str| text.split('.').map(|part| part.parse().ok()).collect::<Option<Vec<u32>>>();
    match (numbers(version), numbers(than)) {
        (Some(version), Some(than)) => version.cmp(&than) == Ordering::Less,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        crd::Phase,
        forge::Offer,
        pool::{
            history::History,
            plan::tests::{no_offer, pool, vm},
            view::Check,
        },
    };

    /// A pool that asks for this runner, with a VM for each of these versions, where GitHub offers 2.337.0.
    fn view(runner: Value, versions: &[&str]) -> PoolView {
        let mut pool = pool(1, 10, false);
        pool.spec.runner = serde_json::from_value(runner).expect("a runner");
        let of = |(number, version): (usize, &&str)| {
            let mut vm = vm(number, Phase::Idle, false, false);
            vm.runner_version = (*version).to_owned();
            vm
        };
        PoolView {
            pool,
            vms: versions.iter().enumerate().map(of).collect(),
            expected: 0,
            forge: Check::Good,
            offer: Offered::Known(Offer { version: "2.337.0".into(), downloads: Vec::new() }),
            groups: Vec::new(),
            history: History::default(),
            random: Vec::new(),
            swept: false,
        }
    }

    #[test]
    fn what_is_asked_for_and_what_runs_is_compared_with_what_is_offered() {
        let (version, minimum) = (|text: &str| json!({"version": text}), |text: &str| json!({"minimumVersion": text}));
        for (runner, versions, reason) in [
            (json!({}), &["2.337.0", ""][..], "Current"),
            (json!({}), &["2.337.0", "2.336.9"], "ImageOutdated"),
            (json!({}), &["not a version", "2.340.0"], "Current"),
            (minimum("2.330.0"), &["2.331.0"], "ImageOutdated"),
            (minimum("2.330.0"), &["2.337.0"], "Current"),
            (minimum("2.338.0"), &["2.337.0"], "MinimumNotOffered"),
            (version("2.337.0"), &["2.331.0"], "Current"),
            (version("2.336.10"), &["2.336.10"], "Outdated"),
            (version("2.400.0"), &["2.400.0"], "Current"),
        ] {
            let found = finding(&view(runner.clone(), versions));
            assert_eq!(found.reason, reason, "{runner} and {versions:?}: {}", found.message);
            assert_eq!(found.state == State::True, reason == "Current", "{runner} and {versions:?}");
        }
    }

    #[test]
    fn a_vm_that_leaves_is_nobodys_worry_and_the_oldest_of_the_others_is_named() {
        let mut behind = view(json!({}), &["2.300.0", "2.331.0", "2.330.0"]);
        behind.vms.first_mut().expect("a VM").leaving = true;
        let message = finding(&behind).message;
        assert!(message.contains("2 VMs run 2.330.0 or so"), "{message}");
    }

    #[test]
    fn no_answer_of_github_is_no_finding() {
        let unknown = PoolView { offer: no_offer(), ..view(json!({"version": "2.300.0"}), &["2.300.0"]) };
        assert_eq!((finding(&unknown).state, finding(&unknown).reason.as_str()), (State::Unknown, "NotAsked"));
    }

    #[test]
    fn an_old_version_that_can_no_longer_be_fetched_is_said_to_be_so() {
        let told = |runner| finding(&view(runner, &[])).message;
        assert!(told(json!({"version": "2.300.0"})).contains("spec.runner.checksums is not set"));
        let pinned = json!({"version": "2.300.0", "checksums": {"x64": "a".repeat(64)}});
        assert!(!told(pinned).contains("checksums"));
    }
}
