//! What goes wrong: one fault after another, of the kinds that the seed drew, some overlapping.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use maillage_store::Store;

use crate::cluster::{Cluster, FOUNDER};
use crate::disk::Ending;
use crate::invariants::copies;
use crate::net::datagrams::Flaws;
use crate::plan::{Fault, Plan, Transport};
use crate::rng::Rng;
use crate::workload::dicom::study_of;
use crate::{site, workload};

mod gateway;
pub(crate) mod placement;
pub(crate) mod upgrade;

/// Probability that a write is a node's last act, while writes may be.
const DIES_WRITING: f64 = 0.002;
/// How often a slow disk answers nothing at all, and for how long: a leader hands over after 5 s, a node ends after 20.
const STALLS: f64 = 0.3;
const STALL_MS: (u64, u64) = (3_000, 28_000);
/// The most that a lossy link does to its datagrams. Two in a hundred lost is what poor lines of the
/// public internet have in the evening; beyond, QUIC's rate falls below what a mesh can live on.
const LOSS_MAX: f64 = 0.02;
const DUPLICATION_MAX: f64 = 0.01;
const REORDERING_MAX: f64 = 0.05;
/// A site that is cut off for long is so for at least this: readers there notice after two seconds.
const CUT_OFF_MIN: Duration = Duration::from_secs(8);

/// Does harm until `until`, then waits for what it began to end.
pub(crate) async fn run(cluster: Arc<Cluster>, until: Duration) {
    let mut rng = Rng::stream(cluster.plan.seed, "nemesis");
    let faults = cluster.plan.faults.clone();
    cluster.world.event(0, format_args!("faults {faults:?}"));
    begin_throughout(&cluster, &mut rng);
    let mut under_way = Vec::new();
    if cluster.plan.is_upgraded() {
        let own = Rng::stream(cluster.plan.seed, "upgrade of nodes");
        under_way.push(maillage_host::spawn(upgrade::run(Arc::clone(&cluster), own)));
    }
    if cluster.plan.is_relaid() {
        under_way.push(maillage_host::spawn(placement::run(Arc::clone(&cluster), until)));
    }
    if cluster.plan.throughout().any(|fault| fault == Fault::Gateway) {
        under_way.push(maillage_host::spawn(gateway::run(Arc::clone(&cluster), until)));
    }
    let mut number = 0_u64;
    loop {
        tokio::time::sleep(rng.around(cluster.plan.fault_every)).await;
        // What follows a violation says no more.
        if cluster.world.now() >= until || faults.is_empty() || cluster.world.is_violated() {
            break;
        }
        let Some(fault) = rng.pick(&faults).copied() else { break };
        number += 1;
        if !cluster.plan.does(number, fault) {
            continue;
        }
        if !fault.is_throughout() {
            cluster.begin_fault(number, fault);
        }
        // A stream of its own for each: one left out changes no other.
        let mut own = Rng::stream(cluster.plan.seed, &format!("fault {number}"));
        let slot = u32::try_from(own.between(1, u64::from(cluster.plan.sites))).unwrap_or(1);
        let lasts = own.around(cluster.plan.fault_lasts) + Duration::from_millis(100);
        cluster.world.event(slot, format_args!("fault {number} {fault:?} for {lasts:?}"));
        let harm = Harm { cluster: Arc::clone(&cluster), slot, lasts, rng: own };
        under_way.push(maillage_host::spawn(harm.run(fault)));
    }
    for harm in under_way {
        // One that panicked is a violation already.
        let _ = harm.await;
    }
    end_throughout(&cluster);
    for slot in cluster.slots().chain(cluster.gateway_slot()) {
        cluster.disks.set_faults(slot, |faults| faults.end());
        cluster.liars.set(slot, None);
        cluster.world.resume(slot);
    }
    cluster.fabric.heal();
}

