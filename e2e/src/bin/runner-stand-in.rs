//! The runner stand-in's executable: `Runner.Listener` and `Runner.Worker` are links to it.

use std::process::ExitCode;

fn main() -> ExitCode {
    miglet_e2e::runner::main()
}
