//! What a member asks of the state that is not in this node's store: by the rules of `judge`.

use std::collections::BTreeSet;

use maillage_consensus::ids::SiteId;
use maillage_consensus::mesh::{HeldPart, Study};
use maillage_store::Hash;

use super::judge::{Coverage, Verdict, ZONES_MIN, publications};
use super::record::Reference;
use super::round::{here, judge};
use crate::node::Node;

/// What is said of references, by what this node's store has of them and the state says of it: in their order.
///
/// # Errors
/// The state or the store cannot be read.
pub(crate) async fn verdicts(node: &Node, references: &[Reference]) -> anyhow::Result<Vec<Verdict>> {
    let mut found = Vec::with_capacity(references.len());
    for reference in references {
        found.push(here(node, reference).await?);
    }
    let mut coverage = Coverage::default();
    let uids: BTreeSet<&str> = found.iter().flatten().map(|here| here.study.as_str()).collect();
    for uid in uids {
        if let Some(study) = node.read(|view| view.study(uid))? {
            coverage.add_study(node, &study).await?;
        }
    }
    let judged = references.iter().zip(&found);
    Ok(judged.map(|(reference, here)| judge(node, reference, here.as_ref(), &coverage)).collect())
}

impl Coverage {
    /// Counts all publications of a study. One whose manifest nobody who answers has does not count.
    ///
    /// # Errors
    /// The state cannot be read.
    pub(crate) async fn add_study(&mut self, node: &Node, study: &Study) -> anyhow::Result<()> {
        let grace_ms = node.config().storage.placement_grace_s.saturating_mul(1000);
        let (sites, plan, now) = node.read(|view| Ok((view.sites()?, view.plan()?, node.state_time(view)?)))?;
        for publication in publications(study, &sites, &plan, now.0, grace_ms) {
            match node.images().published(publication.manifest, &holders(study, publication.manifest)).await {
                Ok(manifest) => self.add(&publication.zones, &manifest),
                Err(error) => tracing::debug!(%error, "a publication cannot be looked into"),
            }
        }
        Ok(())
    }

    /// Whether enough zones have these bytes of an instance.
    pub(crate) fn is_safe(&self, sop_instance: &str, dataset: Hash) -> bool {
        self.zones(sop_instance, dataset) >= ZONES_MIN
    }
}

/// Who holds a publication.
fn holders(study: &Study, manifest: Hash) -> Vec<SiteId> {
    let publications = study.parts.iter().flat_map(HeldPart::publications);
    publications.filter(|(part, _)| part.manifest == manifest.0).flat_map(|(_, holders)| holders).copied().collect()
}
