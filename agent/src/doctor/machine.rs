//! The machine itself: runner, libraries, disk, user, cgroups.

use std::path::Path;

use super::Finding;
use crate::{
    error::in_full,
    firewall::MetadataAccess,
    installation::{Installation, Installed, Linker, Origin, free_space},
    machine::{Jobs, Systemd},
};

const GIB: u64 = 1024 * 1024 * 1024;

/// The runner and what it needs.
pub(super) async fn runner(installation: &Installation) -> Vec<Finding> {
    let dir = installation.runner_dir.display();
    match (installation.present(), &installation.archive) {
        (Some(Installed { dir, origin, .. }), _) => {
            let origin = if origin == Origin::Image { "of the image" } else { "installed" };
            let found = format!("{} ({origin})", dir.display());
            vec![Finding::ok("runner", found), libraries(&dir).await]
        }
        (None, Some(archive)) => {
            let found = format!("{} is not here yet", archive.version);
            vec![Finding::warning("runner", found, "nothing, it is fetched at the start; or now: `miglet install`")]
        }
        (None, None) => {
            let advice = "nothing, the operator names the one to fetch; or bake one into the image: `miglet install`";
            vec![Finding::warning("runner", format!("there is none in {dir}"), advice)]
        }
    }
}

async fn libraries(dir: &Path) -> Finding {
    let missing = Linker::default().missing(dir).await;
    if missing.is_empty() {
        return Finding::ok("libraries", "none missing");
    }
    Finding::failure(
        "libraries",
        format!("missing: {missing}"),
        "install the packages, or run bin/installdependencies.sh of the runner",
    )
}

/// Where the runner works.
pub(super) fn disk(dir: &Path) -> Finding {
    // It may not exist yet.
    let free = dir.ancestors().find_map(|dir| Some((dir, free_space(dir)?)));
    free.map_or_else(
        || Finding::warning("disk", "unknown", "check by hand: `df -h`"),
        |(dir, free)| judge_disk(dir, free),
    )
}

fn judge_disk(dir: &Path, free: u64) -> Finding {
    const ADVICE: &str = "give the instance template a larger boot disk";
    let found = format!("{:.1} GiB free in {}", free as f64 / GIB as f64, dir.display());
    match free {
        ..GIB => Finding::failure("disk", found, ADVICE),
        _ if free < 5 * GIB => Finding::warning("disk", found, ADVICE),
        _ => Finding::ok("disk", found),
    }
}

/// Only root can turn the machine off and read the agent's state.
pub(super) fn user(must_be_root: bool) -> Finding {
    let user = rustix::process::geteuid().as_raw();
    let found = format!("user id {user}");
    match (user, must_be_root) {
        (0, _) => Finding::ok("user", found),
        (_, true) => Finding::failure("user", found, "run the agent, and this, as root"),
        (_, false) => Finding::warning("user", found, "run this as root, as the agent's unit does"),
    }
}

/// Whether jobs get their own user and no cloud identity.
pub(super) async fn jobs(machine: &Systemd, jobs: &Jobs) -> Finding {
    match machine.could_confine(jobs).await {
        Ok(account) => {
            let access = match jobs.metadata_access {
                MetadataAccess::Blocked => "kept from the metadata server",
                MetadataAccess::Allowed => "with the instance's service account",
            };
            Finding::ok("jobs", format!("run as {} (user id {}), {access}", account.name, account.uid))
        }
        // Each says what to do itself.
        Err(error) => Finding::failure("jobs", in_full(&error), ""),
    }
}

/// Whether the kernel can account for and end all that a job starts.
pub(super) fn cgroup(root: &Path) -> Finding {
    const ADVICE: &str =
        "boot with the unified hierarchy: systemd.unified_cgroup_hierarchy=1 on the kernel's command line";
    match std::fs::read_to_string(root.join("cgroup.controllers")) {
        Ok(controllers) if ["memory", "pids"].iter().all(|name| controllers.split_whitespace().any(|c| c == *name)) => {
            Finding::ok("cgroup", format!("version 2 with {}", controllers.trim()))
        }
        Ok(controllers) => Finding::warning("cgroup", format!("version 2 with only: {}", controllers.trim()), ADVICE),
        Err(_) => Finding::warning("cgroup", format!("no version 2 in {}", root.display()), ADVICE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn a_full_disk_is_a_failure_and_a_small_one_a_warning() {
        let verdict = |free| judge_disk(Path::new("/"), free).verdict;
        assert_eq!(
            (verdict(GIB - 1), verdict(GIB), verdict(5 * GIB)),
            (Verdict::Failure, Verdict::Warning, Verdict::Ok)
        );
    }

    #[test]
    fn a_machine_whose_runner_directory_is_still_to_come_has_a_disk() {
        assert!(disk(Path::new("/nonexistent/runner")).found.ends_with("free in /"));
    }

    #[test]
    fn cgroups_need_the_controllers_for_memory_and_processes() {
        let dir = tempfile::tempdir().expect("dir");
        assert_eq!(cgroup(dir.path()).verdict, Verdict::Warning);
        for (controllers, verdict) in [("cpu memory\n", Verdict::Warning), ("cpuset memory pids\n", Verdict::Ok)] {
            std::fs::write(dir.path().join("cgroup.controllers"), controllers).expect("file");
            assert_eq!(cgroup(dir.path()).verdict, verdict);
        }
    }
}
