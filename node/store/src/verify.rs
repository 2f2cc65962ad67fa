//! Whether a study is here as a whole: by the index (to hold it), by reading every byte, or by opening every data set.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::{self, StreamExt as _};
use maillage_host::offload;

use crate::error::StoreError;
use crate::event::StoreEvent;
use crate::hash::Hash;
use crate::index::{HeldRow, PackRow, key};
use crate::keys::Keys;
use crate::library::HoldRecord;
use crate::manifest::{InstanceEntry, InstanceManifest, StudyManifest};
use crate::pack::PackId;
use crate::seal::StudyKey;
use crate::store::Store;
use crate::writer::{Closing, Content};

/// The answer to a request to hold a study.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hold {
    /// Every chunk of every instance is here; recorded durably.
    Held,
    /// What is still missing: manifests of instances first, whose chunks are unknown until then.
    Incomplete {
        /// Addresses to fetch.
        missing: Vec<Hash>,
    },
}

/// What reading a whole study, or instances of one, found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Instances that were to be read.
    pub instances: u64,
    /// Chunks read and found right.
    pub chunks: u64,
    /// Their bytes as stored.
    pub bytes: u64,
    /// Manifests and chunks that are not here.
    pub missing: Vec<Hash>,
    /// Manifests and chunks whose stored bytes are damaged; quarantined by this reading if they were not before.
    pub corrupt: Vec<Hash>,
    /// Manifests of instances that contradict the study's manifest or their own chunks.
    pub contradictory: Vec<Hash>,
    /// Manifests of instances that were to be opened and whose key is not known here.
    pub unopened: Vec<Hash>,
}

impl VerifyReport {
    /// Whether everything is here and right.
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty() && self.corrupt.is_empty() && self.contradictory.is_empty() && self.unopened.is_empty()
    }

    /// Adds what reading something else found.
    pub fn add(&mut self, other: Self) {
        let Self { instances, chunks, bytes, missing, corrupt, contradictory, unopened } = other;
        self.instances += instances;
        self.chunks += chunks;
        self.bytes += bytes;
        self.missing.extend(missing);
        self.corrupt.extend(corrupt);
        self.contradictory.extend(contradictory);
        self.unopened.extend(unopened);
    }
}

/// Instances of a study whose manifests are read at once.
const MANIFESTS_AT_ONCE: usize = 4;

/// Everything that a study manifest refers to, as far as it can be read here.
#[derive(Default)]
struct Pieces {
    hashes: Vec<Hash>,
    /// Manifests of instances that are not here or damaged.
    absent: Vec<Hash>,
}

impl Store {
    /// Records that this node holds a study manifest completely, after checking that every chunk of
    /// every instance is here (by the index: [`Store::verify_study`] reads them). Recorded durably;
    /// undone by [`Store::release`] and when a chunk of it is found damaged.
    ///
    /// # Errors
    /// `Missing` or `Corrupt` for the study manifest itself, and as [`Store::put`].
    pub async fn hold(&self, study_manifest: Hash) -> Result<Hold, StoreError> {
        let (study, missing, hashes) = self.look_for(study_manifest).await?;
        if !missing.is_empty() {
            return Ok(Hold::Incomplete { missing });
        }
        let (packs, hashes) = self.packs_of(hashes).await?;
        if self.is_held_in(study_manifest, &packs).await? {
            return Ok(Hold::Held);
        }
        self.record_hold(study_manifest, study.study_uid, Some(packs)).await?;
        // What was quarantined in the meantime did not find the hold that it undoes.
        let missing = self.missing(&hashes).await?;
        if missing.is_empty() {
            return Ok(Hold::Held);
        }
        self.release(study_manifest).await?;
        Ok(Hold::Incomplete { missing })
    }

    /// What of a study is not here or is known to be damaged, by the index; the study's manifest itself if it is.
    ///
    /// # Errors
    /// `Index` or `Read`.
    pub async fn lacks(&self, study_manifest: Hash) -> Result<Vec<Hash>, StoreError> {
        match self.look_for(study_manifest).await {
            Ok((_, missing, _)) => Ok(missing),
            Err(StoreError::Missing(_) | StoreError::Corrupt(_)) => Ok(vec![study_manifest]),
            Err(error) => Err(error),
        }
    }

    /// A study, what of it is not here, and all that can be known to be of it.
    async fn look_for(&self, study_manifest: Hash) -> Result<(StudyManifest, Vec<Hash>, Vec<Hash>), StoreError> {
        let study = self.study_manifest(study_manifest).await?.ok_or(StoreError::Missing(study_manifest))?;
        let Pieces { mut hashes, absent } = self.pieces(&study).await?;
        hashes.push(study_manifest);
        let missing = absent.into_iter().chain(self.missing(&hashes).await?).collect();
        Ok((study, missing, hashes))
    }

