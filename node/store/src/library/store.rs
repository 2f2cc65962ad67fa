//! The library's side of the [`Store`] handle.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use maillage_host::{UnixMillis, offload};

use super::{Conflict, HeldStudy, Instance, InstanceCommit, Stored, StudySeen, StudySummary, check_manifest, rules};
use crate::chunk::Chunk;
use crate::cut::CutInstance;
use crate::error::{Refusal, StoreError};
use crate::hash::Hash;
use crate::index::{HeldRow, InstanceRow, StudyRow, key};
use crate::manifest::{InstanceEntry, InstanceIdentity, InstanceManifest, StudyManifest};
use crate::seal::KeyId;
use crate::store::Store;
use crate::writer::{Closing, Content};

/// Rows of one page of a list, however many were asked for: bounds memory and blocking.
const PAGE_ROWS_MAX: usize = 1000;

impl Store {
    /// Takes an instance in: chunks, manifest and commit in one durable group. Returns after the
    /// fsync behind it, or, for a duplicate, behind the first.
    ///
    /// # Errors
    /// As [`Store::put`]; `Refused` when the manifest breaks its rules or is not of this cut.
    pub async fn commit_instance(
        &self,
        cut: CutInstance,
        manifest: InstanceManifest,
        received_at: UnixMillis,
        source: String,
    ) -> Result<Stored, StoreError> {
        self.commit_instance_until(cut, manifest, received_at, source, None).await
    }

    /// As [`Store::commit_instance`], for images whose retention is expected to end on `day` (days since
    /// 1970-01-01, UTC): they lie in a pack with others of that day.
    ///
    /// # Errors
    /// As [`Store::commit_instance`].
    pub async fn commit_instance_until(
        &self,
        cut: CutInstance,
        manifest: InstanceManifest,
        received_at: UnixMillis,
        source: String,
        day: Option<u64>,
    ) -> Result<Stored, StoreError> {
        self.commit(cut, manifest, received_at, source, Content { day, ..Content::default() }).await
    }

    /// As [`Store::commit_instance_until`], also when the same data set is listed and whole: its key was destroyed, and
    /// what is listed is to go. This one takes its place.
    ///
    /// # Errors
    /// As [`Store::commit_instance`].
    pub async fn commit_instance_anew(
        &self,
        cut: CutInstance,
        manifest: InstanceManifest,
        received_at: UnixMillis,
        source: String,
        day: Option<u64>,
    ) -> Result<Stored, StoreError> {
        self.commit(cut, manifest, received_at, source, Content { is_anew: true, day, ..Content::default() }).await
    }

    /// Notes durably that a listed data set came again, at `received_at`.
    ///
    /// # Errors
    /// As [`Store::put`]; `Refused` when it is here no more.
    pub async fn note_again(&self, listed: Instance, received_at: UnixMillis) -> Result<(), StoreError> {
        let commit = InstanceCommit { received_at: received_at.0, ..listed.into() };
        let closing = Some(Closing::Instance(commit));
        self.submit(Content { closing, is_anew: true, ..Content::default() }).await.map(drop)
    }

    async fn commit(
        &self,
        cut: CutInstance,
        manifest: InstanceManifest,
        received_at: UnixMillis,
        source: String,
        content: Content,
    ) -> Result<Stored, StoreError> {
        if !manifest.describes(&cut) {
            return Err(Refusal::ManifestMismatch.into());
        }
        let encoded = Chunk::new(manifest.encode().map_err(Refusal::Manifest)?);
        let commit = InstanceCommit::of_encoded(&manifest, encoded.hash(), received_at, source)?;
        let address = commit.manifest;
        let chunks = cut.into_chunks();
        let closing = Some(Closing::Instance(commit));
        let stored = self.submit(Content { chunks, manifests: vec![encoded], closing, ..content }).await?;
        Ok(stored.unwrap_or(Stored::New { manifest: address }))
    }

    /// What a data set would be to the library that is listed already, and whole as far as the index knows: a
    /// duplicate, or a conflict that came before. None: it must be stored.
    ///
    /// # Errors
    /// `Index`.
    pub async fn listed_as(&self, of: &InstanceIdentity, dataset_hash: Hash) -> Result<Option<Stored>, StoreError> {
        let (files, of) = (Arc::clone(&self.shared.files), of.clone());
        self.index(move |index| rules::listed_as(&index.txn(), &files, &of, dataset_hash)).await
    }

