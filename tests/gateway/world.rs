//! A gateway with everything around it, on loopback and random ports.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use axum::{Json, Router, routing::get};
use jiff::{SignedDuration, Timestamp};
use jsonwebtoken::jwk::JwkSet;
use miglet_operator::{
    clock::{Clock, SystemClock},
    compute::{ComputeError, Group, GroupAction, Instance, InstanceId, Power},
    crd::{KubeTime, RunnerVm},
    gateway::{Backends, Caps, Gateway, GatewayConfig, TlsFiles, admission::GroupListing, sessions::Sessions},
    wakes::{Key, Wakes},
};
use serde_json::json;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{
    kube_server::KubeServer,
    tokens::{AUDIENCE, Signer},
};

pub(crate) const VM: &str = "linux-bcdfgh-bcdfghjk";
pub(crate) const NEIGHBOUR: &str = "linux-bcdfgh-zzzzzzzz";

/// The world of one test.
pub(crate) struct World {
    pub(crate) address: SocketAddr,
    pub(crate) certificate: String,
    pub(crate) google: Signer,
    pub(crate) kube: Arc<KubeServer>,
    pub(crate) cloud: Arc<Cloud>,
    pub(crate) sessions: Sessions,
    pub(crate) refusals: Arc<Mutex<Vec<&'static str>>>,
    pub(crate) key_fetches: Arc<AtomicUsize>,
    pub(crate) serving: watch::Sender<bool>,
    pub(crate) may_act: Arc<AtomicBool>,
    pub(crate) directory: PathBuf,
    shutdown: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

fn told(flag: &Arc<AtomicBool>) -> Arc<dyn Fn() -> bool + Send + Sync> {
    let flag = Arc::clone(flag);
    Arc::new(move || flag.load(Ordering::SeqCst))
}

impl Drop for World {
    fn drop(&mut self) {
        self.shutdown.cancel();
        self.tasks.iter().for_each(JoinHandle::abort);
        drop(std::fs::remove_dir_all(&self.directory));
    }
}

/// The instances that exist.
#[derive(Debug, Default)]
pub(crate) struct Cloud {
    instances: Mutex<BTreeMap<String, Instance>>,
    pub(crate) lists: AtomicUsize,
}

impl Cloud {
    pub(crate) fn add(&self, name: &str, id: u64) {
        let instance = Instance {
            name: name.into(),
            id: Some(InstanceId(id)),
            url: None,
            zone: Some("us-central1-a".into()),
            power: Power::Running,
            action: GroupAction::None,
            errors: Vec::new(),
        };
        self.instances.lock().unwrap().insert(name.into(), instance);
    }

    pub(crate) fn remove(&self, name: &str) {
        self.instances.lock().unwrap().remove(name);
    }
}

#[async_trait]
impl GroupListing for Cloud {
    async fn listing(
        &self,
        _group: &Group,
        not_before: Timestamp,
    ) -> Result<Arc<miglet_operator::compute::groups::Listing>, ComputeError> {
        self.lists.fetch_add(1, Ordering::SeqCst);
        Ok(Arc::new(miglet_operator::compute::groups::Listing {
            asked_at: not_before,
            instances: self.instances.lock().unwrap().clone(),
        }))
    }
}

pub(crate) fn now() -> i64 {
    SystemClock.now().as_second()
}

fn runner_vm(name: &str) -> RunnerVm {
    let mut vm: RunnerVm = serde_json::from_value(json!({
        "apiVersion": "miglet.dev/v1alpha1", "kind": "RunnerVM",
        "metadata": {"name": name, "namespace": "ci", "uid": format!("uid-{name}"), "resourceVersion": "7"},
        "spec": {
            "pool": {"name": "linux", "uid": "u"},
            "project": "acme-ci",
            "group": {"name": "ci-linux", "zone": "us-central1-a"},
            "github": {"url": "https://github.com/acme", "credentialsSecretRef": {"name": "app"}, "labels": ["x"]},
        },
        "status": {"observedGeneration": 1},
    }))
    .unwrap();
    vm.metadata.creation_timestamp = Some(KubeTime(Timestamp::from_second(now() - 30).unwrap()));
    vm
}

/// Small caps, so that tests meet them soon.
pub(crate) fn caps() -> Caps {
    Caps {
        unknown_connections: 20,
        unknown_connections_per_address: 8,
        handshake_timeout: Duration::from_secs(1),
        attest_timeout: Duration::from_secs(3),
        message_bytes: 16 * 1024,
        messages_per_second: 5,
        message_burst: 20,
    }
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(caps(), SignedDuration::from_mins(1)).await
    }

