//! `miglet doctor`: everything that keeps a machine from running a job, tried one after the other, each with what to do
//! about it. It changes nothing and asks for no more than the agent itself would.

mod gateway;
mod machine;
mod metadata;

use std::fmt;

use http::Uri;
use serde::Serialize;

use crate::{
    error::in_full,
    fetch::Client,
    machine::Systemd,
    settings::{Collected, SettingsError},
};

/// How one examination ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was examined.
    pub check: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// What was seen.
    pub found: String,
    /// What to do; empty when nothing is.
    pub advice: &'static str,
}

/// How it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Jobs may suffer.
    Warning,
    /// No job will run.
    Failure,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Ok, found: found.into(), advice: "" }
    }

    fn warning(check: &'static str, found: impl Into<String>, advice: &'static str) -> Self {
        Self { check, verdict: Verdict::Warning, found: found.into(), advice }
    }

    fn failure(check: &'static str, found: impl Into<String>, advice: &'static str) -> Self {
        Self { check, verdict: Verdict::Failure, found: found.into(), advice }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Ok => "ok",
            Verdict::Warning => "warn",
            Verdict::Failure => "FAIL",
        };
        write!(f, "{verdict:<5} {:<10} {}", self.check, self.found)?;
        if self.advice.is_empty() { Ok(()) } else { write!(f, " -> {}", self.advice) }
    }
}

/// Examines this machine. The clock comes before any TLS, which a wrong clock breaks.
pub async fn examine(mut collected: Collected, github: &Uri) -> Vec<Finding> {
    let mut findings = metadata::examine(&mut collected).await;
    match collected.settings() {
        Ok(settings) => {
            findings.push(Finding::ok("settings", "complete"));
            findings.push(metadata::identity(&settings).await);
            findings.push(gateway::name(&settings).await);
            findings.push(gateway::tls(&settings).await);
        }
        Err(error) => findings.push(unusable(&error)),
    }
    for url in [Some(github), github_api(github).as_ref()].into_iter().flatten() {
        findings.push(github_reachable(url).await);
    }
    if let Ok(installation) = collected.installation() {
        findings.extend(machine::runner(&installation).await);
        findings.push(machine::disk(&installation.runner_dir));
    }
    let jobs = collected.jobs().ok().flatten();
    findings.push(machine::user(jobs.is_some()));
    if let Some(jobs) = jobs {
        findings.push(machine::jobs(&Systemd::default(), &jobs).await);
    }
    findings.push(machine::cgroup(std::path::Path::new("/sys/fs/cgroup")));
    findings
}

fn unusable(error: &SettingsError) -> Finding {
    let found = match error {
        SettingsError::Invalid(problems) => problems.join("; "),
        SettingsError::Metadata(_) => in_full(error),
    };
    Finding::failure("settings", found, "correct them; `miglet config` shows each value and where it came from")
}

/// An Enterprise Server is one host; github.com is many. The names of those that runners are sent to are GitHub's to choose.
fn github_api(github: &Uri) -> Option<Uri> {
    (github.host() == Some("github.com")).then(|| Uri::from_static("https://api.github.com"))
}

async fn github_reachable(url: &Uri) -> Finding {
    const ADVICE: &str = "give the machine a way out (Cloud NAT, an external address, or a proxy in \
                          /etc/miglet/environment) and open tcp 443 to GitHub";
    let answer = match Client::new() {
        Ok(client) => client.get(url, 0).await,
        Err(error) => Err(error),
    };
    match answer {
        Ok(answer) if answer.status.is_server_error() => {
            Finding::warning("github", format!("{url} answered {}", answer.status), "see https://www.githubstatus.com")
        }
        Ok(answer) => Finding::ok("github", format!("{url} answered {}", answer.status)),
        Err(error) => Finding::failure("github", in_full(&error), ADVICE),
    }
}
