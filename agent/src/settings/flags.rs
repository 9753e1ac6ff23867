//! The settings as command line flags, made from [`KEYS`] so that none can be forgotten.

use std::collections::BTreeMap;

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};

use super::{KEYS, Key};

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

impl FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self::of(KEYS.iter().map(|key| (key.name, matches.get_one::<String>(key.name).cloned()))))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0.extend(Self::from_arg_matches(matches)?.0);
        Ok(())
    }
}
