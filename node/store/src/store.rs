//! The handle of a store: opening it, putting, getting, and what is here.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, Stream, StreamExt as _};
use maillage_host::disk::Space;
use maillage_host::{Clock, Disk, EngineHome, offload, spawn};
use tokio::sync::{Notify, Semaphore, broadcast, mpsc, oneshot};

use crate::chunk::{CHUNK_BYTES_MAX, Chunk};
use crate::config::StoreConfig;
use crate::error::{OpenError, Refusal, StoreError};
use crate::event::StoreEvent;
use crate::hash::Hash;
use crate::index::{ChunkRow, Index, Mark};
use crate::keys::Keys;
use crate::landing::Landing;
use crate::library::{InstanceCommit, Stored};
use crate::manifest::{ChunkEntry, Form, InstanceManifest, STUDY_MANIFEST_BYTES_MAX};
use crate::pack::PackFiles;
use crate::proof::Proof;
use crate::purge::Intents;
use crate::recovery::Recovery;
use crate::replay::{Replayed, replay};
use crate::seal::StudyKey;
use crate::writer::{Closing, Content, Put, Request, Shared, Writer};

/// Requests that may wait for the writer; their bytes are bounded by the configuration.
const QUEUE_LEN: usize = 1024;
/// Events kept for a receiver that lags; what they announce stays visible in the store.
const EVENTS_KEPT: usize = 256;
/// Unit of the queue's budget: a semaphore counts in 32 bits, and bytes may exceed that.
const PERMIT_BYTES: u64 = 1024;
/// Chunks read ahead of a stream's consumer, so that reading and verifying overlap sending.
const READ_AHEAD: usize = 4;
/// What is so short is hashed where it was read: 50 µs, which is less than another thread costs when many are read.
const HASHED_AT_ONCE: usize = 128 << 10;
/// How often, and how far apart, an index is tried before it is made anew.
const INDEX_ATTEMPTS: u32 = 5;
const INDEX_ATTEMPT_INTERVAL: Duration = Duration::from_millis(200);
/// The file of pending keys, beside the directory of packs.
const PENDING_KEYS: &str = "pending-keys";
/// The medium could not be read (EIO, the same number on every Unix).
const EIO: i32 = 5;

/// A node's store. Cheap to clone; the writer ends after the last clone, or at [`Store::close`].
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) shared: Arc<Shared>,
    pub(crate) queue: mpsc::Sender<Request>,
    /// Bytes that may wait for the writer, in units of [`PERMIT_BYTES`].
    budget: Arc<Semaphore>,
    keys: Keys,
    landing: Landing,
}

/// What is put together: after a crash the commit is there only if all before it is.
#[derive(Debug, Clone, Default)]
pub struct PutGroup {
    /// Pieces of data sets.
    pub chunks: Vec<Chunk>,
    /// Encoded manifests.
    pub manifests: Vec<Chunk>,
    /// Lists an instance whose manifest is in the group or stored already.
    pub commit: Option<InstanceCommit>,
    /// When its retention is expected to end, in days since 1970-01-01, UTC: it lies in a pack with others of
    /// that day, so that most of a pack goes at once, or of a near one while packs of too many days are being written.
    /// Nothing goes because of it. None: 90 days from now.
    pub day: Option<u64>,
}

/// The size of a store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Chunks and manifests in readable packs, bad ones included.
    pub chunks: u64,
    /// Bytes of their payloads.
    pub bytes: u64,
    /// Pack files.
    pub packs: u64,
    /// Bytes free on the volume.
    pub free: u64,
    /// Bytes of the volume.
    pub total: u64,
    /// Quarantined chunks and manifests.
    pub bad: u64,
    /// Those that were written anew since the store was opened.
    pub repaired: u64,
    /// Whether writing ended after an error.
    pub is_failed: bool,
    /// Whether nothing is written while a damaged index is made anew.
    pub is_mending: bool,
    /// Bytes that are to be cut and coded.
    pub landing: u64,
    /// Data sets among them that cannot be read or opened.
    pub stuck: u64,
}

