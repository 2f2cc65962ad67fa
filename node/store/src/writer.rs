//! The writer: one task that owns the packs being written, one for each day on which retention ends, up to a number.
//!
//! It takes what waits in the queue as one group, writes it with one fsync, indexes it, and only then
//! answers. Since groups follow one another, whoever relies on a chunk of an earlier group is
//! answered after that group's fsync. An error of a write or an fsync ends writing for good;
//! want of room does not, because room is made (zeroed and synced) before anything is written, nor does a
//! damaged index, which is made anew meanwhile.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use maillage_host::{Clock, EngineHome, offload, spawn};
use tokio::sync::{Notify, OwnedSemaphorePermit, broadcast, mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::config::StoreConfig;
use crate::error::{Refusal, StoreError};
use crate::event::StoreEvent;
use crate::index::{Index, Mark};
use crate::library::Stored;
use crate::mend::{Mending, ended};
use crate::pack::PackFiles;
use crate::purge::{self, Intents, PurgeWhat, Step};
use crate::recovery::Recovery;
use crate::replay::Tail;

mod group;
mod open_pack;
mod plan;

pub(crate) use group::{Closing, Content, Move, Moved};
pub(crate) use open_pack::OpenPack;
use open_pack::{RoomError, room_error};
use plan::{Plan, Target, plan};

/// How long the index may lag on disk behind the packs: what is replayed after a power cut.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(1);
/// How long no put comes before room is zeroed ahead: longer than between the instances of a sender.
const IDLE_BEFORE_ZEROING: Duration = Duration::from_millis(20);
/// Puts that share one fsync at most; their bytes are bounded by the configuration.
const GROUP_PUTS_MAX: usize = 1024;
pub(crate) const DAY_MILLIS: u64 = 86_400_000;
/// Packs written side by side at most: the days of a few rules of retention. Copies may come of any day.
const OPEN_PACKS_MAX: usize = 16;
/// How long a pack was not written to before it is sealed for one of another day: no more than [`OPEN_PACKS_MAX`] small
/// packs are made in so long, in whatever order days come.
const IDLE_BEFORE_SEALING: Duration = Duration::from_secs(24 * 3600);
/// When the retention of what comes without a day is expected to end, in days: the mesh's default of 90.
pub(crate) const RETENTION_DAYS: u64 = 90;

/// What the handle and the writer share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) files: Arc<PackFiles>,
    /// The one in use.
    pub(crate) index: RwLock<Arc<Index>>,
    /// Where it lives.
    pub(crate) home: Arc<dyn EngineHome>,
    pub(crate) mark: Mark,
    pub(crate) config: StoreConfig,
    pub(crate) clock: Clock,
    pub(crate) events: broadcast::Sender<StoreEvent>,
    /// Purges of which bytes may still be on the disk.
    pub(crate) intents: Intents,
    pub(crate) recovery: Mutex<Arc<Recovery>>,
    /// An index failed: the writer looks whether the one in use is damaged.
    pub(crate) damage: Notify,
    /// Whether nothing is written while a damaged index is made anew.
    pub(crate) is_mending: AtomicBool,
    pub(crate) is_failed: AtomicBool,
    /// Callers that wait for a read or a put.
    pub(crate) waiting: AtomicUsize,
    /// Quarantined pieces that were written anew since the store was opened.
    pub(crate) repaired: AtomicU64,
}

