//! The applied state: openraft's `RaftStateMachine` over an engine and a machine.
//!
//! One batch of committed entries is one atomic commit of the engine: what the machine wrote, the
//! applied log id, the membership, and a hash chain over the commands (`chain = BLAKE3(chain ‖ index ‖
//! command)`), by which replicas can be compared. The commit is not synced: the log is the truth, and
//! what a crash takes is applied again. A committed command that the machine cannot apply halts the
//! node; skipping it would make this replica another state under the same index.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use bytes::{BufMut, Bytes};
use futures::{Stream, TryStreamExt};
use maillage_host::engine::Reader;
use maillage_host::{Batch, Engine, EngineHome, offload};
use openraft::storage::{ApplyResponder, EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};
use tokio::sync::watch;

mod restore;

use super::codec::{Decoder, Encode, Malformed, entry_len};
use super::halt::Halt;
use super::snapshot::{Builder, Head, SnapshotFile, SnapshotStore};
use super::types::{Entry, LogId, Payload, Snapshot, SnapshotMeta, StoredMembership, TypeConfig, index_or_zero};
use crate::machine::Machine;
use crate::transaction::Transaction;

/// Keys of the raft layer begin with 0; the machine's do not.
const RAFT_PREFIX: u8 = 0;
const APPLIED_KEY: [u8; 2] = [RAFT_PREFIX, 1];
const MEMBERSHIP_KEY: [u8; 2] = [RAFT_PREFIX, 2];
const VERSION: u8 = 1;

/// Entries and bytes applied in one commit: enough to spread its cost, few enough that the first
/// of them does not wait long for its answer.
const BATCH_ENTRIES: usize = 1024;
const BATCH_BYTES: usize = 4 << 20;

/// How far the state is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Applied {
    pub(crate) log_id: Option<LogId>,
    pub(crate) membership: StoredMembership,
    pub(crate) chain: [u8; 32],
}

impl Applied {
    fn head(&self) -> Head {
        let meta = SnapshotMeta { last_log_id: self.log_id, last_membership: self.membership.clone() };
        Head { meta, chain: self.chain }
    }

    fn from_head(head: &Head) -> Self {
        Self { log_id: head.meta.last_log_id, membership: head.meta.last_membership.clone(), chain: head.chain }
    }

    fn read(engine: &dyn Reader) -> io::Result<Self> {
        let mut applied = Self::default();
        if let Some(bytes) = engine.get(&APPLIED_KEY)? {
            let mut decoder = versioned(bytes)?;
            applied.log_id = decoder.option_log_id()?;
            applied.chain = decoder.array()?;
            decoder.finish()?;
        }
        if let Some(bytes) = engine.get(&MEMBERSHIP_KEY)? {
            let mut decoder = versioned(bytes)?;
            applied.membership = decoder.stored_membership()?;
            decoder.finish()?;
        }
        Ok(applied)
    }

    fn write(&self, batch: &mut Batch, with_membership: bool) {
        let mut bytes = vec![VERSION];
        bytes.put_option_log_id(self.log_id.as_ref());
        bytes.put_slice(&self.chain);
        batch.put(APPLIED_KEY, bytes);
        if with_membership {
            let mut bytes = vec![VERSION];
            bytes.put_stored_membership(&self.membership);
            batch.put(MEMBERSHIP_KEY, bytes);
        }
    }
}

fn versioned(bytes: Vec<u8>) -> Result<Decoder, Malformed> {
    let mut decoder = Decoder::new(bytes.into());
    if decoder.u8()? == VERSION { Ok(decoder) } else { Err(Malformed("applied state: of another version")) }
}

/// What others see of the state while it changes: the current engine, and how far it is.
pub(crate) struct View {
    engine: RwLock<Arc<dyn Engine>>,
    chain: Mutex<(u64, [u8; 32])>,
    index: watch::Sender<u64>,
    /// Whether something was applied since the last checkpoint.
    dirty: AtomicBool,
}

impl View {
    fn new(engine: Arc<dyn Engine>, applied: &Applied) -> Self {
        let index = index_or_zero(applied.log_id.as_ref());
        Self {
            engine: RwLock::new(engine),
            chain: Mutex::new((index, applied.chain)),
            index: watch::channel(index).0,
            dirty: AtomicBool::new(false),
        }
    }