/// Sets what lasts for the whole run.
fn begin_throughout(cluster: &Arc<Cluster>, rng: &mut Rng) {
    let (plan, world) = (&cluster.plan, &cluster.world);
    for fault in plan.faults.iter().copied().filter(|fault| fault.is_throughout()) {
        // Drawn in any case: one left out changes no other.
        let share = if fault == Fault::CrashWriting { rng.fraction() } else { 0.0 };
        if plan.without.contains(&fault) || matches!(fault, Fault::Upgrade | Fault::Relayout | Fault::Gateway) {
            continue;
        }
        match fault {
            Fault::CrashWriting => {
                let dies_writing = DIES_WRITING * (0.2 + share);
                for slot in cluster.slots() {
                    cluster.disks.set_faults(slot, |faults| faults.dies_writing = dies_writing);
                }
            }
            Fault::CrashVoting => {
                cluster.watch.promises.crash_voters(Some(Rng::stream(plan.seed, "crash voters")));
            }
            _ if plan.transport == Transport::Quic => {
                let mut rng = Rng::stream(plan.seed, "lossy links");
                for (from, to) in ways(plan) {
                    let loss = LOSS_MAX * rng.fraction();
                    let duplication = DUPLICATION_MAX * rng.fraction();
                    let reordering = REORDERING_MAX * rng.fraction();
                    let flaws = Flaws { loss, duplication, reordering, ..Flaws::default() };
                    // Some links are good.
                    if rng.chance(0.7) {
                        cluster.fabric.set_flaws(from, to, flaws);
                        world.event(from, format_args!("lossy to {to}: {flaws:?}"));
                    }
                }
                world.sometimes("links were lossy");
            }
            _ => {}
        }
    }
}

fn end_throughout(cluster: &Arc<Cluster>) {
    cluster.watch.promises.crash_voters(None);
    for (from, to) in ways(&cluster.plan) {
        cluster.fabric.set_flaws(from, to, Flaws::default());
    }
}

/// Every directed link that there is or may be.
fn ways(plan: &Plan) -> impl Iterator<Item = (u32, u32)> {
    let last = plan.sites + 1;
    (1..=last).flat_map(move |from| (1..=last).filter(move |to| *to != from).map(move |to| (from, to)))
}

/// A node is told to stop, as for an update, and started again after it was away for so long.
pub(crate) async fn restart(cluster: &Arc<Cluster>, slot: u32, away: Duration) {
    let Some(running) = cluster.running(slot) else { return };
    let world = Arc::clone(&cluster.world);
    cluster.hold_down(slot);
    let stopping = running.clone();
    let stopped = world.spawn_on(running.owner, async move { site::stop(&stopping).await });
    if stopped.await.is_ok() && world.is_alive(running.owner) {
        world.sometimes("a node was stopped with courtesy");
        cluster.stop(slot, Ending::Killed, "told to");
    }
    tokio::time::sleep(away).await;
    cluster.let_up(slot);
}

struct Harm {
    cluster: Arc<Cluster>,
    slot: u32,
    lasts: Duration,
    rng: Rng,
}

