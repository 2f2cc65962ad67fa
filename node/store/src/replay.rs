//! Opening: completing the index from the packs, cutting a torn tail, reporting damage.
//!
//! A pack's bytes below `synced before` (the greatest offset that the index or any record's header
//! vouches for) were durable: whatever is wrong there is rot, reported and never cut. What lies
//! behind, in the last pack of each day only, was at most one group in flight: it counts up to its first
//! flaw, and the rest is cut off. The intact part of it is written once more before it is trusted: after a
//! failed fsync the page cache may show bytes that the medium never got.
//!
//! What an intent says is dead is neither listed nor missed, whatever its bytes look like by now. Records of
//! several packs come in any order: the rules of the library go by their numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use maillage_host::{DiskFile, offload};

use crate::error::OpenError;
use crate::hash::Hash;
use crate::index::{ChunkRow, HeldRow, Index, Mark, PackRow, Place, Txn, key};
use crate::library::{HoldRecord, InstanceCommit, apply_commit, apply_hold, link, record};
use crate::pack::{
    HEADER_BYTES, HEADER_LEN, HeaderError, Kind, PackFiles, PackHeader, PackId, RECORD_HEADER_BYTES, RECORD_HEADER_LEN,
    RecordHeader, Walk, Walked, claimed_salt,
};
use crate::purge::{self, DeadPlaces, Intents, remove_dropped};
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
    pub(crate) tails: Vec<Tail>,
    /// The number of the next new pack.
    pub(crate) next_number: u64,
}

/// Brings index and packs together.
pub(crate) async fn replay(
    files: &Arc<PackFiles>,
    index: &Arc<Index>,
    mark: &Mark,
    intents: &Intents,
) -> Result<Replayed, OpenError> {
    let reader = Arc::clone(index);
    let mut rows = offload(move || reader.pack_rows()).await.map_err(OpenError::Index)?;
    finish_dropping(files, index, mark, intents, &mut rows).await.map_err(OpenError::Directory)?;
    let names = files.disk().list(files.directory()).await.map_err(OpenError::Directory)?;
    let mut packs: Vec<PackId> = names.iter().filter_map(|name| PackId::parse(name)).collect();
    packs.sort_unstable();
    let dead = intents.dead_places();
    // A pack that is missing may come back, under its own name.
    let waited_for = dead.last_key_value().map(|((id, _), _)| *id);
    let newest = packs.last().copied().max(rows.keys().next_back().copied()).max(waited_for);
    let is_missing = |row: &&PackRow| !row.is_spent() && packs.binary_search(&row.id).is_err();
    let mut replayed = Replayed {
        recovery: Recovery {
            missing: rows.values().filter(is_missing).map(|row| row.id).collect(),
            ..Recovery::default()
        },
        tails: Vec::new(),
        next_number: newest.map_or(1, |id| id.number.saturating_add(1)),
    };
    let last = last_of_days(files, &packs, &rows).await?;
    let nothing = BTreeMap::new();
    for &id in &packs {
        let is_last = last.contains(&id);
        let dead = PackDead { all: &dead, of: &nothing };
        let mut pack = PackReplay { files, index, id, is_last, dead, recovery: &mut replayed.recovery };
        let tail = pack.run(rows.get(&id)).await;
        replayed.tails.extend(tail.map_err(|error| match error {
            PackError::Version => OpenError::Version { pack: id.to_string() },
            PackError::Io(error) => OpenError::Pack { pack: id.to_string(), error },
        })?);
    }
    unhold_damaged(index, &replayed.recovery).await.map_err(OpenError::Index)?;
    forget_dead(index, intents, &mut replayed.tails).await.map_err(OpenError::Index)?;
    Ok(replayed)
}

/// Removes packs that were being removed. Behind it the index on the disk knows that they are gone: their numbers are
/// free, and an index of before would say of the next pack that it was being removed.
async fn finish_dropping(
    files: &PackFiles,
    index: &Arc<Index>,
    mark: &Mark,
    intents: &Intents,
    rows: &mut BTreeMap<PackId, PackRow>,
) -> io::Result<()> {
    let dropped: Vec<PackRow> = rows.values().filter(|row| row.dropped).copied().collect();
    if dropped.is_empty() {
        return Ok(());
    }
    for row in dropped {
        remove_dropped(files, index, intents, row).await?;
        rows.remove(&row.id);
    }
    mark.persist(index).await
}

/// The packs that may still have been written to: the last of each day, and the last of all.
async fn last_of_days(
    files: &PackFiles,
    packs: &[PackId],
    rows: &BTreeMap<PackId, PackRow>,
) -> Result<BTreeSet<PackId>, OpenError> {
    let mut by_day = BTreeMap::new();
    for &id in packs {
        let day = match rows.get(&id) {
            Some(row) => Some(row.day),
            None => {
                let read = async {
                    let file = files.disk().open(&files.path(id)).await?;
                    file.read_at(0, HEADER_LEN).await
                };
                let block = read.await.map_err(|error| OpenError::Pack { pack: id.to_string(), error })?;
                PackHeader::decode(&block).ok().map(|header| header.day)
            }
        };
        if let Some(day) = day {
            by_day.insert(day, id);
        }
    }
    Ok(by_day.into_values().chain(packs.last().copied()).collect())
}

