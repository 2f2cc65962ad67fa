//! The pack being written: room ahead of the records, appending, sealing.
//!
//! While nothing else is to do, room is made by writing zeroes and syncing them, so that the fsync
//! behind the next acknowledgements finds the file's length and blocks settled. Under load the file
//! grows with the records instead: zeroing would write every byte twice, and an fsync waits for all
//! of its file's dirty pages, the zeroes too.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use maillage_host::{DiskFile, offload};
use tokio::time::Instant;

use super::Shared;
use super::plan::Target;
use crate::hash::Hash;
use crate::index::{PackRow, key};
use crate::pack::{HEADER_BYTES, Kind, PackHeader, PackId, RECORD_HEADER_BYTES, RecordHeader};
use crate::replay::Tail;
use crate::store::is_want_of_room;

/// The seal's payload: how many chunks and manifests the pack holds.
const SEAL_PAYLOAD_BYTES: u32 = 8;
const SEAL_BYTES: u64 = RECORD_HEADER_BYTES + SEAL_PAYLOAD_BYTES as u64;
/// Zeroed at a time: a put that comes meanwhile waits for no more than this, some 2 ms.
const ZEROES: &[u8] = &[0; 1 << 20];

/// Why there is no room, or no pack.
#[derive(Debug)]
pub(crate) enum RoomError {
    /// Nothing was written that counts.
    Full { free: u64 },
    /// Doing what failed, and how.
    Io(&'static str, io::Error),
    /// The pack is as it should be; the index was not told.
    Index(&'static str, io::Error),
}

pub(crate) struct OpenPack {
    file: DiskFile,
    /// As the index knows it; `complete` is where the next record goes.
    row: PackRow,
    /// Up to here the file is zeroed, allocated and synced.
    ready_end: u64,
    /// Up to here the volume's free space was asked for.
    asked_end: u64,
    written_at: Instant,
}

impl OpenPack {
    /// Goes on with a pack found at opening.
    pub(crate) fn resume(tail: Tail) -> Self {
        let Tail { file, row } = tail;
        Self { file, row, ready_end: row.complete, asked_end: row.complete, written_at: Instant::now() }
    }

    /// Makes a new pack: file and header synced, then the directory.
    pub(crate) async fn create(shared: &Shared, number: u64, day: u64) -> Result<Self, RoomError> {
        check_room(shared, HEADER_BYTES + shared.config.extent_bytes).await?;
        let id = PackId { number, generation: 0 };
        let header = PackHeader { id, day, created_at: shared.clock.now(), salt: rand::random() };
        let path = shared.files.path(id);
        let written = async {
            let file = shared.files.disk().create(&path).await?;
            file.write_at(0, vec![header.encode()], true).await?;
            shared.files.disk().sync_dir(shared.files.directory()).await?;
            Ok(file)
        };
        let file = match written.await {
            Ok(file) => file,
            Err(error) => {
                let error = room_error(shared, "make a pack", error).await;
                // The name is not used again; a file that stays is removed at the next opening.
                if let Err(error) = shared.files.disk().remove(&path).await {
                    tracing::warn!(%error, pack = %id, "an unborn pack was not removed");
                }
                return Err(error);
            }
        };
        shared.files.set_readable(id, HEADER_BYTES);
        let row = PackRow::new(id, day, header.salt);
        let asked_end = HEADER_BYTES + shared.config.extent_bytes;
        Ok(Self { file, row, ready_end: HEADER_BYTES, asked_end, written_at: Instant::now() })
    }

    /// The day on which the retention of what it holds is expected to end.
    pub(crate) fn day(&self) -> u64 {
        self.row.day
    }

    /// Whether nothing was appended to it for so long.
    pub(crate) fn is_idle_for(&self, time: Duration) -> bool {
        self.written_at.elapsed() >= time
    }

    /// Takes over counts that a change elsewhere gave this pack's row.
    pub(crate) fn recount(&mut self, rows: &[PackRow]) {
        if let Some(row) = rows.iter().find(|row| row.id == self.row.id) {
            let PackRow { live, chunks, bytes, .. } = *row;
            self.row = PackRow { live, chunks, bytes, ..self.row };
        }
    }

    /// Whether it holds records and the index points at none of them any more.
    pub(crate) fn is_spent(&self) -> bool {
        self.row.live == 0 && self.row.complete > HEADER_BYTES
    }

    /// Whether `bytes` more would take a pack that is not empty beyond `limit`.
    pub(crate) fn is_filled_by(&self, bytes: u64, limit: u64) -> bool {
        self.row.complete > HEADER_BYTES && self.row.complete + bytes + SEAL_BYTES > limit
    }

    pub(crate) fn target(&self) -> Target {
        Target { row: self.row }
    }

    /// Whether less than an extent of settled room is left, in a pack that will take more.
    pub(crate) fn wants_room(&self, shared: &Shared) -> bool {
        let wanted = (self.row.complete + shared.config.extent_bytes).min(shared.config.pack_bytes);
        self.ready_end < wanted
    }

    /// Settles a little more room ahead.
    pub(crate) async fn make_room(&mut self, shared: &Shared) -> Result<(), RoomError> {
        check_room(shared, ZEROES.len() as u64).await?;
        let from = self.file_end();
        match self.file.write_at(from, vec![Bytes::from_static(ZEROES)], true).await {
            Ok(()) => {
                self.ready_end = from + ZEROES.len() as u64;
                // What grows behind it is asked for anew, or the reserve would be counted twice.
                self.asked_end = self.ready_end;
                Ok(())
            }
            // Zeroes behind the end count for nothing, however many of them were written.
            Err(error) => Err(room_error(shared, "make room in a pack", error).await),
        }
    }

    /// Appends a planned group, durably.
    pub(crate) async fn write(&mut self, shared: &Shared, parts: Vec<Bytes>, row: PackRow) -> Result<(), RoomError> {
        self.append(shared, parts, row.complete).await?;
        self.row = row;
        self.written_at = Instant::now();
        shared.files.set_readable(row.id, row.complete);
        Ok(())
    }

    /// Writes the seal and gives back the room behind it.
    pub(crate) async fn seal(&mut self, shared: &Shared) -> Result<(), RoomError> {
        let payload = Bytes::copy_from_slice(&self.row.chunks.to_le_bytes());
        let at = self.row.complete;
        let header =
            RecordHeader { kind: Kind::Seal, synced_before: at, hash: Hash::of(&payload), len: SEAL_PAYLOAD_BYTES };
        let parts = vec![Bytes::copy_from_slice(&header.encode(self.row.salt, at)), payload];
        let row = PackRow { complete: at + header.record_len(), sealed: true, ..self.row };
        self.append(shared, parts, row.complete).await?;
        let trimmed = async {
            self.file.set_len(row.complete).await?;
            self.file.sync().await
        };
        trimmed.await.map_err(|error| RoomError::Io("trim a sealed pack", error))?;
        self.row = row;
        shared.files.set_readable(row.id, row.complete);
        let index = shared.index();
        let indexed = offload(move || {
            let mut txn = index.txn();
            txn.put(key::pack(row.id), &row)?;
            index.commit(txn.into_batch(None)?.0)
        });
        indexed.await.map_err(|error| RoomError::Index("index a sealed pack", error))
    }

    /// Writes and syncs `parts` from `complete` up to `end`. Want of room leaves the file as it was.
    async fn append(&mut self, shared: &Shared, parts: Vec<Bytes>, end: u64) -> Result<(), RoomError> {
        let begin = self.row.complete;
        let fatal = |error| RoomError::Io("write", error);
        debug_assert_eq!(begin + parts.iter().map(|part| part.len() as u64).sum::<u64>(), end, "parts end at the end");
        if end <= self.ready_end {
            return self.file.write_at(begin, parts, true).await.map_err(fatal);
        }
        if end > self.asked_end {
            // Counted from where the file ends: what was asked for earlier and not yet written is part of it.
            let bytes = (end - self.file_end()).max(shared.config.extent_bytes);
            check_room(shared, bytes).await?;
            self.asked_end = self.file_end() + bytes;
        }
        // Apart, since only the write may be taken back: after a failed sync nothing is known.
        if let Err(error) = self.file.write_at(begin, parts, false).await {
            let error = room_error(shared, "write", error).await;
            if matches!(error, RoomError::Full { .. }) {
                self.take_back().await.map_err(|error| RoomError::Io("take back a write", error))?;
            }
            return Err(error);
        }
        self.file.sync().await.map_err(fatal)?;
        self.ready_end = end;
        Ok(())
    }

    fn file_end(&self) -> u64 {
        self.ready_end.max(self.row.complete)
    }

    /// Cuts off what a write left behind that had no room.
    async fn take_back(&mut self) -> io::Result<()> {
        self.file.set_len(self.row.complete).await?;
        self.file.sync().await?;
        self.ready_end = self.row.complete;
        self.asked_end = self.row.complete;
        Ok(())
    }
}

/// Whether `bytes` may be taken without touching the reserve.
async fn check_room(shared: &Shared, bytes: u64) -> Result<(), RoomError> {
    let space = shared.files.disk().space().await.map_err(|error| RoomError::Io("ask for free space", error))?;
    let is_enough = space.free >= shared.config.reserve_bytes.saturating_add(bytes);
    if is_enough { Ok(()) } else { Err(RoomError::Full { free: space.free }) }
}

/// An error while making room: want of it, whatever else is fatal.
pub(super) async fn room_error(shared: &Shared, what: &'static str, error: io::Error) -> RoomError {
    if !is_want_of_room(&error) {
        return RoomError::Io(what, error);
    }
    let space = shared.files.disk().space().await;
    RoomError::Full { free: space.map_or(0, |space| space.free) }
}
