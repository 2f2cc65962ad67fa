//! The pool of outgoing connections between members: one per peer and plane, dialled once however many
//! ask for it, over all known addresses at a stagger (the idea of RFC 8305, "Happy Eyeballs").

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt as _, Shared as SharedFuture};
use futures::stream::{FuturesUnordered, StreamExt as _};
use libp2p::PeerId;
use tokio::time::{sleep, timeout};

use super::{DialError, Direction, Shared};
use crate::Plane;

/// The next address is tried when the one before has not answered for this long (RFC 8305 section 5).
const STAGGER: Duration = Duration::from_millis(250);

/// Addresses tried in one dial; a member rarely has more, and the deadline leaves time for no more.
const ADDRESSES_MAX: usize = 8;

/// Why there is no link to a peer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LinkError {
    /// The peer is no member (any more).
    #[error("peer {0} is not a member")]
    NotAMember(PeerId),
    /// No address of the peer is known.
    #[error("no address of peer {0} is known")]
    NoAddress(PeerId),
    /// Every address failed.
    #[error("peer {peer} answered at none of {tried} addresses, last: {last}")]
    Unreachable {
        /// The peer.
        peer: PeerId,
        /// How many addresses were tried.
        tried: usize,
        /// What the last one gave.
        last: Box<DialError>,
    },
    /// No address answered before the deadline.
    #[error("peer {0} did not answer in time")]
    Timeout(PeerId),
    /// The endpoint was closed.
    #[error("endpoint is closed")]
    Closed,
}

type Dialling = SharedFuture<BoxFuture<'static, Result<quinn::Connection, LinkError>>>;

enum Slot {
    Dialling(Dialling),
    Live(quinn::Connection),
}

#[derive(Default)]
pub(super) struct Links(Mutex<State>);

#[derive(Default)]
struct State {
    slots: BTreeMap<(PeerId, Plane), Slot>,
    /// Where a peer answered last, which is tried first.
    answered: BTreeMap<PeerId, SocketAddr>,
}

impl Links {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets what belongs to peers that are no members.
    pub(super) fn retain(&self, is_member: impl Fn(&PeerId) -> bool) {
        let mut state = self.lock();
        state.slots.retain(|(peer, _), _| is_member(peer));
        state.answered.retain(|peer, _| is_member(peer));
    }

    fn forget_closed(&self, key: (PeerId, Plane)) {
        let mut state = self.lock();
        if matches!(state.slots.get(&key), Some(Slot::Live(connection)) if connection.close_reason().is_some()) {
            state.slots.remove(&key);
        }
    }
}

pub(super) async fn link(shared: &Arc<Shared>, peer: PeerId, plane: Plane) -> Result<quinn::Connection, LinkError> {
    if !shared.membership.is_member(&peer) {
        return Err(LinkError::NotAMember(peer));
    }
    let dialling = {
        let mut state = shared.links.lock();
        match state.slots.get(&(peer, plane)) {
            Some(Slot::Live(connection)) if connection.close_reason().is_none() => return Ok(connection.clone()),
            Some(Slot::Dialling(dialling)) => dialling.clone(),
            Some(Slot::Live(_)) | None => {
                let dialling = start(Arc::clone(shared), peer, plane);
                state.slots.insert((peer, plane), Slot::Dialling(dialling.clone()));
                dialling
            }
        }
    };
    dialling.await
}

/// Dials in a task of its own: a caller that gives up does not end it for the others.
fn start(shared: Arc<Shared>, peer: PeerId, plane: Plane) -> Dialling {
    let task = maillage_host::spawn(async move {
        let result = dial(&shared, peer, plane).await;
        let mut state = shared.links.lock();
        match &result {
            Ok(connection) => {
                state.answered.insert(peer, connection.remote_address());
                state.slots.insert((peer, plane), Slot::Live(connection.clone()));
                drop(state);
                forget_when_closed(&shared, peer, plane, connection.clone());
            }
            Err(_) => {
                state.slots.remove(&(peer, plane));
            }
        }
        result
    });
    task.map(|joined| joined.unwrap_or(Err(LinkError::Closed))).boxed().shared()
}

fn forget_when_closed(shared: &Arc<Shared>, peer: PeerId, plane: Plane, connection: quinn::Connection) {
    let shared = Arc::downgrade(shared);
    drop(maillage_host::spawn(async move {
        let reason = connection.closed().await;
        tracing::debug!(%peer, %plane, %reason, "link closed");
        if let Some(shared) = shared.upgrade() {
            shared.links.forget_closed((peer, plane));
        }
    }));
}

async fn dial(shared: &Arc<Shared>, peer: PeerId, plane: Plane) -> Result<quinn::Connection, LinkError> {
    let mut addresses = shared.membership.addresses(&peer);
    if let Some(answered) = shared.links.lock().answered.get(&peer)
        && let Some(at) = addresses.iter().position(|address| address == answered)
    {
        addresses.swap(0, at);
    }
    addresses.truncate(ADDRESSES_MAX);
    let connection = match timeout(shared.dial_deadline, race(shared, peer, plane, addresses)).await {
        Ok(raced) => raced?,
        Err(_) => return Err(LinkError::Timeout(peer)),
    };
    if !shared.register(peer, plane.alpn(), Direction::Outbound, &connection) {
        return Err(LinkError::NotAMember(peer));
    }
    tracing::debug!(%peer, %plane, address = %connection.remote_address(), "link opened");
    Ok(connection)
}

/// The first address at which the peer admits us. The other attempts are dropped, which closes them.
async fn race(
    shared: &Arc<Shared>,
    peer: PeerId,
    plane: Plane,
    addresses: Vec<SocketAddr>,
) -> Result<quinn::Connection, LinkError> {
    let tried = addresses.len();
    let mut waiting = addresses.into_iter();
    let mut attempts = FuturesUnordered::new();
    let mut last = None;
    loop {
        if let Some(address) = waiting.next() {
            attempts.push(shared.connect(peer, address, plane.alpn()));
        } else if attempts.is_empty() {
            return Err(match last {
                Some(last) => LinkError::Unreachable { peer, tried, last: Box::new(last) },
                None => LinkError::NoAddress(peer),
            });
        }
        tokio::select! {
            Some(attempt) = attempts.next() => match attempt {
                Ok(connection) => return Ok(connection),
                Err(error) => last = Some(error),
            },
            () = sleep(STAGGER), if waiting.len() > 0 => {}
        }
    }
}
