//! Releases of the runner: what the API says about them, and the archive itself, which anybody may fetch.
//!
//! Nothing can be fetched until an archive is offered: the URL is GitHub's own then, and there is no hash.

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use axum::{
    Router,
    extract::{Path, State},
    routing::get,
};
use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};

use super::Shared;
use crate::runner::VERSION;

/// Where releases are, as on github.com.
pub(crate) const RELEASES: &str = "/actions/runner/releases/download";
/// The architecture of the archive that is offered: this machine's stand-in is in it.
const ARCHITECTURE: &str = if cfg!(target_arch = "aarch64") { "arm64" } else { "x64" };

/// An archive that is offered.
#[derive(Debug)]
pub(crate) struct Release {
    archive: Bytes,
    sha256: String,
}

impl Release {
    pub(crate) fn new(archive: Bytes) -> Self {
        let sha256 = digest(&SHA256, &archive).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        Self { archive, sha256 }
    }
}

/// Routes of the archives.
pub(crate) fn routes(shared: Arc<Shared>) -> Router {
    Router::new().route("/{tag}/{filename}", get(archive)).with_state(shared)
}

/// What `downloads` answers to somebody who reaches us by this origin.
pub(crate) fn listed(release: Option<&Release>, origin: &str) -> Value {
    let asset = |architecture: &str| {
        let filename = filename(architecture);
        let path = format!("{RELEASES}/v{VERSION}/{filename}");
        let about = json!({"os": "linux", "architecture": architecture, "filename": filename});
        let more = match release.filter(|_| architecture == ARCHITECTURE) {
            Some(release) => {
                json!({"download_url": format!("{origin}{path}"), "sha256_checksum": release.sha256})
            }
            None => json!({"download_url": format!("https://github.com{path}")}),
        };
        [about, more].into_iter().flat_map(|part| part.as_object().cloned().unwrap_or_default()).collect::<Value>()
    };
    json!([asset("x64"), asset("arm64")])
}

async fn archive(
    State(shared): State<Arc<Shared>>,
    Path((tag, name)): Path<(String, String)>,
) -> Result<Bytes, StatusCode> {
    let there = tag == format!("v{VERSION}") && name == filename(ARCHITECTURE);
    shared.release.get().filter(|_| there).map(|release| release.archive.clone()).ok_or(StatusCode::NOT_FOUND)
}

fn filename(architecture: &str) -> String {
    format!("actions-runner-linux-{architecture}-{VERSION}.tar.gz")
}
