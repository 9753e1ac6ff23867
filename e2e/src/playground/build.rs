//! Builds what `cargo run` of this binary alone does not.

use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Stdio,
};

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

/// Has the agent built as its package ships it, by the script that the package is built with, and says where it is.
///
/// # Errors
/// When it cannot be built.
pub async fn build_agent() -> Result<PathBuf, Trouble> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut command = tokio::process::Command::new(workspace.join("agent/packaging/build-agent"));
    let built = command.stdin(Stdio::null()).stderr(Stdio::inherit()).kill_on_drop(true).output().await?;
    if !built.status.success() {
        return Err(format!("agent/packaging/build-agent ended with {}", built.status).into());
    }
    // Relative to the workspace, unless the target folder is somewhere else.
    Ok(workspace.join(String::from_utf8(built.stdout)?.trim()))
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
