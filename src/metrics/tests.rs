use std::collections::{BTreeMap, BTreeSet};

use axum::{body::Body, http::Request};
use http_body_util::BodyExt;
use tower::ServiceExt;

use super::*;

/// Metrics in which everything happened once.
fn eventful() -> Metrics {
    let metrics = Metrics::default();
    let second = Duration::from_secs(1);
    metrics.reconciled("runnerpool", Outcome::Success, second);
    metrics.reconciled("runnervm", Outcome::Error, second);
    metrics.phase_left("Booting", second);
    metrics.api_call("github", "generate_jitconfig", "ok");
    metrics.attestation_refused("WrongAudience");
    metrics.sessions(3);
    metrics.agent_event("job_completed", "New");
    metrics.job_finished("ci", "linux", "Succeeded");
    metrics.vm_created();
    metrics.vm_removed("JobFinished");
    metrics.group_backoff("acme-ci/us-central1-a/ci", Some(ErrorClass::Capacity));
    metrics.pool("ci", "linux", &PoolCounts { desired: 3, max: 10, starting: 1, idle: 1, busy: 1, draining: 2 });
    metrics.leading("miglet-operator", true);
    metrics
}

/// Value of the series that starts with `series`.
fn value(text: &str, series: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.split(' ').next()?.parse().ok())
}

#[test]
fn each_event_moves_its_series() {
    let text = eventful().text().unwrap();
    for (series, expected) in [
        (r#"controller_runtime_reconcile_total{controller="runnervm",result="error"}"#, 1.0),
        (r#"controller_runtime_reconcile_errors_total{controller="runnervm"}"#, 1.0),
        (r#"controller_runtime_reconcile_errors_total{controller="runnerpool"}"#, 0.0),
        (r#"controller_runtime_reconcile_time_seconds_count{controller="runnerpool"}"#, 1.0),
        (r#"leader_election_master_status{name="miglet-operator"}"#, 1.0),
        (r#"miglet_vm_phase_duration_seconds_sum{phase="Booting"}"#, 1.0),
        (r#"miglet_api_calls_total{backend="github",method="generate_jitconfig",outcome="ok"}"#, 1.0),
        (r#"miglet_attestation_refused_total{reason="WrongAudience"}"#, 1.0),
        ("miglet_sessions", 3.0),
        (r#"miglet_agent_events_total{kind="job_completed",outcome="New"}"#, 1.0),
        (r#"miglet_jobs_finished_total{namespace="ci",pool="linux",result="Succeeded"}"#, 1.0),
        ("miglet_vms_created_total", 1.0),
        (r#"miglet_vms_removed_total{reason="JobFinished"}"#, 1.0),
        (r#"miglet_group_backoff{group="acme-ci/us-central1-a/ci",reason="Stockout"}"#, 1.0),
        (r#"miglet_pool_runners{namespace="ci",pool="linux",state="draining"}"#, 2.0),
        (r#"miglet_pool_desired_runners{namespace="ci",pool="linux"}"#, 3.0),
    ] {
        assert_eq!(value(&text, series), Some(expected), "{series} in\n{text}");
    }
}

#[test]
fn what_is_gone_leaves_no_series() {
    let metrics = eventful();
    metrics.forget_pool("ci", "linux");
    metrics.group_backoff("acme-ci/us-central1-a/ci", None);
    let text = metrics.text().unwrap();
    assert!(!text.contains("pool=\"linux\"") && !text.contains("us-central1-a"), "{text}");
}

#[test]
fn a_group_backs_off_for_one_reason_at_a_time() {
    let metrics = eventful();
    metrics.group_backoff("acme-ci/us-central1-a/ci", Some(ErrorClass::Quota));
    let text = metrics.text().unwrap();
    let backing_off: Vec<_> = text.lines().filter(|line| line.starts_with("miglet_group_backoff{")).collect();
    assert_eq!(backing_off, [r#"miglet_group_backoff{group="acme-ci/us-central1-a/ci",reason="QuotaExceeded"} 1"#]);
}

#[test]
fn the_process_is_measured() {
    let text = Metrics::default().text().unwrap();
    assert!(value(&text, "process_resident_memory_bytes").is_some_and(|bytes| bytes > 1e6), "{text}");
    assert!(value(&text, "process_open_fds").is_some_and(|open| open > 0.0), "{text}");
    assert!(value(&text, "process_cpu_seconds_total").is_some(), "{text}");
}

/// The rules of promtool's linter and of OpenMetrics, as far as they concern names.
#[test]
fn every_metric_keeps_to_the_naming_rules() {
    let text = eventful().text().unwrap();
    assert!(text.ends_with("# EOF\n"));
    let described = |what: &str| -> BTreeMap<String, String> {
        let lines = text.lines().filter_map(|line| line.strip_prefix(&format!("# {what} ")));
        lines.filter_map(|line| line.split_once(' ')).map(|(name, rest)| (name.to_owned(), rest.to_owned())).collect()
    };
    let (help, types, units) = (described("HELP"), described("TYPE"), described("UNIT"));
    assert_eq!(help.keys().collect::<BTreeSet<_>>(), types.keys().collect(), "each metric has help and a type");
    for (name, kind) in &types {
        let known = ["miglet_", "controller_runtime_", "leader_election_", "process_"];
        assert!(known.iter().any(|prefix| name.starts_with(prefix)), "{name}: unknown prefix");
        assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{name}: not snake case");
        assert!(!name.ends_with("_total") && !name.ends_with("_count"), "{name}: reserved suffix");
        assert!(help[name].ends_with('.') && help[name].len() > 10, "{name}: {:?} is no help", help[name]);
        assert!(kind != "histogram" || units.contains_key(name), "{name}: a histogram without unit");
        let milli = ["_ms", "milli", "_minutes", "_kb", "_mib"];
        assert!(!milli.iter().any(|part| name.contains(part)), "{name}: not a base unit");
    }
    for (name, unit) in &units {
        assert!(name.ends_with(&format!("_{unit}")), "{name} does not end in its unit {unit}");
    }
}

#[tokio::test]
async fn a_scrape_is_open_metrics_text() {
    let request = Request::get("/metrics").body(Body::empty()).unwrap();
    let response = eventful().router().oneshot(request).await.unwrap();
    let kind = response.headers()["content-type"].to_str().unwrap().to_owned();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert!(kind.starts_with("application/openmetrics-text; version=1.0.0"), "{kind}");
    assert!(String::from_utf8_lossy(&body).contains("# TYPE miglet_sessions gauge"));
}
