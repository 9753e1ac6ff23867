//! The package's parts fit each other and the program. What they do on a machine only a machine shows.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use miglet_agent::{
    machine::{ALIVE_PERIOD, Jobs},
    settings::{Collected, Environment, Flags, KEYS},
};

/// What the agent's main loop waits at most, as its unit says too: for the start of a runner.
const LONGEST_WAIT: Duration = Duration::from_secs(75);

fn file(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn units() -> BTreeMap<String, String> {
    let entries = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/systemd")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.map(|name| (name.clone(), file(&format!("packaging/systemd/{name}")))).collect()
}

/// The values of this setting in a unit, in order.
fn values<'a>(unit: &'a str, setting: &str) -> Vec<&'a str> {
    unit.lines().filter_map(|line| line.strip_prefix(setting)?.strip_prefix('=')).collect()
}

/// Every command line of every unit, without systemd's prefixes.
fn command_lines() -> Vec<(String, Vec<String>)> {
    let mut lines = Vec::new();
    for (name, unit) in units() {
        for setting in ["ExecStartPre", "ExecStart", "ExecStop", "ExecStopPost"] {
            for line in values(&unit, setting) {
                let words = line.trim_start_matches(['+', '-', '!', '@', ':']).split_whitespace();
                lines.push((name.clone(), words.map(str::to_owned).collect()));
            }
        }
    }
    lines
}

#[test]
fn every_command_of_every_unit_is_one_that_the_program_knows() {
    let mut checked = Vec::new();
    for (unit, words) in command_lines() {
        let [program, arguments @ ..] = words.as_slice() else { panic!("{unit}: an empty command") };
        if program != "/usr/bin/miglet" {
            assert!(program.starts_with("/usr/bin/"), "{unit}: {program}");
            continue;
        }
        let output = Command::new(env!("CARGO_BIN_EXE_miglet")).args(arguments).arg("--help").output().unwrap();
        assert!(output.status.success(), "{unit}: {words:?}: {}", String::from_utf8_lossy(&output.stderr));
        checked.push(arguments[0].clone());
    }
    checked.sort();
    assert_eq!(checked, ["create-user", "drain", "run", "shim"]);
}

#[test]
fn a_machine_that_shuts_down_ends_its_runner_first_within_what_compute_engine_leaves_it() {
    /// What an interrupted listener may take.
    const INTERRUPT: u64 = 45;
    /// What a machine has after its notice.
    const MACHINE: u64 = 90;
    let units = units();
    let runner = &units["miglet-runner.service"];
    // Stopped in the reverse order: while the network, the agent and the job's containers are there.
    assert_eq!(values(runner, "After"), ["network-online.target miglet.service docker.service containerd.service"]);
    let [stop] = values(runner, "ExecStop")[..] else { panic!("no ExecStop") };
    let deadline = stop.strip_prefix("-/usr/bin/miglet drain --deadline ").unwrap().parse::<u64>().unwrap();
    let patience = values(runner, "TimeoutStopSec")[0].parse::<u64>().unwrap();
    assert!(deadline + INTERRUPT < patience && patience < MACHINE, "{deadline} + {INTERRUPT}, {patience}");
}

#[test]
fn the_last_resort_is_armed_with_the_agents_unit_and_needs_no_agent() {
    let units = units();
    let timer = &units["miglet-last-resort.timer"];
    let default = KEYS.iter().find(|key| key.name == "maximum-lifetime-seconds").unwrap().default.unwrap();
    let age = default.parse::<u64>().unwrap() + 300;
    assert_eq!(values(timer, "OnBootSec"), [age.to_string()]);
    assert_eq!(values(timer, "WantedBy"), ["timers.target"]);
    // What makes the package enable and start it.
    assert_eq!(values(&units["miglet.service"], "Also"), ["miglet-last-resort.timer"]);
    let service = &units["miglet-last-resort.service"];
    assert_eq!(values(service, "ExecStart"), ["/usr/bin/systemctl poweroff --force"]);
    // What has an [Install] section, the package would start.
    assert!(!service.contains("[Install]"));
    for (name, unit) in [("timer", timer), ("service", service)] {
        for bond in ["BindsTo", "PartOf", "Requires", "After", "Conflicts"] {
            assert!(values(unit, bond).is_empty(), "{name}: {bond}");
        }
    }
}