impl Harm {
    async fn run(mut self, fault: Fault) {
        match fault {
            Fault::Crash => self.crash(vec![self.slot], Ending::PowerCut).await,
            Fault::Kill => self.crash(vec![self.slot], Ending::Killed).await,
            Fault::CrashLeader => {
                let leader = self.cluster.leader().unwrap_or(self.slot);
                // Sometimes it is back before anybody noticed.
                self.lasts = if self.rng.chance(0.5) { Duration::ZERO } else { self.lasts };
                self.crash(vec![leader], Ending::PowerCut).await;
            }
            Fault::CrashMany => {
                let mut slots: Vec<u32> = self.cluster.slots().collect();
                self.rng.shuffle(&mut slots);
                let count = if self.rng.chance(0.3) { slots.len() } else { 1 + self.rng.index(slots.len()) };
                slots.truncate(count);
                if count == usize::try_from(self.cluster.plan.sites).unwrap_or(0) {
                    self.cluster.world.sometimes("all nodes lost power at once");
                }
                self.crash(slots, Ending::PowerCut).await;
            }
            // Set for the whole run, by the probability of each write and vote.
            Fault::CrashWriting
            | Fault::CrashVoting
            | Fault::LossyLinks
            | Fault::Upgrade
            | Fault::Relayout
            | Fault::Gateway => {}
            Fault::CutOff => self.cut_off().await,
            Fault::Pause => {
                self.cluster.world.pause(self.slot);
                tokio::time::sleep(self.lasts).await;
                self.cluster.world.resume(self.slot);
            }
            Fault::DiskFull | Fault::FsyncFails | Fault::SlowDisk => self.disk(fault).await,
            Fault::Restart => restart(&self.cluster, self.slot, self.lasts / 4).await,
            Fault::WrongBytes => {
                let share = [0.05, 0.5, 1.0][self.rng.index(3)];
                self.cluster.liars.set(self.slot, Some(share));
                tokio::time::sleep(self.lasts * 2).await;
                self.cluster.liars.set(self.slot, None);
            }
            Fault::BitRot => self.rot().await,
            Fault::IndexRot => {
                self.cluster.disks.spoil_index(self.slot);
                self.cluster.world.sometimes("a node's index was damaged");
            }
            Fault::Replace => self.replace().await,
            Fault::JoinLate => {
                let Some(slot) = self.cluster.one_more() else { return };
                self.cluster.invite(slot).await;
                self.cluster.boot(slot);
                self.cluster.world.sometimes("a site joined among faults");
            }
            Fault::ClockDrift => {
                let ppm = i64::try_from(self.rng.below(20_000)).unwrap_or(0) - 10_000;
                self.cluster.world.set_clock_drift(self.slot, ppm);
            }
            Fault::ClockJump => self.jump_clock(12 * 3_600_000),
            Fault::ClockLeap => self.jump_clock(5 * 24 * 3_600_000),
            Fault::Breaks => {
                for _ in 0..self.rng.between(1, 6) {
                    let (a, b) = (self.any_slot(), self.any_slot());
                    self.cluster.fabric.break_connection(a, b);
                    let wait = self.rng.millis(0, 300);
                    tokio::time::sleep(wait).await;
                }
            }
            _ => self.network(fault).await,
        }
    }

    /// Flips bits of instances that another site holds, too.
    async fn rot(&mut self) {
        self.cluster.set_rotten(self.slot);
        let Some(slot) = self.cluster.rotten() else { return };
        let Some(running) = self.cluster.running(slot) else { return };
        let held = copies::held(&self.cluster, &running).await;
        let mut mine = self.cluster.watch.instances.acknowledged_at(slot);
        mine.retain(|instance| held.elsewhere.contains(&instance.sop_instance));
        for _ in 0..self.rng.between(1, 4) {
            let Some(instance) = self.rng.pick(&mine) else { return };
            let Some(what) = last_stored(&running.store, &instance.sop_instance).await else { continue };
            let bit = self.rng.index(what.len() * 8);
            if self.cluster.disks.rot(slot, &what, bit) {
                self.cluster.flipped(&instance.study);
                self.cluster.world.event(slot, format_args!("bit {bit} of {} flips", instance.sop_instance));
                self.cluster.world.sometimes("an image's bits flipped at rest");
            }
        }
    }

    /// A machine is lost with its disk, and a new node joins where it was. Its hospital sends again what
    /// was nowhere else.
    async fn replace(&mut self) {
        let slot = self.slot;
        if slot == FOUNDER || self.cluster.plan.sites < 3 {
            return;
        }
        let Some(running) = self.cluster.running(slot) else { return };
        if !self.cluster.lose_one() {
            return;
        }
        self.cluster.hold_down(slot);
        let copies::Held { elsewhere: mut safe, here_alone } = copies::held(&self.cluster, &running).await;
        if self.cluster.was_alone(slot) {
            // Where somebody laid out that one copy is enough, there is none any more.
            self.forgo(here_alone).await;
        } else {
            // Their senders have deleted them. Of an image whose other copy rots there is none any more either.
            let mut committed = self.cluster.watch.commitments.committed();
            committed.retain(|sop_instance| !self.cluster.has_flipped(study_of(sop_instance)));
            safe.extend(committed);
        }
        let lost = self.cluster.watch.instances.lost(slot, &safe);
        self.cluster.world.event(slot, format_args!("the machine is lost, with {} instances", lost.len()));
        self.cluster.forget(slot);
        tokio::time::sleep(self.lasts).await;
        self.cluster.invite(slot).await;
        self.cluster.let_up(slot);
        self.cluster.boot(slot);
        self.cluster.world.sometimes("a lost site was replaced");
        workload::send_again(&self.cluster, slot, lost, &mut self.rng).await;
    }

