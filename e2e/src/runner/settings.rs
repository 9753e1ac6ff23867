//! The listener's command line, environment and configuration files.

use std::{collections::BTreeMap, io, path::Path};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::Value;

/// Prefix of arguments given by environment, in any case; never seen by children.
pub(super) const INPUT: &str = "ACTIONS_RUNNER_INPUT_";
/// The files a configured runner has.
pub(super) const FILES: [&str; 3] = [".credentials", ".credentials_rsaparams", ".runner"];

/// The runner cannot start.
#[derive(Debug, thiserror::Error)]
pub(super) enum SettingsError {
    #[error("The JIT config is not valid base64.")]
    Encoding(#[from] base64::DecodeError),
    #[error("The JIT config is not valid JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("Not configured. Run config.(sh/cmd) to configure the runner.")]
    NotConfigured,
}

/// An argument from the command line, or from the environment.
pub(super) fn argument(arguments: &[String], name: &str) -> Option<String> {
    let flag = format!("--{name}");
    let given = arguments.iter().position(|a| *a == flag).and_then(|at| arguments.get(at + 1)).cloned();
    let wanted = format!("{INPUT}{}", name.to_uppercase());
    let of_environment = || std::env::vars().find(|(key, _)| key.to_uppercase() == wanted).map(|(_, value)| value);
    given.or_else(of_environment)
}

/// Writes the files a JIT config carries, with the process's umask.
pub(super) fn unpack(root: &Path, jit: &str) -> Result<(), SettingsError> {
    let files: BTreeMap<String, String> = serde_json::from_slice(&STANDARD.decode(jit.trim())?)?;
    for (name, content) in files {
        if FILES.contains(&name.as_str()) {
            std::fs::write(root.join(name), STANDARD.decode(content)?)?;
        }
    }
    Ok(())
}

/// What the files say.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) name: String,
    pub(super) server: String,
    pub(super) work: String,
    pub(super) ephemeral: bool,
    /// What opens a session.
    pub(super) bearer: String,
}

impl Settings {
    /// Reads `.runner` and `.credentials*`; keys in any case, values of any type, as the real one accepts them.
    pub(super) fn read(root: &Path) -> Result<Self, SettingsError> {
        let file = |name: &str| -> Result<Value, SettingsError> {
            let text = std::fs::read_to_string(root.join(name)).map_err(|_| SettingsError::NotConfigured)?;
            Ok(serde_json::from_str(text.trim_start_matches('\u{feff}'))?)
        };
        let (runner, credentials, key) = (file(".runner")?, file(".credentials")?, file(".credentials_rsaparams")?);
        let client = credentials.get("Data").map(|data| text(data, "ClientId")).unwrap_or_default();
        Ok(Self {
            name: text(&runner, "AgentName"),
            server: text(&runner, "ServerUrl").trim_end_matches('/').to_owned(),
            work: Some(text(&runner, "WorkFolder")).filter(|w| !w.is_empty()).unwrap_or_else(|| "_work".to_owned()),
            ephemeral: text(&runner, "Ephemeral").eq_ignore_ascii_case("true"),
            bearer: format!("{client}.{}", text(&key, "d")),
        })
    }
}

fn text(value: &Value, key: &str) -> String {
    let found = value.as_object().into_iter().flatten().find(|(name, _)| name.eq_ignore_ascii_case(key));
    match found.map(|(_, value)| value) {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    }
}
