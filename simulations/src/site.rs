//! One node: the production store and Raft group, put together as the real node does, without its
//! sockets and pages.

use std::sync::Arc;
use std::time::Duration;

use maillage_consensus::raft::{Group, GroupConfig, LogError, StartError};
use maillage_host::engine::MemoryHome;
use maillage_host::{Clock, UnixMillis};
use maillage_store::{OpenError, Store, StoreConfig};

mod duties;

use crate::cluster::{Cluster, MESH_ID, Running};
use crate::disk::Ending;
use crate::mutant::Mutant;
use crate::net::{Incoming, SimLinks};
use crate::world::{HARNESS, Owner};

/// Small, so that a short run crosses extents and packs.
fn store_config() -> StoreConfig {
    StoreConfig {
        pack_bytes: 512 << 10,
        extent_bytes: 64 << 10,
        reserve_bytes: 64 << 10,
        queue_bytes: 1 << 20,
        group_bytes: 256 << 10,
        open_files: 4,
    }
}

/// How long a node's first word on its log is awaited; one that has none never says so.
const STATUS_WAIT: Duration = Duration::from_millis(300);

/// Why a node could not start.
#[derive(Debug)]
enum Failed {
    /// Its disk failed it: it is tried again.
    Disk(String),
    /// It refuses what is on its disk, though nothing but crashes happened to it.
    Refuses(String),
}

/// A node's life, from start to when it stops by itself.
pub(crate) async fn run(cluster: Arc<Cluster>, owner: Owner, site: u64) {
    let why = match start(&cluster, owner, site).await {
        Ok(running) => live(&cluster, running).await,
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
    let ender = Arc::clone(&cluster);
    cluster.world.spawn_on(HARNESS, async move {
        if ender.world.is_alive(owner) {
            ender.stop(owner.slot, Ending::Killed, &why);
        }
    });
}

async fn start(cluster: &Arc<Cluster>, owner: Owner, site: u64) -> Result<Running, Failed> {
    let (world, slot) = (Arc::clone(&cluster.world), owner.slot);
    let disk = cluster.disks.disk(owner);
    let clock_world = Arc::clone(&world);
    let clock = Clock::from_fn(move || UnixMillis(clock_world.wall_ms(slot)));
    let store = Store::open(disk.clone(), "packs", Arc::<MemoryHome>::default(), clock.clone(), store_config())
        .await
        .map_err(|error| match error {
        OpenError::Version { .. } => Failed::Refuses(error.to_string()),
        _ if is_excused(&error.to_string()) => Failed::Disk(error.to_string()),
        _ => Failed::Refuses(error.to_string()),
    })?;
    let recovery = store.recovery();
    if !recovery.damage.is_empty() || !recovery.missing.is_empty() {
        cluster.watch.instances.damaged(owner, recovery);
    }
    if recovery.torn.is_some() {
        world.sometimes("a pack's torn tail was cut");
    }
    let links = SimLinks { fabric: Arc::clone(&cluster.fabric), owner, slot_of: cluster.slot_of() };
    let group = Group::start(GroupConfig {
        node_id: site,
        mesh_id: MESH_ID,
        epoch: 0,
        timing: cluster.plan.timing,
        keepalive: GroupConfig::KEEPALIVE.min(cluster.plan.session_ttl / 5),
        snapshot_every: cluster.plan.snapshot_every,
        keep_log: cluster.plan.keep_log,
        disk,
        home: Arc::<MemoryHome>::default(),
        machine: Mutant::machine(cluster.plan.mutant, slot),
        links: Arc::new(links),
        clock,
    })
    .await
    .map_err(|error| match &error {
        StartError::Log(LogError::Io(_)) | StartError::State(_) | StartError::Raft(_)
            if is_excused(&error.to_string()) =>
        {
            Failed::Disk(error.to_string())
        }
        _ => Failed::Refuses(error.to_string()),
    })?;
    let mut status = group.watch();
    let known = tokio::time::timeout(STATUS_WAIT, status.wait_for(|status| status.last_log.is_some())).await;
    let last_log = known.ok().and_then(|known| known.ok().and_then(|status| status.last_log));
    // No door is open yet, so no leader has added anything.
    cluster.watch.promises.life_begins(owner, last_log);
    drop(status);
    Ok(Running { owner, site, group, store })
}

/// Runs the node's tasks until it may no longer be a replica. Returns why.
async fn live(cluster: &Arc<Cluster>, running: Running) -> String {
    let group = running.group.clone();
    let mut door = cluster.fabric.open_door(running.owner);
    let serving = group.clone();
    let sites = Arc::clone(cluster);
    drop(maillage_host::spawn(async move {
        while let Some(Incoming { from, stream }) = door.recv().await {
            let Some(site) = sites.site(from) else { continue };
            let group = serving.clone();
            drop(maillage_host::spawn(async move { group.serve(site, stream).await }));
        }
    }));
    cluster.entered(running.clone());
    drop(maillage_host::spawn(duties::keep_session(Arc::clone(cluster), running.clone())));
    drop(maillage_host::spawn(duties::lead(Arc::clone(cluster), running.clone())));
    drop(maillage_host::spawn(follow_chain(Arc::clone(cluster), running.clone())));
    let instances = Arc::clone(cluster);
    let looking = running.clone();
    drop(maillage_host::spawn(async move { instances.watch.instances.check(&looking).await }));
    let mut status = group.watch();
    loop {
        let fatal = status.borrow_and_update().fatal.clone();
        if let Some(reason) = fatal {
            cluster.world.sometimes("a node halted by itself");
            if !is_excused(&reason) {
                cluster.world.violation("startup", format!("slot {} halted: {reason}", running.owner.slot));
            }
            return reason;
        }
        if running.store.stats().await.is_ok_and(|stats| stats.is_failed) {
            cluster.world.sometimes("a store stopped writing after a disk error");
            // The process goes on in production and refuses ingest; here it is started again after a
            // while, as an operator would.
            tokio::time::sleep(Duration::from_secs(5)).await;
            return "the store stopped writing".to_owned();
        }
        // A second of silence is no end: the store is looked at again.
        if tokio::time::timeout(Duration::from_secs(1), status.changed()).await.is_ok_and(|changed| changed.is_err()) {
            return "raft is gone".to_owned();
        }
    }
}

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
