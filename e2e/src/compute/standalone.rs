//! The simulator on its own, for people who write clients.

use std::{net::SocketAddr, sync::Arc};

use serde::Serialize;

use super::{ComputeOptions, ComputeSim, GroupSpec, StartError, machines::Machines};

/// What a client needs to know: printed as one JSON line.
#[derive(Clone, Debug, Serialize)]
pub struct Endpoint {
    /// REST root.
    pub endpoint: String,
    /// Project id.
    pub project: String,
    /// Zone of the group.
    pub zone: String,
    /// An empty group.
    pub group: String,
    /// Bearer token.
    pub token: String,
}

/// Starts a project with one empty zonal group, whose instances boot as these machines.
///
/// # Errors
/// When it cannot listen.
pub async fn standalone(
    machines: Arc<dyn Machines>,
    address: Option<SocketAddr>,
) -> Result<(ComputeSim, Endpoint), StartError> {
    let options = ComputeOptions { machines, address, checked: false, ..ComputeOptions::default() };
    let project = options.project.clone();
    let compute = ComputeSim::start(options).await?;
    let (zone, group) = ("us-central1-a".to_owned(), "runners".to_owned());
    compute.add_group(&GroupSpec::zonal(&group, &zone));
    let endpoint = Endpoint { endpoint: compute.url(), project, zone, group, token: compute.token().to_owned() };
    Ok((compute, endpoint))
}
