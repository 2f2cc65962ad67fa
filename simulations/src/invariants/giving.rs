//! I5 for copies that go: the mesh lets a site give up its copy of a part only while as many other sites as are wanted
//! have it, by what it knows and by what is on their disks; and no site is rid of a copy that the mesh counts on: its
//! disk is looked at, now and then, for one of all copies.
//!
//! Seen where replicas apply the command, the first of them: what holds is the state before it.

use std::collections::BTreeSet;
use std::io;
use std::ops::Bound;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use maillage_consensus::command::{Command, Envelope};
use maillage_consensus::ids::{Address, SiteId};
use maillage_consensus::mesh::HeldPart;
use maillage_consensus::placement::Plan;
use maillage_consensus::transaction::Transaction;
use maillage_consensus::{Outcome, View};
use maillage_host::engine::Reader;
use maillage_store::Hash;

use crate::cluster::{Cluster, Running};
use crate::durable;
use crate::invariants::ZONES;
use crate::invariants::copies::could_have;
use crate::rng::Rng;
use crate::world::{HARNESS, World, lock};

/// Pairs read at once from the state under way.
const PAGE: usize = 64;
/// Copies without which images are not safe.
const COPIES: usize = 2;

/// Whether the leader counts on a site's copy that is not on its disk, which neither rots nor is lost. A leader that has
/// not heard from most for long may lead no more, and knows nothing new.
async fn is_missing(cluster: &Cluster, held: &HeldPart, site: SiteId) -> bool {
    let leader = cluster.leader().and_then(|slot| cluster.running(slot));
    let is_heard = |leader: &Running| leader.group.watch().borrow().quorum_ack_age.is_some_and(|age| age < KNOWN / 2);
    let Some(leader) = leader.filter(is_heard) else { return false };
    let parts = View::new(&*leader.group.reader()).study(held.part.study.as_str()).ok().flatten();
    let same = |known: &&HeldPart| known.part.manifest == held.part.manifest && known.holders.contains(&site);
    let is_listed = parts.is_some_and(|study| study.parts.iter().any(|known| same(&known)));
    let slot = cluster.slot_of()(site.0).filter(|slot| cluster.rotten() != Some(*slot));
    let Some(slot) = slot.filter(|_| is_listed) else { return false };
    for running in cluster.all_running() {
        if let Some(marks) = durable::of_part(&running.store, Hash(held.part.manifest)).await {
            return !cluster.disks.keeps(slot, &marks);
        }
    }
    false
}

/// The state as the commands before this one left it.
pub(crate) struct Overlay<'a, 'b>(pub(crate) &'a Transaction<'b>);

impl Reader for Overlay<'_, '_> {
    fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        self.0.get(key)
    }

    fn scan(&self, from: Bound<&[u8]>, to: Bound<&[u8]>, each: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> io::Result<()> {
        let mut page = match from {
            Bound::Included(from) => self.0.scan_prefix_from(&[], from, PAGE)?,
            Bound::Excluded(from) => self.0.scan_prefix_after(&[], from, PAGE)?,
            Bound::Unbounded => self.0.scan_prefix(&[], PAGE)?,
        };
        let is_within = |key: &[u8]| match to {
            Bound::Included(to) => key <= to,
            Bound::Excluded(to) => key < to,
            Bound::Unbounded => true,
        };
        while let Some((last, _)) = page.last().cloned() {
            for (key, value) in &page {
                if !is_within(key) || !each(key, value) {
                    return Ok(());
                }
            }
            page = self.0.scan_prefix_after(&[], &last, PAGE)?;
        }
        Ok(())
    }
}

/// A part that a site says it is, or would be, rid of, and the layout, before the command.
pub(crate) struct Before {
    held: HeldPart,
    site: SiteId,
    plan: Plan,
}

impl Before {
    /// None for other commands, and for parts of which the site is no holder.
    pub(crate) fn of(transaction: &Transaction<'_>, envelope: &Envelope) -> Option<Self> {
        let (Command::GiveUp { study, manifest } | Command::RecordHolding { study, manifest, holds: false }) =
            &envelope.command
        else {
            return None;
        };
        let state = Overlay(transaction);
        let view = View::new(&state);
        let parts = view.study(study.as_str()).ok()??.parts;
        let mut held = parts.into_iter().find(|held| held.part.manifest == *manifest)?;
        let before = held.holders.len();
        held.holders.retain(|site| *site != envelope.site);
        (held.holders.len() < before).then_some(())?;
        Some(Self { held, site: envelope.site, plan: view.plan().ok()? })
    }

    /// The others that the mesh counts on, and how many of them it wants: two at least of what may lie where it is.
    fn others(&self) -> (Vec<SiteId>, usize) {
        let (origin, plan) = (self.held.origin, &self.plan);
        let is_counted =
            |site: &SiteId| plan.ground(*site).is_some_and(|ground| ground.is_here) && plan.counts(origin, *site);
        let others = self.held.holders.iter().copied().filter(is_counted).collect();
        let at_least = if plan.allows(origin, self.site) { COPIES.min(plan.copies(origin)) } else { 1 };
        (others, plan.copies(origin).min(could_have(plan, origin).count()).max(at_least))
    }

    /// Zones that somebody has asked for, or else as usual: one alone may have been asked for.
    fn zones_asked(&self) -> usize {
        let contract = self.plan.contract(self.held.origin).map(|contract| contract.zones).filter(|zones| *zones > 0);
        match contract.unwrap_or(self.plan.layout().zones) {
            0 => ZONES,
            asked => usize::from(asked),
        }
    }

