//! The test control plane and the API server's proxy, on the real programs.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test's helpers fail the test")]

use std::{
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret, ServiceAccount};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, PostParams, WatchEvent, WatchParams},
};
use miglet_e2e::{
    control_plane::{AuditEntry, ControlPlane, read_crds},
    faults::{Action, Rule},
    proxy::ApiProxy,
};
use serde_json::json;

const SOON: Duration = Duration::from_secs(30);

async fn plane() -> &'static ControlPlane {
    ControlPlane::shared().await.unwrap_or_else(|error| panic!("{error}: {error:?}"))
}

fn calls_of(plane: &ControlPlane, user: &str) -> Vec<AuditEntry> {
    plane.audit().unwrap().into_iter().filter(|call| call.user == user).collect()
}

/// Waits until the condition holds.
async fn eventually<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < SOON, "waited {SOON:?} for {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn create_namespace(client: &Client, name: &str) {
    let namespace = serde_json::from_value(json!({ "metadata": { "name": name } })).unwrap();
    Api::<Namespace>::all(client.clone()).create(&PostParams::default(), &namespace).await.unwrap();
}

async fn create_account(client: &Client, namespace: &str, name: &str) {
    let account = serde_json::from_value(json!({ "metadata": { "name": name } })).unwrap();
    let accounts = Api::<ServiceAccount>::namespaced(client.clone(), namespace);
    accounts.create(&PostParams::default(), &account).await.unwrap();
}

fn config_map(name: &str) -> ConfigMap {
    serde_json::from_value(json!({ "metadata": { "name": name } })).unwrap()
}

/// Whether the process is there and has not ended (an orphan may wait for its reaper).
fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| !stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with(['Z', 'X'])))
}

/// Processes whose command line names this.
fn processes_naming(text: &str) -> Vec<String> {
    let output = Command::new("ps").args(["-eo", "pid,stat,args", "-ww"]).output().unwrap();
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    lines.lines().filter(|line| line.contains(text)).map(ToOwned::to_owned).collect()
}

#[tokio::test]
async fn kubectl_and_the_api_server_are_the_pinned_version() {
    let version = plane().await.kubectl(&["version", "-o", "json"]).await.unwrap();
    let version: serde_json::Value = serde_json::from_str(&version).unwrap();
    assert_eq!(version["clientVersion"]["gitVersion"], "v1.36.3");
    assert_eq!(version["serverVersion"]["gitVersion"], "v1.36.3");
}

#[tokio::test]
async fn the_shared_control_plane_serves_the_products_definitions() {
    let names = plane().await.kubectl(&["api-resources", "--api-group=miglet.dev", "-o", "name"]).await.unwrap();
    assert_eq!(names, "runnerpools.miglet.dev\nrunnervms.miglet.dev\n");
}

#[tokio::test]
async fn a_failing_kubectl_command_is_an_error_that_says_why() {
    let error = plane().await.kubectl(&["get", "configmap", "no-such-thing"]).await.unwrap_err().to_string();
    assert!(error.contains("get configmap no-such-thing") && error.contains("NotFound"), "{error}");
}

#[tokio::test]
async fn a_service_account_may_do_only_what_its_roles_say_and_the_audit_log_tells() {
    let plane = plane().await;
    let admin = plane.admin().await.unwrap();
    create_namespace(&admin, "rbac").await;
    create_account(&admin, "rbac", "reader").await;
    plane.kubectl(&["-n", "rbac", "create", "role", "reader", "--verb=list", "--resource=configmaps"]).await.unwrap();
    let binding = ["-n", "rbac", "create", "rolebinding", "reader", "--role=reader", "--serviceaccount=rbac:reader"];
    plane.kubectl(&binding).await.unwrap();

    let reader = plane.client_for_service_account("rbac", "reader").await.unwrap();
    let config_maps: Api<ConfigMap> = Api::namespaced(reader.clone(), "rbac");
    eventually("the role to take effect", || async { config_maps.list(&ListParams::default()).await.is_ok() }).await;
    let secrets: Api<Secret> = Api::namespaced(reader, "rbac");
    let refused = secrets.get("any").await.unwrap_err();
    assert!(matches!(&refused, kube::Error::Api(status) if status.code == 403), "{refused}");

    let calls = || calls_of(plane, "system:serviceaccount:rbac:reader");
    eventually("the audit log", || async { calls().iter().any(|call| call.resource == "secrets") }).await;
    let last = calls().pop().unwrap();
    assert_eq!((last.verb.as_str(), last.resource.as_str(), last.code), ("get", "secrets", 403));
    assert_eq!((last.namespace.as_str(), last.name.as_str(), last.is_write()), ("rbac", "any", false));
    assert!(calls().iter().any(|call| call.verb == "list" && call.resource == "configmaps" && call.code == 200));
}

