//! The store's verbs that purge, and the packs past their day of which little is left.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::{Publication, PurgeWhat};
use crate::chunk::Chunk;
use crate::error::StoreError;
use crate::hash::Hash;
use crate::index::{EdgesRow, HeldRow, PackRow, key};
use crate::library::{InstanceCommit, record};
use crate::pack::{HEADER_BYTES, Kind, PackId, Walk, Walked};
use crate::store::Store;
use crate::writer::{Content, DAY_MILLIS, Move, Moved, Request};

/// A pack past its day is written anew when less than one part in so many of it is kept: a study under legal
/// hold need not keep the rest of the day's room.
const KEPT_PARTS: u64 = 2;
/// For how many days more what is written anew is expected to stay.
const LONGER_DAYS: u64 = 30;
/// Records moved in one group, bounded in bytes by the writer's own limit.
const MOVES_MAX: usize = 64;

/// What [`Store::reclaim`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reclaimed {
    /// Packs written anew.
    pub packs: u64,
    /// Pieces that nothing referred to.
    pub unreferenced: u64,
}

impl Store {
    /// Purges a publication of a study, the earlier ones of the same origin, and everything that nothing
    /// else here refers to. Returns when no byte of it is in any file of the store. What was not here is no
    /// error; asking again is safe. `own`: this node published it, and the mesh knows no later publication, so
    /// that one which was prepared here keeps nothing of it.
    ///
    /// # Errors
    /// `Full`, `Closed`, `Failed`, `Landed` or `Index`; what was not purged then is by the next call or opening.
    pub async fn purge(&self, publication: &Publication, own: bool) -> Result<(), StoreError> {
        if own {
            self.landing().until_clear_of(&publication.study_uid).await?;
        }
        while self.purge_step(PurgeWhat::Study { publication: publication.clone(), own }).await? {
            self.carry_out_purges().await?;
        }
        self.carry_out_purges().await
    }

    /// Purges those of `hashes` that no manifest here refers to: what a fetch brought for a study that was
    /// purged meanwhile.
    ///
    /// # Errors
    /// As [`Store::purge`].
    pub async fn discard(&self, hashes: Vec<Hash>) -> Result<(), StoreError> {
        self.purge_step(PurgeWhat::Unreferenced(Arc::new(hashes))).await?;
        self.carry_out_purges().await
    }

    /// Drops a publication that is kept here for the time being: not held, and nobody counts on it. What is held,
    /// what was received here, and what another publication refers to stays. Returns when no byte of the rest is in
    /// any file of the store; asking again is safe.
    ///
    /// # Errors
    /// As [`Store::purge`].
    pub async fn evict(&self, study_manifest: Hash) -> Result<(), StoreError> {
        while self.purge_step(PurgeWhat::Kept(study_manifest)).await? {
            self.carry_out_purges().await?;
        }
        self.carry_out_purges().await
    }

    /// Those of the publications that this node holds.
    ///
    /// # Errors
    /// `Index`.
    pub async fn held_among(&self, study_manifests: Vec<Hash>) -> Result<Vec<Hash>, StoreError> {
        self.index(move |index| {
            let txn = index.txn();
            let mut held = Vec::new();
            for manifest in study_manifests {
                if txn.get::<HeldRow>(&key::held(manifest))?.is_some_and(|row| row.held) {
                    held.push(manifest);
                }
            }
            Ok(held)
        })
        .await
    }

    /// Whether this node holds a publication or has held it: until it was released, or something of it was found
    /// damaged. What was dropped or purged since can be known no more.
    ///
    /// # Errors
    /// `Index`.
    pub async fn was_held(&self, study_manifest: Hash) -> Result<bool, StoreError> {
        let key = key::held(study_manifest);
        self.index(move |index| Ok(index.txn().get::<HeldRow>(&key)?.is_some())).await
    }

    /// Bytes that publications take here together: of their manifests, and of all that these refer to as far as it is
    /// here, each piece once.
    ///
    /// # Errors
    /// `Index`.
    pub async fn stored_bytes(&self, study_manifests: Vec<Hash>) -> Result<u64, StoreError> {
        self.index(move |index| {
            let txn = index.txn();
            let targets = |manifest: Hash| {
                let row = txn.get::<EdgesRow>(&key::edges(manifest))?;
                Ok::<_, io::Error>(row.map(|row| row.targets().to_vec()).unwrap_or_default())
            };
            let mut pieces: BTreeSet<Hash> = study_manifests.iter().copied().collect();
            for manifest in study_manifests {
                for instance in targets(manifest)? {
                    if pieces.insert(instance) {
                        pieces.extend(targets(instance)?);
                    }
                }
            }
            let mut bytes = 0;
            for piece in pieces {
                bytes += txn.chunk(piece)?.map_or(0, |row| u64::from(row.len));
            }
            Ok(bytes)
        })
        .await
    }

