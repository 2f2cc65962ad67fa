//! The writer: one task that owns the pack being written.
//!
//! It takes what waits in the queue as one group, writes it with one fsync, indexes it, and only then
//! answers. Since groups follow one another, whoever relies on a chunk of an earlier group is
//! answered after that group's fsync. An error of a write or an fsync ends writing for good;
//! want of room does not, because room is made (zeroed and synced) before anything is written.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use maillage_host::{Clock, offload, spawn};
use tokio::sync::{OwnedSemaphorePermit, broadcast, mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::config::StoreConfig;
use crate::error::{Refusal, StoreError};
use crate::event::StoreEvent;
use crate::index::Index;
use crate::library::Stored;
use crate::pack::PackFiles;
use crate::replay::Tail;

mod group;
mod open_pack;
mod plan;

pub(crate) use group::{Closing, Content};
use open_pack::{OpenPack, RoomError};
use plan::{Plan, Target, plan};

/// How long the index may lag on disk behind the packs: what is replayed after a power cut.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(1);
/// How long no put comes before room is zeroed ahead: longer than between the instances of a sender.
const IDLE_BEFORE_ZEROING: Duration = Duration::from_millis(20);
/// Puts that share one fsync at most; their bytes are bounded by the configuration.
const GROUP_PUTS_MAX: usize = 1024;
const DAY_MILLIS: u64 = 86_400_000;

/// What the handle and the writer share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) files: Arc<PackFiles>,
    pub(crate) index: Arc<Index>,
    pub(crate) config: StoreConfig,
    pub(crate) clock: Clock,
    pub(crate) events: broadcast::Sender<StoreEvent>,
    pub(crate) is_failed: AtomicBool,
}

impl Shared {
    /// Tells whoever listens; nobody need.
    pub(crate) fn emit(&self, event: StoreEvent) {
        let _ = self.events.send(event);
    }
}

/// What may be asked of the writer.
#[derive(Debug)]
pub(crate) enum Request {
    Put(Box<Put>),
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
    /// For good.
    Fatal(String),
}

pub(crate) struct Writer {
    shared: Arc<Shared>,
    open: Option<OpenPack>,
    next_number: u64,
    failed: Option<Arc<str>>,
    is_full: bool,
    checkpoint: mpsc::Sender<()>,
    checkpoints: JoinHandle<()>,
}

impl Writer {
    /// Starts the writer; it ends when the last sender is gone or at [`Request::Close`].
    pub(crate) fn start(shared: Arc<Shared>, tail: Option<Tail>, next_number: u64, queue: mpsc::Receiver<Request>) {
        let (checkpoint, due) = mpsc::channel(1);
        let checkpoints = spawn(checkpoints(Arc::clone(&shared.index), due));
        let open = tail.map(OpenPack::resume);
        let writer = Self { shared, open, next_number, failed: None, is_full: false, checkpoint, checkpoints };
        drop(spawn(writer.run(queue)));
    }