    pub(crate) fn engine(&self) -> Arc<dyn Engine> {
        Arc::clone(&self.engine.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn chain(&self) -> (u64, [u8; 32]) {
        *self.chain.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn index(&self) -> u64 {
        *self.index.borrow()
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.index.subscribe()
    }

    fn publish(&self, applied: &Applied) {
        let index = index_or_zero(applied.log_id.as_ref());
        *self.chain.lock().unwrap_or_else(PoisonError::into_inner) = (index, applied.chain);
        self.dirty.store(true, Ordering::Release);
        self.index.send_replace(index);
    }

    /// Makes everything applied so far durable, if anything was applied since the last time.
    pub(crate) async fn checkpoint(&self) -> io::Result<()> {
        if !self.dirty.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let engine = self.engine();
        offload(move || engine.persist()).await
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View").field("index", &self.index()).finish_non_exhaustive()
    }
}

/// The state machine that openraft drives.
pub(crate) struct State {
    home: Arc<dyn EngineHome>,
    machine: Arc<dyn Machine>,
    snapshots: Arc<SnapshotStore>,
    view: Arc<View>,
    halt: Halt,
    applied: Applied,
}

impl State {
    /// Opens the engine as it is. openraft then restores the newest snapshot if that is ahead, and
    /// applies the log from there.
    pub(crate) async fn open(
        home: Arc<dyn EngineHome>,
        machine: Arc<dyn Machine>,
        snapshots: Arc<SnapshotStore>,
        halt: Halt,
    ) -> io::Result<Self> {
        let opening = Arc::clone(&home);
        let (engine, applied) = offload(move || {
            let engine = opening.open()?;
            let applied = Applied::read(&*engine)?;
            Ok((engine, applied))
        })
        .await?;
        let view = Arc::new(View::new(engine, &applied));
        Ok(Self { home, machine, snapshots, view, halt, applied })
    }

    pub(crate) fn view(&self) -> Arc<View> {
        Arc::clone(&self.view)
    }

    pub(crate) fn applied(&self) -> &Applied {
        &self.applied
    }

    async fn apply_batch(&mut self, entries: Vec<Entry>, responders: Vec<Responder>) -> io::Result<()> {
        let engine = self.view.engine();
        let machine = Arc::clone(&self.machine);
        let applied = self.applied.clone();
        let done = offload(move || run(&*engine, &*machine, applied, &entries)).await?;
        self.applied = done.applied;
        self.view.publish(&self.applied);
        for (responder, outcome) in responders.into_iter().zip(done.outcomes) {
            if let Some(responder) = responder {
                responder.send(Payload(outcome));
            }
        }
        match done.failure {
            Some(failure) => Err(io::Error::other(failure)),
            None => Ok(()),
        }
    }
}

type Responder = Option<ApplyResponder<TypeConfig>>;

/// What became of a batch: how far it got, the outcome of each entry, and why it stopped early.
struct Done {
    applied: Applied,
    outcomes: Vec<Bytes>,
    failure: Option<String>,
}

/// Applies `entries` in order and commits them as one. When one fails, those before it are committed
/// and answered, and it is as if it had not been reached.
fn run(engine: &dyn Engine, machine: &dyn Machine, mut applied: Applied, entries: &[Entry]) -> io::Result<Done> {
    let mut transaction = Transaction::new(engine);
    let mut outcomes = Vec::with_capacity(entries.len());
    let mut failure = None;
    let mut with_membership = false;
    for entry in entries {
        let index = entry.log_id.index;
        let outcome = match &entry.payload {
            EntryPayload::Blank => Bytes::new(),
            EntryPayload::Membership(membership) => {
                applied.membership = StoredMembership::new(Some(entry.log_id), membership.clone());
                with_membership = true;
                Bytes::new()
            }
            EntryPayload::Normal(Payload(command)) => {
                let before = transaction.mark();
                match machine.apply(&mut transaction, index, command) {
                    Ok(outcome) => {
                        applied.chain = link(&applied.chain, index, command);
                        outcome.into()
                    }
                    Err(error) => {
                        transaction.roll_back(before);
                        failure = Some(error.to_string());
                        break;
                    }
                }
            }
        };
        applied.log_id = Some(entry.log_id);
        outcomes.push(outcome);
    }
    let mut batch = transaction.into_batch();
    if batch.0.iter().any(|(key, _)| key.first().is_none_or(|first| *first == RAFT_PREFIX)) {
        return Err(io::Error::other("the machine wrote a key that is not its own"));
    }
    applied.write(&mut batch, with_membership);
    engine.commit(batch)?;
    Ok(Done { applied, outcomes, failure })
}

/// The next value of the hash chain.
fn link(chain: &[u8; 32], index: u64, command: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(chain);
    hasher.update(&index.to_be_bytes());
    hasher.update(command);
    *hasher.finalize().as_bytes()
}

impl RaftStateMachine<TypeConfig> for State {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.applied.log_id, self.applied.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        loop {
            let (mut batch, mut responders, mut bytes) = (Vec::new(), Vec::new(), 0);
            while batch.len() < BATCH_ENTRIES && bytes < BATCH_BYTES {
                let Some((entry, responder)) = entries.try_next().await? else { break };
                bytes += entry_len(&entry);
                batch.push(entry);
                responders.push(responder);
            }
            if batch.is_empty() {
                return Ok(());
            }
            if let Err(error) = self.apply_batch(batch, responders).await {
                self.halt.halt(format!("a committed entry cannot be applied: {error}"));
                return Err(error);
            }
        }
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let engine = self.view.engine();
        Builder {
            store: Arc::clone(&self.snapshots),
            view: Arc::from(engine.view()),
            engine,
            head: self.applied.head(),
        }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotFile) -> io::Result<()> {
        let installed = self.install(meta, &snapshot).await;
        if let Err(error) = &installed {
            self.halt.halt(format!("a snapshot cannot be installed: {error}"));
        }
        installed
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        Ok(self.snapshots.current().map(SnapshotFile::into_snapshot))
    }
}

#[cfg(test)]
mod tests;
