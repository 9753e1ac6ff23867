//! Delays after failures, one sequence an object: 1 s, doubled up to 5 minutes, spread by a fifth.
//!
//! kube's error policy gets no attempt count; this is where it is kept.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rand::Rng;

const FIRST: Duration = Duration::from_secs(1);
const MOST: Duration = Duration::from_mins(5);

/// The failures in a row of each object; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Backoffs(Arc<Mutex<HashMap<String, u32>>>);

impl Backoffs {
    /// The delay after one more failure.
    #[must_use]
    pub fn failed(&self, uid: &str) -> Duration {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(uid.to_owned()).or_default();
        *count = count.saturating_add(1);
        let spread = rand::rng().random_range(0.8..1.2);
        delay(*count).mul_f64(spread)
    }

    /// The object is fine (or gone).
    pub fn succeeded(&self, uid: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }
}

fn delay(failures: u32) -> Duration {
    FIRST.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1))).min(MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_to_a_cap_and_start_over_after_a_success() {
        assert_eq!((1..=4).map(|n| delay(n).as_secs()).collect::<Vec<_>>(), [1, 2, 4, 8]);
        assert_eq!(delay(u32::MAX), MOST);
        let backoffs = Backoffs::default();
        let second = (0..5).map(|_| backoffs.failed("a")).max().expect("five");
        backoffs.succeeded("a");
        assert!(backoffs.failed("a") < second);
    }
}
