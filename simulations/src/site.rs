//! One node of the mesh: the production node, whole, on a simulated machine.
//!
//! What stands here is what a machine, its sysadmin and its service supervisor do: the disk, the clock,
//! the network, founding or joining once, and starting again what stopped.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use maillage::site::{Host, Joining, Member, MeshFile, Settings, Site, StartFailure, Wires};
use maillage_consensus::raft::{LogError, StartError};
use maillage_host::{Clock, Disk, UnixMillis};
use maillage_store::{OpenError, StoreConfig, StoreEvent};
use maillage_transport::{Endpoint, Identity, Membership, PeerId};
use tokio_util::sync::CancellationToken;

use crate::cluster::{Cluster, FOUNDER, MESH_ID, Running};
use crate::disk::{Ending, Engines};
use crate::mutant::Mutant;
use crate::net::{Incoming, Network, Plane, SimHolders, SimLinks, answer_chunk, read_frame, write_frame};
use crate::world::{HARNESS, Owner};
use crate::{machine, quic};

/// Small, so that a short run crosses extents and packs.
pub(crate) fn store_config() -> StoreConfig {
    StoreConfig {
        pack_bytes: 512 << 10,
        extent_bytes: 64 << 10,
        reserve_bytes: 64 << 10,
        queue_bytes: 1 << 20,
        group_bytes: 256 << 10,
        landing_bytes: 256 << 10,
        open_files: 4,
    }
}

/// How long a node's first word on its log is awaited; one that has none never says so.
const STATUS_WAIT: Duration = Duration::from_millis(300);
/// Between two tries at joining, as a sysadmin repeats a command.
const JOIN_AGAIN: Duration = Duration::from_millis(700);
/// A member that does not answer a join by then is not waited for (production waits 15 s).
const JOIN_WAIT: Duration = Duration::from_secs(15);

/// Why a node could not start.
#[derive(Debug)]
pub(crate) enum Failed {
    /// Its disk failed it: it is tried again.
    Disk(String),
    /// It refuses what is on its disk, though nothing but crashes happened to it.
    Refuses(String),
}

impl Failed {
    /// What an error says of the disk, if it is the disk's.
    pub(crate) fn of(error: &impl ToString) -> Self {
        let text = error.to_string();
        if is_excused(&text) { Self::Disk(text) } else { Self::Refuses(text) }
    }
}

/// A node's life, from start to when it stops by itself.
pub(crate) async fn run(cluster: Arc<Cluster>, owner: Owner) {
    let ended_by = match start(&cluster, owner).await {
        Ok(running) => Ok(live(&cluster, running).await),
        Err(failed) => Err(failed),
    };
    ended(&cluster, owner, ended_by);
}

/// A life ended by itself, or never began.
pub(crate) fn ended(cluster: &Arc<Cluster>, owner: Owner, why: Result<String, Failed>) {
    let why = match why {
        Ok(why) => why,
        Err(Failed::Disk(why)) => {
            cluster.world.sometimes("a node could not start because of its disk");
            why
        }
        Err(Failed::Refuses(why)) => {
            cluster.world.violation("startup", format!("slot {} life {}: {why}", owner.slot, owner.incarnation));
            why
        }
    };
    // The harness ends it: no task can end its own node.
    let ender = Arc::clone(cluster);
    cluster.world.spawn_on(HARNESS, async move {
        if ender.world.is_alive(owner) {
            ender.stop(owner.slot, Ending::Killed, &why);
        }
    });
}

