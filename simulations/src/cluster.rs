//! The mesh under test: its nodes' lives over the simulated machine.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use maillage::site::{Settings, Site};
use maillage_consensus::View;
use maillage_consensus::command::FORMAT;
use maillage_consensus::ids::SiteId;
use maillage_consensus::placement::Ground;
use maillage_consensus::raft::{Group, Role};
use maillage_store::Store;
use maillage_transport::{Endpoint, Identity, PeerId};
use tokio_util::sync::CancellationToken;

use crate::disk::{Disks, Ending};
use crate::gateway::{self, Gatehouse, Receiver};
use crate::history::History;
use crate::invariants::{Watch, ZONES};
use crate::liars::Liars;
use crate::mutant::Mutant;
use crate::net::datagrams::Datagrams;
use crate::net::{Fabric, Listener, Network, Quality, Watcher};
use crate::plan::{Fault, Plan, Transport};
use crate::rng::Rng;
use crate::run::Begun;
use crate::site;
use crate::workload::hospital;
use crate::world::{Owner, World, lock};

/// How long a supervisor waits before it starts a node again.
const RESTART_MS: (u64, u64) = (200, 2_000);

/// As long as a token may live: wall clocks jump here.
const TOKEN_LASTS: Duration = Duration::from_secs(7 * 24 * 3600);

/// From a node's identity to the slot where it is now.
pub(crate) type SlotOfPeer = Box<dyn Fn(&PeerId) -> Option<u32> + Send + Sync>;

/// The last index of a node's log, as far as it has told it.
fn newest_of(running: &Running) -> u64 {
    running.group.watch().borrow().last_log.unwrap_or(0)
}

/// A node that is up.
#[derive(Clone)]
pub(crate) struct Running {
    pub(crate) owner: Owner,
    pub(crate) site: u64,
    pub(crate) node: Site,
    pub(crate) group: Group,
    pub(crate) store: Store,
    /// Its HTTP, made once a life: to make it is dearer than most answers.
    pub(crate) http: Router,
    /// … and that of its unix socket.
    pub(crate) control: Router,
    /// Its port, where the network is one of datagrams.
    pub(crate) endpoint: Option<Endpoint>,
    /// Closes its doors for a stop with courtesy.
    pub(crate) shutdown: CancellationToken,
}

/// See the module.
pub(crate) struct Cluster {
    pub(crate) world: Arc<World>,
    pub(crate) plan: Plan,
    pub(crate) disks: Arc<Disks>,
    pub(crate) fabric: Network,
    pub(crate) watch: Arc<Watch>,
    pub(crate) history: Arc<History>,
    pub(crate) liars: Liars,
    running: Mutex<BTreeMap<u32, Running>>,
    gatehouse: Mutex<Option<Gatehouse>>,
    /// Site numbers by slot, once they joined.
    sites: Arc<Mutex<BTreeMap<u32, u64>>>,
    /// Slots by the identity of the node there, and how often each was replaced by a new one.
    peers: Arc<Mutex<BTreeMap<PeerId, u32>>>,
    generations: Mutex<BTreeMap<u32, u32>>,
    /// Join tokens by slot: what a sysadmin typed there.
    tokens: Mutex<BTreeMap<u32, String>>,
    /// Numbers of sites that are no more.
    lost: Mutex<BTreeSet<u64>>,
    /// Slots that must stay down.
    held_down: Mutex<BTreeMap<u32, u32>>,
    /// When each slot went down.
    restart_at: Mutex<BTreeMap<u32, Duration>>,
    restarts: Mutex<Rng>,
    /// Sites there are.
    count: AtomicU32,
    rotten: Mutex<Option<u32>>,
    /// Studies of which bits flipped on that disk.
    flipped: Mutex<BTreeSet<String>>,
    /// Slots of which a layout wanted one copy alone of what they receive.
    alone: Mutex<BTreeSet<u32>>,
    lost_one: AtomicBool,
    /// The faults that were done, in order.
    begun: Mutex<Vec<Begun>>,
    /// Set when no more work is to begin.
    ending: AtomicBool,
    /// Set once all copies are made after the last fault.
    healed: AtomicBool,
    /// The last index of the logs of nodes that ended, as far as they had told it.
    newest_ended: AtomicU64,
    /// Slots where the new version is installed, in a run that begins with the old one.
    upgraded: Mutex<BTreeSet<u32>>,
}

