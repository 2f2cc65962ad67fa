//! Pulling: one part of a study from the sites that hold it, to where this node holds it durably.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures::stream::{self, Stream, StreamExt as _, TryStreamExt as _};
use maillage_consensus::ids::SiteId;
use maillage_consensus::mesh::HeldPart;
use maillage_store::{Chunk, Hash, Hold, PutGroup};
use maillage_transport::PeerId;
use maillage_transport::chunk::Class;

use super::listing::agrees;
use super::{FetchReport, Images, ImagesError, Progress};

/// Bytes of pulled chunks written in one group: one fsync for so many.
pub(super) const PUT_GROUP_BYTES: usize = 8 << 20;
/// Groups being written while the next are fetched.
const PUTS_IN_FLIGHT: usize = 2;

impl Images {
    /// Brings one part of a study here as a whole, durably, and holds it.
    ///
    /// # Errors
    /// [`ImagesError`]; what came so far stays and is not fetched again.
    pub(crate) async fn pull_part(
        &self,
        held: &HeldPart,
        class: Class,
        progress: Option<&Progress>,
    ) -> Result<FetchReport, ImagesError> {
        let _arrival = self.arrive(held.part.study.as_str()).ok_or(ImagesError::Leaving)?;
        // Asked after the arrival is known: a purge either waits for its end, or is seen here.
        self.is_known(held)?;
        self.may_keep(held)?;
        let store = &self.0.store;
        let holders = self.to_ask(&who_may_have(held));
        let address = Hash(held.part.manifest);
        let manifest = self.study_manifest(address, &holders, class).await?;
        if manifest.study_uid != held.part.study.as_str() {
            return Err(ImagesError::Manifest("it is another study's".to_owned()));
        }
        let encoded = manifest.encode().map_err(|error| ImagesError::Manifest(error.to_string()))?;
        store.put_manifest(encoded).await?;

        let hashes: Vec<Hash> = manifest.instances.iter().map(|entry| entry.manifest).collect();
        let instances = self.instance_manifests(&hashes, &holders, class).await?;
        let mut manifests = Vec::with_capacity(instances.len());
        for entry in &manifest.instances {
            let instance = instances.get(&entry.manifest).ok_or(ImagesError::Unavailable(entry.manifest))?;
            agrees(held.part.study.as_str(), entry, instance)?;
            let encoded = instance.encode().map_err(|error| ImagesError::Manifest(error.to_string()))?;
            manifests.push(Chunk::new(encoded));
        }
        store.put(PutGroup { manifests, ..PutGroup::default() }).await?;

        let mut lengths: BTreeMap<Hash, usize> = BTreeMap::new();
        for chunk in hashes.iter().filter_map(|hash| instances.get(hash)).flat_map(|instance| &instance.chunks) {
            lengths.insert(chunk.hash, chunk.len as usize);
        }
        let all: Vec<Hash> = lengths.keys().copied().collect();
        let absent: BTreeSet<Hash> = store.missing(&all).await?.into_iter().collect();
        // In the order of the study, so that the first instances are whole first.
        let mut seen = BTreeSet::new();
        let wanted: Vec<(Hash, usize)> = hashes
            .iter()
            .filter_map(|hash| instances.get(hash))
            .flat_map(|instance| &instance.chunks)
            .filter(|chunk| absent.contains(&chunk.hash) && seen.insert(chunk.hash))
            .map(|chunk| (chunk.hash, chunk.len as usize))
            .collect();
        let total: u64 = lengths.values().map(|len| *len as u64).sum();
        let fetched = self.pull_chunks(wanted, &holders, class, total, progress).await?;
        match store.hold(address).await? {
            Hold::Held => Ok(FetchReport { instances: hashes.len() as u64, bytes: manifest.total_bytes(), fetched }),
            Hold::Incomplete { missing } => Err(ImagesError::Incomplete { missing: missing.len() }),
        }
    }

    pub(super) fn is_known(&self, held: &HeldPart) -> Result<(), ImagesError> {
        let study = self.known_study(held.part.study.as_str())?;
        let is_it = |known: &HeldPart| known.exam == held.exam && known.origin == held.origin;
        if study.is_some_and(|study| study.parts.iter().any(is_it)) { Ok(()) } else { Err(ImagesError::Gone) }
    }

    /// Fetches chunks and stores them in groups, so that one fsync covers many.
    async fn pull_chunks(
        &self,
        wanted: Vec<(Hash, usize)>,
        holders: &[PeerId],
        class: Class,
        total: u64,
        progress: Option<&Progress>,
    ) -> Result<u64, ImagesError> {
        let absent: u64 = wanted.iter().map(|(_, len)| *len as u64).sum();
        let mut here = total.saturating_sub(absent);
        let arriving = self.fetch_stream(wanted, holders, class);
        // A group that the end cuts short asks once more after it.
        let groups = in_groups(Box::pin(arriving.fuse()));
        let store = self.0.store.clone();
        let written = groups.map_ok(move |chunks| {
            let store = store.clone();
            async move {
                let bytes: u64 = chunks.iter().map(|chunk| chunk.byte_len() as u64).sum();
                store.put(PutGroup { chunks, ..PutGroup::default() }).await?;
                Ok(bytes)
            }
        });
        let mut written = std::pin::pin!(written.try_buffered(PUTS_IN_FLIGHT));
        while let Some(bytes) = written.try_next().await? {
            here += bytes;
            if let Some(progress) = progress {
                // A reader of the progress that is slow or gone misses a step, nothing more.
                let _ = progress.try_send((here, total));
            }
        }
        Ok(absent)
    }
}

/// Something of a study on its way here, until this is dropped.
#[derive(Debug)]
pub(crate) struct Arrival<'a> {
    images: &'a Images,
    study: &'a str,
}

impl<'a> Arrival<'a> {
    pub(super) fn begin(images: &'a Images, study: &'a str) -> Self {
        *images.arriving().entry(study.to_owned()).or_default() += 1;
        Self { images, study }
    }
}

impl Drop for Arrival<'_> {
    fn drop(&mut self) {
        let arriving = &mut *self.images.arriving();
        if let Some(count) = arriving.get_mut(self.study) {
            *count -= 1;
            if *count == 0 {
                arriving.remove(self.study);
            }
        }
    }
}

/// The sites that hold a part, or its publication before the latest, of which most chunks are the same:
/// what is damaged at one of them, the others may have.
pub(super) fn who_may_have(held: &HeldPart) -> Vec<SiteId> {
    let earlier = held.previous.iter().flat_map(|earlier| &earlier.holders);
    let all: BTreeSet<SiteId> = held.holders.iter().chain(earlier).copied().collect();
    all.into_iter().collect()
}

/// Chunks in groups of about [`PUT_GROUP_BYTES`], as they arrive.
fn in_groups(
    arriving: impl Stream<Item = Result<(Hash, Bytes), ImagesError>> + Send + Unpin,
) -> impl Stream<Item = Result<Vec<Chunk>, ImagesError>> + Send {
    stream::try_unfold(arriving, |mut arriving| async move {
        let (mut group, mut bytes) = (Vec::new(), 0);
        while bytes < PUT_GROUP_BYTES {
            let Some((hash, chunk)) = arriving.try_next().await? else { break };
            bytes += chunk.len();
            group.push(Chunk::already_verified(hash, chunk));
        }
        Ok(if group.is_empty() { None } else { Some((group, arriving)) })
    })
}
