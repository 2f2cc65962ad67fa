//! The index: where each chunk lies and what the library lists, in the embedded engine.
//!
//! Nothing here is the truth. Each batch also records up to which offset of which pack the index is
//! complete, so that after a crash exactly what it lacks is replayed, however far it fell behind. An index that is
//! damaged, lacks a batch between others, or is behind its [`Mark`] is made anew from the packs.
//! All calls block for the engine and belong inside `offload`.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use maillage_host::engine::{Reader as _, scan_prefix, scan_within};
use maillage_host::{Batch, Engine as _, EngineHome};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::hash::Hash;
use crate::pack::{PackFiles, PackId};

mod batches;
pub(crate) mod key;
mod mark;
mod places;
mod rows;
mod watched;

pub(crate) use mark::Mark;
pub(crate) use places::InPack;
pub(crate) use rows::{ChunkRow, EdgesRow, HeldRow, InstanceRow, PackRow, Place, StudyRow};
use watched::Watched;

/// Rises when keys or rows change; an index of another version is made anew from the packs.
const FORMAT: &[u8] = &[3];

/// An open index.
#[derive(Debug)]
pub(crate) struct Index {
    engine: Watched,
    /// The number of the last batch. Held over read-check-write of a chunk's row, which readers (quarantine) and the
    /// writer do.
    last_batch: Mutex<u64>,
}

/// Reads that see their own writes, and the batch of those writes.
pub(crate) struct Txn<'a> {
    engine: &'a Watched,
    changes: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    /// What the changes do to the counts of packs.
    tallies: BTreeMap<PackId, Tally>,
}

/// Records that rows began (positive) or ceased to point at in one pack.
#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    live: i64,
    chunks: i64,
    bytes: i64,
}

impl Tally {
    fn apply(self, row: &mut PackRow) {
        let add = |count: &mut u64, change: i64| *count = count.saturating_add_signed(change);
        add(&mut row.live, self.live);
        add(&mut row.chunks, self.chunks);
        add(&mut row.bytes, self.bytes);
    }
}

impl Index {
    /// Opens the index, which may be empty: new, or all its batches behind. `InvalidData` when it is
    /// of another format, lacks a batch or is behind `batch`.
    pub(crate) fn open(home: &dyn EngineHome, batch: u64) -> io::Result<Self> {
        let invalid = |why| io::Error::new(io::ErrorKind::InvalidData, why);
        let engine = Watched::new(home.open()?);
        let format = engine.get(key::FORMAT)?;
        let is_empty = format.is_none() && scan_prefix(&engine, &[], 1)?.is_empty();
        let index = Self { engine, last_batch: Mutex::default() };
        if is_empty {
            index.mark_format()?;
        } else if format.as_deref() != Some(FORMAT) {
            return Err(invalid("the index has another format"));
        } else {
            let (numbers, lasts) = (index.rows(key::BATCH, None, usize::MAX)?, index.txn().keys(key::LAST)?);
            *index.turn() = batches::last(&numbers, &lasts).ok_or_else(|| invalid("the index lacks a batch"))?;
        }
        if index.last_batch() < batch {
            return Err(invalid("the index is behind what it was"));
        }
        index.pack_rows()?;
        Ok(index)
    }

    /// An empty index in place of whatever there is.
    pub(crate) fn rebuild(home: &dyn EngineHome) -> io::Result<Self> {
        let engine = Watched::new(home.replace(&mut |_| Ok(()))?);
        let index = Self { engine, last_batch: Mutex::default() };
        index.mark_format()?;
        Ok(index)
    }

    fn mark_format(&self) -> io::Result<()> {
        let mut batch = Batch::default();
        batch.put(key::FORMAT, FORMAT);
        self.commit(batch)
    }

    fn turn(&self) -> MutexGuard<'_, u64> {
        self.last_batch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of the last batch.
    pub(crate) fn last_batch(&self) -> u64 {
        *self.turn()
    }

