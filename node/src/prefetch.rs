//! Prefetching: the exams that this centre's readers are likely to be given next, and their priors, come here
//! before anybody asks.
//!
//! What is brought so is no copy: the mesh is not told, counts no site by it, and loses nothing when it goes. It
//! stays within a budget, and beyond the disk's reserve; what is no longer likely to be read goes first. Each part is
//! noted durably before its first byte is here ([`Ledger`]), and only what is noted is ever dropped. When the part is
//! held after all, since it is claimed or belongs here, the note goes before the hold is there.
//!
//! Who reads here is what asked for the next exam within a shift; a node that was just started takes it to be
//! radiologists. A site at which nobody reads sets the budget to 0.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use maillage_consensus::order::Reader;
use maillage_store::Hash;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::node::Node;
use crate::pack_day::DAY_MS;

mod choice;
mod ledger;
mod noted;
mod priors;
mod wishes;

use choice::{Kept, Step, next_step};
pub(crate) use ledger::{Ledger, LedgerError};
pub(crate) use noted::earlier_publications;
use noted::{Sorted, sorted};
use priors::Priors;
use wishes::{Wish, wishes};

/// Changes are let settle for so long: a burst of them is one round.
const SETTLE: Duration = Duration::from_secs(1);
/// A round is done at least this often: exams rise as they wait, and a disk fills by itself.
const ROUND: Duration = Duration::from_secs(30);
/// What could not be brought is tried again after this.
const RETRY: Duration = Duration::from_secs(30);
/// What is prefetched lies with what goes so many days from now: in packs of its own, which are removed as a whole
/// once nothing in them is wanted.
const DAYS: u64 = 1;
/// A shift: who has not asked for an exam for so long reads here no more.
const SHIFT: Duration = Duration::from_secs(12 * 3600);
/// Readers remembered; a centre has at most 7 seats.
const READERS_MAX: usize = 32;

/// Who reads at this site, as they asked for their next exam. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Readers(Arc<Mutex<Vec<(Reader, Instant)>>>);

impl Readers {
    /// Somebody asked for the next exam.
    pub(crate) fn asked(&self, reader: &Reader) {
        let mut readers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        readers.retain(|(known, _)| known != reader);
        readers.push((reader.clone(), Instant::now()));
        if readers.len() > READERS_MAX {
            readers.remove(0);
        }
    }

    /// Those of this shift; while nobody has asked at all, a radiologist.
    fn now(&self) -> Vec<Reader> {
        let readers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if readers.is_empty() {
            return vec![Reader::default()];
        }
        readers.iter().filter(|(_, at)| at.elapsed() < SHIFT).map(|(reader, _)| reader.clone()).collect()
    }
}

/// Prefetches, and drops what was, until `shutdown`.
pub(crate) async fn run(node: Node, shutdown: CancellationToken) {
    let mut changes = node.changes();
    let mut duty = Duty::default();
    loop {
        changes.mark_unchanged();
        let work = async {
            match duty.round(&node).await {
                // There may be more to do; the room may have changed meanwhile.
                Ok(true) => return true,
                Ok(false) => {}
                Err(error) => tracing::debug!(error = format!("{error:#}"), "prefetch: round failed"),
            }
            match tokio::time::timeout(ROUND, changes.changed()).await {
                Ok(Ok(())) => tokio::time::sleep(SETTLE).await,
                Ok(Err(_)) => return false,
                Err(_) => {}
            }
            true
        };
        match shutdown.run_until_cancelled(work).await {
            Some(true) => {}
            _ => return,
        }
    }
}

#[derive(Default)]
struct Duty {
    priors: Priors,
    /// Bytes that the noted publications of each part take on the disk together.
    sizes: BTreeMap<Vec<Hash>, u64>,
    /// Those of which all came since this node started; of others that is found out by bringing what is missing.
    whole: BTreeSet<Hash>,
    /// When what could not be brought is tried again.
    failed: BTreeMap<Hash, Instant>,
}

