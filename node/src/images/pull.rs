//! Pulling: one part of a study from the sites that have it, to where this node has it durably.
//!
//! ```text
//! study manifest -> instance manifests -> heads, then pixels in the reader's order -> groups, one fsync each
//! ```
//! What comes is written while more comes, and stays if the rest does not: the next attempt, after a cut or a
//! restart, asks for what is missing only. Until it is durable it is in this node's hand, where readers find it.

use std::collections::BTreeSet;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, Stream, StreamExt as _};
use maillage_consensus::mesh::HeldPart;
use maillage_store::{
    Chunk, ChunkEntry, Hash, Hold, InstanceEntry, InstanceManifest, PutGroup, Store, StoreError, StudyManifest,
};
use maillage_transport::PeerId;
use maillage_transport::chunk::Class;
use maillage_transport::fetch::{Arrived, Arriving, FetchError, InHand};
use tokio::time::{Instant, timeout_at};

use super::listing::agrees;
use super::order::{Slice, reading_order};
use super::{FetchReport, Images, ImagesError, Progress};
use crate::ingest::decode_attributes;

/// Bytes of pulled chunks written in one group: one fsync for so many …
pub(super) const PUT_GROUP_BYTES: u64 = 8 << 20;
/// … or for so many: a fetch has 512 objects in hand at most, and heads of images, which are small, would wait for
/// [`PUT_GROUP_TIME`] with nothing on the line …
const PUT_GROUP_CHUNKS: usize = 128;
/// … or for what came in this time: a cut costs no more.
const PUT_GROUP_TIME: Duration = Duration::from_millis(200);
/// Groups being written while the next come, for a reader and for others: the store writes those that wait together,
/// and what hospitals send waits with them.
const READERS_PUTS: usize = 4;
const OTHERS_PUTS: usize = 2;

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
        let arrival = self.arrive(held.part.study.as_str()).ok_or(ImagesError::Leaving)?;
        let report = self.bring(&arrival, held, Pull { class, day: self.day_of(held)?, progress }).await?;
        let address = Hash(held.part.manifest);
        // A copy that the mesh counts on, from here on: no longer one to be dropped for want of room.
        self.0.prefetched.leave(&[address]).await?;
        match self.0.store.hold(address).await? {
            Hold::Held => Ok(report),
            Hold::Incomplete { missing } => Err(ImagesError::Incomplete { missing: missing.len() }),
        }
    }

    /// Brings one part of a study here for whoever is likely to read it. It is not held, and nobody is told: it is
    /// no copy, and lies with what goes on `day`. It is noted as such before the first byte of it is here.
    ///
    /// # Errors
    /// [`ImagesError`]; what came so far stays and is not fetched again.
    pub(crate) async fn prefetch_part(&self, held: &HeldPart, day: u64) -> Result<FetchReport, ImagesError> {
        let arrival = self.arrive(held.part.study.as_str()).ok_or(ImagesError::Leaving)?;
        self.bring(&arrival, held, Pull { class: Class::Prefetch, day: Some(day), progress: None }).await
    }

    async fn bring(&self, _arrival: &Arrival<'_>, held: &HeldPart, pull: Pull<'_>) -> Result<FetchReport, ImagesError> {
        // Asked after the arrival is known: a purge either waits for its end, or is seen here.
        self.is_known(held)?;
        self.may_keep(held)?;
        let store = &self.0.store;
        let holders = self.to_ask_of(&held.all_holders(), held.origin);
        let manifest = self.study_manifest(Hash(held.part.manifest), &holders, pull.class).await?;
        if manifest.study_uid != held.part.study.as_str() {
            return Err(ImagesError::Manifest("it is another study's".to_owned()));
        }
        let encoded = manifest.encode().map_err(|error| ImagesError::Manifest(error.to_string()))?;
        let hashes: Vec<Hash> = manifest.instances.iter().map(|entry| entry.manifest).collect();
        // The study's manifest is durable before those of its instances: what they refer to is then known for its.
        let (_, instances) = futures::future::try_join(
            async { Ok(store.put_manifest_until(encoded, pull.day).await?) },
            self.instance_manifests(&hashes, &holders, pull.class),
        )
        .await?;
        let manifests = self.encoded(&manifest, &instances)?;
        let Chunks { wanted, total, absent } = self.chunks_to_bring(&manifest, &instances).await?;
        // The manifests are queued first, so that they are durable with the first chunks at the latest.
        let manifests = async { Ok(store.put(PutGroup { manifests, day: pull.day, ..PutGroup::default() }).await?) };
        futures::future::try_join(manifests, self.bring_chunks(wanted, &holders, pull, [total - absent, total]))
            .await?;
        Ok(FetchReport { instances: hashes.len() as u64, bytes: manifest.total_bytes(), fetched: absent })
    }

    fn encoded(
        &self,
        manifest: &StudyManifest,
        instances: &HashMap<Hash, Arc<InstanceManifest>>,
    ) -> Result<Vec<Chunk>, ImagesError> {
        let encode = |entry: &InstanceEntry| {
            let instance = instances.get(&entry.manifest).ok_or(ImagesError::Unavailable(entry.manifest))?;
            agrees(&manifest.study_uid, entry, instance)?;
            let encoded = instance.encode().map_err(|error| ImagesError::Manifest(error.to_string()))?;
            Ok(Chunk::new(encoded))
        };
        manifest.instances.iter().map(encode).collect()
    }

    /// The chunks that are not here, in the order in which a reader is served by them.
    async fn chunks_to_bring(
        &self,
        manifest: &StudyManifest,
        instances: &HashMap<Hash, Arc<InstanceManifest>>,
    ) -> Result<Chunks, ImagesError> {
        let listed: Vec<&InstanceManifest> =
            manifest.instances.iter().filter_map(|entry| instances.get(&entry.manifest)).map(|one| &**one).collect();
        let mut seen = BTreeSet::new();
        let mut all = in_reading_order(&self.0.store, &listed);
        all.retain(|chunk| seen.insert(chunk.hash));
        let hashes: Vec<Hash> = all.iter().map(|chunk| chunk.hash).collect();
        let absent: BTreeSet<Hash> = self.0.store.missing(&hashes).await?.into_iter().collect();
        let total = all.iter().map(|chunk| u64::from(chunk.len)).sum();
        all.retain(|chunk| absent.contains(&chunk.hash));
        let absent = all.iter().map(|chunk| u64::from(chunk.len)).sum();
        let wanted = all.into_iter().map(|chunk| (chunk.hash, chunk.len as usize)).collect();
        Ok(Chunks { wanted, total, absent })
    }

    pub(super) fn is_known(&self, held: &HeldPart) -> Result<(), ImagesError> {
        let study = self.known_study(held.part.study.as_str())?;
        let is_it = |known: &HeldPart| known.exam == held.exam && known.origin == held.origin;
        if study.is_some_and(|study| study.parts.iter().any(is_it)) { Ok(()) } else { Err(ImagesError::Gone) }
    }

    /// Fetches chunks and stores them as they come, all that can be had though some cannot.
    async fn bring_chunks(
        &self,
        wanted: Vec<(Hash, usize)>,
        holders: &[PeerId],
        pull: Pull<'_>,
        [mut here, total]: [u64; 2],
    ) -> Result<(), ImagesError> {
        if wanted.is_empty() {
            return Ok(());
        }
        let arriving = self.arriving(wanted, holders, pull.class);
        let puts = if pull.class == Class::Reader { READERS_PUTS } else { OTHERS_PUTS };
        let mut written = std::pin::pin!(write_as_they_come(&self.0.store, arriving, pull.day, puts));
        let mut lost = None;
        while let Some(group) = written.next().await {
            let Written { bytes, own_bytes, lost: lost_of_it } = group?;
            self.note_arrived(pull.class, own_bytes);
            if pull.class != Class::Reader {
                self.0.pace.take(own_bytes).await;
            }
            here += bytes;
            lost = lost.or(lost_of_it);
            if let Some(progress) = pull.progress {
                // A reader of the progress that is slow or gone misses a step, nothing more.
                let _ = progress.try_send((here, total));
            }
        }
        lost.map_or(Ok(()), |lost| Err(ImagesError::Unavailable(lost)))
    }
}

