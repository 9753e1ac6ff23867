//! What a simulated project looks like: its name, its speed, its machines, its groups and templates.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use serde_json::{Value, json};

use super::machines::{Machines, NoMachines};

/// How long things take. The default is an instant cloud.
#[derive(Clone, Copy, Debug)]
pub struct Delays {
    /// An operation from PENDING to DONE (RUNNING from half of it).
    pub operation: Duration,
    /// From the placeholder to an instance with an id.
    pub create: Duration,
    /// PROVISIONING.
    pub provision: Duration,
    /// STAGING.
    pub stage: Duration,
    /// From DELETING to gone.
    pub delete: Duration,
    /// Between two attempts to get capacity.
    pub retry: Duration,
    /// Before a repair starts.
    pub repair: Duration,
    /// From the notice of preemption to the hard power-off.
    pub preemption: Duration,
}

impl Default for Delays {
    fn default() -> Self {
        let instant = Duration::from_millis(2);
        Self {
            operation: instant,
            create: instant,
            provision: instant,
            stage: instant,
            delete: instant,
            retry: Duration::from_millis(50),
            repair: instant,
            preemption: Duration::from_secs(30),
        }
    }
}

/// A simulated project.
#[derive(Clone)]
pub struct ComputeOptions {
    /// Project id.
    pub project: String,
    /// Project number.
    pub project_number: u64,
    /// How long things take.
    pub delays: Delays,
    /// What an instance boots as.
    pub machines: Arc<dyn Machines>,
    /// Whether traffic is checked against Google's discovery document; a violation then fails whoever drops the
    /// simulator unasserted.
    pub checked: bool,
    /// Whether the group keeps trying to create an instance when capacity is out; otherwise the placeholder vanishes
    /// and the target size shrinks.
    pub create_retries: bool,
    /// Where to listen; a random loopback port when absent.
    pub address: Option<SocketAddr>,
}

impl Default for ComputeOptions {
    fn default() -> Self {
        Self {
            project: "acme-ci".to_owned(),
            project_number: 424_242_424_242,
            delays: Delays::default(),
            machines: Arc::new(NoMachines),
            checked: true,
            create_retries: true,
            address: None,
        }
    }
}

/// Where a group is.
#[derive(Clone, Debug)]
pub enum Location {
    /// In one zone.
    Zone(String),
    /// In a region, over these zones.
    Region {
        /// The region.
        name: String,
        /// Its zones that the group uses, in order of preference.
        zones: Vec<String>,
    },
}

/// A group to make, with its template; right in every setting unless overridden.
#[derive(Clone, Debug)]
pub struct GroupSpec {
    /// Name of the group, and with `-template` of its template.
    pub name: String,
    /// Where it is.
    pub location: Location,
    /// Metadata items of the template.
    pub metadata: BTreeMap<String, String>,
    /// Email of the instances' service account; without one there are no identity tokens.
    pub service_account: Option<String>,
    /// Machine type; its last number is the vCPUs that count against the quota.
    pub machine_type: String,
    /// Merged (RFC 7396) over the group resource, so wrong settings can be tried.
    pub settings: Value,
    /// Merged (RFC 7396) over the template's properties.
    pub properties: Value,
}

impl GroupSpec {
    /// A group in one zone.
    #[must_use]
    pub fn zonal(name: &str, zone: &str) -> Self {
        Self::at(name, Location::Zone(zone.to_owned()))
    }

    /// A group over these zones of a region.
    #[must_use]
    pub fn regional(name: &str, region: &str, zones: &[&str]) -> Self {
        let zones = zones.iter().map(|&zone| zone.to_owned()).collect();
        Self::at(name, Location::Region { name: region.to_owned(), zones })
    }

    fn at(name: &str, location: Location) -> Self {
        Self {
            name: name.to_owned(),
            location,
            metadata: BTreeMap::from([("enable-guest-attributes".to_owned(), "TRUE".to_owned())]),
            service_account: Some("miglet-runner@acme-ci.iam.gserviceaccount.com".to_owned()),
            machine_type: "e2-standard-2".to_owned(),
            settings: json!({}),
            properties: json!({}),
        }
    }

    /// Adds a metadata item to the template.
    #[must_use]
    pub fn metadata(mut self, key: &str, value: &str) -> Self {
        self.metadata.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Instances run as this service account, or as none.
    #[must_use]
    pub fn service_account(mut self, email: Option<&str>) -> Self {
        self.service_account = email.map(str::to_owned);
        self
    }

    /// Overrides settings of the group, e.g. `{"updatePolicy": {"type": "PROACTIVE"}}`.
    #[must_use]
    pub fn settings(mut self, settings: Value) -> Self {
        self.settings = settings;
        self
    }

    /// Overrides properties of the template.
    #[must_use]
    pub fn properties(mut self, properties: Value) -> Self {
        self.properties = properties;
        self
    }
}
