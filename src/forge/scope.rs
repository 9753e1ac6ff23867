//! A pool's URL into a scope: pure.

use url::Url;

use super::{Owner, Scope};

/// Why a URL names no scope.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// It is no URL.
    #[error("`{0}` is not a URL; write https://github.com/ORGANIZATION, …/OWNER/REPOSITORY or …/enterprises/NAME")]
    Unreadable(String),
    /// Plain http to something that is not this machine.
    #[error("`{0}` must start with https://")]
    Insecure(String),
    /// It names nothing that can have runners.
    #[error(
        "`{0}` names no organization, repository or enterprise; write https://github.com/ORGANIZATION, …/OWNER/REPOSITORY or …/enterprises/NAME"
    )]
    NoOwner(String),
}

/// The scope a URL names.
///
/// github.com and `*.ghe.com` have their API on a host of its own; a GitHub Enterprise Server has it under `/api/v3`. Plain
/// http is for this machine only.
pub fn scope(url: &str) -> Result<Scope, UrlError> {
    let parsed = Url::parse(url).map_err(|_| UrlError::Unreadable(url.to_owned()))?;
    let host = parsed.host_str().ok_or_else(|| UrlError::Unreadable(url.to_owned()))?;
    let local = matches!(host, "localhost" | "127.0.0.1");
    if parsed.scheme() != "https" && !(parsed.scheme() == "http" && local) {
        return Err(UrlError::Insecure(url.to_owned()));
    }
    let owner = owner(&parsed).ok_or_else(|| UrlError::NoOwner(url.to_owned()))?;
    Ok(Scope { api: api(&parsed, host), owner })
}

fn api(url: &Url, host: &str) -> String {
    let port = url.port().map_or_else(String::new, |port| format!(":{port}"));
    match host {
        "github.com" | "www.github.com" => "https://api.github.com".to_owned(),
        _ if host.ends_with(".ghe.com") => format!("https://api.{host}{port}"),
        _ => format!("{}://{host}{port}/api/v3", url.scheme()),
    }
}

fn owner(url: &Url) -> Option<Owner> {
    let parts: Vec<_> = url.path().split('/').filter(|part| !part.is_empty()).collect();
    match *parts.as_slice() {
        ["enterprises", name] => Some(Owner::Enterprise(name.to_owned())),
        [organization] if organization != "enterprises" => Some(Owner::Organization(organization.to_owned())),
        [owner, name] => Some(Owner::Repository { owner: owner.to_owned(), name: name.to_owned() }),
        _ => None,
    }
}

impl Owner {
    /// The path of its Actions API.
    #[must_use]
    pub fn actions(&self) -> String {
        match self {
            Self::Organization(name) => format!("/orgs/{name}/actions"),
            Self::Repository { owner, name } => format!("/repos/{owner}/{name}/actions"),
            Self::Enterprise(name) => format!("/enterprises/{name}/actions"),
        }
    }
}

impl Owner {
    /// The path of this repository's API, if its jobs can run on runners of this owner. What names it came from a job.
    #[must_use]
    pub fn repository(&self, full_name: &str) -> Option<String> {
        let (owner, name) = full_name.split_once('/')?;
        let sound = |text: &str| {
            let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            !text.is_empty() && text.chars().all(known) && !text.chars().all(|c| c == '.')
        };
        let ours = match self {
            Self::Organization(organization) => owner.eq_ignore_ascii_case(organization),
            Self::Repository { owner: own, name: its } => {
                owner.eq_ignore_ascii_case(own) && name.eq_ignore_ascii_case(its)
            }
            Self::Enterprise(_) => true,
        };
        (ours && sound(owner) && sound(name)).then(|| format!("/repos/{owner}/{name}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_can_only_name_a_repository_that_its_runner_serves() {
        let organization = Owner::Organization("acme".into());
        let repository = Owner::Repository { owner: "acme".into(), name: "app".into() };
        let path = Some("/repos/ACME/app".to_owned());
        for owner in [&organization, &repository, &Owner::Enterprise("e".into())] {
            assert_eq!(owner.repository("ACME/app"), path);
            for forged in
                ["", "acme", "acme/", "acme/..", "acme/a/b", "acme/a?x=1", "acme/%2e%2e", "acme/a b", "acme/a#"]
            {
                assert_eq!(owner.repository(forged), None, "{forged}");
            }
        }
        assert_eq!((organization.repository("evil/app"), repository.repository("acme/other")), (None, None));
    }

    #[test]
    fn every_kind_of_url_has_its_api_and_owner() {
        let org = |name: &str| Owner::Organization(name.to_owned());
        let table = [
            ("https://github.com/acme", "https://api.github.com", org("acme"), "/orgs/acme/actions"),
            ("https://acme.ghe.com/acme/", "https://api.acme.ghe.com", org("acme"), "/orgs/acme/actions"),
            (
                "https://ghes.example.com:8443/acme",
                "https://ghes.example.com:8443/api/v3",
                org("acme"),
                "/orgs/acme/actions",
            ),
            ("http://127.0.0.1:8080/acme", "http://127.0.0.1:8080/api/v3", org("acme"), "/orgs/acme/actions"),
            (
                "http://localhost:1/acme/app",
                "http://localhost:1/api/v3",
                Owner::Repository { owner: "acme".into(), name: "app".into() },
                "/repos/acme/app/actions",
            ),
            (
                "https://github.com/enterprises/acme",
                "https://api.github.com",
                Owner::Enterprise("acme".into()),
                "/enterprises/acme/actions",
            ),
        ];
        for (url, api, owner, path) in table {
            assert_eq!(owner.actions(), path);
            assert_eq!(scope(url), Ok(Scope { api: api.to_owned(), owner }), "{url}");
        }
    }

    #[test]
    fn what_names_no_scope_is_refused() {
        for url in [
            "",
            "acme",
            "http://github.com/acme",
            "https://github.com",
            "https://github.com/a/b/c",
            "https://github.com/enterprises",
            "ftp://localhost/a",
        ] {
            assert!(scope(url).is_err(), "{url}");
        }
    }
}