/// How a part is brought.
#[derive(Clone, Copy)]
struct Pull<'a> {
    class: Class,
    /// The day on which what is brought is expected to go, when that is known.
    day: Option<u64>,
    progress: Option<&'a Progress>,
}

/// What a part consists of, in bytes as stored, and what of it is to be brought.
struct Chunks {
    wanted: Vec<(Hash, usize)>,
    total: u64,
    absent: u64,
}

/// Something of a study on its way here, until this is dropped.
#[derive(Debug)]
pub(crate) struct Arrival<'a> {
    images: &'a Images,
    study: &'a str,
}

impl<'a> Arrival<'a> {
    pub(super) fn begin(images: &'a Images, study: &'a str) -> Self {
        *images.arrivals().entry(study.to_owned()).or_default() += 1;
        Self { images, study }
    }
}

impl Drop for Arrival<'_> {
    fn drop(&mut self) {
        let arriving = &mut *self.images.arrivals();
        if let Some(count) = arriving.get_mut(self.study) {
            *count -= 1;
            if *count == 0 {
                arriving.remove(self.study);
            }
        }
    }
}

/// The heads of all instances, of which a viewer makes its layout; then their pixels.
fn in_reading_order(store: &Store, instances: &[&InstanceManifest]) -> Vec<ChunkEntry> {
    let slice = |instance: &&InstanceManifest| {
        // Without the key the UIDs give an order, too.
        let known = store.attributes(instance).ok().and_then(|opened| decode_attributes(&opened));
        let numbers = known.map_or((None, None), |known| (known.series_number, known.instance_number));
        (instance.series_uid.clone(), instance.sop_instance.clone(), numbers)
    };
    let known: Vec<_> = instances.iter().map(slice).collect();
    let slices: Vec<Slice<'_>> = known
        .iter()
        .map(|(series, sop_instance, (series_number, number))| Slice {
            series,
            series_number: *series_number,
            number: *number,
            sop_instance,
        })
        .collect();
    let (mut heads, mut pixels) = (Vec::new(), Vec::new());
    for instance in reading_order(&slices).into_iter().filter_map(|place| instances.get(place)) {
        let mut at = 0;
        for chunk in &instance.chunks {
            if at < instance.head_len { &mut heads } else { &mut pixels }.push(*chunk);
            at += u64::from(chunk.raw_len);
        }
    }
    heads.append(&mut pixels);
    heads
}

