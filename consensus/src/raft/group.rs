//! The handle of a node's part in the Raft group.
//!
//! Who does what: `start.rs` puts the parts together; `propose.rs` and `read.rs` bring commands and
//! linearizable reads to the leader; `membership.rs` changes who votes; `presence.rs` is who was heard
//! when; `offset.rs` is how the clocks stand; `heartbeat.rs` is whether the disk answers; `upkeep.rs` holds the tasks that publish the status, checkpoint the state and finish what a
//! dead leader left half done.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use maillage_host::{Clock, Engine, offload};
use openraft::async_runtime::WatchReceiver as _;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

mod heartbeat;
mod membership;
mod offset;
mod presence;
mod propose;
mod read;
mod start;
mod upkeep;

pub use membership::MembershipError;
pub use propose::{Committed, ProposeError};
pub use read::ReadError;
pub use start::StartError;

pub(crate) use heartbeat::Heartbeat;
pub(crate) use offset::Offset;
pub(crate) use presence::{Contact, Presence};

use super::client::{Dialer, quorum_age};
use super::config::{GroupConfig, Timing};
use super::halt::Halt;
use super::links::Duplex;
use super::log::Log;
use super::server;
use super::snapshot::SnapshotStore;
use super::state::View;
use super::status::{ClockOffset, Freshness, GroupStatus, Said};
use super::types::{LeaderId, Metrics, Raft};
use crate::StateClock;
use crate::machine::Machine;

/// How long each part may take to stop.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// What every clone of a handle, and every task of the group, shares.
pub(crate) struct Inner {
    pub(crate) raft: Raft,
    pub(crate) dialer: Dialer,
    pub(crate) snapshots: Arc<SnapshotStore>,
    pub(crate) contact: Contact,
    pub(crate) halt: Halt,
    /// Cancelled by [`Group::shutdown`].
    pub(crate) stop: CancellationToken,
    /// Streams served at once.
    pub(crate) streams: Semaphore,
    /// One snapshot is received at a time: each may need as much disk as the state.
    pub(crate) receiving: Semaphore,
    log: Log,
    view: Arc<View>,
    machine: Arc<dyn Machine>,
    clock: Clock,
    state_clock: StateClock,
    timing: Timing,
    started: Instant,
    presence: Presence,
    offset: Offset,
    heartbeat: Heartbeat,
    /// The format that this node advertises.
    format: u8,
    /// KiB of commands that this node, as leader, has under way.
    under_way: Arc<Semaphore>,
    /// One change of membership at a time (openraft loses track of two).
    changing: Arc<Semaphore>,
    status: watch::Sender<GroupStatus>,
    members: upkeep::Members,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Inner {
    fn metrics(&self) -> Metrics {
        self.raft.metrics().borrow_watched().clone()
    }

    fn node_id(&self) -> u64 {
        self.dialer.node_id
    }

    /// The leadership that this node holds as far as it knows.
    fn leadership(&self) -> Option<LeaderId> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let leads = metrics.state.is_leader() && metrics.vote.committed && metrics.vote.leader_id.node_id == metrics.id;
        // A core that waits for a disk cannot say that it has ended.
        (leads && self.halt.reason().is_none()).then_some(metrics.vote.leader_id)
    }

    /// Stops openraft. A disk that does not answer can hold it up, but not us.
    async fn stop_raft(&self) {
        let raft = self.raft.clone();
        // On a task of its own: who waits for the core to end and is dropped meanwhile leaves all others that ask openraft
        // for anything a panic (`RaftInner::join_core_task` of this version).
        let stopping = maillage_host::spawn(async move { raft.shutdown().await });
        match timeout(STOP_LIMIT, stopping).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error)) | Err(error)) => tracing::warn!(%error, "raft did not stop cleanly"),
            Err(_) => tracing::warn!("raft did not stop in time"),
        }
    }

    /// The leader that this node knows of, itself included.
    fn leader(&self) -> Option<u64> {
        self.raft.metrics().borrow_watched().current_leader
    }

    /// Time since a quorum is known to have stood behind a leader that this node is or hears.
    fn quorum_silence(&self) -> Option<Duration> {
        let as_leader = quorum_age(&self.raft.metrics().borrow_watched());
        let as_follower = self.contact.silence();
        as_leader.into_iter().chain(as_follower).min()
    }
}

