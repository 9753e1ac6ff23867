//! Where runners are registered: an organization, a repository, an enterprise.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A place runners are registered at; names are compared without case, as GitHub does.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Scope {
    /// `acme`
    Organization(String),
    /// `acme/app`
    Repository(String),
    /// `enterprises/acme`
    Enterprise(String),
}

impl Scope {
    /// Reads `acme`, `acme/app` or `enterprises/acme`.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let text = text.trim_matches('/').to_lowercase();
        match text.split_once('/') {
            Some(("enterprises", name)) => Self::Enterprise(name.to_owned()),
            Some(_) => Self::Repository(text),
            None => Self::Organization(text),
        }
    }

    /// The organization or user it lies in.
    #[must_use]
    pub fn account(&self) -> Option<&str> {
        match self {
            Self::Organization(name) => Some(name),
            Self::Repository(name) => name.split('/').next(),
            Self::Enterprise(_) => None,
        }
    }

    /// Its path in the REST API.
    #[must_use]
    pub fn path(&self) -> String {
        match self {
            Self::Organization(name) => format!("/orgs/{name}"),
            Self::Repository(name) => format!("/repos/{name}"),
            Self::Enterprise(name) => format!("/enterprises/{name}"),
        }
    }

    /// Whether jobs of this repository may run here.
    #[must_use]
    pub fn serves(&self, repository: &str) -> bool {
        let repository = Self::parse(repository);
        match self {
            Self::Enterprise(_) => true,
            Self::Organization(name) => repository.account() == Some(name),
            Self::Repository(_) => *self == repository,
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Organization(name) | Self::Repository(name) => f.write_str(name),
            Self::Enterprise(name) => write!(f, "enterprises/{name}"),
        }
    }
}

impl From<String> for Scope {
    fn from(text: String) -> Self {
        Self::parse(&text)
    }
}

impl From<Scope> for String {
    fn from(scope: Scope) -> Self {
        scope.to_string()
    }
}