    /// What a gateway had acknowledged, and has no more, of what is lost: nobody sends it again.
    async fn forgo(&self, lost: BTreeSet<String>) {
        let Some(gateway) = self.cluster.gateway_slot() else { return };
        let gatehouse = self.cluster.gatehouse();
        for instance in self.cluster.watch.instances.acknowledged_at(gateway) {
            let has_left = match &gatehouse {
                Some(gatehouse) => matches!(gatehouse.store.instance(&instance.sop_instance).await, Ok(None)),
                None => self.cluster.watch.gateway.saw_leave(&instance.sop_instance),
            };
            if has_left && lost.contains(&instance.sop_instance) {
                self.cluster.world.sometimes("an image was lost with the only copy that the layout wanted");
                self.cluster.watch.instances.forgo(gateway, &instance.sop_instance);
            }
        }
    }

    fn any_slot(&mut self) -> u32 {
        u32::try_from(self.rng.between(1, u64::from(self.cluster.plan.sites))).unwrap_or(1)
    }

    async fn crash(&self, slots: Vec<u32>, ending: Ending) {
        for slot in &slots {
            self.cluster.hold_down(*slot);
            self.cluster.stop(*slot, ending, "by a fault");
        }
        tokio::time::sleep(self.lasts).await;
        for slot in slots {
            self.cluster.let_up(slot);
        }
    }

    async fn disk(&mut self, fault: Fault) {
        let (disks, slot) = (&self.cluster.disks, self.slot);
        match fault {
            Fault::DiskFull => {
                let room = self.rng.below(100_000);
                disks.set_faults(slot, |faults| faults.room = Some(room));
                tokio::time::sleep(self.lasts).await;
                disks.set_faults(slot, |faults| faults.room = None);
            }
            Fault::FsyncFails => {
                let probability = 0.02 + self.rng.fraction() * 0.3;
                disks.set_faults(slot, |faults| faults.sync_fails = probability);
                tokio::time::sleep(self.lasts).await;
                disks.set_faults(slot, |faults| faults.sync_fails = 0.0);
            }
            _ => {
                let slowness = [20, 100, 500][self.rng.index(3)];
                let stalls = self.rng.chance(STALLS).then(|| self.rng.millis(STALL_MS.0, STALL_MS.1));
                disks.set_faults(slot, |faults| (faults.slowness, faults.is_stalled) = (slowness, stalls.is_some()));
                tokio::time::sleep(stalls.unwrap_or(self.lasts)).await;
                disks.set_faults(slot, |faults| (faults.slowness, faults.is_stalled) = (1, false));
                if stalls.is_some() {
                    disks.set_faults(slot, |faults| faults.has_stalled = true);
                    self.cluster.world.sometimes("a disk stalled");
                }
            }
        }
    }

    fn jump_clock(&mut self, most_ms: u64) {
        let ahead = i64::try_from(self.rng.below(2 * most_ms)).unwrap_or(0);
        let ahead = ahead - i64::try_from(most_ms).unwrap_or(0);
        self.cluster.world.set_clock_ahead(self.slot, ahead);
    }

