//! The same controls over HTTP, for whoever drives the simulator from outside: `POST /_fake/faults` and so on.
//!
//! `POST /_fake/rules` takes a fault rule for the REST API, `DELETE /_fake/rules` forgets them; `POST /_fake/faults`
//! takes one [`Control`], e.g. `{"stockout": {"zone": "us-central1-a", "on": true}}`.

use std::time::Duration;

use axum::{
    Json, Router,
    extract::State,
    routing::{get, post},
};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Cloud, hostile::Missing};
use crate::faults::{Faults, Rule};

/// One thing that can be made to happen.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Control {
    /// A zone runs out of capacity, or gets some again.
    Stockout {
        /// Zone.
        zone: String,
        /// Out of capacity or not.
        on: bool,
    },
    /// A region's vCPU quota.
    CpuQuota {
        /// Region.
        region: String,
        /// vCPUs; unlimited when absent.
        limit: Option<u32>,
    },
    /// Lists lag behind.
    StaleLists {
        /// By this much.
        millis: u64,
    },
    /// The next boots hang.
    HungBoots {
        /// How many.
        count: u32,
    },
    /// Identity tokens come from a clock that is off.
    ClockSkew {
        /// By this much.
        seconds: i64,
    },
    /// Calls per minute; unlimited when absent.
    RateLimit {
        /// Calls.
        calls: Option<u32>,
    },
    /// Fields from the future.
    UnknownFields {
        /// On or off.
        on: bool,
    },
    /// Merged into an instance's list entry.
    Distort {
        /// Instance.
        instance: String,
        /// RFC 7396; null ends it.
        #[serde(default)]
        patch: Value,
    },
    /// Lists in pages.
    ForcedPages {
        /// Of this size.
        size: Option<usize>,
    },
    /// Preempts an instance.
    Preempt {
        /// Which.
        instance: String,
    },
    /// Cuts an instance's power.
    PowerOff {
        /// Which.
        instance: String,
    },
    /// Deletes an instance behind its group's back.
    DeleteElsewhere {
        /// Which.
        instance: String,
    },
    /// Makes an instance again under its name.
    Recreate {
        /// Which.
        instance: String,
    },
    /// Makes an instance that is nobody's.
    CreateForeign {
        /// In this group.
        group: String,
        /// By this name.
        instance: String,
    },
    /// Signs identity tokens with a new key.
    RollIdentityKey {},
}

impl Cloud {
    /// Makes one thing happen.
    ///
    /// # Errors
    /// When it is about something that is not there.
    pub fn control(&self, control: Control) -> Result<(), Missing> {
        match control {
            Control::Stockout { zone, on } => self.stockout(&zone, on),
            Control::CpuQuota { region, limit } => self.cpu_quota(&region, limit),
            Control::StaleLists { millis } => self.stale_lists(Duration::from_millis(millis)),
            Control::HungBoots { count } => self.hung_boots(count),
            Control::ClockSkew { seconds } => self.clock_skew(seconds),
            Control::RateLimit { calls } => self.rate_limit(calls.map(|calls| (calls, Duration::from_secs(60)))),
            Control::UnknownFields { on } => self.unknown_fields(on),
            Control::Distort { instance, patch } => self.distort(&instance, patch),
            Control::ForcedPages { size } => self.forced_pages(size),
            Control::Preempt { instance } => return self.preempt(&instance),
            Control::PowerOff { instance } => return self.power_off(&instance),
            Control::DeleteElsewhere { instance } => return self.delete_elsewhere(&instance),
            Control::Recreate { instance } => return self.recreate_under_same_name(&instance),
            Control::CreateForeign { group, instance } => return self.create_foreign(&group, &instance),
            Control::RollIdentityKey {} => {
                return self.roll_identity_key().map_err(|error| Missing(format!("new key: {error}")));
            }
        }
        Ok(())
    }
}

/// Routes of the control API.
pub(crate) fn router(cloud: Cloud, faults: Faults) -> Router {
    let rules =
        Router::new().route("/_fake/rules", get(list_rules).post(add_rule).delete(clear_rules)).with_state(faults);
    Router::new()
        .route("/_fake/faults", post(apply))
        .route("/_fake/instances", get(instances))
        .with_state(cloud)
        .merge(rules)
}

async fn apply(
    State(cloud): State<Cloud>,
    Json(control): Json<Control>,
) -> Result<Json<Value>, (StatusCode, Json<Value>)> {
    let done = cloud.control(control).map(|()| Json(json!({})));
    done.map_err(|error| (StatusCode::NOT_FOUND, Json(json!({"error": error.to_string()}))))
}

async fn instances(State(cloud): State<Cloud>) -> Json<Value> {
    Json(json!(cloud.all_instances()))
}

async fn list_rules(State(faults): State<Faults>) -> Json<Value> {
    let rules = faults.list().into_iter().filter_map(|rule| serde_json::to_value(rule).ok());
    Json(rules.collect())
}

async fn add_rule(State(faults): State<Faults>, Json(rule): Json<Rule>) -> Json<Value> {
    faults.add(rule);
    Json(json!({}))
}

async fn clear_rules(State(faults): State<Faults>) -> Json<Value> {
    faults.clear();
    Json(json!({}))
}
