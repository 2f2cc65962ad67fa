//! Nodes on loopback for the tests of this crate.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use blake3::Hash;
use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _};
use maillage_host::Clock;
use tokio::sync::Semaphore;

use crate::chunk::ChunkSource;
use crate::{Endpoint, EndpointConfig, Identity, Membership, PeerId, Socket};

pub(crate) mod wire;

/// A port of its own and a membership of its own.
pub(crate) struct Node {
    pub(crate) endpoint: Endpoint,
    pub(crate) membership: Membership,
}

impl Node {
    pub(crate) fn new() -> Self {
        Self::with_identity(Identity::generate())
    }

    pub(crate) fn with_identity(identity: Identity) -> Self {
        Self::at(identity, Socket::Udp(SocketAddr::from(([127, 0, 0, 1], 0))))
    }

    pub(crate) fn at(identity: Identity, socket: Socket) -> Self {
        let membership = Membership::new(Clock::system());
        let mut config = EndpointConfig::new(identity, membership.clone(), socket, Clock::system());
        config.dial_deadline = Duration::from_secs(3);
        Self { endpoint: Endpoint::bind(config).expect("bind on loopback"), membership }
    }

    pub(crate) fn peer(&self) -> PeerId {
        self.endpoint.peer_id()
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.endpoint.local_addr().expect("a bound socket has an address")
    }

    pub(crate) fn entry(&self) -> (PeerId, Vec<SocketAddr>) {
        (self.peer(), vec![self.address()])
    }
}

/// Makes all of them members of each other.
pub(crate) fn acquaint(nodes: &[&Node]) {
    let members: BTreeMap<_, _> = nodes.iter().map(|node| node.entry()).collect();
    for node in nodes {
        node.membership.set_members(members.clone());
    }
}

pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.unwrap_or_else(|_| panic!("{what} took too long"))
}

/// A source of chunks in memory, which may lie, fail or dawdle.
#[derive(Default)]
pub(crate) struct Shelf {
    pub(crate) chunks: BTreeMap<[u8; 32], Bytes>,
    /// Gives other bytes than asked for.
    pub(crate) lies: bool,
    pub(crate) fails: bool,
    pub(crate) delay: Duration,
    /// Gives nothing until this is closed.
    pub(crate) gate: Option<Arc<Semaphore>>,
    pub(crate) reads: AtomicUsize,
    pub(crate) reading: AtomicUsize,
    pub(crate) reading_most: AtomicUsize,
}

impl Shelf {
    pub(crate) fn of(chunks: &[Bytes]) -> Self {
        let chunks = chunks.iter().map(|bytes| (*blake3::hash(bytes).as_bytes(), bytes.clone())).collect();
        Self { chunks, ..Self::default() }
    }
}

impl ChunkSource for Shelf {
    fn read(&self, hash: Hash) -> BoxFuture<'_, io::Result<Option<Bytes>>> {
        async move {
            self.reads.fetch_add(1, Ordering::SeqCst);
            let now = self.reading.fetch_add(1, Ordering::SeqCst) + 1;
            self.reading_most.fetch_max(now, Ordering::SeqCst);
            if !self.delay.is_zero() {
                tokio::time::sleep(self.delay).await;
            }
            if let Some(gate) = &self.gate {
                let _ = gate.acquire().await;
            }
            self.reading.fetch_sub(1, Ordering::SeqCst);
            if self.fails {
                return Err(io::Error::other("disk on fire"));
            }
            let found = self.chunks.get(hash.as_bytes()).cloned();
            Ok(found.map(|bytes| match self.lies {
                true => bytes.iter().map(|byte| byte ^ 1).collect(),
                false => bytes,
            }))
        }
        .boxed()
    }
}

/// Different chunks of this length.
pub(crate) fn chunks(count: usize, len: usize) -> Vec<Bytes> {
    let chunk = |n: usize| {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().update(&n.to_be_bytes()).finalize_xof().fill(&mut bytes);
        Bytes::from(bytes)
    };
    (0..count).map(chunk).collect()
}