async fn start(cluster: &Arc<Cluster>, owner: Owner) -> Result<Running, Failed> {
    let (world, slot) = (Arc::clone(&cluster.world), owner.slot);
    let disk = cluster.disks.disk(owner);
    let clock = clock(cluster, slot);
    let identity = cluster.identity(slot);
    let settings = cluster.settings(slot).map_err(|error| Failed::Refuses(error.to_string()))?;
    let mesh = belong(cluster, owner, &disk, &settings, &identity).await?;
    let site = mesh.site_id;
    cluster.admit(slot, site);
    let Engines { state, index } = cluster.disks.engines(slot);
    let host =
        Host { disk, state, index, clock: clock.clone(), images: store_config(), queue: machine::of(cluster, slot) };
    let membership = Membership::new(clock.clone());
    let member = Member::new(identity, mesh, membership.clone());
    let (wires, endpoint) = reach(cluster, owner, &member, &membership, &clock).map_err(|error| Failed::of(&error))?;
    let shutdown = CancellationToken::new();
    if cluster.plan.mutant == Some(Mutant::OutboxForgotten) {
        // There is none before there is something to keep.
        let _ = host.disk.remove("outbox/journal").await;
    }
    let node = Site::open(settings, member, host, wires, shutdown.clone()).await.map_err(|error| match &error {
        StartFailure::Images(OpenError::Version { .. }) | StartFailure::LogLost => Failed::Refuses(error.to_string()),
        StartFailure::Raft(StartError::Log(LogError::Io(_)) | StartError::State(_) | StartError::Raft(_))
        | StartFailure::Images(_) => Failed::of(&error),
        _ => Failed::Refuses(error.to_string()),
    })?;
    let (group, store) = (node.group().clone(), node.store().clone());
    let recovery = store.recovery();
    if cluster.rotten() == Some(slot) {
        world.sometimes("a node with rotten images started");
    } else if !recovery.damage.is_empty() || !recovery.missing.is_empty() {
        cluster.watch.instances.damaged(owner, &recovery);
    }
    if recovery.index_rebuilt {
        world.sometimes("an index was made anew from the packs");
    }
    if recovery.torn.is_some() {
        world.sometimes("a pack's torn tail was cut");
    }
    if !store.landing().is_empty() {
        world.sometimes("a node started with images still to be coded");
    }
    let mut status = group.watch();
    let known = tokio::time::timeout(STATUS_WAIT, status.wait_for(|status| status.last_log.is_some())).await;
    let known = known.ok().and_then(|known| known.ok().map(|status| (status.term, status.last_log)));
    let (term, last_log) = known.map_or((None, None), |(term, last_log)| (Some(term), last_log));
    // No door is open yet, so no leader has added anything.
    cluster.watch.promises.life_begins(owner, term, last_log);
    drop(status);
    let control = node.control();
    let http = if cluster.plan.mutant == Some(Mutant::GuardOpen) { control.clone() } else { node.http() };
    Ok(Running { owner, site, node, group, store, http, control, endpoint, shutdown })
}

/// The wall clock of a slot.
pub(crate) fn clock(cluster: &Arc<Cluster>, slot: u32) -> Clock {
    let world = Arc::clone(&cluster.world);
    Clock::from_fn(move || UnixMillis(world.wall_ms(slot)))
}

/// A life's way to the others, and its port if that is what it takes.
fn reach(
    cluster: &Arc<Cluster>,
    owner: Owner,
    member: &Member,
    membership: &Membership,
    clock: &Clock,
) -> std::io::Result<(Wires, Option<Endpoint>)> {
    match &cluster.fabric {
        Network::Messages(fabric) => {
            let own = member.identity.peer_id();
            let links = SimLinks { fabric: Arc::clone(fabric), owner, slot_of: cluster.slot_of() };
            let believes = cluster.plan.mutant == Some(Mutant::WrongBytesBelieved);
            let slot_of = cluster.slot_of_peer();
            let holders = SimHolders { fabric: Arc::clone(fabric), owner, own, believes, slot_of };
            Ok((Wires { links: Arc::new(links), holders: Arc::new(holders) }, None))
        }
        Network::Quic(datagrams) => {
            let endpoint = quic::open(datagrams, owner, &member.identity, membership, clock)?;
            Ok((quic::wires(cluster, owner, member, &endpoint), Some(endpoint)))
        }
    }
}

