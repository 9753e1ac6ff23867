//! How deletions are gathered, and what a refused one costs the others.

use super::*;

pub(super) fn url(number: usize) -> DeleteTarget {
    DeleteTarget::Url(format!("zones/z/instances/vm-{number}"))
}

/// Asks for all of them; the results in their order.
pub(super) async fn delete_all(
    groups: &Groups,
    targets: impl IntoIterator<Item = DeleteTarget>,
) -> Vec<Result<(), ComputeError>> {
    let group = group();
    futures::future::join_all(targets.into_iter().map(|target| groups.delete(&group, target))).await
}

#[tokio::test(start_paused = true)]
async fn five_hundred_machines_that_end_at_once_cost_one_call() {
    let (groups, cloud) = groups();
    let results = delete_all(&groups, (0..500).map(url)).await;
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    let deleted = cloud.world.lock().unwrap().deleted.clone();
    assert_eq!(deleted.iter().map(Vec::len).collect::<Vec<_>>(), [500]);
}

#[tokio::test(start_paused = true)]
async fn machines_that_end_one_after_the_other_share_a_call_every_fifth_of_a_second() {
    let (groups, cloud) = groups();
    let group = group();
    // One every 10 ms, for five seconds.
    let ends = (0..500).map(|number| {
        let (groups, group) = (&groups, &group);
        async move {
            tokio::time::sleep(Duration::from_millis(10) * u32::try_from(number).unwrap()).await;
            let asked = Instant::now();
            groups.delete(group, url(number)).await.unwrap();
            asked.elapsed()
        }
    });
    let waits = futures::future::join_all(ends).await;
    assert!(waits.iter().all(|wait| *wait <= Duration::from_millis(210)), "{:?}", waits.iter().max());
    let deleted = cloud.world.lock().unwrap().deleted.clone();
    assert_eq!(deleted.iter().map(Vec::len).sum::<usize>(), 500, "each of them once");
    assert!(deleted.len() <= 27, "{} calls", deleted.len());
}

#[tokio::test(start_paused = true)]
async fn one_malformed_target_does_not_keep_the_others() {
    let (groups, cloud) = groups();
    cloud.world.lock().unwrap().malformed = vec![url(77)];
    let results = delete_all(&groups, (0..200).map(url)).await;
    let failed: Vec<_> = results.iter().enumerate().filter(|(_, result)| result.is_err()).collect();
    assert!(matches!(failed[..], [(77, Err(error))] if error.class == ErrorClass::Config), "{failed:?}");
    let calls = cloud.world.lock().unwrap().deleted.len();
    assert!(calls <= 17, "halving, not one by one: {calls} calls");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_is_no_targets_fault_costs_few_calls_and_everybody_is_told() {
    let (groups, cloud) = groups();
    cloud.world.lock().unwrap().refusal = Some(ErrorClass::Config);
    let results = delete_all(&groups, (0..500).map(url)).await;
    assert!(results.iter().all(|result| result.as_ref().is_err_and(|error| error.class == ErrorClass::Config)));
    let calls = cloud.world.lock().unwrap().deleted.len();
    assert!(calls <= 40, "{calls} calls");
}

#[tokio::test(start_paused = true)]
async fn a_rate_limit_is_told_to_everybody_after_one_call() {
    let (groups, cloud) = groups();
    cloud.world.lock().unwrap().refusal = Some(ErrorClass::RateLimit);
    let results = delete_all(&groups, (0..500).map(url)).await;
    assert!(results.iter().all(|result| result.as_ref().is_err_and(|error| error.class == ErrorClass::RateLimit)));
    assert_eq!(cloud.world.lock().unwrap().deleted.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_deletion_nobody_answers_is_asked_for_again_as_it_was() {
    let (groups, cloud) = groups();
    cloud.world.lock().unwrap().lost_deletions = 2;
    let results = delete_all(&groups, (0..10).map(url)).await;
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    let deleted = cloud.world.lock().unwrap().deleted.clone();
    assert_eq!(deleted.len(), 3);
    assert!(deleted.iter().all(|call| *call == deleted[0]));
}

#[tokio::test(start_paused = true)]
async fn who_stops_waiting_for_a_deletion_does_not_stop_the_others() {
    let (groups, cloud) = groups();
    let impatient = tokio::time::timeout(Duration::from_millis(1), groups.delete(&group(), url(1))).await;
    assert!(impatient.is_err());
    assert!(groups.delete(&group(), url(2)).await.is_ok());
    assert_eq!(cloud.world.lock().unwrap().deleted, [vec![url(1), url(2)]]);
}

#[tokio::test(start_paused = true)]
async fn the_lead_is_looked_at_when_a_call_goes_out_not_when_it_is_asked_for() {
    let leads = Arc::new(AtomicBool::new(true));
    let asked = leads.clone();
    let may_act = Arc::new(move || asked.load(Ordering::Relaxed));
    let (groups, cloud) = groups_with(GroupsConfig { may_act, ..GroupsConfig::default() });
    let group = group();
    let (result, ()) = tokio::join!(groups.delete(&group, url(1)), async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        leads.store(false, Ordering::Relaxed);
    });
    assert!(result.is_err());
    assert!(cloud.world.lock().unwrap().deleted.is_empty());
}

#[tokio::test(start_paused = true)]
async fn urls_and_names_are_deleted_in_separate_calls() {
    let (groups, cloud) = groups();
    let group = group();
    let targets = (0..20).map(|n| match n % 2 {
        0 => DeleteTarget::Url(format!("zones/z/instances/vm-{n}")),
        _ => DeleteTarget::Name(format!("vm-{n}")),
    });
    let results = futures::future::join_all(targets.map(|t| groups.delete(&group, t))).await;
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    assert_eq!(cloud.world.lock().unwrap().deleted.len(), 2);
}
