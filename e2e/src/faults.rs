//! Faults on demand, the same for every simulated service and for the API server's proxy.
//!
//! A [`Rule`] names the requests it is about and what happens to them. Rules are asked in the order they were added;
//! the first one that matches and is not used up decides. Kills and stops of the product are triggered from here
//! ([`Action::Call`]), before or after the request has its effect: the product itself has no failpoints.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};

/// What a rule calls: must not block.
pub type Hook = Arc<dyn Fn() + Send + Sync>;

/// What happens to a request.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    /// Answers with this, without the effect.
    Answer {
        /// HTTP status.
        status: u16,
        /// JSON body.
        body: serde_json::Value,
        /// Response headers.
        #[serde(default)]
        headers: Vec<(String, String)>,
    },
    /// Waits, then goes on as usual.
    Delay {
        /// How long.
        millis: u64,
    },
    /// Does it, then closes the connection instead of answering.
    LoseReply,
    /// Closes the connection without the effect.
    Break,
    /// Holds the request without an answer, without the effect.
    Hang,
    /// Calls a hook before the request has its effect.
    #[serde(skip)]
    Call(Hook),
    /// Calls a hook after the effect, before the answer.
    #[serde(skip)]
    CallAfter(Hook),
    /// Calls a hook, then closes the connection without the effect: who asked ended before the request was out.
    #[serde(skip)]
    CallInstead(Hook),
}

impl fmt::Debug for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answer { status, .. } => write!(f, "answer {status}"),
            Self::Delay { millis } => write!(f, "delay {millis} ms"),
            Self::LoseReply => f.write_str("lose the reply"),
            Self::Break => f.write_str("break the connection"),
            Self::Hang => f.write_str("hang"),
            Self::Call(_) => f.write_str("call before"),
            Self::CallAfter(_) => f.write_str("call after"),
            Self::CallInstead(_) => f.write_str("call instead"),
        }
    }
}

/// Which requests, how many of them, and what happens.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    /// HTTP method; any when absent.
    #[serde(default)]
    pub method: Option<String>,
    /// Part of the path (with its query).
    pub path: String,
    /// Matching requests let through first.
    #[serde(default)]
    pub skip: u32,
    /// How many are hit after that; all when absent.
    #[serde(default)]
    pub times: Option<u32>,
    /// What happens to them.
    pub action: Action,
}

impl Rule {
    /// Every request whose path contains `path`.
    #[must_use]
    pub fn path(path: impl Into<String>, action: Action) -> Self {
        Self { method: None, path: path.into(), skip: 0, times: None, action }
    }

    /// Only this method.
    #[must_use]
    pub fn method(mut self, method: &str) -> Self {
        self.method = Some(method.to_owned());
        self
    }

    /// Only the next `times` matching requests.
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.times = Some(times);
        self
    }

    /// Lets `skip` matching requests through first.
    #[must_use]
    pub fn skip(mut self, skip: u32) -> Self {
        self.skip = skip;
        self
    }

    fn hits(&self, method: &str, path: &str) -> bool {
        self.method.as_deref().is_none_or(|m| m.eq_ignore_ascii_case(method)) && path.contains(&self.path)
    }
}

/// The rules of one service; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Faults(Arc<Mutex<Vec<Rule>>>);

impl Faults {
    /// Adds a rule behind the others.
    pub fn add(&self, rule: Rule) {
        self.rules().push(rule);
    }

    /// Forgets every rule.
    pub fn clear(&self) {
        self.rules().clear();
    }

    /// Forgets the rules about this part of the path.
    pub fn clear_path(&self, path: &str) {
        self.rules().retain(|rule| rule.path != path);
    }

    /// The rules in force, used-up ones included.
    #[must_use]
    pub fn list(&self) -> Vec<Rule> {
        self.rules().clone()
    }

    /// What happens to this request; counts it.
    #[must_use]
    pub fn take(&self, method: &str, path: &str) -> Option<Action> {
        self.rules().iter_mut().filter(|rule| rule.hits(method, path)).find_map(|rule| {
            if rule.skip > 0 {
                rule.skip -= 1;
                return None;
            }
            match &mut rule.times {
                Some(0) => None,
                Some(left) => {
                    *left -= 1;
                    Some(rule.action.clone())
                }
                None => Some(rule.action.clone()),
            }
        })
    }

    fn rules(&self) -> MutexGuard<'_, Vec<Rule>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long a delayed request waits.
#[must_use]
pub fn delay(millis: u64) -> Duration {
    Duration::from_millis(millis)
}
