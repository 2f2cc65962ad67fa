//! The nemesis: draws faults from the seed, in three lanes that run at once: what happens to processes,
//! to the network, and to disks and clocks. Within a lane one fault follows another.
//!
//! It keeps the promise under which the mesh must lose nothing: at most a minority of voters is harmed
//! for good, and no second disk is taken before every image is on two that are left.

use std::sync::Arc;
use std::time::Duration;

use maillage_tests::draw::Draw;
use serde_json::json;
use tokio::time::sleep;

use crate::world::{Phase, World};

mod disks;
mod network;
mod processes;

pub(crate) use processes::replace;

/// What fails together with what is another lane's business.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    Processes,
    Network,
    Machines,
}

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) lane: Lane,
    /// How often it is drawn beside others of its lane.
    weight: u64,
    pub(crate) what: &'static str,
}

const fn kind(name: &'static str, lane: Lane, weight: u64, what: &'static str) -> Kind {
    Kind { name, lane, weight, what }
}

/// All kinds.
pub(crate) const KINDS: [Kind; 18] = [
    kind("kill", Lane::Processes, 4, "kill -9 of a node, started again after some seconds"),
    kind("kill-several", Lane::Processes, 2, "kill -9 of a few nodes at once, started one after the other"),
    kind("kill-leader", Lane::Processes, 3, "kill -9 of the node that leads"),
    kind("kill-all", Lane::Processes, 1, "kill -9 of every node at once"),
    kind("stop", Lane::Processes, 3, "SIGSTOP of a node, SIGCONT after some seconds"),
    kind("stop-leader", Lane::Processes, 2, "SIGSTOP of the node that leads"),
    kind("lose-site", Lane::Processes, 2, "a node and its disk are gone for good; a new site joins in its place"),
    kind("partition", Lane::Network, 3, "two groups of sites that do not reach each other"),
    kind("isolate-leader", Lane::Network, 3, "nobody reaches the leader, it reaches nobody"),
    kind("one-way", Lane::Network, 3, "a site is heard and hears nobody, or hears and is not heard"),
    kind("partial", Lane::Network, 3, "some pairs do not reach each other, all others do"),
    kind("flapping", Lane::Network, 2, "a site's lines go down and up every second or so"),
    kind("delay", Lane::Network, 2, "lines take a tenth of a second or more, with jitter"),
    kind("loss", Lane::Network, 2, "lines lose 2 to 20 % of the packets"),
    kind("rate", Lane::Network, 2, "a site's lines carry 1 to 6 Mb/s, with a short queue"),
    kind("disk-low", Lane::Machines, 3, "a disk is filled below the reserve: images are refused, nothing else"),
    kind("disk-full", Lane::Machines, 2, "a disk is filled to the last byte; its node may end, and is started again"),
    kind("clock", Lane::Machines, 4, "a site's clock jumps by up to some minutes (needs Debian's faketime)"),
];

/// The kinds of a comma-separated list, or all.
pub(crate) fn chosen(list: &str) -> anyhow::Result<Vec<Kind>> {
    match list {
        "all" => Ok(KINDS.to_vec()),
        "none" => Ok(Vec::new()),
        names => {
            let find = |name| KINDS.into_iter().find(|kind| kind.name == name);
            let of = |name| find(name).ok_or_else(|| anyhow::anyhow!("no fault is called {name}: see `chaos faults`"));
            names.split(',').map(of).collect()
        }
    }
}

/// Runs the faults of one lane until the run's first part is over, then undoes what is left.
pub(crate) async fn run(world: Arc<World>, kinds: Vec<Kind>, lane: Lane) {
    let mut draw = Draw::fork(world.seed, &format!("nemesis {lane:?}"));
    let kinds: Vec<Kind> = kinds.into_iter().filter(|kind| kind.lane == lane).collect();
    let bag: Vec<Kind> = kinds.iter().flat_map(|kind| (0..kind.weight).map(|_| *kind)).collect();
    // Each lane has its own pace: networks heal sooner than disks.
    let pause_ms = match lane {
        Lane::Processes => 4000..11_000,
        Lane::Network => 3000..9000,
        Lane::Machines => 6000..14_000,
    };
    // What was not drawn yet goes first, so that a short run meets each kind.
    let mut fresh = kinds;
    draw.shuffle(&mut fresh);
    loop {
        if !pause(&world, Duration::from_millis(draw.within(pause_ms.clone()))).await {
            return;
        }
        let next = if fresh.is_empty() || draw.chance(0.4) { draw.pick(&bag).copied() } else { fresh.pop() };
        let Some(kind) = next else { return };
        fresh.retain(|other| *other != kind);
        let mut draw = Draw::new(draw.bits());
        let on = match lane {
            Lane::Processes => processes::apply(&world, kind.name, &mut draw).await,
            Lane::Network => network::apply(&world, kind.name, &mut draw).await,
            Lane::Machines => disks::apply(&world, kind.name, &mut draw).await,
        };
        if let Some(on) = on {
            world.history.event(&format!("fault {}", kind.name), &json!(on));
        }
    }
}

/// Waits, or less when the faults are to end. False when they are.
async fn pause(world: &World, time: Duration) -> bool {
    let step = Duration::from_millis(100);
    let mut left = time;
    while world.phase() == Phase::Faults && !left.is_zero() {
        let now = left.min(step);
        sleep(now).await;
        left -= now;
    }
    world.phase() == Phase::Faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_chosen_by_name() {
        assert_eq!(chosen("all").expect("all").len(), KINDS.len());
        let names: Vec<_> = chosen("kill,clock").expect("two").iter().map(|kind| kind.name).collect();
        assert_eq!(names, ["kill", "clock"]);
        assert!(chosen("kill,typo").is_err());
    }
}
