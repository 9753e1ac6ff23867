//! How often, how long, how many.

use std::time::Duration;

pub(super) const DEFAULT_LEASE: &str = "miglet-operator";

/// The lease of the active operator.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Leadership")]
pub struct LeaseTiming {
    /// Name of the Lease in the operator's namespace; operators with different pools need different ones.
    #[arg(long, env = "MIGLET_LEASE_NAME", default_value = DEFAULT_LEASE)]
    pub lease_name: String,
    /// How long a lease lasts without renewal: a standby takes over this long after a leader crashed.
    #[arg(long = "lease-duration-seconds", env = "MIGLET_LEASE_DURATION_SECONDS", default_value = "15", value_parser = seconds, value_name = "SECONDS")]
    pub lease_duration: Duration,
    /// How often the leader renews the lease, and a standby looks at it.
    #[arg(long = "lease-renew-seconds", env = "MIGLET_LEASE_RENEW_SECONDS", default_value = "2", value_parser = seconds, value_name = "SECONDS")]
    pub lease_renew: Duration,
}

/// How often, how long, how many.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Timing")]
pub struct Timing {
    /// How often each instance group is listed.
    #[arg(long = "list-interval-seconds", env = "MIGLET_LIST_INTERVAL_SECONDS", default_value = "5", value_parser = seconds, value_name = "SECONDS")]
    pub list_interval: Duration,
    /// Two lists this far apart that do not show an instance prove that it is gone.
    #[arg(long = "absence-seconds", env = "MIGLET_ABSENCE_SECONDS", default_value = "60", value_parser = seconds, value_name = "SECONDS")]
    pub absence: Duration,
    /// An agent that says "idle" twice this far apart, of a runner GitHub does not know, holds a ghost.
    #[arg(long = "idle-sighting-seconds", env = "MIGLET_IDLE_SIGHTING_SECONDS", default_value = "100", value_parser = seconds, value_name = "SECONDS")]
    pub idle_sighting: Duration,
    /// A runner that GitHub does not find is only gone when the same credential read its scope within this time.
    #[arg(long = "scope-read-seconds", env = "MIGLET_SCOPE_READ_SECONDS", default_value = "60", value_parser = seconds, value_name = "SECONDS")]
    pub scope_read: Duration,
    /// How often whole lists of runners are read from GitHub.
    #[arg(long = "runner-list-interval-seconds", env = "MIGLET_RUNNER_LIST_INTERVAL_SECONDS", default_value = "300", value_parser = seconds, value_name = "SECONDS")]
    pub runner_list_interval: Duration,
    /// How often leftover instances and registrations are looked for.
    #[arg(long = "sweep-interval-seconds", env = "MIGLET_SWEEP_INTERVAL_SECONDS", default_value = "120", value_parser = seconds, value_name = "SECONDS")]
    pub sweep_interval: Duration,
    /// How many leftovers of a pool one sweep removes at most.
    #[arg(long, env = "MIGLET_SWEEP_LIMIT", default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub sweep_limit: u16,
    /// How long one call to Kubernetes, Compute or GitHub may take.
    #[arg(long = "request-timeout-seconds", env = "MIGLET_REQUEST_TIMEOUT_SECONDS", default_value = "30", value_parser = seconds, value_name = "SECONDS")]
    pub request_timeout: Duration,
    /// How old a read Secret may become before it is read again.
    #[arg(long = "secret-max-age-seconds", env = "MIGLET_SECRET_MAX_AGE_SECONDS", default_value = "60", value_parser = seconds, value_name = "SECONDS")]
    pub secret_max_age: Duration,
    /// How often an agent is told to send its heartbeat.
    #[arg(long = "heartbeat-seconds", env = "MIGLET_HEARTBEAT_SECONDS", default_value = "15", value_parser = seconds, value_name = "SECONDS")]
    pub heartbeat: Duration,
    /// How long a group without capacity is left alone at first; doubles with each failure.
    #[arg(long = "capacity-backoff-seconds", env = "MIGLET_CAPACITY_BACKOFF_SECONDS", default_value = "30", value_parser = seconds, value_name = "SECONDS")]
    pub capacity_backoff: Duration,
    /// How long a group whose quota is used up is left alone at first; doubles with each failure.
    #[arg(long = "quota-backoff-seconds", env = "MIGLET_QUOTA_BACKOFF_SECONDS", default_value = "300", value_parser = seconds, value_name = "SECONDS")]
    pub quota_backoff: Duration,
}

/// Longest duration that makes sense in a flag: a day.
const LONGEST: f64 = 86_400.0;

fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_| "must be a number of seconds, such as 15 or 0.5".to_owned())?;
    if !(number > 0.0 && number <= LONGEST) {
        return Err(format!("must be more than 0 and at most {LONGEST} seconds"));
    }
    Duration::try_from_secs_f64(number).map_err(|error| error.to_string())
}

impl LeaseTiming {
    pub(super) fn contradiction(&self) -> Option<String> {
        if self.lease_duration < Duration::from_secs(1) {
            return Some("--lease-duration-seconds must be at least 1: a Lease knows whole seconds only".to_owned());
        }
        (self.lease_renew * 2 > self.lease_duration).then(|| {
            format!(
                "--lease-renew-seconds ({}) must be at most half of --lease-duration-seconds ({}): one lost renewal \
                 would end the leader",
                self.lease_renew.as_secs_f64(),
                self.lease_duration.as_secs_f64()
            )
        })
    }
}

impl Timing {
    pub(super) fn contradiction(&self) -> Option<String> {
        (self.absence < self.list_interval).then(|| {
            format!(
                "--absence-seconds ({}) must be at least --list-interval-seconds ({}): two lists must fit in it",
                self.absence.as_secs_f64(),
                self.list_interval.as_secs_f64()
            )
        })
    }
}
