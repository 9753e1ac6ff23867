//! A runner's archive: the bytes are a tar file, or, with a first byte of zero, what claims to be a gzipped one.

use std::{
    io::Write,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

use flate2::{Compression, write::GzEncoder};
use miglet_agent::installation::unpack_stream;

const ALLOWANCE: u64 = 256 * 1024;

/// Whether it was unpacked.
pub(crate) fn check(bytes: &[u8]) -> bool {
    let directory = tempfile::tempdir().expect("a directory");
    let root = directory.path().join("root");
    std::fs::create_dir(&root).expect("root");
    let done = match bytes.split_first() {
        Some((0, zipped)) => unpack_stream(zipped, &root, ALLOWANCE),
        _ => unpack_stream(zipped(bytes).as_slice(), &root, ALLOWANCE),
    };
    if let Err(error) = &done {
        assert!(!error.to_string().contains(char::is_control), "{error}");
    }
    assert_eq!(std::fs::read_dir(directory.path()).expect("list").count(), 1, "something is beside the root");
    let root = root.canonicalize().expect("root");
    assert!(size_inside(&root, &root) <= ALLOWANCE);
    done.is_ok()
}

fn zipped(tar: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::none());
    encoder.write_all(tar).and_then(|()| encoder.finish()).expect("memory")
}

/// The bytes in this directory, in which every link that leads anywhere leads inside.
fn size_inside(root: &Path, directory: &Path) -> u64 {
    let mut size = 0;
    for entry in std::fs::read_dir(directory).expect("list") {
        let path = entry.expect("entry").path();
        if let Ok(real) = path.canonicalize() {
            assert!(real.starts_with(root), "{} leads to {}", path.display(), real.display());
        }
        let metadata = path.symlink_metadata().expect("metadata");
        if metadata.is_dir() {
            size += size_inside(root, &path);
        } else if metadata.is_file() {
            assert_eq!(metadata.permissions().mode() & 0o7000, 0);
            size += metadata.len() / metadata.nlink();
        }
    }
    size
}
