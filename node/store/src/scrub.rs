//! Scrubbing: reading everything that lies in the packs, a little at a time, so that rot, lost tails and lost
//! files are found before anybody asks for the bytes.
//!
//! A pass goes through the packs in the order of their ids and is then begun again, so that what is read next
//! is always what was read longest ago. Where it stands is a [`ScrubPosition`], which the caller keeps and
//! gives back. What is found wrong is judged by the index: damage is what a live row points at, for what was
//! purged or written anew elsewhere may look like anything. A row whose payload is wrong is quarantined. One
//! whose payload is right while the record's header is not would be lost with the index only: it is written
//! anew at once, as are damaged records of the library, which the index still knows.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use maillage_host::{DiskFile, offload};
use serde::{Deserialize, Serialize};

use crate::chunk::{CHUNK_BYTES_MAX, Chunk};
use crate::error::StoreError;
use crate::event::StoreEvent;
use crate::hash::Hash;
use crate::index::{ChunkRow, HeldRow, InPack, PackRow, key};
use crate::pack::{
    HEADER_BYTES, HEADER_LEN, HeaderError, Kind, PackHeader, PackId, RECORD_HEADER_BYTES, RECORD_HEADER_LEN,
    RecordHeader, Walked, next_header,
};
use crate::store::{Store, is_damage};
use crate::writer::{Content, Move, Moved, Request};

/// Read at a time: four of the longest chunks, so that little is read twice at the borders.
const WINDOW_LEN: usize = 4 * CHUNK_BYTES_MAX;
/// Records written anew in one group; their bytes are bounded by the writer's own limit.
const MOVES_MAX: usize = 64;

/// Where a pass stands. The default is its beginning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubPosition {
    /// The pack being read; none before the first.
    pub pack: Option<PackId>,
    /// The offset in it that is read next, in bytes; 0 when nothing of it was.
    pub offset: u64,
}

/// What one step of a pass did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Where the next step goes on; none when the pass is complete.
    pub next: Option<ScrubPosition>,
    /// Bytes read.
    pub bytes: u64,
    /// Chunks and manifests that were taken out of service by this step.
    pub damaged: Vec<Hash>,
    /// Records that were written anew from what the index and their payloads still said.
    pub rewritten: u64,
    /// A pack whose file is gone.
    pub lost: Option<PackId>,
}

/// Stretches of a pack in which records may be damaged, as (first offset, offset behind).
type Suspects = Vec<(u64, u64)>;

impl Store {
    /// Reads the next part of a pass, about `bytes` of it, and takes out of service what is found damaged.
    /// Nothing that a reader could have had before is refused because of it.
    ///
    /// # Errors
    /// `Index` or `Read` when the machine failed otherwise than by damage; `Closed` or `Failed` when nothing can
    /// be written any more. The same step may then be asked for again.
    pub async fn scrub(&self, from: ScrubPosition, bytes: u64) -> Result<Scrubbed, StoreError> {
        let mut step = Scrubbed::default();
        let row = match from.pack {
            Some(id) => self.index(move |index| index.txn().get::<PackRow>(&key::pack(id))).await?,
            None => None,
        };
        let Some(row) = row.filter(|row| !row.dropped && !row.is_spent()) else {
            step.next = self.pack_after(from.pack).await?;
            return Ok(step);
        };
        let at_pack = |offset| Some(ScrubPosition { pack: Some(row.id), offset });
        let mut at = from.offset;
        let file = match self.shared.files.disk().open(&self.shared.files.path(row.id)).await {
            Ok(file) => file,
            Err(error) if is_damage(&error) => {
                self.lost(row, &error, &mut step).await?;
                step.next = self.pack_after(Some(row.id)).await?;
                return Ok(step);
            }
            Err(error) => return Err(read_error(error)),
        };
        let mut suspects = Suspects::new();
        if at < HEADER_BYTES {
            mend_header(&file, &row, &mut step).await?;
            at = HEADER_BYTES;
        }
        while at < row.complete && step.bytes < bytes {
            at = self.look(&file, &row, at, &mut suspects, &mut step).await?;
        }
        self.judge(row, suspects, &mut step).await?;
        step.next = if at < row.complete { at_pack(at) } else { self.pack_after(Some(row.id)).await? };
        Ok(step)
    }

