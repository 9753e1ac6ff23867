//! `cargo measure`: see [`miglet_e2e::measure`].

use std::process::ExitCode;

fn main() -> ExitCode {
    miglet_e2e::measure::main()
}
