//! Images wherever they are: listing, streaming, pulling and verifying studies.
//!
//! What is here is read from the store; what is not comes from the sites that hold it. Every byte is
//! compared with its hash on the way, so a caller sees the right bytes or an error.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{self, Stream, StreamExt as _};
use maillage_consensus::View;
use maillage_consensus::ids::SiteId;
use maillage_consensus::machine::ApplyError;
use maillage_consensus::mesh::{HeldPart, Study};
use maillage_consensus::raft::Group;
use maillage_dicom::Uid;
use maillage_dicom::part10::{self, FileMeta};
use maillage_store::{
    CHUNK_BYTES_MAX, Hash, INSTANCE_MANIFEST_BYTES_MAX, InstanceManifest, Proof, STUDY_MANIFEST_BYTES_MAX, Store,
    StoreError, StudyManifest,
};
use maillage_transport::PeerId;
use maillage_transport::chunk::{ChunkSource, Class};
use maillage_transport::fetch::{Arrived, Arriving, FetchError, Fetcher, Penalty, Wanted};
use tokio::sync::mpsc;

use crate::copies::pace::Pace;
use crate::metrics::Metrics;
use crate::pack_day;
use crate::prefetch::{Ledger, LedgerError};
use crate::presence::Presence;
use crate::roster::Roster;

mod everywhere;
mod leave;
mod listing;
mod mend;
mod order;
mod published;
mod pull;
mod verify;

pub(crate) use everywhere::Elsewhere;
pub(crate) use leave::Leave;

use listing::{Listed, Listing, agrees};
pub(crate) use mend::{Extent, Mended};

/// How long who asks for a study waits for what has landed of it to be coded.
pub(crate) const CODED_WITHIN: Duration = Duration::from_secs(5);
/// Local chunks read ahead of a reader.
const READ_AHEAD: usize = 4;
/// What is asked for first of a manifest whose length is not known: that of an instance of 1 GB, and of a study of
/// some 4,500. Only of one that is longer, as much as it may be.
const INSTANCE_MANIFEST_BYTES: usize = 64 << 10;
const STUDY_MANIFEST_BYTES: usize = 1 << 20;

/// Why images cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImagesError {
    /// No site that answers has the object.
    #[error("no reachable site holds object {0}")]
    Unavailable(Hash),
    /// The study's manifests contradict each other or cannot be read.
    #[error("the study's manifest is not valid: {0}")]
    Manifest(String),
    /// Its parts name different patients: somebody must look before anybody is shown either.
    #[error("parts of this study name different patients")]
    SeveralPatients,
    /// They stay at the site that received them.
    #[error("the patient refuses the transfer of these images")]
    Confined,
    /// The layout does not let them lie at this site.
    #[error("the layout does not let this site keep these images")]
    NotHere,
    /// They are being given up at this site.
    #[error("these images are being given up here: try again")]
    Leaving,
    /// The part is not known any more: it was purged, or published anew.
    #[error("this part of the study is not known any more")]
    Gone,
    /// The study is not held here as a whole.
    #[error("{missing} objects of the study are not here")]
    Incomplete {
        /// How many.
        missing: usize,
    },
    /// This node's store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What is kept here without being a copy cannot be noted.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The replicated state cannot be read.
    #[error(transparent)]
    State(#[from] ApplyError),
}

/// One instance of a study, and who holds it.
#[derive(Debug, Clone)]
pub(crate) struct InstanceRef {
    pub(crate) series: String,
    pub(crate) sop_instance: String,
    pub(crate) transfer_syntax: String,
    /// Bytes of the data set.
    pub(crate) bytes: u64,
    manifest: Arc<InstanceManifest>,
    holders: Arc<[PeerId]>,
}

/// A study's images as far as they can be had.
#[derive(Debug)]
pub(crate) struct StudyImages {
    pub(crate) instances: Vec<InstanceRef>,
    /// Instances that are known and on no reachable site.
    pub(crate) missing: u64,
}

/// What a fetch brought.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct FetchReport {
    pub(crate) instances: u64,
    pub(crate) bytes: u64,
    /// Bytes that came from other sites.
    pub(crate) fetched: u64,
}