#[test]
fn an_agent_that_hangs_or_ends_is_started_again_and_finds_what_it_left_unless_its_settings_are_wrong() {
    let units = units();
    let agent = &units["miglet.service"];
    for (setting, value) in [
        ("Type", "notify"),
        ("NotifyAccess", "main"),
        ("Restart", "always"),
        ("RestartSec", "2"),
        ("StartLimitIntervalSec", "0"),
        ("RestartPreventExitStatus", "78"),
        ("TimeoutStartSec", "infinity"),
        ("RuntimeDirectoryPreserve", "yes"),
        ("OOMScoreAdjust", "-900"),
        ("OOMPolicy", "continue"),
    ] {
        assert_eq!(values(agent, setting), [value], "{setting}");
    }
    let [watchdog] = values(agent, "WatchdogSec")[..] else { panic!("no WatchdogSec") };
    let watchdog = Duration::from_secs(watchdog.parse().unwrap());
    assert!(watchdog > LONGEST_WAIT + 2 * ALIVE_PERIOD, "{watchdog:?}");
    // The unit of the runner is started by an agent that knows why, and by nobody else.
    assert_eq!(values(&units["miglet-runner.service"], "Restart"), ["no"]);
}

#[test]
fn the_agent_is_hardened_and_may_write_where_it_has_to() {
    let units = units();
    let agent = &units["miglet.service"];
    for on in [
        "NoNewPrivileges",
        "PrivateTmp",
        "ProtectClock",
        "ProtectControlGroups",
        "ProtectKernelLogs",
        "ProtectKernelModules",
        "ProtectKernelTunables",
        "ProtectHostname",
        "LockPersonality",
        "MemoryDenyWriteExecute",
        "RestrictNamespaces",
        "RestrictRealtime",
        "RestrictSUIDSGID",
    ] {
        assert_eq!(values(agent, on), ["yes"], "{on}");
    }
    for (setting, value) in [
        ("ProtectSystem", "strict"),
        ("ProtectHome", "read-only"),
        ("SystemCallArchitectures", "native"),
        ("RestrictAddressFamilies", "AF_UNIX AF_INET AF_INET6 AF_NETLINK"),
        ("RuntimeDirectoryMode", "0700"),
        ("UMask", "0077"),
        ("LimitCORE", "0"),
    ] {
        assert_eq!(values(agent, setting), [value], "{setting}");
    }
    for limit in ["MemoryMax", "TasksMax"] {
        assert_eq!(values(agent, limit).len(), 1, "{limit}");
    }
    let [capabilities] = values(agent, "CapabilityBoundingSet")[..] else { panic!("all capabilities") };
    for never in ["CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_SYS_MODULE", "CAP_SETUID"] {
        assert!(!capabilities.contains(never), "{never}");
    }
    let runner = KEYS.iter().find(|key| key.name == "runner-dir").unwrap().default.unwrap();
    assert_eq!(values(agent, "ReadWritePaths"), ["-/run/systemd/system"]);
    assert!(file("packaging/debian/postinst").contains(&format!("mkdir -p {runner}\n")));
}

#[test]
fn the_directories_of_the_units_are_the_defaults_of_the_settings() {
    let units = units();
    let agent = &units["miglet.service"];
    let default = |name: &str| KEYS.iter().find(|key| key.name == name).unwrap().default.unwrap();
    for (setting, root, key) in [
        ("RuntimeDirectory", "/run", "state-dir"),
        ("StateDirectory", "/var/lib", "data-dir"),
        ("CacheDirectory", "/var/cache", "cache-dir"),
    ] {
        let [directory] = values(agent, setting)[..] else { panic!("{setting}") };
        assert_eq!(format!("{root}/{directory}"), default(key));
    }
    let shim = format!("/usr/bin/miglet shim --state-dir {}", default("state-dir"));
    assert_eq!(values(&units["miglet-runner.service"], "ExecStart"), [shim]);
}

