//! Batches of deletions.

use uuid::Uuid;

use super::{Groups, MOST_PER_CALL, creation};
use crate::compute::{ComputeError, DeleteTarget, Group};

/// How often the identical call is made when nobody answers.
const TRIES: u32 = 3;

/// Splits targets into calls: Google takes no mixture of URLs and names, and at most 1,000.
pub(super) fn calls(targets: Vec<DeleteTarget>) -> Vec<Vec<DeleteTarget>> {
    let (urls, names): (Vec<_>, Vec<_>) = targets.into_iter().partition(|t| matches!(t, DeleteTarget::Url(_)));
    [urls, names].iter().flat_map(|kind| kind.chunks(MOST_PER_CALL)).map(<[_]>::to_vec).collect()
}

impl Groups {
    /// One call, repeated identically while nobody answers.
    pub(super) async fn delete_batch(&self, group: &Group, batch: &[DeleteTarget]) -> Result<(), ComputeError> {
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
        let operation = self.count("delete", self.port().delete(group, batch, request).await)?;
        creation::verdict(ACTION, group, operation.errors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_and_names_travel_apart_and_a_thousand_at_most() {
        let mut targets: Vec<_> = (0..1001).map(|n| DeleteTarget::Url(format!("u{n}"))).collect();
        targets.push(DeleteTarget::Name("n".into()));
        let sizes: Vec<_> = calls(targets).iter().map(Vec::len).collect();
        assert_eq!(sizes, [1000, 1, 1]);
    }
}