/// Told how many of how many bytes are here.
pub(crate) type Progress = mpsc::Sender<(u64, u64)>;

/// The images that this node can reach. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Images(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    site: SiteId,
    store: Store,
    group: Group,
    roster: Roster,
    fetcher: Fetcher,
    presence: Presence,
    metrics: Metrics,
    /// Of what nobody waits for.
    pace: Pace,
    /// What is here only because it is likely to be read here.
    prefetched: Ledger,
    /// Studies of which something is being brought here, and how often at once: they are not purged meanwhile,
    /// or what arrives later would stay.
    arriving: Mutex<BTreeMap<String, usize>>,
    /// Studies of which something is being given up here: nothing of them is brought meanwhile.
    leaving: Mutex<BTreeSet<String>>,
    /// Held over a publication, and over the purge of what this site had published: a publication that is on its
    /// way never lists what is gone.
    publishing: tokio::sync::Mutex<()>,
}

/// How other sites' images are reached, and how fast what nobody waits for may come.
#[derive(Debug)]
pub(crate) struct Reach {
    pub(crate) roster: Roster,
    pub(crate) presence: Presence,
    pub(crate) fetcher: Fetcher,
    pub(crate) pace: Pace,
}

impl Images {
    pub(crate) fn new(
        site: SiteId,
        store: Store,
        group: Group,
        reach: Reach,
        metrics: Metrics,
        prefetched: Ledger,
    ) -> Self {
        let Reach { roster, presence, fetcher, pace } = reach;
        let (arriving, leaving, publishing) = (Mutex::default(), Mutex::default(), tokio::sync::Mutex::default());
        Self(Arc::new(Shared {
            site,
            store,
            group,
            roster,
            fetcher,
            presence,
            metrics,
            pace,
            prefetched,
            arriving,
            leaving,
            publishing,
        }))
    }

    /// What is here only because it is likely to be read here.
    pub(crate) fn prefetched(&self) -> &Ledger {
        &self.0.prefetched
    }

    fn known_study(&self, uid: &str) -> Result<Option<Study>, ImagesError> {
        let frozen = self.0.group.reader().view();
        Ok(View::new(&*frozen).study(uid)?)
    }

    /// The turn to publish, or to purge what was published.
    pub(crate) async fn publishing(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.0.publishing.lock().await
    }

    /// Whether something of a study is being brought here.
    pub(crate) fn is_arriving(&self, study: &str) -> bool {
        self.arrivals().contains_key(study)
    }

    fn arrivals(&self) -> MutexGuard<'_, BTreeMap<String, usize>> {
        self.0.arriving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses a part that must not leave the site that received it.
    fn may_have(&self, held: &HeldPart) -> Result<(), ImagesError> {
        let frozen = self.0.group.reader().view();
        let may = View::new(&*frozen).may_hold(self.0.site, held)?;
        if may { Ok(()) } else { Err(ImagesError::Confined) }
    }

    /// … or lie here.
    fn may_keep(&self, held: &HeldPart) -> Result<(), ImagesError> {
        self.may_have(held)?;
        let frozen = self.0.group.reader().view();
        let may = View::new(&*frozen).plan()?.allows(held.origin, self.0.site);
        if may { Ok(()) } else { Err(ImagesError::NotHere) }
    }

    /// With what goes on which day a part is laid down here.
    fn day_of(&self, held: &HeldPart) -> Result<Option<u64>, ImagesError> {
        let frozen = self.0.group.reader().view();
        Ok(pack_day::of_part(&View::new(&*frozen), held)?)
    }

    /// The nodes of `sites` to ask, those that are connected if any is: a node that was just killed is
    /// still a holder, and waiting for it would keep a reader waiting.
    fn to_ask(&self, sites: &[SiteId]) -> Arc<[PeerId]> {
        let others = sites.iter().filter(|site| **site != self.0.site);
        let peers: Vec<PeerId> = others.filter_map(|site| self.0.roster.peer(*site)).collect();
        let connected: Arc<[PeerId]> =
            peers.iter().copied().filter(|peer| self.0.presence.is_connected(peer)).collect();
        // Where only those are connected that sent wrong bytes, the others are tried too, and first.
        let is_trusted = |peer: &PeerId| self.penalty(peer).is_none_or(|penalty| penalty.left.is_zero());
        if connected.iter().any(is_trusted) { connected } else { peers.into() }
    }