impl Store {
    /// Opens the store under `prefix` (`""` for the root of `disk`), completing the index from the
    /// packs. One process at a time: the data directory's lock is the node's.
    ///
    /// # Errors
    /// See [`OpenError`]. Damage is no error: it is reported by [`Store::recovery`].
    pub async fn open(
        disk: Disk,
        prefix: &str,
        home: Arc<dyn EngineHome>,
        clock: Clock,
        config: StoreConfig,
    ) -> Result<Self, OpenError> {
        let directory = if prefix.is_empty() { "packs".to_owned() } else { format!("{prefix}/packs") };
        disk.create_dir(&directory).await.map_err(OpenError::Directory)?;
        // A process that was killed after it had made a pack may not have synced the pack's name, and what
        // is added to it from now on counts as durable.
        disk.sync_dir(&directory).await.map_err(OpenError::Directory)?;
        let pending_keys = if prefix.is_empty() { PENDING_KEYS.to_owned() } else { format!("{prefix}/{PENDING_KEYS}") };
        let keys = Keys::open(disk.clone(), pending_keys).await?;
        let landing = Landing::open(disk.clone(), prefix, keys.clone(), clock.clone(), &config).await?;
        let mark = Mark::read(disk.clone(), prefix).await.map_err(OpenError::Index)?;
        let (mut index, mut index_rebuilt) = open_index(&home, &mark).await.map_err(OpenError::Index)?;
        let files = Arc::new(PackFiles::new(disk, directory, config.open_files));
        let intents = Intents::read(files.disk(), files.directory()).await.map_err(OpenError::Intent)?;
        let mut replayed = replay(&files, &index, &mark, &intents).await;
        if replayed.is_err() && index.is_damaged() {
            (index, index_rebuilt) = (rebuild_index(&home, &mark).await.map_err(OpenError::Index)?, true);
            replayed = replay(&files, &index, &mark, &intents).await;
        }
        let Replayed { mut recovery, tails, next_number } = replayed?;
        recovery.index_rebuilt = index_rebuilt;
        recovery.log();
        let units = usize::try_from(config.queue_bytes.div_ceil(PERMIT_BYTES)).unwrap_or(usize::MAX);
        let budget = Arc::new(Semaphore::new(units.clamp(1, u32::MAX as usize).min(Semaphore::MAX_PERMITS)));
        let (events, _) = broadcast::channel(EVENTS_KEPT);
        let is_unfinished = !intents.pending().is_empty();
        let shared = Arc::new(Shared {
            files,
            index: RwLock::new(index),
            home,
            mark,
            config,
            clock,
            events,
            intents,
            recovery: Mutex::new(Arc::new(recovery)),
            damage: Notify::new(),
            is_mending: AtomicBool::new(false),
            is_failed: AtomicBool::new(false),
            waiting: AtomicUsize::default(),
            repaired: AtomicU64::default(),
        });
        let (queue, requests) = mpsc::channel(QUEUE_LEN);
        Writer::start(Arc::clone(&shared), tails, next_number, requests);
        let store = Self { shared, queue, budget, keys, landing };
        if is_unfinished {
            drop(spawn(store.clone().finish_purges()));
        }
        Ok(store)
    }

    /// Carries out what the last process had begun to purge.
    async fn finish_purges(self) {
        if let Err(error) = self.carry_out_purges().await {
            tracing::error!(%error, "a purge was not finished");
        }
    }

    /// What opening, and making the index anew since, found and did.
    pub fn recovery(&self) -> Arc<Recovery> {
        self.shared.recovery()
    }

    /// How often its index was made anew since it was opened: one more from the moment at which the new one answers.
    pub fn mends(&self) -> u64 {
        self.shared.recovery().mends
    }

    /// The keys under which its images are sealed.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// What was acknowledged and is still to be cut and coded.
    pub fn landing(&self) -> &Landing {
        &self.landing
    }

    /// Events from now on. At most 256 are kept for a receiver that lags.
    pub fn events(&self) -> broadcast::Receiver<StoreEvent> {
        self.shared.events.subscribe()
    }

    /// Finishes what is queued, makes the index durable and takes nothing more; reads go on.
    ///
    /// # Errors
    /// [`StoreError::Closed`] when it was closed before, `Index` when only the index was not persisted.
    pub async fn close(&self) -> Result<(), StoreError> {
        let (reply, closed) = oneshot::channel();
        self.queue.send(Request::Close(reply)).await.map_err(|_| StoreError::Closed)?;
        closed.await.map_err(|_| StoreError::Closed)?
    }

