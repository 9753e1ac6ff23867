//! `cargo playground`: see [`miglet_e2e::playground`].

use std::process::ExitCode;

fn main() -> ExitCode {
    miglet_e2e::playground::main()
}