/// The format of the version before this one.
const OLD_FORMAT: u8 = 1;
/// The slot that founds the mesh.
pub(crate) const FOUNDER: u32 = 1;
/// The mesh's identity in every run.
pub(crate) const MESH_ID: [u8; 32] = *b"a mesh that exists in simulation";

/// Where the hospital's gateway is, if there is one: behind the site that may come.
fn gateway_slot(plan: &Plan) -> Option<u32> {
    plan.has_gateway().then_some(plan.sites + 2)
}

/// Shows what passes on the wire to the invariants.
fn watcher(watch: &Arc<Watch>) -> Watcher {
    let watch = Arc::clone(watch);
    Box::new(move |seen| watch.promises.saw(seen))
}

impl Cluster {
    pub(crate) fn new(world: Arc<World>, plan: Plan) -> Arc<Self> {
        let watch = Arc::new(Watch::new(Arc::clone(&world), &plan));
        let fabric = match plan.transport {
            Transport::Messages => {
                Network::Messages(Fabric::new(Arc::clone(&world), plan.seed, plan.mutant, watcher(&watch)))
            }
            Transport::Quic => Network::Quic(Datagrams::new(Arc::clone(&world), plan.seed)),
        };
        let disks = Disks::new(Arc::clone(&world), plan.seed, plan.mutant, gateway_slot(&plan));
        let mut rng = Rng::stream(plan.seed, "links");
        // One more than there are at first may come.
        for a in 1..=plan.sites + 1 {
            for b in 1..a {
                let latency = Duration::from_micros(rng.between(200, plan.latency_ms_max * 1000));
                let bytes_per_second = [1_250_000, 12_500_000, 125_000_000][rng.index(3)];
                let quality = Quality { latency, jitter: latency / 10, bytes_per_second };
                fabric.set_quality(a, b, quality);
                fabric.set_quality(b, a, quality);
            }
        }
        if let Some(gateway) = gateway_slot(&plan) {
            let mut rng = Rng::stream(plan.seed, "links of the gateway");
            for slot in 1..=plan.sites + 1 {
                let latency = Duration::from_micros(rng.between(200, plan.latency_ms_max * 1000));
                let quality = Quality { latency, jitter: latency / 10, bytes_per_second: 12_500_000 };
                fabric.set_quality(gateway, slot, quality);
                fabric.set_quality(slot, gateway, quality);
            }
        }
        let sites = plan.sites;
        Arc::new(Self {
            history: Arc::new(History::new(Arc::clone(&world))),
            liars: Liars::new(Arc::clone(&world), plan.seed),
            restarts: Mutex::new(Rng::stream(plan.seed, "restarts")),
            world,
            plan,
            disks,
            fabric,
            watch,
            running: Mutex::default(),
            gatehouse: Mutex::default(),
            sites: Arc::default(),
            peers: Arc::default(),
            generations: Mutex::default(),
            tokens: Mutex::default(),
            lost: Mutex::default(),
            held_down: Mutex::default(),
            restart_at: Mutex::default(),
            count: AtomicU32::new(sites),
            rotten: Mutex::default(),
            flipped: Mutex::default(),
            alone: Mutex::default(),
            lost_one: AtomicBool::new(false),
            begun: Mutex::default(),
            ending: AtomicBool::new(false),
            healed: AtomicBool::new(false),
            newest_ended: AtomicU64::new(0),
            upgraded: Mutex::default(),
        })
    }

    /// What listens to Raft's streams where the network cannot.
    pub(crate) fn listener(&self) -> Listener {
        Listener { watcher: Arc::new(watcher(&self.watch)), mutant: self.plan.mutant }
    }

    pub(crate) fn slots(&self) -> impl Iterator<Item = u32> + use<> {
        1..=self.count.load(Relaxed)
    }

    /// Where the hospital's gateway is, if there is one. It is none of [`Cluster::slots`].
    pub(crate) fn gateway_slot(&self) -> Option<u32> {
        gateway_slot(&self.plan)
    }

    /// The hospital's gateway, if it is up.
    pub(crate) fn gatehouse(&self) -> Option<Gatehouse> {
        lock(&self.gatehouse).clone()
    }

    /// What takes images in `slot`, if it is up.
    pub(crate) fn receiver(&self, slot: u32) -> Option<Receiver> {
        if self.gateway_slot() == Some(slot) {
            self.gatehouse().map(Receiver::Gateway)
        } else {
            self.running(slot).map(Receiver::Centre)
        }
    }