    /// The beginning of the pack behind `id`, or of the first.
    async fn pack_after(&self, id: Option<PackId>) -> Result<Option<ScrubPosition>, StoreError> {
        let after = id.map(key::pack);
        let rows = self.index(move |index| index.rows::<PackRow>(key::PACK, after.as_deref(), 1)).await?;
        Ok(rows.first().map(|row| ScrubPosition { pack: Some(row.id), offset: 0 }))
    }

    /// Reads one window and returns where the next begins.
    async fn look(
        &self,
        file: &DiskFile,
        row: &PackRow,
        at: u64,
        suspects: &mut Suspects,
        step: &mut Scrubbed,
    ) -> Result<u64, StoreError> {
        let (salt, end) = (row.salt, row.complete);
        let window = match file.read_at(at, window_len(at, end)).await {
            Ok(window) => window,
            Err(error) if is_damage(&error) => {
                // Somewhere in it the medium gives nothing: each record is tried by itself.
                let behind = at + window_len(at, end) as u64;
                suspects.push((at, behind));
                return self.resume(file, row, behind, suspects).await;
            }
            Err(error) => return Err(read_error(error)),
        };
        step.bytes += window.len() as u64;
        if window.is_empty() {
            // Cut short.
            suspects.push((at, end));
            return Ok(end);
        }
        let looked = offload(move || Ok(Looked::at(&window, salt, at))).await.map_err(read_error)?;
        let mut next = looked.next;
        suspects.extend(looked.wrong.iter().map(|record| (record.offset, record.offset + 1)));
        match looked.stop {
            Stop::Window => {}
            Stop::Long(record) => {
                // Longer than a window: a manifest of a large study.
                let payload = file.read_at(next + RECORD_HEADER_BYTES, record.len as usize).await.unwrap_or_default();
                step.bytes += payload.len() as u64;
                let right = offload(move || Ok(Hash::of(&payload) == record.hash)).await.map_err(read_error)?;
                if !right {
                    suspects.push((next, next + 1));
                }
                next += record.record_len();
            }
            Stop::Gap => {
                let found = next_header(file, next + 1, end, salt).await.map_err(read_error)?.unwrap_or(end);
                step.bytes += found - next;
                suspects.push((next, found));
                next = found;
            }
        }
        Ok(next)
    }

    /// The first record at `at` or behind that can be found; what lies between is suspect too.
    async fn resume(
        &self,
        file: &DiskFile,
        row: &PackRow,
        at: u64,
        suspects: &mut Suspects,
    ) -> Result<u64, StoreError> {
        let found = match next_header(file, at, row.complete, row.salt).await {
            Ok(found) => found.unwrap_or(row.complete),
            Err(error) if is_damage(&error) => row.complete,
            Err(error) => return Err(read_error(error)),
        };
        suspects.push((at, found));
        Ok(found)
    }