    /// Puts a group; returns when all of it is durable. What is stored already costs nothing; a
    /// quarantined chunk is written anew. Waits while too many bytes wait before it.
    ///
    /// # Errors
    /// `Failed`, `Mending`, `Full`, `Closed` or `Refused`; nothing of the group counts as put then.
    pub async fn put(&self, group: PutGroup) -> Result<(), StoreError> {
        let PutGroup { chunks, manifests, commit, day } = group;
        let closing = commit.map(Closing::Instance);
        self.submit(Content { chunks, manifests, closing, day, ..Content::default() }).await.map(drop)
    }

    /// The bytes of a chunk or manifest, verified. `None` when it was never here.
    ///
    /// # Errors
    /// `Corrupt` when it is damaged: it is then quarantined and an event sent. `Index` or `Read` when
    /// the machine failed otherwise.
    pub async fn get(&self, hash: Hash) -> Result<Option<Bytes>, StoreError> {
        let Some(row) = self.index(move |index| index.txn().chunk(hash)).await? else { return Ok(None) };
        if row.bad {
            return Err(StoreError::Corrupt(hash));
        }
        let _waiting = Waiting::begin(&self.shared);
        match self.read_piece(hash, row).await? {
            Some(bytes) => Ok(Some(bytes)),
            None => Err(self.quarantine(hash, row).await),
        }
    }

    /// The bytes that a row points at, if they are what its hash says.
    ///
    /// # Errors
    /// `Read` when the machine failed otherwise than by damage.
    pub(crate) async fn read_piece(&self, hash: Hash, row: ChunkRow) -> Result<Option<Bytes>, StoreError> {
        if !row.is_readable(&self.shared.files) {
            return Ok(None);
        }
        let read = self.shared.files.read(row.pack, row.payload_offset(), row.len as usize).await;
        let bytes = match read {
            Ok(bytes) => bytes,
            Err(error) if is_damage(&error) => return Ok(None),
            Err(error) => return Err(StoreError::Read(Arc::new(error))),
        };
        let verified = if bytes.len() <= HASHED_AT_ONCE {
            Chunk::checked(hash, bytes)
        } else {
            let checked = offload(move || Ok(Chunk::checked(hash, bytes))).await;
            checked.map_err(|error| StoreError::Read(Arc::new(error)))?
        };
        Ok(verified.ok().map(Chunk::into_bytes))
    }

    /// Whether somebody waits for a read or a put just now: what can wait goes behind them.
    pub fn is_waited_for(&self) -> bool {
        self.shared.waiting.load(Ordering::Relaxed) > 0
    }

    /// Whether nothing more is written to the packs until the store is opened again: a write or an fsync failed.
    pub fn has_stopped_writing(&self) -> bool {
        self.shared.is_failed.load(Ordering::Relaxed)
    }

    /// Whether nothing is written to the packs for now: a damaged index is being made anew.
    pub fn is_mending(&self) -> bool {
        self.shared.is_mending.load(Ordering::Relaxed)
    }

    /// Whether a chunk or manifest is here and not known to be damaged.
    ///
    /// # Errors
    /// `Index`.
    pub async fn has(&self, hash: Hash) -> Result<bool, StoreError> {
        self.has_all(&[hash]).await
    }

    /// Whether all of them are here.
    ///
    /// # Errors
    /// `Index`.
    pub async fn has_all(&self, hashes: &[Hash]) -> Result<bool, StoreError> {
        Ok(self.missing(hashes).await?.is_empty())
    }

    /// Those that are not here or are known to be damaged, in the order given.
    ///
    /// # Errors
    /// `Index`.
    pub async fn missing(&self, hashes: &[Hash]) -> Result<Vec<Hash>, StoreError> {
        let (files, hashes) = (Arc::clone(&self.shared.files), hashes.to_vec());
        self.index(move |index| {
            let txn = index.txn();
            let mut missing = Vec::new();
            for hash in hashes {
                if !txn.is_live(&files, hash)? {
                    missing.push(hash);
                }
            }
            Ok(missing)
        })
        .await
    }