/// The handle of this node's part in the Raft group. Cheap to clone; dropping it stops nothing,
/// [`Group::shutdown`] does.
#[derive(Clone)]
pub struct Group {
    inner: Arc<Inner>,
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group").field("node_id", &self.inner.node_id()).finish_non_exhaustive()
    }
}

impl Group {
    /// Opens the log and the state, restores what is behind, and starts the node's tasks. A node
    /// without a log waits until it is [initialised](Group::initialize) or a leader adds it.
    ///
    /// # Errors
    /// [`StartError`]: the node can then be no replica with what is on its disk.
    pub async fn start(config: GroupConfig) -> Result<Self, StartError> {
        start::start(config).await
    }

    /// Makes this pristine node the founder of a group in which it is the only voter, and waits
    /// until it leads.
    ///
    /// # Errors
    /// [`MembershipError::Refused`] when it has a log or a vote already.
    pub async fn initialize(&self) -> Result<(), MembershipError> {
        self.inner.initialize().await
    }

    /// Whether this node has a log or a vote, of its own or from a leader.
    pub async fn is_initialized(&self) -> bool {
        match self.inner.raft.is_initialized().await {
            Ok(initialized) => initialized,
            // It has stopped: what it knew last still holds.
            Err(_) => self.inner.metrics().last_log_index.is_some(),
        }
    }

    /// Proposes `command` and waits until it is committed, and applied by the leader.
    ///
    /// The leader stamps it with its clock. Wherever it stands, the same bytes are proposed again
    /// after a change of leader or a broken stream, so the machine must recognise a command that it
    /// has applied already.
    ///
    /// # Errors
    /// [`ProposeError`]; after `NoQuorum`, `Busy`, `Invalid` and `TooLarge` the command is in no log
    /// because of this call.
    pub async fn propose(&self, command: Bytes, deadline: Duration) -> Result<Committed, ProposeError> {
        self.inner.propose(command, deadline).await
    }

    /// Proposes `command` once, and only while this node leads in `term`: for decisions that rest on
    /// what this leader alone knows, such as [`Group::heard`].
    ///
    /// # Errors
    /// As [`Group::propose`], and [`ProposeError::NotLeader`].
    pub async fn propose_in_term(
        &self,
        term: u64,
        command: Bytes,
        deadline: Duration,
    ) -> Result<Committed, ProposeError> {
        self.inner.propose_in_term(term, command, deadline).await
    }

