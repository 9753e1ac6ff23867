//! One file from one source, resumed where an earlier attempt broke off. The part on disk is named by the hash it must
//! have in the end, so what one source began another may finish; a wrong sum shows in the hash.

use std::{
    io::{self, Read},
    path::{Path, PathBuf},
};

use aws_lc_rs::digest;
use http::{HeaderMap, StatusCode, Uri, header};
use tokio::{
    fs::{File, OpenOptions},
    io::AsyncWriteExt,
};

use super::source::Sha256;
use crate::fetch::{self, Answer, Client, FetchError};

/// The runner's archive has about 200 MB.
const SIZE_LIMIT: u64 = 2 * 1024 * 1024 * 1024;
/// How many times its own size an archive may unpack to; the runner's is three to four.
const RATIO: u64 = 5;
/// For archives too small for the ratio to mean much.
const FLOOR: u64 = 64 * 1024 * 1024;

/// The file was not had.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// The network.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The server said no.
    #[error("{host} answered {status}")]
    Status {
        /// Which server.
        host: String,
        /// What.
        status: StatusCode,
    },
    /// It is not what it should be; the part was thrown away.
    #[error("{host} gave a file with SHA-256 {got}, not {wanted}")]
    Hash {
        /// Which server.
        host: String,
        /// Of the file.
        got: Sha256,
        /// As configured.
        wanted: Sha256,
    },
    /// Nobody's runner is that large.
    #[error("{host} offers more than {SIZE_LIMIT} bytes")]
    TooLarge {
        /// Which server.
        host: String,
    },
    /// The answer makes no sense.
    #[error("{host} answered a range that was not asked for")]
    Range {
        /// Which server.
        host: String,
    },
    /// Not enough space for the archive and what comes out of it.
    #[error("{path} has {free} bytes free, download and unpacking may need {needed}")]
    Space {
        /// Where.
        path: String,
        /// What there is.
        free: u64,
        /// What may be needed.
        needed: u64,
    },
    /// The file system.
    #[error("could not write {path}")]
    Write {
        /// Which file.
        path: String,
        /// Why not.
        source: io::Error,
    },
}

/// How much an archive of this size may unpack to.
pub(super) fn allowance(archive: u64) -> u64 {
    archive.saturating_mul(RATIO).max(FLOOR)
}

/// A file to be had.
pub(super) struct Download<'a> {
    pub(super) client: &'a Client,
    pub(super) part: PathBuf,
    pub(super) wanted: Sha256,
    /// How much is left on a disk.
    pub(super) free_space: fn(&Path) -> Option<u64>,
}

impl Download<'_> {
    /// Fetches what is missing, and leaves the whole, verified file, with room to unpack it.
    pub(super) async fn from(&self, url: &Uri) -> Result<(), DownloadError> {
        self.fetch(url).await?;
        // Its size may not have been known before, and other things grow meanwhile.
        self.check_space(allowance(self.size()))
    }

    async fn fetch(&self, url: &Uri) -> Result<(), DownloadError> {
        let host = fetch::host(url);
        // An earlier attempt may have broken off after the last byte.
        let have = self.size();
        if have > 0 && self.hash().await? == self.wanted {
            return Ok(());
        }
        let mut answer = self.client.get(url, have).await?;
        let from = match answer.status {
            StatusCode::OK => 0,
            StatusCode::PARTIAL_CONTENT if starts_at(&answer.headers, have) => have,
            StatusCode::PARTIAL_CONTENT => return Err(DownloadError::Range { host }),
            StatusCode::RANGE_NOT_SATISFIABLE => {
                self.discard()?;
                return Err(DownloadError::Range { host });
            }
            status => return Err(DownloadError::Status { host, status }),
        };
        self.check_size(&answer.headers, from, &host)?;
        self.write(&mut answer, from, &host).await?;
        let got = self.hash().await?;
        if got == self.wanted {
            return Ok(());
        }
        self.discard()?;
        Err(DownloadError::Hash { host, got, wanted: self.wanted })
    }

    async fn write(&self, answer: &mut Answer, from: u64, host: &str) -> Result<(), DownloadError> {
        let mut file = self.open(from).await.map_err(self.failed())?;
        let mut size = from;
        while let Some(bytes) = answer.piece(host).await? {
            size += bytes.len() as u64;
            if size > SIZE_LIMIT {
                // Or the next source would be asked for what follows it.
                self.discard()?;
                return Err(DownloadError::TooLarge { host: host.to_owned() });
            }
            file.write_all(&bytes).await.map_err(self.failed())?;
        }
        // The last write's error waits in the file for the next one, and syncing does not tell it.
        file.flush().await.map_err(self.failed())?;
        file.sync_all().await.map_err(self.failed())
    }

    async fn open(&self, from: u64) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.create(true).mode(0o600).write(true);
        if from > 0 {
            options.append(true)
        } else {
            options.truncate(true)
        };
        options.open(&self.part).await
    }

    fn check_size(&self, headers: &HeaderMap, from: u64, host: &str) -> Result<(), DownloadError> {
        let length = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
        // Chunked: what comes is counted as it comes.
        let Some(missing) = length else { return Ok(()) };
        let archive = from.saturating_add(missing);
        if archive > SIZE_LIMIT {
            return Err(DownloadError::TooLarge { host: host.to_owned() });
        }
        self.check_space(missing.saturating_add(allowance(archive)))
    }

    fn check_space(&self, needed: u64) -> Result<(), DownloadError> {
        let directory = self.part.parent().unwrap_or(Path::new("/"));
        match (self.free_space)(directory) {
            Some(free) if free < needed => {
                Err(DownloadError::Space { path: directory.display().to_string(), free, needed })
            }
            _ => Ok(()),
        }
    }

    fn size(&self) -> u64 {
        self.part.metadata().map_or(0, |file| file.len())
    }

    async fn hash(&self) -> Result<Sha256, DownloadError> {
        let part = self.part.clone();
        let hashed = tokio::task::spawn_blocking(move || hash(&part)).await;
        hashed.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(self.failed())
    }

    fn discard(&self) -> Result<(), DownloadError> {
        std::fs::remove_file(&self.part).map_err(self.failed())
    }

    fn failed(&self) -> impl Fn(io::Error) -> DownloadError + use<> {
        let path = self.part.display().to_string();
        move |source| DownloadError::Write { path: path.clone(), source }
    }
}

fn hash(path: &Path) -> io::Result<Sha256> {
    let (mut file, mut context) = (std::fs::File::open(path)?, digest::Context::new(&digest::SHA256));
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = file.read(&mut buffer)?;
        match buffer.get(..count) {
            Some(bytes) if !bytes.is_empty() => context.update(bytes),
            _ => return Sha256::of(&context.finish()).ok_or_else(|| io::ErrorKind::InvalidData.into()),
        }
    }
}

fn starts_at(headers: &HeaderMap, from: u64) -> bool {
    let range = headers.get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
    range.and_then(|range| range.strip_prefix("bytes ")?.split_once('-')?.0.parse().ok()) == Some(from)
}

/// What unprivileged users may still write.
pub(crate) fn free_space(path: &Path) -> Option<u64> {
    rustix::fs::statvfs(path).ok().map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize))
}
