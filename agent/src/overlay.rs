//! What the operator wants, as values of the agent's own settings: so they are checked like every other value, all at
//! once, are shown with their source, and give way to what someone set on this machine.

use miglet_proto::v1;

use crate::{installation::architecture, plan::Values, settings::Key};

/// The keys that say which runner is installed: they are taken from one source all together, because a version of one and
/// a hash of another fit nothing.
pub(crate) const RUNNER: [&str; 4] =
    ["runner-version", "runner-minimum-version", "runner-sha256", "runner-offered-url"];

/// How the agent works, as values by key. What is left out is the machine's own business.
#[must_use]
pub fn agent(agent: &v1::AgentConfig) -> Values {
    known(agent_values(agent))
}

/// Which runner is started and how, likewise.
#[must_use]
pub fn runner(runner: &v1::RunnerSettings) -> Values {
    known(runner_values(runner))
}

/// Keys this agent does not have are left out.
fn known(values: Vec<(&'static str, String)>) -> Values {
    let known = values.into_iter().filter_map(|(name, value)| Some((Key::named(name)?.name, value)));
    known.filter(|(_, value)| !value.is_empty()).collect()
}

fn agent_values(agent: &v1::AgentConfig) -> Vec<(&'static str, String)> {
    let guards = agent.guards.unwrap_or_default();
    let number = |number: u32| if number == 0 { String::new() } else { number.to_string() };
    let mut values = vec![
        ("heartbeat-seconds", number(agent.heartbeat_period_seconds)),
        ("log-level", level(agent.log_level)),
        ("guard-runtime-seconds", number(guards.max_runtime_seconds)),
        ("maximum-lifetime-seconds", number(agent.maximum_lifetime_seconds)),
    ];
    let names = [
        ("guard-disk-warn-percent", "guard-disk-act-percent", guards.disk),
        ("guard-memory-warn-percent", "guard-memory-act-percent", guards.memory),
    ];
    for (warn, act, threshold) in names {
        if let Some(threshold) = threshold {
            // Also 0: it is a threshold that never acts.
            values.extend([(warn, threshold.warn_percent.to_string()), (act, threshold.act_percent.to_string())]);
        }
    }
    values
}

/// A word that is no level is refused where it is read: a newer operator may know more of them.
fn level(level: i32) -> String {
    match v1::LogLevel::try_from(level) {
        Ok(v1::LogLevel::Unspecified) => String::new(),
        Ok(level) => level.as_str_name().trim_start_matches("LOG_LEVEL_").to_lowercase(),
        Err(_) => format!("level {level}"),
    }
}

fn runner_values(runner: &v1::RunnerSettings) -> Vec<(&'static str, String)> {
    let archive = runner.archives.iter().find(|archive| archive.architecture == architecture());
    let mut values = vec![
        ("runner-metadata-access", access(runner.metadata_access).to_owned()),
        ("hook-job-started", runner.job_started_hook.clone()),
        ("hook-job-completed", runner.job_completed_hook.clone()),
    ];
    // Without a hash nothing can be fetched: what is in the image will do, unless a user asked for a certain version.
    if archive.is_some() || runner.required {
        values.extend([
            ("runner-version", runner.version.clone()),
            ("runner-minimum-version", runner.minimum_version.clone()),
            ("runner-sha256", archive.map(|archive| archive.sha256.clone()).unwrap_or_default()),
        ]);
    }
    // Not one more source: a bucket that the machine's template names is not forgotten for it.
    values.push(("runner-offered-url", archive.map(|archive| archive.url.clone()).unwrap_or_default()));
    values.push(("runner-sources", runner.sources.join(" ")));
    values
}

fn access(access: i32) -> &'static str {
    match v1::MetadataAccess::try_from(access) {
        Ok(v1::MetadataAccess::Unspecified) => "",
        Ok(v1::MetadataAccess::Allowed) => "allowed",
        // Also what a newer operator may mean: the safer one.
        Ok(v1::MetadataAccess::Blocked) | Err(_) => "blocked",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn of(settings: v1::RunnerSettings) -> BTreeMap<&'static str, String> {
        runner(&settings).into_iter().collect()
    }

    fn archive(architecture: &str) -> v1::RunnerArchive {
        v1::RunnerArchive { architecture: architecture.into(), sha256: "a".repeat(64), url: "https://g/own".into() }
    }

    #[test]
    fn the_archive_of_this_machine_is_taken_and_the_users_sources_beside_it() {
        let values = of(v1::RunnerSettings {
            version: "2.336.0".into(),
            archives: vec![archive("mips"), archive(architecture())],
            sources: vec!["https://bucket/{version}".into()],
            ..v1::RunnerSettings::default()
        });
        assert_eq!(values["runner-sources"], "https://bucket/{version}");
        assert_eq!(values["runner-offered-url"], "https://g/own");
        assert_eq!((values["runner-version"].as_str(), values["runner-sha256"].len()), ("2.336.0", 64));
    }

    #[test]
    fn what_cannot_be_fetched_is_not_asked_for_unless_a_user_did() {
        let offered = v1::RunnerSettings { version: "2.336.0".into(), ..v1::RunnerSettings::default() };
        assert_eq!(of(offered.clone()).get("runner-version"), None);
        let required = of(v1::RunnerSettings { required: true, ..offered });
        assert_eq!(required.get("runner-version").map(String::as_str), Some("2.336.0"));
        assert_eq!(required.get("runner-sha256"), None);
    }

    /// A name of no key would be left out without a word.
    #[test]
    fn everything_an_operator_can_say_is_a_key_of_ours() {
        let threshold = Some(v1::Threshold { warn_percent: 1, act_percent: 2 });
        let guards = v1::Guards { max_runtime_seconds: 60, disk: threshold, memory: threshold };
        let agent = v1::AgentConfig {
            heartbeat_period_seconds: 5,
            log_level: 4,
            guards: Some(guards),
            maximum_lifetime_seconds: 9,
        };
        let runner = v1::RunnerSettings {
            version: "2.336.0".into(),
            minimum_version: "2.330.0".into(),
            required: true,
            archives: vec![archive(architecture())],
            sources: vec!["https://bucket/r".into()],
            metadata_access: 1,
            job_started_hook: "/a.sh".into(),
            job_completed_hook: "/b.sh".into(),
        };
        assert_eq!(super::agent(&agent), agent_values(&agent));
        assert_eq!(super::runner(&runner), runner_values(&runner));
    }

    #[test]
    fn what_is_unset_is_left_to_the_machine() {
        assert_eq!(runner(&v1::RunnerSettings::default()), []);
        assert_eq!(agent(&v1::AgentConfig::default()), []);
        let some = v1::AgentConfig { heartbeat_period_seconds: 5, log_level: 4, ..v1::AgentConfig::default() };
        assert_eq!(agent(&some), [("heartbeat-seconds", "5".to_owned()), ("log-level", "debug".to_owned())]);
    }
}
