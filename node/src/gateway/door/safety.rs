//! What a gateway may take for safe: by the same judgement as storage commitment, from a state that a quorum has
//! confirmed.

use std::collections::{BTreeMap, BTreeSet};

use maillage_dicom::Uid;
use maillage_store::Hash;

use super::{is_left_over, not_now};
use crate::commitment::{Coverage, Reference, Verdict, reason, verdicts};
use crate::gateway::wire::{Held, ITEMS_MAX, Item, Referenced, Reply, Safety};
use crate::node::Node;

/// Judges instances.
pub(super) async fn judge(node: &Node, items: &[Item]) -> Reply {
    if let Err(reply) = may_judge(node, items.len()).await {
        return reply;
    }
    match safety(node, items).await {
        Ok(safety) => Reply::Safety(safety),
        Err(error) => not_now(&format!("{error:#}")),
    }
}

/// Judges what is here of instances that a sender names, as its own storage commitment would be.
pub(super) async fn held(node: &Node, references: &[Referenced]) -> Reply {
    if let Err(reply) = may_judge(node, references.len()).await {
        return reply;
    }
    let uid = |text: &str| Uid::parse(text).ok();
    let parse = |one: &Referenced| {
        Some(Reference { sop_class: uid(one.sop_class.as_str())?, sop_instance: uid(one.sop_instance.as_str())? })
    };
    let Some(references) = references.iter().map(parse).collect::<Option<Vec<_>>>() else {
        return not_now(&"a reference is no UID");
    };
    match verdicts(node, &references).await {
        Ok(verdicts) => Reply::Held(verdicts.into_iter().map(Held::from).collect()),
        Err(error) => not_now(&format!("{error:#}")),
    }
}

/// What the mesh's clock reads. Of a state that no quorum has confirmed it may be far behind, and what came after a purge
/// would be taken for left over.
pub(super) async fn time(node: &Node) -> Reply {
    if let Err(error) = node.linearize().await {
        return not_now(&error);
    }
    node.read(|view| view.clock()).map_or_else(|error| not_now(&error), |at| Reply::Time { at: at.0 })
}

impl From<Verdict> for Held {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Safe => Self::Safe,
            Verdict::Pending => Self::Pending,
            Verdict::Failed(reason::NO_SUCH_INSTANCE) => Self::No,
            Verdict::Failed(reason::CLASS_CONFLICT) => Self::OtherClass,
            Verdict::Failed(_) => Self::Contested,
        }
    }
}

/// Nothing is said to be safe from a state that no quorum has confirmed: a copy may be gone since.
async fn may_judge(node: &Node, instances: usize) -> Result<(), Reply> {
    if instances > ITEMS_MAX {
        return Err(not_now(&format!("at most {ITEMS_MAX} instances in one question")));
    }
    node.linearize().await.map(drop).map_err(|error| not_now(&error))
}

async fn safety(node: &Node, items: &[Item]) -> anyhow::Result<Vec<Safety>> {
    let uids: BTreeSet<&str> = items.iter().map(|item| item.study.as_str()).collect();
    let studies: BTreeMap<&str, _> = node.read(|view| {
        let mut studies = BTreeMap::new();
        for uid in &uids {
            studies.insert(*uid, (view.study(uid)?, view.purged_whole_at(uid)?));
        }
        Ok(studies)
    })?;
    let mut coverage = Coverage::default();
    for (study, _) in studies.values() {
        if let Some(study) = study {
            coverage.add_study(node, study).await?;
        }
    }
    Ok(items
        .iter()
        .map(|item| {
            let purged_at = studies.get(item.study.as_str()).and_then(|(_, purged_at)| *purged_at);
            if coverage.is_safe(item.sop_instance.as_str(), Hash(item.dataset)) {
                Safety::Safe
            } else if is_left_over(purged_at, item.here_by) {
                Safety::Purged
            } else {
                Safety::Pending
            }
        })
        .collect())
}
