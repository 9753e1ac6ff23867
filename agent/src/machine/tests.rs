//! The real machine's programs are scripts here.

use std::os::unix::fs::PermissionsExt;

use super::*;

/// Programs that note how they were called, on what input, and end as told.
struct Programs(tempfile::TempDir);

impl Programs {
    fn new(end: &str) -> Self {
        let dir = tempfile::tempdir().expect("dir");
        for name in ["systemctl", "nft", "useradd"] {
            let path = dir.path().join(name);
            let script = format!("#!/bin/sh\n(echo {name} \"$@\"; cat) >> \"$0.called\"\n{end}\n");
            std::fs::write(&path, script).expect("script");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("mode");
        }
        std::fs::write(dir.path().join("passwd"), "root:x:0:0::/root:/bin/sh\nrunner:x:1001:1001::/home/runner:\n")
            .expect("passwd");
        std::fs::write(dir.path().join("group"), "").expect("group");
        Self(dir)
    }

    fn machine(&self) -> Systemd {
        Systemd { bin: self.0.path().to_owned(), etc: self.0.path().to_owned(), units: self.0.path().join("units") }
    }

    fn called(&self, name: &str) -> String {
        std::fs::read_to_string(self.0.path().join(format!("{name}.called"))).unwrap_or_default()
    }
}

fn jobs(user: &str, metadata_access: MetadataAccess) -> Jobs {
    Jobs { user: user.to_owned(), allow_root: false, metadata_access }
}

#[tokio::test]
async fn a_machine_that_refuses_to_go_off_is_an_error_that_says_why() {
    let programs = Programs::new("echo inhibited >&2; exit 1");
    let error = programs.machine().power_off().await.expect_err("refused").to_string();
    assert!(error.starts_with("could not power off the machine") && error.ends_with("inhibited"), "{error}");
    assert_eq!(programs.called("systemctl"), "systemctl poweroff\n");
}

#[tokio::test]
async fn jobs_are_confined_by_the_rules_for_their_user() {
    let programs = Programs::new("");
    programs.machine().confine(&jobs("runner", MetadataAccess::Blocked)).await.expect("confined");
    assert_eq!(programs.called("nft"), format!("nft -f -\n{}", ruleset(MetadataAccess::Blocked, 1001)));
}

#[tokio::test]
async fn jobs_that_cannot_be_kept_from_the_metadata_server_are_not_run() {
    let programs = Programs::new("exit 1");
    let error = programs.machine().confine(&jobs("runner", MetadataAccess::Blocked)).await.expect_err("refused");
    assert!(error.to_string().contains("install nftables"), "{error}");
    programs.machine().confine(&jobs("runner", MetadataAccess::Allowed)).await.expect("nothing to keep them from");

    let missing = Systemd { bin: "/nonexistent".into(), ..programs.machine() };
    let error = missing.confine(&jobs("runner", MetadataAccess::Blocked)).await.expect_err("refused");
    assert!(error.to_string().contains("install nftables"), "{error}");
}

#[tokio::test]
async fn an_examination_tells_what_confining_would_without_doing_it() {
    let jobs = jobs("runner", MetadataAccess::Blocked);
    let programs = Programs::new("");
    assert_eq!(programs.machine().could_confine(&jobs).await.expect("it could").uid, 1001);
    assert!(programs.called("nft").starts_with("nft --check -f -\n"));
    let error = Programs::new("exit 1").machine().could_confine(&jobs).await.expect_err("refused").to_string();
    assert!(error.contains("install nftables"), "{error}");
}

#[tokio::test]
async fn root_gets_jobs_only_when_asked_for_and_never_half_confined() {
    let machine = Programs::new("");
    let refused = machine.machine().confine(&jobs("root", MetadataAccess::Allowed)).await;
    assert!(matches!(refused, Err(MachineError::User(UserError::Root(_)))));
    let asked_for = Jobs { allow_root: true, ..jobs("root", MetadataAccess::Blocked) };
    assert!(matches!(machine.machine().confine(&asked_for).await, Err(MachineError::RootAccess)));
    let open = Jobs { metadata_access: MetadataAccess::Allowed, ..asked_for };
    machine.machine().confine(&open).await.expect("asked for both");
}

#[tokio::test]
async fn a_missing_user_is_made_once_and_an_existing_one_left_alone() {
    let programs = Programs::new("");
    programs.machine().create_user(&jobs("runner", MetadataAccess::Blocked)).await.expect("there");
    assert_eq!(programs.called("useradd"), "");
    programs.machine().create_user(&jobs("builder", MetadataAccess::Blocked)).await.expect("made");
    assert_eq!(programs.called("useradd"), "useradd --create-home --user-group --shell /bin/bash -- builder\n");
}

#[tokio::test]
async fn the_supervisor_runs_in_a_unit_of_its_own() {
    let programs = Programs::new("");
    programs.machine().start_shim(Path::new("/x"), Path::new("/y")).await.expect("started");
    assert_eq!(programs.called("systemctl"), "systemctl start --job-mode=ignore-dependencies miglet-runner.service\n");
}

#[tokio::test]
async fn the_last_resort_is_the_packaged_timer_with_the_age_of_the_settings() {
    const ARMED: &str = "systemctl daemon-reload\nsystemctl restart miglet-last-resort.timer\n";
    const ASKED: &str = "systemctl is-active miglet-last-resort.timer\n";
    let programs = Programs::new("");
    let machine = programs.machine();
    let limit = async |seconds| machine.limit_lifetime(Some(Duration::from_secs(seconds))).await.expect("armed");
    let age = || std::fs::read_to_string(programs.0.path().join("units/miglet-last-resort.timer.d/age.conf"));
    assert!(!machine.has_limited_lifetime());
    limit(86_700).await;
    assert!(programs.machine().has_limited_lifetime(), "the next agent knows it");
    assert_eq!(programs.called("systemctl"), ARMED);
    assert_eq!(age().expect("drop-in"), "[Timer]\nOnBootSec=\nOnBootSec=86700\n");
    // The next agent's.
    limit(86_700).await;
    assert_eq!(programs.called("systemctl"), format!("{ARMED}{ASKED}"), "it is armed, and runs on");
    limit(500).await;
    assert_eq!(programs.called("systemctl"), format!("{ARMED}{ASKED}{ARMED}"));
    assert!(age().expect("drop-in").ends_with("OnBootSec=500\n"));
    machine.limit_lifetime(None).await.expect("disarmed");
    assert!(programs.called("systemctl").ends_with("systemctl stop miglet-last-resort.timer\n"));
}

#[tokio::test]
async fn a_last_resort_that_somebody_stopped_is_armed_again() {
    let programs = Programs::new("case \"$1\" in is-active) exit 3;; esac");
    for _ in 0..2 {
        programs.machine().limit_lifetime(Some(Duration::from_secs(1))).await.expect("armed");
    }
    assert_eq!(programs.called("systemctl").matches("restart miglet-last-resort.timer").count(), 2);
}