/// Chunks that are written together.
#[derive(Default)]
struct Group {
    chunks: Vec<Chunk>,
    in_hand: Vec<InHand>,
    written: Written,
}

/// What became of them.
#[derive(Default)]
struct Written {
    bytes: u64,
    /// Those that no other fetch brought.
    own_bytes: u64,
    /// One that no holder can give.
    lost: Option<Hash>,
}

/// Stores chunks in groups as they arrive, several at once. What is written stays if this is dropped.
fn write_as_they_come(
    store: &Store,
    arriving: Arriving,
    day: Option<u64>,
    puts: usize,
) -> impl Stream<Item = Result<Written, StoreError>> + Send {
    let write = move |Group { chunks, in_hand, written }: Group| {
        let store = store.clone();
        async move {
            if !chunks.is_empty() {
                store.put(PutGroup { chunks, day, ..PutGroup::default() }).await?;
            }
            // In this node's hand until it is durable.
            drop(in_hand);
            Ok(written)
        }
    };
    in_groups(arriving).map(write).buffer_unordered(puts)
}

/// Chunks in groups of about [`PUT_GROUP_BYTES`], [`PUT_GROUP_CHUNKS`] or [`PUT_GROUP_TIME`], as they arrive.
fn in_groups(arriving: Arriving) -> impl Stream<Item = Group> + Send {
    stream::unfold(Some(arriving), |arriving| async move {
        let mut arriving = arriving?;
        let mut group = Group::default();
        group.take(arriving.recv().await?);
        let until = Instant::now() + PUT_GROUP_TIME;
        while group.written.bytes < PUT_GROUP_BYTES && group.chunks.len() < PUT_GROUP_CHUNKS {
            match timeout_at(until, arriving.recv()).await {
                Ok(Some(arrived)) => group.take(arrived),
                Ok(None) => return Some((group, None)),
                Err(_) => break,
            }
        }
        Some((group, Some(arriving)))
    })
}

