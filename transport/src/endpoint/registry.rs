//! Every established connection of the endpoint, so that one can be closed when its peer is removed,
//! and so that no peer holds more than a few.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use libp2p::PeerId;

use crate::{Alpn, Membership};

/// Connections that one peer may have open to us on one protocol. One is enough; a restarted peer's
/// old ones linger until they time out, and two swarms that dial each other make two.
pub(super) const CONNECTIONS_PER_PEER_MAX: usize = 4;

/// Who opened a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// The peer did.
    Inbound,
    /// We did.
    Outbound,
}

/// What is known of an open connection, for status and metrics.
#[derive(Debug, Clone)]
pub struct ConnectionInfo {
    /// The peer at the other end.
    pub peer: PeerId,
    /// What it is for.
    pub alpn: Alpn,
    /// Who opened it.
    pub direction: Direction,
    /// Where the peer is.
    pub remote: SocketAddr,
    /// The smoothed round trip time.
    pub rtt: Duration,
    /// Bytes sent and received in datagrams.
    pub bytes: (u64, u64),
}

#[derive(Debug, Default)]
pub(super) struct Registry(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    next: u64,
    open: BTreeMap<u64, Entry>,
}

#[derive(Debug, Clone)]
struct Entry {
    peer: PeerId,
    alpn: Alpn,
    direction: Direction,
    connection: quinn::Connection,
}

impl Entry {
    /// A joining site dials before it knows any member; all else needs membership.
    fn is_allowed(&self, membership: &Membership) -> bool {
        match (self.direction, self.alpn) {
            (Direction::Outbound, Alpn::Join) => true,
            (Direction::Outbound, _) => membership.is_member(&self.peer),
            (Direction::Inbound, alpn) => membership.admits(&self.peer, alpn),
        }
    }
}

impl Registry {
    /// Adds a connection and returns its number, with those of the same peer that it pushes out: the
    /// oldest, for a peer that dials again has usually lost them.
    pub(super) fn insert(
        &self,
        peer: PeerId,
        alpn: Alpn,
        direction: Direction,
        connection: quinn::Connection,
    ) -> (u64, Vec<quinn::Connection>) {
        let mut state = self.lock();
        let id = state.next;
        state.next += 1;
        let mut pushed_out = Vec::new();
        if direction == Direction::Inbound {
            let same = |e: &Entry| e.peer == peer && e.alpn == alpn && e.direction == direction;
            let ids: Vec<u64> = state.open.iter().filter(|(_, e)| same(e)).map(|(id, _)| *id).collect();
            for old in ids.iter().take((ids.len() + 1).saturating_sub(CONNECTIONS_PER_PEER_MAX)) {
                pushed_out.extend(state.open.remove(old).map(|e| e.connection));
            }
        }
        state.open.insert(id, Entry { peer, alpn, direction, connection });
        (id, pushed_out)
    }

    pub(super) fn remove(&self, id: u64) {
        self.lock().open.remove(&id);
    }

    /// The connections that the membership no longer allows.
    pub(super) fn disallowed(&self, membership: &Membership) -> Vec<(PeerId, Alpn, quinn::Connection)> {
        let state = self.lock();
        let gone = state.open.values().filter(|entry| !entry.is_allowed(membership));
        gone.map(|entry| (entry.peer, entry.alpn, entry.connection.clone())).collect()
    }

    pub(super) fn list(&self) -> Vec<ConnectionInfo> {
        let entries: Vec<Entry> = self.lock().open.values().cloned().collect();
        let info = |entry: Entry| {
            let stats = entry.connection.stats();
            ConnectionInfo {
                peer: entry.peer,
                alpn: entry.alpn,
                direction: entry.direction,
                remote: entry.connection.remote_address(),
                rtt: stats.path.rtt,
                bytes: (stats.udp_tx.bytes, stats.udp_rx.bytes),
            }
        };
        entries.into_iter().map(info).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
