//! Builds what `cargo run` of this binary alone does not.

use std::{env, ffi::OsStr, process::Stdio};

use crate::world::Trouble;

/// Has the cargo that started us build operator, agent and runner stand-in into the same folder. Started by hand, the
/// ones beside us are used.
///
/// # Errors
/// When they cannot be built.
pub async fn build_binaries() -> Result<(), Trouble> {
    let Some(cargo) = env::var_os("CARGO") else { return Ok(()) };
    // All packages at once: the same features, so nothing is built a second time.
    let packages = ["--package", "miglet-operator", "--package", "miglet-agent", "--package", "miglet-e2e"];
    let binaries = ["--bin", "miglet-operator", "--bin", "miglet", "--bin", "runner-stand-in"];
    build(&cargo, &[&packages[..], &binaries[..]].concat()).await
}

/// Has the agent built alone, for release: the other packages' features would make it larger than it is on a VM.
///
/// # Errors
/// When it cannot be built.
pub async fn build_agent() -> Result<(), Trouble> {
    let Some(cargo) = env::var_os("CARGO") else { return Ok(()) };
    build(&cargo, &["--package", "miglet-agent", "--bin", "miglet"]).await
}

async fn build(cargo: &OsStr, arguments: &[&str]) -> Result<(), Trouble> {
    let mut command = tokio::process::Command::new(cargo);
    command.args(["build", "--quiet", "--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml")]);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    let status = command.status().await.map_err(|error| format!("run {}: {error}", cargo.display()))?;
    if status.success() { Ok(()) } else { Err(format!("cargo build ended with {status}").into()) }
}
