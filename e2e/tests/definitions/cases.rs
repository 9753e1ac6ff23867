//! What each field takes and what it does not.

use serde_json::{Value, json};

use super::{letters, map, numbered, set};

/// What a field takes, what it does not, and the words of the refusal.
pub(super) type Case = (&'static str, Vec<Value>, Vec<Value>, &'static str);

fn github() -> Vec<Case> {
    let urls = [
        "https://github.com/enterprises/acme",
        "https://ghes.acme.example:8443/acme",
        "http://127.0.0.1:8080/acme",
        "http://localhost/acme",
    ];
    let wrong = ["", "github.com/acme", "https://github.com", "https://github.com/", "https://github.com/a/b/c"];
    let wrong =
        wrong.into_iter().chain(["http://github.com/acme", "https://github.com/acme?x=y", "https://u:p@github.com/a"]);
    let long = json!(format!("https://github.com/{}", "a".repeat(237)));
    let longer = json!(format!("https://github.com/{}", "a".repeat(238)));
    vec![
        ("/spec/github/url", urls.map(Value::from).to_vec(), wrong.map(Value::from).collect(), "spec.github.url"),
        ("/spec/github/url", vec![long], vec![longer], "256"),
        ("/spec/github/credentialsSecretRef/name", vec![letters(253)], vec![letters(254), json!("")], "name"),
        ("/spec/github/credentialsSecretRef", vec![], vec![Value::Null, json!({})], "Required value"),
        ("/spec/github/runnerGroup", vec![letters(128), Value::Null], vec![letters(129), json!("")], "runnerGroup"),
        ("/spec/github/labels/0", vec![letters(64)], vec![letters(65), json!("")], "labels"),
        ("/spec/github/labels", vec![numbered(20, letters_from)], vec![numbered(21, letters_from)], "at most 20"),
        ("/spec/github/labels", vec![], vec![json!([]), Value::Null, json!(["linux", "linux"])], "labels"),
    ]
}

fn letters_from(i: usize) -> Value {
    letters(i + 1)
}

fn template_and_lifecycle() -> Vec<Case> {
    let own = json!({"miglet.dev/pool": "other"});
    let key = |length: usize| json!({"k".repeat(length): "x"});
    let mut cases: Vec<Case> = vec![
        ("/spec/template/metadata/labels", vec![map(8, "x"), key(63)], vec![map(9, "x")], "at most 8"),
        ("/spec/template/metadata/labels", vec![map(1, &"v".repeat(63))], vec![map(1, &"v".repeat(64))], "63"),
        (
            "/spec/template/metadata/labels",
            vec![],
            vec![own.clone(), key(64)],
            "template labels must have keys of at most 63 characters that do not start with miglet.dev/",
        ),
        ("/spec/template/metadata/annotations", vec![map(4, "x"), key(63)], vec![map(5, "x")], "at most 4"),
        ("/spec/template/metadata/annotations", vec![map(1, &"v".repeat(128))], vec![map(1, &"v".repeat(129))], "128"),
        (
            "/spec/template/metadata/annotations",
            vec![],
            vec![own, key(64)],
            "template annotations must have keys of at most 63 characters that do not start with miglet.dev/",
        ),
    ];
    for (field, most) in [
        ("/spec/lifecycle/launchTimeoutSeconds", 86_400),
        ("/spec/lifecycle/registrationTimeoutSeconds", 86_400),
        ("/spec/lifecycle/heartbeatTimeoutSeconds", 86_400),
        ("/spec/lifecycle/maxLifetimeSeconds", 2_592_000),
        ("/spec/lifecycle/terminationGracePeriodSeconds", 2_592_000),
    ] {
        cases.push((field, vec![json!(1), json!(most)], vec![json!(0), json!(most + 1), json!("1s")], "Seconds"));
    }
    cases
}

fn group(pointer: &'static str) -> Vec<Case> {
    let one = "exactly one of zone and region must be set";
    let place = |zone: Value, region: Value| json!({"name": "g", "zone": zone, "region": region});
    let (zone, region) = (json!("us-central1-a"), json!("us-central1"));
    let bad = [json!(""), json!("Upper"), json!("1st"), json!("a-"), json!("a.b")];
    let named = |name: Value| json!({"name": name, "zone": "z"});
    let mut wrong: Vec<_> = bad.iter().cloned().chain([letters(64)]).map(named).collect();
    wrong.push(json!({"zone": "z"}));
    let wrong_zones = bad.iter().cloned().chain([letters(64)]).map(|zone| json!({"name": "g", "zone": zone}));
    let wrong_regions = bad.iter().cloned().chain([letters(64)]).map(|region| json!({"name": "g", "region": region}));
    vec![
        (pointer, vec![named(letters(63))], wrong, "name"),
        (pointer, vec![json!({"name": "g", "zone": letters(63)})], wrong_zones.collect(), "zone"),
        (pointer, vec![json!({"name": "g", "region": letters(63)})], wrong_regions.collect(), "region"),
        (pointer, vec![json!({"name": "g", "region": region})], vec![json!({"name": "g"}), place(zone, region)], one),
    ]
}

