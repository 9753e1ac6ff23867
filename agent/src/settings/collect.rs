//! Collects the values from their sources; the first that gives one wins.

use std::{collections::BTreeMap, path::PathBuf};

use super::{Flags, KEYS, Key, Source, Sourced, Values, file};
use crate::{
    metadata::{Metadata, MetadataError},
    overlay::RUNNER,
};

/// Attributes that are no settings: they are read before there is an agent, by `packaging/startup-script`.
const STARTUP_SCRIPT: [&str; 2] = ["miglet-package", "miglet-package-sha256"];

/// The environment of a process.
pub type Environment = BTreeMap<String, String>;

/// Values from everywhere, not yet checked.
#[derive(Clone, Debug, Default)]
pub struct Collected {
    pub(super) values: Values,
    pub(super) problems: Vec<String>,
    pub(super) warnings: Vec<String>,
}

impl Collected {
    /// From flags, environment, file and defaults. Metadata may still come in between, see [`Self::ask_metadata`].
    #[must_use]
    pub fn new(flags: &Flags, environment: &Environment) -> Self {
        let mut collected = Self::default();
        for key in KEYS {
            collected.put(key.name, flags.get(key.name).cloned(), Source::Flag);
            collected.put(key.name, environment.get(&key.variable()).cloned(), Source::Environment);
        }
        collected.problems.extend(unknown_variables(environment));
        let asked_for = collected.values.contains_key("config");
        for key in KEYS {
            collected.put(key.name, key.default.map(str::to_owned), Source::Default);
        }
        let path = PathBuf::from(collected.text("config").unwrap_or_default());
        let content = file::read(&path, asked_for);
        collected.problems.extend(content.problems);
        for (name, value) in content.values {
            collected.put(name, Some(value), Source::File);
        }
        collected
    }

    /// Adds what the instance's attributes say.
    ///
    /// # Errors
    /// When the metadata server does not answer.
    pub async fn ask_metadata(&mut self) -> Result<(), MetadataError> {
        let metadata = Metadata::new(self.text("metadata-host").unwrap_or_default());
        let ours = metadata.attributes().await?.into_iter().filter(|(name, _)| name.starts_with("miglet-"));
        for (attribute, value) in ours.filter(|(name, _)| !STARTUP_SCRIPT.contains(&name.as_str())) {
            match KEYS.iter().find(|key| key.attribute().as_ref() == Some(&attribute)) {
                Some(key) => self.put(key.name, Some(value), Source::Metadata),
                None => {
                    let name = crate::runner::clean(&attribute, 60);
                    self.warnings.push(format!("the instance attribute {name} is unknown to this version"));
                }
            }
        }
        Ok(())
    }

    /// Adds what the operator wants. Which runner is installed is one thing of several keys: all of them are the operator's,
    /// or none is.
    pub(super) fn overlay(&mut self, values: &[(&'static str, String)]) {
        let stronger = |name: &str| self.values.get(name).is_some_and(|(_, s)| rank(*s) < rank(Source::Operator));
        let pinned = stronger("runner-version");
        if !pinned && values.iter().any(|(name, _)| *name == "runner-version") {
            self.values.retain(|name, (_, source)| !RUNNER.contains(name) || rank(*source) < rank(Source::Operator));
        }
        for (name, value) in values.iter().filter(|(name, _)| !(pinned && RUNNER.contains(name))) {
            self.put(name, Some(value.clone()), Source::Operator);
        }
    }

    /// Takes a value unless a stronger source gave one. An empty one is none, except where someone typed it.
    fn put(&mut self, name: &'static str, value: Option<String>, source: Source) {
        let value = value.map(|value| value.trim().to_owned()).filter(|v| source == Source::Flag || !v.is_empty());
        let stronger = self.values.get(name).is_some_and(|(_, known)| rank(*known) <= rank(source));
        if let (Some(value), false) = (value, stronger) {
            self.values.insert(name, (value, source));
        }
    }

    /// The value of a key.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<String> {
        self.values.get(name).map(|(value, _)| value.clone())
    }

    /// Every value, as people may see it.
    #[must_use]
    pub fn sourced(&self) -> Vec<Sourced> {
        let known = KEYS.iter().filter_map(|key| Some((key, self.values.get(key.name)?)));
        let sourced = known.map(|(key, (value, source))| Sourced {
            key: key.name.to_owned(),
            value: key.shown(value),
            source: *source,
        });
        sourced.collect()
    }

    /// What is wrong with where the values stand. What is wrong with the values [`Self::settings`] tells.
    #[must_use]
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    /// What is odd, but no reason to stop.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

/// The lowest wins.
fn rank(source: Source) -> u8 {
    match source {
        Source::Flag => 0,
        Source::Environment => 1,
        Source::File => 2,
        Source::Operator => 3,
        Source::Metadata => 4,
        Source::Default => 5,
    }
}

fn unknown_variables(environment: &Environment) -> impl Iterator<Item = String> {
    let ours = environment.keys().filter(|name| name.starts_with("MIGLET_"));
    let unknown = ours.filter(|name| !KEYS.iter().any(|key: &Key| key.variable() == **name));
    unknown.map(|name| format!("unknown environment variable {name}: `miglet config` lists the known ones"))
}