    /// Records that a study manifest is no longer held. No error when it was not.
    ///
    /// # Errors
    /// As [`Store::put`].
    pub async fn release(&self, study_manifest: Hash) -> Result<(), StoreError> {
        let key = key::held(study_manifest);
        let row: Option<HeldRow> = self.index(move |index| index.txn().get(&key)).await?;
        match row {
            Some(row) if row.held => self.record_hold(study_manifest, row.study_uid, None).await,
            _ => Ok(()),
        }
    }

    /// Reads and hashes every chunk of every instance of a study, and every data set that is not sealed as a
    /// whole. It needs no key: the addresses are of what is stored.
    ///
    /// # Errors
    /// `Missing` or `Corrupt` for the study manifest itself; `Index` or `Read` when the machine failed.
    /// What is wrong with its instances is in the report.
    pub async fn verify_study(&self, study_manifest: Hash) -> Result<VerifyReport, StoreError> {
        let study = self.study_manifest(study_manifest).await?.ok_or(StoreError::Missing(study_manifest))?;
        self.verify_each(&study.study_uid, &study.instances, None).await
    }

    /// Reads and hashes every chunk of these instances of a study, and every data set as a whole, opened and decoded:
    /// one that was sealed or coded wrongly has right chunks, and is found contradictory. Those whose key was destroyed
    /// are left out: nobody is to read them, and they are about to go.
    ///
    /// # Errors
    /// `Index`, `Read` or `Keys` when the machine failed. What is wrong with the instances is in the report.
    pub async fn verify_instances(
        &self,
        study_uid: &str,
        instances: &[InstanceEntry],
    ) -> Result<VerifyReport, StoreError> {
        self.verify_each(study_uid, instances, Some(self.keys())).await
    }

    async fn verify_each(
        &self,
        study_uid: &str,
        instances: &[InstanceEntry],
        keys: Option<&Keys>,
    ) -> Result<VerifyReport, StoreError> {
        let mut report = VerifyReport { instances: instances.len() as u64, ..VerifyReport::default() };
        for entry in instances {
            let manifest = match self.instance_manifest(entry.manifest).await {
                Err(StoreError::Manifest(_)) => {
                    report.contradictory.push(entry.manifest);
                    continue;
                }
                read => report.note(entry.manifest, read)?,
            };
            let Some(manifest) = manifest else { continue };
            if !agrees(study_uid, entry, &manifest) {
                report.contradictory.push(entry.manifest);
                continue;
            }
            let key = match keys.map(|keys| keys.of(&manifest)).transpose() {
                Ok(key) => key.flatten(),
                Err(StoreError::KeyDestroyed(_)) => {
                    report.instances -= 1;
                    continue;
                }
                Err(StoreError::KeyUnknown { .. }) => {
                    report.unopened.push(entry.manifest);
                    None
                }
                Err(error) => return Err(error),
            };
            self.verify_chunks(entry, &manifest, key, &mut report).await?;
        }
        Ok(report)
    }

    async fn verify_chunks(
        &self,
        entry: &InstanceEntry,
        manifest: &InstanceManifest,
        key: Option<Arc<StudyKey>>,
        report: &mut VerifyReport,
    ) -> Result<(), StoreError> {
        let can_open = manifest.key.is_none() || key.is_some();
        let mut opens = !can_open || manifest.open_attributes(key.as_deref()).is_ok();
        let mut whole = can_open.then(blake3::Hasher::new);
        for chunk in manifest.chunks.iter().copied() {
            let read = self.get(chunk.hash).await;
            let Some(stored) = report.note(chunk.hash, read)? else {
                whole = None;
                continue;
            };
            report.chunks += 1;
            report.bytes += stored.len() as u64;
            if let Some(mut hasher) = whole.take() {
                let key = key.clone();
                let hashed = offload(move || {
                    let opened = chunk.open(stored, key.as_deref()).ok();
                    Ok(opened.map(|bytes| {
                        hasher.update(&bytes);
                        hasher
                    }))
                });
                whole = hashed.await.map_err(|error| StoreError::Read(Arc::new(error)))?;
                opens &= whole.is_some();
            }
        }
        let hash_agrees = whole.is_none_or(|whole| *whole.finalize().as_bytes() == manifest.dataset_hash.0);
        if !hash_agrees || !opens {
            report.contradictory.push(entry.manifest);
        }
        Ok(())
    }