fn agent() -> Vec<Case> {
    let both = |least: i32, most: i32| (vec![json!(least), json!(most)], vec![json!(least - 1), json!(most + 1)]);
    let ((runtime, no_runtime), (percent, no_percent)) = (both(60, 432_000), both(1, 100));
    let threshold = |warn: i32, act: i32| json!({"warnPercent": warn, "actPercent": act});
    let levels = ["Error", "Warn", "Info", "Debug", "Trace"].map(Value::from).to_vec();
    let crossed = "warnPercent must be less than actPercent";
    let mut cases: Vec<Case> = vec![
        // The longest one also needs a longer timeout.
        ("/spec/agent/heartbeatPeriodSeconds", vec![json!(1), json!(89)], vec![json!(0)], "heartbeatPeriodSeconds"),
        ("/spec/agent/heartbeatPeriodSeconds", vec![], vec![json!(301)], "300"),
        (
            "/spec/agent/heartbeatPeriodSeconds",
            vec![],
            vec![json!(90)],
            "agent.heartbeatPeriodSeconds must be less than lifecycle.heartbeatTimeoutSeconds",
        ),
        ("/spec/agent", vec![json!({})], vec![json!({"logLevel": "debug"})], "spec.agent.logLevel"),
        ("/spec/agent/logLevel", levels, vec![json!("")], "spec.agent.logLevel"),
        ("/spec/agent/guards", vec![json!({})], vec![], ""),
        ("/spec/agent/guards/maxRuntimeSeconds", runtime, no_runtime, "maxRuntimeSeconds"),
    ];
    for field in ["/spec/agent/guards/disk", "/spec/agent/guards/memory"] {
        let warnings =
            |percents: Vec<Value>| percents.into_iter().map(|p| json!({"warnPercent": p})).collect::<Vec<_>>();
        cases.push((field, warnings(percent.clone()), warnings(no_percent.clone()), "warnPercent"));
        cases.push((field, vec![threshold(1, 2), threshold(99, 100)], vec![threshold(2, 2), threshold(3, 2)], crossed));
        cases.push((field, vec![], vec![threshold(1, 101), threshold(1, 0)], "actPercent"));
        cases.push((field, vec![], vec![json!({"actPercent": 90})], "warnPercent"));
    }
    cases
}

fn runner() -> Vec<Case> {
    let versions = |field: &str| {
        let wrap = |text: &str| json!({field: text});
        let bad = ["2.336", "v2.336.0", "2.336.0-beta", "latest", "", "1234567.0.0"];
        (["2.336.0", "0.0.1"].map(wrap).to_vec(), bad.map(wrap).to_vec())
    };
    let ((version, no_version), (minimum, no_minimum)) = (versions("version"), versions("minimumVersion"));
    let hash = "0123456789abcdef".repeat(4);
    let pinned = |field: &str, hash: &str| json!({"version": "2.336.0", "checksums": {field: hash}});
    let hashes = |field: &str| {
        let bad = ["", "abc", &hash.to_uppercase(), &format!("{hash}0")].map(|hash| pinned(field, hash));
        (vec![pinned(field, &hash)], bad.to_vec())
    };
    let ((x64, no_x64), (arm64, no_arm64)) = (hashes("x64"), hashes("arm64"));
    let sources =
        |count| json!({"sources": numbered(count, |i| json!(format!("https://bucket.example/{i}/{{version}}")))});
    let source = |url: &str| json!({"sources": [url]});
    let bad_sources = [
        "",
        "ftp://bucket.example/x",
        "https://u:p@bucket.example/x",
        "https://bucket.example/x?token=y",
        "https://a b",
    ];
    let mut bad_sources = bad_sources.map(source).to_vec();
    bad_sources.extend([sources(5), source(&format!("https://bucket.example/{}", "a".repeat(234)))]);
    let two = json!({"version": "2.336.0", "minimumVersion": "2.336.0"});
    let stray = [json!({"checksums": {"x64": hash}}), json!({"minimumVersion": "2.336.0", "checksums": {"x64": hash}})];
    let mut cases: Vec<Case> = vec![
        ("/spec/runner", version, no_version, "spec.runner.version"),
        ("/spec/runner", minimum, no_minimum, "spec.runner.minimumVersion"),
        ("/spec/runner", vec![json!({})], vec![two], "at most one of version and minimumVersion may be set"),
        ("/spec/runner", vec![], stray.to_vec(), "checksums belong to version: set it as well"),
        ("/spec/runner", x64, no_x64, "checksums.x64"),
        ("/spec/runner", arm64, no_arm64, "checksums.arm64"),
        ("/spec/runner", vec![sources(4), source("http://127.0.0.1/{arch}")], bad_sources, "sources"),
        ("/spec/runner/metadataAccess", vec![json!("Blocked"), json!("Allowed")], vec![json!("No")], "metadataAccess"),
    ];
    for field in ["/spec/runner/hooks/jobStarted", "/spec/runner/hooks/jobCompleted"] {
        let bad = ["relative.sh", "/opt/hook", "/opt/a b.sh", "/.s"].map(Value::from).to_vec();
        cases.push((field, vec![json!("/opt/hook-1.sh")], bad, "spec.runner.hooks"));
    }
    cases
}

