//! One call serves everybody who waits for it.
//!
//! Who needs an answer takes a turn; by the time the turn comes, the call of the one before is often new enough. Calls of
//! one group never overlap, so a burst of any size costs at most two.

use std::{
    future::Future,
    sync::{Mutex, PoisonError},
};

use jiff::Timestamp;

use crate::{clock::Clock, compute::ComputeError};

/// The last answers to one question.
#[derive(Debug)]
pub(super) struct Coalesced<T> {
    turn: tokio::sync::Mutex<()>,
    last: Mutex<Last<T>>,
}

#[derive(Debug)]
struct Last<T> {
    good: Option<(Timestamp, T)>,
    failure: Option<(Timestamp, ComputeError)>,
}

impl<T> Default for Coalesced<T> {
    fn default() -> Self {
        Self { turn: tokio::sync::Mutex::default(), last: Mutex::new(Last { good: None, failure: None }) }
    }
}

/// What an answer asked for at these times is good for.
fn usable<T: Clone>(last: &Last<T>, not_before: Timestamp, entered: Timestamp) -> Option<Result<T, ComputeError>> {
    if let Some((_, value)) = last.good.as_ref().filter(|(asked, _)| *asked >= not_before) {
        return Some(Ok(value.clone()));
    }
    // A failure is shared only with those who were already waiting when that call was made.
    let failure = last.failure.as_ref().filter(|(asked, _)| *asked >= not_before && *asked >= entered);
    failure.map(|(_, error)| Err(error.clone()))
}

impl<T: Clone> Coalesced<T> {
    /// The last good answer.
    pub(super) fn latest(&self) -> Option<T> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).good.as_ref().map(|(_, value)| value.clone())
    }

    /// An answer asked for at or after `not_before`; `ask` gets the time it is asked at.
    pub(super) async fn get<F, A>(&self, not_before: Timestamp, clock: &dyn Clock, ask: F) -> Result<T, ComputeError>
    where
        F: FnOnce(Timestamp) -> A + Send,
        A: Future<Output = Result<T, ComputeError>> + Send,
    {
        let entered = clock.now();
        let not_before = not_before.min(entered);
        if let Some(known) = self.known(not_before, entered) {
            return known;
        }
        let _turn = self.turn.lock().await;
        if let Some(known) = self.known(not_before, entered) {
            return known;
        }
        let asked = clock.now();
        let answer = ask(asked).await;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match &answer {
            Ok(value) => *last = Last { good: Some((asked, value.clone())), failure: None },
            Err(error) => last.failure = Some((asked, error.clone())),
        }
        answer
    }

    fn known(&self, not_before: Timestamp, entered: Timestamp) -> Option<Result<T, ComputeError>> {
        usable(&self.last.lock().unwrap_or_else(PoisonError::into_inner), not_before, entered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compute::{ErrorClass, Group, Location};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn error() -> ComputeError {
        let group = Group { project: "p".into(), name: "g".into(), location: Location::Zone("z".into()) };
        ComputeError {
            action: "listing",
            group,
            class: ErrorClass::Transient,
            ambiguous: true,
            message: "no answer".into(),
            retry_after: None,
        }
    }

    #[test]
    fn an_answer_asked_for_too_early_is_not_used() {
        let last = Last { good: Some((at(10), 'a')), failure: None };
        assert!(matches!(usable(&last, at(10), at(20)), Some(Ok('a'))));
        assert!(usable(&last, at(11), at(20)).is_none());
    }

    #[test]
    fn a_failure_is_shared_with_those_who_waited_and_with_nobody_later() {
        let last: Last<char> = Last { good: None, failure: Some((at(10), error())) };
        assert!(matches!(usable(&last, at(5), at(9)), Some(Err(_))));
        assert!(usable(&last, at(5), at(11)).is_none(), "who comes later asks again");
    }
}
