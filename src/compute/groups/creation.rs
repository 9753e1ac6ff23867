//! One batch of names on its way to existing.
//!
//! ```text
//!   names ── create ──► accepted ──► operation followed a little ──► done
//!              │  ▲
//!              │  └── no answer: the identical call again, same request id, at most twice more
//!              └──► "already exists": list; known names exist, the rest again, halved when the list knew none
//! ```

use std::{collections::BTreeSet, time::Duration};

use uuid::Uuid;

use super::{CreateError, Groups};
use crate::compute::{ComputeError, ErrorClass, Group, LaunchError, Operation};

/// Result of each name.
pub(super) type Outcomes = Vec<(String, Result<(), CreateError>)>;

/// How often the identical call is made when nobody answers.
const TRIES: u32 = 3;
/// Namespace of request ids.
const REQUESTS: Uuid = Uuid::from_u128(0x6d69_676c_6574_5f72_6571_7565_7374_7331);

/// A call that failed, and whether an earlier identical one may have had its effect.
pub(super) struct Failed {
    pub(super) error: ComputeError,
    pub(super) doubtful: bool,
}

/// The id of a call about these names. `nonce` makes a later, separate call about the same names another one.
pub(super) fn request_id<'a>(names: impl Iterator<Item = &'a str>, nonce: Uuid) -> Uuid {
    let mut text = nonce.to_string();
    for name in names {
        text.push('\n');
        text.push_str(name);
    }
    Uuid::new_v5(&REQUESTS, text.as_bytes())
}

/// What to do with a batch of which some name is taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Split {
    /// Names the list shows: they exist.
    pub(super) exist: Vec<String>,
    /// What to ask for again, apart from each other.
    pub(super) again: Vec<Vec<String>>,
    /// The name that is taken by something no list of the group shows.
    pub(super) taken: Option<String>,
}

/// Narrows down which name is taken.
pub(super) fn split(batch: Vec<String>, listed: &BTreeSet<String>) -> Split {
    let asked = batch.len();
    let (exist, mut rest): (Vec<_>, Vec<_>) = batch.into_iter().partition(|name| listed.contains(name));
    if asked == 1 {
        return Split { exist, again: Vec::new(), taken: rest.pop() };
    }
    let again = match (exist.is_empty(), rest.is_empty()) {
        (_, true) => Vec::new(),
        (false, false) => vec![rest],
        (true, false) => {
            let second = rest.split_off(asked / 2);
            vec![rest, second]
        }
    };
    Split { exist, again, taken: None }
}

impl Groups {
    /// Creates one batch, narrowing it down when names are taken.
    pub(super) async fn create_batch(&self, group: &Group, batch: Vec<String>) -> Outcomes {
        let mut outcomes = Vec::new();
        let mut todo = vec![batch];
        while let Some(batch) = todo.pop() {
            match self.create_identically(group, &batch).await {
                Ok(()) => {
                    self.accepted(group);
                    outcomes.extend(batch.into_iter().map(|name| (name, Ok(()))));
                }
                Err(failed) if failed.error.class == ErrorClass::AlreadyExists => {
                    todo.extend(self.narrow(group, batch, failed, &mut outcomes).await);
                }
                Err(failed) => {
                    self.back_off(group, failed.error.class, &failed.error.message);
                    outcomes.extend(batch.into_iter().map(|name| (name, Err(failed.verdict()))));
                }
            }
        }
        outcomes
    }

    async fn narrow(
        &self,
        group: &Group,
        batch: Vec<String>,
        failed: Failed,
        outcomes: &mut Outcomes,
    ) -> Vec<Vec<String>> {
        let listed = match self.listing(group, self.now()).await {
            Ok(listing) => listing.instances.keys().cloned().collect(),
            Err(error) => {
                outcomes.extend(batch.into_iter().map(|name| (name, Err(CreateError::Unknown(error.clone())))));
                return Vec::new();
            }
        };
        let Split { exist, again, taken } = split(batch, &listed);
        outcomes.extend(exist.into_iter().map(|name| (name, Ok(()))));
        outcomes.extend(taken.map(|name| (name, Err(failed.taken()))));
        again
    }

    /// The same call, with the same request id, until somebody answers.
    async fn create_identically(&self, group: &Group, names: &[String]) -> Result<(), Failed> {
        let request = request_id(names.iter().map(String::as_str), Uuid::new_v4());
        let mut doubtful = false;
        for attempt in 1.. {
            let error = match self.create_call(group, names, request).await {
                Ok(operation) => return self.follow(group, operation).await.map_err(|e| Failed { error: e, doubtful }),
                Err(error) => error,
            };
            doubtful |= error.ambiguous;
            if !error.ambiguous || attempt >= TRIES {
                return Err(Failed { error, doubtful });
            }
            tokio::time::sleep(self.retry_pause(attempt)).await;
        }
        Ok(())
    }

    async fn create_call(&self, group: &Group, names: &[String], request: Uuid) -> Result<Operation, ComputeError> {
        self.permitted("creating instances in", group)?;
        self.count("create", self.port().create(group, names, request).await)
    }

    /// Waits a little for the verdict of an accepted call. One that does not come in time is left to the lists.
    async fn follow(&self, group: &Group, mut operation: Operation) -> Result<(), ComputeError> {
        let mut pause = Duration::from_millis(100);
        let deadline = tokio::time::Instant::now() + self.operation_wait();
        while !operation.done && tokio::time::Instant::now() + pause < deadline {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(2));
            if let Ok(next) = self.count("operation", self.port().operation(group, &operation.name).await) {
                operation = next;
            }
        }
        verdict("creating instances in", group, operation.errors)
    }
}

/// The error of an operation. It was refused as a whole: nothing was created.
pub(super) fn verdict(action: &'static str, group: &Group, errors: Vec<LaunchError>) -> Result<(), ComputeError> {
    // A taken name can be helped at once, so it is looked at first.
    let taken = errors.iter().position(|e| e.class == ErrorClass::AlreadyExists).unwrap_or(0);
    let Some(error) = errors.into_iter().nth(taken) else { return Ok(()) };
    Err(ComputeError {
        action,
        group: group.clone(),
        class: error.class,
        ambiguous: error.class == ErrorClass::Transient,
        message: format!("{}: {}", error.code, error.message),
        retry_after: None,
    })
}

impl Failed {
    fn verdict(&self) -> CreateError {
        let unknown = self.doubtful || self.error.ambiguous;
        let error = self.error.clone();
        if unknown { CreateError::Unknown(error) } else { CreateError::Rejected(error) }
    }

    /// A name that is taken and not listed: after an unanswered call it may well be our own.
    fn taken(self) -> CreateError {
        if self.doubtful { CreateError::Unknown(self.error) } else { CreateError::NameTaken(self.error) }
    }
}
