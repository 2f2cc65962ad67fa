//! Raft's byte streams over the transport's connections: the one place where the two meet.

use std::io;

use futures::future::BoxFuture;
use maillage_consensus::ids::SiteId;
use maillage_consensus::raft::{Duplex, Group, Links};
use maillage_transport::{Accepted, Endpoint, Incoming, Plane};
use tokio_util::sync::CancellationToken;

use crate::roster::Roster;

/// Streams that one member may have open on its Raft connection at once. A leader keeps one pipelined
/// stream to each follower; the rest are forwarded proposals.
const STREAMS_PER_PEER_MAX: usize = 1024;

/// Opens Raft's streams on the connection kept with each member.
#[derive(Debug)]
pub(crate) struct MeshLinks {
    endpoint: Endpoint,
    roster: Roster,
}

impl MeshLinks {
    /// Streams over `endpoint` to the members of `roster`.
    pub(crate) fn new(endpoint: Endpoint, roster: Roster) -> Self {
        Self { endpoint, roster }
    }
}

impl Links for MeshLinks {
    fn open(&self, target: u64) -> BoxFuture<'_, io::Result<Duplex>> {
        Box::pin(async move {
            let peer = self.roster.peer(SiteId(target)).ok_or_else(|| {
                io::Error::new(io::ErrorKind::NotFound, format!("site {target} is not a known member"))
            })?;
            let connection = self.endpoint.link(peer, Plane::Raft).await.map_err(io::Error::other)?;
            let (writer, reader) = connection.open_bi().await.map_err(io::Error::other)?;
            Ok(Duplex { reader: Box::new(reader), writer: Box::new(writer) })
        })
    }
}

/// Gives the Raft streams that members open to `group`, until `shutdown`.
pub(crate) async fn serve(mut incoming: Accepted, group: Group, roster: Roster, shutdown: CancellationToken) {
    while let Some(Some(Incoming { peer, connection, .. })) = shutdown.run_until_cancelled(incoming.recv()).await {
        let Some(site) = roster.site(&peer) else {
            connection.close(0_u32.into(), b"not a member");
            continue;
        };
        let (group, shutdown) = (group.clone(), shutdown.clone());
        maillage_host::spawn(async move {
            let admission = std::sync::Arc::new(tokio::sync::Semaphore::new(STREAMS_PER_PEER_MAX));
            loop {
                let Ok(permit) = std::sync::Arc::clone(&admission).acquire_owned().await else { break };
                let Some(Ok((writer, reader))) = shutdown.run_until_cancelled(connection.accept_bi()).await else {
                    break;
                };
                let group = group.clone();
                maillage_host::spawn(async move {
                    let duplex = Duplex { reader: Box::new(reader), writer: Box::new(writer) };
                    group.serve(site.0, duplex).await;
                    drop(permit);
                });
            }
        });
    }
}
