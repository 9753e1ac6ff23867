//! The event spool: a file that what happened is written to before it is told, and read back from by the next agent.
//!
//! It lies in the data directory, on the machine's disk: /run would do for a restart of the agent, but a machine that
//! went off for good should still tell whoever opens its disk what it did. A new boot ends its VM, so what an earlier
//! boot has left is set aside as `events.previous` for people, and never told as this boot's.
//!
//! - Its 4 MB are allocated at the start, so a job that fills the disk cannot keep its own result from being written.
//! - A sixteenth of it is kept for final records: transitions cannot take their room. What can be told in a boot is far
//!   less (see `events.rs`), so nothing is ever thrown away to make room.
//! - Each record is on the disk (fdatasync) when `append` returns. The first write that fails is the last: what is on
//!   the disk after it is unknown. The agent goes on from memory then, and says so.

mod record;
#[cfg(test)]
mod tests;

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
};

use rustix::fs::FallocateFlags;

use crate::{durable, error::in_full, paths::make_dir};

pub use record::{End, PAYLOAD_LIMIT, Record, Scan, scan};

/// The size of an agent's spool.
pub const SIZE: u64 = 4 * 1024 * 1024;
/// The part of a spool that only final records may use.
const RESERVE: u64 = 16;
/// No record is as long, so as many zeros end a spool: it need not be read to its end.
const CHUNK: usize = 64 * 1024;

/// The spool could not be used.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The file system said no.
    #[error("could not {action} the event spool {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// The rest is kept for final records, or there is none.
    #[error("the event spool is full")]
    Full,
    /// Nothing told is.
    #[error("an event of {0} bytes is too long for the spool")]
    TooLong(usize),
}

/// An open spool.
#[derive(Debug)]
pub struct Spool {
    file: File,
    path: String,
    used: u64,
    size: u64,
}

/// A record of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Its number.
    pub sequence: u64,
    /// What was written.
    pub payload: Vec<u8>,
}

/// What opening has found.
#[derive(Debug, Default)]
pub struct Opened {
    /// The spool; `None` when there is only memory.
    pub spool: Option<Spool>,
    /// What was written in this boot.
    pub records: Vec<Kept>,
    /// What is wrong, for people.
    pub trouble: Option<String>,
}

/// Opens this boot's spool. Whatever is wrong with it, what can be read is returned, and an agent can go on.
#[must_use]
pub fn open(path: &Path, boot_id: &str, size: u64) -> Opened {
    let read = read(path);
    let found = read.as_ref().ok().and_then(|bytes| scan(bytes)).filter(|scan| scan.boot_id == boot_id.as_bytes());
    let kept = |record: &Record<'_>| Kept { sequence: record.sequence, payload: record.payload.to_vec() };
    let records = found.iter().flat_map(|scan| &scan.records).map(kept).collect();
    let opened = match (&found, &read) {
        (Some(scan), _) => resume(path, scan, size),
        (None, Ok(bytes)) => begin(path, boot_id, size, bytes),
        (None, Err(_)) => begin(path, boot_id, size, &[]),
    };
    match opened {
        Ok((spool, trouble)) => Opened { spool: Some(spool), records, trouble },
        Err(error) => {
            let trouble = format!("{}: events are kept in memory only", in_full(&error));
            Opened { spool: None, records, trouble: Some(trouble) }
        }
    }
}

impl Spool {
    /// Writes a record; on the disk when this returns. `last` ones may use the reserve.
    ///
    /// # Errors
    /// When there is no room, which is no harm to what is there, or the disk fails, and this spool must be given up.
    pub fn append(&mut self, sequence: u64, payload: &[u8], last: bool) -> Result<(), SpoolError> {
        if payload.len() > PAYLOAD_LIMIT {
            return Err(SpoolError::TooLong(payload.len()));
        }
        let bytes = record::encode(sequence, payload);
        let end = self.used + length(&bytes);
        if end > self.size - if last { 0 } else { self.size / RESERVE } {
            return Err(SpoolError::Full);
        }
        let written = self.file.write_all_at(&bytes, self.used).and_then(|()| self.file.sync_data());
        written.map_err(|source| SpoolError::Io { action: "write to", path: self.path.clone(), source })?;
        self.used = end;
        Ok(())
    }
}

