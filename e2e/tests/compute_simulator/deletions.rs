//! Deletions as the operator sends them: many callers, few calls, to each its own outcome.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use miglet_e2e::{
    compute::ComputeSim,
    faults::{Action, Rule},
};
use miglet_operator::{
    clock::SystemClock,
    compute::{
        ComputeError, DeleteTarget, ErrorClass, Group, Location,
        gce::{Gce, GceConfig},
        groups::{Groups, GroupsConfig},
    },
};

use crate::client::{ZONE, cloud, create, credentials, eventually, list};

fn group() -> Group {
    Group { project: "acme-ci".into(), name: "linux".into(), location: Location::Zone(ZONE.into()) }
}

/// The operator's way to the simulator, and how often it counted which outcome of a deletion call.
async fn groups(compute: &ComputeSim) -> (Groups, Arc<Mutex<BTreeMap<&'static str, usize>>>) {
    let counted: Arc<Mutex<BTreeMap<_, _>>> = Arc::default();
    let counter = Arc::clone(&counted);
    let observe = Arc::new(move |_: &'static str, method: &'static str, outcome: &'static str| {
        if method == "delete" {
            *counter.lock().unwrap().entry(outcome).or_insert(0) += 1;
        }
    });
    let config = GceConfig { endpoint: Some(compute.url()), ..GceConfig::default() };
    let gce = Gce::with_credentials(config, credentials(compute)).await.unwrap();
    let config = GroupsConfig { observe, ..GroupsConfig::default() };
    (Groups::new(Arc::new(gce), Arc::new(SystemClock), config), counted)
}

/// So many instances of the group that run, by their URLs.
async fn fleet(compute: &ComputeSim, size: usize) -> Vec<String> {
    let names: Vec<_> = (0..size).map(|number| format!("linux-{number}")).collect();
    create(compute, &names.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let running = || compute.instances("linux").iter().filter(|vm| vm.status == Some("RUNNING")).count() == size;
    eventually("all run", running).await;
    list(compute).await.into_iter().filter_map(|vm| vm.instance).collect()
}

async fn delete(groups: &Groups, urls: &[String]) -> Vec<Result<(), ComputeError>> {
    let group = group();
    let deletions = urls.iter().map(|url| groups.delete(&group, DeleteTarget::Url(url.clone())));
    futures::future::join_all(deletions).await
}

fn calls(compute: &ComputeSim) -> usize {
    compute.server().traffic.count(|call| call.path.contains("/deleteInstances"))
}

#[tokio::test]
async fn three_hundred_callers_share_one_call() {
    let compute = cloud().await;
    let urls = fleet(&compute, 300).await;
    let (groups, counted) = groups(&compute).await;
    let outcomes = delete(&groups, &urls).await;
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    eventually("all are gone", || compute.instances("linux").is_empty()).await;
    assert_eq!(calls(&compute), 1);
    assert_eq!(*counted.lock().unwrap(), BTreeMap::from([("Ok", 1)]));
    compute.assert_conforms();
}

#[tokio::test]
async fn one_bad_url_among_many_is_told_to_its_caller_and_the_others_go() {
    let compute = cloud().await;
    let mut urls = fleet(&compute, 60).await;
    let elsewhere = urls[17].replace(ZONE, "europe-west1-b");
    urls.insert(17, elsewhere);
    let (groups, counted) = groups(&compute).await;
    let outcomes = delete(&groups, &urls).await;
    let failed: Vec<_> = outcomes.iter().enumerate().filter(|(_, outcome)| outcome.is_err()).collect();
    assert!(matches!(failed[..], [(17, Err(error))] if error.class == ErrorClass::Config), "{failed:?}");
    eventually("all others are gone", || compute.instances("linux").is_empty()).await;
    assert!((3..=13).contains(&calls(&compute)), "{} calls", calls(&compute));
    assert_eq!(counted.lock().unwrap().values().sum::<usize>(), calls(&compute), "every call is counted");
    compute.assert_conforms();
}

#[tokio::test]
async fn members_that_are_gone_already_keep_nobody() {
    let compute = cloud().await;
    let urls = fleet(&compute, 10).await;
    let (groups, _) = groups(&compute).await;
    delete(&groups, &urls[..5]).await;
    eventually("five are gone", || compute.instances("linux").len() == 5).await;
    let outcomes = delete(&groups, &urls).await;
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    eventually("all are gone", || compute.instances("linux").is_empty()).await;
    assert_eq!((calls(&compute), compute.target_size("linux")), (2, Some(0)));
    compute.assert_conforms();
}

#[tokio::test]
async fn a_batch_whose_reply_is_lost_is_deleted_once() {
    let compute = cloud().await;
    let urls = fleet(&compute, 20).await;
    compute.server().faults.add(Rule::path("deleteInstances", Action::LoseReply).times(1));
    let (groups, _) = groups(&compute).await;
    let outcomes = delete(&groups, &urls).await;
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    eventually("all are gone", || compute.instances("linux").is_empty()).await;
    assert_eq!((calls(&compute), compute.target_size("linux")), (2, Some(0)));
    compute.assert_conforms();
}
