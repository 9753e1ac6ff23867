//! Turns the values into settings, or tells all that is wrong with them.

use std::{path::PathBuf, time::Duration};

use clap::ValueEnum;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use tracing::level_filters::LevelFilter;

use super::{Collected, Key, Settings, SettingsError, Source};
use crate::{
    firewall::MetadataAccess,
    guards::{Guards, Thresholds},
    hook::Scripts,
    installation::{self, Archive, Installation, Version},
    machine::{self, Jobs},
    paths::Paths,
    plan::Limits,
};

/// Collects problems instead of stopping at the first.
struct Checker<'a> {
    collected: &'a Collected,
    problems: Vec<String>,
}

impl Checker<'_> {
    fn take<T>(&mut self, name: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let problem = match self.collected.values.get(name) {
            None => missing(name),
            Some((value, source)) => match parse(value) {
                Ok(parsed) => return Some(parsed),
                Err(problem) => format!("{name} (from {source}): {problem}"),
            },
        };
        self.problems.push(problem);
        None
    }

    /// Its absence is no problem.
    fn optional<T>(&mut self, name: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        self.collected.values.contains_key(name).then(|| self.take(name, parse)).flatten()
    }

    fn paths(&mut self, runner: Option<PathBuf>) -> Option<Paths> {
        let (state, data) = (self.take("state-dir", directory), self.take("data-dir", directory));
        Some(Paths { state: state?, data: data?, runner: runner? })
    }

    fn installation(&mut self) -> Option<Installation> {
        let (runner, cache) = (self.take("runner-dir", directory), self.take("cache-dir", directory));
        let version = self.optional("runner-version", str::parse::<Version>);
        let minimum = self.optional("runner-minimum-version", str::parse);
        let archive = self.archive(version);
        Some(Installation { runner_dir: runner?, cache_dir: cache?, version, minimum, archive })
    }

    /// Unset also when the operator names a version that nobody offers any more: only the image can have it.
    fn archive(&mut self, version: Option<Version>) -> Option<Archive> {
        let source = |name: &str| self.collected.values.get(name).map(|(_, source)| *source);
        let offered = self.collected.text("runner-offered-url").unwrap_or_default();
        // Both are GitHub's, and the default knows of no other server than github.com.
        let instead = source("runner-sources") == Some(Source::Default) && !offered.is_empty();
        let list = |text: &str| {
            let own = if instead { "" } else { text };
            installation::sources(&format!("{own} {offered}"), &version.unwrap_or_default())
        };
        let sources = self.take("runner-sources", list);
        let source = |name: &str| self.collected.values.get(name).map(|(_, source)| *source);
        match (source("runner-version"), source("runner-sha256")) {
            (None, None) | (Some(Source::Operator), None) => return None,
            (None, Some(_)) => self.problems.push("runner-sha256 says nothing without runner-version".to_owned()),
            (Some(_), _) => {}
        }
        // What nobody can name is installed from nowhere.
        let sha256 = self.take("runner-sha256", str::parse);
        Some(Archive { version: version?, sha256: sha256?, sources: sources? })
    }

    fn jobs(&mut self) -> Option<Jobs> {
        let user = self.take("runner-user", login);
        let allow_root = self.take("runner-allow-root", truth);
        let metadata_access = self.take("runner-metadata-access", |text| MetadataAccess::from_str(text, true));
        Some(Jobs { user: user?, allow_root: allow_root?, metadata_access: metadata_access? })
    }

    fn limits(&mut self) -> Option<Limits> {
        let disk = (self.take("guard-disk-warn-percent", percent), self.take("guard-disk-act-percent", percent));
        let memory = (self.take("guard-memory-warn-percent", percent), self.take("guard-memory-act-percent", percent));
        let (runtime, orphan) = (self.take("guard-runtime-seconds", period), self.take("orphan-seconds", period));
        let thresholds = |(warn, act): (Option<u8>, Option<u8>)| Some(Thresholds { warn: warn?, act: act? });
        let guards = Guards { runtime: runtime?, disk: thresholds(disk)?, memory: thresholds(memory)? };
        Some(Limits { guards, orphan: orphan? })
    }
}

fn missing(name: &str) -> String {
    let from = Key::named(name).map_or_else(String::new, |key| {
        let attribute = key.attribute().map(|a| format!(" or the instance attribute {a}")).unwrap_or_default();
        format!(": set --{name}, {}, {name} in the configuration file{attribute}", key.variable())
    });
    format!("{name} is missing{from}")
}

impl Collected {
    /// The settings.
    ///
    /// # Errors
    /// All that is wrong.
    pub fn settings(&self) -> Result<Settings, SettingsError> {
        let mut checker = Checker { collected: self, problems: self.problems.clone() };
        let settings = self.checked(&mut checker);
        match settings {
            Some(settings) if checker.problems.is_empty() => Ok(settings),
            _ => Err(SettingsError::Invalid(checker.problems)),
        }
    }

    /// Only what says which runner to install: the rest may become known at the machine's first boot.
    ///
    /// # Errors
    /// All that is wrong.
    pub fn installation(&self) -> Result<Installation, SettingsError> {
        let mut checker = Checker { collected: self, problems: self.problems.clone() };
        match checker.installation() {
            Some(installation) if checker.problems.is_empty() => Ok(installation),
            _ => Err(SettingsError::Invalid(checker.problems)),
        }
    }

