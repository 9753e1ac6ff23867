//! The runner stand-in as GitHub's release archive, from a source near the fleet.

use std::{fs, os::unix::fs::symlink, path::Path, process::Command};

use aws_lc_rs::digest;
use axum::{Router, routing::get};
use bytes::Bytes;

use super::{HOST, VmError, command::run};
use crate::{compute::GroupSpec, runner, server::Server};

/// Where the archive is served.
const PATH: &str = "/actions-runner-linux-x64.tar.gz";

/// The archive, served until it is dropped.
#[derive(Debug)]
pub struct RunnerArchive {
    server: Server,
    sha256: String,
}

impl RunnerArchive {
    /// Packs the stand-in and serves it.
    ///
    /// # Errors
    /// When it is not built, or no port can be bound.
    pub async fn serve() -> Result<Self, VmError> {
        let packed = tokio::task::spawn_blocking(pack).await;
        let bytes = packed.map_err(|error| VmError::Odd(format!("packing the runner: {error}")))??;
        let hash = digest::digest(&digest::SHA256, &bytes);
        let sha256 = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let router = Router::new().route(PATH, get(move || std::future::ready(bytes.clone())));
        let server = Server::start(router).await.map_err(VmError::io("a port for the runner's archive"))?;
        Ok(Self { server, sha256 })
    }

    /// The template metadata that makes VMs fetch it.
    #[must_use]
    pub fn wanted(&self, group: GroupSpec) -> GroupSpec {
        let source = format!("http://{HOST}:{}{PATH}", self.server.address().port());
        group
            .metadata("miglet-runner-version", runner::VERSION)
            .metadata("miglet-runner-sha256", &self.sha256)
            .metadata("miglet-runner-sources", &source)
    }

    /// How often it was fetched to the end.
    #[must_use]
    pub fn fetched(&self) -> usize {
        self.server.traffic.count(|exchange| exchange.path == PATH && exchange.status == Some(200))
    }
}

fn pack() -> Result<Bytes, VmError> {
    let folder = tempfile::tempdir().map_err(VmError::io(std::env::temp_dir()))?;
    let root = folder.path().join("root");
    unpacked(&root)?;
    let archive = folder.path().join("runner.tar.gz");
    // Owned by nobody in particular, as the release is.
    let tar = ["--owner=1001", "--group=1001", "--numeric-owner", "-czf"];
    run(Command::new("tar").args(tar).arg(&archive).arg("-C").arg(&root).arg("."))?;
    fs::read(&archive).map(Bytes::from).map_err(VmError::io(&archive))
}

/// What the archive unpacks to.
pub(super) fn unpacked(into: &Path) -> Result<(), VmError> {
    runner::install(into).map_err(|error| VmError::Odd(error.to_string()))?;
    own_programs(&into.join("bin"))
}

/// The stand-in's links lead out of its folder; an archive has to bring the program itself.
fn own_programs(bin: &Path) -> Result<(), VmError> {
    let (listener, worker) = (bin.join("Runner.Listener"), bin.join("Runner.Worker"));
    let program = fs::canonicalize(&listener).map_err(VmError::io(&listener))?;
    for link in [&listener, &worker] {
        fs::remove_file(link).map_err(VmError::io(link))?;
    }
    // A debug build is mostly names of things, which an emulated machine would unpack for a while.
    if run(Command::new("strip").arg("-o").arg(&listener).arg(&program)).is_err() {
        fs::copy(&program, &listener).map_err(VmError::io(&listener))?;
    }
    symlink("Runner.Listener", &worker).map_err(VmError::io(&worker))
}
