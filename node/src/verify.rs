//! Verification of everything that lies here: every byte of every pack, then whether all that this site
//! should have is among it. It needs no key, so that it also works offline: what was sealed or coded wrongly is found
//! where a study is verified.

use maillage_store::{Hash, ScrubPosition, Store, StoreError};
use serde_json::{Value, json};

use crate::node::Node;

/// Read between two words of progress.
const STEP_BYTES: u64 = 64 << 20;
/// Objects named in one report.
const NAMED_MAX: usize = 1000;
/// Studies read from the state at once.
const STUDIES_PER_PAGE: usize = 256;

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Verified {
    /// Bytes of packs that were read.
    bytes: u64,
    /// Taken out of service by this reading, at most 1,000 of them, and how many.
    damaged: Vec<Hash>,
    damaged_count: u64,
    /// Quarantined now, by this reading and before.
    bad: u64,
    rewritten: u64,
    /// Packs of which the file is gone.
    lost_packs: Vec<String>,
    /// Studies' parts that should be here, and how many of them are not whole, by how many objects.
    parts: u64,
    incomplete: u64,
    missing: u64,
    /// Images that were acknowledged, are still to be coded, and cannot be.
    landing_lost: u64,
}

impl Verified {
    /// As the API and the command line give it.
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "complete": self.damaged_count == 0 && self.bad == 0 && self.missing == 0 && self.landing_lost == 0,
            "opened": false,
            "bytes": self.bytes,
            "damaged": self.damaged_count,
            "damaged_hashes": self.damaged.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "bad": self.bad,
            "rewritten": self.rewritten,
            "lost_packs": self.lost_packs,
            "parts": self.parts,
            "incomplete": self.incomplete,
            "missing": self.missing,
            "landing_lost": self.landing_lost,
        })
    }

    /// Notes whether one part is whole.
    async fn part(&mut self, store: &Store, manifest: Hash) -> Result<(), StoreError> {
        let missing = store.lacks(manifest).await?.len() as u64;
        self.parts += 1;
        self.incomplete += u64::from(missing > 0);
        self.missing += missing;
        Ok(())
    }
}

/// Reads all packs of a store, and tells how many of how many bytes were read.
///
/// # Errors
/// What [`Store::scrub`] fails with.
pub(crate) async fn packs(store: &Store, mut progress: impl FnMut(u64, u64)) -> Result<Verified, StoreError> {
    let total = store.stats().await?.bytes;
    let (mut found, mut position) = (Verified::default(), Some(ScrubPosition::default()));
    while let Some(from) = position {
        let step = store.scrub(from, STEP_BYTES).await?;
        position = step.next;
        found.bytes += step.bytes;
        found.rewritten += step.rewritten;
        found.damaged_count += step.damaged.len() as u64;
        let room = NAMED_MAX - found.damaged.len();
        found.damaged.extend(step.damaged.into_iter().take(room));
        found.lost_packs.extend(step.lost.map(|pack| pack.to_string()));
        progress(found.bytes.min(total), total);
    }
    let stats = store.stats().await?;
    (found.bad, found.landing_lost) = (stats.bad, stats.stuck);
    Ok(found)
}

/// Everything at this node, by what the mesh notes it to hold.
///
/// # Errors
/// When the state or the store cannot be read.
pub(crate) async fn node(node: &Node, progress: impl FnMut(u64, u64)) -> anyhow::Result<Verified> {
    let mut found = packs(node.store(), progress).await?;
    let mut after: Option<String> = None;
    loop {
        let page = node.read(|view| view.studies(after.as_deref(), STUDIES_PER_PAGE))?;
        let noted = page.iter().flat_map(|study| &study.parts).filter(|part| part.holders.contains(&node.site()));
        for part in noted {
            found.part(node.store(), Hash(part.part.manifest)).await?;
        }
        match page.last() {
            Some(last) if page.len() == STUDIES_PER_PAGE => after = Some(last.uid.to_string()),
            _ => return Ok(found),
        }
    }
}

/// Everything in a store whose node does not run, by what it says itself to hold.
///
/// # Errors
/// What [`Store::scrub`] fails with.
pub(crate) async fn offline(store: &Store, progress: impl FnMut(u64, u64)) -> Result<Verified, StoreError> {
    // As it was before: what is found damaged ends a hold.
    let held = store.held().await?;
    let mut found = packs(store, progress).await?;
    for study in held {
        found.part(store, study.manifest).await?;
    }
    Ok(found)
}
