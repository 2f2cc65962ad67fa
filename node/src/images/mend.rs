//! Mending: whatever of a part is damaged or missing here, from the sites that still have it.
//!
//! A pull brings a part as a whole or fails; mending brings what can be had, and says what no reachable site
//! has. It stores nothing that the part does not refer to.

use std::collections::BTreeMap;

use maillage_consensus::mesh::HeldPart;
use maillage_store::{
    Chunk, Hash, Hold, INSTANCE_MANIFEST_BYTES_MAX, InstanceManifest, PutGroup, StoreError, StudyManifest,
};
use maillage_transport::PeerId;
use maillage_transport::chunk::Class;

use super::pull::{Arrival, PUT_GROUP_BYTES};
use super::{Images, ImagesError, own_bytes};

/// What mending a part did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Mended {
    /// Manifests and chunks that were brought.
    pub(crate) brought: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
    /// Those that no site had that could be asked.
    pub(crate) nowhere: Vec<Hash>,
    /// Whether the part is here as a whole now.
    pub(crate) whole: bool,
}

impl Images {
    /// Brings what is damaged or missing of one part, and holds the part if it is whole then.
    ///
    /// # Errors
    /// [`ImagesError`], when nothing can be said of it; what came so far stays.
    pub(crate) async fn mend_part(&self, held: &HeldPart) -> Result<Mended, ImagesError> {
        let _arrival = Arrival::begin(self, held.part.study.as_str());
        // Asked after the arrival is known: a purge either waits for its end, or is seen here.
        self.is_known(held)?;
        self.may_have(held)?;
        let holders = &self.to_ask_of(&held.all_holders(), held.origin);
        let mut mending = Mending { images: self, holders, done: Mended::default() };
        let address = Hash(held.part.manifest);
        mending.manifests(vec![(address, maillage_store::STUDY_MANIFEST_BYTES_MAX)]).await?;
        if let Some(study) = self.read_study(address).await? {
            let instances: Vec<Hash> = study.instances.iter().map(|entry| entry.manifest).collect();
            let wanted = instances.iter().map(|hash| (*hash, INSTANCE_MANIFEST_BYTES_MAX)).collect();
            mending.manifests(wanted).await?;
            mending.chunks(&instances).await?;
        }
        let mut done = mending.done;
        done.whole = done.nowhere.is_empty() && matches!(self.0.store.hold(address).await?, Hold::Held);
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

    /// Fetches objects and stores them in groups, so that one fsync covers many.
    async fn bring(&mut self, wanted: Vec<(Hash, usize)>, are_manifests: bool) -> Result<(), ImagesError> {
        let mut arriving = self.images.arriving(wanted, self.holders, Class::Repair);
        let (mut group, mut in_hand, mut bytes) = (Vec::new(), Vec::new(), 0);
        while let Some(arrived) = arriving.recv().await {
            match arrived {
                Ok(arrived) => {
                    self.images.note_arrived(Class::Repair, own_bytes(&arrived));
                    bytes += arrived.bytes.len() as u64;
                    group.push(Chunk::already_verified(Hash(*arrived.hash.as_bytes()), arrived.bytes));
                    in_hand.push(arrived.in_hand);
                }
                Err(error) => self.done.nowhere.push(Hash(*error.hash().as_bytes())),
            }
            if bytes >= PUT_GROUP_BYTES {
                self.done.put(self.images, std::mem::take(&mut group), are_manifests).await?;
                in_hand.clear();
                bytes = 0;
            }
        }
        self.done.put(self.images, group, are_manifests).await
    }
}

impl Mended {
    async fn put(&mut self, images: &Images, objects: Vec<Chunk>, are_manifests: bool) -> Result<(), ImagesError> {
        let (count, bytes) = (objects.len() as u64, objects.iter().map(|object| object.byte_len() as u64).sum::<u64>());
        if objects.is_empty() {
            return Ok(());
        }
        let (chunks, manifests) = if are_manifests { (Vec::new(), objects) } else { (objects, Vec::new()) };
        images.0.store.put(PutGroup { chunks, manifests, ..PutGroup::default() }).await?;
        self.brought += count;
        self.bytes += bytes;
        Ok(())
    }
}