    async fn network(&mut self, fault: Fault) {
        let everywhere = |slot: u32, cluster: &Cluster| -> Vec<(u32, u32)> {
            cluster.slots().filter(|other| *other != slot).flat_map(|other| [(slot, other), (other, slot)]).collect()
        };
        let ways = match fault {
            Fault::Partition | Fault::OneWay => self.halves(fault == Fault::Partition),
            Fault::IsolateLeader => everywhere(self.cluster.leader().unwrap_or(self.slot), &self.cluster),
            Fault::Flapping => return self.flap(everywhere(self.slot, &self.cluster)).await,
            Fault::LatencySpike => return self.spike().await,
            // Cuts and stalls of single links, in one direction each.
            _ => (0..self.rng.between(1, 6)).map(|_| (self.any_slot(), self.any_slot())).collect(),
        };
        let lasts = if fault == Fault::Stalls { self.rng.millis(50, 2_500) } else { self.lasts };
        self.cut(&ways, lasts).await;
    }

    /// Long enough for the site to go on by itself; in half of the cases its node dies in the middle.
    async fn cut_off(&mut self) {
        let lasts = self.lasts * 2 + CUT_OFF_MIN;
        let cluster = Arc::clone(&self.cluster);
        let slot = self.slot;
        let others = cluster.slots().filter(|other| *other != slot);
        let ways: Vec<(u32, u32)> = others.flat_map(|other| [(slot, other), (other, slot)]).collect();
        ways.iter().for_each(|(from, to)| cluster.fabric.cut(*from, *to));
        tokio::time::sleep(lasts / 2).await;
        if self.rng.chance(0.5) {
            cluster.world.sometimes("a node died while it was cut off");
            cluster.hold_down(slot);
            let ending = if self.rng.chance(0.5) { Ending::PowerCut } else { Ending::Killed };
            cluster.stop(slot, ending, "while it was cut off");
            tokio::time::sleep(lasts / 8).await;
            cluster.let_up(slot);
        }
        tokio::time::sleep(lasts / 2).await;
        ways.iter().for_each(|(from, to)| cluster.fabric.mend(*from, *to));
    }

    async fn cut(&self, ways: &[(u32, u32)], lasts: Duration) {
        ways.iter().for_each(|(from, to)| self.cluster.fabric.cut(*from, *to));
        tokio::time::sleep(lasts).await;
        ways.iter().for_each(|(from, to)| self.cluster.fabric.mend(*from, *to));
    }

    fn halves(&mut self, both_ways: bool) -> Vec<(u32, u32)> {
        let mut slots: Vec<u32> = self.cluster.slots().collect();
        self.rng.shuffle(&mut slots);
        let at = 1 + self.rng.index(slots.len().saturating_sub(1).max(1));
        let (left, right) = slots.split_at(at.min(slots.len()));
        let mut ways = Vec::new();
        for (a, b) in left.iter().flat_map(|a| right.iter().map(move |b| (*a, *b))) {
            ways.push((a, b));
            if both_ways {
                ways.push((b, a));
            }
        }
        ways
    }

    async fn flap(&mut self, ways: Vec<(u32, u32)>) {
        for _ in 0..self.rng.between(2, 8) {
            let (down, up) = (self.rng.millis(50, 1_500), self.rng.millis(50, 1_000));
            self.cut(&ways, down).await;
            tokio::time::sleep(up).await;
        }
    }

    async fn spike(&mut self) {
        let extra = self.rng.millis(20, 800);
        let ways: Vec<(u32, u32)> = (0..self.rng.between(1, 10)).map(|_| (self.any_slot(), self.any_slot())).collect();
        ways.iter().for_each(|(from, to)| self.cluster.fabric.set_extra_latency(*from, *to, extra));
        tokio::time::sleep(self.lasts).await;
        ways.iter().for_each(|(from, to)| self.cluster.fabric.set_extra_latency(*from, *to, Duration::ZERO));
    }
}

/// The end of what is stored of an instance: sealed bytes that lie nowhere else.
async fn last_stored(store: &Store, sop_instance: &str) -> Option<Bytes> {
    let listed = store.instance(sop_instance).await.ok()??;
    let manifest = store.instance_manifest(listed.entry.manifest).await.ok()??;
    let stored = store.get(manifest.chunks.last()?.hash).await.ok()??;
    Some(stored.slice(stored.len().saturating_sub(64)..))
}