    /// The keys under which instances of a study are sealed, those included that came second under their UID, whatever
    /// study the first is of; and whether that is all, since what is damaged does not say.
    ///
    /// # Errors
    /// As [`Store::get`], but for `Corrupt`.
    pub async fn keys_of_study(&self, study_uid: &str) -> Result<(BTreeSet<KeyId>, bool), StoreError> {
        let study_uid = study_uid.to_owned();
        let manifests = self.index(move |index| {
            let listed = index.rows::<InstanceRow>(&key::instances(&study_uid), None, usize::MAX)?;
            let mut seconds = index.rows::<InstanceRow>(key::CONFLICT, None, usize::MAX)?;
            seconds.retain(|second| second.commit.study_uid == study_uid);
            Ok(listed.into_iter().chain(seconds).map(|row| row.commit.manifest).collect::<Vec<_>>())
        });
        let (mut keys, mut is_all) = (BTreeSet::new(), true);
        for manifest in manifests.await? {
            match self.instance_manifest(manifest).await {
                Ok(Some(manifest)) => keys.extend(manifest.key),
                Ok(None) | Err(StoreError::Corrupt(_)) => is_all = false,
                Err(error) => return Err(error),
            }
        }
        Ok((keys, is_all))
    }

    /// The attributes of an instance, opened.
    ///
    /// # Errors
    /// As [`crate::Keys::find`]; `Attributes` when they do not open.
    pub fn attributes(&self, manifest: &InstanceManifest) -> Result<Bytes, StoreError> {
        let key = self.keys().of(manifest)?;
        manifest.open_attributes(key.as_deref()).map_err(StoreError::Attributes)
    }

    /// Instances of a study in the library, by series, then SOP instance. Conflicts are not among them.
    ///
    /// # Errors
    /// `Index`.
    pub async fn instances(&self, study_uid: &str) -> Result<Vec<Instance>, StoreError> {
        let prefix = key::instances(study_uid);
        let rows = self.index(move |index| index.rows::<InstanceRow>(&prefix, None, usize::MAX)).await?;
        Ok(rows.into_iter().map(|row| row.commit.into()).collect())
    }

    /// The instance that a SOP instance UID stands for.
    ///
    /// # Errors
    /// `Index`.
    pub async fn instance(&self, sop_instance: &str) -> Result<Option<Instance>, StoreError> {
        let sop_instance = sop_instance.to_owned();
        let row = self.index(move |index| rules::first(&index.txn(), &sop_instance)).await?;
        Ok(row.map(|row| row.commit.into()))
    }

    /// Studies in order of their UID, behind `after`, at most `limit` and at most 1,000.
    ///
    /// # Errors
    /// `Index`.
    pub async fn studies(&self, after: Option<&str>, limit: usize) -> Result<Vec<StudySummary>, StoreError> {
        let after = after.map(key::study);
        let ask = move |index: &crate::index::Index| {
            index.rows::<StudyRow>(key::STUDY, after.as_deref(), limit.min(PAGE_ROWS_MAX))
        };
        let rows = self.index(ask).await?;
        Ok(rows.into_iter().map(|row| StudySummary { seen: (&row).into(), study_uid: row.study_uid }).collect())
    }

    /// How much of a study is here; `None` when nothing is.
    ///
    /// # Errors
    /// `Index`.
    pub async fn study_seen(&self, study_uid: &str) -> Result<Option<StudySeen>, StoreError> {
        let key = key::study(study_uid);
        let row: Option<StudyRow> = self.index(move |index| index.txn().get(&key)).await?;
        Ok(row.as_ref().map(StudySeen::from))
    }

    /// Second data sets under a SOP instance UID that was taken, behind `after`, at most `limit` and at most 1,000.
    ///
    /// # Errors
    /// `Index`.
    pub async fn conflicts(&self, after: Option<&Instance>, limit: usize) -> Result<Vec<Conflict>, StoreError> {
        let after = after.map(|last| key::conflict(&last.entry.sop_instance, last.entry.dataset_hash));
        self.index(move |index| {
            let txn = index.txn();
            let rows = index.rows::<InstanceRow>(key::CONFLICT, after.as_deref(), limit.min(PAGE_ROWS_MAX))?;
            let conflict = |row: InstanceRow| {
                let first = rules::first(&txn, &row.commit.sop_instance)?.map(|first| first.commit.manifest);
                Ok(Conflict { second: row.commit.into(), first })
            };
            rows.into_iter().map(conflict).collect()
        })
        .await
    }

    /// Second data sets under this SOP instance UID.
    ///
    /// # Errors
    /// `Index`.
    pub async fn seconds(&self, sop_instance: &str) -> Result<Vec<Instance>, StoreError> {
        let prefix = key::conflicts(sop_instance);
        let rows = self.index(move |index| index.rows::<InstanceRow>(&prefix, None, usize::MAX)).await?;
        Ok(rows.into_iter().map(|row| row.commit.into()).collect())
    }