    /// Releases the holds on studies that have one of the chunks `damaged`, which lay in `pack`. Boxed, since
    /// it reads, and reading is what finds damage.
    pub(crate) fn release_holds_on(self, damaged: BTreeSet<Hash>, pack: PackId) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let rows = match self.held_rows().await {
                Ok(rows) => rows,
                Err(error) => return tracing::warn!(%error, "holds were not checked after damage"),
            };
            for row in rows.into_iter().filter(|row| row.packs.contains(&pack)) {
                // What can't be read by now is not held either.
                if matches!(self.refers_to(row.manifest, &damaged).await, Ok(false)) {
                    continue;
                }
                match self.release(row.manifest).await {
                    Ok(()) => self.shared.emit(StoreEvent::HoldLost(row.manifest)),
                    Err(error) => tracing::warn!(%error, "a hold was not released after damage"),
                }
            }
        })
    }

    async fn refers_to(&self, study_manifest: Hash, damaged: &BTreeSet<Hash>) -> Result<bool, StoreError> {
        let Some(study) = self.study_manifest(study_manifest).await? else { return Ok(true) };
        let pieces = self.pieces(&study).await?;
        let has_damage = pieces.hashes.iter().any(|hash| damaged.contains(hash));
        Ok(has_damage || !pieces.absent.is_empty())
    }

    /// The manifests of the instances and all their chunks.
    async fn pieces(&self, study: &StudyManifest) -> Result<Pieces, StoreError> {
        let read = |entry: InstanceEntry| {
            let store = self.clone();
            async move { (entry.manifest, store.instance_manifest(entry.manifest).await) }
        };
        let mut reads = stream::iter(study.instances.clone()).map(read).buffered(MANIFESTS_AT_ONCE);
        let mut pieces = Pieces::default();
        while let Some((hash, manifest)) = reads.next().await {
            match manifest {
                Ok(Some(manifest)) => {
                    pieces.hashes.push(hash);
                    pieces.hashes.extend(manifest.chunks.iter().map(|chunk| chunk.hash));
                }
                Ok(None) | Err(StoreError::Corrupt(_)) => pieces.absent.push(hash),
                Err(error) => return Err(error),
            }
        }
        Ok(pieces)
    }

    /// The packs in which the chunks lie, sorted. Gives the hashes back.
    async fn packs_of(&self, hashes: Vec<Hash>) -> Result<(Vec<PackId>, Vec<Hash>), StoreError> {
        self.index(move |index| {
            let txn = index.txn();
            let mut packs = BTreeSet::new();
            for hash in &hashes {
                packs.extend(txn.chunk(*hash)?.map(|row| row.pack));
            }
            Ok((packs.into_iter().collect(), hashes))
        })
        .await
    }

    async fn is_held_in(&self, study_manifest: Hash, packs: &[PackId]) -> Result<bool, StoreError> {
        let key = key::held(study_manifest);
        let row: Option<HeldRow> = self.index(move |index| index.txn().get(&key)).await?;
        Ok(row.is_some_and(|row| row.held && row.packs == packs))
    }

    async fn record_hold(
        &self,
        manifest: Hash,
        study_uid: String,
        packs: Option<Vec<PackId>>,
    ) -> Result<(), StoreError> {
        let at = self.shared.clock.now().0;
        let held = packs.is_some();
        let hold = HoldRecord { manifest, held, at, study_uid, packs: packs.unwrap_or_default() };
        // Beside the manifest, so that both go on the same day.
        let day = self.index(move |index| {
            let txn = index.txn();
            let Some(row) = txn.chunk(manifest)? else { return Ok(None) };
            Ok(txn.get::<PackRow>(&key::pack(row.pack))?.map(|row| row.day))
        });
        let day = day.await?;
        self.submit(Content { closing: Some(Closing::Hold(hold)), day, ..Content::default() }).await.map(drop)
    }

    /// Records a hold, or its end, anew: what it lies in has moved, or the pack of its record goes.
    pub(crate) async fn record_again(&self, row: HeldRow) -> Result<(), StoreError> {
        if !row.held {
            return self.record_hold(row.manifest, row.study_uid, None).await;
        }
        let study = self.study_manifest(row.manifest).await?.ok_or(StoreError::Missing(row.manifest))?;
        let Pieces { mut hashes, .. } = self.pieces(&study).await?;
        hashes.push(row.manifest);
        let (packs, _) = self.packs_of(hashes).await?;
        self.record_hold(row.manifest, row.study_uid, Some(packs)).await
    }
}

impl VerifyReport {
    /// Notes what is missing or damaged; passes on what was read and errors of the machine.
    fn note<T>(&mut self, hash: Hash, read: Result<Option<T>, StoreError>) -> Result<Option<T>, StoreError> {
        match read {
            Ok(Some(value)) => return Ok(Some(value)),
            Ok(None) => self.missing.push(hash),
            Err(StoreError::Corrupt(_)) => self.corrupt.push(hash),
            Err(error) => return Err(error),
        }
        Ok(None)
    }
}

fn agrees(study_uid: &str, entry: &InstanceEntry, manifest: &InstanceManifest) -> bool {
    manifest.study_uid == study_uid
        && manifest.series_uid == entry.series_uid
        && manifest.sop_instance == entry.sop_instance
        && manifest.dataset_hash == entry.dataset_hash
        && manifest.total_len == entry.bytes
}
