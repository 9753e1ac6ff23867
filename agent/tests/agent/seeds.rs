//! The inputs that fuzzing starts from, through the checks that it makes: those run where no fuzzer does.

#[path = "../../../fuzz/checks/archive.rs"]
mod archive;
#[path = "../../../fuzz/checks/hook_message.rs"]
mod hook_message;
#[path = "../../../fuzz/checks/jit_config.rs"]
mod jit_config;
#[path = "../../../fuzz/checks/listener_lines.rs"]
mod listener_lines;
#[path = "../../../fuzz/checks/spool.rs"]
mod spool;

use std::path::Path;

/// The seeds of a target, by name, with what is in them.
fn seeds(target: &Path) -> Vec<(String, Vec<u8>)> {
    let files = std::fs::read_dir(target).unwrap().map(|entry| entry.unwrap().path());
    let seed = |path: std::path::PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        (name, std::fs::read(path).unwrap())
    };
    files.map(seed).collect()
}

/// Whatever the pieces are, the lines are the same.
fn check_lines(bytes: &[u8]) -> bool {
    let told = [1, 7, 4096, usize::MAX].map(|size| listener_lines::check(&bytes.chunks(size).collect::<Vec<_>>()));
    assert!(told.iter().all(|one| *one == told[0]));
    told[0]
}

#[test]
fn the_seeds_of_every_fuzz_target_are_what_they_should_be() {
    let targets = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/seeds")).unwrap();
    let mut seen = Vec::new();
    for target in targets.map(|entry| entry.unwrap().path()) {
        let name = target.file_name().unwrap().to_str().unwrap().to_owned();
        let check: fn(&[u8]) -> bool = match name.as_str() {
            "archive" => archive::check,
            "hook_message" => hook_message::check,
            "jit_config" => |bytes| jit_config::check(std::str::from_utf8(bytes).unwrap()),
            "listener_lines" => check_lines,
            "spool" => spool::check,
            other => panic!("no check for the seeds of {other}"),
        };
        let mut good: Vec<_> = seeds(&target).into_iter().filter(|(_, bytes)| check(bytes)).map(|(n, _)| n).collect();
        good.sort();
        seen.push((name, good.join(" ")));
    }
    seen.sort();
    let expected = [
        ("archive", "long-names.tar pax.tar runner.tar zipped"),
        ("hook_message", "completed escapes started"),
        ("jit_config", "mark two whole"),
        ("listener_lines", "life long name"),
        ("spool", "corrupt torn whole"),
    ];
    assert_eq!(seen, expected.map(|(name, good)| (name.to_owned(), good.to_owned())));
}
