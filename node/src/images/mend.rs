//! Mending: whatever of a part is damaged or missing here, from the sites that still have it.
//!
//! A pull brings a part as a whole or fails; mending brings what can be had, and says what no reachable site
//! has. It stores nothing that the part does not refer to.

use std::collections::{BTreeMap, BTreeSet};

use maillage_consensus::mesh::HeldPart;
use maillage_store::{
    Chunk, Hash, Hold, INSTANCE_MANIFEST_BYTES_MAX, InstanceManifest, PutGroup, StoreError, StudyManifest,
};
use maillage_transport::PeerId;
use maillage_transport::chunk::Class;

use super::pull::PUT_GROUP_BYTES;
use super::{Images, ImagesError, own_bytes};

/// How much of a part is mended.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Extent<'a> {
    /// All that is damaged or missing: it is a copy, and is held once it is whole.
    Copy,
    /// What of it is among these, which are damaged: it is no copy, is not held, and lacks what it lacked before.
    Damaged(&'a BTreeSet<Hash>),
}

/// What mending a part did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Mended {
    /// Manifests and chunks that were brought.
    pub(crate) brought: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
    /// Those that no site had that could be asked.
    pub(crate) nowhere: Vec<Hash>,
    /// Whether the part is here as a whole now, and held.
    pub(crate) whole: bool,
}

impl Images {
    /// Brings what is damaged of one part, and, if it is a copy, what is missing.
    ///
    /// # Errors
    /// [`ImagesError`], when nothing can be said of it; what came so far stays.
    pub(crate) async fn mend_part(&self, held: &HeldPart, extent: Extent<'_>) -> Result<Mended, ImagesError> {
        let _arrival = self.arrive(held.part.study.as_str()).ok_or(ImagesError::Leaving)?;
        // Asked after the arrival is known: a purge either waits for its end, or is seen here.
        self.is_known(held)?;
        let only = match extent {
            // Wherever it lies, until the mesh has it given up.
            Extent::Copy => {
                self.may_have(held)?;
                None
            }
            Extent::Damaged(damaged) => {
                self.may_keep(held)?;
                Some(damaged)
            }
        };
        let holders = &self.to_ask_of(&held.all_holders(), held.origin);
        let day = self.day_of(held)?;
        let mut mending = Mending { images: self, holders, only, day, done: Mended::default() };
        let address = Hash(held.part.manifest);
        mending.manifests(vec![(address, maillage_store::STUDY_MANIFEST_BYTES_MAX)]).await?;
        if let Some(study) = self.read_study(address).await? {
            let instances: Vec<Hash> = study.instances.iter().map(|entry| entry.manifest).collect();
            let wanted = instances.iter().map(|hash| (*hash, INSTANCE_MANIFEST_BYTES_MAX)).collect();
            mending.manifests(wanted).await?;
            mending.chunks(&instances).await?;
        }
        let mut done = mending.done;
        let may_be_whole = only.is_none() && done.nowhere.is_empty();
        done.whole = may_be_whole && matches!(self.0.store.hold(address).await?, Hold::Held);
        Ok(done)
    }

    /// A study's manifest from this node's store; `None` when it is not here, whole.
    async fn read_study(&self, address: Hash) -> Result<Option<StudyManifest>, ImagesError> {
        match self.0.store.study_manifest(address).await {
            Err(StoreError::Corrupt(_) | StoreError::Missing(_)) => Ok(None),
            read => Ok(read?),
        }
    }
}

struct Mending<'a> {
    images: &'a Images,
    holders: &'a [PeerId],
    /// Nothing else is brought.
    only: Option<&'a BTreeSet<Hash>>,
    /// The day on which all of it is expected to go.
    day: Option<u64>,
    done: Mended,
}

impl Mending<'_> {
    /// Brings those of the manifests (hash and greatest length) that are not here. Each is read first: what
    /// rotted since it was last read is found so.
    async fn manifests(&mut self, wanted: Vec<(Hash, usize)>) -> Result<(), ImagesError> {
        let store = &self.images.0.store;
        let mut absent = Vec::new();
        for (hash, len) in wanted {
            match store.get_manifest(hash).await {
                Ok(Some(_)) => {}
                Ok(None) | Err(StoreError::Corrupt(_) | StoreError::Missing(_)) => absent.push((hash, len)),
                Err(error) => return Err(error.into()),
            }
        }
        self.bring(absent, true).await
    }

    /// Brings the chunks of those of the instances whose manifest is here.
    async fn chunks(&mut self, instances: &[Hash]) -> Result<(), ImagesError> {
        let store = &self.images.0.store;
        let mut lengths = BTreeMap::new();
        for manifest in instances {
            let read: Result<Option<InstanceManifest>, StoreError> = store.instance_manifest(*manifest).await;
            match read {
                Ok(Some(manifest)) => {
                    lengths.extend(manifest.chunks.iter().map(|chunk| (chunk.hash, chunk.len as usize)))
                }
                Ok(None) | Err(StoreError::Corrupt(_) | StoreError::Missing(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let all: Vec<Hash> = lengths.keys().copied().collect();
        let absent = store.missing(&all).await?;
        let absent = absent.into_iter().filter_map(|hash| Some((hash, *lengths.get(&hash)?))).collect();
        self.bring(absent, false).await
    }

    /// Fetches objects and stores them in groups, so that one fsync covers many, at the pace of copies.
    async fn bring(&mut self, mut wanted: Vec<(Hash, usize)>, are_manifests: bool) -> Result<(), ImagesError> {
        wanted.retain(|(hash, _)| self.only.is_none_or(|only| only.contains(hash)));
        let mut arriving = self.images.arriving(wanted, self.holders, Class::Repair);
        let (mut group, mut in_hand, mut bytes, mut own) = (Vec::new(), Vec::new(), 0, 0);
        loop {
            let arrived = arriving.recv().await;
            let is_end = arrived.is_none();
            match arrived {
                Some(Ok(arrived)) => {
                    let own_bytes = own_bytes(&arrived);
                    self.images.note_arrived(Class::Repair, own_bytes);
                    own += own_bytes;
                    bytes += arrived.bytes.len() as u64;
                    group.push(Chunk::already_verified(Hash(*arrived.hash.as_bytes()), arrived.bytes));
                    in_hand.push(arrived.in_hand);
                }
                Some(Err(error)) => self.done.nowhere.push(Hash(*error.hash().as_bytes())),
                None => {}
            }
            if is_end || bytes >= PUT_GROUP_BYTES {
                let objects = std::mem::take(&mut group);
                self.done.put(self.images, objects, are_manifests, self.day).await?;
                in_hand.clear();
                self.images.0.pace.take(own).await;
                (bytes, own) = (0, 0);
            }
            if is_end {
                return Ok(());
            }
        }
    }
}

impl Mended {
    async fn put(
        &mut self,
        images: &Images,
        objects: Vec<Chunk>,
        are_manifests: bool,
        day: Option<u64>,
    ) -> Result<(), ImagesError> {
        let (count, bytes) = (objects.len() as u64, objects.iter().map(|object| object.byte_len() as u64).sum::<u64>());
        if objects.is_empty() {
            return Ok(());
        }
        let (chunks, manifests) = if are_manifests { (Vec::new(), objects) } else { (objects, Vec::new()) };
        images.0.store.put(PutGroup { chunks, manifests, day, ..PutGroup::default() }).await?;
        self.brought += count;
        self.bytes += bytes;
        Ok(())
    }
}
