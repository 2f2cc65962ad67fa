//! A rolling upgrade: a mesh of the version before this one gets the new one node by node, under load and
//! faults, and raises its format when all have it.

use std::sync::Arc;
use std::time::Duration;

use maillage_consensus::View;
use maillage_consensus::command::FORMAT;

use crate::cluster::Cluster;
use crate::disk::Ending;
use crate::rng::Rng;
use crate::site;

/// From the last fault until the format is raised: an election, and every member heard in its term.
const RAISED: Duration = Duration::from_secs(60);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);
/// How often a node is not told to stop, but killed by an impatient sysadmin.
const KILLED: f64 = 0.3;

/// Upgrades one node after the other, within about half of the run.
pub(super) async fn run(cluster: Arc<Cluster>, mut rng: Rng) {
    let duration = cluster.plan.duration;
    tokio::time::sleep(rng.around(duration / 8)).await;
    let mut slots: Vec<u32> = (1..=cluster.plan.sites).collect();
    rng.shuffle(&mut slots);
    for slot in slots {
        upgrade(&cluster, slot, &mut rng).await;
        tokio::time::sleep(rng.around(duration / 20)).await;
    }
}

async fn upgrade(cluster: &Arc<Cluster>, slot: u32, rng: &mut Rng) {
    let world = Arc::clone(&cluster.world);
    world.event(slot, format_args!("the new version is installed"));
    cluster.upgrade(slot);
    if !world.is_up(slot) {
        return;
    }
    cluster.hold_down(slot);
    let owner = world.owner(slot);
    // One that is not up to answering yet is killed, too.
    if let Some(running) = cluster.running(slot).filter(|_| !rng.chance(KILLED)) {
        let stopped = world.spawn_on(running.owner, async move { site::stop(&running).await });
        // One that died while it stopped is stopped.
        let _ = stopped.await;
    }
    if world.is_alive(owner) {
        cluster.stop(slot, Ending::Killed, "for its upgrade");
    }
    world.sometimes("a node was upgraded under way");
    tokio::time::sleep(rng.millis(200, 3_000)).await;
    cluster.let_up(slot);
}

/// Waits until the upgraded mesh has raised its format; a violation when that takes too long.
pub(crate) async fn is_done(cluster: &Arc<Cluster>) {
    let start = cluster.world.now();
    while cluster.plan.is_upgraded() {
        let raised = cluster.all_running().iter().any(|running| {
            let engine = running.group.reader();
            View::new(&*engine).format().is_ok_and(|format| format == FORMAT)
        });
        if raised {
            return;
        }
        if cluster.world.now() - start > RAISED {
            cluster.world.violation("I9", format!("{RAISED:?} after the last fault the format is not raised"));
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
}
