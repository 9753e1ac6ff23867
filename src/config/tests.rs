use std::time::Duration;

use clap::{CommandFactory, Parser};

use super::*;

fn parse(args: &[&str]) -> Result<Config, String> {
    let args = ["miglet-operator"].iter().chain(args);
    Config::parse_from_args(args).map_err(|error| error.to_string())
}

fn refused(args: &[&str]) -> String {
    parse(args).expect_err("must be refused")
}

#[test]
fn the_command_is_consistent() {
    Config::command().debug_assert();
}

#[test]
fn defaults_are_the_products() {
    let config = parse(&[]).unwrap();
    assert_eq!(config.cluster.namespace, "miglet-system");
    assert_eq!(config.listen.agent_listen, "0.0.0.0:8443".parse().unwrap());
    assert_eq!(config.lease.lease_duration, Duration::from_secs(15));
    assert_eq!(config.timing.absence, Duration::from_secs(60));
    assert_eq!(config.timing.idle_sighting, Duration::from_secs(100));
    assert_eq!(config.timing.sweep_limit, 50);
    assert_eq!(config.services.audience, "miglet");
    assert_eq!(config.log.format, LogFormat::Json);
}

#[test]
fn durations_take_fractions_of_seconds() {
    let config = parse(&["--list-interval-seconds", "0.25"]).unwrap();
    assert_eq!(config.timing.list_interval, Duration::from_millis(250));
}

#[test]
fn durations_that_are_none_are_refused_with_the_flags_name() {
    for value in ["0", "-1", "nan", "inf", "soon", "86401"] {
        let error = refused(&[&format!("--heartbeat-seconds={value}")]);
        assert!(error.contains("--heartbeat-seconds"), "{error}");
        assert!(error.contains("must be"), "{error}");
    }
}

#[test]
fn a_renewal_must_fit_twice_in_a_lease() {
    assert!(parse(&["--lease-duration-seconds", "2", "--lease-renew-seconds", "1"]).is_ok());
    let error = refused(&["--lease-duration-seconds", "2", "--lease-renew-seconds", "1.1"]);
    assert!(error.contains("--lease-renew-seconds (1.1) must be at most half"), "{error}");
    let error = refused(&["--lease-duration-seconds", "0.5", "--lease-renew-seconds", "0.1"]);
    assert!(error.contains("at least 1"), "{error}");
}

#[test]
fn two_lists_must_fit_in_the_absence() {
    let error = refused(&["--absence-seconds", "1", "--list-interval-seconds", "2"]);
    assert!(error.contains("--absence-seconds (1) must be at least --list-interval-seconds (2)"), "{error}");
}

#[test]
fn a_service_needs_the_pods_address() {
    let error = refused(&["--service-name", "miglet-gateway"]);
    assert!(error.contains("--pod-ip"), "{error}");
    assert!(parse(&["--service-name", "miglet-gateway", "--pod-ip", "10.0.0.7"]).is_ok());
}

#[test]
fn listeners_must_differ_unless_the_system_picks_their_ports() {
    let error = refused(&["--metrics-listen", "0.0.0.0:8443"]);
    assert!(error.contains("must differ"), "{error}");
    let any = "127.0.0.1:0";
    assert!(parse(&["--metrics-listen", any, "--health-listen", any, "--agent-listen", any]).is_ok());
}

#[test]
fn values_that_would_fail_later_are_refused_now() {
    for (args, hint) in [
        (["--service-account", "operator"], "namespace/name"),
        (["--log-level", "[oops"], "--log-level"),
        (["--compute-endpoint", "file:///tmp"], "http or https"),
        (["--audience", "two words"], "--audience"),
        (["--concurrency", "0"], "--concurrency"),
    ] {
        let error = refused(&args);
        assert!(error.contains(hint), "{args:?}: {error}");
    }
}

#[test]
fn each_flag_has_an_environment_variable_and_a_help_text() {
    for argument in Config::command().get_arguments().filter(|a| !["help", "version"].contains(&a.get_id().as_str())) {
        let variable = argument.get_env().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        assert!(
            variable.starts_with("MIGLET_") || variable.starts_with("POD_"),
            "{} has no variable",
            argument.get_id()
        );
        assert!(argument.get_help().is_some(), "{} has no help", argument.get_id());
    }
}

#[tokio::test]
async fn a_kubeconfig_that_cannot_be_read_is_named() {
    let config = Config::try_parse_from(["miglet-operator", "--kubeconfig", "/nonexistent/kubeconfig"]).unwrap();
    let error = config.cluster.connection().await.unwrap_err();
    assert_eq!(error.to_string(), "reading the kubeconfig /nonexistent/kubeconfig");
}

#[test]
fn the_help_says_what_the_operator_is_and_groups_its_flags() {
    let help = Config::command().render_long_help().to_string();
    assert!(help.starts_with("Keeps fleets of disposable GitHub Actions runners alive"), "{help}");
    for heading in ["Kubernetes:", "Listeners:", "Services:", "Leadership:", "Timing:", "Logs:"] {
        assert!(help.lines().any(|line| line == heading), "no {heading} in\n{help}");
    }
}