/// Takes what intents say is dead out of an index that was behind them.
async fn forget_dead(index: &Arc<Index>, intents: &Intents, tails: &mut [Tail]) -> io::Result<()> {
    for (_, intent) in intents.pending() {
        let index = Arc::clone(index);
        let rows = offload(move || {
            let mut txn = index.txn();
            purge::apply(&mut txn, &intent)?;
            let (batch, rows) = txn.into_batch(None)?;
            index.commit(batch)?;
            Ok(rows)
        })
        .await?;
        for row in rows {
            tails.iter_mut().filter(|tail| tail.row.id == row.id).for_each(|tail| tail.row = row);
        }
    }
    Ok(())
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
        for row in index.rows::<HeldRow>(key::HELD, None, usize::MAX)? {
            if row.held && row.packs.iter().any(|pack| damaged.contains(pack)) {
                txn.put(key::held(row.manifest), &HeldRow { held: false, ..row })?;
            }
        }
        index.commit(txn.into_batch(None)?.0)
    })
    .await
}

/// What is dead in the pack being replayed, once its secret is known.
struct PackDead<'a> {
    all: &'a DeadPlaces,
    of: &'a BTreeMap<u64, u32>,
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
    Chunk(Hash, ChunkRow),
    /// With its bytes, which say what it refers to.
    Manifest(Hash, ChunkRow, Bytes),
    Commit(u64, InstanceCommit, Place),
    Hold(u64, HoldRecord, Place),
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
    dead: PackDead<'a>,
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
        if let Some(of) = self.dead.all.get(&(self.id, start.salt)) {
            self.dead.of = of;
        }
        let walk = Walk::run(&file, start.complete, file_len, start.salt).await?;
        let is_sealed = walk.records.last().is_some_and(|last| last.header.kind == Kind::Seal);
        // While the store is open, what this process wrote is known to be durable, whatever the index is.
        let known = self.files.readable_end(self.id);
        let unproven = if self.is_last { walk.synced_before.max(start.complete).max(known) } else { u64::MAX };
        let judged = self.judge(&file, file_len, &walk, start.complete, unproven).await?;
        if let Some(offset) = judged.cut {
            let bytes = walk.end.max(offset) - offset;
            self.recovery.torn = Some(TornTail { pack: self.id, offset, bytes });
            file.set_len(offset).await?;
            file.sync().await?;
        }
        if self.is_last && judged.complete < known {
            self.damaged(judged.complete, known - judged.complete);
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
        match PackHeader::decode(&block) {
            Ok(header) if header.id == self.id => {
                return Ok(Some((
                    row.copied().unwrap_or_else(|| PackRow::new(self.id, header.day, header.salt)),
                    true,
                )));
            }
            Ok(_) | Err(HeaderError::Damaged) => {}
            Err(HeaderError::Version) => return Err(PackError::Version),
        }
        let first = file.read_at(HEADER_BYTES, RECORD_HEADER_LEN).await?;
        let claimed = claimed_salt(&first).filter(|salt| RecordHeader::decode(&first, *salt, HEADER_BYTES).is_some());
        if let Some(known) = row.copied().or_else(|| claimed.map(|salt| PackRow::new(self.id, 0, salt))) {
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
                let (at, bytes) = self.without_dead(at, bytes);
                if bytes == 0 {
                    continue;
                }
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
            let says_nothing = matches!(record.header.kind, Kind::Seal | Kind::Void | Kind::Landed);
            if says_nothing || self.dead.of.contains_key(&record.offset) {
                judged.complete = record.end().min(file_len);
                continue;
            }
            let entry = self.read_entry(file, file_len, record, is_proven).await?;
            if entry.is_none() {
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

    /// A stretch without intact headers, less the dead records at its beginning: those may have been overwritten
    /// in part.
    fn without_dead(&self, mut at: u64, mut bytes: u64) -> (u64, u64) {
        while let Some(len) = self.dead.of.get(&at).filter(|_| bytes > 0) {
            let record = (RECORD_HEADER_BYTES + u64::from(*len)).min(bytes);
            (at, bytes) = (at + record, bytes - record);
        }
        (at, bytes)
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
        let mut payload = Bytes::new();
        if !is_proven || header.kind != Kind::Chunk {
            payload = file.read_at(offset + RECORD_HEADER_BYTES, header.len as usize).await?;
            if Hash::of(&payload) != header.hash {
                return Ok(None);
            }
        }
        let row = ChunkRow { pack: self.id, offset, len: header.len, bad: false };
        let place = row.place();
        Ok(match header.kind {
            Kind::Chunk => Some(Entry::Chunk(header.hash, row)),
            Kind::Manifest => Some(Entry::Manifest(header.hash, row, payload)),
            Kind::InstanceCommit => {
                record::decode(&payload).map(|(number, commit)| Entry::Commit(number, commit, place))
            }
            Kind::Hold => record::decode(&payload).map(|(number, hold)| Entry::Hold(number, hold, place)),
            Kind::Seal | Kind::Void | Kind::Landed => None,
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
                    apply_entry(&mut txn, entry)?;
                }
                index.commit(txn.into_batch(Some(&mut row))?.0)?;
            }
            row = PackRow { complete, sealed, ..row };
            index.commit(index.txn().into_batch(Some(&mut row))?.0)?;
            Ok(row)
        })
        .await
    }

    fn damaged(&mut self, offset: u64, bytes: u64) {
        self.recovery.damage.push(Damage { pack: self.id, offset, bytes });
    }
}

fn apply_entry(txn: &mut Txn<'_>, entry: &Entry) -> io::Result<()> {
    match entry {
        Entry::Chunk(hash, row) => txn.list(*hash, row).map(drop),
        Entry::Manifest(hash, row, bytes) => {
            txn.list(*hash, row)?;
            link(txn, *hash, bytes)
        }
        Entry::Commit(number, commit, place) => apply_commit(txn, commit, *number, *place),
        // The record of a hold may outlast what it was about.
        Entry::Hold(_, hold, _) if txn.chunk(hold.manifest)?.is_none() => Ok(()),
        Entry::Hold(number, hold, place) => apply_hold(txn, hold, *number, *place),
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
