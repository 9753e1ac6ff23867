//! Precedence and complaints.

use clap::Args;

use super::*;

fn pem() -> String {
    rcgen::generate_simple_self_signed(vec!["gateway".into()]).expect("certificate").cert.pem()
}

fn environment(pairs: &[(&str, &str)]) -> Environment {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn flags(pairs: &[(&'static str, &str)]) -> Flags {
    Flags::of(pairs.iter().map(|(name, value)| (*name, Some((*value).to_owned()))))
}

#[test]
fn a_flag_beats_the_environment_which_beats_the_file_which_beats_the_default() {
    let dir = tempfile::tempdir().expect("dir");
    let file = dir.path().join("config.yaml");
    std::fs::write(&file, "endpoint: https://file:3\nstate-dir: /file\ndata-dir: /file\n").expect("file");
    let ca = pem();
    let environment = environment(&[
        ("MIGLET_ENDPOINT", "https://environment:2"),
        ("MIGLET_CA", &ca),
        ("MIGLET_AUDIENCE", "fleet"),
        ("MIGLET_STATE_DIR", "/environment"),
        ("MIGLET_CONFIG", &file.display().to_string()),
        ("MIGLET_RUNNER_DIR", ""),
    ]);
    let settings =
        Collected::new(&flags(&[("endpoint", "https://flag:1")]), &environment).settings().expect("settings");
    assert_eq!((settings.host.as_str(), settings.port), ("flag", 1));
    assert_eq!(settings.paths.state, PathBuf::from("/environment"));
    assert_eq!(settings.paths.data, PathBuf::from("/file"));
    assert_eq!(settings.paths.runner, PathBuf::from("/opt/actions-runner"));
    let source = |name: &str| settings.sources.iter().find(|s| s.key == name).map(|s| s.source);
    assert_eq!((source("endpoint"), source("state-dir")), (Some(Source::Flag), Some(Source::Environment)));
    assert_eq!((source("data-dir"), source("runner-dir")), (Some(Source::File), Some(Source::Default)));
    let shown = settings.sources.iter().find(|s| s.key == "ca").map(|s| s.value.as_str());
    assert_eq!(shown, Some("PEM text of 1 certificate(s)"));
}

#[test]
fn every_problem_of_every_source_is_told_at_once() {
    let dir = tempfile::tempdir().expect("dir");
    let file = dir.path().join("config.yaml");
    std::fs::write(&file, "machin: systemd\nca: /nowhere\n").expect("file");
    let flags = flags(&[("endpoint", "http://plain"), ("machine", "toaster"), ("heartbeat-seconds", "0")]);
    let environment = environment(&[
        ("MIGLET_ENDPIONT", "https://x"),
        ("MIGLET_LOG_LEVEL", "loud"),
        ("MIGLET_CONFIG", &file.display().to_string()),
    ]);
    let Err(SettingsError::Invalid(problems)) = Collected::new(&flags, &environment).settings() else {
        panic!("accepted")
    };
    let told = problems.join("\n");
    for wanted in [
        "https://host:port",
        "ca (from file): neither PEM",
        "toaster",
        "1 to 3600",
        "set --audience, MIGLET_AUDIENCE, audience in the configuration file or the instance attribute miglet-audience",
        "unknown key \"machin\"",
        "unknown environment variable MIGLET_ENDPIONT",
        "log-level (from environment): \"loud\"",
    ] {
        assert!(told.contains(wanted), "{wanted} in {told}");
    }
    assert_eq!(problems.len(), 8, "{told}");
}

#[test]
fn an_address_may_be_an_ipv6_one() {
    let (ca, empty) = (pem(), Environment::new());
    for (endpoint, host, port) in [("https://[::1]:9000", "::1", 9000), ("https://gateway", "gateway", 443)] {
        let flags = flags(&[("endpoint", endpoint), ("ca", &ca), ("audience", "fleet")]);
        let settings = Collected::new(&flags, &empty).settings().expect("settings");
        assert_eq!((settings.host.as_str(), settings.port), (host, port));
    }
}

#[test]
fn every_key_has_a_flag_and_names_of_its_own() {
    let command = Flags::augment_args(clap::Command::new("miglet"));
    let mut variables = std::collections::BTreeSet::new();
    for key in KEYS {
        let flag = command.get_arguments().find(|flag| flag.get_long() == Some(key.name));
        assert!(flag.is_some_and(|flag| flag.get_help().is_some()), "{}", key.name);
        assert!(variables.insert(key.variable()) && key.help.ends_with('.'), "{}", key.name);
    }
}

/// A bucket that the template names is not forgotten because the operator knows where GitHub has the archive too.
#[test]
fn what_github_offers_is_tried_after_the_machines_own_sources_and_instead_of_the_default() {
    let (ca, empty) = (pem(), Environment::new());
    let required = [("endpoint", "https://gateway"), ("ca", &ca), ("audience", "fleet")];
    let offer =
        [("runner-version", "2.336.0"), ("runner-sha256", &"a".repeat(64)), ("runner-offered-url", "https://g/own")]
            .map(|(name, value)| (name, value.to_owned()));
    let sources = |own: &[(&'static str, &str)], operator: &[(&'static str, String)]| {
        let settings = Collected::new(&flags(&[&required, own].concat()), &empty).settings().expect("settings");
        let archive = settings.with_operator(operator).expect("settings").installation.archive.expect("an archive");
        archive.sources.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(sources(&[], &offer), ["https://g/own"]);
    assert_eq!(sources(&[("runner-sources", "https://bucket/x")], &offer), ["https://bucket/x", "https://g/own"]);
    let named = [offer.to_vec(), vec![("runner-sources", "https://pool/x".to_owned())]].concat();
    assert_eq!(sources(&[], &named), ["https://pool/x", "https://g/own"]);
    let pinned =
        [("runner-version", "2.300.0"), ("runner-sha256", &"b".repeat(64)), ("runner-sources", "https://own/x")];
    assert_eq!(sources(&pinned, &offer), ["https://own/x"], "that is another version's");
}
