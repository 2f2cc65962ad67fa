//! Overwriting what was purged, and removing packs in which nothing is left.

use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use maillage_host::{DiskFile, offload};

use super::{DeadPack, Intent, Intents};
use crate::error::StoreError;
use crate::hash::Hash;
use crate::index::{Index, PackRow, key};
use crate::pack::{Kind, PackFiles, RECORD_HEADER_BYTES, RECORD_HEADER_LEN, RecordHeader};
use crate::store::Store;
use crate::writer::{Request, Shared};

/// Overwritten between two syncs. After each the disk is left to others for as long as it took, so that a purge
/// has at most half of it.
const SYNC_EVERY_BYTES: u64 = 32 << 20;

impl Store {
    /// Carries out what was written down: after it no byte of it is in any file of the store.
    ///
    /// # Errors
    /// `Failed` when a write or sync failed; the store then writes nothing any more. `Index` when that was found
    /// damaged: it is made anew, and this may be asked for again.
    pub(crate) async fn carry_out_purges(&self) -> Result<(), StoreError> {
        let shared = Arc::clone(&self.shared);
        let _turn = shared.intents.turn.lock().await;
        match carry_out(&shared).await {
            Ok(()) => Ok(()),
            Err(Trouble::Index(error)) => {
                shared.damage.notify_one();
                Err(StoreError::Index(Arc::new(error)))
            }
            Err(Trouble::Disk(error)) => {
                let error = format!("purge: {error}");
                let _ = self.queue.send(Request::Fail(error.clone())).await;
                Err(StoreError::Failed(error.into()))
            }
        }
    }
}

/// Why something was not carried out.
enum Trouble {
    /// The index is damaged.
    Index(io::Error),
    /// Something else failed, a sync perhaps.
    Disk(io::Error),
}

impl Trouble {
    /// … which used `index`, and synced nothing that counts.
    fn with(index: &Index, error: io::Error) -> Self {
        if index.is_damaged() { Self::Index(error) } else { Self::Disk(error) }
    }
}

/// The index stays the same over it: none takes its place without the turn.
async fn carry_out(shared: &Arc<Shared>) -> Result<(), Trouble> {
    let (index, pending) = (shared.index(), shared.intents.pending());
    if !pending.is_empty() {
        // Before the first byte goes, or an older index would point at zeroes.
        shared.mark.persist(&index).await.map_err(|error| Trouble::with(&index, error))?;
    }
    for (number, intent) in pending {
        let left = overwrite(shared, &index, &intent).await?;
        shared.intents.keep(&shared.files, number, left).await.map_err(Trouble::Disk)?;
    }
    drop_spent(shared, &index).await.map_err(|error| Trouble::with(&index, error))
}

/// Overwrites what is dead, and returns what lies in packs that are not there, or go as a whole.
async fn overwrite(shared: &Shared, index: &Arc<Index>, intent: &Intent) -> Result<Vec<DeadPack>, Trouble> {
    let mut left = Vec::new();
    for pack in &intent.packs {
        let (asked, id) = (Arc::clone(index), pack.id);
        let row = offload(move || asked.txn().get::<PackRow>(&key::pack(id))).await;
        let is_done = match row.map_err(|error| Trouble::with(index, error))? {
            // It only has the same number.
            Some(row) if row.salt != pack.salt => true,
            Some(row) => !row.is_spent() && overwrite_in(shared, &row, pack).await.map_err(Trouble::Disk)?,
            // The index was made anew while the file was not there.
            None => false,
        };
        if !is_done {
            left.push(pack.clone());
        }
    }
    Ok(left)
}

