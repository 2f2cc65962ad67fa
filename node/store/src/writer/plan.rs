//! Planning a group: what of it is new, where it will lie, and what the index will say. Pure apart
//! from reading the index; the caller writes the parts, then commits the batch.

use std::io;

use bytes::Bytes;
use maillage_host::Batch;

use super::group::{Closing, Content, Move, Moved};
use crate::error::Refusal;
use crate::hash::Hash;
use crate::index::{ChunkRow, EdgesRow, Index, InstanceRow, PackRow, Place, Txn, key};
use crate::library::{InstanceCommit, Stored, apply_commit, apply_hold, classify, first, link, record};
use crate::pack::{Kind, PackFiles, PackId, RecordHeader};

/// Where a group will be written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    /// `complete` is the offset at which the group begins, and up to which all is synced.
    pub(crate) row: PackRow,
}

impl Target {
    /// For plans that are only asked whether they would write anything.
    pub(crate) const NOWHERE: Self = Self { row: PackRow::new(PackId { number: 0, generation: 0 }, 0, [0; 8]) };
}

/// A group that is ready to be written.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Headers and payloads, to be written one after another.
    pub(crate) parts: Vec<Bytes>,
    /// The pack's row after the group.
    pub(crate) row: PackRow,
    /// Rows of other packs, whose counts change.
    pub(crate) others: Vec<PackRow>,
    /// What the index will be told.
    pub(crate) batch: Batch,
    /// One for each content, in order.
    pub(crate) outcomes: Vec<Result<Option<Stored>, Refusal>>,
    /// Quarantined chunks that are written anew.
    pub(crate) repaired: Vec<Hash>,
}

pub(crate) fn plan(index: &Index, files: &PackFiles, contents: &[Content], target: Target) -> io::Result<Plan> {
    let mut planner = Planner {
        files,
        txn: index.txn(),
        row: target.row,
        begin: target.row.complete,
        parts: Vec::new(),
        repaired: Vec::new(),
    };
    let outcomes = contents.iter().map(|content| planner.add(content)).collect::<io::Result<Vec<_>>>()?;
    let Planner { txn, mut row, parts, repaired, .. } = planner;
    let (batch, others) = txn.into_batch(Some(&mut row))?;
    Ok(Plan { parts, row, others, batch, outcomes, repaired })
}

struct Planner<'a> {
    files: &'a PackFiles,
    txn: Txn<'a>,
    row: PackRow,
    begin: u64,
    parts: Vec<Bytes>,
    repaired: Vec<Hash>,
}

impl Planner<'_> {
    fn add(&mut self, content: &Content) -> io::Result<Result<Option<Stored>, Refusal>> {
        let mut stored = None;
        if let Some(Closing::Instance(commit)) = &content.closing {
            let classified = classify(&self.txn, self.files, commit)?;
            stored = Some(classified.stored);
            if classified.known && !content.is_anew && self.has_chunks_of(classified.stored.manifest())? {
                return Ok(Ok(stored));
            }
            if let Some(Stored::Duplicate { manifest }) = &mut stored {
                // Something of it was lost: it is listed anew, under the manifest that came.
                *manifest = commit.manifest;
            }
        }
        let chunks = content.chunks.iter().map(|chunk| (Kind::Chunk, chunk));
        let manifests = content.manifests.iter().map(|chunk| (Kind::Manifest, chunk));
        for (kind, piece) in chunks.chain(manifests) {
            if !self.is_here(piece.hash())? {
                self.add_piece(kind, piece.hash(), piece.bytes())?;
            }
        }
        match &content.closing {
            None => {}
            Some(Closing::Instance(commit)) => {
                if !self.is_here(commit.manifest)? {
                    return Ok(Err(Refusal::ManifestAbsent));
                }
                let sequence = self.txn.next_sequence()?;
                self.add_commit(commit, sequence)?;
            }
            Some(Closing::Hold(hold)) => {
                let sequence = self.txn.next_sequence()?;
                let payload = record::encode(sequence, hold).map_err(io::Error::other)?;
                let place = self.append(Kind::Hold, Hash::of(&payload), payload.into())?;
                apply_hold(&mut self.txn, hold, sequence, place)?;
            }
        }
        for moved in &content.moves {
            self.add_move(moved)?;
        }
        Ok(Ok(stored))
    }

    fn add_commit(&mut self, commit: &InstanceCommit, sequence: u64) -> io::Result<()> {
        let payload = record::encode(sequence, commit).map_err(io::Error::other)?;
        let place = self.append(Kind::InstanceCommit, Hash::of(&payload), payload.into())?;
        apply_commit(&mut self.txn, commit, sequence, place)
    }

    /// Writes a record anew if its row still points at where it was read.
    fn add_move(&mut self, moved: &Move) -> io::Result<()> {
        match &moved.what {
            Moved::Piece { kind, chunk } => {
                let row = self.txn.chunk(chunk.hash())?;
                if row.is_some_and(|row| row.place() == moved.from && !row.bad) {
                    self.add_piece(*kind, chunk.hash(), chunk.bytes())?;
                }
                Ok(())
            }
            Moved::Commit(sequence, commit) => {
                let first = first(&self.txn, &commit.sop_instance)?;
                let second = self.txn.get(&key::conflict(&commit.sop_instance, commit.dataset_hash))?;
                let rows: [Option<InstanceRow>; 2] = [first, second];
                if rows.iter().flatten().any(|row| row.place == moved.from) {
                    self.add_commit(commit, *sequence)?;
                }
                Ok(())
            }
        }
    }

    /// Whether all that a listed manifest refers to is stored. It may be in another form than what came: sealed
    /// under another key, or not coded.
    fn has_chunks_of(&self, manifest: Hash) -> io::Result<bool> {
        let Some(row) = self.txn.get::<EdgesRow>(&key::edges(manifest))? else { return Ok(false) };
        for chunk in row.targets() {
            if !self.is_here(*chunk)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether the piece is stored, or planned within this group.
    fn is_here(&self, hash: Hash) -> io::Result<bool> {
        let Some(row) = self.txn.chunk(hash)? else { return Ok(false) };
        let planned = row.pack == self.row.id && row.offset >= self.begin;
        Ok(!row.bad && (planned || row.is_readable(self.files)))
    }

    fn add_piece(&mut self, kind: Kind, hash: Hash, bytes: &Bytes) -> io::Result<()> {
        let Place { pack, offset, len } = self.append(kind, hash, bytes.clone())?;
        if self.txn.list(hash, &ChunkRow { pack, offset, len, bad: false })? {
            self.repaired.push(hash);
        }
        if kind == Kind::Manifest {
            link(&mut self.txn, hash, bytes)?;
        }
        Ok(())
    }

    /// Plans a record behind what is planned; returns where it will lie.
    fn append(&mut self, kind: Kind, hash: Hash, payload: Bytes) -> io::Result<Place> {
        let offset = self.row.complete;
        let len = u32::try_from(payload.len()).map_err(io::Error::other)?;
        let header = RecordHeader { kind, synced_before: self.begin, hash, len };
        self.parts.push(Bytes::copy_from_slice(&header.encode(self.row.salt, offset)));
        self.parts.push(payload);
        self.row.complete += header.record_len();
        Ok(Place { pack: self.row.id, offset, len })
    }
}
