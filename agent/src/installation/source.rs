//! Where a runner's archive may be fetched from, and what it must hash to.

use std::{fmt, str::FromStr};

use aws_lc_rs::digest;
use http::Uri;

use super::Version;

/// SHA-256 of an archive.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Sha256([u8; 32]);

impl Sha256 {
    /// Of something hashed.
    #[must_use]
    pub fn of(digest: &digest::Digest) -> Option<Self> {
        digest.as_ref().try_into().ok().map(Self)
    }
}

impl FromStr for Sha256 {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a SHA-256 of 64 hexadecimal digits");
        let text = text.strip_prefix("sha256:").unwrap_or(text);
        let digits = text.chars().map(|c| c.to_digit(16)).collect::<Option<Vec<_>>>().ok_or_else(wrong)?;
        let bytes: Vec<u8> =
            digits.chunks(2).map(|pair| pair.iter().fold(0, |sum, digit| sum * 16 + digit) as u8).collect();
        if digits.len() == 64 { bytes.try_into().map(Self).map_err(|_| wrong()) } else { Err(wrong()) }
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// This machine's architecture in the names of the runner's archives.
#[must_use]
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "x64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The URLs in a list separated by white space, in order, with `{version}` and `{arch}` filled in.
///
/// # Errors
/// When one of them is none.
pub fn sources(list: &str, version: &Version) -> Result<Vec<Uri>, String> {
    let filled = list.split_whitespace().map(|template| {
        let text = template.replace("{version}", &version.to_string()).replace("{arch}", architecture());
        let wrong = || format!("{:?} must look like https://host/path", redacted(template));
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let known = matches!(uri.scheme_str(), Some("https" | "http")) && uri.host().is_some_and(|h| !h.is_empty());
        if known { Ok(uri) } else { Err(wrong()) }
    });
    let filled = filled.collect::<Result<Vec<_>, _>>()?;
    if filled.is_empty() { Err("names no source".to_owned()) } else { Ok(filled) }
}

/// URLs without what may be secret in them: user, password and query.
#[must_use]
pub fn redacted(list: &str) -> String {
    let urls = list.split_whitespace().map(|url| {
        let (url, query) = url.split_once('?').map_or((url, ""), |(url, _)| (url, "?…"));
        let (scheme, rest) = url.split_once("://").map_or(("", url), |(scheme, rest)| (scheme, rest));
        let (authority, path) = rest.split_once('/').map_or((rest, None), |(host, path)| (host, Some(path)));
        let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        let path = path.map(|path| format!("/{path}")).unwrap_or_default();
        if scheme.is_empty() { format!("{host}{path}{query}") } else { format!("{scheme}://{host}{path}{query}") }
    });
    urls.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sources_keep_their_order_and_get_version_and_architecture() {
        let version = "2.336.0".parse().expect("version");
        let list = " https://bucket/r-{version}-{arch}.tgz\n https://github.com/v{version}/x ";
        let urls: Vec<String> = sources(list, &version).expect("urls").iter().map(Uri::to_string).collect();
        assert_eq!(
            urls,
            [&format!("https://bucket/r-2.336.0-{}.tgz", architecture()), "https://github.com/v2.336.0/x"]
        );
        for bad in ["", "gs://bucket/x", "/path", "https:///x"] {
            assert!(sources(bad, &version).is_err(), "{bad}");
        }
    }

    #[test]
    fn secrets_in_urls_are_not_shown() {
        let list = "https://user:pass@host:1/a?X-Goog-Signature=5ecret https://plain/b";
        assert_eq!(redacted(list), "https://host:1/a?… https://plain/b");
        let error = sources("gs://u:5ecret@bucket/x?5ecret", &"1.2.3".parse().expect("version")).expect_err("refused");
        assert!(!error.contains("5ecret"), "{error}");
    }

    proptest! {
        #[test]
        fn no_query_survives(url in "[ -~]{0,30}") {
            let shown = redacted(&format!("{url}?5ecret"));
            prop_assert!(!shown.contains("5ecret"), "{}", shown);
        }

        #[test]
        fn a_hash_reads_the_same_again(bytes in any::<[u8; 32]>()) {
            prop_assert_eq!(Sha256(bytes).to_string().parse::<Sha256>(), Ok(Sha256(bytes)));
        }

        #[test]
        fn any_text_is_survived(text in any::<String>()) {
            text.parse::<Sha256>().ok();
        }
    }
}
