//! What goes wrong with a hospital's gateway: as with any machine at the end of a line, and nobody near it.

use std::sync::Arc;
use std::time::Duration;

use super::Harm;
use crate::cluster::Cluster;
use crate::disk::Ending;
use crate::gateway;
use crate::plan::Fault;
use crate::rng::Rng;

/// What happens to it, each as often. A pause between two is as long as that of all other faults.
const FAULTS: [Fault; 10] = [
    Fault::Crash,
    Fault::Kill,
    Fault::Restart,
    Fault::Pause,
    Fault::DiskFull,
    Fault::FsyncFails,
    Fault::SlowDisk,
    Fault::Flapping,
    Fault::CutOff,
    Fault::ClockJump,
];
/// Between two, as many times the pause between two faults of the mesh.
const PAUSES: u32 = 3;

/// Does harm to the gateway until `until`.
pub(super) async fn run(cluster: Arc<Cluster>, until: Duration) {
    let Some(slot) = cluster.gateway_slot() else { return };
    let mut rng = Rng::stream(cluster.plan.seed, "nemesis of the gateway");
    loop {
        tokio::time::sleep(rng.around(cluster.plan.fault_every * PAUSES)).await;
        if cluster.world.now() >= until || cluster.world.is_violated() {
            return;
        }
        let Some(fault) = rng.pick(&FAULTS).copied() else { return };
        let lasts = rng.around(cluster.plan.fault_lasts) + Duration::from_millis(100);
        cluster.world.event(slot, format_args!("the gateway: {fault:?} for {lasts:?}"));
        if fault == Fault::Restart {
            restart(&cluster, slot, lasts).await;
            continue;
        }
        let own = Rng::new(rng.next());
        Harm { cluster: Arc::clone(&cluster), slot, lasts, rng: own }.run(fault).await;
    }
}

/// It is told to stop, as for an update.
async fn restart(cluster: &Arc<Cluster>, slot: u32, lasts: Duration) {
    let Some(gatehouse) = cluster.gatehouse() else { return };
    cluster.hold_down(slot);
    let (world, stopping) = (Arc::clone(&cluster.world), gatehouse.clone());
    let stopped = world.spawn_on(gatehouse.owner, async move { gateway::stop(&stopping).await });
    if stopped.await.is_ok() && world.is_alive(gatehouse.owner) {
        world.sometimes("a gateway was stopped with courtesy");
        cluster.stop(slot, Ending::Killed, "told to");
    }
    tokio::time::sleep(lasts / 4).await;
    cluster.let_up(slot);
}