/// What `mesh.json` says; founds or joins first when there is none, as a sysadmin does.
pub(crate) async fn belong(
    cluster: &Arc<Cluster>,
    owner: Owner,
    disk: &Disk,
    settings: &Settings,
    identity: &Identity,
) -> Result<MeshFile, Failed> {
    match MeshFile::load(disk).await {
        Ok(mesh) => return Ok(mesh),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(Failed::of(&error)),
    }
    let mesh = if owner.slot == FOUNDER && cluster.site(FOUNDER).is_none() {
        MeshFile::of_founder(MESH_ID, "the simulated mesh", "site-1")
    } else {
        join(cluster, owner, settings, identity).await?
    };
    mesh.save(disk).await.map_err(|error| Failed::of(&error))?;
    Ok(mesh)
}

/// Asks one member after another until the mesh lets this node in.
async fn join(
    cluster: &Arc<Cluster>,
    owner: Owner,
    settings: &Settings,
    identity: &Identity,
) -> Result<MeshFile, Failed> {
    loop {
        let Some(token) = cluster.token(owner.slot) else { return Err(Failed::Disk("it has no token".to_owned())) };
        let joining = Joining::new(settings, identity, &token).map_err(|error| Failed::Refuses(error.to_string()))?;
        for member in joining.members() {
            let asked = tokio::time::timeout(JOIN_WAIT, ask_to_join(cluster, owner, member, &joining)).await;
            let Ok(Ok(Some(reply))) = asked else { continue };
            match joining.admitted(&reply) {
                Ok(mesh) => {
                    cluster.world.event(owner.slot, format_args!("joined as site {}", mesh.site_id));
                    return Ok(mesh);
                }
                Err(error) => cluster.world.event(owner.slot, format_args!("not let in: {error}")),
            }
        }
        cluster.world.sometimes("a join was tried again");
        tokio::time::sleep(JOIN_AGAIN).await;
    }
}

async fn ask_to_join(
    cluster: &Arc<Cluster>,
    owner: Owner,
    member: (PeerId, SocketAddr),
    joining: &Joining,
) -> std::io::Result<Option<bytes::Bytes>> {
    let fabric = match &cluster.fabric {
        Network::Messages(fabric) => fabric,
        Network::Quic(datagrams) => {
            return quic::ask_to_join(datagrams, owner, &clock(cluster, owner.slot), joining, member).await;
        }
    };
    let to = cluster.slot_of_peer()(&member.0).ok_or(std::io::ErrorKind::NotFound)?;
    let mut stream = fabric.open(owner, to, Plane::Join).await?;
    // In production the TLS handshake proves that the joiner holds the token's key.
    write_frame(&mut *stream.writer, &joining.token_identity().peer_id().to_bytes()).await?;
    write_frame(&mut *stream.writer, joining.request()).await?;
    read_frame(&mut *stream.reader).await
}

async fn answer_join(running: Running, from: u32, mut stream: maillage_consensus::raft::Duplex) -> std::io::Result<()> {
    let Some(token) = read_frame(&mut *stream.reader).await? else { return Ok(()) };
    let Some(request) = read_frame(&mut *stream.reader).await? else { return Ok(()) };
    let token = PeerId::from_bytes(&token).map_err(std::io::Error::other)?;
    let seen_at = IpAddr::V4(Ipv4Addr::new(10, 0, 0, u8::try_from(from).unwrap_or(u8::MAX)));
    let reply = running.node.admit(token, seen_at, &request).await.map_err(std::io::Error::other)?;
    write_frame(&mut *stream.writer, &reply).await
}

/// Tells the node to stop, as a service supervisor does, and waits until it has.
pub(crate) async fn stop(running: &Running) {
    running.shutdown.cancel();
    let close_port = async {
        if let Some(endpoint) = &running.endpoint {
            endpoint.close().await;
        }
    };
    running.node.stop(close_port).await;
}

