//! The gateway's one endpoint: the leader.
//!
//! The gateway's Service has no selector, or its controller would send agents to standbys too. The leader keeps one
//! EndpointSlice instead, under the Service's name: fixed, so that RBAC can name it.
//!
//! It is read before it is written: an unchanged world gets no write. What another process or a person changed is
//! written again, as long as this process leads.

use std::{error::Error, net::IpAddr, time::Duration};

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams},
};
use tokio_util::sync::CancellationToken;

use crate::leadership::{Leadership, NotLeading};

/// Owner of the slice's fields.
const MANAGER: &str = "miglet-operator/endpoints";
/// Name of the gateway's port, in the Service and in the slice: this is how the two are joined.
const PORT_NAME: &str = "agents";
/// How often the slice is looked at. Agents find no operator while it is wrong; their retries take longer than this.
const PERIOD: Duration = Duration::from_secs(10);

/// The slice that should be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayAddress {
    /// Namespace of the Service.
    pub namespace: String,
    /// Name of the Service, and of the slice.
    pub service: String,
    /// This pod's address.
    pub ip: IpAddr,
    /// Port the gateway listens on.
    pub port: u16,
}

/// The slice could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum EndpointsError {
    /// This process may not act.
    #[error("keeping the endpoint of the gateway")]
    NotLeading(#[from] NotLeading),
    /// A call failed.
    #[error("{action} the EndpointSlice {name}")]
    Call {
        /// What was tried.
        action: &'static str,
        /// Its name.
        name: String,
        /// Why it failed.
        #[source]
        source: Box<kube::Error>,
    },
    /// A call was not answered in time.
    #[error("{action} the EndpointSlice {name}: no answer in {limit:?}")]
    NoAnswer {
        /// What was tried.
        action: &'static str,
        /// Its name.
        name: String,
        /// How long it was waited for.
        limit: Duration,
    },
}

/// Pure: the slice that sends every agent to this process.
#[must_use]
pub fn slice(address: &GatewayAddress) -> EndpointSlice {
    let labels = [
        ("kubernetes.io/service-name", address.service.as_str()),
        ("endpointslice.kubernetes.io/managed-by", "miglet.dev"),
    ];
    EndpointSlice {
        metadata: ObjectMeta {
            name: Some(address.service.clone()),
            namespace: Some(address.namespace.clone()),
            labels: Some(labels.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()),
            ..ObjectMeta::default()
        },
        address_type: if address.ip.is_ipv4() { "IPv4" } else { "IPv6" }.to_owned(),
        endpoints: Some(vec![Endpoint {
            addresses: vec![address.ip.to_string()],
            conditions: Some(EndpointConditions { ready: Some(true), ..EndpointConditions::default() }),
            ..Endpoint::default()
        }]),
        ports: Some(vec![EndpointPort {
            name: Some(PORT_NAME.to_owned()),
            port: Some(i32::from(address.port)),
            protocol: Some("TCP".to_owned()),
            ..EndpointPort::default()
        }]),
    }
}

/// Pure: whether agents that follow `found` reach `wanted`. What the API server fills in is no difference.
fn leads_to(found: &EndpointSlice, wanted: &EndpointSlice) -> bool {
    let labels = |slice: &EndpointSlice| slice.metadata.labels.clone().unwrap_or_default();
    let targets = |slice: &EndpointSlice| {
        let ready = |e: &Endpoint| e.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true);
        let endpoints = slice.endpoints.iter().flatten().map(|e| (e.addresses.clone(), ready(e))).collect::<Vec<_>>();
        let ports = slice.ports.iter().flatten().map(|p| (p.name.clone(), p.port)).collect::<Vec<_>>();
        (slice.address_type.clone(), endpoints, ports)
    };
    targets(found) == targets(wanted) && labels(wanted).iter().all(|(key, value)| labels(found).get(key) == Some(value))
}