    /// Whether the engine found its files damaged.
    pub(crate) fn is_damaged(&self) -> bool {
        self.engine.is_damaged()
    }

    pub(crate) fn txn(&self) -> Txn<'_> {
        Txn { engine: &self.engine, changes: BTreeMap::new(), tallies: BTreeMap::new() }
    }

    /// Applies the changes of a transaction at once. Durable after [`Index::persist`].
    pub(crate) fn commit(&self, batch: Batch) -> io::Result<()> {
        self.commit_next(&mut self.turn(), batch)
    }

    fn commit_next(&self, last: &mut u64, mut batch: Batch) -> io::Result<()> {
        batches::number(&mut batch, *last + 1)?;
        self.engine.commit(batch)?;
        *last += 1;
        Ok(())
    }

    pub(crate) fn persist(&self) -> io::Result<()> {
        self.engine.persist()
    }

    /// Marks the chunk bad unless its row has moved on from `seen`. Whether it was marked now.
    pub(crate) fn mark_bad(&self, hash: Hash, seen: &ChunkRow) -> io::Result<bool> {
        let mut last = self.turn();
        let mut txn = self.txn();
        if seen.bad || txn.chunk(hash)?.as_ref() != Some(seen) {
            return Ok(false);
        }
        txn.put(key::chunk(hash), &ChunkRow { bad: true, ..*seen })?;
        txn.put_empty(key::bad(hash));
        self.commit_next(&mut last, txn.into_batch(None)?.0)?;
        Ok(true)
    }

    pub(crate) fn pack_rows(&self) -> io::Result<BTreeMap<PackId, PackRow>> {
        let mut rows = BTreeMap::new();
        for row in self.rows::<PackRow>(key::PACK, None, usize::MAX)? {
            rows.insert(row.id, row);
        }
        Ok(rows)
    }

    /// Addresses of quarantined chunks and manifests.
    pub(crate) fn bad(&self, limit: usize) -> io::Result<Vec<Hash>> {
        let pairs = scan_prefix(&self.engine, key::BAD, limit)?;
        Ok(pairs.iter().filter_map(|(key, _)| key[key::BAD.len()..].try_into().ok().map(Hash)).collect())
    }

    /// Rows whose key begins with `prefix` and is greater than `after`, in key order.
    pub(crate) fn rows<T: DeserializeOwned>(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> io::Result<Vec<T>> {
        let mut rows = Vec::new();
        let mut failed = None;
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        scan_within(&self.engine, prefix, from, &mut |_, value| {
            if rows.len() >= limit {
                return false;
            }
            match decode(value) {
                Ok(row) => rows.push(row),
                Err(error) => failed = Some(error),
            }
            failed.is_none()
        })?;
        failed.map_or(Ok(rows), Err)
    }
}

