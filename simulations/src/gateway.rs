//! A hospital's gateway: the production one, whole, on a simulated machine of its own.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use bytes::Bytes;
use futures::future::BoxFuture;
use maillage::site::{GatewayHost, GatewayNode, Lines, mesh_lines};
use maillage_consensus::raft::Duplex;
use maillage_dicom::dimse::scp::{ServiceRequest, StoreRequest};
use maillage_dicom::dimse::status::{Status, StoreStatus};
use maillage_host::Disk;
use maillage_store::Store;
use maillage_transport::frame::{self, HEADER_LEN};
use maillage_transport::{Endpoint, Membership, PeerId};
use tokio::io::AsyncWriteExt as _;
use tokio_util::sync::CancellationToken;

use crate::cluster::{Cluster, Running};
use crate::disk::Engines;
use crate::mutant::Mutant;
use crate::net::{Fabric, Network, Plane};
use crate::quic;
use crate::site::{self, Failed};
use crate::world::Owner;

/// A gateway that is up.
#[derive(Clone)]
pub(crate) struct Gatehouse {
    pub(crate) owner: Owner,
    pub(crate) node: GatewayNode,
    pub(crate) store: Store,
    pub(crate) disk: Disk,
    pub(crate) http: Router,
    endpoint: Option<Endpoint>,
    shutdown: CancellationToken,
}

/// A gateway's life, from start to when it stops by itself.
pub(crate) async fn run(cluster: Arc<Cluster>, owner: Owner) {
    let ended = match start(&cluster, owner).await {
        Ok(gatehouse) => Ok(live(&cluster, gatehouse).await),
        Err(failed) => Err(failed),
    };
    site::ended(&cluster, owner, ended);
}

async fn start(cluster: &Arc<Cluster>, owner: Owner) -> Result<Gatehouse, Failed> {
    let refuses = |error: &dyn ToString| Failed::Refuses(error.to_string());
    let disk = cluster.disks.disk(owner);
    let (clock, identity) = (site::clock(cluster, owner.slot), cluster.identity(owner.slot));
    let settings = cluster.settings(owner.slot).map_err(|error| refuses(&error))?;
    let mesh = site::belong(cluster, owner, &disk, &settings, &identity).await?;
    cluster.admit(owner.slot, mesh.site_id);
    let (endpoint, lines): (_, Arc<dyn Lines>) = match &cluster.fabric {
        Network::Messages(fabric) => {
            let lines = SimLines { fabric: Arc::clone(fabric), owner, slot_of: cluster.slot_of() };
            (None, Arc::new(lines))
        }
        Network::Quic(datagrams) => {
            let membership = Membership::new(clock.clone());
            let endpoint = quic::open(datagrams, owner, &identity, &membership, &clock);
            let endpoint = endpoint.map_err(|error| Failed::of(&error))?;
            (Some(endpoint.clone()), mesh_lines(&endpoint))
        }
    };
    let lines: Arc<dyn Lines> = match cluster.plan.mutant {
        Some(Mutant::SafetyInvented) => Arc::new(Inventing { lines, invents: all_is_safe }),
        Some(Mutant::MeshTimePast) => Arc::new(Inventing { lines, invents: it_is_early }),
        _ => lines,
    };
    let Engines { index, .. } = cluster.disks.engines(owner.slot);
    let host = GatewayHost { disk: disk.clone(), index, clock, spool: site::store_config(), lines };
    let shutdown = CancellationToken::new();
    let node = GatewayNode::start(settings, mesh, host, &shutdown).await;
    let node = node.map_err(|error| Failed::of(&format!("{error:#}")))?;
    let store = node.store().clone();
    let recovery = store.recovery();
    if !recovery.damage.is_empty() || !recovery.missing.is_empty() {
        cluster.watch.instances.damaged(owner, &recovery);
    }
    let http = node.http();
    Ok(Gatehouse { owner, node, store, disk, http, endpoint, shutdown })
}