/// Keeps the slice while this process leads.
#[derive(Clone, Debug)]
pub struct Endpoints {
    api: Api<EndpointSlice>,
    wanted: EndpointSlice,
    leadership: Leadership,
    timeout: Duration,
}

impl Endpoints {
    /// Keeps the slice of `address`; each call may take `timeout`.
    #[must_use]
    pub fn new(client: Client, address: &GatewayAddress, leadership: Leadership, timeout: Duration) -> Self {
        Self { api: Api::namespaced(client, &address.namespace), wanted: slice(address), leadership, timeout }
    }

    /// Keeps the slice right until `stop`. Begin when this process leads.
    pub async fn run(self, stop: CancellationToken) {
        loop {
            if let Err(error) = self.keep().await {
                tracing::warn!(error = &error as &dyn Error, "Agents may not find this operator");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(PERIOD) => {}
            }
        }
    }

    /// Writes the slice if it is not right; whether it was written.
    ///
    /// # Errors
    /// This process does not lead, or a call failed.
    pub async fn keep(&self) -> Result<bool, EndpointsError> {
        let name = self.wanted.metadata.name.as_deref().unwrap_or_default();
        let found = self.call("reading", self.api.get_opt(name)).await?;
        if found.is_some_and(|found| leads_to(&found, &self.wanted)) {
            return Ok(false);
        }
        self.leadership.may_act()?;
        let params = PatchParams::apply(MANAGER).force();
        self.call("writing", self.api.patch(name, &params, &Patch::Apply(&self.wanted))).await?;
        tracing::info!(service = name, "Agents are sent to this process");
        Ok(true)
    }

    async fn call<T>(
        &self,
        action: &'static str,
        call: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, EndpointsError> {
        let name = || self.wanted.metadata.name.clone().unwrap_or_default();
        match tokio::time::timeout(self.timeout, call).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(source)) => Err(EndpointsError::Call { action, name: name(), source: Box::new(source) }),
            Err(_) => Err(EndpointsError::NoAnswer { action, name: name(), limit: self.timeout }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(ip: &str) -> GatewayAddress {
        GatewayAddress {
            namespace: "miglet-system".to_owned(),
            service: "miglet-gateway".to_owned(),
            ip: ip.parse().unwrap(),
            port: 8443,
        }
    }

    #[test]
    fn the_slice_joins_the_service_to_this_pod() {
        let slice = serde_json::to_value(slice(&address("10.0.0.7"))).unwrap();
        assert_eq!(slice["metadata"]["name"], "miglet-gateway");
        assert_eq!(slice["metadata"]["labels"]["kubernetes.io/service-name"], "miglet-gateway");
        assert_eq!(slice["addressType"], "IPv4");
        assert_eq!(slice["endpoints"][0]["addresses"], serde_json::json!(["10.0.0.7"]));
        assert_eq!(slice["ports"], serde_json::json!([{"name": "agents", "port": 8443, "protocol": "TCP"}]));
    }

    #[test]
    fn an_ipv6_pod_gets_an_ipv6_slice() {
        assert_eq!(slice(&address("fd00::7")).address_type, "IPv6");
    }

    #[test]
    fn only_a_difference_that_matters_to_agents_is_written() {
        let wanted = slice(&address("10.0.0.7"));
        let mut found = wanted.clone();
        found.metadata.resource_version = Some("7".to_owned());
        found.metadata.labels.as_mut().unwrap().insert("team".to_owned(), "build".to_owned());
        assert!(leads_to(&found, &wanted));
        assert!(!leads_to(&slice(&address("10.0.0.8")), &wanted), "the old leader's address");
        found.endpoints = None;
        assert!(!leads_to(&found, &wanted), "somebody emptied it");
        let mut unlabelled = wanted.clone();
        unlabelled.metadata.labels = None;
        assert!(!leads_to(&unlabelled, &wanted), "somebody took it from its Service");
    }
}