impl Txn<'_> {
    pub(crate) fn get<T: DeserializeOwned>(&self, key: &[u8]) -> io::Result<Option<T>> {
        match self.changes.get(key) {
            Some(changed) => changed.as_deref().map(decode).transpose(),
            None => self.engine.get(key)?.as_deref().map(decode).transpose(),
        }
    }

    pub(crate) fn put<T: Serialize>(&mut self, key: Vec<u8>, row: &T) -> io::Result<()> {
        let row = postcard::to_stdvec(row).map_err(io::Error::other)?;
        self.changes.insert(key, Some(row));
        Ok(())
    }

    pub(crate) fn put_empty(&mut self, key: Vec<u8>) {
        self.changes.insert(key, Some(Vec::new()));
    }

    pub(crate) fn remove(&mut self, key: Vec<u8>) {
        self.changes.insert(key, None);
    }

    pub(crate) fn chunk(&self, hash: Hash) -> io::Result<Option<ChunkRow>> {
        self.get(&key::chunk(hash))
    }

    /// Whether the chunk is here and, as far as is known, whole.
    pub(crate) fn is_live(&self, files: &PackFiles, hash: Hash) -> io::Result<bool> {
        Ok(self.chunk(hash)?.is_some_and(|row| row.is_live(files)))
    }

    /// Lists a chunk or manifest at a new place. Whether it replaces one that was quarantined.
    pub(crate) fn list(&mut self, hash: Hash, row: &ChunkRow) -> io::Result<bool> {
        let before = self.chunk(hash)?;
        if before.is_some_and(|before| before.place() == row.place()) {
            return Ok(false);
        }
        self.put(key::chunk(hash), row)?;
        self.count(row.pack, 1, Some(row.len));
        let Some(before) = before else { return Ok(false) };
        self.count(before.pack, -1, Some(before.len));
        self.supersede(hash, before.place())?;
        if before.bad {
            self.remove(key::bad(hash));
        }
        Ok(before.bad)
    }

    /// A row points (1) or points no more (-1) at a record of `pack`; `piece` is the length of a chunk or manifest.
    pub(crate) fn count(&mut self, pack: PackId, change: i64, piece: Option<u32>) {
        let tally = self.tallies.entry(pack).or_default();
        tally.live += change;
        if let Some(len) = piece {
            tally.chunks += change;
            tally.bytes += change * i64::from(len);
        }
    }

    /// Remembers that a record of the same content lies at `place` too: whoever purges purges it there as well.
    pub(crate) fn supersede(&mut self, of: Hash, place: Place) -> io::Result<()> {
        self.put(key::superseded(of, place), &place)
    }

    /// The places that were superseded.
    pub(crate) fn superseded(&self, of: Hash) -> io::Result<Vec<Place>> {
        let keys = self.keys(&key::superseded_of(of))?;
        keys.iter().filter_map(|key| self.get(key).transpose()).collect()
    }

    /// All keys that begin with `prefix`, in order.
    pub(crate) fn keys(&self, prefix: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        let stored = scan_prefix(self.engine, prefix, usize::MAX)?;
        let mut keys: BTreeSet<Vec<u8>> = stored.into_iter().map(|(key, _)| key).collect();
        let changed = self.changes.range(prefix.to_vec()..).take_while(|(key, _)| key.starts_with(prefix));
        for (key, value) in changed {
            if value.is_some() {
                keys.insert(key.clone());
            } else {
                keys.remove(key);
            }
        }
        Ok(keys.into_iter().collect())
    }

    /// A number for the next commit or hold.
    pub(crate) fn next_sequence(&mut self) -> io::Result<u64> {
        let next = self.get::<u64>(key::SEQUENCE)?.unwrap_or(0).saturating_add(1);
        self.put(key::SEQUENCE.to_vec(), &next)?;
        Ok(next)
    }

    /// Notes that a number was used.
    pub(crate) fn saw_sequence(&mut self, sequence: u64) -> io::Result<()> {
        if self.get::<u64>(key::SEQUENCE)?.unwrap_or(0) < sequence {
            self.put(key::SEQUENCE.to_vec(), &sequence)?;
        }
        Ok(())
    }

    /// The batch, with the counts of all packs that changed. `current` is the row of the pack that is being
    /// written, newer than the index's; the rows of the others are given back.
    pub(crate) fn into_batch(mut self, current: Option<&mut PackRow>) -> io::Result<(Batch, Vec<PackRow>)> {
        let mut others = Vec::new();
        let mut current = current;
        for (pack, tally) in std::mem::take(&mut self.tallies) {
            if let Some(row) = current.as_deref_mut().filter(|row| row.id == pack) {
                tally.apply(row);
            } else if let Some(mut row) = self.get::<PackRow>(&key::pack(pack))? {
                tally.apply(&mut row);
                self.put(key::pack(pack), &row)?;
                others.push(row);
            }
        }
        if let Some(row) = current {
            self.put(key::pack(row.id), row)?;
        }
        Ok((Batch(self.changes.into_iter().collect()), others))
    }
}

fn decode<T: DeserializeOwned>(row: &[u8]) -> io::Result<T> {
    postcard::from_bytes(row)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "a row of the index does not decode"))
}