/// Takes in and sends until the spool may not be written any more. Returns why.
async fn live(cluster: &Arc<Cluster>, gatehouse: Gatehouse) -> String {
    cluster.gateway_entered(gatehouse.clone());
    let (looking, at_start) = (Arc::clone(cluster), gatehouse.clone());
    drop(maillage_host::spawn(async move { looking.watch.gateway.check_start(&looking, &at_start).await }));
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        if gatehouse.shutdown.is_cancelled() {
            return "it was told to stop".to_owned();
        }
        if gatehouse.store.stats().await.is_ok_and(|stats| stats.is_failed) {
            cluster.world.sometimes("a spool stopped writing after a disk error");
            // As a sysadmin does who is told.
            tokio::time::sleep(Duration::from_secs(5)).await;
            return "the spool stopped writing".to_owned();
        }
    }
}

/// Tells the gateway to stop, as a service supervisor does, and waits until it has.
pub(crate) async fn stop(gatehouse: &Gatehouse) {
    gatehouse.shutdown.cancel();
    gatehouse.node.stop().await;
    if let Some(endpoint) = &gatehouse.endpoint {
        endpoint.close().await;
    }
}

/// The way to centres over streams that the simulator makes.
struct SimLines {
    fabric: Arc<Fabric>,
    owner: Owner,
    slot_of: Box<dyn Fn(u64) -> Option<u32> + Send + Sync>,
}

type Reached = BTreeMap<u64, (PeerId, Vec<SocketAddr>)>;

impl Lines for SimLines {
    fn open(&self, centre: u64) -> BoxFuture<'_, io::Result<Duplex>> {
        Box::pin(async move {
            let to = (self.slot_of)(centre).ok_or(io::ErrorKind::NotFound)?;
            self.fabric.open(self.owner, to, Plane::Gate).await
        })
    }

    /// Who may be reached is who has a slot.
    fn know(&self, _: Reached) {}
}

/// Lines on which centres' answers are changed, as a mutant has them.
struct Inventing {
    lines: Arc<dyn Lines>,
    invents: fn(Vec<u8>) -> Vec<u8>,
}

/// Of `mesh-gate/1`: its version, what comes before what is safe, and what it says of an instance.
const SAFETY: [u8; 2] = [1, 8];
const PENDING: u8 = 1;
const SAFE: u8 = 0;
/// … what comes before what the mesh's clock reads …
const TIME: [u8; 2] = [1, 12];
/// … a question for the reports behind an event, up to the event's place in the log and among those of its command …
const FEED: [u8; 4] = [1, 4, 1, 0];
/// … and what its answer begins with: a page of them, that there is none now, and that it is being worked at.
pub(crate) const PAGE: [u8; 2] = [1, 9];
pub(crate) const NOT_NOW: [u8; 2] = [1, 6];
const WORKING: [u8; 2] = [1, 0];
/// More than any frame has.
const FRAME_MAX: usize = 64 << 20;

impl Lines for Inventing {
    fn open(&self, centre: u64) -> BoxFuture<'_, io::Result<Duplex>> {
        Box::pin(async move {
            let Duplex { mut reader, writer } = self.lines.open(centre).await?;
            let invents = self.invents;
            let (mut near, far) = tokio::io::duplex(64 << 10);
            maillage_host::spawn(async move {
                while let Ok(Some(answer)) = frame::read(&mut reader, FRAME_MAX).await {
                    let answer = invents(answer.to_vec());
                    let written = frame::write(&mut near, &answer, FRAME_MAX + HEADER_LEN).await;
                    if written.is_err() || near.flush().await.is_err() {
                        return;
                    }
                }
            });
            Ok(Duplex { reader: Box::new(far), writer })
        })
    }

    fn know(&self, reached: Reached) {
        self.lines.know(reached);
    }
}

