//! Which release of the runner GitHub offers.

use serde::Deserialize;

use super::{answer::Answer, transient};
use crate::forge::{Download, ForgeError, Offer};

#[derive(Debug, Deserialize)]
struct WireDownload {
    os: String,
    architecture: String,
    download_url: String,
    filename: String,
    #[serde(default)]
    sha256_checksum: Option<String>,
}

/// Reads an answer. Only what the names of the release's files say counts: the URL may be any mirror.
pub(super) fn offer(action: &str, answer: &Answer) -> Result<Offer, ForgeError> {
    if answer.status.as_u16() == 404 {
        return Err(transient(action, "GitHub does not say (HTTP 404)"));
    }
    let all: Vec<WireDownload> = answer.read(action)?;
    let linux = all.into_iter().filter(|download| download.os == "linux");
    let known: Vec<_> = linux.filter_map(|download| Some((version(&download)?, download))).collect();
    let Some((version, _)) = known.first() else { return Err(transient(action, "GitHub offers no runner for Linux")) };
    let version = version.clone();
    let downloads = known.into_iter().filter(|(other, _)| *other == version).map(|(_, download)| Download {
        architecture: download.architecture,
        url: download.download_url,
        sha256: download.sha256_checksum.map(|sum| sum.to_ascii_lowercase()).filter(|sum| is_sha256(sum)),
    });
    Ok(Offer { downloads: downloads.collect(), version })
}

/// The version in `actions-runner-linux-x64-2.336.0.tar.gz`.
fn version(download: &WireDownload) -> Option<String> {
    let prefix = format!("actions-runner-linux-{}-", download.architecture);
    let version = download.filename.strip_prefix(&prefix)?.strip_suffix(".tar.gz")?;
    let numbers: Vec<_> = version.split('.').map(|part| (1..=6).contains(&part.len()) && digits(part)).collect();
    (numbers == [true; 3]).then(|| version.to_owned())
}

fn digits(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::StatusCode;

    use super::*;

    fn answer(body: &serde_json::Value) -> Answer {
        Answer { status: StatusCode::OK, body: Bytes::from(body.to_string()) }
    }

    fn asset(os: &str, architecture: &str, version: &str) -> serde_json::Value {
        serde_json::json!({
            "os": os, "architecture": architecture, "download_url": "https://x/y", "sha256_checksum": "A".repeat(64),
            "filename": format!("actions-runner-{os}-{architecture}-{version}.tar.gz"),
        })
    }

    #[test]
    fn the_release_for_linux_is_read_and_what_is_odd_is_left_out() {
        let body = serde_json::json!([
            asset("osx", "x64", "2.999.0"),
            asset("linux", "x64", "2.337.0"),
            asset("linux", "x64", "2.337.0-noexternals"),
            asset("linux", "arm64", "2.337.0"),
        ]);
        let offer = offer("asking", &answer(&body)).unwrap();
        assert_eq!(offer.version, "2.337.0");
        let found: Vec<_> = offer.downloads.iter().map(|d| d.architecture.as_str()).collect();
        assert_eq!(found, ["x64", "arm64"]);
        assert_eq!(offer.downloads.first().and_then(|d| d.sha256.clone()), Some("a".repeat(64)));
        assert!(super::offer("asking", &answer(&serde_json::json!([]))).is_err());
    }
}
