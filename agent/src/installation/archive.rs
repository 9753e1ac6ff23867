//! Unpacks a runner's archive into an empty directory, and nothing anywhere else.
//!
//! The archive is read once, from front to back, and every entry is judged before it is written:
//!
//! - names are relative, without `..`; a name whose parent is a link is refused, so nothing is written through one;
//! - a symbolic link leads, from its real parent, to a place inside: `..` only in front, so that the text of the link
//!   means the same to us as to the kernel; a hard link names a file that was unpacked before;
//! - no devices, pipes or sockets; no set-user-id bits;
//! - all that comes out of the decompressor is counted, long names included, against the space that was checked first.

use std::{
    ffi::OsStr,
    fs::{DirBuilder, File, OpenOptions, Permissions},
    io::{self, BufReader, Read},
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink},
    },
    path::{Component, Path, PathBuf},
};

use flate2::read::GzDecoder;
use tar::{Archive, Entry, EntryType, PaxExtensions};

/// The runner has about 15,000.
const ENTRY_LIMIT: usize = 200_000;
/// The kernel's own limit for a path.
const NAME_LIMIT: usize = 4096;
/// Extended headers hold a few names and times.
const HEADER_LIMIT: u64 = 64 * 1024;
const DEPTH_LIMIT: usize = 64;

/// The archive was not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// An entry that could do harm.
    #[error("the archive's entry {name:?} {why}")]
    Refused {
        /// Which, cut.
        name: String,
        /// Why.
        why: &'static str,
    },
    /// More than was allowed for.
    #[error("the archive unpacks to more than {0} bytes")]
    TooLarge(u64),
    /// Endless small ones.
    #[error("the archive has more than {ENTRY_LIMIT} entries")]
    TooMany,
    /// Damaged, or not an archive.
    #[error("could not read the archive")]
    Read(#[source] io::Error),
    /// The file system said no.
    #[error("could not unpack {name:?}")]
    Write {
        /// Which entry.
        name: String,
        /// Why not.
        source: io::Error,
    },
}

/// Unpacks a gzipped tar file into the empty directory `root`, at most `allowance` bytes of it.
///
/// # Errors
/// When it is damaged, dangerous, too large, or cannot be written; what was written stays in `root`.
pub(super) fn unpack(archive: &Path, root: &Path, allowance: u64) -> Result<(), ArchiveError> {
    let file = File::open(archive).map_err(ArchiveError::Read)?;
    unpack_stream(BufReader::new(file), root, allowance)
}

/// The same for bytes from anywhere.
///
/// # Errors
/// As of an archive on disk.
pub fn unpack_stream(gzipped: impl Read, root: &Path, allowance: u64) -> Result<(), ArchiveError> {
    let counted = Counted { inner: GzDecoder::new(gzipped), left: allowance, allowance };
    let mut archive = Archive::new(counted);
    let mut names = Names::default();
    // Raw: long names come as entries of their own, and are read within limits here instead of without there.
    for (index, entry) in archive.entries().map_err(told)?.raw(true).enumerate() {
        if index == ENTRY_LIMIT {
            return Err(ArchiveError::TooMany);
        }
        let mut entry = entry.map_err(told)?;
        if !names.take(&mut entry)? {
            place(root, &mut entry, std::mem::take(&mut names))?;
        }
    }
    Ok(())
}

/// Our own limit comes back through the tar reader as an I/O error.
fn told(error: io::Error) -> ArchiveError {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Overrun>()) {
        Some(Overrun(allowance)) => ArchiveError::TooLarge(*allowance),
        None => ArchiveError::Read(error),
    }
}

#[derive(Debug, thiserror::Error)]
#[error("more than {0} bytes")]
struct Overrun(u64);

/// Ends with an error after so many bytes.
struct Counted<R> {
    inner: R,
    left: u64,
    allowance: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(count as u64).ok_or_else(|| io::Error::other(Overrun(self.allowance)))?;
        Ok(count)
    }
}