fn all_is_safe(mut answer: Vec<u8>) -> Vec<u8> {
    if answer.starts_with(&SAFETY) {
        // The count has one byte here: few are asked of at once.
        let says = answer.iter_mut().skip(SAFETY.len() + 1);
        says.filter(|says| **says == PENDING).for_each(|says| *says = SAFE);
    }
    answer
}

fn it_is_early(answer: Vec<u8>) -> Vec<u8> {
    if answer.starts_with(&TIME) { [&TIME[..], &[1]].concat() } else { answer }
}

/// The question for the reports behind all events of the log's entry `after`.
fn feed_behind(after: u64) -> Vec<u8> {
    let mut ask = FEED.to_vec();
    let mut left = after;
    loop {
        let bits = u8::try_from(left & 0x7f).unwrap_or_default();
        left >>= 7;
        if left == 0 {
            ask.push(bits);
            break;
        }
        ask.push(bits | 0x80);
    }
    ask.push(0);
    ask
}

/// What the node of `running` answers within `limit` to the site `asker`, which asks as gateways do for the reports behind
/// the log's entry `after`. In production the TLS handshake proves who asks.
pub(crate) async fn feed(
    cluster: &Cluster,
    running: Running,
    asker: u64,
    after: u64,
    limit: Duration,
) -> Option<Bytes> {
    let question = feed_behind(after);
    let asked = cluster.world.spawn_on(running.owner, async move {
        let (near, far) = tokio::io::duplex(64 << 10);
        let (mut reader, mut writer) = tokio::io::split(near);
        let (theirs, back) = tokio::io::split(far);
        let stream = Duplex { reader: Box::new(theirs), writer: Box::new(back) };
        let asking = async {
            frame::write(&mut writer, &question, FRAME_MAX).await.ok()?;
            loop {
                let reply = frame::read(&mut reader, FRAME_MAX).await.ok()??;
                if reply[..] != WORKING {
                    break Some(reply);
                }
            }
        };
        let both = async { tokio::join!(running.node.answer_gate(asker, stream), asking).1 };
        tokio::time::timeout(limit, both).await.ok().flatten()
    });
    asked.await.ok().flatten()
}

/// What takes images and requests for storage commitment in a slot.
#[derive(Clone)]
pub(crate) enum Receiver {
    Centre(Running),
    Gateway(Gatehouse),
}

impl Receiver {
    pub(crate) fn owner(&self) -> Owner {
        match self {
            Self::Centre(running) => running.owner,
            Self::Gateway(gatehouse) => gatehouse.owner,
        }
    }

    pub(crate) fn http(&self) -> Router {
        match self {
            Self::Centre(running) => running.http.clone(),
            Self::Gateway(gatehouse) => gatehouse.http.clone(),
        }
    }

    pub(crate) async fn c_store(&self, request: StoreRequest, data_set: Bytes) -> StoreStatus {
        match self {
            Self::Centre(running) => running.node.c_store(request, data_set).await,
            Self::Gateway(gatehouse) => gatehouse.node.c_store(request, data_set).await,
        }
    }

    pub(crate) async fn n_action(&self, request: ServiceRequest) -> Status {
        match self {
            Self::Centre(running) => running.node.n_action(request).await,
            Self::Gateway(gatehouse) => gatehouse.node.n_action(request).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_and_answers_are_those_of_the_wire_format() {
        let golden = include_str!("../../node/src/gateway/golden/frames-v1.hex");
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let mut question = feed_behind(9);
        assert_eq!(question.pop(), Some(0), "the first of its command's");
        assert!(golden.lines().any(|line| line == format!("{}01", hex(&question))), "of event 9.1");
        for begins in [SAFETY, TIME, PAGE, NOT_NOW, WORKING] {
            assert!(golden.lines().any(|line| line.starts_with(&hex(&begins))), "{begins:?}");
        }
        assert_eq!(feed_behind(300), [1, 4, 1, 0, 0xac, 0x02, 0], "as postcard has numbers");
    }
}
