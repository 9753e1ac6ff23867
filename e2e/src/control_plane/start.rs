//! Starting the control plane, in order: etcd and API server, definitions, kube-controller-manager.

use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::core::v1::ServiceAccount, apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{Api, Client};
use tempfile::TempDir;

use super::{
    ControlPlane, audit, binaries::Binaries, client, components, crds, credentials::Credentials, error::Error,
    kubeconfig::Access, process::Process,
};

const READY_TIMEOUT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);
/// A free port may be taken before the API server gets to it.
const PORT_ATTEMPTS: usize = 3;

/// Starts it all and waits until it works.
pub(super) async fn start(definitions: &[CustomResourceDefinition]) -> Result<ControlPlane, Error> {
    let binaries = tokio::task::spawn_blocking(Binaries::obtain).await;
    let binaries = binaries.map_err(|error| Error::io("obtain the control plane's programs")(error.into()))??;
    let folder = tempfile::Builder::new().prefix("miglet-cp-").tempdir().map_err(Error::io("make a folder"))?;
    let credentials = Credentials::create(folder.path())?;
    write(folder.path(), "audit-policy.yaml", audit::POLICY)?;
    let etcd = spawn("etcd", &components::etcd(&binaries, folder.path()), folder.path())?;
    let (api, url, admin) = start_apiserver(&binaries, &folder, &credentials).await?;
    crds::apply(admin.clone(), definitions).await?;
    let mut manager =
        spawn("kube-controller-manager", &components::controller_manager(&binaries, folder.path()), folder.path())?;
    wait_for("kube-controller-manager", &mut manager, async || has_default_account(&admin).await).await?;
    let (admin, authority) = (folder.path().join("admin.kubeconfig"), Some(credentials.authority));
    Ok(ControlPlane { processes: vec![manager, api, etcd], binaries, url, authority, admin, folder })
}

async fn start_apiserver(
    binaries: &Binaries,
    folder: &TempDir,
    credentials: &Credentials,
) -> Result<(Process, String, Client), Error> {
    let mut attempt = 1;
    loop {
        let port = free_port()?;
        let url = format!("https://127.0.0.1:{port}");
        write_kubeconfigs(folder.path(), &url, credentials)?;
        let admin = client(&folder.path().join("admin.kubeconfig")).await?;
        let command = components::apiserver(binaries, folder.path(), port);
        let mut process = spawn("kube-apiserver", &command, folder.path())?;
        match wait_for("kube-apiserver", &mut process, async || is_ready(&admin).await).await {
            Ok(()) => return Ok((process, url, admin)),
            Err(Error::Exited { log, .. }) if attempt < PORT_ATTEMPTS && log.contains("address already in use") => {
                attempt += 1;
            }
            Err(error) => return Err(error),
        }
    }
}

fn write_kubeconfigs(folder: &Path, server: &str, credentials: &Credentials) -> Result<(), Error> {
    let users = [("admin", &credentials.admin_token), ("controller-manager", &credentials.controller_manager_token)];
    for (name, token) in users {
        let access = Access { server, authority: Some(&credentials.authority), token };
        access.write(folder.join(format!("{name}.kubeconfig")))?;
    }
    Ok(())
}

fn write(folder: &Path, name: &str, content: &str) -> Result<(), Error> {
    fs::write(folder.join(name), content).map_err(Error::io(format!("write {name}")))
}

fn spawn(program: &'static str, command: &Command, folder: &Path) -> Result<Process, Error> {
    let log = folder.join(format!("{program}.log"));
    Process::spawn(command, &log, Some(folder)).map_err(Error::io(format!("start {program}")))
}

/// Asks again and again, until the answer is yes, the program ends, or it takes too long.
async fn wait_for(program: &'static str, process: &mut Process, ready: impl AsyncFn() -> bool) -> Result<(), Error> {
    let start = Instant::now();
    while start.elapsed() < READY_TIMEOUT {
        if let Some(status) = process.exit_status().map_err(Error::io(format!("watch {program}")))? {
            return Err(Error::Exited { program, status, log: process.log_tail() });
        }
        if tokio::time::timeout(READY_TIMEOUT, ready()).await.unwrap_or(false) {
            return Ok(());
        }
        tokio::time::sleep(POLL).await;
    }
    Err(Error::TimedOut { what: format!("{program}:\n{}", process.log_tail()), waited: READY_TIMEOUT })
}

async fn is_ready(admin: &Client) -> bool {
    let Ok(request) = http::Request::get("/readyz").body(Vec::new()) else { return false };
    admin.request_text(request).await.is_ok()
}

/// The service account controller made it: kube-controller-manager works.
async fn has_default_account(admin: &Client) -> bool {
    let accounts: Api<ServiceAccount> = Api::namespaced(admin.clone(), "default");
    accounts.get_opt("default").await.is_ok_and(|account| account.is_some())
}

fn free_port() -> Result<u16, Error> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).map_err(Error::io("find a free port"))?;
    listener.local_addr().map(|address| address.port()).map_err(Error::io("find a free port"))
}
