//! Whether GitHub will go on giving jobs to the runner a pool asks for: pure.
//!
//! GitHub stops giving jobs to a runner 30 days after a newer release, and at once after some security fixes. Where it tells
//! the dates of a version (Enterprise Cloud), they count. Elsewhere the condition turns as soon as something newer is
//! offered, and its lastTransitionTime says since when. A runner that was turned away for its version outweighs both.

use std::cmp::Ordering;

use jiff::Timestamp;

use super::view::{Offered, PoolView, VmFact};
use crate::{
    crd::{
        RunnerPool,
        conditions::{Finding, RUNNER_VERSION_CURRENT, State},
    },
    forge::Support,
    vm::plan::VERSION_REFUSED,
};

/// What of a pool is older than what is offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Behind {
    /// The oldest.
    pub(super) version: String,
    /// VMs that run it, or another that is behind; 0 where the pool itself asks for it.
    vms: usize,
}

/// What the pool asks for if that is behind, else the oldest that runs.
pub(super) fn behind(pool: &RunnerPool, vms: &[VmFact], latest: &str) -> Option<Behind> {
    if let Some(version) = &pool.spec.runner.version {
        // Other VMs of such a pool were made before it asked for this version, and are being replaced.
        return older(version, latest).then(|| Behind { version: version.clone(), vms: 0 });
    }
    let versions = vms.iter().filter(|vm| !vm.leaving).map(|vm| vm.runner_version.as_str());
    versions.filter(|version| older(version, latest)).fold(None, |found, version| {
        let Behind { version: oldest, vms } = found.unwrap_or_else(|| Behind { version: version.to_owned(), vms: 0 });
        Some(Behind { version: if older(version, &oldest) { version.to_owned() } else { oldest }, vms: vms + 1 })
    })
}

/// The finding, from what is asked for, what is offered, and what runs.
pub(super) fn finding(view: &PoolView, now: Timestamp) -> Finding {
    let bad = |reason: &str, message: String| Finding::new(RUNNER_VERSION_CURRENT, false, reason, message);
    if refused(view) {
        return bad("Refused", format!("{}; {}", view.history.last_message, remedy(view)));
    }
    let offered = match &view.offer {
        Offered::Known(offer) => offer,
        Offered::Unknown { reason, message } => {
            return Finding::new(RUNNER_VERSION_CURRENT, State::Unknown, reason.clone(), message.clone());
        }
    };
    let latest = &offered.version;
    if let Some(minimum) = view.pool.spec.runner.minimum_version.as_ref().filter(|minimum| older(latest, minimum)) {
        let message = format!(
            "GitHub offers {latest} here, older than spec.runner.minimumVersion {minimum}: it is used all the same"
        );
        return bad("MinimumNotOffered", message);
    }
    let Some(behind) = behind(&view.pool, &view.vms, latest) else {
        return Finding::new(RUNNER_VERSION_CURRENT, true, "Current", format!("GitHub offers {latest}"));
    };
    let who = match behind.vms {
        0 => format!("the pool asks for {}", behind.version),
        count => format!("{count} VMs run {} or so", behind.version),
    };
    let (accepted, end) = end(view.support.as_ref(), now);
    let message = format!("GitHub offers {latest}, {who}: {end}");
    match accepted {
        Accepted::Still => Finding::new(RUNNER_VERSION_CURRENT, true, "Accepted", message),
        Accepted::NoMore => bad("Refused", format!("{message}; {}", remedy(view))),
        Accepted::Ends if behind.vms == 0 => bad("Outdated", format!("{message}; {}", remedy(view))),
        Accepted::Ends => bad("ImageOutdated", format!("{message}; {}", remedy(view))),
    }
}

/// Whether a runner was turned away for its version, none was accepted since, and nobody has seen to it yet.
fn refused(view: &PoolView) -> bool {
    let latest = matches!(&view.offer, Offered::Known(o) if view.pool.spec.runner.version.as_ref() == Some(&o.version));
    view.history.failures() > 0 && view.history.last_reason == VERSION_REFUSED && view.desired() > 0 && !latest
}

enum Accepted {
    /// No end is known.
    Still,
    /// There is an end to come.
    Ends,
    /// It has come.
    NoMore,
}