impl Duty {
    /// Does one thing. Whether there was one.
    async fn round(&mut self, node: &Node) -> anyhow::Result<bool> {
        let images = node.images();
        let noted = images.prefetched().all().await;
        if node.config().storage.prefetch_mib_max == 0 && noted.is_empty() {
            return Ok(false);
        }
        // A hold that is there is a copy, by whichever way it came about.
        let held = node.store().held_among(noted.into_keys().collect()).await?;
        images.prefetched().leave(&held).await?;
        let noted = images.prefetched().all().await;
        let Sorted { stay, mut go } = sorted(node, &noted).await?;
        if let Some(((_, later), manifests)) = go.pop_first() {
            self.discard(node, &manifests, later).await?;
            return Ok(true);
        }
        let readers = node.readers().now();
        let priors = &mut self.priors;
        node.read(|view| priors.advance(view))?;
        let wanted = wishes(node, &readers, &self.priors)?;
        self.sizes.retain(|manifests, _| stay.values().any(|now| now == manifests));
        self.whole.retain(|manifest| noted.contains_key(manifest));
        self.failed.retain(|_, at| *at > Instant::now());
        let mut kept = Vec::with_capacity(stay.len());
        for (latest, manifests) in &stay {
            let bytes = match self.sizes.get(manifests) {
                Some(bytes) => *bytes,
                None => {
                    let bytes = node.store().stored_bytes(manifests.clone()).await?;
                    self.sizes.insert(manifests.clone(), bytes);
                    bytes
                }
            };
            let since = manifests.iter().filter_map(|manifest| noted.get(manifest)).map(|note| note.at).max();
            let (since_ms, is_whole) = (since.unwrap_or_default(), self.whole.contains(latest));
            kept.push(Kept { manifest: *latest, bytes, since_ms, is_whole });
        }
        let budget = budget(node, kept.iter().map(|one| one.bytes).sum()).await?;
        let candidates: Vec<(Hash, u64)> = wanted.iter().map(|wish| (wish.manifest(), wish.bytes())).collect();
        match next_step(budget, &candidates, &kept, &|manifest| self.failed.contains_key(&manifest)) {
            Step::Nothing => Ok(false),
            Step::Drop(latest) => {
                let manifests = stay.get(&latest).map(Vec::as_slice).unwrap_or_default();
                self.discard(node, manifests, None).await?;
                Ok(true)
            }
            Step::Bring(place) => {
                let Some(wish) = wanted.get(place) else { return Ok(false) };
                match bring(node, wish).await {
                    Ok(()) => drop(self.whole.insert(wish.manifest())),
                    Err(error) => {
                        tracing::debug!(study = %wish.held.part.study, error = format!("{error:#}"), "not prefetched");
                        self.failed.insert(wish.manifest(), Instant::now() + RETRY);
                    }
                }
                self.sizes.retain(|manifests, _| !manifests.contains(&wish.manifest()));
                Ok(true)
            }
        }
    }

    /// Drops publications that were prefetched, unless they are held by now. What `later` lists too, which took their
    /// place, stays.
    async fn discard(&mut self, node: &Node, manifests: &[Hash], later: Option<Hash>) -> anyhow::Result<()> {
        self.whole.retain(|manifest| !manifests.contains(manifest));
        self.sizes.retain(|known, _| known.as_slice() != manifests);
        let later: Vec<Hash> = later.into_iter().collect();
        let all = node.store().stored_bytes([manifests, &later].concat()).await?;
        let bytes = all.saturating_sub(node.store().stored_bytes(later).await?);
        for manifest in manifests {
            node.store().evict(*manifest).await?;
        }
        node.images().prefetched().leave(manifests).await?;
        node.metrics().prefetch_evicted(bytes);
        tracing::info!(publications = manifests.len(), bytes, "prefetched images dropped");
        Ok(())
    }
}

/// Bytes that may be kept: what the settings say, and no more than leaves as much free again as the reserve, for
/// what comes from the hospitals goes first.
async fn budget(node: &Node, kept: u64) -> anyhow::Result<u64> {
    let storage = &node.config().storage;
    let free = node.store().space().await?.free;
    let left = storage.reserve_mib.saturating_mul(2 << 20);
    let by_disk = kept.saturating_add(free).saturating_sub(left);
    Ok(storage.prefetch_mib_max.saturating_mul(1 << 20).min(by_disk))
}

async fn bring(node: &Node, wish: &Wish) -> anyhow::Result<()> {
    let (images, manifest) = (node.images(), wish.manifest());
    if !images.prefetched().has(manifest).await {
        // What is here already, as a copy or what is left of one, is not made a thing that may be dropped.
        if node.store().has(manifest).await? {
            anyhow::bail!("something of it is here already");
        }
        let at = node.clock().now();
        images.prefetched().enter(manifest, wish.held.part.study.as_str(), at).await?;
    }
    let started = Instant::now();
    let day = node.clock().now().0 / DAY_MS + DAYS;
    let report = images.prefetch_part(&wish.held, day).await?;
    let (bytes, seconds) = (report.fetched, started.elapsed().as_secs_f64());
    tracing::info!(study = %wish.held.part.study, bytes, seconds, "prefetched");
    Ok(())
}
