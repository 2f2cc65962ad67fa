//! What the other holders of a study have of it: each is asked for every object by itself, and all of it is compared
//! here. What a site says of its own copy is its word; what it gives is proof. Nothing of it is kept.

use std::collections::BTreeMap;

use futures::stream::{self, StreamExt as _};
use maillage_consensus::ids::SiteId;
use maillage_store::{Hash, INSTANCE_MANIFEST_BYTES_MAX, STUDY_MANIFEST_BYTES_MAX};
use maillage_transport::PeerId;
use maillage_transport::chunk::{Class, GetError};
use maillage_transport::fetch::{AskError, Wanted};

use super::{Images, ImagesError};

/// Objects asked of one site at once, each of at most 1 MiB but for manifests: a line of a long round trip is busy.
const AT_ONCE: usize = 16;

/// What one site gave of the parts that it is noted to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Elsewhere {
    pub(crate) site: SiteId,
    /// Manifests and chunks that it gave and that have their hash, and their bytes.
    pub(crate) objects: u64,
    pub(crate) bytes: u64,
    /// Those that it says it does not have.
    pub(crate) missing: Vec<Hash>,
    /// Those that it cannot read, or gave other bytes for.
    pub(crate) damaged: Vec<Hash>,
    /// Why it could not be asked to the end, if it could not.
    pub(crate) unreachable: Option<String>,
}

impl Elsewhere {
    fn of(site: SiteId) -> Self {
        Self { site, objects: 0, bytes: 0, missing: Vec::new(), damaged: Vec::new(), unreachable: None }
    }

    /// Whether it has all of it.
    pub(crate) fn is_complete(&self) -> bool {
        self.missing.is_empty() && self.damaged.is_empty() && self.unreachable.is_none()
    }
}

impl Images {
    /// Reads a study at every other site that is noted to hold some of it, one site after the other. `None` when the
    /// study is not known.
    ///
    /// # Errors
    /// [`ImagesError`]: its manifests cannot be read, or it must not leave the site that received it.
    pub(crate) async fn verify_elsewhere(&self, uid: &str) -> Result<Option<Vec<Elsewhere>>, ImagesError> {
        let Some(study) = self.known_study(uid)? else { return Ok(None) };
        let mut by_site: BTreeMap<SiteId, BTreeMap<Hash, usize>> = BTreeMap::new();
        for held in &study.parts {
            self.may_have(held)?;
            let others: Vec<SiteId> = held.holders.iter().copied().filter(|site| *site != self.0.site).collect();
            if others.is_empty() {
                continue;
            }
            let objects = self.objects(Hash(held.part.manifest), &self.to_ask(&others)).await?;
            for site in others {
                by_site.entry(site).or_default().extend(&objects);
            }
        }
        let mut found = Vec::with_capacity(by_site.len());
        for (site, objects) in by_site {
            found.push(self.read_at(site, objects).await);
        }
        Ok(Some(found))
    }

    /// Everything that a part consists of, with the most bytes that each may have.
    async fn objects(&self, manifest: Hash, holders: &[PeerId]) -> Result<BTreeMap<Hash, usize>, ImagesError> {
        let mut objects: BTreeMap<Hash, usize> = BTreeMap::from([(manifest, STUDY_MANIFEST_BYTES_MAX)]);
        let study = match self.study_manifest(manifest, holders, Class::Repair).await {
            // Each site says of itself whether it cannot be asked or does not have it.
            Err(ImagesError::Unavailable(_)) => return Ok(objects),
            study => study?,
        };
        let hashes: Vec<Hash> = study.instances.iter().map(|entry| entry.manifest).collect();
        objects.extend(hashes.iter().map(|hash| (*hash, INSTANCE_MANIFEST_BYTES_MAX)));
        // One that nobody has is missed at each site; its chunks cannot be named.
        for instance in self.instance_manifests(&hashes, holders, Class::Repair).await?.values() {
            objects.extend(instance.chunks.iter().map(|chunk| (chunk.hash, chunk.len as usize)));
        }
        Ok(objects)
    }

    async fn read_at(&self, site: SiteId, objects: BTreeMap<Hash, usize>) -> Elsewhere {
        let mut found = Elsewhere::of(site);
        let Some(peer) = self.0.roster.peer(site) else {
            found.unreachable = Some("it is no member".to_owned());
            return found;
        };
        let ask = |(hash, len): (Hash, usize)| async move {
            let wanted = Wanted { hash: blake3::Hash::from_bytes(hash.0), len };
            (hash, self.0.fetcher.get_from(peer, wanted, Class::Repair).await)
        };
        let mut answers = stream::iter(objects).map(ask).buffer_unordered(AT_ONCE);
        while let Some((hash, answer)) = answers.next().await {
            match answer {
                Ok(bytes) => {
                    found.objects += 1;
                    found.bytes += bytes.len() as u64;
                    self.note_arrived(Class::Repair, bytes.len() as u64);
                }
                Err(AskError::Get(GetError::Absent)) => found.missing.push(hash),
                Err(AskError::Get(
                    GetError::Failed | GetError::TooLong { .. } | GetError::WrongBytes | GetError::Malformed,
                )) => found.damaged.push(hash),
                Err(error @ (AskError::Link(_) | AskError::Get(GetError::Stalled | GetError::Lost(_)))) => {
                    found.unreachable = Some(error.to_string());
                    break;
                }
            }
        }
        found
    }
}