    /// Removes packs past their day in which nothing is kept, and writes what is kept of others anew when it is
    /// little. Takes as long as it takes, one group at a time. Those that cannot be read stay as they are.
    ///
    /// # Errors
    /// As [`Store::purge`].
    pub async fn reclaim(&self) -> Result<Reclaimed, StoreError> {
        let mut reclaimed = Reclaimed::default();
        // An empty purge has the writer seal the packs past their day.
        self.discard(Vec::new()).await?;
        let today = self.shared.clock.now().0 / DAY_MILLIS;
        let rows = self.index(|index| index.pack_rows()).await?;
        for row in rows.into_values().filter(|row| row.sealed && !row.dropped && row.day < today) {
            if row.live > 0 && row.bytes < row.complete / KEPT_PARTS {
                match self.empty(row, today + LONGER_DAYS).await {
                    Ok(unreferenced) => {
                        reclaimed.unreferenced += unreferenced;
                        reclaimed.packs += 1;
                    }
                    Err(StoreError::Read(error)) => {
                        tracing::warn!(pack = %row.id, %error, "a pack past its day was not written anew");
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        self.carry_out_purges().await?;
        Ok(reclaimed)
    }

    async fn purge_step(&self, what: PurgeWhat) -> Result<bool, StoreError> {
        let (reply, done) = oneshot::channel();
        self.queue.send(Request::Purge(what, reply)).await.map_err(|_| StoreError::Closed)?;
        done.await.map_err(|_| StoreError::Closed)?
    }

    /// Moves all that is kept out of a pack. Returns how many pieces in it nothing referred to.
    async fn empty(&self, row: PackRow, day: u64) -> Result<u64, StoreError> {
        let read = |error: io::Error| StoreError::Read(Arc::new(error));
        let file = self.shared.files.disk().open(&self.shared.files.path(row.id)).await.map_err(read)?;
        let walk = Walk::run(&file, HEADER_BYTES, row.complete, row.salt).await.map_err(read)?;
        let mut unreferenced = Vec::new();
        for records in walk.records.chunks(MOVES_MAX) {
            let mut content = Content { day: Some(day), ..Content::default() };
            for record in records {
                match self.kept(row.id, record).await? {
                    Kept::No => {}
                    Kept::Unreferenced(hash) => unreferenced.push(hash),
                    Kept::Yes(moved) => content.moves.push(moved),
                }
                if content.byte_len() >= self.shared.config.group_bytes {
                    let group = std::mem::replace(&mut content, Content { day: Some(day), ..Content::default() });
                    self.submit(group).await?;
                }
            }
            if !content.moves.is_empty() {
                self.submit(content).await?;
            }
        }
        let count = unreferenced.len() as u64;
        self.discard(unreferenced).await?;
        // Holds say in which packs their studies lie.
        let all = self.index(|index| index.rows::<HeldRow>(key::HELD, None, usize::MAX)).await?;
        for held in all.into_iter().filter(|held| held.place.pack == row.id || held.packs.contains(&row.id)) {
            match self.record_again(held).await {
                Ok(()) => {}
                // Found damaged by whoever reads it next, who ends it.
                Err(error @ (StoreError::Missing(_) | StoreError::Corrupt(_))) => {
                    tracing::debug!(%error, "a hold was not recorded anew");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(count)
    }

    /// Whether the index points at a record, and how it moves.
    async fn kept(&self, pack: PackId, record: &Walked) -> Result<Kept, StoreError> {
        let (hash, offset, kind) = (record.header.hash, record.offset, record.header.kind);
        match kind {
            Kind::Chunk | Kind::Manifest => {
                let ask = move |index: &crate::index::Index| {
                    let txn = index.txn();
                    let row = txn.chunk(hash)?.filter(|row| row.pack == pack && row.offset == offset);
                    let is_referred_to = txn.get::<EdgesRow>(&key::edges(hash))?.is_some()
                        || !txn.keys(&key::referrers(hash))?.is_empty();
                    Ok(row.map(|row| (row, is_referred_to)))
                };
                let Some((row, is_referred_to)) = self.index(ask).await? else { return Ok(Kept::No) };
                if !is_referred_to {
                    return Ok(Kept::Unreferenced(hash));
                }
                // What is damaged stays until it is repaired, which writes it elsewhere.
                let Ok(Some(bytes)) = self.get(hash).await else { return Ok(Kept::No) };
                let chunk = Chunk::already_verified(hash, bytes);
                Ok(Kept::Yes(Move { from: row.place(), what: Moved::Piece { kind, chunk } }))
            }
            Kind::InstanceCommit => {
                let at = record.offset + crate::pack::RECORD_HEADER_BYTES;
                let read = self.shared.files.read(pack, at, record.header.len as usize).await;
                let payload = read.map_err(|error| StoreError::Read(Arc::new(error)))?;
                let Some((sequence, commit)) = record::decode::<InstanceCommit>(&payload) else { return Ok(Kept::No) };
                let from = crate::index::Place { pack, offset, len: record.header.len };
                Ok(Kept::Yes(Move { from, what: Moved::Commit(sequence, commit) }))
            }
            Kind::Hold | Kind::Seal | Kind::Void | Kind::Landed => Ok(Kept::No),
        }
    }
}

enum Kept {
    No,
    Unreferenced(Hash),
    Yes(Move),
}