    /// Quarantined chunks and manifests, at most `limit`: what the node should fetch again.
    ///
    /// # Errors
    /// `Index`.
    pub async fn bad_chunks(&self, limit: usize) -> Result<Vec<Hash>, StoreError> {
        self.index(move |index| index.bad(limit)).await
    }

    /// The studies that damaged chunks and manifests are of, and those of them that nothing refers to.
    ///
    /// # Errors
    /// `Index`.
    pub async fn studies_of(&self, hashes: Vec<Hash>) -> Result<(BTreeSet<String>, Vec<Hash>), StoreError> {
        self.index(move |index| index.studies_of(&hashes)).await
    }

    /// The room on the store's volume.
    ///
    /// # Errors
    /// `Space`.
    pub async fn space(&self) -> Result<Space, StoreError> {
        self.shared.files.disk().space().await.map_err(|error| StoreError::Space(Arc::new(error)))
    }

    /// The size of the store.
    ///
    /// # Errors
    /// `Index` or `Space`.
    pub async fn stats(&self) -> Result<Stats, StoreError> {
        let files = Arc::clone(&self.shared.files);
        let space = self.space().await?;
        let is_failed = self.has_stopped_writing() || self.keys.is_failed() || self.landing.is_failed();
        let (is_mending, repaired) = (self.is_mending(), self.shared.repaired.load(Ordering::Relaxed));
        let (landing, stuck) = self.landing.size();
        self.index(move |index| {
            let mut stats = Stats { packs: files.count(), free: space.free, total: space.total, ..Stats::default() };
            for row in index.pack_rows()?.into_values().filter(|row| files.is_readable(row.id, 0)) {
                stats.chunks += row.chunks;
                stats.bytes += row.bytes;
            }
            stats.bad = index.bad(usize::MAX)?.len() as u64;
            Ok(Stats { is_failed, is_mending, repaired, landing, stuck, ..stats })
        })
        .await
    }

    /// The data set of an instance, piece by piece, as it was received: each verified, then opened if it is
    /// sealed and decoded if it is coded. All chunks must be local: the first that is not ends the stream with
    /// `Missing` or `Corrupt`. What does not add up to the data set ends it with `Contradictory`, instead of the
    /// last piece. Without its key it begins with the errors of [`Keys::find`].
    pub fn read_instance(
        &self,
        manifest: &InstanceManifest,
    ) -> impl Stream<Item = Result<Bytes, StoreError>> + Send + use<> {
        let (store, key) = (self.clone(), self.keys.of(manifest));
        let stored = stream::iter(manifest.chunks.clone()).map(move |entry| {
            let (store, key) = (store.clone(), key.clone());
            async move {
                let key = key?;
                let stored = store.get(entry.hash).await?.ok_or(StoreError::Missing(entry.hash))?;
                Self::open_chunk(entry, stored, key).await
            }
        });
        Proof::of(manifest).check(stored.buffered(READ_AHEAD))
    }

    /// The data set's bytes of a chunk whose stored bytes have been compared with its address, and the key of
    /// its instance (see [`Keys::of`]).
    ///
    /// # Errors
    /// `Contradictory` when the entry lies about them; `Read` when the machine failed.
    pub async fn open_chunk(entry: ChunkEntry, stored: Bytes, key: Option<Arc<StudyKey>>) -> Result<Bytes, StoreError> {
        let opened = if entry.form == Form::Raw {
            entry.open(stored, None)
        } else {
            let opened = offload(move || Ok(entry.open(stored, key.as_deref()))).await;
            opened.map_err(|error| StoreError::Read(Arc::new(error)))?
        };
        opened.map_err(|error| {
            tracing::error!(chunk = %entry.hash.fmt_short(), %error, "a chunk is not what its manifest says");
            StoreError::Contradictory(entry.hash)
        })
    }

