//! Answers that change every few weeks: one call an hour, shared by everybody who asks.

use std::{future::Future, time::Duration};

use jiff::Timestamp;

use crate::forge::ForgeError;

const MAX_AGE: Duration = Duration::from_secs(60 * 60);
/// How long a failure is shared: runners start without an answer, so it is not urgent.
const FAILURE_MAX_AGE: Duration = Duration::from_secs(5 * 60);

/// The last answer, and when it was asked for. Locked while it is asked for, so that one asks for all.
#[derive(Debug)]
pub(super) struct Remembered<T>(tokio::sync::Mutex<Option<(Timestamp, Result<T, ForgeError>)>>);

impl<T> Default for Remembered<T> {
    fn default() -> Self {
        Self(tokio::sync::Mutex::default())
    }
}

impl<T: Clone> Remembered<T> {
    pub(super) async fn get<F>(&self, now: Timestamp, ask: impl FnOnce() -> F) -> Result<T, ForgeError>
    where
        F: Future<Output = Result<T, ForgeError>>,
    {
        let mut remembered = self.0.lock().await;
        if let Some((asked, answer)) = &*remembered {
            let age = Duration::try_from(now.duration_since(*asked)).unwrap_or_default();
            if age < if answer.is_ok() { MAX_AGE } else { FAILURE_MAX_AGE } {
                return answer.clone();
            }
        }
        let answer = ask().await;
        // What held once mostly still does: better than nothing while GitHub does not answer.
        let known = remembered.take().and_then(|(_, answer)| answer.ok());
        let answer = answer.or_else(|error| known.ok_or(error));
        *remembered = Some((now, answer.clone()));
        answer
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::{super::transient, *};
    use crate::forge::ForgeErrorClass;

    #[tokio::test]
    async fn an_answer_is_remembered_for_an_hour_and_outlives_a_failure() {
        let remembered = Remembered::default();
        let at = |minutes| Timestamp::UNIX_EPOCH + SignedDuration::from_mins(minutes);
        let good = || async { Ok("2.337.0") };
        let bad = || async { Err(transient("asking", "no")) };
        assert_eq!(remembered.get(at(0), bad).await.unwrap_err().class, ForgeErrorClass::Transient);
        assert!(remembered.get(at(4), good).await.is_err(), "the failure is shared");
        assert!(remembered.get(at(5), good).await.is_ok());
        let never = || async { panic!("asked again within the hour") };
        assert!(remembered.get(at(64), never).await.is_ok());
        assert_eq!(remembered.get(at(66), bad).await.unwrap(), "2.337.0");
    }
}