impl Shared {
    /// The index that is in use now.
    pub(crate) fn index(&self) -> Arc<Index> {
        Arc::clone(&self.index.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What was found so far.
    pub(crate) fn recovery(&self) -> Arc<Recovery> {
        Arc::clone(&self.recovery.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Tells whoever listens; nobody need.
    pub(crate) fn emit(&self, event: StoreEvent) {
        let _ = self.events.send(event);
    }
}

/// What may be asked of the writer.
#[derive(Debug)]
pub(crate) enum Request {
    Put(Box<Put>),
    /// Takes a bounded part of what is asked for out of the index, for good. Whether more is left.
    Purge(PurgeWhat, oneshot::Sender<Result<bool, StoreError>>),
    /// Overwriting what was purged failed: as after a failed write of its own.
    Fail(String),
    Close(oneshot::Sender<Result<(), StoreError>>),
}

/// One put, waiting.
#[derive(Debug)]
pub(crate) struct Put {
    pub(crate) content: Content,
    pub(crate) reply: oneshot::Sender<Result<Option<Stored>, StoreError>>,
    /// Its share of the queue's bytes, given back when it is answered.
    pub(crate) permit: OwnedSemaphorePermit,
}

/// An answer that is waited for, with its share of the queue.
type Waiting = (oneshot::Sender<Result<Option<Stored>, StoreError>>, OwnedSemaphorePermit);

/// Why a group was not written.
enum WriteError {
    /// For want of room; nothing was written.
    Full { free: u64 },
    /// The index could not be used.
    Index(String),
    /// For good.
    Fatal(String),
}

pub(crate) struct Writer {
    pub(crate) shared: Arc<Shared>,
    /// Most recently used last.
    pub(crate) open: Vec<OpenPack>,
    pub(crate) next_number: u64,
    pub(crate) failed: Option<Arc<str>>,
    /// A damaged index is being made anew; no pack is open meanwhile.
    pub(crate) mending: Option<Mending>,
    is_full: bool,
    checkpoint: mpsc::Sender<()>,
    checkpoints: JoinHandle<()>,
}

impl Writer {
    /// Starts the writer; it ends when the last sender is gone or at [`Request::Close`].
    pub(crate) fn start(shared: Arc<Shared>, tails: Vec<Tail>, next_number: u64, queue: mpsc::Receiver<Request>) {
        let (checkpoint, due) = mpsc::channel(1);
        let checkpoints = spawn(checkpoints(Arc::clone(&shared), due));
        let open = tails.into_iter().map(OpenPack::resume).collect();
        let writer =
            Self { shared, open, next_number, failed: None, mending: None, is_full: false, checkpoint, checkpoints };
        drop(spawn(writer.run(queue)));
    }

    async fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        let mut closing = None;
        while closing.is_none() {
            let Some(first) = self.next(&mut queue).await else { break };
            let mut puts = Vec::new();
            let mut bytes = 0;
            let mut next = Some(first);
            let mut other = None;
            while let Some(request) = next.take() {
                match request {
                    Request::Put(put) => {
                        bytes += put.content.byte_len();
                        puts.push(*put);
                    }
                    request => {
                        other = Some(request);
                        break;
                    }
                }
                if bytes < self.shared.config.group_bytes && puts.len() < GROUP_PUTS_MAX {
                    next = queue.try_recv().ok();
                }
            }
            for (day, puts) in self.by_day(puts) {
                self.serve(day, puts).await;
            }
            match other {
                Some(Request::Close(reply)) => closing = Some(reply),
                Some(Request::Purge(what, reply)) => {
                    let _ = reply.send(self.purge(what).await);
                }
                Some(Request::Fail(error)) => self.fail(error, Vec::new()).await,
                Some(Request::Put(_)) | None => {}
            }
        }
        // Who still waits in the queue is told by the dropped reply.
        drop(queue);
        let ended = self.end().await;
        if let Some(reply) = closing {
            let _ = reply.send(ended);
        }
    }

    /// Puts that go into one pack together, in the order in which they came. What should have gone by now is expected
    /// to go today.
    fn by_day(&self, puts: Vec<Put>) -> BTreeMap<u64, Vec<Put>> {
        let today = self.today();
        let mut by_day = BTreeMap::new();
        for put in puts {
            let day = put.content.day.unwrap_or(today + RETENTION_DAYS).max(today);
            by_day.entry(day).or_insert_with(Vec::new).push(put);
        }
        by_day
    }

    fn today(&self) -> u64 {
        self.shared.clock.now().0 / DAY_MILLIS
    }

    /// The next request. While none comes, makes room ahead in the pack that was written last, and sees to the index.
    async fn next(&mut self, queue: &mut mpsc::Receiver<Request>) -> Option<Request> {
        self.look_at_index().await;
        let mut patience = IDLE_BEFORE_ZEROING;
        while let Some(open) = self.open.last_mut()
            && open.wants_room(&self.shared)
        {
            if let Ok(request) = tokio::time::timeout(patience, queue.recv()).await {
                return request;
            }
            patience = Duration::ZERO;
            match open.make_room(&self.shared).await {
                Ok(()) => {}
                // Who puts next is told whether there is room for it.
                Err(RoomError::Full { .. }) => break,
                Err(RoomError::Io(what, error) | RoomError::Index(what, error)) => {
                    self.fail(format!("{what}: {error}"), Vec::new()).await;
                }
            }
        }
        loop {
            tokio::select! {
                biased;
                mended = ended(&mut self.mending) => self.mended(mended).await,
                () = self.shared.damage.notified() => self.look_at_index().await,
                request = queue.recv() => return request,
            }
        }
    }

    /// Why nothing is written, for good or for now.
    fn refusal(&self) -> Option<StoreError> {
        let failed = self.failed.as_ref().map(|failed| StoreError::Failed(Arc::clone(failed)));
        failed.or_else(|| self.mending.is_some().then_some(StoreError::Mending))
    }

    /// Why nothing comes of what the index could not be used for.
    async fn without_index(&mut self, error: String) -> StoreError {
        self.look_at_index().await;
        if let Some(refusal) = self.refusal() {
            return refusal;
        }
        self.fail(error.clone(), Vec::new()).await;
        StoreError::Failed(error.into())
    }

    /// Lets go of the pack, and of the index after making it durable.
    async fn end(self) -> Result<(), StoreError> {
        let Self { shared, mending, checkpoint, checkpoints, .. } = self;
        if let Some(mending) = mending {
            // The next opening makes it anew.
            mending.abort();
            let _ = mending.await;
        }
        drop(checkpoint);
        if let Err(error) = checkpoints.await {
            tracing::warn!(%error, "the checkpoints of the index ended early");
        }
        let index = shared.index();
        offload(move || index.persist()).await.map_err(|error| StoreError::Index(Arc::new(error)))
    }

    /// Writes one group, into a pack of `day`, and answers it.
    async fn serve(&mut self, day: u64, puts: Vec<Put>) {
        let (contents, waiting): (Vec<Content>, Vec<Waiting>) =
            puts.into_iter().map(|Put { content, reply, permit }| (content, (reply, permit))).unzip();
        if let Some(error) = self.refusal() {
            return answer(waiting, |_| Err(error.clone()));
        }
        let contents = Arc::new(contents);
        match self.write(day, &contents).await {
            Ok(outcomes) => {
                let mut outcomes = outcomes.into_iter();
                answer(waiting, |_| outcomes.next().unwrap_or(Ok(None)).map_err(StoreError::from));
            }
            Err(WriteError::Full { free }) => {
                self.set_full(true);
                self.answer_without_room(&contents, waiting, free).await;
            }
            Err(WriteError::Index(error)) => {
                let error = self.without_index(error).await;
                answer(waiting, |_| Err(error.clone()));
            }
            Err(WriteError::Fatal(error)) => self.fail(error, waiting).await,
        }
    }

    async fn write(
        &mut self,
        day: u64,
        contents: &Arc<Vec<Content>>,
    ) -> Result<Vec<Result<Option<Stored>, Refusal>>, WriteError> {
        let upper_bound = contents.iter().map(Content::record_bytes_max).sum();
        let mut open = self.pack_for(day, upper_bound).await?;
        let written = self.write_into(&mut open, contents).await;
        // After a fatal error all packs are let go of by the caller.
        self.open.push(open);
        written
    }

    async fn write_into(
        &mut self,
        open: &mut OpenPack,
        contents: &Arc<Vec<Content>>,
    ) -> Result<Vec<Result<Option<Stored>, Refusal>>, WriteError> {
        let plan = self.shared.plan(contents, open.target()).await?;
        if !plan.parts.is_empty() {
            open.write(&self.shared, plan.parts, plan.row).await?;
            let (index, batch) = (self.shared.index(), plan.batch);
            offload(move || index.commit(batch)).await.map_err(|error| of_index("index", &error))?;
            self.open.iter_mut().for_each(|other| other.recount(&plan.others));
            // A full channel means that a checkpoint is due already.
            let _ = self.checkpoint.try_send(());
            self.shared.repaired.fetch_add(plan.repaired.len() as u64, Ordering::Relaxed);
            plan.repaired.into_iter().for_each(|hash| self.shared.emit(StoreEvent::Repaired(hash)));
            self.set_full(false);
        }
        Ok(plan.outcomes)
    }

    /// Takes the pack of `day` out of the open ones, or makes one; seals what is filled or one too many.
    async fn pack_for(&mut self, day: u64, upper_bound: u64) -> Result<OpenPack, WriteError> {
        let of_day = self.open.iter().position(|open| open.day() == day);
        if let Some(position) = of_day.or_else(|| self.nearest_to(day)) {
            let mut open = self.open.remove(position);
            if !open.is_filled_by(upper_bound, self.shared.config.pack_bytes) {
                return Ok(open);
            }
            if let Err(error) = open.seal(&self.shared).await {
                self.open.push(open);
                return Err(error.into());
            }
        }
        if self.open.len() >= OPEN_PACKS_MAX {
            self.open[0].seal(&self.shared).await?;
            self.open.remove(0);
        }
        // Most likely something must be written, so a pack is made before it is known.
        let number = self.next_number;
        self.next_number += 1;
        Ok(OpenPack::create(&self.shared, number, day).await?)
    }

    /// The open pack of the day that is nearest, the later of two, while there may be no more and all are in use.
    fn nearest_to(&self, day: u64) -> Option<usize> {
        let oldest = self.open.first().filter(|_| self.open.len() >= OPEN_PACKS_MAX)?;
        if oldest.is_idle_for(IDLE_BEFORE_SEALING) {
            return None;
        }
        let near = self.open.iter().enumerate().min_by_key(|(_, open)| (open.day().abs_diff(day), Reverse(open.day())));
        near.map(|(position, _)| position)
    }

    /// Takes a part of what is to be purged out of the index. What is done is on the disk as an intent before
    /// the index changes; the caller sees to the bytes.
    async fn purge(&mut self, what: PurgeWhat) -> Result<bool, StoreError> {
        if let Some(error) = self.refusal() {
            return Err(error);
        }
        match self.purge_step(what).await {
            Ok(left) => Ok(left),
            Err(WriteError::Full { free }) => Err(StoreError::Full { free, reserve: self.shared.config.reserve_bytes }),
            Err(WriteError::Index(error)) => Err(self.without_index(error).await),
            Err(WriteError::Fatal(error)) => {
                self.fail(error.clone(), Vec::new()).await;
                Err(StoreError::Failed(error.into()))
            }
        }
    }

    async fn purge_step(&mut self, what: PurgeWhat) -> Result<bool, WriteError> {
        let index = self.shared.index();
        let planned =
            offload(move || purge::plan(&index, &what)).await.map_err(|error| of_index("plan a purge", &error))?;
        let Some(Step { intent, left }) = planned else {
            self.seal_spent().await?;
            return Ok(false);
        };
        let intent = match self.shared.intents.write(&self.shared.files, intent).await {
            Ok(intent) => intent,
            Err(error) => return Err(room_error(&self.shared, "write down a purge", error).await.into()),
        };
        let index = self.shared.index();
        let applied = offload(move || {
            let mut txn = index.txn();
            purge::apply(&mut txn, &intent)?;
            let (batch, rows) = txn.into_batch(None)?;
            index.commit(batch)?;
            Ok(rows)
        });
        let rows = applied.await.map_err(|error| of_index("index a purge", &error))?;
        self.open.iter_mut().for_each(|open| open.recount(&rows));
        self.seal_spent().await?;
        Ok(left)
    }

    /// Seals packs past their day, and those in which nothing is left, so that their files can go.
    async fn seal_spent(&mut self) -> Result<(), WriteError> {
        let today = self.today();
        while let Some(position) = self.open.iter().position(|open| open.is_spent() || open.day() < today) {
            self.open[position].seal(&self.shared).await?;
            self.open.remove(position);
        }
        Ok(())
    }

    /// A full disk refuses what must be written, not what is here already.
    async fn answer_without_room(&mut self, contents: &Arc<Vec<Content>>, waiting: Vec<Waiting>, free: u64) {
        let reserve = self.shared.config.reserve_bytes;
        for (content, waiting) in contents.iter().zip(waiting) {
            let alone = Arc::new(vec![content.clone()]);
            let outcome = match self.shared.plan(&alone, Target::NOWHERE).await {
                Ok(plan) if plan.parts.is_empty() => {
                    plan.outcomes.into_iter().next().unwrap_or(Ok(None)).map_err(StoreError::from)
                }
                _ => Err(StoreError::Full { free, reserve }),
            };
            answer(vec![waiting], |_| outcome.clone());
        }
    }

    fn set_full(&mut self, is_full: bool) {
        if self.is_full != is_full {
            self.is_full = is_full;
            tracing::warn!(is_full, "room for images");
            self.shared.emit(if is_full { StoreEvent::Full } else { StoreEvent::RoomAgain });
        }
    }

    pub(crate) async fn fail(&mut self, error: String, waiting: Vec<Waiting>) {
        tracing::error!(%error, "the store stops writing: restart the node once the disk is sound");
        self.shared.is_failed.store(true, Ordering::Relaxed);
        self.shared.emit(StoreEvent::WriterFailed(error.clone()));
        let error: Arc<str> = error.into();
        self.failed = Some(Arc::clone(&error));
        // Never written to again; what was durable stays readable.
        self.open.clear();
        answer(waiting, |_| Err(StoreError::Failed(Arc::clone(&error))));
        // Last: a disk that fails may not answer.
        if self.shared.index().is_damaged() {
            self.shared.mark.condemn().await;
        }
    }
}

impl Shared {
    async fn plan(&self, contents: &Arc<Vec<Content>>, target: Target) -> Result<Plan, WriteError> {
        let (index, files, contents) = (self.index(), Arc::clone(&self.files), Arc::clone(contents));
        offload(move || plan(&index, &files, &contents, target))
            .await
            .map_err(|error| of_index("read the index", &error))
    }
}

impl From<RoomError> for WriteError {
    fn from(error: RoomError) -> Self {
        match error {
            RoomError::Full { free } => Self::Full { free },
            RoomError::Io(what, error) => Self::Fatal(format!("{what}: {error}")),
            RoomError::Index(what, error) => of_index(what, &error),
        }
    }
}

fn of_index(what: &str, error: &io::Error) -> WriteError {
    WriteError::Index(format!("{what}: {error}"))
}

/// Answers each; who has gone away in the meantime misses nothing that is not durable.
fn answer(waiting: Vec<Waiting>, mut outcome: impl FnMut(usize) -> Result<Option<Stored>, StoreError>) {
    for (position, (reply, permit)) in waiting.into_iter().enumerate() {
        let _ = reply.send(outcome(position));
        drop(permit);
    }
}

/// Persists the index a while after each change, so that little is replayed after a power cut. A
/// failure costs only that: the packs are the truth.
async fn checkpoints(shared: Arc<Shared>, mut due: mpsc::Receiver<()>) {
    while due.recv().await.is_some() {
        let wait = tokio::time::sleep(CHECKPOINT_INTERVAL);
        tokio::pin!(wait);
        loop {
            tokio::select! {
                () = &mut wait => break,
                // What changes while waiting is part of this checkpoint; the writer's end is its last.
                more = due.recv() => if more.is_none() { return },
            }
        }
        let index = shared.index();
        if let Err(error) = offload(move || index.persist()).await {
            shared.damage.notify_one();
            tracing::warn!(%error, "the index was not persisted; it will be replayed from the packs");
        }
    }
}
