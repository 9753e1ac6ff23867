//! Precedence and complaints.

use super::*;

fn pem() -> String {
    rcgen::generate_simple_self_signed(vec!["gateway".into()]).expect("certificate").cert.pem()
}

fn values(pairs: &[(&'static str, &str)]) -> Values {
    let mut values = Values::default();
    for (name, value) in pairs {
        values.put(name, Some((*value).to_owned()), Source::Flag);
    }
    for key in &KEYS {
        values.put(key.name, key.default.map(str::to_owned), Source::Default);
    }
    values
}

#[tokio::test]
async fn a_flag_beats_the_environment_which_beats_the_default() {
    let flags = Flags { endpoint: Some("https://flag:1".into()), ..Flags::default() };
    let ca = pem();
    let settings = load(&flags, |name| match name {
        "MIGLET_ENDPOINT" => Some("https://environment:2".into()),
        "MIGLET_CA" => Some(ca.clone()),
        "MIGLET_AUDIENCE" => Some("fleet".into()),
        "MIGLET_STATE_DIR" => Some("/environment".into()),
        _ => None,
    })
    .await
    .expect("settings");
    assert_eq!((settings.host.as_str(), settings.port), ("flag", 1));
    assert_eq!(settings.paths.state, PathBuf::from("/environment"));
    assert_eq!(settings.paths.data, PathBuf::from("/var/lib/miglet"));
    let source = |name: &str| settings.sources.iter().find(|s| s.key == name).map(|s| s.source);
    assert_eq!(source("endpoint"), Some(Source::Flag));
    assert_eq!(source("state-dir"), Some(Source::Environment));
    assert_eq!(source("data-dir"), Some(Source::Default));
}

#[test]
fn every_problem_is_told_at_once() {
    let values =
        values(&[("endpoint", "http://plain"), ("ca", "/nowhere"), ("machine", "toaster"), ("heartbeat-seconds", "0")]);
    let Err(SettingsError::Invalid(problems)) = check(&values) else { panic!("accepted") };
    let told = problems.join("\n");
    for wanted in ["https://host:port", "neither PEM", "toaster", "1 to 3600", "set --audience, MIGLET_AUDIENCE"] {
        assert!(told.contains(wanted), "{wanted} in {told}");
    }
    assert_eq!(problems.len(), 5, "{told}");
}

#[test]
fn an_address_may_be_an_ipv6_one() {
    assert_eq!(parse_endpoint("https://[::1]:9000"), Ok(("::1".into(), 9000)));
    assert_eq!(parse_endpoint("https://gateway"), Ok(("gateway".into(), 443)));
}

#[test]
fn every_key_has_a_flag() {
    let flags = Flags {
        endpoint: Some("x".into()),
        ca: Some("x".into()),
        audience: Some("x".into()),
        runner_dir: Some("x".into()),
        state_dir: Some("x".into()),
        data_dir: Some("x".into()),
        machine: Some("x".into()),
        heartbeat_seconds: Some("x".into()),
        metadata_host: Some("x".into()),
        boot_id: Some("x".into()),
    };
    assert!(KEYS.iter().all(|key| flags.get(key.name).is_some()));
}