    /// What the index says of the suspect stretches: damaged pieces are quarantined, the rest is written anew.
    async fn judge(&self, row: PackRow, suspects: Suspects, step: &mut Scrubbed) -> Result<(), StoreError> {
        if suspects.is_empty() {
            return Ok(());
        }
        let InPack { pieces, commits, holds } = self.index(move |index| index.in_pack(row.id, &suspects)).await?;
        let mut damaged = Vec::new();
        let mut content = Content { day: Some(row.day), ..Content::default() };
        for (hash, piece, is_manifest) in pieces {
            let Some(bytes) = self.read_piece(hash, piece).await? else {
                damaged.push((hash, piece));
                continue;
            };
            let kind = if is_manifest { Kind::Manifest } else { Kind::Chunk };
            let what = Moved::Piece { kind, chunk: Chunk::already_verified(hash, bytes) };
            content.moves.push(Move { from: piece.place(), what });
            if content.moves.len() >= MOVES_MAX || content.byte_len() >= self.shared.config.group_bytes {
                let group = std::mem::replace(&mut content, Content { day: Some(row.day), ..Content::default() });
                self.write_anew(group, step).await?;
            }
        }
        for commit in commits {
            let what = Moved::Commit(commit.sequence, commit.commit);
            content.moves.push(Move { from: commit.place, what });
            if content.moves.len() >= MOVES_MAX {
                let group = std::mem::replace(&mut content, Content { day: Some(row.day), ..Content::default() });
                self.write_anew(group, step).await?;
            }
        }
        self.write_anew(content, step).await?;
        step.damaged.extend(self.quarantine_all(row.id, damaged).await?);
        self.note_places(row.id, &holds, step).await
    }

    /// Holds whose record is damaged are recorded anew, as are those on what lies elsewhere now: a hold says in
    /// which packs its study lies.
    async fn note_places(&self, pack: PackId, damaged: &[HeldRow], step: &mut Scrubbed) -> Result<(), StoreError> {
        if damaged.is_empty() && step.rewritten == 0 {
            return Ok(());
        }
        // As they are now: one whose study is no longer whole has just been released.
        let all = self.index(|index| index.rows::<HeldRow>(key::HELD, None, usize::MAX)).await?;
        for row in all {
            let is_damaged = damaged.contains(&row);
            let lies_here = row.held && row.packs.contains(&pack);
            if !is_damaged && !lies_here {
                continue;
            }
            match self.record_again(row).await {
                Ok(()) => step.rewritten += u64::from(is_damaged),
                // Found damaged by whoever reads it next, who ends it.
                Err(error) => tracing::debug!(%error, "a hold was not recorded anew"),
            }
        }
        Ok(())
    }

