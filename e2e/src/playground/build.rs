//! Builds what `cargo run` of this binary alone does not.

use std::{env, ffi::OsStr, path::PathBuf, process::Stdio};

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

/// Has the agent built as it is released, and says where it is: alone, because other packages' features would make it
/// larger, and with its own profile.
///
/// # Errors
/// When it cannot be built, or, started by hand, is not there.
pub async fn build_agent() -> Result<PathBuf, Trouble> {
    if let Some(cargo) = env::var_os("CARGO") {
        build(&cargo, &["--package", "miglet-agent", "--bin", "miglet", "--profile", "agent"]).await?;
    }
    let own = env::current_exe()?;
    let binary = own.ancestors().nth(2).map(|target| target.join("agent/miglet")).filter(|path| path.is_file());
    binary.ok_or_else(|| "the agent is not built: run `cargo build --profile agent -p miglet-agent`".into())
}

async fn build(cargo: &OsStr, arguments: &[&str]) -> Result<(), Trouble> {
    let mut command = tokio::process::Command::new(cargo);
    command.args(["build", "--quiet", "--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml")]);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    if !cfg!(debug_assertions) && !arguments.contains(&"--profile") {
        command.arg("--release");
    }
    let status = command.status().await.map_err(|error| format!("run {}: {error}", cargo.display()))?;
    if status.success() { Ok(()) } else { Err(format!("cargo build ended with {status}").into()) }
}