/// Overwrites what is dead in one pack; whether its file is there.
async fn overwrite_in(shared: &Shared, row: &PackRow, pack: &DeadPack) -> io::Result<bool> {
    let file = match shared.files.disk().open(&shared.files.path(pack.id)).await {
        Ok(file) => file,
        // What would be written to it now would be written to a file without a name.
        Err(error) if error.kind() == io::ErrorKind::NotFound && row.is_being_written(&shared.files) => {
            return Err(io::Error::new(error.kind(), format!("pack {}, which is being written, is gone", pack.id)));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    // What lay behind the end of one that was cut short is gone.
    let end = file.len().await?;
    let (mut unsynced, mut since) = (0, tokio::time::Instant::now());
    for record in pack.records.iter().filter(|record| record.offset + RECORD_HEADER_BYTES <= end) {
        unsynced += void(&file, pack.salt, record.offset, record.len, end).await?;
        if unsynced >= SYNC_EVERY_BYTES {
            file.sync().await?;
            tokio::time::sleep(since.elapsed()).await;
            (unsynced, since) = (0, tokio::time::Instant::now());
        }
    }
    file.sync().await?;
    Ok(true)
}

/// Makes one record void; returns the bytes written. A pack that was cut short is not made longer.
async fn void(file: &DiskFile, salt: [u8; 8], offset: u64, len: u32, end: u64) -> io::Result<u64> {
    // What can't be read is overwritten unread.
    let header = file.read_at(offset, RECORD_HEADER_LEN).await.unwrap_or_default();
    let found = RecordHeader::decode(&header, salt, offset);
    if found.is_some_and(|found| found.len != len) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a purged record is not where it was"));
    }
    // A header that does not decode was damaged, or torn by an earlier attempt; all before it was durable then.
    let synced_before = found.map_or(offset, |found| found.synced_before);
    let held = usize::try_from(u64::from(len).min(end - offset - RECORD_HEADER_BYTES)).map_err(io::Error::other)?;
    let zeroes: Bytes = BytesMut::zeroed(held).freeze();
    let header = RecordHeader { kind: Kind::Void, synced_before, hash: Hash([0; 32]), len };
    let written = RECORD_HEADER_BYTES + held as u64;
    file.write_at(offset, vec![Bytes::copy_from_slice(&header.encode(salt, offset)), zeroes], false).await?;
    Ok(written)
}

/// Removes the packs in which nothing is left that the index points at.
async fn drop_spent(shared: &Shared, index: &Arc<Index>) -> io::Result<()> {
    let asked = Arc::clone(index);
    let rows = offload(move || asked.pack_rows()).await?;
    for row in rows.into_values().filter(|row| row.is_spent() && !row.dropped) {
        match shared.files.disk().open(&shared.files.path(row.id)).await {
            // Its row stays: should the file come back, it goes then, and is not taken for a new one.
            Err(error) if error.kind() == io::ErrorKind::NotFound => shared.files.forget(row.id),
            _ => drop_pack(shared, index, row).await?,
        }
    }
    Ok(())
}

/// The row says first that the pack goes, so that nobody takes it for lost.
async fn drop_pack(shared: &Shared, index: &Arc<Index>, row: PackRow) -> io::Result<()> {
    let told = Arc::clone(index);
    offload(move || {
        let mut txn = told.txn();
        txn.put(key::pack(row.id), &PackRow { dropped: true, ..row })?;
        told.commit(txn.into_batch(None)?.0)
    })
    .await?;
    shared.mark.persist(index).await?;
    shared.files.forget(row.id);
    remove_dropped(&shared.files, index, &shared.intents, row).await?;
    tracing::info!(pack = %row.id, day = row.day, "pack removed: nothing in it is kept any more");
    Ok(())
}

/// Removes the file of a pack whose row says that it goes. The row goes last: an intent whose pack has none waits for a
/// file that may come back.
pub(crate) async fn remove_dropped(
    files: &PackFiles,
    index: &Arc<Index>,
    intents: &Intents,
    row: PackRow,
) -> io::Result<()> {
    files.disk().remove(&files.path(row.id)).await?;
    files.disk().sync_dir(files.directory()).await?;
    intents.forget_pack(files, &row).await?;
    let index = Arc::clone(index);
    offload(move || {
        let mut txn = index.txn();
        txn.remove(key::pack(row.id));
        index.commit(txn.into_batch(None)?.0)
    })
    .await
}
