//! Collects the values from their sources and checks them all.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use clap::ValueEnum;
use rustls::pki_types::{CertificateDer, pem::PemObject};

use super::{KEYS, Key, Settings, SettingsError, Source, Sourced};
use crate::{machine, metadata::Metadata, paths::Paths};

/// The settings that can be given on the command line.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Flags {
    /// The operator's gateway, https://host:port [env: MIGLET_ENDPOINT] [metadata: miglet-endpoint]
    #[arg(long)]
    pub endpoint: Option<String>,
    /// CA of the gateway: PEM text, or the path of a PEM file [env: MIGLET_CA] [metadata: miglet-ca]
    #[arg(long)]
    pub ca: Option<String>,
    /// Audience of the identity token [env: MIGLET_AUDIENCE] [metadata: miglet-audience]
    #[arg(long)]
    pub audience: Option<String>,
    /// The runner's installation [env: MIGLET_RUNNER_DIR] [default: /opt/actions-runner]
    #[arg(long)]
    pub runner_dir: Option<String>,
    /// Root-only state, gone after a boot [env: MIGLET_STATE_DIR] [default: /run/miglet]
    #[arg(long)]
    pub state_dir: Option<String>,
    /// What the runner may read [env: MIGLET_DATA_DIR] [default: /var/lib/miglet]
    #[arg(long)]
    pub data_dir: Option<String>,
    /// process or systemd: how to power off [env: MIGLET_MACHINE] [default: process]
    #[arg(long)]
    pub machine: Option<String>,
    /// Heartbeat period until the operator sets one [env: MIGLET_HEARTBEAT_SECONDS] [default: 15]
    #[arg(long)]
    pub heartbeat_seconds: Option<String>,
    /// The metadata server [env: GCE_METADATA_HOST] [default: metadata.google.internal]
    #[arg(long)]
    pub metadata_host: Option<String>,
    /// Identifies this boot [env: MIGLET_BOOT_ID] [default: the kernel's]
    #[arg(long)]
    pub boot_id: Option<String>,
}

impl Flags {
    fn get(&self, name: &str) -> Option<String> {
        let value = match name {
            "endpoint" => &self.endpoint,
            "ca" => &self.ca,
            "audience" => &self.audience,
            "runner-dir" => &self.runner_dir,
            "state-dir" => &self.state_dir,
            "data-dir" => &self.data_dir,
            "machine" => &self.machine,
            "heartbeat-seconds" => &self.heartbeat_seconds,
            "metadata-host" => &self.metadata_host,
            "boot-id" => &self.boot_id,
            _ => &None,
        };
        value.clone()
    }
}

/// Collects and checks the settings. `variable` reads the environment.
///
/// # Errors
/// When one is missing or wrong, or the metadata server is needed and does not answer.
pub async fn load(flags: &Flags, variable: impl Fn(&str) -> Option<String>) -> Result<Settings, SettingsError> {
    let mut values = Values::default();
    for key in &KEYS {
        values.put(key.name, flags.get(key.name), Source::Flag);
        values.put(key.name, variable(key.variable).filter(|v| !v.is_empty()), Source::Environment);
    }
    let host = values.text("metadata-host").unwrap_or_else(|| crate::metadata::DEFAULT_HOST.to_owned());
    ask_metadata(&mut values, &Metadata::new(host)).await?;
    for key in &KEYS {
        values.put(key.name, key.default.map(str::to_owned), Source::Default);
    }
    check(&values)
}

async fn ask_metadata(values: &mut Values, metadata: &Metadata) -> Result<(), SettingsError> {
    for Key { name, attribute, .. } in &KEYS {
        if let (Some(attribute), None) = (attribute, values.0.get(name)) {
            let value = metadata.attribute(attribute).await?;
            values.put(name, value.map(|v| v.trim().to_owned()).filter(|v| !v.is_empty()), Source::Metadata);
        }
    }
    Ok(())
}