/// Names that were given in front of an entry because its header was too small for them.
#[derive(Debug, Default)]
struct Names {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl Names {
    /// Whether this entry was only about names.
    fn take(&mut self, entry: &mut Entry<'_, impl Read>) -> Result<bool, ArchiveError> {
        match entry.header().entry_type() {
            EntryType::GNULongName => self.path = Some(long_name(entry)?),
            EntryType::GNULongLink => self.link = Some(long_name(entry)?),
            EntryType::XHeader => self.extended(&limited(entry)?)?,
            // Comments for the whole archive.
            EntryType::XGlobalHeader => {}
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn extended(&mut self, header: &[u8]) -> Result<(), ArchiveError> {
        for record in PaxExtensions::new(header) {
            let record = record.map_err(ArchiveError::Read)?;
            match record.key_bytes() {
                b"path" => self.path = Some(record.value_bytes().to_vec()),
                b"linkpath" => self.link = Some(record.value_bytes().to_vec()),
                // The next header would be looked for in the wrong place.
                b"size" => return Err(refused(record.value_bytes(), "is given a size beside its header")),
                _ => {}
            }
        }
        Ok(())
    }
}

fn long_name(entry: &mut Entry<'_, impl Read>) -> Result<Vec<u8>, ArchiveError> {
    let mut name = limited(entry)?;
    while name.last() == Some(&0) {
        name.pop();
    }
    Ok(name)
}

fn limited(entry: &mut Entry<'_, impl Read>) -> Result<Vec<u8>, ArchiveError> {
    let mut content = Vec::new();
    entry.take(HEADER_LIMIT + 1).read_to_end(&mut content).map_err(told)?;
    if content.len() as u64 > HEADER_LIMIT { Err(refused(b"", "has too long a name")) } else { Ok(content) }
}

fn refused(name: &[u8], why: &'static str) -> ArchiveError {
    ArchiveError::Refused { name: crate::runner::clean(&String::from_utf8_lossy(name), 200), why }
}

/// Writes one entry.
fn place(root: &Path, entry: &mut Entry<'_, impl Read>, names: Names) -> Result<(), ArchiveError> {
    let name = names.path.unwrap_or_else(|| entry.header().path_bytes().into_owned());
    let path = inside(&name).map_err(|why| refused(&name, why))?;
    let kind = entry.header().entry_type();
    let link = || names.link.or_else(|| entry.header().link_name_bytes().map(std::borrow::Cow::into_owned));
    let failed = |source: io::Error| ArchiveError::Write { name: path.display().to_string(), source };
    if path.as_os_str().is_empty() {
        return if kind.is_dir() { Ok(()) } else { Err(refused(&name, "has no name")) };
    }
    directories(root, path.parent().unwrap_or(Path::new("")))?;
    match kind {
        EntryType::Directory => directories(root, &path),
        EntryType::Regular | EntryType::Continuous => {
            file(&root.join(&path), entry).map_err(|error| match told(error) {
                ArchiveError::Read(source) => failed(source),
                other => other,
            })
        }
        EntryType::Symlink => {
            let target = link().unwrap_or_default();
            let depth = path.components().count().saturating_sub(1);
            leads_inside(&target, depth).map_err(|why| refused(&name, why))?;
            symlink(OsStr::from_bytes(&target), root.join(&path)).map_err(failed)
        }
        EntryType::Link => {
            let target = link().unwrap_or_default();
            let target = inside(&target).map_err(|why| refused(&name, why))?;
            directories(root, target.parent().unwrap_or(Path::new("")))?;
            let known = root.join(&target).symlink_metadata().is_ok_and(|known| known.is_file());
            if !known {
                return Err(refused(&name, "links to what is no file of this archive"));
            }
            std::fs::hard_link(root.join(&target), root.join(&path)).map_err(failed)
        }
        _ => Err(refused(&name, "is neither file, directory nor link")),
    }
}

fn file(path: &Path, entry: &mut Entry<'_, impl Read>) -> io::Result<()> {
    // Never setuid, and ours to remove again.
    let mode = entry.header().mode()? & 0o777 | 0o600;
    // Never through a link, never over a file.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    let size = entry.header().size()?;
    if io::copy(entry, &mut file)? != size {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    // The umask had its say at the creation.
    file.set_permissions(Permissions::from_mode(mode))
}

/// Makes the directories of `path` below `root`, each of which is a directory and no link to one.
fn directories(root: &Path, path: &Path) -> Result<(), ArchiveError> {
    let mut place = root.to_owned();
    for component in path.components() {
        place.push(component);
        let failed = |source| ArchiveError::Write { name: path.display().to_string(), source };
        match DirBuilder::new().mode(0o755).create(&place) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if !place.symlink_metadata().map_err(failed)?.is_dir() {
                    return Err(refused(path.as_os_str().as_bytes(), "lies below something that is no directory"));
                }
            }
            made => made.map_err(failed)?,
        }
    }
    Ok(())
}

/// The name as a path below the root, or why it is none.
fn inside(name: &[u8]) -> Result<PathBuf, &'static str> {
    if name.len() > NAME_LIMIT || name.contains(&0) {
        return Err("has an impossible name");
    }
    let mut path = PathBuf::new();
    for component in Path::new(OsStr::from_bytes(name)).components() {
        match component {
            Component::Normal(part) => path.push(part),
            Component::CurDir => {}
            Component::ParentDir => return Err("leads out of the archive"),
            Component::RootDir | Component::Prefix(_) => return Err("is an absolute path"),
        }
    }
    if path.components().count() > DEPTH_LIMIT { Err("lies too deep") } else { Ok(path) }
}

/// Whether a link in a directory `depth` levels below the root stays below it.
fn leads_inside(target: &[u8], depth: usize) -> Result<(), &'static str> {
    if target.is_empty() || target.len() > NAME_LIMIT || target.contains(&0) {
        return Err("links to an impossible name");
    }
    let (mut up, mut down) = (0, false);
    for component in Path::new(OsStr::from_bytes(target)).components() {
        match component {
            Component::Normal(_) => down = true,
            Component::CurDir => {}
            Component::ParentDir if down || up == depth => return Err("links out of the archive"),
            Component::ParentDir => up += 1,
            Component::RootDir | Component::Prefix(_) => return Err("links to an absolute path"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
