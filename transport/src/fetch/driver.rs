//! The face of a node's fetches, and how its holders are reached.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use blake3::Hash;
use bytes::Bytes;
use futures::future::BoxFuture;
use libp2p::PeerId;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::Wanted;
use super::desk::{Desk, Message};
use super::penalties::{Penalties, Penalty};
use crate::chunk::{self, Class, GetError};
use crate::{Endpoint, LinkError, Plane};

/// Why an object of a fetch could not be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// None of the holders can give it.
    #[error("no holder can give {0}")]
    Nowhere(Hash),
    /// None of the holders can give it, and to one at least it is longer than was asked for.
    #[error("{0} is longer than was asked for")]
    TooLong(Hash),
}

impl FetchError {
    /// The object that is missing.
    pub fn hash(&self) -> Hash {
        match self {
            Self::Nowhere(hash) | Self::TooLong(hash) => *hash,
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
    /// It is slow: another was asked for the same.
    Slow,
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
            Self::Slow => "slow",
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

/// What an object is wanted for, as it changes: it becomes a higher class when a reader wants it too.
pub type ClassNow = watch::Receiver<Class>;

/// The way to those who hold objects: the endpoint's links, or a simulator's.
pub trait Holders: Send + Sync + 'static {
    /// The node's own id, which is never asked.
    fn own(&self) -> PeerId;

    /// Asks `peer` for one object. What is returned has the hash that was asked for.
    ///
    /// # Errors
    /// See [`AskError`].
    fn ask(&self, peer: PeerId, wanted: Wanted, class: ClassNow) -> BoxFuture<'_, Result<Bytes, AskError>>;
}

impl Holders for Endpoint {
    fn own(&self) -> PeerId {
        self.peer_id()
    }

    fn ask(&self, peer: PeerId, wanted: Wanted, class: ClassNow) -> BoxFuture<'_, Result<Bytes, AskError>> {
        Box::pin(async move {
            let connection = self.link(peer, Plane::Chunk).await?;
            Ok(chunk::get_while(&connection, wanted.hash, wanted.len, class).await?)
        })
    }
}

/// Fetches objects from other members. Clones share one plan.
#[derive(Clone)]
pub struct Fetcher {
    own: PeerId,
    way: Arc<dyn Holders>,
    desk: mpsc::UnboundedSender<Message>,
    next: Arc<AtomicU64>,
    /// Holders that sent wrong bytes: others are asked first.
    penalties: Arc<Mutex<Penalties>>,
}

impl fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetcher").field("own", &self.own).finish_non_exhaustive()
    }
}

impl Fetcher {
    /// A fetcher that asks by `way`, with the task that owns its plan, which ends with the last clone. Faults
    /// are offered to `faults`, and dropped when it is full: a fetch never waits for who counts.
    pub fn new(way: Arc<dyn Holders>, faults: mpsc::Sender<ChunkFault>) -> Self {
        let own = way.own();
        // Unbounded, but each message stands for a fetch or for an object in somebody's hand, which are bounded.
        let (desk, messages) = mpsc::unbounded_channel();
        let penalties = Arc::default();
        let plan = Desk::new(Arc::clone(&way), faults, Arc::clone(&penalties), desk.downgrade(), messages);
        drop(maillage_host::spawn(plan.run()));
        Self { own, way, desk, next: Arc::default(), penalties }
    }

    /// Fetches every object of `wanted` from whichever of `holders` has it, in about this order. Each hash comes
    /// out once, as soon as it is had: verified bytes, or an error that names it. Nothing comes after the last.
    /// What another fetch is waiting for is not asked for twice, and then in the higher class of the two.
    pub fn fetch(&self, wanted: Vec<Wanted>, holders: Vec<PeerId>, class: Class) -> Arriving {
        self.begin(wanted, holders, class, false)
    }

    /// Fetches one object that a reader waits for: before all that is only part of something larger.
    ///
    /// # Errors
    /// [`FetchError`].
    pub async fn get(&self, wanted: Wanted, holders: Vec<PeerId>) -> Result<Arrived, FetchError> {
        let mut arriving = self.begin(vec![wanted], holders, Class::Reader, true);
        arriving.recv().await.unwrap_or(Err(FetchError::Nowhere(wanted.hash)))
    }

    /// Asks this one holder for one object, outside the plan: nobody else is asked, and what is on its way for others
    /// is no answer. How much is asked for at once is the caller's to bound.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn get_from(&self, peer: PeerId, wanted: Wanted, class: Class) -> Result<Bytes, AskError> {
        self.way.ask(peer, wanted, watch::channel(class).1).await
    }

    fn begin(&self, wanted: Vec<Wanted>, holders: Vec<PeerId>, class: Class, is_awaited: bool) -> Arriving {
        let fetch = self.next.fetch_add(1, Ordering::Relaxed);
        let (delivered, arrived) = mpsc::unbounded_channel();
        let mut seen = BTreeSet::new();
        let wanted = wanted.into_iter().filter(|wanted| seen.insert(*wanted.hash.as_bytes())).collect();
        let mut seen = BTreeSet::from([self.own]);
        let holders = holders.into_iter().filter(|peer| seen.insert(*peer)).collect();
        // A desk that is gone is a node that stops: nothing comes out.
        let _ = self.desk.send(Message::Want { fetch, wanted, holders, class, is_awaited, delivered });
        Arriving { fetch, arrived, desk: self.desk.clone() }
    }

    /// What is held against a peer; `None` when it never sent anything wrong.
    pub fn penalty(&self, peer: &PeerId) -> Option<Penalty> {
        self.penalties.lock().unwrap_or_else(PoisonError::into_inner).of(peer, Instant::now())
    }
}

/// What a fetch brings. Dropping it ends the fetch.
#[derive(Debug)]
pub struct Arriving {
    fetch: u64,
    /// Unbounded, but no more is asked for than may be in a fetch's hand.
    arrived: mpsc::UnboundedReceiver<Result<Arrived, FetchError>>,
    desk: mpsc::UnboundedSender<Message>,
}

impl Arriving {
    /// The next object, or why one cannot be had; `None` after the last.
    pub async fn recv(&mut self) -> Option<Result<Arrived, FetchError>> {
        self.arrived.recv().await
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        let _ = self.desk.send(Message::Ended { fetch: self.fetch });
    }
}

/// An object that was had: its bytes have its hash.
#[derive(Debug)]
pub struct Arrived {
    /// Its address.
    pub hash: Hash,
    /// Its bytes.
    pub bytes: Bytes,
    /// Whether they came for another fetch that wanted the same, and were counted there.
    pub is_shared: bool,
    /// Keep it as long as the bytes are kept: until they are stored, say.
    pub in_hand: InHand,
}

/// As long as this is there, its object counts as being in hand: a fetch asks for no more than may be, and who
/// wants the same object is given it rather than asking for it again.
#[derive(Debug)]
#[must_use = "the bytes count as in hand until this is dropped"]
pub struct InHand {
    pub(super) fetch: u64,
    pub(super) hash: Hash,
    pub(super) len: u64,
    pub(super) class: Class,
    pub(super) desk: mpsc::UnboundedSender<Message>,
}

impl Drop for InHand {
    fn drop(&mut self) {
        let Self { fetch, hash, len, class, .. } = *self;
        let _ = self.desk.send(Message::LetGo { fetch, hash, len, class });
    }
}
