//! Opening: completing the index from the packs, cutting a torn tail, reporting damage.
//!
//! A pack's bytes below `synced before` (the greatest offset that the index or any record's header
//! vouches for) were durable: whatever is wrong there is rot, reported and never cut. What lies
//! behind, in the last pack only, was at most one group in flight: it counts up to its first flaw,
//! and the rest is cut off. The intact part of it is written once more before it is trusted: after a
//! failed fsync the page cache may show bytes that the medium never got.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use maillage_host::{DiskFile, offload};

use crate::error::OpenError;
use crate::hash::Hash;
use crate::index::{ChunkRow, Index, Listed, PackRow, Txn, key};
use crate::library::{HoldRecord, InstanceCommit, apply_commit, apply_hold, record};
use crate::pack::{
    HEADER_BYTES, HEADER_LEN, HeaderError, Kind, PackFiles, PackHeader, PackId, RECORD_HEADER_BYTES, RECORD_HEADER_LEN,
    RecordHeader, Walk, Walked, claimed_salt,
};
use crate::recovery::{Damage, Recovery, TornTail};

/// Records of one index batch while replaying: bounds its memory.
const BATCH_RECORDS: usize = 1024;

/// The pack that a writer may go on with.
#[derive(Debug)]
pub(crate) struct Tail {
    pub(crate) file: DiskFile,
    pub(crate) row: PackRow,
}

/// What opening leaves behind.
#[derive(Debug)]
pub(crate) struct Replayed {
    pub(crate) recovery: Recovery,
    pub(crate) tail: Option<Tail>,
    /// The number of the next new pack.
    pub(crate) next_number: u64,
}

/// Brings index and packs together.
pub(crate) async fn replay(files: &Arc<PackFiles>, index: &Arc<Index>) -> Result<Replayed, OpenError> {
    let names = files.disk().list(files.directory()).await.map_err(OpenError::Directory)?;
    let mut packs: Vec<PackId> = names.iter().filter_map(|name| PackId::parse(name)).collect();
    packs.sort_unstable();
    let reader = Arc::clone(index);
    let rows = offload(move || reader.pack_rows()).await.map_err(OpenError::Index)?;
    let newest = packs.last().copied().max(rows.keys().next_back().copied());
    let mut replayed = Replayed {
        recovery: Recovery {
            missing: rows.keys().filter(|id| packs.binary_search(id).is_err()).copied().collect(),
            ..Recovery::default()
        },
        tail: None,
        next_number: newest.map_or(1, |id| id.number.saturating_add(1)),
    };
    for (position, &id) in packs.iter().enumerate() {
        let is_last = position + 1 == packs.len();
        let mut pack = PackReplay { files, index, id, is_last, recovery: &mut replayed.recovery };
        let tail = pack.run(rows.get(&id)).await;
        replayed.tail = tail.map_err(|error| match error {
            PackError::Version => OpenError::Version { pack: id.to_string() },
            PackError::Io(error) => OpenError::Pack { pack: id.to_string(), error },
        })?;
    }
    unhold_damaged(index, &replayed.recovery).await.map_err(OpenError::Index)?;
    Ok(replayed)
}

/// Studies with something in a pack that was found damaged are no longer known to be complete.
async fn unhold_damaged(index: &Arc<Index>, recovery: &Recovery) -> io::Result<()> {
    let damaged: Vec<PackId> = recovery.damage.iter().map(|damage| damage.pack).collect();
    if damaged.is_empty() {
        return Ok(());
    }
    let index = Arc::clone(index);
    offload(move || {
        let mut txn = index.txn();
        for row in index.rows::<crate::index::HeldRow>(key::HELD, None, usize::MAX)? {
            if row.packs.iter().any(|pack| damaged.contains(pack)) {
                txn.remove(key::held(row.manifest));
            }
        }
        index.commit(txn.into_batch())
    })
    .await
}

enum PackError {
    Version,
    Io(io::Error),
}

impl From<io::Error> for PackError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// What a record means for the index.
enum Entry {
    Piece(Hash, ChunkRow),
    Commit(InstanceCommit),
    Hold(HoldRecord),
}

/// The part of a walk that counts.
struct Judged {
    /// Each with the offset behind its record.
    entries: Vec<(u64, Entry)>,
    complete: u64,
    /// Where a torn tail begins.
    cut: Option<u64>,
}

