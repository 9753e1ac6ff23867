//! Until when GitHub accepts a version of the runner. Its answer is published for Enterprise Cloud only, so none is an
//! answer too.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
};

use jiff::Timestamp;
use serde::Deserialize;

use super::{answer::Answer, remembered::Remembered};
use crate::forge::{ForgeError, Support};

/// The versions that pools of one scope can be behind with at the same time.
const VERSIONS: usize = 16;

type Known = Remembered<Option<Support>>;

/// What is known of each version.
#[derive(Debug, Default)]
pub(super) struct Versions(Mutex<BTreeMap<String, Arc<Known>>>);

impl Versions {
    pub(super) async fn get<F>(
        &self,
        version: &str,
        now: Timestamp,
        ask: impl FnOnce() -> F,
    ) -> Result<Option<Support>, ForgeError>
    where
        F: Future<Output = Result<Option<Support>, ForgeError>>,
    {
        self.known(version).get(now, ask).await
    }

    fn known(&self, version: &str) -> Arc<Known> {
        let mut versions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if versions.len() >= VERSIONS && !versions.contains_key(version) {
            // The oldest is the one that is left behind first.
            versions.pop_first();
        }
        versions.entry(version.to_owned()).or_default().clone()
    }
}

#[derive(Debug, Deserialize)]
struct WireSupport {
    #[serde(default)]
    registration_deprecates_at: Option<Timestamp>,
    #[serde(default)]
    runtime_deprecates_at: Option<Timestamp>,
}

/// Reads an answer.
pub(super) fn support(action: &str, answer: &Answer) -> Result<Option<Support>, ForgeError> {
    if answer.status.as_u16() == 404 {
        return Ok(None);
    }
    let wire: WireSupport = answer.read(action)?;
    Ok(Some(Support { registers_until: wire.registration_deprecates_at, runs_until: wire.runtime_deprecates_at }))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::StatusCode;
    use serde_json::json;

    use super::*;

    fn read(status: u16, body: &serde_json::Value) -> Result<Option<Support>, ForgeError> {
        let status = StatusCode::from_u16(status).unwrap();
        support("asking", &Answer { status, body: Bytes::from(body.to_string()) })
    }

    #[test]
    fn the_ends_are_read_where_there_are_any() {
        let body = json!({"runner_version": "2.320.0", "runtime_deprecates_at": "2026-12-01T00:00:00Z"});
        let found = read(200, &body).unwrap().unwrap();
        assert_eq!(found, Support { registers_until: None, runs_until: "2026-12-01T00:00:00Z".parse().ok() });
        let endless = json!({"runner_version": "2.337.0", "registration_deprecates_at": null});
        assert_eq!(read(200, &endless).unwrap(), Some(Support::default()));
        assert_eq!(read(404, &json!({"message": "Not Found"})).unwrap(), None);
        assert!(read(200, &json!({"runtime_deprecates_at": "soon"})).is_err());
    }

    #[tokio::test]
    async fn each_version_is_asked_for_once_and_few_are_remembered() {
        let (versions, now) = (Versions::default(), Timestamp::UNIX_EPOCH);
        let asked = std::cell::Cell::new(0);
        for version in ["2.1.0", "2.2.0", "2.1.0"] {
            let ask = || async { Ok(None).inspect(|_| asked.set(asked.get() + 1)) };
            assert_eq!(versions.get(version, now, ask).await.unwrap(), None);
        }
        assert_eq!(asked.get(), 2);
        for number in 0..100 {
            versions.known(&format!("3.{number}.0"));
        }
        assert_eq!(versions.0.lock().unwrap().len(), VERSIONS);
    }
}
