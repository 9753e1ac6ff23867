//! The keys Google signs identity tokens with, fetched when needed and shared.
//!
//! They are used as long as the answer's `max-age` says. A key id that is not among them causes another fetch, but
//! seldom: anybody can write a token with a key id made up. gcloud-sdk's verifier is not used because it is made for
//! one audience, and ours differs from agent to agent.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use jsonwebtoken::{DecodingKey, jwk::JwkSet};
use reqwest::{Url, header};
use tokio::{sync::Mutex, time::Instant};

const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
const DEFAULT_MAX_AGE: Duration = Duration::from_mins(5);
const LONGEST_MAX_AGE: Duration = Duration::from_hours(24);
/// Between two fetches for unknown key ids.
const REFETCH_PERIOD: Duration = Duration::from_secs(30);
/// Between two fetches after one that failed.
const RETRY_PERIOD: Duration = Duration::from_secs(2);

/// The keys cannot be had now: nothing can be said about any token.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeysError {
    #[error("fetching Google's signing keys")]
    Fetch(#[from] reqwest::Error),
    #[error("parsing Google's signing keys")]
    Parse(#[from] serde_json::Error),
    #[error("fetching Google's signing keys failed a moment ago")]
    Recent,
}

/// The shared keys.
#[derive(Debug)]
pub(super) struct Keys {
    url: Url,
    http: reqwest::Client,
    cache: RwLock<Cache>,
    fetching: Mutex<()>,
}

#[derive(Default)]
struct Cache {
    keys: HashMap<String, Arc<DecodingKey>>,
    fresh_until: Option<Instant>,
    next_fetch: Option<Instant>,
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("keys", &self.keys.len()).finish_non_exhaustive()
    }
}

/// What the cache knows of a key id.
enum Lookup {
    Known(Arc<DecodingKey>),
    Unknown,
    Fetch,
    Failed,
}

impl Keys {
    pub(super) fn new(url: Url) -> Result<Self, KeysError> {
        let http = reqwest::Client::builder().timeout(FETCH_TIMEOUT).build()?;
        Ok(Self { url, http, cache: RwLock::default(), fetching: Mutex::default() })
    }

    /// The key of this id; `None` when Google has no such key.
    pub(super) async fn key(&self, id: &str) -> Result<Option<Arc<DecodingKey>>, KeysError> {
        if let Some(known) = self.cached(id) {
            return known;
        }
        let _fetching = self.fetching.lock().await;
        if let Some(known) = self.cached(id) {
            return known;
        }
        let fetched = self.fetch().await;
        let now = Instant::now();
        let mut cache = self.cache.write().unwrap_or_else(PoisonError::into_inner);
        cache.next_fetch = Some(now + RETRY_PERIOD);
        let (keys, max_age) = fetched?;
        cache.next_fetch = Some(now + REFETCH_PERIOD.min(max_age));
        cache.keys = keys;
        cache.fresh_until = Some(now + max_age);
        Ok(cache.keys.get(id).cloned())
    }

    fn cached(&self, id: &str) -> Option<Result<Option<Arc<DecodingKey>>, KeysError>> {
        match self.cache.read().unwrap_or_else(PoisonError::into_inner).lookup(id, Instant::now()) {
            Lookup::Known(key) => Some(Ok(Some(key))),
            Lookup::Unknown => Some(Ok(None)),
            Lookup::Failed => Some(Err(KeysError::Recent)),
            Lookup::Fetch => None,
        }
    }

    async fn fetch(&self) -> Result<(HashMap<String, Arc<DecodingKey>>, Duration), KeysError> {
        let answer = self.http.get(self.url.clone()).send().await?.error_for_status()?;
        let max_age = answer
            .headers()
            .get(header::CACHE_CONTROL)
            .and_then(|value| max_age(value.to_str().ok()?))
            .unwrap_or(DEFAULT_MAX_AGE);
        let set: JwkSet = serde_json::from_slice(&answer.bytes().await?)?;
        let keys = set.keys.iter().filter_map(|jwk| {
            let key = DecodingKey::from_jwk(jwk).ok()?;
            Some((jwk.common.key_id.clone()?, Arc::new(key)))
        });
        Ok((keys.collect(), max_age))
    }
}

impl Cache {
    fn lookup(&self, id: &str, now: Instant) -> Lookup {
        let fresh = self.fresh_until.is_some_and(|until| now < until);
        let may_fetch = self.next_fetch.is_none_or(|at| now >= at);
        match self.keys.get(id) {
            Some(key) if fresh => Lookup::Known(Arc::clone(key)),
            _ if may_fetch => Lookup::Fetch,
            None if fresh => Lookup::Unknown,
            _ => Lookup::Failed,
        }
    }
}

fn max_age(cache_control: &str) -> Option<Duration> {
    let mut directives = cache_control.split(',').filter_map(|directive| directive.trim().split_once('='));
    let (_, seconds) = directives.find(|(name, _)| name.eq_ignore_ascii_case("max-age"))?;
    Some(Duration::from_secs(seconds.parse().ok()?).min(LONGEST_MAX_AGE))
}
