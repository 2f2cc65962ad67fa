//! The mesh under test: its nodes' lives over the simulated machine.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use maillage_consensus::raft::{Group, Role};
use maillage_store::Store;

use crate::disk::{Disks, Ending};
use crate::history::History;
use crate::invariants::Watch;
use crate::net::{Fabric, Quality};
use crate::plan::Plan;
use crate::rng::Rng;
use crate::site;
use crate::world::{Owner, World, lock};

/// How long a supervisor waits before it starts a node again.
const RESTART_MS: (u64, u64) = (200, 2_000);

/// A node that is up.
#[derive(Clone)]
pub(crate) struct Running {
    pub(crate) owner: Owner,
    pub(crate) site: u64,
    pub(crate) group: Group,
    pub(crate) store: Store,
}

/// See the module.
pub(crate) struct Cluster {
    pub(crate) world: Arc<World>,
    pub(crate) plan: Plan,
    pub(crate) disks: Arc<Disks>,
    pub(crate) fabric: Arc<Fabric>,
    pub(crate) watch: Arc<Watch>,
    pub(crate) history: Arc<History>,
    running: Mutex<BTreeMap<u32, Running>>,
    /// Site numbers by slot, once they joined.
    sites: Arc<Mutex<BTreeMap<u32, u64>>>,
    /// Slots that must stay down.
    held_down: Mutex<BTreeMap<u32, u32>>,
    /// When each slot went down.
    restart_at: Mutex<BTreeMap<u32, Duration>>,
    restarts: Mutex<Rng>,
    /// Set when no more work is to begin.
    ending: AtomicBool,
}

/// The mesh's identity in every run.
pub(crate) const MESH_ID: [u8; 32] = *b"a mesh that exists in simulation";

impl Cluster {
    pub(crate) fn new(world: Arc<World>, plan: Plan) -> Arc<Self> {
        let watch = Arc::new(Watch::new(Arc::clone(&world), plan.seed));
        let wire = Arc::clone(&watch);
        let fabric =
            Fabric::new(Arc::clone(&world), plan.seed, plan.mutant, Box::new(move |seen| wire.promises.saw(seen)));
        let disks = Disks::new(Arc::clone(&world), plan.seed, plan.mutant);
        let mut rng = Rng::stream(plan.seed, "links");
        for a in 1..=plan.sites {
            for b in 1..a {
                let latency = Duration::from_micros(rng.between(200, plan.latency_ms_max * 1000));
                let bytes_per_second = [1_250_000, 12_500_000, 125_000_000][rng.index(3)];
                let quality = Quality { latency, jitter: latency / 10, bytes_per_second };
                fabric.set_quality(a, b, quality);
                fabric.set_quality(b, a, quality);
            }
        }
        Arc::new(Self {
            history: Arc::new(History::new(Arc::clone(&world))),
            restarts: Mutex::new(Rng::stream(plan.seed, "restarts")),
            world,
            plan,
            disks,
            fabric,
            watch,
            running: Mutex::default(),
            sites: Arc::default(),
            held_down: Mutex::default(),
            restart_at: Mutex::default(),
            ending: AtomicBool::new(false),
        })
    }

    pub(crate) fn slots(&self) -> impl Iterator<Item = u32> + use<> {
        1..=self.plan.sites
    }

    pub(crate) fn admit(&self, slot: u32, site: u64) {
        lock(&self.sites).insert(slot, site);
    }

    pub(crate) fn site(&self, slot: u32) -> Option<u64> {
        lock(&self.sites).get(&slot).copied()
    }

    pub(crate) fn slot_of(&self) -> Box<dyn Fn(u64) -> Option<u32> + Send + Sync> {
        let sites = Arc::clone(&self.sites);
        Box::new(move |site| lock(&sites).iter().find(|(_, known)| **known == site).map(|(slot, _)| *slot))
    }

    pub(crate) fn running(&self, slot: u32) -> Option<Running> {
        lock(&self.running).get(&slot).cloned()
    }

    pub(crate) fn all_running(&self) -> Vec<Running> {
        lock(&self.running).values().cloned().collect()
    }

    /// The slot of the node that leads, as far as the nodes know.
    pub(crate) fn leader(&self) -> Option<u32> {
        let leads = |running: &Running| running.group.watch().borrow().role == Role::Leader;
        let leaders = self.all_running().into_iter().filter(leads);
        leaders.max_by_key(|running| running.group.watch().borrow().term).map(|running| running.owner.slot)
    }

    pub(crate) fn is_ending(&self) -> bool {
        self.ending.load(Relaxed)
    }

    pub(crate) fn end_work(&self) {
        self.ending.store(true, Relaxed);
    }

    /// Starts the node of `slot`, if it has a site and is down.
    pub(crate) fn boot(self: &Arc<Self>, slot: u32) {
        let Some(site) = self.site(slot) else { return };
        if self.world.is_up(slot) {
            return;
        }
        let owner = self.world.boot(slot);
        self.fabric.node_began(slot);
        self.world.spawn_on(owner, site::run(Arc::clone(self), owner, site));
    }

    pub(crate) fn entered(&self, running: Running) {
        lock(&self.running).insert(running.owner.slot, running);
    }

    /// Ends the life of `slot` at this instant.
    pub(crate) fn stop(&self, slot: u32, ending: Ending, why: &str) {
        if !self.world.is_up(slot) {
            return;
        }
        let owner = self.world.owner(slot);
        self.world.event(slot, format_args!("{ending:?} {why}"));
        self.watch.promises.life_ends(owner, ending);
        let running = lock(&self.running).remove(&slot);
        self.world.end(slot);
        self.fabric.node_ended(owner);
        self.disks.end(slot, ending);
        drop(running);
        let wait = lock(&self.restarts).millis(RESTART_MS.0, RESTART_MS.1);
        lock(&self.restart_at).insert(slot, self.world.now() + wait);
    }

    /// Keeps `slot` down until [`Cluster::let_up`] was called as often.
    pub(crate) fn hold_down(&self, slot: u32) {
        *lock(&self.held_down).entry(slot).or_default() += 1;
    }

    pub(crate) fn let_up(&self, slot: u32) {
        if let Some(count) = lock(&self.held_down).get_mut(&slot) {
            *count = count.saturating_sub(1);
        }
    }

    pub(crate) fn is_held_down(&self, slot: u32) -> bool {
        lock(&self.held_down).get(&slot).is_some_and(|count| *count > 0)
    }

    /// Starts what is down and need not be, as a service supervisor does. Forever.
    pub(crate) async fn supervise(self: Arc<Self>) {
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let now = self.world.now();
            for slot in self.slots() {
                let due = lock(&self.restart_at).get(&slot).is_some_and(|at| *at <= now);
                if due && !self.world.is_up(slot) && !self.is_held_down(slot) {
                    self.boot(slot);
                }
            }
        }
    }

    /// Carries out crashes that are asked for in the middle of an operation. Forever.
    pub(crate) async fn carry_out_crashes(self: Arc<Self>) {
        loop {
            let (slot, why) = self.world.next_crash_request().await;
            self.world.sometimes(if why == "inside a write" {
                "power was lost inside a write"
            } else {
                "power was lost after a vote"
            });
            self.stop(slot, Ending::PowerCut, why);
        }
    }
}
