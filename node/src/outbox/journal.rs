//! The outbox's file: records that are durable before anything is acknowledged.
//!
//! ```text
//! file    magic 8, version 1, node id 8, mesh id 32, crc32 4, then records
//! record  magic 4, length 4, crc32 4, synced-to 8, content (postcard), seal 8
//! ```
//! One record is written at a time and synced before the next, so a crash can tear the last one only.
//! What tells a torn tail, which nobody was promised, from rot, which somebody was: a record's *seal* is
//! zero when it is written and is filled in once it is synced, and each record says up to where the
//! file had been synced before it. A bad record that any of these calls synced is rot; the file is then
//! refused rather than cut. The checksum covers the record's place too.
//!
//! After a failed sync nothing can be assumed of the file: it takes nothing more until it has been
//! written anew, whole, from memory. That is also how it is made small, and how each start begins: what
//! was read need not be what is on the disk.

use std::io;

use bytes::Bytes;
use maillage_host::{Disk, DiskFile};

use super::record::Record;

mod format;

pub(crate) use format::Owner;
use format::{SEAL_LEN, header, parse, record_bytes, seal};

/// Where it lies in the data directory.
const DIRECTORY: &str = "outbox";
const PATH: &str = "outbox/journal";
/// The longest journal that is read or grows further: some hundred reports of the longest kind.
const LEN_MAX: u64 = 64 << 20;

/// Why the journal cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenJournalError {
    /// Bytes that had been synced are not what was written.
    #[error(
        "outbox/journal is damaged at byte {at}, in what had been acknowledged: it holds reports that the mesh may \
         not have; restore it from a copy, or move it away and keep it for its texts"
    )]
    Damaged {
        /// Where the first bad record begins.
        at: usize,
    },
    /// It is whole, and not this node's or of another version.
    #[error("outbox/journal is {0}")]
    Foreign(String),
    /// The disk failed.
    #[error("read outbox/journal: {0}")]
    Io(#[from] io::Error),
}

/// Why a record is not durable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WriteError {
    /// There is no room.
    #[error("the disk has no room for it")]
    Full,
    /// The disk failed.
    #[error("the disk failed: {0}")]
    Failed(String),
}

impl From<io::Error> for WriteError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full,
            _ => Self::Failed(error.to_string()),
        }
    }
}

/// The open journal.
#[derive(Debug)]
pub(crate) struct Journal {
    disk: Disk,
    owner: Owner,
    /// None until there is something to keep.
    file: Option<DiskFile>,
    len: u64,
    /// Whether the file must be written anew before it takes another record.
    suspect: bool,
}

/// What was found at the start.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// What it says.
    pub(crate) records: Vec<Record>,
    /// Bytes of a torn tail that were left out.
    pub(crate) torn: usize,
}

impl Journal {
    /// Opens the journal of `owner`, which may not exist yet.
    ///
    /// # Errors
    /// [`OpenJournalError`].
    pub(crate) async fn open(disk: Disk, owner: Owner) -> Result<(Self, Found), OpenJournalError> {
        let bytes = match disk.read(PATH).await {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok((Self { disk, owner, file: None, len: 0, suspect: false }, Found::default()));
            }
            Err(error) => return Err(error.into()),
        };
        let (records, end) = parse(&bytes, &owner)?;
        let file = Some(disk.open(PATH).await?);
        let journal = Self { disk, owner, file, len: end as u64, suspect: true };
        Ok((journal, Found { records, torn: bytes.len() - end }))
    }

    /// Its length in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Whether the file must be written anew, by [`Journal::rewrite`], before it takes another record.
    pub(crate) fn is_suspect(&self) -> bool {
        self.suspect
    }

    /// Makes a record durable.
    ///
    /// # Errors
    /// [`WriteError`]; the record is then not in the journal, or the journal is suspect.
    pub(crate) async fn append(&mut self, record: &Record) -> Result<(), WriteError> {
        if self.suspect {
            return Err(WriteError::Failed("the journal must be written anew".to_owned()));
        }
        let Some(file) = self.file.clone() else {
            return self.rewrite(std::iter::once(record.clone())).await;
        };
        let bytes = record_bytes(self.len, self.len, record, false);
        let (from, to) = (self.len, self.len + bytes.len() as u64);
        if to > LEN_MAX {
            return Err(WriteError::Full);
        }
        if let Err(error) = file.write_at(from, vec![bytes], false).await {
            // Cut off again what of it was written; else it is left for a new file.
            self.suspect = file.set_len(from).await.is_err();
            return Err(error.into());
        }
        if let Err(error) = file.sync().await {
            self.suspect = true;
            return Err(error.into());
        }
        self.len = to;
        // It is only evidence against rot, and made durable by whatever is synced next.
        if let Err(error) = file.write_at(to - SEAL_LEN, vec![Bytes::copy_from_slice(&seal(to))], false).await {
            tracing::warn!(%error, "an outbox record was not sealed");
        }
        Ok(())
    }

    /// Writes the journal anew with these records only: after a crash it is the old one or the new, whole.
    ///
    /// # Errors
    /// [`WriteError`]; the journal is then suspect.
    pub(crate) async fn rewrite(&mut self, records: impl IntoIterator<Item = Record>) -> Result<(), WriteError> {
        let mut content = header(&self.owner);
        for record in records {
            let at = content.len() as u64;
            content.extend_from_slice(&record_bytes(at, at, &record, true));
        }
        let len = content.len() as u64;
        self.suspect = true;
        self.disk.create_dir(DIRECTORY).await?;
        self.disk.replace(PATH, content.into()).await?;
        self.file = Some(self.disk.open(PATH).await?);
        (self.len, self.suspect) = (len, false);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
