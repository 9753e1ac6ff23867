//! Writes `crds/*.yaml` from the types in `miglet_operator::crd`; `--check` compares instead.

use std::{fs, path::PathBuf, process::ExitCode};

use clap::Parser;
use miglet_operator::crd::{definitions, file_name, manifest};

/// Generates the CustomResourceDefinitions.
#[derive(Parser)]
struct Args {
    /// Compare the files with what would be written; exit 1 when they differ.
    #[arg(long)]
    check: bool,
    /// Folder of the generated files.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/crds"))]
    out: PathBuf,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            tracing_subscriber::fmt().with_writer(std::io::stderr).init();
            tracing::error!(error = &*error, "Cannot generate the CustomResourceDefinitions");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<bool, Box<dyn std::error::Error>> {
    let mut current = true;
    fs::create_dir_all(&args.out)?;
    for crd in definitions() {
        let path = args.out.join(file_name(&crd));
        let text = manifest(&crd)?;
        if args.check {
            current &= fs::read_to_string(&path).is_ok_and(|found| found == text);
        } else {
            fs::write(&path, text)?;
        }
    }
    Ok(current)
}
