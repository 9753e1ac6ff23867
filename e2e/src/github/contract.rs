//! Collects what departs from GitHub's published description.

use std::sync::{Arc, Mutex, PoisonError};

use crate::published::openapi::{Exchange, OpenApi};

/// The description, when there is one, and what departed from it.
#[derive(Debug)]
pub(crate) struct Contract {
    api: Option<Arc<OpenApi>>,
    found: Mutex<Vec<String>>,
}

impl Contract {
    pub(crate) fn new(api: Option<Arc<OpenApi>>) -> Self {
        Self { api, found: Mutex::default() }
    }

    pub(crate) fn check(&self, exchange: &Exchange<'_>) {
        if let Some(api) = &self.api {
            let new = api.violations(exchange);
            self.found.lock().unwrap_or_else(PoisonError::into_inner).extend(new);
        }
    }

    pub(crate) fn violations(&self) -> Vec<String> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
