//! What is noted, by the parts that the mesh knows.
//!
//! A study that still comes is published anew again and again, and what one publication lists, the later ones list too.
//! So what is here of an earlier one stays until the manifest of the latest is here, by which all that both list is kept
//! from then on: nothing comes twice, and what came is read from here meanwhile.

use std::collections::BTreeMap;

use maillage_consensus::command::StudyPart;
use maillage_consensus::ids::SiteId;
use maillage_consensus::mesh::{HeldPart, Study};
use maillage_store::{Hash, StoreError, StudyManifest};

use super::ledger::Note;
use super::wishes::may_lie_here;
use crate::node::Node;

/// Noted publications, by what is to become of them.
#[derive(Debug, Default)]
pub(super) struct Sorted {
    /// Those that stay, by the latest publication of their part: it, or those before it while its manifest is not here.
    pub(super) stay: BTreeMap<Hash, Vec<Hash>>,
    /// Those that go, by their study and the publication that took their place, which is here; none: they must not be
    /// here, or were purged.
    pub(super) go: BTreeMap<(String, Option<Hash>), Vec<Hash>>,
}

/// Sorts what is noted, but for what is being brought by somebody else: that is theirs.
pub(super) async fn sorted(node: &Node, noted: &BTreeMap<Hash, Note>) -> anyhow::Result<Sorted> {
    let mut sorted = Sorted::default();
    for (manifest, note) in noted {
        if node.images().is_arriving(&note.study) {
            continue;
        }
        let latest = latest(node, *manifest, &note.study).await?;
        let stays = match latest {
            Some(latest) => latest == *manifest || !node.store().has(latest).await?,
            None => false,
        };
        match latest {
            Some(latest) if stays => sorted.stay.entry(latest).or_default().push(*manifest),
            later => sorted.go.entry((note.study.clone(), later)).or_default().push(*manifest),
        }
    }
    Ok(sorted)
}

/// Earlier publications of a study's parts that are noted, each as its part is known now.
///
/// # Errors
/// When the state or the store cannot be read.
pub(crate) async fn earlier_publications(node: &Node, study: &Study) -> anyhow::Result<Vec<HeldPart>> {
    let mut found = Vec::new();
    for (manifest, note) in node.images().prefetched().all().await {
        if note.study != study.uid.as_str() {
            continue;
        }
        let Some(earlier) = published(node, manifest).await? else { continue };
        let (_, last_purged) = node.read(|view| view.purged_of(SiteId(earlier.origin), &note.study))?;
        if let Some(held) = took_its_place(&study.parts, &earlier, last_purged) {
            let part = StudyPart { manifest: manifest.0, ..held.part.clone() };
            found.push(HeldPart { part, ..held.clone() });
        }
    }
    Ok(found)
}

/// The latest publication of the part of which this is one, if the mesh knows the part still, and it may lie here.
async fn latest(node: &Node, manifest: Hash, study: &str) -> anyhow::Result<Option<Hash>> {
    let is_it = |held: &HeldPart| held.part.manifest == manifest.0;
    let known = node.read(|view| view.study(study))?;
    let is_latest = known.is_some_and(|study| study.parts.iter().any(is_it));
    let earlier = if is_latest { None } else { published(node, manifest).await? };
    let latest = node.read(|view| {
        let parts = view.study(study)?.map(|study| study.parts).unwrap_or_default();
        let held = match &earlier {
            None => parts.iter().find(|held| is_it(held)),
            Some(earlier) => {
                let (_, last_purged) = view.purged_of(SiteId(earlier.origin), study)?;
                took_its_place(&parts, earlier, last_purged)
            }
        };
        let Some(held) = held else { return Ok(None) };
        Ok(may_lie_here(node, view, held)?.then_some(Hash(held.part.manifest)))
    })?;
    Ok(latest)
}

/// What a publication lists, if its manifest is here and can be read.
async fn published(node: &Node, manifest: Hash) -> Result<Option<StudyManifest>, StoreError> {
    match node.store().study_manifest(manifest).await {
        Err(StoreError::Corrupt(_) | StoreError::Missing(_) | StoreError::Manifest(_)) => Ok(None),
        read => read,
    }
}

/// Of which part this is an earlier publication, unless it was purged, and the part is of what came since.
fn took_its_place<'a>(parts: &'a [HeldPart], earlier: &StudyManifest, last_purged: u64) -> Option<&'a HeldPart> {
    let is_later = |held: &&HeldPart| held.origin.0 == earlier.origin && held.part.sequence > earlier.sequence;
    parts.iter().find(is_later).filter(|_| earlier.sequence > last_purged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commitment::tests::study;

    #[test]
    fn a_publication_is_known_by_the_one_that_took_its_place_until_it_is_purged() {
        let part = |origin: u64, sequence: u64, manifest: u8| {
            let mut held = study("1.2", [manifest; 32], vec![SiteId(origin)]).parts.remove(0);
            (held.origin, held.part.sequence) = (SiteId(origin), sequence);
            held
        };
        let parts = [part(2, 9, 1), part(3, 4, 2)];
        let place = |origin: u64, sequence: u64, last_purged: u64| {
            let earlier = StudyManifest::new("1.2".to_owned(), origin, sequence, Vec::new());
            took_its_place(&parts, &earlier, last_purged).map(|held| held.part.manifest[0])
        };
        assert_eq!([place(2, 8, 0), place(3, 1, 0)], [Some(1), Some(2)], "however many came in between");
        assert_eq!(place(3, 8, 0), None, "a node that lags may know an earlier one");
        assert_eq!(place(4, 1, 0), None, "another site's");
        assert_eq!([place(3, 3, 3), place(3, 2, 3)], [None; 2], "purged: what came since is another's");
        assert_eq!(place(3, 3, 2), Some(2), "only what was before it was");
    }
}
