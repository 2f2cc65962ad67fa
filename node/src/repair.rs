//! Repair: what is damaged or missing here of what this site holds, brought back from the sites that have it.
//!
//! By itself, as soon as damage is found, whoever finds it: a reader, the scrub, a verification. And on demand,
//! for all that the mesh notes this site to hold. Damage that nothing refers to is discarded. What no site
//! has that can be asked is tried again, is told by `status`, and is an error in the log.
//!
//! Repair makes no copies: what is here and is none, such as what was prefetched, has what is damaged of it mended, and
//! nobody is told of it. A copy that was lost by its damage is one again.

use std::collections::BTreeSet;
use std::time::Duration;

use maillage_consensus::ids::SiteId;
use maillage_consensus::mesh::{HeldPart, Study};
use maillage_consensus::placement::Plan;
use maillage_store::{Hash, StoreEvent};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::copies;
use crate::images::{Extent, ImagesError, Mended};
use crate::node::Node;
use crate::prefetch;

/// Damage comes in bursts: one round is for what is found meanwhile.
const SETTLE: Duration = Duration::from_millis(200);
/// Between two tries at what nobody had, doubled each time up to …
const RETRY_MIN: Duration = Duration::from_secs(15);
/// … this: a site that was away has what is missing when it is back.
const RETRY_MAX: Duration = Duration::from_secs(600);
/// Damaged chunks looked at in one round.
const BAD_AT_ONCE: usize = 10_000;
/// Studies read from the state at once.
const STUDIES_PER_PAGE: usize = 256;
/// Studies and objects named in one report.
const NAMED_MAX: usize = 1000;

/// What a repair did.
#[derive(Debug, Default)]
pub(crate) struct Repaired {
    /// Studies looked at, and how many parts of them this site has.
    pub(crate) studies: u64,
    pub(crate) parts: u64,
    /// Manifests and chunks brought from other sites, and their bytes.
    pub(crate) brought: u64,
    pub(crate) bytes: u64,
    /// Damaged chunks that nothing referred to, or only what must not lie here, gone.
    pub(crate) discarded: u64,
    /// Objects that no site had that could be asked, at most 1,000 with the study.
    pub(crate) nowhere: Vec<(Option<String>, Hash)>,
    /// All of these, each once: two studies may have it, and a study be looked at twice.
    told: BTreeSet<Hash>,
    /// Studies of which nothing can be said, and why.
    pub(crate) failed: Vec<(String, String)>,
    /// Whether the mesh was told everything that changed.
    pub(crate) recorded: bool,
}

impl Repaired {
    fn new() -> Self {
        Self { recorded: true, ..Self::default() }
    }

    /// Whether nothing is left to repair.
    pub(crate) fn is_complete(&self) -> bool {
        self.told.is_empty() && self.failed.is_empty()
    }

    /// How many objects no site had that could be asked.
    pub(crate) fn nowhere_count(&self) -> usize {
        self.told.len()
    }

    fn nowhere(&mut self, study: Option<&str>, hash: Hash) {
        if self.told.insert(hash) && self.nowhere.len() < NAMED_MAX {
            self.nowhere.push((study.map(str::to_owned), hash));
        }
    }
}

/// Told how many of how many studies were looked at.
pub(crate) type Progress = mpsc::Sender<(u64, u64)>;

/// Brings back whatever is damaged or missing of what this site is noted to hold.
///
/// # Errors
/// When the state or the store cannot be read.
pub(crate) async fn all(node: &Node, progress: &Progress) -> anyhow::Result<Repaired> {
    let mut done = Repaired::new();
    let mut after: Option<String> = None;
    let total = node.read(|view| Ok(view.counts()?.studies))?;
    loop {
        let page = node.read(|view| view.studies(after.as_deref(), STUDIES_PER_PAGE))?;
        for held in &page {
            study(node, held, &BTreeSet::new(), false, &mut done).await?;
            // A reader of the progress that is slow or gone misses a step, nothing more.
            let _ = progress.try_send((done.studies, total.max(done.studies)));
        }
        match page.last() {
            Some(last) if page.len() == STUDIES_PER_PAGE => after = Some(last.uid.to_string()),
            _ => break,
        }
    }
    damaged_into(node, &mut done).await?;
    Ok(done)
}

