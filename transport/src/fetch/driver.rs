//! A fetch, carried out: one task owns the plan, one task a request asks and verifies.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use blake3::Hash;
use bytes::Bytes;
use futures::future::BoxFuture;
use libp2p::PeerId;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use super::Wanted;
use super::penalties::{Penalties, Penalty};
use super::planner::{Assignment, Failure, HolderIndex, ItemIndex, Planner, Settled, Ticket};
use crate::chunk::{self, Class, GetError, IN_FLIGHT_MAX};
use crate::{Endpoint, LinkError, Plane};

/// Requests under way in one fetch over all holders: memory is at most this many chunks.
const IN_FLIGHT_TOTAL: usize = 64;

/// Objects that wait for a slow reader: in the channel, and before it until no more are asked for.
const DELIVERED_QUEUE: usize = 8;
const BACKLOG_MAX: usize = 8;

/// The plan is looked at again after this long at the latest, whatever it says.
const IDLE_CHECK: Duration = Duration::from_secs(1);

/// Why an object of a fetch could not be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// None of the holders can give it.
    #[error("no holder can give {0}")]
    Nowhere(Hash),
}

impl FetchError {
    /// The object that is missing.
    pub fn hash(&self) -> Hash {
        match self {
            Self::Nowhere(hash) => *hash,
        }
    }
}

/// A holder that did not do what it should, for metrics and for whoever judges peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkFault {
    /// The holder.
    pub peer: PeerId,
    /// What was asked for.
    pub hash: Hash,
    /// What happened.
    pub reason: FaultReason,
}

/// What a holder did wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FaultReason {
    /// It sent bytes of another hash.
    WrongBytes,
    /// It sent what is not of the protocol, or longer than asked for.
    Malformed,
    /// It could not be reached, broke off, stalled, or could not read what it has.
    Unavailable,
}

impl FaultReason {
    /// Whether the holder gave what it should not have, rather than nothing.
    pub const fn is_an_offence(self) -> bool {
        matches!(self, Self::WrongBytes | Self::Malformed)
    }

    /// The reason as a metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::WrongBytes => "wrong_bytes",
            Self::Malformed => "malformed",
            Self::Unavailable => "unavailable",
        }
    }
}

/// Why one holder did not give an object.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// There is no link to it.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// It was asked and did not give it.
    #[error(transparent)]
    Get(#[from] GetError),
}

/// The way to those who hold objects: the endpoint's links, or a simulator's.
pub trait Holders: Send + Sync + 'static {
    /// The node's own id, which is never asked.
    fn own(&self) -> PeerId;

    /// Asks `peer` for one object. What is returned has the hash that was asked for.
    ///
    /// # Errors
    /// See [`AskError`].
    fn ask(&self, peer: PeerId, wanted: Wanted, class: Class) -> BoxFuture<'_, Result<Bytes, AskError>>;
}

impl Holders for Endpoint {
    fn own(&self) -> PeerId {
        self.peer_id()
    }

    fn ask(&self, peer: PeerId, wanted: Wanted, class: Class) -> BoxFuture<'_, Result<Bytes, AskError>> {
        Box::pin(async move {
            let connection = self.link(peer, Plane::Chunk).await?;
            Ok(chunk::get(&connection, wanted.hash, wanted.len, class).await?)
        })
    }
}

/// Fetches objects from other members. Clones share what is known of holders.
#[derive(Clone)]
pub struct Fetcher {
    way: Arc<dyn Holders>,
    faults: mpsc::Sender<ChunkFault>,
    /// Holders that sent wrong bytes: others are asked first.
    penalties: Arc<Mutex<Penalties>>,
}

impl fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetcher").field("own", &self.way.own()).finish_non_exhaustive()
    }
}

impl Fetcher {
    /// A fetcher that asks by `way`. Faults are offered to `faults`, and dropped when it is full: a
    /// fetch never waits for who counts.
    pub fn new(way: Arc<dyn Holders>, faults: mpsc::Sender<ChunkFault>) -> Self {
        Self { way, faults, penalties: Arc::default() }
    }

