//! Waits for a level, never for an edge, and never without a bound.

use std::{fmt::Debug, future::Future, time::Duration};

/// How long anything may take before it counts as failed. Generous: the machine may be slow, the answer is the same.
#[derive(Clone, Copy, Debug)]
pub struct Patience(pub Duration);

impl Default for Patience {
    fn default() -> Self {
        Self(Duration::from_secs(90))
    }
}

/// What was waited for did not come.
#[derive(Debug, thiserror::Error)]
#[error("waited {waited:?} for {what}; last seen: {last}")]
pub struct Waited {
    what: String,
    waited: Duration,
    last: String,
}

impl Patience {
    /// Asks `look` until it gives something that satisfies `good`.
    ///
    /// # Errors
    /// When it never did: what was seen last is in the message.
    pub async fn until<T, F>(
        self,
        what: &str,
        mut look: impl FnMut() -> F,
        good: impl Fn(&T) -> bool,
    ) -> Result<T, Waited>
    where
        T: Debug,
        F: Future<Output = T>,
    {
        let start = tokio::time::Instant::now();
        loop {
            let seen = look().await;
            if good(&seen) {
                return Ok(seen);
            }
            if start.elapsed() > self.0 {
                return Err(Waited { what: what.to_owned(), waited: self.0, last: format!("{seen:?}") });
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