    pub(crate) async fn with(caps: Caps, listing_grace: SignedDuration) -> Self {
        Self::around(caps, listing_grace, KubeServer::new(vec![runner_vm(VM), runner_vm(NEIGHBOUR)])).await
    }

    /// An operator whose watch has not delivered anything yet.
    pub(crate) async fn starting() -> Self {
        let kube = KubeServer::new(vec![runner_vm(VM)]);
        kube.forget_the_watch();
        Self::around(caps(), SignedDuration::from_mins(1), kube).await
    }

    async fn around(caps: Caps, listing_grace: SignedDuration, kube: Arc<KubeServer>) -> Self {
        let google = Signer::rsa("google-1");
        let key_fetches = Arc::new(AtomicUsize::new(0));
        let (jwks_url, keys) = serve_keys(&google, Arc::clone(&key_fetches)).await;
        let directory = std::env::temp_dir().join(format!("miglet-gateway-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir(&directory).unwrap();
        let certificate = write_certificate(&directory);
        let cloud = Arc::new(Cloud::default());
        cloud.add(VM, 42);
        cloud.add(NEIGHBOUR, 43);
        let (serving, serving_receiver) = watch::channel(true);
        let refusals: Arc<Mutex<Vec<&'static str>>> = Arc::default();
        let seen = Arc::clone(&refusals);
        let config = GatewayConfig {
            tls: TlsFiles {
                certificate: directory.join("tls.crt"),
                key: directory.join("tls.key"),
                reload_period: Duration::from_millis(50),
            },
            audience: AUDIENCE.into(),
            jwks_url,
            heartbeat_period: Duration::from_secs(15),
            listing_grace,
            caps,
            serving: serving_receiver,
            on_refusal: Arc::new(move |reason| seen.lock().unwrap().push(reason)),
            on_event: Arc::new(|_, _| {}),
        };
        let sessions = Sessions::new(Wakes::default());
        let may_act = Arc::new(AtomicBool::new(true));
        let backends = Backends {
            store: kube.store(),
            listing: Arc::clone(&cloud) as Arc<dyn GroupListing>,
            client: kube.client(),
            clock: Arc::new(SystemClock),
            may_act: told(&may_act),
        };
        let gateway = Gateway::new(config, sessions.clone(), backends).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone();
        let served = tokio::spawn(async move { gateway.serve(listener, stop).await.unwrap() });
        Self {
            address,
            certificate,
            google,
            kube,
            cloud,
            sessions,
            refusals,
            key_fetches,
            serving,
            may_act,
            directory,
            shutdown,
            tasks: vec![keys, served],
        }
    }

    pub(crate) fn key(&self, vm: &str) -> Key {
        Key::new("ci", vm)
    }

    pub(crate) fn refused(&self, reason: &str) -> usize {
        self.refusals.lock().unwrap().iter().filter(|seen| **seen == reason).count()
    }

    pub(crate) fn connected(&self, vm: &str) -> bool {
        self.sessions.view(&self.key(vm)).is_some_and(|view| view.connected)
    }
}

/// Waits until something holds, and fails when it does not in 10 s.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

/// Writes a new self-signed certificate where the gateway reads it.
pub(crate) fn write_certificate(directory: &std::path::Path) -> String {
    let made = rcgen::generate_simple_self_signed(vec!["gateway.test".to_owned()]).unwrap();
    std::fs::write(directory.join("tls.key"), made.signing_key.serialize_pem()).unwrap();
    std::fs::write(directory.join("tls.crt"), made.cert.pem()).unwrap();
    made.cert.pem()
}

async fn serve_keys(google: &Signer, fetches: Arc<AtomicUsize>) -> (url::Url, JoinHandle<()>) {
    let set = JwkSet { keys: vec![google.jwk()] };
    let answer = move || {
        fetches.fetch_add(1, Ordering::SeqCst);
        let set = set.clone();
        async move { ([("cache-control", "public, max-age=600")], Json(set)) }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/certs", listener.local_addr().unwrap()).parse().unwrap();
    let app = Router::new().route("/certs", get(answer));
    (url, tokio::spawn(async move { axum::serve(listener, app).await.unwrap() }))
}
