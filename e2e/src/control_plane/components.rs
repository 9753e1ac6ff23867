//! How the three servers are run: their flags.
//!
//! etcd listens on a Unix socket, kube-controller-manager on nothing; only the API server needs a port.

use std::{path::Path, process::Command};

use super::binaries::Binaries;

/// The controllers the tests rely on. The rest would only cost start-up time: there are no nodes and no pods.
const CONTROLLERS: &str = "garbage-collector-controller,namespace-controller,serviceaccount-controller,\
                           clusterrole-aggregation-controller,root-ca-certificate-publisher-controller";

/// etcd without the disk's patience: what a test loses in a power failure it does not miss.
pub(super) fn etcd(binaries: &Binaries, folder: &Path) -> Command {
    let mut command = Command::new(binaries.path("etcd"));
    command.current_dir(folder);
    command.arg(format!("--listen-client-urls={}", socket(folder)));
    command.args([
        "--data-dir=etcd",
        "--name=test",
        "--initial-cluster=test=http://localhost:2380",
        // Never used, but the flag refuses a socket.
        "--advertise-client-urls=http://localhost:0",
        "--listen-peer-urls=http://127.0.0.1:0",
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]);
    command
}

/// kube-apiserver with real RBAC, the usual admission and an audit log.
pub(super) fn apiserver(binaries: &Binaries, folder: &Path, port: u16) -> Command {
    let mut command = Command::new(binaries.path("kube-apiserver"));
    command.current_dir(folder);
    command.arg(format!("--etcd-servers={}", socket(folder)));
    command.arg(format!("--secure-port={port}"));
    command.args([
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        "--endpoint-reconciler-type=none",
        "--cert-dir=certificates",
        "--tls-cert-file=server.crt",
        "--tls-private-key-file=server.key",
        "--client-ca-file=ca.crt",
        "--token-auth-file=tokens.csv",
        "--anonymous-auth=false",
        "--authorization-mode=RBAC",
        "--service-account-issuer=https://kubernetes.default.svc",
        "--service-account-key-file=accounts.pub",
        "--service-account-signing-key-file=accounts.key",
        "--service-cluster-ip-range=10.0.0.0/24",
        "--audit-policy-file=audit-policy.yaml",
        "--audit-log-path=audit.log",
        // Megabytes; rotation would lose calls.
        "--audit-log-maxsize=10000",
        "--allow-privileged=true",
        "--profiling=false",
    ]);
    command
}

/// kube-controller-manager: garbage collection, namespace deletion, service accounts.
pub(super) fn controller_manager(binaries: &Binaries, folder: &Path) -> Command {
    let mut command = Command::new(binaries.path("kube-controller-manager"));
    command.current_dir(folder);
    command.arg(format!("--controllers={CONTROLLERS}"));
    command.args([
        "--kubeconfig=controller-manager.kubeconfig",
        "--authentication-kubeconfig=controller-manager.kubeconfig",
        "--authorization-kubeconfig=controller-manager.kubeconfig",
        "--secure-port=0",
        "--root-ca-file=ca.crt",
        "--service-account-private-key-file=accounts.key",
        "--leader-elect=false",
        "--kube-api-qps=200",
        "--kube-api-burst=400",
        "--profiling=false",
    ]);
    command
}

fn socket(folder: &Path) -> String {
    format!("unix://{}", folder.join("etcd.sock").display())
}