#[derive(Debug, Default)]
struct Values(BTreeMap<&'static str, (String, Source)>);

impl Values {
    /// The first source that gives a value wins.
    fn put(&mut self, name: &'static str, value: Option<String>, source: Source) {
        if let Some(value) = value {
            self.0.entry(name).or_insert((value, source));
        }
    }

    fn text(&self, name: &str) -> Option<String> {
        self.0.get(name).map(|(value, _)| value.clone())
    }
}

/// Collects problems instead of stopping at the first.
struct Checker<'a> {
    values: &'a Values,
    problems: Vec<String>,
}

impl Checker<'_> {
    fn take<T>(&mut self, name: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let problem = match self.values.0.get(name) {
            None => missing(name),
            Some((value, source)) => match parse(value) {
                Ok(parsed) => return Some(parsed),
                Err(problem) => format!("{name} (from {source:?}): {problem}"),
            },
        };
        self.problems.push(problem);
        None
    }
}

fn missing(name: &str) -> String {
    let from = KEYS.iter().find(|key| key.name == name).map_or_else(String::new, |key| {
        let attribute = key.attribute.map(|a| format!(" or the instance attribute {a}")).unwrap_or_default();
        format!(": set --{name}, {}{attribute}", key.variable)
    });
    format!("{name} is missing{from}")
}

fn check(values: &Values) -> Result<Settings, SettingsError> {
    let mut checker = Checker { values, problems: Vec::new() };
    let endpoint = checker.take("endpoint", parse_endpoint);
    let ca = checker.take("ca", parse_ca);
    let audience = checker.take("audience", |text| Ok(text.to_owned()));
    let paths = checker.take("state-dir", directory).zip(checker.take("data-dir", directory));
    let runner = checker.take("runner-dir", directory);
    let machine = checker.take("machine", |text| machine::Kind::from_str(text, true));
    let heartbeat = checker.take("heartbeat-seconds", parse_seconds);
    let host = checker.take("metadata-host", |text| Ok(text.to_owned()));
    let boot_id = values.text("boot-id").or_else(kernel_boot_id);
    let (Some((host_name, port)), Some(ca), Some(audience), Some((state, data)), Some(runner)) =
        (endpoint, ca, audience, paths, runner)
    else {
        return Err(SettingsError::Invalid(checker.problems));
    };
    let (Some(machine), Some(heartbeat), Some(metadata_host)) = (machine, heartbeat, host) else {
        return Err(SettingsError::Invalid(checker.problems));
    };
    let program = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("miglet"));
    Ok(Settings {
        host: host_name,
        port,
        ca,
        audience,
        paths: Paths { state, data, runner },
        machine,
        heartbeat,
        metadata_host,
        boot_id: boot_id.unwrap_or_default(),
        program,
        sources: sources(values),
    })
}

fn sources(values: &Values) -> Vec<Sourced> {
    let sourced = values.0.iter().map(|(key, (value, source))| Sourced {
        key: (*key).to_owned(),
        value: crate::runner::clean(value, 80),
        source: *source,
    });
    sourced.collect()
}

fn parse_endpoint(text: &str) -> Result<(String, u16), String> {
    let uri: http::Uri = text.parse().map_err(|e| format!("{text:?} is no URL: {e}"))?;
    match (uri.scheme_str(), uri.host()) {
        (Some("https"), Some(host)) => Ok((host.trim_matches(['[', ']']).to_owned(), uri.port_u16().unwrap_or(443))),
        _ => Err(format!("{text:?} must look like https://host:port")),
    }
}

fn parse_ca(text: &str) -> Result<String, String> {
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

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<u32>().ok().filter(|s| (1..=3600).contains(s));
    seconds.map(|s| Duration::from_secs(s.into())).ok_or_else(|| format!("{text:?} is not a number from 1 to 3600"))
}

fn directory(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err(format!("{text:?} is not an absolute path")) }
}

fn kernel_boot_id() -> Option<String> {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|text| text.trim().to_owned())
}

#[cfg(test)]
mod tests;
