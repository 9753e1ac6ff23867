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
    match oldest.filter(|_| wanted.minimum_version.is_some()) {
        Some(oldest) => bad(
            "ImageOutdated",
            format!(
                "GitHub offers {latest}, {count} VMs run {oldest} or so from their image: {soon}; put a newer runner into \
                 the image or raise spec.runner.minimumVersion"
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