    /// The nodes to ask for what `origin` received: as [`Images::to_ask`], and where none of these is connected also who
    /// received it: when its copy is counted on no more, as of a site that is drained, its bytes are still there.
    fn to_ask_of(&self, sites: &[SiteId], origin: SiteId) -> Arc<[PeerId]> {
        let asked = self.to_ask(sites);
        let is_connected = |peer: &PeerId| self.0.presence.is_connected(peer);
        if origin == self.0.site || sites.contains(&origin) || asked.iter().any(is_connected) {
            return asked;
        }
        asked.iter().copied().chain(self.0.roster.peer(origin)).collect()
    }

    /// What is held against a peer: answers that were not what it was asked for.
    pub(crate) fn penalty(&self, peer: &PeerId) -> Option<Penalty> {
        self.0.fetcher.penalty(peer)
    }

    /// The instances of a study that can be had now: of every part that the mesh knows, and of what this
    /// node received and has not published yet. `None` when nothing is known of it.
    ///
    /// # Errors
    /// [`ImagesError::SeveralPatients`] when its parts name different ones.
    pub(crate) async fn study(&self, uid: &str) -> Result<Option<StudyImages>, ImagesError> {
        // Whoever was told that an image is here, and asks for it, gets it.
        self.0.store.landing().until_coded(uid, CODED_WITHIN).await;
        let parts = self.known_study(uid)?.map(|study| study.parts).unwrap_or_default();
        let patients = || parts.iter().map(|held| &held.part.says.patient);
        if patients()
            .any(|one| patients().any(|other| !one.id.is_empty() && !other.id.is_empty() && !one.same_as(other)))
        {
            return Err(ImagesError::SeveralPatients);
        }
        let mut listing = Listing::default();
        let up = self.in_session()?;
        for held in &parts {
            self.may_have(held)?;
            self.list_part(uid, held, &up, &mut listing).await?;
        }
        for instance in self.0.store.instances(uid).await? {
            listing.add(instance.entry, &Arc::from([]), true);
        }
        if listing.entries.is_empty() {
            return Ok((listing.missing > 0).then(|| StudyImages { instances: Vec::new(), missing: listing.missing }));
        }
        let found = self.with_manifests(uid, listing).await?;
        Ok((!found.instances.is_empty() || found.missing > 0).then_some(found))
    }

    /// Lists one part, by its latest publication that can be read.
    async fn list_part(
        &self,
        uid: &str,
        held: &HeldPart,
        up: &BTreeSet<SiteId>,
        listing: &mut Listing,
    ) -> Result<(), ImagesError> {
        for (part, sites) in held.publications() {
            let holders = self.to_ask_of(sites, held.origin);
            let manifest = match self.study_manifest(Hash(part.manifest), &holders, Class::Reader).await {
                Err(ImagesError::Unavailable(_)) => continue,
                other => other?,
            };
            if manifest.study_uid != uid {
                return Err(ImagesError::Manifest("it is another study's".to_owned()));
            }
            listing.missing += u64::from(held.part.instances.saturating_sub(part.instances));
            let is_up = sites.iter().any(|site| up.contains(site));
            for entry in manifest.instances {
                listing.add(entry, &holders, is_up);
            }
            return Ok(());
        }
        listing.missing += u64::from(held.part.instances);
        Ok(())
    }

    /// The sites in session.
    fn in_session(&self) -> Result<BTreeSet<SiteId>, ImagesError> {
        let frozen = self.0.group.reader().view();
        let sites = View::new(&*frozen).sites()?;
        Ok(sites.into_iter().filter(|site| site.session_open).map(|site| site.id).collect())
    }