/// … of one study, whether this site is noted to hold it or only has something of it. `None` when nobody knows it.
///
/// # Errors
/// As [`all`].
pub(crate) async fn one(node: &Node, uid: &str) -> anyhow::Result<Option<Repaired>> {
    let Some(held) = node.read(|view| view.study(uid))? else { return Ok(None) };
    let mut done = Repaired::new();
    study(node, &held, &bad(node).await?, true, &mut done).await?;
    Ok(Some(done))
}

/// Brings back what is known to be damaged.
///
/// # Errors
/// As [`all`].
pub(crate) async fn damaged(node: &Node) -> anyhow::Result<Repaired> {
    let mut done = Repaired::new();
    damaged_into(node, &mut done).await?;
    Ok(done)
}

async fn bad(node: &Node) -> anyhow::Result<BTreeSet<Hash>> {
    Ok(node.store().bad_chunks(BAD_AT_ONCE).await?.into_iter().collect())
}

async fn damaged_into(node: &Node, done: &mut Repaired) -> anyhow::Result<()> {
    let found = bad(node).await?;
    if found.is_empty() {
        return Ok(());
    }
    let (studies, unknown) = node.store().studies_of(found.iter().copied().collect()).await?;
    if !unknown.is_empty() {
        done.discarded += unknown.len() as u64;
        node.store().discard(unknown).await?;
    }
    for uid in &studies {
        // One that is not published yet is nowhere else.
        if let Some(held) = node.read(|view| view.study(uid))? {
            study(node, &held, &found, true, done).await?;
        }
    }
    for hash in bad(node).await? {
        done.nowhere(None, hash);
    }
    Ok(())
}

/// Mends the parts of a study that this site is noted to hold, or, `also_unnoted`, has something of.
async fn study(
    node: &Node,
    held: &Study,
    bad: &BTreeSet<Hash>,
    also_unnoted: bool,
    done: &mut Repaired,
) -> anyhow::Result<()> {
    done.studies += 1;
    for part in &held.parts {
        let (noted, manifest) = (part.holders.contains(&node.site()), Hash(part.part.manifest));
        let is_here = noted || also_unnoted && (bad.contains(&manifest) || node.store().has(manifest).await?);
        if !is_here {
            continue;
        }
        done.parts += 1;
        let standing = if noted { Standing::Copy } else { unnoted(node, part).await? };
        match standing {
            Standing::Copy => mend(node, part, Extent::Copy, done).await,
            Standing::Loose => mend(node, part, Extent::Damaged(bad), done).await,
            Standing::Misplaced => discard(node, part, bad, done).await?,
        }
    }
    if also_unnoted {
        for part in prefetch::earlier_publications(node, held).await? {
            mend(node, &part, Extent::Damaged(bad), done).await;
        }
    }
    Ok(())
}

/// What a part is that is here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// One of the mesh's copies, or it was one until it was damaged.
    Copy,
    /// No copy: it was prefetched, is left of a pull, or was given up and stays where it was received.
    Loose,
    /// … and it must not even lie here.
    Misplaced,
}

/// What a part is that this site is not noted to hold.
async fn unnoted(node: &Node, part: &HeldPart) -> anyhow::Result<Standing> {
    let manifest = Hash(part.part.manifest);
    let was_copy = node.store().was_held(manifest).await? && !node.images().prefetched().has(manifest).await;
    let plan = node.read(|view| view.plan())?;
    Ok(standing(&plan, part, node.site(), was_copy))
}

/// What a part is at a site that is not noted to hold it, and did or did not before.
fn standing(plan: &Plan, part: &HeldPart, site: SiteId, was_copy: bool) -> Standing {
    if !plan.allows(part.origin, site) {
        return Standing::Misplaced;
    }
    // A copy at a site that is drained is one until the mesh has it given up.
    let is_copy = if part.origin == site { plan.counts(part.origin, site) } else { was_copy };
    if is_copy { Standing::Copy } else { Standing::Loose }
}