    /// How many sites there are now.
    pub(crate) fn count(&self) -> usize {
        usize::try_from(self.count.load(Relaxed)).unwrap_or(usize::MAX)
    }

    /// Makes room for one more site; `None` when there is one more already.
    pub(crate) fn one_more(&self) -> Option<u32> {
        let more = self.plan.sites + 1;
        (self.count.swap(more, Relaxed) < more).then_some(more)
    }

    /// The one disk of the run whose images may rot: others hold what it loses.
    pub(crate) fn rotten(&self) -> Option<u32> {
        *lock(&self.rotten)
    }

    pub(crate) fn set_rotten(&self, slot: u32) {
        lock(&self.rotten).get_or_insert(slot);
    }

    /// Bits of a study flipped on the rotten disk.
    pub(crate) fn flipped(&self, study: &str) {
        lock(&self.flipped).insert(study.to_owned());
    }

    /// Notes of which slots the layout wants one copy alone of what they receive, or lets one site alone have it: the
    /// others give theirs up then.
    pub(crate) fn look_at_layout(&self) {
        let gateway = self.gateway_slot().and_then(|slot| self.site(slot));
        for running in self.all_running() {
            let Ok(plan) = View::new(&*running.group.reader()).plan() else { continue };
            for slot in self.slots() {
                let Some(origin) = self.site(slot).map(SiteId) else { continue };
                let may = |ground: &&Ground| Some(ground.site.0) != gateway;
                let could = match plan.contract(origin) {
                    // What may not lie elsewhere goes, though one site alone could have it for now.
                    Some(_) => plan.could_hold(origin).len(),
                    None => plan.grounds().iter().filter(may).count(),
                };
                if plan.copies(origin).min(could) < 2 {
                    lock(&self.alone).insert(slot);
                }
            }
        }
    }

    /// Whether what `slot` receives could lie in two zones, by the layout that holds now. What a gateway receives, any
    /// centre may be given.
    pub(crate) fn can_be_safe(&self, slot: u32) -> bool {
        if self.gateway_slot() == Some(slot) {
            let mut centres = self.slots().filter(|centre| self.site(*centre).is_some());
            return centres.all(|centre| self.can_be_safe(centre));
        }
        let Some(origin) = self.site(slot).map(SiteId) else { return false };
        let plan = self.newest().and_then(|running| View::new(&*running.group.reader()).plan().ok());
        plan.is_some_and(|plan| {
            let there = plan.could_hold(origin).into_iter().filter(|site| !self.is_lost(site.0));
            let zones: BTreeSet<_> = there.filter_map(|site| Some(&plan.ground(site)?.zone)).collect();
            zones.len() >= ZONES
        })
    }

    /// Whether a layout ever wanted one copy alone of what some slot receives.
    pub(crate) fn laid_out_alone(&self) -> bool {
        self.look_at_layout();
        !lock(&self.alone).is_empty()
    }

    /// Whether a layout ever wanted one copy alone of what a slot receives.
    pub(crate) fn was_alone(&self, slot: u32) -> bool {
        lock(&self.alone).contains(&slot)
    }

    /// Whether a layout ever wanted one copy alone of some part of a study; of what a site received that is no more, one
    /// may have.
    pub(crate) fn was_alone_with(&self, study: &str) -> bool {
        self.look_at_layout();
        let slot_of = self.slot_of();
        let was_alone = |site: SiteId| slot_of(site.0).is_none_or(|slot| self.was_alone(slot));
        self.all_running().iter().any(|running| {
            let known = View::new(&*running.group.reader()).study(study).ok().flatten();
            known.is_some_and(|known| known.parts.iter().any(|held| was_alone(held.origin)))
        })
    }

    /// Whether a study may be lost by rot: its bits flipped where the layout wanted its only copy, or where it was the only
    /// one after a machine was lost with its disk.
    pub(crate) fn may_have_rotted(&self, study: &str) -> bool {
        let may_be_only = |slot| self.was_alone(slot) || self.has_lost_one();
        self.rotten().is_some_and(may_be_only) && self.has_flipped(study)
    }