    async fn with_manifests(&self, uid: &str, listing: Listing) -> Result<StudyImages, ImagesError> {
        let Listing { entries, mut missing } = listing;
        let mut by_holders: BTreeMap<Vec<PeerId>, Vec<Hash>> = BTreeMap::new();
        for Listed { entry, holders, .. } in entries.values().flatten() {
            by_holders.entry(holders.to_vec()).or_default().push(entry.manifest);
        }
        let mut manifests = HashMap::new();
        for (holders, hashes) in by_holders {
            manifests.extend(self.instance_manifests(&hashes, &holders, Class::Reader).await?);
        }
        let mut instances = Vec::with_capacity(entries.len());
        for listed in entries.into_values() {
            let Some((Listed { entry, holders, .. }, manifest)) = self.nearest(listed, &manifests).await? else {
                missing += 1;
                continue;
            };
            agrees(uid, &entry, &manifest)?;
            if let Err(StoreError::KeyDestroyed(_)) = self.0.store.keys().of(&manifest) {
                // Purged, and still to go from this disk.
                continue;
            }
            instances.push(InstanceRef {
                series: manifest.series_uid.clone(),
                sop_instance: manifest.sop_instance.clone(),
                transfer_syntax: manifest.transfer_syntax.clone(),
                bytes: manifest.total_len,
                manifest,
                holders,
            });
        }
        Ok(StudyImages { instances, missing })
    }

    /// Of the manifests under which there is one data set: one that is here with all its chunks, else one that a
    /// connected site has, or one in session, else the first: of a machine that was lost, a study may have a part beside
    /// that of the one in its place.
    async fn nearest(
        &self,
        listed: Vec<Listed>,
        manifests: &HashMap<Hash, Arc<InstanceManifest>>,
    ) -> Result<Option<(Listed, Arc<InstanceManifest>)>, ImagesError> {
        let had = listed.into_iter().filter_map(|listed| {
            let manifest = Arc::clone(manifests.get(&listed.entry.manifest)?);
            Some((listed, manifest))
        });
        let mut had: Vec<(Listed, Arc<InstanceManifest>)> = had.collect();
        if had.len() > 1 {
            let is_gone = |manifest: &InstanceManifest| {
                matches!(self.0.store.keys().of(manifest), Err(StoreError::KeyDestroyed(_)))
            };
            if had.iter().any(|(_, manifest)| !is_gone(manifest)) {
                had.retain(|(_, manifest)| !is_gone(manifest));
            }
            for n in 0..had.len() {
                let chunks: Vec<Hash> = had[n].1.chunks.iter().map(|chunk| chunk.hash).collect();
                if self.0.store.has_all(&chunks).await? {
                    return Ok(Some(had.swap_remove(n)));
                }
            }
            let is_near =
                |(listed, _): &(Listed, _)| listed.holders.iter().any(|peer| self.0.presence.is_connected(peer));
            let nearest = had.iter().position(is_near).or_else(|| had.iter().position(|(listed, _)| listed.is_up));
            let nearest = nearest.unwrap_or(0);
            return Ok(Some(had.swap_remove(nearest)));
        }
        Ok(had.pop())
    }

    async fn study_manifest(&self, hash: Hash, holders: &[PeerId], class: Class) -> Result<StudyManifest, ImagesError> {
        let bytes = match self.0.store.get_manifest(hash).await {
            Ok(Some(bytes)) => bytes,
            Ok(None) | Err(StoreError::Corrupt(_) | StoreError::Missing(_)) => {
                let lengths = [STUDY_MANIFEST_BYTES, STUDY_MANIFEST_BYTES_MAX];
                let mut got = self.fetch_objects(vec![hash], lengths, holders, class).await;
                got.remove(&hash).ok_or(ImagesError::Unavailable(hash))?
            }
            Err(error) => return Err(error.into()),
        };
        StudyManifest::decode(&bytes).map_err(|error| ImagesError::Manifest(error.to_string()))
    }