/// Mends one part, and tells the mesh if a copy is whole that it does not count on, or no more.
async fn mend(node: &Node, part: &HeldPart, extent: Extent<'_>, done: &mut Repaired) {
    let study = part.part.study.as_str();
    let Mended { brought, bytes, nowhere, whole } = match node.images().mend_part(part, extent).await {
        Ok(mended) => mended,
        // Purged or given up meanwhile, or another site's alone.
        Err(ImagesError::Gone | ImagesError::Leaving | ImagesError::Confined) => return,
        Err(error) => {
            if done.failed.len() < NAMED_MAX {
                done.failed.push((study.to_owned(), error.to_string()));
            }
            return;
        }
    };
    if brought > 0 {
        tracing::info!(study, objects = brought, bytes, "damaged images brought back");
    }
    done.brought += brought;
    done.bytes += bytes;
    nowhere.into_iter().for_each(|hash| done.nowhere(Some(study), hash));
    let noted = part.holders.contains(&node.site());
    if matches!(extent, Extent::Copy)
        && whole != noted
        && let Err(error) = copies::report(node, &part.part, whole).await
    {
        tracing::debug!(study, error = format!("{error:#}"), "a mended part is not recorded yet");
        done.recorded = false;
    }
}

/// Wipes a part that must not lie here and that nobody counts on, if it is damaged and the mesh does without: what is
/// missing of it is not brought here.
async fn discard(node: &Node, part: &HeldPart, bad: &BTreeSet<Hash>, done: &mut Repaired) -> anyhow::Result<()> {
    let (study, lacks) = (part.part.study.as_str(), node.store().lacks(Hash(part.part.manifest)).await?);
    let damaged = lacks.iter().filter(|hash| bad.contains(*hash)).count() as u64;
    if damaged == 0 {
        return Ok(());
    }
    // Over the look and what follows it: what is brought here meanwhile would go with it.
    let Some(_leave) = node.images().leave(study) else { return Ok(()) };
    // As of now: this node's state may be of before it was told to be a copy.
    if node.linearize().await.is_err() {
        return Ok(());
    }
    let goes = node.read(|view| {
        let (known, plan) = (view.study(study)?, view.plan()?);
        let now = known.into_iter().flat_map(|study| study.parts).find(|now| now.origin == part.origin);
        Ok(now.is_some_and(|now| {
            let is_counted = now.all_holders().contains(&node.site());
            !is_counted && !plan.allows(now.origin, node.site()) && plan.spares(&now, node.site())
        }))
    })?;
    if goes {
        copies::leaving::wipe(node, part).await?;
        done.discarded += damaged;
        tracing::info!(study, "damaged images that must not lie here are wiped");
    }
    Ok(())
}

/// Brings back what is found damaged, as it is found, until `shutdown`.
pub(crate) async fn run(node: Node, shutdown: CancellationToken) {
    let mut events = node.store().events();
    let (mut wait, mut told) = (RETRY_MIN, 0);
    loop {
        let found = async {
            loop {
                match events.recv().await {
                    Ok(StoreEvent::Quarantined(_)) | Err(RecvError::Lagged(_)) => return true,
                    Ok(_) => {}
                    Err(RecvError::Closed) => return false,
                }
            }
        };
        match shutdown.run_until_cancelled(timeout(wait, found)).await {
            Some(Ok(true)) => sleep(SETTLE).await,
            Some(Err(_)) => {}
            Some(Ok(false)) | None => return,
        }
        let Some(left) = shutdown.run_until_cancelled(round(&node)).await else { return };
        // While that cannot be told, it is as it was.
        if let Some(left) = left {
            node.scrub().set_unrepaired(left);
            if left > 0 && left != told {
                tracing::error!(chunks = left, "ALARM: damaged chunks are on no site that can be asked");
            }
            told = left;
        }
        wait = if left == Some(0) { RETRY_MIN } else { (wait * 2).min(RETRY_MAX) };
    }
}