    async fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        let mut closing = None;
        while closing.is_none() {
            let Some(first) = self.next(&mut queue).await else { break };
            let mut puts = Vec::new();
            let mut bytes = 0;
            let mut next = Some(first);
            while let Some(request) = next.take() {
                match request {
                    Request::Put(put) => {
                        bytes += put.content.byte_len();
                        puts.push(*put);
                    }
                    Request::Close(reply) => {
                        closing = Some(reply);
                        break;
                    }
                }
                if bytes < self.shared.config.group_bytes && puts.len() < GROUP_PUTS_MAX {
                    next = queue.try_recv().ok();
                }
            }
            if !puts.is_empty() {
                self.serve(puts).await;
            }
        }
        // Who still waits in the queue is told by the dropped reply.
        drop(queue);
        let ended = self.end().await;
        if let Some(reply) = closing {
            let _ = reply.send(ended);
        }
    }

    /// The next request. While none comes, makes room ahead.
    async fn next(&mut self, queue: &mut mpsc::Receiver<Request>) -> Option<Request> {
        let mut patience = IDLE_BEFORE_ZEROING;
        while let Some(open) = &mut self.open
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
                Err(RoomError::Io(what, error)) => self.fail(format!("{what}: {error}"), Vec::new()),
            }
        }
        queue.recv().await
    }

    /// Lets go of the pack, and of the index after making it durable.
    async fn end(self) -> Result<(), StoreError> {
        let Self { shared, checkpoint, checkpoints, .. } = self;
        drop(checkpoint);
        if let Err(error) = checkpoints.await {
            tracing::warn!(%error, "the checkpoints of the index ended early");
        }
        let index = Arc::clone(&shared.index);
        offload(move || index.persist()).await.map_err(|error| StoreError::Index(Arc::new(error)))
    }

    /// Writes one group and answers it.
    async fn serve(&mut self, puts: Vec<Put>) {
        let (contents, waiting): (Vec<Content>, Vec<Waiting>) =
            puts.into_iter().map(|Put { content, reply, permit }| (content, (reply, permit))).unzip();
        if let Some(failed) = &self.failed {
            let error = StoreError::Failed(Arc::clone(failed));
            return answer(waiting, |_| Err(error.clone()));
        }
        let contents = Arc::new(contents);
        match self.write(&contents).await {
            Ok(outcomes) => {
                let mut outcomes = outcomes.into_iter();
                answer(waiting, |_| outcomes.next().unwrap_or(Ok(None)).map_err(StoreError::from));
            }
            Err(WriteError::Full { free }) => {
                self.set_full(true);
                self.answer_without_room(&contents, waiting, free).await;
            }
            Err(WriteError::Fatal(error)) => self.fail(error, waiting),
        }
    }

    async fn write(
        &mut self,
        contents: &Arc<Vec<Content>>,
    ) -> Result<Vec<Result<Option<Stored>, Refusal>>, WriteError> {
        let upper_bound = contents.iter().map(Content::record_bytes_max).sum();
        let today = self.shared.clock.now().0 / DAY_MILLIS;
        if let Some(open) = &mut self.open
            && (open.day() != today || open.is_filled_by(upper_bound, self.shared.config.pack_bytes))
        {
            open.seal(&self.shared).await?;
            self.open = None;
        }
        let open = match &mut self.open {
            Some(open) => open,
            None => {
                // Most likely something must be written, so a pack is made before it is known.
                let number = self.next_number;
                self.next_number += 1;
                self.open.insert(OpenPack::create(&self.shared, number, today).await?)
            }
        };
        let plan = self.shared.plan(contents, open.target()).await?;
        if !plan.parts.is_empty() {
            open.write(&self.shared, plan.parts, plan.row).await?;
            let (index, batch) = (Arc::clone(&self.shared.index), plan.batch);
            offload(move || index.commit(batch)).await.map_err(|error| fatal("index", &error))?;
            // A full channel means that a checkpoint is due already.
            let _ = self.checkpoint.try_send(());
            plan.repaired.into_iter().for_each(|hash| self.shared.emit(StoreEvent::Repaired(hash)));
            self.set_full(false);
        }
        Ok(plan.outcomes)
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

    fn fail(&mut self, error: String, waiting: Vec<Waiting>) {
        tracing::error!(%error, "the store stops writing: restart the node once the disk is sound");
        self.shared.is_failed.store(true, Ordering::Relaxed);
        self.shared.emit(StoreEvent::WriterFailed(error.clone()));
        let error: Arc<str> = error.into();
        self.failed = Some(Arc::clone(&error));
        // Never written to again; what was durable stays readable.
        self.open = None;
        answer(waiting, |_| Err(StoreError::Failed(Arc::clone(&error))));
    }
}

impl Shared {
    async fn plan(&self, contents: &Arc<Vec<Content>>, target: Target) -> Result<Plan, WriteError> {
        let (index, files, contents) = (Arc::clone(&self.index), Arc::clone(&self.files), Arc::clone(contents));
        offload(move || plan(&index, &files, &contents, target)).await.map_err(|error| fatal("read the index", &error))
    }
}

impl From<RoomError> for WriteError {
    fn from(error: RoomError) -> Self {
        match error {
            RoomError::Full { free } => Self::Full { free },
            RoomError::Io(what, error) => fatal(what, &error),
        }
    }
}

fn fatal(what: &str, error: &io::Error) -> WriteError {
    WriteError::Fatal(format!("{what}: {error}"))
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
async fn checkpoints(index: Arc<Index>, mut due: mpsc::Receiver<()>) {
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
        let index = Arc::clone(&index);
        if let Err(error) = offload(move || index.persist()).await {
            tracing::warn!(%error, "the index was not persisted; it will be replayed from the packs");
        }
    }
}