#[tokio::test]
async fn deleting_a_namespace_takes_its_objects_away() {
    let admin = plane().await.admin().await.unwrap();
    create_namespace(&admin, "short-lived").await;
    let config_maps: Api<ConfigMap> = Api::namespaced(admin.clone(), "short-lived");
    config_maps.create(&PostParams::default(), &config_map("content")).await.unwrap();
    let namespaces: Api<Namespace> = Api::all(admin);
    namespaces.delete("short-lived", &DeleteParams::default()).await.unwrap();
    eventually("the namespace to go", || async { namespaces.get_opt("short-lived").await.unwrap().is_none() }).await;
}

#[tokio::test]
async fn a_watch_streams_through_the_proxy() {
    let plane = plane().await;
    let admin = plane.admin().await.unwrap();
    create_namespace(&admin, "watched").await;
    create_account(&admin, "watched", "watcher").await;
    let binding = ["-n", "watched", "create", "rolebinding", "watcher", "--clusterrole=view"];
    plane.kubectl(&[&binding[..], &["--serviceaccount=watched:watcher"]].concat()).await.unwrap();

    let proxy = ApiProxy::start(plane).await.unwrap();
    let watcher = proxy.client_for_service_account("watched", "watcher").await.unwrap();
    let seen: Api<ConfigMap> = Api::namespaced(watcher, "watched");
    eventually("the role to take effect", || async { seen.list(&ListParams::default()).await.is_ok() }).await;
    let params = WatchParams::default().fields("metadata.name=news").disable_bookmarks();
    let opened = tokio::time::timeout(SOON, seen.watch(&params, "0")).await;
    let mut events = opened.unwrap_or_else(|_| panic!("the watch did not begin before its end")).unwrap().boxed();
    let made: Api<ConfigMap> = Api::namespaced(admin, "watched");
    made.create(&PostParams::default(), &config_map("news")).await.unwrap();

    let event = tokio::time::timeout(SOON, events.try_next()).await.unwrap().unwrap();
    assert!(matches!(&event, Some(WatchEvent::Added(added)) if added.name_any() == "news"), "{event:?}");
    let calls = calls_of(plane, "system:serviceaccount:watched:watcher");
    assert!(calls.iter().any(|call| call.verb == "watch" && call.resource == "configmaps"), "{calls:?}");
}

#[tokio::test]
async fn a_hook_of_the_proxy_runs_after_the_effect_and_a_refusal_before_it() {
    let plane = plane().await;
    let admin = plane.admin().await.unwrap();
    create_namespace(&admin, "hooked").await;
    create_account(&admin, "hooked", "writer").await;
    let binding = ["-n", "hooked", "create", "rolebinding", "writer", "--clusterrole=edit"];
    plane.kubectl(&[&binding[..], &["--serviceaccount=hooked:writer"]].concat()).await.unwrap();
    let proxy = ApiProxy::start(plane).await.unwrap();
    let writer: Api<ConfigMap> =
        Api::namespaced(proxy.client_for_service_account("hooked", "writer").await.unwrap(), "hooked");
    eventually("the role to take effect", || async { writer.list(&ListParams::default()).await.is_ok() }).await;
    let truth: Api<ConfigMap> = Api::namespaced(admin, "hooked");

    let calls = Arc::new(AtomicUsize::new(0));
    let hook = Arc::new({
        let calls = calls.clone();
        move || {
            calls.fetch_add(1, Ordering::SeqCst);
        }
    });
    proxy.faults().add(Rule::path("/configmaps", Action::CallAfter(hook)).method("POST").times(1));
    writer.create(&PostParams::default(), &config_map("first")).await.unwrap();
    assert_eq!(calls.load(Ordering::SeqCst), 1);

    proxy.faults().add(Rule::path("/configmaps", Action::LoseReply).method("POST").times(1));
    assert!(writer.create(&PostParams::default(), &config_map("second")).await.is_err());
    assert!(truth.get_opt("second").await.unwrap().is_some(), "a lost reply follows the effect");

    let answer = Action::Answer { status: 500, body: json!({}), headers: Vec::new() };
    proxy.faults().add(Rule::path("/configmaps", answer).method("POST").times(1));
    assert!(writer.create(&PostParams::default(), &config_map("third")).await.is_err());
    assert!(truth.get_opt("third").await.unwrap().is_none(), "a refusal has no effect");
    assert_eq!(proxy.traffic().count(|e| e.method == "POST" && e.status == Some(201)), 1);
}

