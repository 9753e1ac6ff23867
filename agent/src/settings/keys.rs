//! Every setting there is, once.

/// One setting.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Its flag, without dashes in front, and its name in the file.
    pub name: &'static str,
    /// What it does, one sentence.
    pub help: &'static str,
    /// Its value when nobody gives one.
    pub default: Option<&'static str>,
    /// Where else than flags and environment it may come from.
    pub from: From,
    /// How its value is shown.
    pub show: Show,
}

/// Which sources are asked besides flags and environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// None: needed before those can be read.
    Start,
    /// The file: a matter of the machine's image.
    File,
    /// The file and the instance's attributes.
    Metadata,
}

/// How a value is shown to people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    /// As it is, cut.
    Text,
    /// PEM text as a count of certificates.
    Pem,
    /// URLs without passwords and queries.
    Urls,
}

impl Key {
    /// Its environment variable.
    #[must_use]
    pub fn variable(&self) -> String {
        match self.name {
            // The name that Google's own libraries read.
            "metadata-host" => "GCE_METADATA_HOST".to_owned(),
            name => format!("MIGLET_{}", name.replace('-', "_").to_uppercase()),
        }
    }

    /// Its instance attribute, if it may come from there.
    #[must_use]
    pub fn attribute(&self) -> Option<String> {
        (self.from == From::Metadata).then(|| format!("miglet-{}", self.name))
    }

    /// Its name in the file, if it may come from there.
    #[must_use]
    pub fn file_key(&self) -> Option<&'static str> {
        (self.from != From::Start).then_some(self.name)
    }

    /// The setting of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        KEYS.iter().find(|key| key.name == name)
    }

    /// The value as people may see it.
    #[must_use]
    pub fn shown(&self, value: &str) -> String {
        match self.show {
            Show::Pem if value.contains("-----BEGIN") => {
                format!("PEM text of {} certificate(s)", value.matches("-----BEGIN").count())
            }
            Show::Urls => crate::runner::clean(&crate::installation::redacted(value), 500),
            _ => crate::runner::clean(value, 200),
        }
    }
}

const fn key(name: &'static str, from: From, default: Option<&'static str>, help: &'static str) -> Key {
    Key { name, help, default, from, show: Show::Text }
}

/// Where the file is looked for when nobody says.
pub(super) const DEFAULT_FILE: &str = "/etc/miglet/config.yaml";

/// GitHub's own release.
const GITHUB: &str =
    "https://github.com/actions/runner/releases/download/v{version}/actions-runner-linux-{arch}-{version}.tar.gz";

/// Every setting there is.
pub const KEYS: &[Key] = &[
    key(
        "config",
        From::Start,
        Some(DEFAULT_FILE),
        "The configuration file; a missing one matters only when named here.",
    ),
    key("metadata-host", From::Start, Some(crate::metadata::DEFAULT_HOST), "The metadata server, host or host:port."),
    key("boot-id", From::Start, None, "Identifies this boot; the kernel's own id unless set."),
    key("endpoint", From::Metadata, None, "The operator's gateway, https://host:port."),
    Key {
        show: Show::Pem,
        ..key("ca", From::Metadata, None, "CA of the gateway: PEM text, or the path of a PEM file.")
    },
    key("audience", From::Metadata, None, "First part of the identity token's audience, as at the operator."),
    key("runner-dir", From::Metadata, Some("/opt/actions-runner"), "The runner that is part of the image."),
    key(
        "runner-version",
        From::Metadata,
        None,
        "The runner to install, as 2.336.0; while unset, the one in runner-dir is used whatever its version.",
    ),
    key(
        "runner-minimum-version",
        From::Metadata,
        None,
        "The oldest version in runner-dir that is used as it is; without this only runner-version itself.",
    ),
    key("runner-sha256", From::Metadata, None, "SHA-256 of the runner's archive; needed with runner-version."),
    Key {
        show: Show::Urls,
        ..key(
            "runner-sources",
            From::Metadata,
            Some(GITHUB),
            "URLs of the runner's archive, tried in this order; `{version}` and `{arch}` (x64, arm64) are filled in.",
        )
    },
    Key {
        show: Show::Urls,
        ..key(
            "runner-offered-url",
            From::Metadata,
            None,
            "Where GitHub offers that archive, as the operator says: tried last, or instead of the default runner-sources.",
        )
    },
    key("cache-dir", From::File, Some("/var/cache/miglet"), "Where installed runners are kept."),
    key("state-dir", From::File, Some("/run/miglet"), "Root-only state, gone after a boot."),
    key(
        "data-dir",
        From::File,
        Some("/var/lib/miglet"),
        "Kept from boot to boot: events that were not told yet, and the hooks, which the runner reads.",
    ),
    key(
        "machine",
        From::File,
        Some("process"),
        "What the machine is: systemd (jobs as runner-user, in a unit and behind a firewall of their own; the agent powers it \
         off) or process (a trial: jobs run as the agent does, and it just ends).",
    ),
    key(
        "runner-user",
        From::File,
        Some("runner"),
        "Who jobs run as where machine is systemd, made when missing; its groups are kept. Else it is the agent's user.",
    ),
    key("runner-allow-root", From::File, Some("false"), "Whether runner-user may be root: true or false."),
    key(
        "runner-metadata-access",
        From::Metadata,
        Some("blocked"),
        "Whether jobs reach the metadata server, and so the instance's service account: blocked or allowed.",
    ),
    key(
        "heartbeat-seconds",
        From::Metadata,
        Some("15"),
        "Seconds between heartbeats, 1 to 3600, until the operator sets its own.",
    ),
    key(
        "hook-job-started",
        From::Metadata,
        None,
        "Your script before each job (.sh, .ps1 or .js), instead of the one that the runner's .env names.",
    ),
    key("hook-job-completed", From::Metadata, None, "Your script after each job, likewise."),
    key(
        "guard-runtime-seconds",
        From::Metadata,
        Some("432000"),
        "How long a job may run, the longest GitHub allows unless set; then it is interrupted; 0: for ever.",
    ),
    key("guard-disk-warn-percent", From::Metadata, Some("90"), "Disk in use that is warned about; 0: never."),
    key("guard-disk-act-percent", From::Metadata, Some("0"), "Disk in use that ends the job; 0: never."),
    key("guard-memory-warn-percent", From::Metadata, Some("90"), "Memory in use that is warned about; 0: never."),
    key("guard-memory-act-percent", From::Metadata, Some("0"), "Memory in use that ends the job; 0: never."),
    key(
        "orphan-seconds",
        From::Metadata,
        Some("900"),
        "How long a machine whose runner has ended waits for an operator it cannot reach; then it powers off; 0: never.",
    ),
    key(
        "maximum-lifetime-seconds",
        From::Metadata,
        Some("518400"),
        "Age at which the machine powers off, five minutes later, whatever its agent and its job do; 0: never.",
    ),
    key("log-level", From::Metadata, Some("info"), "What is logged: off, error, warn, info, debug or trace."),
];