#[test]
fn the_package_holds_every_unit_and_every_file_that_they_name() {
    let manifest = file("Cargo.toml");
    // The one that cargo-deb installs by itself, with the scripts that start it.
    let (own, others): (Vec<_>, Vec<_>) = units().into_keys().partition(|name| name == "miglet.service");
    assert_eq!(own.len(), 1);
    for unit in others {
        assert!(manifest.contains(&format!("[\"packaging/systemd/{unit}\", \"usr/lib/systemd/system/\"")), "{unit}");
    }
    for path in ["/etc/miglet/environment", "/etc/miglet/config.yaml"] {
        let (directory, name) = path.rsplit_once('/').unwrap();
        let asset = format!("[\"packaging/{name}\", \"{}/\"", directory.trim_start_matches('/'));
        assert!(manifest.contains(&asset), "{asset}");
    }
    for (name, unit) in units() {
        let ours = unit.contains("/usr/bin/miglet ");
        let expected: &[_] = if ours { &["-/etc/miglet/environment"] } else { &[] };
        assert_eq!(values(&unit, "EnvironmentFile"), expected, "{name}");
    }
    assert_eq!(KEYS.iter().find(|key| key.name == "config").unwrap().default, Some("/etc/miglet/config.yaml"));
}

/// What the agent's unit says about this command, and the command line itself, which nothing outweighs.
fn as_the_unit(command: &str, config: &Path, environment: &Environment) -> Collected {
    let line = command_lines().into_iter().find(|(_, words)| words[1] == command).unwrap().1;
    let given =
        |name: &str| line.iter().position(|word| word.strip_prefix("--") == Some(name)).map(|at| line[at + 1].clone());
    let flags = KEYS.iter().map(|key| (key.name, given(key.name)));
    let config = ("config", Some(config.display().to_string()));
    Collected::new(&Flags::of(flags.chain([config])), environment)
}

#[test]
fn the_agents_unit_makes_it_a_real_machine_with_its_own_user_whatever_files_and_variables_say() {
    let packaged = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/config.yaml");
    let other = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(other.path(), "machine: process\n").unwrap();
    let process = Environment::from([("MIGLET_MACHINE".to_owned(), "process".to_owned())]);
    for command in ["run", "create-user"] {
        for (config, environment) in [(packaged.as_path(), &Environment::new()), (other.path(), &process)] {
            let collected = as_the_unit(command, config, environment);
            let Jobs { user, allow_root, .. } = collected.jobs().unwrap().expect("a machine run by systemd");
            assert!(!allow_root);
            let made = format!(" {user}");
            let install = file("packaging/debian/postinst");
            assert!(install.lines().any(|line| line.contains("useradd") && line.trim_end().ends_with(&made)), "{user}");
        }
    }
}

/// What `miglet doctor` and `miglet config` know of it is what the unit says.
#[test]
fn the_packaged_configuration_is_valid_and_does_not_contradict_the_unit() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/config.yaml");
    let collected = Collected::new(&Flags::of([("config", Some(path.to_owned()))]), &Environment::new());
    assert!(collected.problems().is_empty(), "{:?}", collected.problems());
    assert!(collected.jobs().unwrap().is_some(), "a machine run by systemd");
}

#[test]
fn jobs_get_none_of_the_hardening_that_breaks_them_and_all_of_the_limits() {
    let units = units();
    let runner = &units["miglet-runner.service"];
    for breaks in ["NoNewPrivileges", "ProtectSystem", "ProtectHome", "PrivateTmp", "CapabilityBoundingSet", "Restrict"]
    {
        assert!(!runner.lines().any(|line| line.starts_with(breaks)), "{breaks}");
    }
    for (setting, value) in
        [("Delegate", "yes"), ("KillMode", "control-group"), ("LimitCORE", "0"), ("OOMPolicy", "continue")]
    {
        assert_eq!(values(runner, setting), [value], "{setting}");
    }
    for limit in ["TasksMax", "MemoryMax"] {
        assert_eq!(values(runner, limit).len(), 1, "{limit}");
    }
    // An upgrade of the package, or a crash of the agent, must not reach the runner through its unit.
    for bond in ["BindsTo", "PartOf", "Requires", "PropagatesStopTo"] {
        assert!(values(runner, bond).is_empty(), "{bond}");
    }
}

#[test]
fn the_scripts_of_the_package_are_valid_shell() {
    let packaging = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging");
    let scripts: Vec<PathBuf> = [packaging.clone(), packaging.join("debian")]
        .iter()
        .flat_map(|dir| std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()))
        .filter(|path| path.is_file() && std::fs::read_to_string(path).unwrap().starts_with("#!"))
        .collect();
    assert!(scripts.len() >= 2, "{scripts:?}");
    for script in scripts {
        let output = Command::new("bash").arg("-n").arg(&script).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