const WIDGETS: &str = r"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.test.miglet.dev}
spec:
  group: test.miglet.dev
  names: {kind: Widget, listKind: WidgetList, plural: widgets, singular: widget}
  scope: Namespaced
  versions:
  - {name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object}}}
";

fn owner(uid: &str) -> serde_json::Value {
    json!([{ "apiVersion": "test.miglet.dev/v1", "kind": "Widget", "name": "owner", "uid": uid }])
}

#[tokio::test]
async fn it_starts_quickly_collects_garbage_of_custom_resources_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("widgets.yaml"), WIDGETS).unwrap();
    plane().await; // Builds the programs first, should they not be there.
    let start = Instant::now();
    let plane = ControlPlane::start_with_crds(&read_crds(folder.path()).unwrap()).await.unwrap();
    println!("started in {:?}", start.elapsed());
    assert!(start.elapsed() < SOON, "took {:?}", start.elapsed());

    let admin = plane.admin().await.unwrap();
    let kind = kube::core::GroupVersionKind::gvk("test.miglet.dev", "v1", "Widget");
    let resource = kube::core::ApiResource::from_gvk(&kind);
    let widgets: Api<kube::core::DynamicObject> = Api::namespaced_with(admin.clone(), "default", &resource);
    let owning = widgets.create(&PostParams::default(), &kube::core::DynamicObject::new("owner", &resource)).await;
    let mut dependent = config_map("dependent");
    let uid = owning.unwrap().uid().unwrap();
    dependent.metadata.owner_references = Some(serde_json::from_value(owner(&uid)).unwrap());
    let config_maps: Api<ConfigMap> = Api::namespaced(admin, "default");
    config_maps.create(&PostParams::default(), &dependent).await.unwrap();
    widgets.delete("owner", &DeleteParams::foreground()).await.unwrap();
    eventually("the owner to go", || async { widgets.get_opt("owner").await.unwrap().is_none() }).await;
    assert!(config_maps.get_opt("dependent").await.unwrap().is_none(), "the owner went before its dependent");

    let pids = plane.process_ids();
    let home = plane.admin_kubeconfig().parent().unwrap().to_owned();
    assert!(pids.len() == 3 && pids.iter().all(|pid| is_alive(*pid)), "{pids:?}");
    drop(plane);
    eventually("everything to end", || async { !pids.iter().any(|pid| is_alive(*pid)) }).await;
    assert!(!home.exists());
    let name = home.to_string_lossy().into_owned();
    eventually("the watchers to end", || async { processes_naming(&name).is_empty() }).await;
}

/// Set in the process that [`nothing_outlives_a_killed_process`] starts.
const VICTIM: &str = "MIGLET_TEST_VICTIM_FILE";

/// Not a test of its own: the process that gets killed.
#[tokio::test]
#[ignore = "the other half of nothing_outlives_a_killed_process"]
async fn victim() {
    let Some(file) = std::env::var_os(VICTIM) else { return };
    let plane = ControlPlane::start().await.unwrap();
    let home = plane.admin_kubeconfig().parent().unwrap().to_owned();
    let partial = Path::new(&file).with_extension("partial");
    std::fs::write(&partial, json!({ "pids": plane.process_ids(), "home": home }).to_string()).unwrap();
    std::fs::rename(&partial, &file).unwrap();
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn nothing_outlives_a_killed_process() {
    plane().await; // Builds the programs first, should they not be there.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("victim.json");
    let mut victim = Command::new(std::env::current_exe().unwrap());
    victim.args(["--exact", "victim", "--ignored"]).env(VICTIM, &file);
    let mut victim = victim.stdout(std::process::Stdio::null()).spawn().unwrap();
    eventually("the control plane to start", || async { file.exists() }).await;
    let started: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let pids: Vec<u32> = serde_json::from_value(started["pids"].clone()).unwrap();
    let home = Path::new(started["home"].as_str().unwrap()).to_owned();
    assert!(pids.iter().all(|pid| is_alive(*pid)) && home.exists());

    victim.kill().unwrap();
    victim.wait().unwrap();
    eventually("everything to end", || async { !pids.iter().any(|pid| is_alive(*pid)) }).await;
    eventually("the folder to go", || async { !home.exists() }).await;
}