/// The part of the file that is in use, and at least as many zeros as show that nothing follows.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let (mut bytes, mut chunk) = (Vec::new(), vec![0; CHUNK]);
    loop {
        let count = file.read(&mut chunk)?;
        let read = chunk.get(..count).unwrap_or_default();
        if read.iter().all(|byte| *byte == 0) || length(&bytes) > SIZE {
            return Ok(bytes);
        }
        bytes.extend_from_slice(read);
    }
}

/// Goes on behind what is readable of a spool of this boot.
fn resume(path: &Path, scan: &Scan<'_>, size: u64) -> Result<(Spool, Option<String>), SpoolError> {
    let failed = |action| failed(action, path);
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(failed("open"))?;
    let used = u64::try_from(scan.used).unwrap_or(u64::MAX);
    if scan.end != End::Clean {
        // To its end, which blanks: what was cut off must not follow a shorter record.
        file.set_len(used).map_err(failed("cut"))?;
        allocate(&file, size).map_err(failed("allocate"))?;
        file.sync_all().map_err(failed("cut"))?;
    }
    tracing::info!(records = scan.records.len(), end = ?scan.end, "event spool read");
    let damage = format!("the event spool was damaged at byte {used}: what was written behind it is lost");
    let spool = Spool { file, path: path.display().to_string(), used, size };
    Ok((spool, (scan.end == End::Corrupt).then_some(damage)))
}

/// Makes a new spool; what is there and has anything in it is set aside.
fn begin(path: &Path, boot_id: &str, size: u64, found: &[u8]) -> Result<(Spool, Option<String>), SpoolError> {
    let failed = |action| failed(action, path);
    if let Some(parent) = path.parent() {
        make_dir(parent, 0o755).map_err(failed("make a directory for"))?;
    }
    let new = path.with_extension("new");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)
        .map_err(failed("create"))?;
    allocate(&file, size).map_err(failed("allocate"))?;
    let head = [&record::MAGIC[..], &record::encode(0, boot_id.as_bytes())].concat();
    file.write_all(&head).and_then(|()| file.sync_all()).map_err(failed("write to"))?;
    if !found.is_empty() {
        std::fs::rename(path, path.with_extension("previous")).map_err(failed("set aside"))?;
    }
    std::fs::rename(&new, path).and_then(|()| durable::sync_parent(path)).map_err(failed("name"))?;
    let unreadable = !found.is_empty() && scan(found).is_none();
    let damage = "the event spool was unreadable and set aside: what was written to it is lost".to_owned();
    let spool = Spool { file, path: path.display().to_string(), used: length(&head), size };
    Ok((spool, unreadable.then_some(damage)))
}

/// As posix_fallocate does: where the file system cannot, zeros take the room.
fn allocate(file: &File, size: u64) -> io::Result<()> {
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, size) {
        Err(rustix::io::Errno::OPNOTSUPP) => zeros(file, size),
        done => Ok(done?),
    }
}

fn zeros(file: &File, size: u64) -> io::Result<()> {
    let (chunk, mut at) = (vec![0; CHUNK], file.metadata()?.len());
    while at < size {
        let count = chunk.len().min(usize::try_from(size - at).unwrap_or(usize::MAX));
        file.write_all_at(chunk.get(..count).unwrap_or_default(), at)?;
        at += u64::try_from(count).unwrap_or(u64::MAX);
    }
    Ok(())
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SpoolError + use<> {
    let path = path.display().to_string();
    move |source| SpoolError::Io { action, path, source }
}