    /// Zones of the others, and how many of them there have to be.
    fn zones(&self, others: &[SiteId], wanted: usize) -> (usize, usize) {
        let of = |site: &SiteId| self.plan.ground(*site).map(|ground| ground.zone.clone());
        let zones: BTreeSet<_> = others.iter().filter_map(of).collect();
        let could = could_have(&self.plan, self.held.origin);
        let possible: BTreeSet<_> = could.map(|ground| ground.zone.clone()).collect();
        (zones.len(), self.zones_asked().min(wanted).min(possible.len()))
    }
}

/// What is looked for on disks is what had to be there this long before.
const SOON: Duration = Duration::from_millis(100);
/// After this long a node that was behind knows of what was given up.
const KNOWN: Duration = Duration::from_secs(8);

/// See the module.
pub(crate) struct Giving {
    world: Arc<World>,
    /// Draws whose copies are looked for.
    rng: Mutex<Rng>,
    /// Places in the log that were looked at.
    seen: Mutex<BTreeSet<u64>>,
}

impl Giving {
    pub(crate) fn new(world: Arc<World>, seed: u64) -> Self {
        Self { world, rng: Mutex::new(Rng::stream(seed, "copies")), seen: Mutex::default() }
    }

    /// Looks for one copy that the mesh counts on, any, on the disk of its holder.
    pub(crate) async fn sample(&self, cluster: &Arc<Cluster>) {
        let Some((held, site)) = self.drawn(cluster) else { return };
        if is_missing(cluster, &held, site).await {
            let (watch, cluster) = (Arc::clone(&cluster.watch), Arc::clone(cluster));
            drop(self.world.spawn_on(HARNESS, async move {
                tokio::time::sleep(KNOWN).await;
                if is_missing(&cluster, &held, site).await {
                    let detail = format!("site {site} has no longer its copy of study {} that counts", held.part.study);
                    watch.giving.world.violation("I5", detail);
                }
            }));
        }
    }

    /// A part and one of its holders.
    fn drawn(&self, cluster: &Cluster) -> Option<(HeldPart, SiteId)> {
        let leader = cluster.running(cluster.leader()?)?;
        let studies = View::new(&*leader.group.reader()).studies(None, usize::MAX).ok()?;
        let mut rng = lock(&self.rng);
        let parts = &rng.pick(&studies)?.parts;
        let held = rng.pick(parts)?.clone();
        let site = *rng.pick(&held.holders)?;
        Some((held, site))
    }

    /// A replica applied a command before which this was so.
    pub(crate) fn applied(
        &self,
        cluster: &Arc<Cluster>,
        index: u64,
        envelope: &Envelope,
        before: Before,
        outcome: &Outcome,
    ) {
        if !matches!(outcome, Outcome::Done) || !lock(&self.seen).insert(index) {
            return;
        }
        let Before { held, .. } = &before;
        let what = format!("the copy of study {} at site {}", held.part.study, envelope.site);
        if matches!(envelope.command, Command::RecordHolding { .. }) {
            let is_rotten = cluster.rotten().and_then(|slot| cluster.site(slot)) == Some(envelope.site.0);
            if !is_rotten && !cluster.is_lost(envelope.site.0) {
                self.world.violation("I5", format!("{what} went without the mesh's word (at {index})"));
            }
            return;
        }
        self.world.sometimes("a copy was given up");
        let (others, wanted) = before.others();
        let (zones, zones_wanted) = before.zones(&others, wanted);
        if others.len() < wanted || zones < zones_wanted {
            let detail = format!(
                "{what} was given up at {index} while {} of {wanted} others in {zones} of {zones_wanted} zones have it",
                others.len()
            );
            self.world.violation("I5", detail);
        }
        let (watch, cluster, manifest) = (Arc::clone(&cluster.watch), Arc::clone(cluster), held.part.manifest);
        let look = async move { watch.giving.look(&cluster, &what, manifest, &others, wanted).await };
        drop(self.world.spawn_on(HARNESS, look));
    }

    /// Looks for a part on the disks of those that are counted on.
    async fn look(&self, cluster: &Cluster, what: &str, manifest: Address, others: &[SiteId], wanted: usize) {
        let rotten = cluster.rotten().and_then(|slot| cluster.site(slot));
        let is_excused = |site: &&SiteId| cluster.is_lost(site.0) || rotten == Some(site.0);
        let wanted = wanted.saturating_sub(others.iter().filter(is_excused).count());
        let slot_of = cluster.slot_of();
        let slots: Vec<u32> = others.iter().filter_map(|site| slot_of(site.0)).collect();
        let mut up = cluster.all_readable().await;
        up.retain(|running| others.contains(&SiteId(running.site)));
        let (mut marks, start) = (None, self.world.now());
        for running in &up {
            if marks.is_none() {
                marks = durable::of_part(&running.store, Hash(manifest)).await;
            }
        }
        if self.world.now() - start > SOON {
            // From a disk that hardly answers: others may have given theirs up meanwhile, for new ones.
            return;
        }
        match marks {
            Some(marks) if slots.iter().filter(|slot| cluster.disks.keeps(**slot, &marks)).count() < wanted => {
                let detail = format!("{what} was given up, and fewer than {wanted} others have it on their disks");
                self.world.violation("I5", detail);
            }
            None if wanted > 0 && !up.is_empty() && rotten.is_none() => {
                self.world.violation("I5", format!("{what} was given up, and none that is up has all of it"));
            }
            _ => {}
        }
    }
}
