//! A node over the production endpoint: QUIC, TLS, membership and chunk exchange as in production, on
//! simulated datagrams.
//!
//! Only Raft's door is opened here and not by `Site::serve_raft`, because the invariant of promises
//! needs to see what passes inside the encryption.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use maillage::site::{Joining, Member, Wires};
use maillage_consensus::raft::{Duplex, Links};
use maillage_host::Clock;
use maillage_transport::{Alpn, Endpoint, EndpointConfig, Identity, Incoming, Membership, PeerId, Socket};

use crate::cluster::{Cluster, Running};
use crate::net::Listener;
use crate::net::datagrams::{Datagrams, PORT};
use crate::world::{Owner, World};

/// Opens the port of a life, as the node does before anything else.
///
/// # Errors
/// When the address is taken.
pub(crate) fn open(
    network: &Arc<Datagrams>,
    owner: Owner,
    identity: &Identity,
    membership: &Membership,
    clock: &Clock,
) -> io::Result<Endpoint> {
    bind(network, owner, PORT, identity.clone(), membership.clone(), clock)
}

fn bind(
    network: &Arc<Datagrams>,
    owner: Owner,
    port: u16,
    identity: Identity,
    membership: Membership,
    clock: &Clock,
) -> io::Result<Endpoint> {
    let socket = Socket::Abstract(network.bind(owner, port)?);
    Endpoint::bind(EndpointConfig::new(identity, membership, socket, clock.clone())).map_err(io::Error::other)
}

/// The production wires over `endpoint`, tapped.
pub(crate) fn wires(cluster: &Arc<Cluster>, owner: Owner, member: &Member, endpoint: &Endpoint) -> Wires {
    let Wires { links, holders } = member.wires(endpoint);
    let (world, slot_of) = (Arc::clone(&cluster.world), cluster.slot_of());
    let links = TappedLinks { inner: links, listener: cluster.listener(), world, slot_of, owner };
    Wires { links: Arc::new(links), holders }
}

/// The links of one life, whose streams the invariants listen to.
struct TappedLinks {
    inner: Arc<dyn Links>,
    listener: Listener,
    world: Arc<World>,
    slot_of: Box<dyn Fn(u64) -> Option<u32> + Send + Sync>,
    owner: Owner,
}

impl Links for TappedLinks {
    fn open(&self, target: u64) -> BoxFuture<'_, io::Result<Duplex>> {
        Box::pin(async move {
            let stream = self.inner.open(target).await?;
            // A site that was lost meanwhile has no slot any more, and nobody is there to be watched.
            let Some(to) = (self.slot_of)(target) else { return Ok(stream) };
            Ok(self.listener.opened(self.owner, self.world.owner(to), stream))
        })
    }
}

/// Opens the doors of a node that has such a port: Raft's first, as in production.
pub(crate) async fn open_doors(cluster: Arc<Cluster>, running: Running) {
    let Some(endpoint) = &running.endpoint else { return };
    let mut door = endpoint.accept(Alpn::Raft);
    running.node.serve_mesh(endpoint, cluster.liars.source(&running));
    let (slot_of, listener) = (cluster.slot_of_peer(), cluster.listener());
    while let Some(Some(Incoming { peer, connection, .. })) = running.shutdown.run_until_cancelled(door.recv()).await {
        let Some((slot, site)) = slot_of(&peer).and_then(|slot| Some((slot, cluster.site(slot)?))) else {
            connection.close(0_u32.into(), b"not a member");
            continue;
        };
        let (running, listener, far) = (running.clone(), listener.clone(), cluster.world.owner(slot));
        drop(maillage_host::spawn(async move {
            while let Some(Ok((writer, reader))) = running.shutdown.run_until_cancelled(connection.accept_bi()).await {
                let stream = Duplex { reader: Box::new(reader), writer: Box::new(writer) };
                let stream = listener.accepted(running.owner, far, stream);
                let node = running.node.clone();
                drop(maillage_host::spawn(async move { node.answer_raft(site, stream).await }));
            }
        }));
    }
}

/// Asks one member to be let in, from a port of its own and with the token's key, as `maillage join` does.
///
/// # Errors
/// When it does not answer.
pub(crate) async fn ask_to_join(
    network: &Arc<Datagrams>,
    owner: Owner,
    clock: &Clock,
    joining: &Joining,
    (peer, address): (PeerId, SocketAddr),
) -> io::Result<Option<Bytes>> {
    let membership = Membership::new(clock.clone());
    let endpoint = bind(network, owner, 0, joining.token_identity(), membership, clock)?;
    let reply = joining.ask(&endpoint, peer, address).await;
    endpoint.close().await;
    reply.map(|reply| Some(reply.into())).map_err(io::Error::other)
}