    /// Those of the manifests that can be had.
    async fn instance_manifests(
        &self,
        hashes: &[Hash],
        holders: &[PeerId],
        class: Class,
    ) -> Result<HashMap<Hash, Arc<InstanceManifest>>, ImagesError> {
        let mut absent = self.0.store.missing(hashes).await?;
        let elsewhere: BTreeSet<Hash> = absent.iter().copied().collect();
        let mut manifests = HashMap::with_capacity(hashes.len());
        for hash in hashes.iter().filter(|hash| !elsewhere.contains(hash)) {
            match self.0.store.instance_manifest(*hash).await {
                Ok(Some(manifest)) => drop(manifests.insert(*hash, Arc::new(manifest))),
                Ok(None) | Err(StoreError::Corrupt(_) | StoreError::Missing(_)) => absent.push(*hash),
                Err(error) => return Err(error.into()),
            }
        }
        let lengths = [INSTANCE_MANIFEST_BYTES, INSTANCE_MANIFEST_BYTES_MAX];
        for (hash, bytes) in self.fetch_objects(absent, lengths, holders, class).await {
            let manifest =
                InstanceManifest::decode(&bytes).map_err(|error| ImagesError::Manifest(error.to_string()))?;
            manifests.insert(hash, Arc::new(manifest));
        }
        Ok(manifests)
    }

    /// Those of `wanted` that `holders` have, each compared with its hash: by the usual length, and those that are
    /// longer by the greatest.
    async fn fetch_objects(
        &self,
        mut wanted: Vec<Hash>,
        lengths: [usize; 2],
        holders: &[PeerId],
        class: Class,
    ) -> HashMap<Hash, Bytes> {
        let mut objects = HashMap::with_capacity(wanted.len());
        for len in lengths {
            if wanted.is_empty() {
                break;
            }
            let mut longer = Vec::new();
            let mut arriving = self.arriving(wanted.into_iter().map(|hash| (hash, len)).collect(), holders, class);
            while let Some(arrived) = arriving.recv().await {
                match arrived {
                    Ok(arrived) => {
                        self.note_arrived(class, own_bytes(&arrived));
                        objects.insert(Hash(*arrived.hash.as_bytes()), arrived.bytes);
                    }
                    Err(FetchError::TooLong(hash)) => longer.push(Hash(*hash.as_bytes())),
                    Err(FetchError::Nowhere(_)) => {}
                }
            }
            wanted = longer;
        }
        objects
    }

    /// Begins to fetch `wanted` (hash and greatest length).
    fn arriving(&self, wanted: Vec<(Hash, usize)>, holders: &[PeerId], class: Class) -> Arriving {
        let wanted = wanted.into_iter().map(|(hash, len)| Wanted { hash: blake3::Hash::from_bytes(hash.0), len });
        self.0.fetcher.fetch(wanted.collect(), holders.to_vec(), class)
    }

    /// Counts bytes that came over the network.
    fn note_arrived(&self, class: Class, bytes: u64) {
        self.0.metrics.chunk_bytes_received(class.as_str(), bytes);
    }

    /// Bytes of the Part 10 file that [`Images::stream`] gives.
    pub(crate) fn part10_len(&self, instance: &InstanceRef) -> u64 {
        header(instance).len() as u64 + instance.bytes
    }

    /// One instance as a whole Part 10 file: a fresh header, then the data set exactly as received.
    pub(crate) fn stream(
        &self,
        instance: &InstanceRef,
    ) -> impl Stream<Item = Result<Bytes, ImagesError>> + Send + use<> {
        let head = stream::once(std::future::ready(Ok(header(instance))));
        let images = self.clone();
        let (manifest, holders) = (Arc::clone(&instance.manifest), Arc::clone(&instance.holders));
        // Now, and no sooner: a key that the mesh destroyed meanwhile opens nothing.
        let key = self.0.store.keys().of(&manifest);
        let pieces = stream::iter(manifest.chunks.clone()).map(move |entry| {
            let (images, holders, key) = (images.clone(), Arc::clone(&holders), key.clone());
            async move {
                let key = key?;
                let stored = images.chunk(entry.hash, entry.len as usize, &holders).await?;
                Ok(Store::open_chunk(entry, stored, key).await?)
            }
        });
        head.chain(Proof::of(&manifest).check(pieces.buffered(READ_AHEAD)))
    }

