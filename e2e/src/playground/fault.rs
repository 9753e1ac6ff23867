//! `fault`: what goes wrong, as calls to the simulators' controls.

use std::process::ExitCode;

use reqwest::Method;
use serde_json::{Value, json};

use super::{
    cli::{Effect, Fault, Http, Service},
    http, say,
    state::Running,
};
use crate::{
    compute::Control as Compute,
    faults::{Action, Rule},
    github::{Control as Github, Scope},
    world::{ORG, Trouble, ZONE},
};

/// Makes it happen.
pub(super) async fn run(running: &Running, fault: Fault) -> Result<ExitCode, Trouble> {
    for Call { service, method, path, body } in calls(fault) {
        let base = match service {
            Service::Github => &running.github,
            Service::Compute => &running.compute,
        };
        http::call(method, &format!("{base}/_fake/{path}"), body.as_ref()).await?;
    }
    say("done");
    Ok(ExitCode::SUCCESS)
}

/// One call to a simulator.
#[derive(Debug)]
struct Call {
    service: Service,
    method: Method,
    path: &'static str,
    body: Option<Value>,
}

fn compute(control: &Compute) -> Vec<Call> {
    vec![Call { service: Service::Compute, method: Method::POST, path: "faults", body: Some(json!(control)) }]
}

fn github(control: &Github) -> Vec<Call> {
    vec![Call { service: Service::Github, method: Method::POST, path: "control", body: Some(json!(control)) }]
}

fn calls(fault: Fault) -> Vec<Call> {
    let scope = Scope::parse(ORG);
    match fault {
        Fault::Stockout { zone, off } => compute(&Compute::Stockout { zone, on: !off }),
        Fault::Quota { vcpus, region } => compute(&Compute::CpuQuota { region, limit: vcpus }),
        Fault::Preempt { vm } => compute(&Compute::Preempt { instance: vm }),
        Fault::PowerOff { vm } => compute(&Compute::PowerOff { instance: vm }),
        Fault::HungBoot { count } => compute(&Compute::HungBoots { count }),
        Fault::StaleLists { seconds } => compute(&Compute::StaleLists { millis: millis(seconds) }),
        Fault::ClockSkew { seconds } => compute(&Compute::ClockSkew { seconds }),
        Fault::Http(http) => vec![rule(http)],
        Fault::LoseOrg => github(&Github::LoseScope { scope }),
        Fault::RestoreOrg => github(&Github::RestoreScope { scope }),
        Fault::Clear => clear(scope),
    }
}

fn clear(scope: Scope) -> Vec<Call> {
    let forget = |service, path| Call { service, method: Method::DELETE, path, body: None };
    let mut calls = vec![forget(Service::Github, "faults"), forget(Service::Compute, "rules")];
    calls.extend(github(&Github::RestoreScope { scope }));
    let defaults = [
        Compute::Stockout { zone: ZONE.to_owned(), on: false },
        Compute::CpuQuota { region: "us-central1".to_owned(), limit: None },
        Compute::StaleLists { millis: 0 },
        Compute::HungBoots { count: 0 },
        Compute::ClockSkew { seconds: 0 },
    ];
    calls.extend(defaults.iter().flat_map(compute));
    calls
}

fn rule(http: Http) -> Call {
    let path = match http.service {
        Service::Github => "faults",
        Service::Compute => "rules",
    };
    let (method, times, skip) = (http.method, http.times, http.skip);
    let rule = Rule { method, path: http.path, skip, times, action: action(http.service, &http.effect) };
    Call { service: http.service, method: Method::POST, path, body: Some(json!(rule)) }
}

fn action(service: Service, effect: &Effect) -> Action {
    let message = "a fault of the playground";
    match *effect {
        Effect { status: Some(status), .. } => {
            let body = match service {
                Service::Github => json!({"message": message}),
                Service::Compute => json!({"error": {"code": status, "message": message}}),
            };
            Action::Answer { status, body, headers: Vec::new() }
        }
        Effect { latency: Some(seconds), .. } => Action::Delay { millis: millis(seconds) },
        Effect { lost_reply: true, .. } => Action::LoseReply,
        Effect { cut: true, .. } => Action::Break,
        Effect { .. } => Action::Hang,
    }
}

fn millis(seconds: f64) -> u64 {
    u64::try_from(std::time::Duration::try_from_secs_f64(seconds).unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::playground::cli::{Cli, Command};

    fn parse(text: &str) -> Vec<Call> {
        let cli = Cli::try_parse_from(["playground", "fault"].into_iter().chain(text.split(' '))).unwrap();
        let Some(Command::Fault { fault }) = cli.command else { panic!("no fault: {cli:?}") };
        calls(fault)
    }

    #[test]
    fn faults_become_what_the_simulators_understand() {
        for (text, wanted) in [
            ("stockout", json!({"stockout": {"zone": ZONE, "on": true}})),
            ("quota 4", json!({"cpuQuota": {"region": "us-central1", "limit": 4}})),
            ("clock-skew -30", json!({"clockSkew": {"seconds": -30}})),
            ("stale-lists 1.5", json!({"staleLists": {"millis": 1500}})),
            ("lose-org", json!({"loseScope": {"scope": "acme"}})),
        ] {
            assert_eq!(parse(text)[0].body, Some(wanted), "{text}");
        }
    }

    #[test]
    fn an_http_fault_is_a_rule_of_its_service() {
        let calls = parse("http github /generate-jitconfig --lost-reply --times 2");
        assert_eq!(calls[0].path, "faults");
        let body = calls[0].body.clone().unwrap();
        assert_eq!(body["action"], json!("loseReply"));
        assert_eq!(body["times"], json!(2));
        assert_eq!(parse("http compute createInstances --status 503")[0].path, "rules");
    }

    #[test]
    fn an_http_fault_has_exactly_one_effect() {
        for effects in ["", " --hang --cut"] {
            let line = format!("playground fault http github /x{effects}");
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