/// Tries once. Returns how many damaged chunks are left, if that can be told.
async fn round(node: &Node) -> Option<u64> {
    match damaged(node).await {
        Ok(done) => {
            for (study, error) in &done.failed {
                tracing::warn!(study, error, "a damaged study was not repaired");
            }
        }
        Err(error) => tracing::warn!(error = format!("{error:#}"), "damage was not repaired; it is tried again"),
    }
    match node.store().bad_chunks(BAD_AT_ONCE).await {
        Ok(bad) => Some(bad.len() as u64),
        Err(error) => {
            tracing::warn!(%error, "it cannot be told what is damaged");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use maillage_consensus::command::UnixMillisField;
    use maillage_consensus::ids::{Line, Name};
    use maillage_consensus::order::Place;
    use maillage_consensus::placement::{self, Contract, Draining, Holders, Layout, Origin};

    use super::*;
    use crate::gateway::tests::FlakyHome;
    use crate::ingest::tests::rot;
    use crate::roster::testing::site;
    use crate::study_keys::tests::{Machine, study as slices};

    #[tokio::test(start_paused = true)]
    async fn damage_that_cannot_be_counted_is_not_taken_for_repaired() {
        let index = Arc::<FlakyHome>::default();
        let machine = Machine::with_index(Arc::<FlakyHome>::clone(&index));
        let running = machine.run().await;
        let (node, (_, [one, ..])) = (running.node(), slices());
        running.receive(&one).await;
        let manifest = node.store().instance(&one.uid).await.expect("read").expect("listed").entry.manifest;
        rot(&machine.disk(), &node.store().get_manifest(manifest).await.expect("read").expect("stored")).await;
        node.store().instance_manifest(manifest).await.expect_err("it is damaged");
        let shutdown = CancellationToken::new();
        let repairing = maillage_host::spawn(run(node.clone(), shutdown.clone()));
        let unrepaired = || node.scrub().status().unrepaired;
        sleep(RETRY_MIN + Duration::from_secs(1)).await;
        assert_eq!(unrepaired(), 1, "nobody else has it");

        index.set_fails(true);
        sleep(RETRY_MIN * 4).await;
        assert_eq!(unrepaired(), 1, "it is still damaged");
        index.set_fails(false);
        shutdown.cancel();
        repairing.await.expect("it ends");
        running.end().await;
    }

    #[test]
    fn only_what_was_a_copy_is_one_again_and_never_where_it_must_not_lie() {
        let part = crate::commitment::tests::study("1.2", [9; 32], vec![SiteId(4)]).parts.remove(0);
        assert_eq!(part.origin, SiteId(1));
        let holders = Holders::AllBut(vec![SiteId(3)]);
        let contract = Contract { origin: Origin::Any, holders, regions: Vec::new(), copies: 0, zones: 0 };
        let layout = Layout { version: 1, contracts: vec![contract], ..Layout::default() };
        let plan = |drained: &[u64]| {
            let placed = (1..=4).zip(["a", "b", "c", "d"]).map(|(id, zone)| (site(id, zone), Place::default()));
            let draining = Draining { at: UnixMillisField(1), reason: Line::default(), user: Name::default() };
            let standing = |site: &u64| placement::Standing {
                site: SiteId(*site),
                draining: Some(draining.clone()),
                full_since: None,
            };
            let standings: Vec<_> = drained.iter().map(standing).collect();
            Plan::new(layout.clone(), 3, placed.collect(), &standings)
        };
        let at = |site: u64, was_copy: bool, drained: &[u64]| standing(&plan(drained), &part, SiteId(site), was_copy);
        assert_eq!(at(2, false, &[]), Standing::Loose, "prefetched, or left of a pull");
        assert_eq!(at(2, true, &[]), Standing::Copy, "its damage is why it is counted no more");
        assert_eq!([at(3, false, &[]), at(3, true, &[])], [Standing::Misplaced; 2], "by contract");
        assert_eq!(at(2, true, &[2]), Standing::Copy, "the mesh has it given up");
        assert_eq!([at(1, true, &[]), at(1, false, &[])], [Standing::Copy; 2], "received here");
        assert_eq!(at(1, true, &[1]), Standing::Loose, "received here, and given up");
    }
}