impl Group {
    fn take(&mut self, arrived: Result<Arrived, FetchError>) {
        let Arrived { hash, bytes, is_shared, in_hand } = match arrived {
            Ok(arrived) => arrived,
            Err(error) => {
                self.written.lost.get_or_insert(Hash(*error.hash().as_bytes()));
                return;
            }
        };
        self.written.bytes += bytes.len() as u64;
        self.written.own_bytes += if is_shared { 0 } else { bytes.len() as u64 };
        self.chunks.push(Chunk::already_verified(Hash(*hash.as_bytes()), bytes));
        self.in_hand.push(in_hand);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    use bytes::Bytes;
    use futures::future::BoxFuture;
    use maillage_dicom::phantom::CtPhantom;
    use maillage_host::engine::MemoryHome;
    use maillage_host::{Clock, Disk};
    use maillage_store::StoreConfig;
    use maillage_transport::Identity;
    use maillage_transport::fetch::{AskError, ClassNow, Fetcher, Holders, Wanted};

    use super::*;
    use crate::config::Settings;
    use crate::ingest::{Announced, Ingest, Source};
    use crate::metrics::Metrics;
    use crate::senders::Senders;

    /// A holder that is cut off after so many answers.
    struct Cut {
        chunks: BTreeMap<[u8; 32], Bytes>,
        left: Mutex<usize>,
        asked: Mutex<Vec<[u8; 32]>>,
    }

    impl Cut {
        fn new(chunks: &[Bytes], left: usize) -> Arc<Self> {
            let chunks = chunks.iter().map(|bytes| (*blake3::hash(bytes).as_bytes(), bytes.clone())).collect();
            Arc::new(Self { chunks, left: Mutex::new(left), asked: Mutex::default() })
        }
    }

    struct Way(Arc<Cut>, PeerId);

    impl Holders for Way {
        fn own(&self) -> PeerId {
            self.1
        }

        fn ask(&self, _peer: PeerId, wanted: Wanted, _class: ClassNow) -> BoxFuture<'_, Result<Bytes, AskError>> {
            Box::pin(async move {
                let gives = {
                    let mut left = self.0.left.lock().expect("lock");
                    let gives = *left > 0;
                    *left = left.saturating_sub(1);
                    gives
                };
                if !gives {
                    std::future::pending::<()>().await;
                }
                self.0.asked.lock().expect("lock").push(*wanted.hash.as_bytes());
                Ok(self.0.chunks[wanted.hash.as_bytes()].clone())
            })
        }
    }

    fn fetch(cut: &Arc<Cut>, wanted: &[Hash]) -> Arriving {
        let peers = [(); 2].map(|()| Identity::generate().peer_id());
        let way = Way(Arc::clone(cut), peers[0]);
        let fetcher = Fetcher::new(Arc::new(way), tokio::sync::mpsc::channel(1).0);
        let wanted = wanted.iter().map(|hash| Wanted { hash: blake3::Hash::from_bytes(hash.0), len: 20_000 });
        fetcher.fetch(wanted.collect(), vec![peers[1]], Class::Copy)
    }

    async fn open(directory: &tempfile::TempDir) -> Store {
        let config = StoreConfig { reserve_bytes: 0, ..StoreConfig::default() };
        let home = Arc::new(MemoryHome::default());
        Store::open(Disk::real(directory.path()), "", home, Clock::system(), config).await.expect("open the store")
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_came_before_a_cut_and_a_restart_is_not_asked_for_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let all: Vec<Bytes> = (0_u32..40).map(|n| Bytes::from(n.to_be_bytes().repeat(5000))).collect();
        let hashes: Vec<Hash> = all.iter().map(|bytes| Hash::of(bytes)).collect();
        let store = open(&directory).await;
        let cut = Cut::new(&all, 25);
        let mut written = Box::pin(write_as_they_come(&store, fetch(&cut, &hashes), None, 2));
        // It ends in the middle of the study, and so does the process.
        let mut bytes = 0;
        while bytes < 25 * 20_000 {
            let group = tokio::time::timeout(Duration::from_secs(20), written.next()).await.expect("it comes");
            bytes += group.expect("a group").expect("written").bytes;
        }
        drop(written);
        store.close().await.expect("close");
        drop(store);

        let store = open(&directory).await;
        let missing = store.missing(&hashes).await.expect("index");
        let had: BTreeSet<[u8; 32]> = cut.asked.lock().expect("lock").iter().copied().collect();
        assert_eq!((had.len(), missing.len()), (25, 15));
        assert!(missing.iter().all(|hash| !had.contains(&hash.0)), "what came is durable");
        let whole = Cut::new(&all, 40);
        let mut written = Box::pin(write_as_they_come(&store, fetch(&whole, &missing), None, 2));
        while let Some(group) = written.next().await {
            assert!(group.expect("written").lost.is_none());
        }
        assert_eq!(whole.asked.lock().expect("lock").len(), 15, "only what was missing");
        assert!(store.has_all(&hashes).await.expect("index"));
    }

