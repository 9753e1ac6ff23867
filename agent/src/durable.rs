//! Files that are either old or new after a crash, never half written: temporary file, fsync, rename, fsync of the
//! directory.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// Nothing the agent keeps is larger.
const READ_LIMIT: u64 = 256 * 1024;

/// Replaces the file's content, readable by its owner only.
///
/// # Errors
/// When the directory cannot be written.
pub fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    sync_parent(path)
}

/// Creates the file with this content; fails with `AlreadyExists` when it is there. The name appears only with the
/// whole content, so a crash leaves no empty file behind.
///
/// # Errors
/// When it exists or the directory cannot be written.
pub fn create(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    write(&temporary, content)?;
    let linked = std::fs::hard_link(&temporary, path);
    std::fs::remove_file(&temporary)?;
    linked?;
    sync_parent(path)
}

/// The file's content, up to a limit; `None` when it does not exist.
///
/// # Errors
/// When it exists but cannot be read.
pub fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let mut content = Vec::new();
    file.take(READ_LIMIT).read_to_end(&mut content)?;
    Ok(Some(content))
}

/// Makes sure that a new name in this directory is on the disk.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_created_file_is_never_replaced_by_another_create() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("marker.json");
        create(&path, b"first").expect("created");
        assert_eq!(create(&path, b"second").expect_err("refused").kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(read(&path).expect("read"), Some(b"first".to_vec()));
        write(&path, b"third").expect("replaced");
        assert_eq!(read(&path).expect("read"), Some(b"third".to_vec()));
        assert_eq!(std::fs::read_dir(dir.path()).expect("list").count(), 1, "no temporary file is left");
    }
}
