//! How a gateway reaches centres: by its QUIC port, or by whatever a test has instead.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{PoisonError, RwLock};

use futures::future::BoxFuture;
use maillage_consensus::raft::Duplex;
use maillage_transport::{Endpoint, PeerId, Plane};

/// Opens streams to centres.
pub trait Lines: Send + Sync + 'static {
    /// A new stream to a centre.
    fn open(&self, centre: u64) -> BoxFuture<'_, io::Result<Duplex>>;
    /// Replaces the centres that may be reached.
    fn know(&self, centres: BTreeMap<u64, (PeerId, Vec<SocketAddr>)>);
}

/// Streams on the one connection that is kept with each centre.
#[derive(Debug)]
pub(crate) struct MeshLines {
    endpoint: Endpoint,
    peers: RwLock<BTreeMap<u64, PeerId>>,
}

impl MeshLines {
    /// Streams over `endpoint`, to nobody yet.
    pub(crate) fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, peers: RwLock::default() }
    }
}

impl Lines for MeshLines {
    fn open(&self, centre: u64) -> BoxFuture<'_, io::Result<Duplex>> {
        Box::pin(async move {
            let peer = self.peers.read().unwrap_or_else(PoisonError::into_inner).get(&centre).copied();
            let unknown = || io::Error::new(io::ErrorKind::NotFound, format!("site {centre} is not known"));
            let peer = peer.ok_or_else(unknown)?;
            let connection = self.endpoint.link(peer, Plane::Gate).await.map_err(io::Error::other)?;
            let (writer, reader) = connection.open_bi().await.map_err(io::Error::other)?;
            Ok(Duplex { reader: Box::new(reader), writer: Box::new(writer) })
        })
    }

    fn know(&self, centres: BTreeMap<u64, (PeerId, Vec<SocketAddr>)>) {
        let peers = centres.iter().map(|(site, (peer, _))| (*site, *peer)).collect();
        *self.peers.write().unwrap_or_else(PoisonError::into_inner) = peers;
        self.endpoint.membership().set_members(centres.into_values().collect());
    }
}