    /// Fetches every object of `wanted` from whichever of `holders` has it. Each hash comes out once, as
    /// soon as it is had, in no order: verified bytes, or an error that names it. The channel closes
    /// after the last. Dropping the receiver ends the fetch.
    pub fn fetch(
        &self,
        wanted: Vec<Wanted>,
        holders: Vec<PeerId>,
        class: Class,
    ) -> mpsc::Receiver<Result<(Hash, Bytes), FetchError>> {
        let (tx, rx) = mpsc::channel(DELIVERED_QUEUE);
        let mut seen = BTreeSet::new();
        let wanted: Vec<Wanted> = wanted.into_iter().filter(|w| seen.insert(*w.hash.as_bytes())).collect();
        let own = self.way.own();
        let mut seen = BTreeSet::from([own]);
        let holders: Vec<PeerId> = holders.into_iter().filter(|peer| seen.insert(*peer)).collect();
        let window = (IN_FLIGHT_TOTAL / holders.len().max(1)).clamp(1, IN_FLIGHT_MAX);
        let last_resorts: Vec<bool> = holders.iter().map(|peer| self.is_penalised(peer)).collect();
        let planner = Planner::new(wanted.len(), &last_resorts, window);
        let (outcomes_tx, outcomes) = mpsc::channel(IN_FLIGHT_TOTAL);
        let fetch = Fetch {
            fetcher: self.clone(),
            wanted,
            holders,
            class,
            planner,
            started: Instant::now(),
            running: Running::default(),
            outcomes_tx,
            outcomes,
            delivered: tx,
            backlog: VecDeque::new(),
        };
        drop(maillage_host::spawn(fetch.run()));
        rx
    }

    fn is_penalised(&self, peer: &PeerId) -> bool {
        self.penalties.lock().unwrap_or_else(PoisonError::into_inner).is_penalised(peer, Instant::now())
    }

    /// What is held against a peer; `None` when it never sent anything wrong.
    pub fn penalty(&self, peer: &PeerId) -> Option<Penalty> {
        self.penalties.lock().unwrap_or_else(PoisonError::into_inner).of(peer, Instant::now())
    }

    fn report(&self, peer: PeerId, hash: Hash, reason: FaultReason) {
        if reason.is_an_offence() {
            self.penalties.lock().unwrap_or_else(PoisonError::into_inner).note(peer, Instant::now());
            tracing::warn!(%peer, %hash, reason = reason.as_str(), "a holder did not give what it should");
        }
        // Full: whoever counts is behind. The log has the ones that matter.
        let _ = self.faults.try_send(ChunkFault { peer, hash, reason });
    }
}

type Outcome = (Ticket, HolderIndex, ItemIndex, Result<Bytes, AskError>);

/// The tasks of the requests under way; they end with the fetch.
#[derive(Default)]
struct Running(BTreeMap<Ticket, AbortHandle>);

impl Running {
    fn abort(&mut self, ticket: Ticket) {
        if let Some(task) = self.0.remove(&ticket) {
            task.abort();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.values().for_each(AbortHandle::abort);
    }
}

struct Fetch {
    fetcher: Fetcher,
    wanted: Vec<Wanted>,
    holders: Vec<PeerId>,
    class: Class,
    planner: Planner,
    started: Instant,
    running: Running,
    outcomes_tx: mpsc::Sender<Outcome>,
    outcomes: mpsc::Receiver<Outcome>,
    delivered: mpsc::Sender<Result<(Hash, Bytes), FetchError>>,
    /// What the reader has not taken.
    backlog: VecDeque<Result<(Hash, Bytes), FetchError>>,
}

impl Fetch {
    async fn run(mut self) {
        let started = self.planner.start();
        self.settle(started, None);
        let delivered = self.delivered.clone();
        while !(self.planner.is_finished() && self.backlog.is_empty()) {
            let now = self.started.elapsed();
            // A slow reader stops new requests, never the handling of answers: an answer that lay
            // unseen would look overdue and be asked for twice.
            if self.backlog.len() < BACKLOG_MAX {
                while let Some(assignment) = self.planner.next(now) {
                    self.ask(assignment);
                }
            }
            let wake = self.planner.wake(now).unwrap_or(now + IDLE_CHECK).min(now + IDLE_CHECK);
            tokio::select! {
                Some(outcome) = self.outcomes.recv() => self.on_outcome(outcome),
                permit = delivered.reserve(), if !self.backlog.is_empty() => match permit {
                    Ok(permit) => {
                        if let Some(next) = self.backlog.pop_front() {
                            permit.send(next);
                        }
                    }
                    Err(_) => return,
                },
                () = delivered.closed() => return,
                () = sleep_until(self.started + wake) => {}
            }
        }
    }