    /// Queues a put and waits until it is durable.
    pub(crate) async fn submit(&self, content: Content) -> Result<Option<Stored>, StoreError> {
        check(&content)?;
        let _waiting = Waiting::begin(&self.shared);
        let units = content.byte_len().div_ceil(PERMIT_BYTES).max(1);
        let all = self.shared.config.queue_bytes.div_ceil(PERMIT_BYTES).max(1);
        let units = u32::try_from(units.min(all)).unwrap_or(u32::MAX);
        let permit = Arc::clone(&self.budget).acquire_many_owned(units).await.map_err(|_| StoreError::Closed)?;
        let (reply, outcome) = oneshot::channel();
        self.queue
            .send(Request::Put(Box::new(Put { content, reply, permit })))
            .await
            .map_err(|_| StoreError::Closed)?;
        outcome.await.map_err(|_| StoreError::Closed)?
    }

    /// Asks the index away from the async threads. One that turns out to be damaged is made anew; nothing is written
    /// meanwhile: what it says of what is here is no ground to purge on.
    pub(crate) async fn index<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&Index) -> io::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let index = self.shared.index();
        let asked = offload(move || ask(&index)).await;
        if asked.is_err() {
            self.shared.damage.notify_one();
        }
        asked.map_err(|error| StoreError::Index(Arc::new(error)))
    }

    /// Takes a damaged chunk out of service. Returns the error for who asked.
    async fn quarantine(&self, hash: Hash, seen: ChunkRow) -> StoreError {
        match self.index(move |index| index.mark_bad(hash, &seen)).await {
            Ok(true) => {
                tracing::warn!(chunk = %hash.fmt_short(), pack = %seen.pack, "damaged, taken out of service");
                self.shared.emit(StoreEvent::Quarantined(hash));
                let store = self.clone();
                drop(spawn(store.release_holds_on(BTreeSet::from([hash]), seen.pack)));
            }
            Ok(false) => {}
            Err(error) => return error,
        }
        StoreError::Corrupt(hash)
    }
}

/// A caller that waits, until dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn begin(shared: &'a Shared) -> Self {
        shared.waiting.fetch_add(1, Ordering::Relaxed);
        Self(&shared.waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Opens the index; makes it anew when its mark says so, or it stays unusable.
async fn open_index(home: &Arc<dyn EngineHome>, mark: &Mark) -> io::Result<(Arc<Index>, bool)> {
    if let Some(batch) = mark.begin_opening().await
        && let Some(index) = try_index(home, batch).await
    {
        mark.end_opening().await;
        return Ok((index, false));
    }
    Ok((rebuild_index(home, mark).await?, true))
}

/// The index, if it can be used. It may be held a moment longer by what is just ending.
async fn try_index(home: &Arc<dyn EngineHome>, batch: u64) -> Option<Arc<Index>> {
    for _ in 0..INDEX_ATTEMPTS {
        let tried = Arc::clone(home);
        match offload(move || Index::open(&*tried, batch)).await {
            Ok(index) => return Some(Arc::new(index)),
            Err(error) => {
                tracing::warn!(%error, "the index can't be used");
                if error.kind() == io::ErrorKind::InvalidData {
                    return None;
                }
            }
        }
        tokio::time::sleep(INDEX_ATTEMPT_INTERVAL).await;
    }
    None
}

pub(crate) async fn rebuild_index(home: &Arc<dyn EngineHome>, mark: &Mark) -> io::Result<Arc<Index>> {
    tracing::warn!("the index is made anew from the packs");
    let home = Arc::clone(home);
    let index = offload(move || Index::rebuild(&*home)).await?;
    // Behind it: until then the old index is the current one.
    mark.reset().await?;
    Ok(Arc::new(index))
}

/// Damage of the medium or the file, beside failures of the machine (descriptors, memory).
pub(crate) fn is_damage(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof) || error.raw_os_error() == Some(EIO)
}

/// Want of room on the volume, or of what this process may take of it.
pub(crate) fn is_want_of_room(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn check(content: &Content) -> Result<(), Refusal> {
    let fits = |pieces: &[Chunk], limit| pieces.iter().all(|piece| (1..=limit).contains(&piece.byte_len()));
    let fit = fits(&content.chunks, CHUNK_BYTES_MAX) && fits(&content.manifests, STUDY_MANIFEST_BYTES_MAX);
    if fit { Ok(()) } else { Err(Refusal::ChunkSize) }
}
