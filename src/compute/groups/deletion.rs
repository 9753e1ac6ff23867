//! Batches of deletions.
//!
//! ```text
//!   targets ── delete ──► accepted: only lists show that they are gone
//!                │  ▲
//!                │  └── no answer: the identical call again, same request id, at most twice more
//!                └──► refused: it may be one target's fault, so each half on its own, a bounded number of times
//! ```
//!
//! Members that are gone are skipped by Google; what it still refuses a whole call for is a target it cannot make sense of.

use uuid::Uuid;

use super::{Groups, MOST_PER_CALL, creation};
use crate::compute::{ComputeError, DeleteTarget, ErrorClass, Group};

/// How often the identical call is made when nobody answers.
const TRIES: u32 = 3;

/// Splits targets into calls: Google takes no mixture of URLs and names, and at most 1,000.
pub(super) fn calls(targets: Vec<DeleteTarget>) -> Vec<Vec<DeleteTarget>> {
    let (urls, names): (Vec<_>, Vec<_>) = targets.into_iter().partition(|t| matches!(t, DeleteTarget::Url(_)));
    [urls, names].iter().flat_map(|kind| kind.chunks(MOST_PER_CALL)).map(<[_]>::to_vec).collect()
}

/// Whether a refusal of many targets may be one target's fault. The pace and the quota of calls are nobody's, and what
/// passes by itself is not worth more calls.
fn may_be_one_targets(error: &ComputeError) -> bool {
    !error.ambiguous && !matches!(error.class, ErrorClass::RateLimit | ErrorClass::Quota | ErrorClass::Transient)
}

/// How often a batch of this size may be split: enough to find two bad targets. A refusal that is no target's fault, such
/// as a missing permission, must not become one call for each.
fn most_splits(size: usize) -> u32 {
    2 * size.next_power_of_two().ilog2()
}

/// A batch in two, none of them empty; `None` for one that cannot be split.
fn halves(batch: &[DeleteTarget]) -> Option<[Vec<DeleteTarget>; 2]> {
    let (first, second) = batch.split_at(batch.len() / 2);
    (!first.is_empty()).then(|| [first.to_vec(), second.to_vec()])
}

impl Groups {
    /// Deletes one batch, narrowing it down when it is refused; `tell` gets each part's verdict as soon as it is known.
    pub(super) async fn delete_batch(
        &self,
        group: &Group,
        batch: Vec<DeleteTarget>,
        mut tell: impl FnMut(&[DeleteTarget], &Result<(), ComputeError>) + Send,
    ) {
        let mut splits = most_splits(batch.len());
        let mut todo = vec![batch];
        while let Some(part) = todo.pop() {
            let verdict = self.delete_identically(group, &part).await;
            let narrow = splits > 0 && verdict.as_ref().is_err_and(may_be_one_targets);
            match halves(&part).filter(|_| narrow) {
                Some(parts) => {
                    splits -= 1;
                    todo.extend(parts);
                }
                None => tell(&part, &verdict),
            }
        }
    }

    /// One call, repeated identically while nobody answers.
    async fn delete_identically(&self, group: &Group, batch: &[DeleteTarget]) -> Result<(), ComputeError> {
        let names = batch.iter().map(|(DeleteTarget::Url(name) | DeleteTarget::Name(name))| name.as_str());
        let request = creation::request_id(names, Uuid::new_v4());
        for attempt in 1..TRIES {
            match self.delete_call(group, batch, request).await {
                Err(error) if error.ambiguous => tokio::time::sleep(self.retry_pause(attempt)).await,
                verdict => return verdict,
            }
        }
        self.delete_call(group, batch, request).await
    }

    async fn delete_call(&self, group: &Group, batch: &[DeleteTarget], request: Uuid) -> Result<(), ComputeError> {
        const ACTION: &str = "deleting instances of";
        self.permitted(ACTION, group)?;
        let operation = self.count_operation("delete", self.port().delete(group, batch, request).await)?;
        creation::verdict(ACTION, group, operation.errors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::groups::abandoned;

    fn urls(count: usize) -> Vec<DeleteTarget> {
        (0..count).map(|n| DeleteTarget::Url(format!("u{n}"))).collect()
    }

    #[test]
    fn urls_and_names_travel_apart_and_a_thousand_at_most() {
        let mut targets = urls(1001);
        targets.push(DeleteTarget::Name("n".into()));
        let sizes: Vec<_> = calls(targets).iter().map(Vec::len).collect();
        assert_eq!(sizes, [1000, 1, 1]);
    }

    #[test]
    fn a_batch_is_halved_without_losing_any_and_one_target_is_not() {
        let batch = urls(5);
        let [first, second] = halves(&batch).unwrap();
        assert_eq!([first.len(), second.len()], [2, 3]);
        assert_eq!([first, second].concat(), batch);
        assert!(halves(&urls(1)).is_none());
    }

    #[test]
    fn two_bad_targets_among_a_thousand_can_be_found() {
        assert_eq!([1, 2, 3, 32, 1000].map(most_splits), [0, 2, 4, 10, 20]);
    }

    #[test]
    fn only_a_definite_refusal_may_be_one_targets_fault() {
        let group =
            Group { project: "p".into(), name: "g".into(), location: crate::compute::Location::Zone("z".into()) };
        let error = |class, ambiguous| ComputeError { class, ambiguous, ..abandoned("testing", &group) };
        assert!(may_be_one_targets(&error(ErrorClass::Config, false)));
        assert!(may_be_one_targets(&error(ErrorClass::NotFound, false)));
        assert!(!may_be_one_targets(&error(ErrorClass::Config, true)));
        for class in [ErrorClass::RateLimit, ErrorClass::Quota, ErrorClass::Transient] {
            assert!(!may_be_one_targets(&error(class, false)), "{class:?}");
        }
    }
}