pub(super) fn pool_cases() -> Vec<Case> {
    let groups = |count| numbered(count, |i| json!({"name": format!("g{i}"), "zone": "us-central1-a"}));
    let name = "metadata.name must start with a lower-case letter";
    let projects = ["acme-ci", "acme.example:acme-ci"].map(Value::from).to_vec();
    let wrong = ["", "short", "1acme-ci", "acme-ci-", "Acme-ci"].map(Value::from);
    let wrong = wrong.into_iter().chain([letters(31)]).collect();
    let both = |least: i32, most: i32| (vec![json!(least), json!(most)], vec![json!(least - 1), json!(most + 1)]);
    let ((replicas, no_replicas), (max, no_max)) = (both(0, 10_000), both(0, 10_000));
    let mut cases: Vec<Case> = vec![
        ("/metadata/name", vec![json!("a"), json!("linux-2")], vec![json!("2nd"), json!("a.b")], name),
        ("/spec/replicas", replicas, no_replicas, "spec.replicas"),
        ("/spec/limits/max", max, no_max, "spec.limits.max"),
        ("/spec/paused", vec![json!(true)], vec![json!("yes")], "spec.paused"),
        ("/spec/deletionPolicy", vec![json!("Orphan")], vec![json!("Retain")], "spec.deletionPolicy"),
        ("/spec/compute/gce/project", projects, wrong, "spec.compute.gce.project"),
        ("/spec/compute/gce/groups", vec![groups(1), groups(8)], vec![groups(0), groups(9)], "groups"),
        ("/spec/compute", vec![], vec![Value::Null, json!({})], "Required value"),
        ("/spec/github", vec![], vec![Value::Null], "Required value"),
    ];
    cases.extend(github());
    cases.extend(group("/spec/compute/gce/groups/0"));
    cases.extend(template_and_lifecycle());
    cases.extend(agent());
    cases.extend(runner());
    cases
}

pub(super) fn vm_cases() -> Vec<Case> {
    let mut cases: Vec<Case> = vec![
        ("/spec/pool/name", vec![letters(253)], vec![letters(254), json!(""), Value::Null], "spec.pool.name"),
        ("/spec/pool/uid", vec![letters(64)], vec![letters(65), json!(""), Value::Null], "spec.pool.uid"),
        ("/spec/project", vec![letters(94)], vec![letters(95), json!(""), Value::Null], "spec.project"),
        ("/spec/group", vec![], vec![Value::Null], "Required value"),
    ];
    cases.extend(github());
    cases.extend(group("/spec/group"));
    cases.extend(template_and_lifecycle());
    cases.extend(runner());
    cases
}

/// What a status field does not take.
pub(super) fn vm_status_cases() -> Vec<(&'static str, Value)> {
    let (agent, job) = (json!({"keyThumbprint": "x", "bootId": "x"}), json!({"summary": "x", "name": "x"}));
    let with = |object: &Value, field: &str, value: Value| set(object.clone(), &format!("/{field}"), value);
    let instance = json!({"id": "1", "group": "g", "zone": "z"});
    let runner = json!({"name": "r", "attempt": 1});
    let health = json!({"cpuPercent": 1, "memoryPercent": 1, "diskPercent": 1});
    let mut cases = vec![("phase", json!("Sleeping")), ("observedGeneration", json!(-2))];
    for (field, most) in [("id", 32), ("group", 63), ("zone", 63)] {
        cases.push(("instance", with(&instance, field, letters(most + 1))));
    }
    for (field, most) in [("keyThumbprint", 64), ("bootId", 64), ("version", 64), ("state", 32)] {
        cases.push(("agent", with(&agent, field, letters(most + 1))));
    }
    for (field, most) in [("summary", 256), ("name", 128), ("repository", 128), ("workflow", 128), ("result", 32)] {
        cases.push(("job", with(&job, field, letters(most + 1))));
    }
    cases.push(("job", with(&job, "runId", json!(-1))));
    for (field, value) in [("name", letters(65)), ("attempt", json!(0)), ("attempt", json!(1001)), ("id", json!(-1))] {
        cases.push(("runner", with(&runner, field, value)));
    }
    for field in ["cpuPercent", "memoryPercent", "diskPercent"] {
        cases.extend([-1, 101].map(|value| ("health", with(&health, field, json!(value)))));
    }
    cases
}