    /// Whether a study may be lost with a machine: where the layout ever wanted one copy alone of what it received, another
    /// may have given up its own before anybody knew.
    pub(crate) fn may_be_lost(&self, study: &str) -> bool {
        self.has_lost_one() && self.was_alone_with(study)
    }

    /// Whether bits of a study flipped on the rotten disk.
    pub(crate) fn has_flipped(&self, study: &str) -> bool {
        lock(&self.flipped).contains(study)
    }

    /// Whether a machine was lost for good: once in a run is what the mesh promises to bear.
    pub(crate) fn lose_one(&self) -> bool {
        !self.lost_one.swap(true, Relaxed)
    }

    pub(crate) fn has_lost_one(&self) -> bool {
        self.lost_one.load(Relaxed)
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

    /// The slot of the node with this identity, if it is the one there now.
    pub(crate) fn slot_of_peer(&self) -> SlotOfPeer {
        let peers = Arc::clone(&self.peers);
        Box::new(move |peer| lock(&peers).get(peer).copied())
    }

    /// The key of the node in `slot`. In production it is drawn once, and durable before it is used.
    pub(crate) fn identity(&self, slot: u32) -> Identity {
        let generation = lock(&self.generations).get(&slot).copied().unwrap_or(0);
        let seed = format!("{} {slot} {generation}", self.plan.seed);
        let identity = Identity::from_secret(&blake3::derive_key("simulated node key", seed.as_bytes()));
        lock(&self.peers).insert(identity.peer_id(), slot);
        identity
    }

    /// What the sysadmin of `slot` wrote into its configuration.
    pub(crate) fn settings(&self, slot: u32) -> Result<Settings, maillage::site::ConfigError> {
        if self.gateway_slot() == Some(slot) {
            return Settings::from_toml(&self.plan.gateway_configuration(slot));
        }
        let generation = lock(&self.generations).get(&slot).copied().unwrap_or(0);
        let says = if self.plan.mutant == Some(Mutant::FormatOverstated) { FORMAT } else { self.understands(slot) };
        Settings::from_toml(&self.plan.configuration(slot, generation, says))
    }

    /// The newest format that the version installed at `slot` understands.
    pub(crate) fn understands(&self, slot: u32) -> u8 {
        // A site that comes later brings the new version.
        let is_new = slot > self.plan.sites || lock(&self.upgraded).contains(&slot);
        if self.plan.is_upgraded() && !is_new { OLD_FORMAT } else { FORMAT }
    }

    /// The new version is installed at `slot`; it runs from the next start on.
    pub(crate) fn upgrade(&self, slot: u32) {
        lock(&self.upgraded).insert(slot);
    }

    /// Gets a join token from any node that gives one, for the sysadmin of `slot`. Asks until there is.
    pub(crate) async fn invite(self: &Arc<Self>, slot: u32) {
        loop {
            for running in self.all_running() {
                let hospitals = (self.gateway_slot() == Some(slot)).then(|| vec![hospital::name(slot)]);
                let asked = self.world.spawn_on(running.owner, async move {
                    match hospitals {
                        Some(hospitals) => running.node.create_gateway_token(TOKEN_LASTS, hospitals).await,
                        None => running.node.create_token(TOKEN_LASTS).await,
                    }
                });
                if let Ok(Ok(token)) = asked.await {
                    lock(&self.tokens).insert(slot, token);
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    pub(crate) fn token(&self, slot: u32) -> Option<String> {
        lock(&self.tokens).get(&slot).cloned()
    }

    /// The machine in `slot` is lost with its disk; what comes next there is a new node.
    pub(crate) fn forget(&self, slot: u32) {
        self.stop(slot, Ending::PowerCut, "and its disk is lost");
        self.disks.forget(slot);
        self.watch.promises.forget(slot);
        self.watch.outbox.forget(slot);
        lock(&self.tokens).remove(&slot);
        lock(&self.lost).extend(lock(&self.sites).remove(&slot));
        lock(&self.peers).retain(|_, known| *known != slot);
        *lock(&self.generations).entry(slot).or_default() += 1;
    }

    /// How many machines were lost for good.
    pub(crate) fn lost(&self) -> usize {
        lock(&self.lost).len()
    }

    /// The node that has applied most: others may be cut off.
    pub(crate) fn newest(&self) -> Option<Running> {
        lock(&self.running).values().max_by_key(|running| running.group.applied()).cloned()
    }

    /// The version of the layout that holds, as far as any node knows.
    pub(crate) fn layout(&self) -> u64 {
        let placement = self.newest().and_then(|running| View::new(&*running.group.reader()).placement().ok());
        placement.map_or(0, |placement| placement.applied.version)
    }

    /// Whether the site of this number was lost for good.
    pub(crate) fn is_lost(&self, site: u64) -> bool {
        lock(&self.lost).contains(&site)
    }

    pub(crate) fn running(&self, slot: u32) -> Option<Running> {
        lock(&self.running).get(&slot).cloned()
    }

    pub(crate) fn all_running(&self) -> Vec<Running> {
        lock(&self.running).values().cloned().collect()
    }

    /// Those whose images can be read: whose index is not damaged.
    pub(crate) async fn all_readable(&self) -> Vec<Running> {
        let mut readable = Vec::new();
        for running in self.all_running() {
            if running.store.stats().await.is_ok() {
                readable.push(running);
            }
        }
        readable
    }

    /// The slot of the node that leads, as far as the nodes know.
    pub(crate) fn leader(&self) -> Option<u32> {
        let leads = |running: &&Running| running.group.watch().borrow().role == Role::Leader;
        let running = lock(&self.running);
        let leaders = running.values().filter(leads);
        leaders.max_by_key(|running| running.group.watch().borrow().term).map(|running| running.owner.slot)
    }

    /// An index that no log has reached yet, by what the nodes tell of theirs: they tell it a little late.
    pub(crate) fn newest_index(&self) -> u64 {
        /// More than nodes take in while they have not told of it.
        const UNTOLD: u64 = 64;
        let newest = lock(&self.running).values().map(newest_of).max().unwrap_or(0);
        newest.max(self.newest_ended.load(Relaxed)) + UNTOLD
    }

    /// Notes that a fault begins.
    pub(crate) fn begin_fault(&self, number: u64, fault: Fault) {
        lock(&self.begun).push(Begun { number, fault, at: self.world.now() });
    }

    pub(crate) fn begun(&self) -> Vec<Begun> {
        lock(&self.begun).clone()
    }

    pub(crate) fn is_ending(&self) -> bool {
        self.ending.load(Relaxed)
    }

    pub(crate) fn end_work(&self) {
        self.ending.store(true, Relaxed);
    }

    /// Whether the faults are over and all copies are made.
    pub(crate) fn is_healed(&self) -> bool {
        self.healed.load(Relaxed)
    }

    pub(crate) fn set_healed(&self) {
        self.healed.store(true, Relaxed);
    }

    /// Starts the node of `slot`, if it is down and has been told of a mesh.
    pub(crate) fn boot(self: &Arc<Self>, slot: u32) {
        let can_be = slot == FOUNDER || self.site(slot).is_some() || self.token(slot).is_some();
        if self.world.is_up(slot) || !can_be {
            return;
        }
        let owner = self.world.boot(slot);
        self.fabric.node_began(slot);
        if self.gateway_slot() == Some(slot) {
            self.world.spawn_on(owner, gateway::run(Arc::clone(self), owner));
        } else {
            self.world.spawn_on(owner, site::run(Arc::clone(self), owner));
        }
    }

    pub(crate) fn entered(&self, running: Running) {
        lock(&self.running).insert(running.owner.slot, running);
    }

    pub(crate) fn gateway_entered(&self, gatehouse: Gatehouse) {
        *lock(&self.gatehouse) = Some(gatehouse);
    }

    /// Ends the life of `slot` at this instant.
    pub(crate) fn stop(&self, slot: u32, ending: Ending, why: &str) {
        if !self.world.is_up(slot) {
            return;
        }
        let owner = self.world.owner(slot);
        self.world.event(slot, format_args!("{ending:?} {why}"));
        let gatehouse = if self.gateway_slot() == Some(slot) {
            lock(&self.gatehouse).take()
        } else {
            self.watch.promises.life_ends(owner, ending);
            None
        };
        let running = lock(&self.running).remove(&slot);
        self.newest_ended.fetch_max(running.as_ref().map_or(0, newest_of), Relaxed);
        self.world.end(slot);
        self.fabric.node_ended(owner);
        self.disks.end(slot, ending);
        drop((running, gatehouse));
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
            tokio::time::sleep(self.plan.supervise_every).await;
            let now = self.world.now();
            for slot in self.slots().chain(self.gateway_slot()) {
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