    #[tokio::test(start_paused = true)]
    async fn small_chunks_come_without_a_wait_though_a_fetch_has_only_so_many_in_hand() {
        let all: Vec<Bytes> = (0_u32..2000).map(|n| Bytes::from(n.to_be_bytes().repeat(10))).collect();
        let hashes: Vec<Hash> = all.iter().map(|bytes| Hash::of(bytes)).collect();
        let begun = Instant::now();
        let cut = Cut::new(&all, all.len());
        let mut groups = Box::pin(in_groups(fetch(&cut, &hashes)));
        let mut came = 0;
        while let Some(group) = groups.next().await {
            assert!(group.chunks.len() <= PUT_GROUP_CHUNKS, "{}", group.chunks.len());
            came += group.chunks.len();
        }
        assert_eq!(came, all.len());
        assert!(begun.elapsed() < PUT_GROUP_TIME, "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn heads_come_before_all_pixels() {
        use maillage_store::{InstanceIdentity, ManifestFlags, cut};
        let directory = tempfile::tempdir().expect("a directory");
        let store = open(&directory).await;
        let instance = |number: u8| {
            let cut = cut(Bytes::from(vec![number; 3_000_000]), 2_000);
            let uid = |tail: u8| format!("1.2.{tail}");
            let identity = InstanceIdentity {
                sop_instance: uid(number),
                sop_class: "1.2.3".into(),
                series_uid: "1.2".into(),
                study_uid: "1.2".into(),
                transfer_syntax: "1.2.3".into(),
            };
            InstanceManifest::of(&cut, identity, Vec::new(), ManifestFlags::default())
        };
        let instances = [1, 2, 3].map(instance);
        let order = in_reading_order(&store, &instances.each_ref());
        let heads: Vec<u32> = order.iter().take(3).map(|chunk| chunk.len).collect();
        assert_eq!(heads, [2_000; 3]);
        let pixels: Vec<Hash> = order.iter().skip(3).map(|chunk| chunk.hash).collect();
        let of = |place: usize| instances[place].chunks.iter().skip(1).map(|chunk| chunk.hash);
        assert_eq!(pixels, of(1).chain(of(0)).chain(of(2)).collect::<Vec<_>>());
    }

    /// A store that has these instances as it received them, sealed.
    async fn received(directory: &tempfile::TempDir, phantom: &CtPhantom) -> (Store, Vec<Arc<InstanceManifest>>) {
        let store = open(directory).await;
        let settings = "[node]\nname = \"a\"\nzone = \"a\"\ndata_dir = \"/nowhere\"\n[dicom]\nany_caller = true\n";
        let senders = Senders::new(&Settings::from_toml(settings).expect("settings").into_config());
        let (gather, _arrivals) = tokio::sync::mpsc::unbounded_channel();
        let (nobody, seals) = (Box::new(|_: &str| None), Box::new(|| true));
        let ingest = Ingest::new(store.clone(), Clock::system(), Metrics::new(), senders, gather, nobody, seals);
        let mut manifests = Vec::new();
        for n in 0..phantom.slices {
            let (sop_instance, dataset) = phantom.slice(n);
            let announced = Announced {
                sop_class: CtPhantom::SOP_CLASS,
                sop_instance: sop_instance.clone(),
                transfer_syntax: CtPhantom::TRANSFER_SYNTAX,
                foreign_preamble: false,
            };
            ingest.receive(Source::Local, announced, dataset).await.expect("received");
            let instance = store.instance(sop_instance.as_str()).await.expect("a look").expect("it is there");
            let manifest = store.instance_manifest(instance.entry.manifest).await.expect("a look").expect("there");
            assert!(manifest.key.is_some(), "sealed");
            manifests.push(Arc::new(manifest));
        }
        (store, manifests)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn sealed_slices_come_by_their_instance_numbers_and_without_the_key_by_their_uids() {
        let [directory, elsewhere] = [(); 2].map(|()| tempfile::tempdir().expect("a directory"));
        let phantom = CtPhantom { slices: 7, rows: 64, columns: 64, ..CtPhantom::default() };
        let (store, numbered) = received(&directory, &phantom).await;
        // As manifests list them.
        let mut listed: Vec<&InstanceManifest> = numbered.iter().map(|manifest| &**manifest).collect();
        listed.sort_by(|a, b| a.sop_instance.cmp(&b.sop_instance));
        let number = |chunk: &ChunkEntry| {
            let has = |manifest: &Arc<InstanceManifest>| manifest.chunks.iter().any(|own| own.hash == chunk.hash);
            numbered.iter().position(has).expect("a slice's") + 1
        };
        let order = |store: &Store| {
            let order: Vec<usize> = in_reading_order(store, &listed).iter().map(number).collect();
            let (heads, pixels) = order.split_at(7);
            assert_eq!(heads, pixels, "heads and pixels, one chunk each");
            heads.to_vec()
        };
        assert_eq!(order(&store), [4, 3, 5, 2, 6, 1, 7]);
        // Where the key is not, what a slice is called says little, and nothing is lost.
        let keyless = order(&open(&elsewhere).await);
        assert_ne!(keyless, [4, 3, 5, 2, 6, 1, 7], "the UIDs are in another order");
        assert_eq!(keyless.iter().copied().collect::<BTreeSet<_>>(), (1..=7).collect());
    }
}