    async fn write_anew(&self, content: Content, step: &mut Scrubbed) -> Result<(), StoreError> {
        let records = content.moves.len() as u64;
        if records == 0 {
            return Ok(());
        }
        match self.submit(content).await {
            Ok(_) => step.rewritten += records,
            // They are found again by the next pass; until then the index has them.
            Err(error @ (StoreError::Full { .. } | StoreError::Failed(_))) => {
                tracing::warn!(records, %error, "damaged records were not written anew");
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Takes damaged pieces of one pack out of service, and ends the holds on what they belong to. Returns
    /// those that were not before.
    async fn quarantine_all(&self, pack: PackId, damaged: Vec<(Hash, ChunkRow)>) -> Result<Vec<Hash>, StoreError> {
        if damaged.is_empty() {
            return Ok(Vec::new());
        }
        let marked = self.index(move |index| {
            let mut marked = Vec::new();
            for (hash, row) in damaged {
                if index.mark_bad(hash, &row)? {
                    marked.push(hash);
                }
            }
            Ok(marked)
        });
        let marked = marked.await?;
        for hash in &marked {
            tracing::warn!(chunk = %hash.fmt_short(), %pack, "damaged, taken out of service");
            self.shared.emit(StoreEvent::Quarantined(*hash));
        }
        if !marked.is_empty() {
            let all: BTreeSet<Hash> = marked.iter().copied().collect();
            self.clone().release_holds_on(all, pack).await;
        }
        Ok(marked)
    }

    /// A pack whose file is gone: nothing of it is here.
    async fn lost(&self, row: PackRow, error: &io::Error, step: &mut Scrubbed) -> Result<(), StoreError> {
        tracing::error!(pack = %row.id, %error, "a pack is missing");
        if row.is_being_written(&self.shared.files) {
            // What is written to it now would be written to a file without a name.
            let why = format!("pack {}, which is being written, is gone: {error}", row.id);
            self.queue.send(Request::Fail(why)).await.map_err(|_| StoreError::Closed)?;
        }
        self.shared.files.forget(row.id);
        step.lost = Some(row.id);
        self.judge(row, vec![(0, u64::MAX)], step).await?;
        // Nothing is appended to it: with the last thing that was in it, nobody misses it any more.
        let sealed = self.index(move |index| {
            let mut txn = index.txn();
            if let Some(now) = txn.get::<PackRow>(&key::pack(row.id))?.filter(|now| !now.sealed) {
                txn.put(key::pack(row.id), &PackRow { sealed: true, ..now })?;
            }
            index.commit(txn.into_batch(None)?.0)
        });
        sealed.await
    }
}

/// What lies in one window.
struct Looked {
    /// Records whose payload is not what the header says.
    wrong: Vec<Walked>,
    /// Behind the last record that was looked at.
    next: u64,
    stop: Stop,
}

enum Stop {
    /// The window ends, perhaps within a record that begins at `next`.
    Window,
    /// The record at `next` is longer than any window.
    Long(RecordHeader),
    /// There is no header at `next`.
    Gap,
}

impl Looked {
    /// `window` lies at offset `at`, where a record begins.
    fn at(window: &Bytes, salt: [u8; 8], at: u64) -> Self {
        let mut looked = Self { wrong: Vec::new(), next: at, stop: Stop::Window };
        let mut from = 0;
        loop {
            let Some(bytes) = window.get(from..from + RECORD_HEADER_LEN) else {
                // The file ends within a header, unless the window only does.
                looked.stop = if from == 0 { Stop::Gap } else { Stop::Window };
                return looked;
            };
            let Some(header) = RecordHeader::decode(bytes, salt, looked.next) else {
                looked.stop = Stop::Gap;
                return looked;
            };
            let payload = from + RECORD_HEADER_LEN;
            let Some(payload) = window.get(payload..payload + header.len as usize) else {
                if from == 0 {
                    looked.stop = Stop::Long(header);
                }
                return looked;
            };
            let says_nothing = matches!(header.kind, Kind::Seal | Kind::Void | Kind::Landed);
            if !says_nothing && Hash::of(payload) != header.hash {
                looked.wrong.push(Walked { offset: looked.next, header });
            }
            from += RECORD_HEADER_LEN + payload.len();
            looked.next += header.record_len();
        }
    }
}

fn window_len(at: u64, end: u64) -> usize {
    usize::try_from(end - at).unwrap_or(usize::MAX).min(WINDOW_LEN)
}

/// Writes a header anew of which no copy is left: with it the pack can be read without an index.
async fn mend_header(file: &DiskFile, row: &PackRow, step: &mut Scrubbed) -> Result<(), StoreError> {
    let block = match file.read_at(0, HEADER_LEN).await {
        Ok(block) => block,
        Err(error) if is_damage(&error) => Bytes::new(),
        Err(error) => return Err(read_error(error)),
    };
    step.bytes += block.len() as u64;
    // One of a later version is not ours to judge, and what is cut short holds no records either.
    if block.len() < HEADER_LEN || PackHeader::decode(&block) != Err(HeaderError::Damaged) {
        return Ok(());
    }
    let header = PackHeader { id: row.id, day: row.day, created_at: maillage_host::UnixMillis(0), salt: row.salt };
    tracing::warn!(pack = %row.id, "the header of a pack is damaged; it is written anew");
    if let Err(error) = file.write_at(0, vec![header.encode()], true).await {
        tracing::warn!(pack = %row.id, %error, "the header of a pack was not written");
        return Ok(());
    }
    step.rewritten += 1;
    Ok(())
}

fn read_error(error: io::Error) -> StoreError {
    StoreError::Read(Arc::new(error))
}
