//! Production endpoints on the simulated network: one to a life of a slot.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use blake3::Hash;
use bytes::Bytes;
use futures::future::BoxFuture;
use maillage_simulations::datagrams::{PORT, Scene};
use maillage_transport::chunk::{self, CHUNK_LEN_MAX, ChunkSource, Class, Limits};
use maillage_transport::quinn::Connection;
use maillage_transport::{
    Alpn, Endpoint, EndpointConfig, Identity, Incoming, LinkError, Membership, PeerId, Plane, Socket,
};

/// A slot with a key, whose lives come and go.
pub(crate) struct Node {
    pub(crate) slot: u32,
    pub(crate) identity: Identity,
    pub(crate) membership: Membership,
}

/// The endpoint of one life.
#[derive(Clone)]
pub(crate) struct Life {
    pub(crate) slot: u32,
    pub(crate) endpoint: Endpoint,
    /// What peers dialled for Raft.
    accepted: Arc<Mutex<Vec<(PeerId, Connection)>>>,
}

impl Node {
    pub(crate) fn new(scene: &Scene, slot: u32) -> Self {
        Self { slot, identity: Identity::generate(), membership: Membership::new(scene.clock(slot)) }
    }

    pub(crate) fn peer(&self) -> PeerId {
        self.identity.peer_id()
    }

    /// Begins a life that serves `chunks` and keeps whatever links peers open.
    pub(crate) async fn begin(&self, scene: &Scene, chunks: &[Bytes]) -> Life {
        scene.begin(self.slot);
        let shelf = Shelf(chunks.iter().map(|bytes| (*blake3::hash(bytes).as_bytes(), bytes.clone())).collect());
        let life = self.open(scene, PORT).await;
        let (endpoint, accepted) = (life.endpoint.clone(), Arc::clone(&life.accepted));
        let serving = scene.run(self.slot, async move {
            let mut raft = endpoint.accept(Alpn::Raft);
            let chunks = endpoint.accept(Alpn::Chunk);
            drop(maillage_host::spawn(chunk::serve(chunks, Arc::new(shelf), Limits::default())));
            drop(maillage_host::spawn(async move {
                while let Some(Incoming { peer, connection, .. }) = raft.recv().await {
                    accepted.lock().expect("no panic").push((peer, connection));
                }
            }));
        });
        serving.await.expect("serve");
        life
    }

    /// Opens an endpoint in the present life, on this port.
    pub(crate) async fn open(&self, scene: &Scene, port: u16) -> Life {
        let socket = Socket::Abstract(scene.socket(self.slot, port).expect("bind"));
        let config =
            EndpointConfig::new(self.identity.clone(), self.membership.clone(), socket, scene.clock(self.slot));
        let endpoint = scene.run(self.slot, async move { Endpoint::bind(config) }).await.expect("run").expect("open");
        Life { slot: self.slot, endpoint, accepted: Arc::default() }
    }
}

impl Life {
    pub(crate) async fn link(&self, scene: &Scene, peer: PeerId, plane: Plane) -> Result<Connection, LinkError> {
        let endpoint = self.endpoint.clone();
        within(scene.run(self.slot, async move { endpoint.link(peer, plane).await })).await.expect("run")
    }

    /// Links, again and again, until it succeeds: for a peer that is about to be back.
    pub(crate) async fn link_at_last(&self, scene: &Scene, peer: PeerId, plane: Plane) -> Connection {
        within(async {
            loop {
                match self.link(scene, peer, plane).await {
                    Ok(connection) if connection.close_reason().is_none() => return connection,
                    _ => tokio::time::sleep(Duration::from_millis(200)).await,
                }
            }
        })
        .await
    }

    /// Gets every chunk over one link, as many at once as a fetch would.
    pub(crate) async fn get_all(&self, scene: &Scene, link: &Connection, chunks: &[Bytes]) -> Vec<Bytes> {
        let hashes: Vec<Hash> = chunks.iter().map(|chunk| blake3::hash(chunk)).collect();
        let link = link.clone();
        let getting = async move {
            let places = Arc::new(tokio::sync::Semaphore::new(chunk::IN_FLIGHT_BYTES_MAX / CHUNK_LEN_MAX));
            let each = hashes.into_iter().map(|hash| {
                let (link, places) = (link.clone(), Arc::clone(&places));
                maillage_host::spawn(async move {
                    let _place = places.acquire().await.expect("open");
                    chunk::get(&link, hash, CHUNK_LEN_MAX, Class::Reader).await.expect("get a chunk")
                })
            });
            futures::future::try_join_all(each.collect::<Vec<_>>()).await.expect("run")
        };
        within(scene.run(self.slot, getting)).await.expect("run")
    }

    /// The newest connection that this peer dialled for Raft.
    pub(crate) fn accepted_from(&self, peer: PeerId) -> Option<Connection> {
        let accepted = self.accepted.lock().expect("no panic");
        accepted.iter().rev().find(|(from, _)| *from == peer).map(|(_, connection)| connection.clone())
    }

    /// Says something that the peer has not asked for.
    pub(crate) async fn speak(&self, scene: &Scene, connection: &Connection) {
        let connection = connection.clone();
        let speaking = scene.run(self.slot, async move {
            let (mut writer, _reader) = connection.open_bi().await.expect("open a stream");
            writer.write_all(b"are you there").await.expect("write");
        });
        speaking.await.expect("run");
    }

    pub(crate) async fn ended(&self, scene: &Scene, connection: &Connection) -> String {
        let connection = connection.clone();
        within(scene.run(self.slot, async move { connection.closed().await.to_string() })).await.expect("run")
    }
}

/// Nothing in these scenes takes a minute of simulated time, unless it never ends.
async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("within a simulated minute")
}

/// Makes all of them members of each other, at their usual ports.
pub(crate) fn acquaint(scene: &Scene, nodes: &[&Node]) {
    let members: BTreeMap<_, _> =
        nodes.iter().map(|node| (node.peer(), vec![scene.address(node.slot, PORT)])).collect();
    for node in nodes {
        node.membership.set_members(members.clone());
    }
}

/// Different chunks of full length.
pub(crate) fn chunks(count: usize) -> Vec<Bytes> {
    let chunk = |n: usize| {
        let mut bytes = vec![0; CHUNK_LEN_MAX];
        blake3::Hasher::new().update(&n.to_be_bytes()).finalize_xof().fill(&mut bytes);
        Bytes::from(bytes)
    };
    (0..count).map(chunk).collect()
}

struct Shelf(BTreeMap<[u8; 32], Bytes>);

impl ChunkSource for Shelf {
    fn read(&self, hash: Hash) -> BoxFuture<'_, io::Result<Option<Bytes>>> {
        Box::pin(std::future::ready(Ok(self.0.get(hash.as_bytes()).cloned())))
    }
}