/// Runs the node's tasks until it may no longer be a replica. Returns why.
async fn live(cluster: &Arc<Cluster>, running: Running) -> String {
    let (group, node) = (running.group.clone(), running.node.clone());
    drop(maillage_host::spawn(open_doors(Arc::clone(cluster), running.clone())));
    node.start();
    if let Err(error) = node.found().await {
        cluster.world.event(running.owner.slot, format_args!("not founded: {error:#}"));
        return "the mesh was not founded".to_owned();
    }
    cluster.entered(running.clone());
    drop(maillage_host::spawn(follow_chain(Arc::clone(cluster), running.clone())));
    let instances = Arc::clone(cluster);
    let looking = running.clone();
    if cluster.rotten() != Some(running.owner.slot) {
        drop(maillage_host::spawn(async move { instances.watch.instances.check(&looking).await }));
    }
    let (mut status, mut events) = (group.watch(), running.store.events());
    loop {
        while let Ok(event) = events.try_recv() {
            if event == StoreEvent::Mended {
                cluster.world.sometimes("an index was made anew from the packs");
            }
        }
        let fatal = status.borrow_and_update().fatal.clone();
        if let Some(reason) = fatal {
            if running.shutdown.is_cancelled() {
                return "it was told to stop".to_owned();
            }
            cluster.world.sometimes("a node halted by itself");
            let stalled = reason.contains(STALLED) && cluster.disks.has_stalled(running.owner.slot);
            if !stalled && !is_excused(&reason) {
                cluster.world.violation("startup", format!("slot {} halted: {reason}", running.owner.slot));
            }
            return reason;
        }
        // One that cannot be asked makes its index anew.
        let stats = running.store.stats().await;
        if !stats.map_or_else(|_| running.store.has_stopped_writing(), |stats| stats.is_failed) {
            // A second of silence is no end: the store is looked at again.
            let changed = tokio::time::timeout(Duration::from_secs(1), status.changed()).await;
            if changed.is_ok_and(|changed| changed.is_err()) {
                return "raft is gone".to_owned();
            }
        } else {
            cluster.world.sometimes("a store stopped writing after a disk error");
            // The process goes on in production and refuses ingest; here it is started again after a
            // while, as an operator would.
            tokio::time::sleep(Duration::from_secs(5)).await;
            return "the store stopped writing".to_owned();
        }
    }
}

/// Answers what other nodes open.
async fn open_doors(cluster: Arc<Cluster>, running: Running) {
    let fabric = match &cluster.fabric {
        Network::Messages(fabric) => fabric,
        Network::Quic(_) => return quic::open_doors(Arc::clone(&cluster), running).await,
    };
    let mut door = fabric.open_door(running.owner);
    while let Some(Incoming { from, plane, stream }) = door.recv().await {
        let running = running.clone();
        match plane {
            Plane::Raft => {
                let Some(site) = cluster.site(from) else { continue };
                drop(maillage_host::spawn(async move { running.node.answer_raft(site, stream).await }));
            }
            Plane::Chunk => {
                let chunks = cluster.liars.source(&running);
                drop(maillage_host::spawn(async move { answer_chunk(chunks, stream).await }));
            }
            Plane::Gate => {
                let Some(site) = cluster.site(from) else { continue };
                drop(maillage_host::spawn(async move { running.node.answer_gate(site, stream).await }));
            }
            Plane::Join => drop(maillage_host::spawn(answer_join(running, from, stream))),
        }
    }
}

/// Why a node ends whose disk answers nothing for too long.
const STALLED: &str = "the disk has not answered";

/// Reasons to halt that an honest disk's faults give.
fn is_excused(reason: &str) -> bool {
    ["os error 5", "os error 28", "Input/output error", "No space left"].iter().any(|part| reason.contains(part))
}

/// Shows every applied index and its hash chain to the invariant that compares replicas.
async fn follow_chain(cluster: Arc<Cluster>, running: Running) {
    let mut changes = running.group.changes();
    loop {
        let (index, chain) = running.group.chain();
        cluster.watch.replicas.applied(running.owner, index, chain);
        if changes.changed().await.is_err() {
            return;
        }
    }
}