    /// Whether other bytes came under this SOP instance UID than those that it stands for.
    ///
    /// # Errors
    /// `Index`.
    pub async fn is_contested(&self, sop_instance: &str) -> Result<bool, StoreError> {
        let prefix = key::conflicts(sop_instance);
        let rows = self.index(move |index| index.rows::<InstanceRow>(&prefix, None, 1)).await?;
        Ok(!rows.is_empty())
    }

    /// Stores an encoded manifest of either kind; returns its address.
    ///
    /// # Errors
    /// As [`Store::put`]; `Refused` when the bytes are no manifest.
    pub async fn put_manifest(&self, bytes: Bytes) -> Result<Hash, StoreError> {
        self.put_manifest_until(bytes, None).await
    }

    /// Stores an encoded manifest whose retention is expected to end on `day`; returns its address.
    ///
    /// # Errors
    /// As [`Store::put_manifest`].
    pub async fn put_manifest_until(&self, bytes: Bytes, day: Option<u64>) -> Result<Hash, StoreError> {
        let checked = offload(move || Ok(check_manifest(&bytes).map(|()| Chunk::new(bytes)))).await;
        let chunk = checked.map_err(|error| StoreError::Read(error.into()))?.map_err(Refusal::Manifest)?;
        let hash = chunk.hash();
        self.submit(Content { manifests: vec![chunk], day, ..Content::default() }).await?;
        Ok(hash)
    }

    /// The bytes of a manifest, verified.
    ///
    /// # Errors
    /// As [`Store::get`].
    pub async fn get_manifest(&self, hash: Hash) -> Result<Option<Bytes>, StoreError> {
        self.get(hash).await
    }

    /// An instance's manifest, verified and decoded.
    ///
    /// # Errors
    /// As [`Store::get`]; `Manifest` when the bytes are right and no instance manifest.
    pub async fn instance_manifest(&self, hash: Hash) -> Result<Option<InstanceManifest>, StoreError> {
        let bytes = self.get(hash).await?;
        Ok(bytes.map(|bytes| InstanceManifest::decode(&bytes)).transpose()?)
    }

    /// A study's manifest, verified and decoded.
    ///
    /// # Errors
    /// As [`Store::get`]; `Manifest` when the bytes are right and no study manifest.
    pub async fn study_manifest(&self, hash: Hash) -> Result<Option<StudyManifest>, StoreError> {
        let bytes = self.get(hash).await?;
        Ok(bytes.map(|bytes| StudyManifest::decode(&bytes)).transpose()?)
    }

    /// Study manifests that this node holds completely, as far as is known without reading all.
    ///
    /// # Errors
    /// `Index`.
    pub async fn held(&self) -> Result<Vec<HeldStudy>, StoreError> {
        let rows = self.held_rows().await?;
        let files = &self.shared.files;
        let whole = rows.into_iter().filter(|row| row.packs.iter().all(|pack| files.is_readable(*pack, 0)));
        Ok(whole
            .map(|row| HeldStudy { manifest: row.manifest, study_uid: row.study_uid, since: UnixMillis(row.since) })
            .collect())
    }

    pub(crate) async fn held_rows(&self) -> Result<Vec<HeldRow>, StoreError> {
        let mut rows = self.index(|index| index.rows::<HeldRow>(key::HELD, None, usize::MAX)).await?;
        rows.retain(|row| row.held);
        Ok(rows)
    }
}

impl From<InstanceCommit> for Instance {
    fn from(commit: InstanceCommit) -> Self {
        let InstanceCommit { study_uid, series_uid, sop_instance, manifest, dataset_hash, bytes, received_at, source } =
            commit;
        let entry = InstanceEntry { sop_instance, series_uid, manifest, bytes, dataset_hash };
        Self { entry, study_uid, received_at: UnixMillis(received_at), source }
    }
}

impl From<Instance> for InstanceCommit {
    fn from(instance: Instance) -> Self {
        let Instance { entry, study_uid, received_at, source } = instance;
        let InstanceEntry { sop_instance, series_uid, manifest, bytes, dataset_hash } = entry;
        let received_at = received_at.0;
        Self { study_uid, series_uid, sop_instance, manifest, dataset_hash, bytes, received_at, source }
    }
}

impl From<&StudyRow> for StudySeen {
    fn from(row: &StudyRow) -> Self {
        Self { instances: row.instances, bytes: row.bytes, last_received_at: UnixMillis(row.last_received_at) }
    }
}