    fn ask(&mut self, assignment: Assignment) {
        let Assignment { ticket, holder, item, is_second } = assignment;
        let (Some(peer), Some(wanted)) = (self.holders.get(holder.0), self.wanted.get(item.0)) else { return };
        let (peer, wanted, class) = (*peer, *wanted, self.class);
        if is_second {
            tracing::debug!(%peer, hash = %wanted.hash, "asking a second holder");
        }
        let (way, outcomes) = (Arc::clone(&self.fetcher.way), self.outcomes_tx.clone());
        let task = maillage_host::spawn(async move {
            let result = way.ask(peer, wanted, class).await;
            // Nobody listens when the fetch has ended.
            let _ = outcomes.send((ticket, holder, item, result)).await;
        });
        self.running.0.insert(ticket, task.abort_handle());
    }

    fn on_outcome(&mut self, (ticket, holder, item, result): Outcome) {
        if self.running.0.remove(&ticket).is_none() {
            return; // Cancelled, and done before it noticed.
        }
        let now = self.started.elapsed();
        match result {
            Ok(bytes) => {
                let settled = self.planner.on_done(now, ticket);
                self.settle(settled, Some(bytes));
            }
            Err(error) => {
                let failure = self.judge(holder, item, &error);
                let settled = self.planner.on_failed(now, ticket, failure);
                self.settle(settled, None);
            }
        }
    }

    fn judge(&self, holder: HolderIndex, item: ItemIndex, error: &AskError) -> Failure {
        let (Some(peer), Some(wanted)) = (self.holders.get(holder.0), self.wanted.get(item.0)) else {
            return Failure::Unavailable;
        };
        tracing::debug!(%peer, hash = %wanted.hash, %error, "a holder did not give a chunk");
        let reason = match error {
            AskError::Get(GetError::Absent | GetError::TooLong { .. }) => return Failure::Absent,
            AskError::Get(GetError::WrongBytes) => FaultReason::WrongBytes,
            AskError::Get(error) if error.is_fault_of_holder() => FaultReason::Malformed,
            AskError::Get(_) | AskError::Link(_) => FaultReason::Unavailable,
        };
        self.fetcher.report(*peer, wanted.hash, reason);
        match (reason, error) {
            (FaultReason::WrongBytes | FaultReason::Malformed, _) => Failure::Fault,
            // No waiting makes a member of it.
            (_, AskError::Link(LinkError::NotAMember(_) | LinkError::NoAddress(_))) => Failure::Fault,
            (FaultReason::Unavailable, _) => Failure::Unavailable,
        }
    }

    fn settle(&mut self, settled: Settled, bytes: Option<Bytes>) {
        for ticket in settled.cancelled {
            self.running.abort(ticket);
        }
        let had = settled.had.and_then(|item| self.wanted.get(item.0)).zip(bytes);
        self.backlog.extend(had.map(|(wanted, bytes)| Ok((wanted.hash, bytes))));
        let lost = settled.lost.into_iter().filter_map(|item| self.wanted.get(item.0));
        self.backlog.extend(lost.map(|wanted| Err(FetchError::Nowhere(wanted.hash))));
    }
}