    async fn chunk(&self, hash: Hash, len: usize, holders: &[PeerId]) -> Result<Bytes, ImagesError> {
        match self.0.store.get(hash).await {
            Ok(Some(bytes)) => return Ok(bytes),
            Ok(None) | Err(StoreError::Corrupt(_) | StoreError::Missing(_)) => {}
            Err(error) => return Err(error.into()),
        }
        // What is on its way already, for a copy or a claim, is waited for and not asked for again.
        let wanted = Wanted { hash: blake3::Hash::from_bytes(hash.0), len };
        let got = self.0.fetcher.get(wanted, holders.to_vec()).await;
        let arrived = got.map_err(|_| ImagesError::Unavailable(hash))?;
        self.note_arrived(Class::Reader, own_bytes(&arrived));
        Ok(arrived.bytes)
    }

    /// Brings a whole study here and tells which parts this node now holds.
    ///
    /// # Errors
    /// [`ImagesError`].
    pub(crate) async fn fetch(&self, uid: &str, progress: Progress) -> Result<Option<FetchedStudy>, ImagesError> {
        let Some(study) = self.known_study(uid)? else { return Ok(None) };
        let mut fetched = FetchedStudy::default();
        for held in study.parts {
            let report = match self.pull_part(&held, Class::Reader, Some(&progress)).await {
                // The other parts are brought all the same; this one is told at the end.
                Err(error) => {
                    fetched.failed = Some(error);
                    continue;
                }
                Ok(report) => report,
            };
            fetched.report.instances += report.instances;
            fetched.report.bytes += report.bytes;
            fetched.report.fetched += report.fetched;
            if !held.holders.contains(&self.0.site) {
                fetched.new_holdings.push(held);
            }
        }
        Ok(Some(fetched))
    }
}

/// What [`Images::fetch`] did.
#[derive(Debug, Default)]
pub(crate) struct FetchedStudy {
    pub(crate) report: FetchReport,
    /// Parts that this node holds since, and the mesh is yet to be told.
    pub(crate) new_holdings: Vec<HeldPart>,
    /// Why a part could not be brought, if one could not.
    pub(crate) failed: Option<ImagesError>,
}

/// The bytes of an object, if no other fetch brought and counted them.
fn own_bytes(arrived: &Arrived) -> u64 {
    if arrived.is_shared { 0 } else { arrived.bytes.len() as u64 }
}

fn header(instance: &InstanceRef) -> Bytes {
    // The UIDs were checked when the manifest was made and again when it was decoded.
    let uid = |text: &str| Uid::parse(text).unwrap_or_else(|_| Uid::derived(text.as_bytes()));
    part10::header(&FileMeta {
        sop_class: uid(&instance.manifest.sop_class),
        sop_instance: uid(&instance.manifest.sop_instance),
        transfer_syntax: uid(&instance.manifest.transfer_syntax),
        source_ae: None,
    })
}

/// Gives members the chunks and manifests of this node's store.
#[derive(Debug)]
pub(crate) struct StoreSource {
    pub(crate) store: Store,
    pub(crate) metrics: Metrics,
}

impl ChunkSource for StoreSource {
    fn read(&self, hash: blake3::Hash) -> BoxFuture<'_, io::Result<Option<Bytes>>> {
        Box::pin(async move {
            match self.store.get(Hash(*hash.as_bytes())).await {
                Ok(found) => {
                    self.metrics.chunk_bytes_sent(found.as_ref().map_or(0, |bytes| bytes.len() as u64));
                    Ok(found)
                }
                Err(StoreError::Corrupt(_) | StoreError::Missing(_)) => Ok(None),
                Err(error) => Err(io::Error::other(error)),
            }
        })
    }
}

/// The longest chunk is the same on the wire, on disk and decoded.
const _: () = assert!(CHUNK_BYTES_MAX == maillage_transport::chunk::CHUNK_LEN_MAX);
const _: () = assert!(CHUNK_BYTES_MAX == maillage_codec::RAW_LEN_MAX);
