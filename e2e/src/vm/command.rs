//! Runs the tools that make disks: to their end, with what they said when they fail.

use std::process::{Command, Stdio};

use super::VmError;

/// How much of a failed program's output is told.
const TOLD: usize = 2000;

/// Runs it; blocks. What it printed.
pub(super) fn run(command: &mut Command) -> Result<String, VmError> {
    let program = command.get_program().to_string_lossy().into_owned();
    // Debian's tools ask questions, and print in the user's language, unless told otherwise.
    command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C").stdin(Stdio::null());
    let output = command.output().map_err(VmError::io(&program))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    let said = text(&output.stdout) + &text(&output.stderr);
    let start = said.char_indices().rev().nth(TOLD).map_or(0, |(at, _)| at);
    let output_end = said.get(start..).unwrap_or_default().to_owned();
    Err(VmError::Failed { program, status: output.status, output: output_end })
}
