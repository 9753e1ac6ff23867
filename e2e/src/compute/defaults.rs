//! A group and a template whose every setting is right for disposable runners.

use serde_json::{Value, json};

use super::{
    managers::merge,
    options::{GroupSpec, Location},
    state::{PREFIX, Place, fingerprint, region},
};

/// Settings of a group.
pub(crate) fn default_settings(project: &str, place: &Place, zones: &[String]) -> Value {
    let mut settings = json!({
        "updatePolicy": {"type": "OPPORTUNISTIC", "minimalAction": "REPLACE", "replacementMethod": "SUBSTITUTE"},
        "instanceLifecyclePolicy": {"defaultActionOnFailure": "DO_NOTHING", "forceUpdateOnRepair": "NO"},
        "listManagedInstancesResults": "PAGELESS",
    });
    if let Place::Region(_) = place {
        let zones = zones.iter().map(|zone| json!({"zone": format!("{PREFIX}projects/{project}/zones/{zone}")}));
        let distribution = json!({"targetShape": "ANY", "zones": zones.collect::<Vec<_>>()});
        let regional =
            json!({"distributionPolicy": distribution, "updatePolicy": {"instanceRedistributionType": "NONE"}});
        merge(&mut settings, &regional);
    }
    settings
}

/// Properties of a template.
pub(crate) fn default_properties(project: &str, spec: &GroupSpec) -> Value {
    let items: Vec<Value> = spec.metadata.iter().map(|(key, value)| json!({"key": key, "value": value})).collect();
    let accounts: Vec<Value> = spec
        .service_account
        .iter()
        .map(|email| json!({"email": email, "scopes": ["https://www.googleapis.com/auth/cloud-platform"]}))
        .collect();
    let zone = match &spec.location {
        Location::Zone(zone) => zone.clone(),
        Location::Region { zones, .. } => zones.first().cloned().unwrap_or_default(),
    };
    let base = format!("{PREFIX}projects/{project}");
    json!({
        "machineType": spec.machine_type,
        "metadata": {"kind": "compute#metadata", "fingerprint": fingerprint(), "items": items},
        "serviceAccounts": accounts,
        "scheduling": {"provisioningModel": "STANDARD", "onHostMaintenance": "MIGRATE", "automaticRestart": false},
        "disks": [{"kind": "compute#attachedDisk", "type": "PERSISTENT", "boot": true, "autoDelete": true,
            "initializeParams": {"sourceImage": "projects/debian-cloud/global/images/family/debian-13"}}],
        "networkInterfaces": [{"kind": "compute#networkInterface", "name": "nic0",
            "network": format!("{base}/global/networks/default"),
            "subnetwork": format!("{base}/regions/{}/subnetworks/default", region(&zone))}],
    })
}
