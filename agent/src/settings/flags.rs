//! The settings as command line flags, made from [`KEYS`] so that none can be forgotten.

use std::collections::BTreeMap;

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};

use super::{KEYS, Key};

/// What says which runner is installed, from where and to where.
const INSTALLATION: [&str; 10] = [
    "config",
    "metadata-host",
    "runner-dir",
    "runner-version",
    "runner-minimum-version",
    "runner-sha256",
    "runner-sources",
    "runner-offered-url",
    "cache-dir",
    "log-level",
];

/// The settings given on the command line.
#[derive(Clone, Debug, Default)]
pub struct Flags(BTreeMap<&'static str, String>);

impl Flags {
    /// These and no others; names that are no key are left out.
    pub fn of(values: impl IntoIterator<Item = (&'static str, Option<String>)>) -> Self {
        let known = values.into_iter().filter(|(name, _)| Key::named(name).is_some());
        Self(known.filter_map(|(name, value)| Some((name, value?))).collect())
    }

    pub(super) fn get(&self, name: &str) -> Option<&String> {
        self.0.get(name)
    }
}

impl Key {
    fn flag(&self) -> Arg {
        let mut help = format!("{} [env: {}]", self.help, self.variable());
        for (what, value) in [("metadata", self.attribute().as_deref()), ("default", self.default)] {
            if let Some(value) = value {
                help.push_str(&format!(" [{what}: {value}]"));
            }
        }
        Arg::new(self.name).long(self.name).value_name("VALUE").help(help)
    }
}

impl Args for Flags {
    fn augment_args(command: Command) -> Command {
        command.args(KEYS.iter().map(Key::flag))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

/// The flags of a command that only installs a runner: the others are taken, but nobody has to read about them.
#[derive(Clone, Debug)]
pub struct InstallFlags(pub Flags);

impl Args for InstallFlags {
    fn augment_args(command: Command) -> Command {
        let matters = |key: &Key| INSTALLATION.contains(&key.name);
        command.args(KEYS.iter().map(|key| key.flag().hide(!matters(key))))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for InstallFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Flags::from_arg_matches(matches).map(Self)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0.update_from_arg_matches(matches)
    }
}

impl FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self::of(KEYS.iter().map(|key| (key.name, matches.get_one::<String>(key.name).cloned()))))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0.extend(Self::from_arg_matches(matches)?.0);
        Ok(())
    }
}