/// Whether GitHub accepts what is behind, and until when.
fn end(support: Option<&Support>, now: Timestamp) -> (Accepted, String) {
    let Some(support) = support else {
        return (Accepted::Ends, "GitHub gives no jobs to a version 30 days after it was replaced".into());
    };
    let ends = [("registers it", support.registers_until), ("gives it jobs", support.runs_until)];
    let ends: Vec<_> = ends.into_iter().filter_map(|(what, end)| Some((what, end?))).collect();
    let told = |(what, end): &(&str, Timestamp)| match *end <= now {
        true => format!("GitHub no longer {what} since {}", end.strftime("%F")),
        false => format!("GitHub {what} until {}", end.strftime("%F")),
    };
    let text = ends.iter().map(told).collect::<Vec<_>>().join(", ");
    match ends.iter().map(|(_, end)| end).min() {
        None => (Accepted::Still, "GitHub accepts it and has set no end".into()),
        Some(first) if *first <= now => (Accepted::NoMore, text),
        Some(_) => (Accepted::Ends, text),
    }
}

/// What a person can do about it.
fn remedy(view: &PoolView) -> &'static str {
    match (&view.pool.spec.runner.version, &view.pool.spec.runner.checksums) {
        (None, _) => {
            "new VMs that do, too, have it from their image: put a newer runner into it, or set spec.runner.minimumVersion"
        }
        (Some(_), Some(_)) => "set spec.runner.version to the newer one, or leave it out",
        (Some(_), None) => {
            "set spec.runner.version to the newer one, or leave it out; only images that have it can start it: GitHub does \
             not offer it, and spec.runner.checksums is not set"
        }
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

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

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
            support: None,
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
            let found = finding(&view(runner.clone(), versions), NOW);
            assert_eq!(found.reason, reason, "{runner} and {versions:?}: {}", found.message);
            assert_eq!(found.state == State::True, reason == "Current", "{runner} and {versions:?}");
        }
    }

    #[test]
    fn a_vm_that_leaves_is_nobodys_worry_and_the_oldest_of_the_others_is_named() {
        let mut behind = view(json!({}), &["2.300.0", "2.331.0", "2.330.0"]);
        behind.vms.first_mut().expect("a VM").leaving = true;
        let message = finding(&behind, NOW).message;
        assert!(message.contains("2 VMs run 2.330.0 or so"), "{message}");
    }

    #[test]
    fn where_github_tells_the_end_of_a_version_that_counts() {
        let day = |day: i64| Timestamp::from_second(day * 86_400).ok();
        for (registers_until, runs_until, reason, part) in [
            (None, None, "Accepted", "has set no end"),
            (day(30), None, "ImageOutdated", "registers it until 1970-01-31"),
            (day(30), day(60), "ImageOutdated", "until 1970-01-31, GitHub gives it jobs until 1970-03-02"),
            (day(-1), day(60), "Refused", "no longer registers it since 1969-12-31"),
            (None, day(0), "Refused", "no longer gives it jobs since 1970-01-01"),
        ] {
            let support = Some(Support { registers_until, runs_until });
            let found = finding(&PoolView { support, ..view(json!({}), &["2.331.0"]) }, NOW);
            assert_eq!(found.reason, reason, "{}", found.message);
            assert!(found.message.contains(part), "{}", found.message);
            assert_eq!(found.state == State::True, reason == "Accepted");
        }
    }

    #[test]
    fn a_runner_that_was_turned_away_for_its_version_is_said_until_one_is_accepted() {
        let mut refused = view(json!({}), &[]);
        refused.history.failed((VERSION_REFUSED, "GitHub refused runner 2.300.0"), NOW);
        let found = finding(&refused, NOW);
        assert_eq!((found.state, found.reason.as_str()), (State::False, "Refused"));
        assert!(found.message.starts_with("GitHub refused runner 2.300.0; new VMs"), "{}", found.message);
        let mut mended = PoolView { pool: refused.pool.clone(), ..view(json!({}), &[]) };
        mended.history.clone_from(&refused.history);
        mended.pool.spec.runner.version = Some("2.337.0".into());
        assert_eq!(finding(&mended, NOW).reason, "Current", "it asks for what GitHub offers");
        refused.history.registered();
        assert_eq!(finding(&refused, NOW).reason, "Current");
    }

    #[test]
    fn no_answer_of_github_is_no_finding() {
        let unknown = PoolView { offer: no_offer(), ..view(json!({"version": "2.300.0"}), &["2.300.0"]) };
        assert_eq!(
            (finding(&unknown, NOW).state, finding(&unknown, NOW).reason.as_str()),
            (State::Unknown, "NotAsked")
        );
    }

    #[test]
    fn an_old_version_that_can_no_longer_be_fetched_is_said_to_be_so() {
        let told = |runner| finding(&view(runner, &[]), NOW).message;
        assert!(told(json!({"version": "2.300.0"})).contains("spec.runner.checksums is not set"));
        let pinned = json!({"version": "2.300.0", "checksums": {"x64": "a".repeat(64)}});
        assert!(!told(pinned).contains("checksums"));
    }
}