    /// Only who jobs run as: known from the start, for it depends on the machine alone. `None` where jobs run as the
    /// agent itself.
    ///
    /// # Errors
    /// All that is wrong.
    pub fn jobs(&self) -> Result<Option<Jobs>, SettingsError> {
        let mut checker = Checker { collected: self, problems: self.problems.clone() };
        let machine = checker.take("machine", |text| machine::Kind::from_str(text, true));
        let jobs = checker.jobs();
        if checker.problems.is_empty() {
            Ok(jobs.filter(|_| machine == Some(machine::Kind::Systemd)))
        } else {
            Err(SettingsError::Invalid(checker.problems))
        }
    }

    fn checked(&self, checker: &mut Checker<'_>) -> Option<Settings> {
        let endpoint = checker.take("endpoint", endpoint);
        let ca = checker.take("ca", certificates);
        let audience = checker.take("audience", word);
        let installation = checker.installation();
        let paths = checker.paths(installation.as_ref().map(|installation| installation.runner_dir.clone()));
        let machine = checker.take("machine", |text| machine::Kind::from_str(text, true));
        let jobs = checker.jobs();
        let heartbeat = checker.take("heartbeat-seconds", seconds);
        let hooks = Scripts {
            job_started: checker.optional("hook-job-started", directory),
            job_completed: checker.optional("hook-job-completed", directory),
        };
        let limits = checker.limits();
        let maximum_lifetime = checker.take("maximum-lifetime-seconds", period);
        let metadata_host = checker.take("metadata-host", word);
        let log_level = checker.take("log-level", level);
        let (host, port) = endpoint?;
        Some(Settings {
            host,
            port,
            ca: ca?,
            audience: audience?,
            paths: paths?,
            installation: installation?,
            machine: machine?,
            jobs: jobs?,
            heartbeat: heartbeat?,
            hooks,
            limits: limits?,
            maximum_lifetime: maximum_lifetime?,
            metadata_host: metadata_host?,
            boot_id: self.text("boot-id").or_else(kernel_boot_id).unwrap_or_default(),
            spool_bytes: crate::spool::SIZE,
            log_level: log_level?,
            program: std::env::current_exe().unwrap_or_else(|_| PathBuf::from("miglet")),
            sources: self.sourced(),
            warnings: self.warnings.clone(),
            collected: self.clone(),
        })
    }
}

fn endpoint(text: &str) -> Result<(String, u16), String> {
    let uri: http::Uri = text.parse().map_err(|e| format!("{text:?} is no URL: {e}"))?;
    match (uri.scheme_str(), uri.host()) {
        (Some("https"), Some(host)) => Ok((host.trim_matches(['[', ']']).to_owned(), uri.port_u16().unwrap_or(443))),
        _ => Err(format!("{text:?} must look like https://host:port")),
    }
}

fn certificates(text: &str) -> Result<String, String> {
    let pem = if text.contains("-----BEGIN") {
        text.to_owned()
    } else {
        std::fs::read_to_string(text).map_err(|e| format!("neither PEM text nor a readable file: {e}"))?
    };
    match CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>() {
        Ok(certificates) if !certificates.is_empty() => Ok(pem),
        Ok(_) => Err("holds no certificate".to_owned()),
        Err(error) => Err(format!("is not PEM: {error}")),
    }
}

fn word(text: &str) -> Result<String, String> {
    let sound = !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || c.is_control());
    if sound { Ok(text.to_owned()) } else { Err(format!("{text:?} is not one word")) }
}

/// As useradd takes it, and no number: that would be another user's id.
fn login(text: &str) -> Result<String, String> {
    let tail = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-".contains(c);
    let sound = text.starts_with(|c: char| c.is_ascii_lowercase() || c == '_') && text.chars().all(tail);
    if sound && text.len() <= 32 { Ok(text.to_owned()) } else { Err(format!("{text:?} is no user name")) }
}

fn truth(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| format!("{text:?} is neither true nor false"))
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<u32>().ok().filter(|s| (1..=3600).contains(s));
    seconds.map(|s| Duration::from_secs(s.into())).ok_or_else(|| format!("{text:?} is not a number from 1 to 3600"))
}

/// A month is far beyond any job.
fn period(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<u32>().ok().filter(|s| *s <= 5_184_000);
    seconds.map(|s| Duration::from_secs(s.into())).ok_or_else(|| format!("{text:?} is not a number from 0 to 5184000"))
}

fn percent(text: &str) -> Result<u8, String> {
    let percent = text.parse::<u8>().ok().filter(|percent| *percent <= 100);
    percent.ok_or_else(|| format!("{text:?} is not a number from 0 to 100"))
}

fn level(text: &str) -> Result<LevelFilter, String> {
    text.parse().map_err(|_| format!("{text:?} is none of off, error, warn, info, debug, trace"))
}

fn directory(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err(format!("{text:?} is not an absolute path")) }
}

fn kernel_boot_id() -> Option<String> {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|text| text.trim().to_owned())
}