    /// Waits until this node's state holds everything that was committed anywhere before the call,
    /// confirmed by a quorum. Returns the applied index: a read of [`Group::reader`] is then
    /// linearizable.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn linearize(&self, deadline: Duration) -> Result<u64, ReadError> {
        self.inner.linearize(deadline).await
    }

    /// Waits until the entry at `index` is applied here; returns the applied index. Gives a client
    /// what it wrote itself.
    ///
    /// # Errors
    /// [`ReadError::Timeout`] and [`ReadError::Halted`].
    pub async fn wait_applied(&self, index: u64, deadline: Duration) -> Result<u64, ReadError> {
        self.inner.wait_applied(index, Instant::now() + deadline).await
    }

    /// The current engine, for reads. Take it anew for each read: an installed snapshot replaces it.
    pub fn reader(&self) -> Arc<dyn Engine> {
        self.inner.view.engine()
    }

    /// Index of the last entry applied here; 0 for none.
    pub fn applied(&self) -> u64 {
        self.inner.view.index()
    }

    /// The applied index, and the hash chain over the commands up to it. Equal on every replica at
    /// equal indexes.
    pub fn chain(&self) -> (u64, [u8; 32]) {
        self.inner.view.chain()
    }

    /// How fresh this node's state can be.
    pub fn freshness(&self) -> Freshness {
        Freshness { age: self.inner.quorum_silence() }
    }

    /// The node's view of the group: published when it changes, and at least each second.
    pub fn watch(&self) -> watch::Receiver<GroupStatus> {
        self.inner.status.subscribe()
    }

    /// The applied index, changed after each batch applied.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.view.changes()
    }

    /// Adds a node without a vote. Done when committed; the node then catches up. Adding a node that
    /// is there already changes nothing.
    ///
    /// # Errors
    /// [`MembershipError`].
    pub async fn add_learner(&self, id: u64) -> Result<(), MembershipError> {
        membership::add_learner(&self.inner, id).await
    }

    /// Makes `voters` the voters, in one joint change. Those added must be learners; those removed
    /// become learners.
    ///
    /// # Errors
    /// [`MembershipError`].
    pub async fn set_voters(&self, voters: BTreeSet<u64>) -> Result<(), MembershipError> {
        membership::set_voters(&self.inner, voters, None).await
    }

    /// As [`Group::set_voters`], but only if the voters are `expected` when the change begins.
    ///
    /// # Errors
    /// [`MembershipError`]; `Refused` when they are not.
    pub async fn set_voters_if(&self, expected: BTreeSet<u64>, voters: BTreeSet<u64>) -> Result<(), MembershipError> {
        membership::set_voters(&self.inner, voters, Some(expected)).await
    }

    /// Removes a node: first its vote, if it has one, then itself.
    ///
    /// # Errors
    /// [`MembershipError`]; `Refused` for the last voter, and for the leader, which must hand over
    /// first.
    pub async fn remove(&self, id: u64) -> Result<(), MembershipError> {
        membership::remove(&self.inner, id).await
    }

    /// Hands the leadership to the voter `to`, and waits until it leads.
    ///
    /// # Errors
    /// [`MembershipError`].
    pub async fn transfer_leader(&self, to: u64) -> Result<(), MembershipError> {
        self.inner.transfer_leader(to).await
    }

    /// Serves one stream that the authenticated member `from` opened, until it ends.
    pub async fn serve(&self, from: u64, stream: Duplex) {
        if let Err(error) = server::serve(&self.inner, from, stream).await {
            tracing::debug!(peer = from, %error, "a raft stream ended");
        }
    }

    /// The term in which this node leads, as far as it knows.
    pub fn leads(&self) -> Option<u64> {
        self.inner.leadership().map(|leader| leader.term)
    }

    /// On the leader: when each node of the group was last heard. A new leader counts every node as
    /// heard when its term begins, because it does not know better. `None` when this node does not
    /// lead; act on it only through [`Group::propose_in_term`].
    pub fn heard(&self) -> Option<BTreeMap<u64, Instant>> {
        self.inner.heard()
    }

    /// On the leader: what each node said of itself in this leadership; nothing of a node that was not
    /// heard in it. `None` when this node does not lead.
    pub fn said(&self) -> Option<BTreeMap<u64, Said>> {
        self.inner.said()
    }

    /// How this node's clock stands to the leader's: exactly, on the leader itself; `None` before the
    /// first measurement against the leader of now.
    pub fn clock_offset(&self) -> Option<ClockOffset> {
        self.inner.clock_offset()
    }

    /// Asks for a snapshot now, instead of after the usual number of entries.
    ///
    /// # Errors
    /// [`ReadError::Halted`].
    pub async fn trigger_snapshot(&self) -> Result<(), ReadError> {
        let asked = self.inner.raft.trigger().snapshot().await;
        asked.map_err(|error| ReadError::Halted(self.inner.halted_because(&error.to_string())))
    }

    /// Begins a new file of the log. Returns the last index that may be in older ones: purged up to there, nothing of
    /// them is left.
    ///
    /// # Errors
    /// [`ReadError::Halted`].
    pub async fn begin_log_file(&self) -> Result<u64, ReadError> {
        let begun = self.inner.log.roll().await;
        begun.map_err(|error| ReadError::Halted(self.inner.halted_because(&error.to_string())))
    }

    /// Purges the log up to `index`, as far as a snapshot has it. A follower that lacks what goes is sent the
    /// snapshot.
    ///
    /// # Errors
    /// [`ReadError::Halted`].
    pub async fn purge_log(&self, index: u64) -> Result<(), ReadError> {
        let asked = self.inner.raft.trigger().purge_log(index).await;
        asked.map_err(|error| ReadError::Halted(self.inner.halted_because(&error.to_string())))
    }

    /// Stops this node's part in the group: no more answers, the log flushed and closed, the state
    /// checkpointed.
    pub async fn shutdown(&self) {
        let inner = &self.inner;
        inner.stop.cancel();
        inner.stop_raft().await;
        let tasks = std::mem::take(&mut *inner.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        for task in tasks {
            // A task that panicked has said so.
            let _ = task.await;
        }
        let engine = inner.view.engine();
        if let Err(error) = offload(move || engine.persist()).await {
            tracing::warn!(%error, "the state was not checkpointed; it will be replayed");
        }
        if timeout(STOP_LIMIT, inner.log.close()).await.is_err() {
            tracing::warn!("the log was not closed in time");
        }
    }
}
