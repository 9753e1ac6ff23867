//! What the tests talk to the simulator with.

use std::time::{Duration, Instant};

use gcloud_sdk::google_cloud_auth::credentials::{Credentials, mds};
use google_cloud_compute_v1::client::{InstanceGroupManagers, RegionInstanceGroupManagers};
use google_cloud_compute_v1::model;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use miglet_e2e::compute::{ComputeOptions, ComputeSim, GroupSpec};
use serde_json::Value;

pub(crate) const ZONE: &str = "us-central1-a";

/// An instant cloud with the zonal group `linux`.
pub(crate) async fn cloud() -> ComputeSim {
    with(ComputeOptions::default()).await
}

pub(crate) async fn with(options: ComputeOptions) -> ComputeSim {
    let compute = ComputeSim::start(options).await.unwrap();
    compute.add_group(&GroupSpec::zonal("linux", ZONE).metadata("miglet-endpoint", "https://operator:7443"));
    compute
}

/// Application-default credentials from the simulator's metadata server, as the operator has them.
pub(crate) fn credentials(compute: &ComputeSim) -> Credentials {
    mds::Builder::default().with_endpoint(format!("http://{}", compute.adc_host())).build().unwrap()
}

pub(crate) async fn zonal(compute: &ComputeSim) -> InstanceGroupManagers {
    let builder = InstanceGroupManagers::builder().with_endpoint(compute.url());
    builder.with_credentials(credentials(compute)).build().await.unwrap()
}

pub(crate) async fn regional(compute: &ComputeSim) -> RegionInstanceGroupManagers {
    let builder = RegionInstanceGroupManagers::builder().with_endpoint(compute.url());
    builder.with_credentials(credentials(compute)).build().await.unwrap()
}

/// Asks for instances by name and returns the operation.
pub(crate) async fn create(compute: &ComputeSim, names: &[&str]) -> model::Operation {
    let client = zonal(compute).await;
    let instances = names.iter().map(|&name| model::PerInstanceConfig::new().set_name(name));
    let body = model::InstanceGroupManagersCreateInstancesRequest::new().set_instances(instances);
    let call = client.create_instances().set_project("acme-ci").set_zone(ZONE).set_instance_group_manager("linux");
    call.set_body(body).send().await.unwrap()
}

pub(crate) async fn list(compute: &ComputeSim) -> Vec<model::ManagedInstance> {
    let client = zonal(compute).await;
    let call = client.list_managed_instances().set_project("acme-ci").set_zone(ZONE);
    call.set_instance_group_manager("linux").send().await.unwrap().managed_instances
}

/// A plain HTTP answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: http::HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }
}

/// A plain HTTP request; an error when the connection was cut.
pub(crate) async fn try_http(
    method: Method,
    url: &str,
    header: (&str, &str),
    body: &str,
) -> Result<Answer, hyper_util::client::legacy::Error> {
    let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let request = Request::builder().method(method).uri(url).header(header.0, header.1);
    let request = request.header("content-type", "application/json").body(Full::from(body.to_owned())).unwrap();
    let response = client.request(request).await?;
    let (head, body) = response.into_parts();
    let text = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
    Ok(Answer { status: head.status.as_u16(), headers: head.headers, text })
}

/// A plain call of the REST API with the right token.
pub(crate) async fn rest(compute: &ComputeSim, method: Method, path: &str, body: &str) -> Answer {
    let url = format!("{}/compute/v1/projects/acme-ci/{path}", compute.url());
    try_http(method, &url, ("authorization", &format!("Bearer {}", compute.token())), body).await.unwrap()
}

/// A question to an instance's metadata server.
pub(crate) async fn metadata(compute: &ComputeSim, instance: &str, path: &str) -> Answer {
    let host = compute.instance(instance).unwrap().metadata_host.unwrap();
    let url = format!("http://{host}/computeMetadata/v1/{path}");
    try_http(Method::GET, &url, ("metadata-flavor", "Google"), "").await.unwrap()
}

/// Waits until the condition holds, and not for ever.
pub(crate) async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub(crate) async fn running(compute: &ComputeSim, names: &[&str]) {
    eventually("instances run", || {
        names
            .iter()
            .all(|name| compute.instance(name).is_some_and(|i| i.status == Some("RUNNING") && i.action == "NONE"))
    })
    .await;
}