struct PackReplay<'a> {
    files: &'a PackFiles,
    index: &'a Arc<Index>,
    id: PackId,
    is_last: bool,
    recovery: &'a mut Recovery,
}

impl PackReplay<'_> {
    async fn run(&mut self, row: Option<&PackRow>) -> Result<Option<Tail>, PackError> {
        let file = self.files.disk().open(&self.files.path(self.id)).await?;
        let file_len = file.len().await?;
        if let Some(row) = row
            && (row.sealed || file_len < row.complete)
        {
            // Shorter than it was: what is left stays readable, nothing is appended.
            self.files.set_readable(self.id, row.complete.min(file_len));
            if file_len < row.complete {
                self.damaged(file_len, row.complete - file_len);
            }
            return Ok(None);
        }
        let Some((start, appendable)) = self.start(&file, file_len, row).await? else {
            return Ok(None);
        };
        let walk = Walk::run(&file, start.complete, file_len, start.salt).await?;
        let is_sealed = walk.records.last().is_some_and(|last| last.header.kind == Kind::Seal);
        let unproven = if self.is_last { walk.synced_before.max(start.complete) } else { u64::MAX };
        let judged = self.judge(&file, file_len, &walk, start.complete, unproven).await?;
        if let Some(offset) = judged.cut {
            let bytes = walk.end.max(offset) - offset;
            self.recovery.torn = Some(TornTail { pack: self.id, offset, bytes });
            file.set_len(offset).await?;
            file.sync().await?;
        }
        if self.is_last {
            rewrite(&file, unproven, judged.complete).await?;
        } else if !is_sealed {
            self.damaged(judged.complete, 0);
        }
        self.files.set_readable(self.id, judged.complete);
        let sealed = !self.is_last || is_sealed && judged.cut.is_none() || !appendable;
        let row = self.apply(PackRow { sealed, ..start }, judged).await?;
        Ok((!row.sealed).then_some(Tail { file, row }))
    }

    /// Where to begin, and whether the pack may be appended to. `None` when nothing can be read.
    async fn start(
        &mut self,
        file: &DiskFile,
        file_len: u64,
        row: Option<&PackRow>,
    ) -> Result<Option<(PackRow, bool)>, PackError> {
        let block = file.read_at(0, HEADER_LEN).await?;
        let fresh =
            |day, salt| PackRow { id: self.id, day, salt, complete: HEADER_BYTES, sealed: false, chunks: 0, bytes: 0 };
        match PackHeader::decode(&block) {
            Ok(header) if header.id == self.id => {
                return Ok(Some((row.copied().unwrap_or_else(|| fresh(header.day, header.salt)), true)));
            }
            Ok(_) | Err(HeaderError::Damaged) => {}
            Err(HeaderError::Version) => return Err(PackError::Version),
        }
        let first = file.read_at(HEADER_BYTES, RECORD_HEADER_LEN).await?;
        let claimed = claimed_salt(&first).filter(|salt| RecordHeader::decode(&first, *salt, HEADER_BYTES).is_some());
        if let Some(known) = row.copied().or_else(|| claimed.map(|salt| fresh(0, salt))) {
            self.damaged(0, HEADER_BYTES);
            return Ok(Some((known, false)));
        }
        let rest = Walk::run(file, HEADER_BYTES, file_len, [0; 8]).await?;
        if self.is_last && rest.gaps.is_empty() && rest.records.is_empty() {
            // A crash while it was made: the header is synced before anything else is written.
            self.files.disk().remove(&self.files.path(self.id)).await?;
        } else {
            self.damaged(0, file_len);
        }
        Ok(None)
    }

    /// Goes through what the walk found, up to the end of what counts.
    async fn judge(
        &mut self,
        file: &DiskFile,
        file_len: u64,
        walk: &Walk,
        from: u64,
        unproven: u64,
    ) -> io::Result<Judged> {
        let mut judged = Judged { entries: Vec::new(), complete: from, cut: None };
        let mut gaps = walk.gaps.iter().copied().peekable();
        for record in walk.records.iter().map(Some).chain([None]) {
            // A gap lies before the record that the walk resumed at, or at the end.
            while let Some((at, bytes)) = gaps.next_if(|(at, _)| record.is_none_or(|record| *at < record.offset)) {
                let rot = (at + bytes).min(unproven).saturating_sub(at);
                if rot > 0 {
                    self.damaged(at, rot);
                    judged.complete = at + rot;
                }
                if rot < bytes {
                    judged.cut = Some(at + rot);
                    return Ok(judged);
                }
            }
            let Some(record) = record else { break };
            let is_proven = record.offset < unproven;
            let entry = self.read_entry(file, file_len, record, is_proven).await?;
            if entry.is_none() && record.header.kind != Kind::Seal {
                if !is_proven {
                    judged.cut = Some(record.offset);
                    return Ok(judged);
                }
                self.damaged(record.offset, record.header.record_len());
            }
            judged.complete = record.end().min(file_len);
            self.recovery.records_replayed += 1;
            judged.entries.extend(entry.map(|entry| (judged.complete, entry)));
        }
        Ok(judged)
    }

    /// What the record says; `None` when its payload is not what its header promises. Payloads of
    /// chunks in durable bytes are not read: they are verified when they are served.
    async fn read_entry(
        &self,
        file: &DiskFile,
        file_len: u64,
        record: &Walked,
        is_proven: bool,
    ) -> io::Result<Option<Entry>> {
        let Walked { offset, header } = *record;
        if record.end() > file_len {
            return Ok(None);
        }
        let piece = matches!(header.kind, Kind::Chunk | Kind::Manifest);
        let mut payload = Bytes::new();
        if !is_proven || !piece {
            payload = file.read_at(offset + RECORD_HEADER_BYTES, header.len as usize).await?;
            if Hash::of(&payload) != header.hash {
                return Ok(None);
            }
        }
        Ok(match header.kind {
            Kind::Chunk | Kind::Manifest => {
                Some(Entry::Piece(header.hash, ChunkRow { pack: self.id, offset, len: header.len, bad: false }))
            }
            Kind::InstanceCommit => record::decode(&payload).map(Entry::Commit),
            Kind::Hold => record::decode(&payload).map(Entry::Hold),
            Kind::Seal => None,
        })
    }

    /// Indexes what was judged good, in batches that each say how far the index is complete.
    async fn apply(&self, mut row: PackRow, judged: Judged) -> io::Result<PackRow> {
        let (index, complete, sealed) = (Arc::clone(self.index), judged.complete, row.sealed);
        offload(move || {
            row.sealed = false;
            for batch in judged.entries.chunks(BATCH_RECORDS) {
                let mut txn = index.txn();
                for (end, entry) in batch {
                    row.complete = *end;
                    apply_entry(&mut txn, &mut row, entry)?;
                }
                txn.put(key::pack(row.id), &row)?;
                index.commit(txn.into_batch())?;
            }
            row = PackRow { complete, sealed, ..row };
            let mut txn = index.txn();
            txn.put(key::pack(row.id), &row)?;
            index.commit(txn.into_batch())?;
            Ok(row)
        })
        .await
    }

    fn damaged(&mut self, offset: u64, bytes: u64) {
        self.recovery.damage.push(Damage { pack: self.id, offset, bytes });
    }
}

fn apply_entry(txn: &mut Txn<'_>, row: &mut PackRow, entry: &Entry) -> io::Result<()> {
    match entry {
        Entry::Piece(hash, place) => {
            if txn.list(*hash, place)? == Listed::New {
                row.chunks += 1;
                row.bytes += u64::from(place.len);
            }
            Ok(())
        }
        Entry::Commit(commit) => apply_commit(txn, commit, row.id),
        Entry::Hold(hold) => apply_hold(txn, hold),
    }
}

/// Makes a stretch that may only be in the page cache durable, by dirtying it again.
async fn rewrite(file: &DiskFile, from: u64, to: u64) -> io::Result<()> {
    const STEP_BYTES: u64 = 8 << 20;
    let mut at = from;
    while at < to {
        let bytes = file.read_at(at, usize::try_from(STEP_BYTES.min(to - at)).map_err(io::Error::other)?).await?;
        let len = bytes.len() as u64;
        if len == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        file.write_at(at, vec![bytes], false).await?;
        at += len;
    }
    file.sync().await
}
