//! What a gateway may take for safe: by the same judgement as storage commitment, from a state that a quorum has
//! confirmed.

use std::collections::{BTreeMap, BTreeSet};

use maillage_consensus::command::UnixMillisField;
use maillage_store::Hash;

use super::not_now;
use crate::commitment::Coverage;
use crate::gateway::wire::{ITEMS_MAX, Item, Reply, Safety};
use crate::node::Node;

/// Judges instances.
pub(super) async fn judge(node: &Node, items: &[Item]) -> Reply {
    if items.len() > ITEMS_MAX {
        return not_now(&format!("at most {ITEMS_MAX} instances in one question"));
    }
    // Nothing is said to be safe from a state that no quorum has confirmed: a copy may be gone since.
    if let Err(error) = node.linearize().await {
        return not_now(&error);
    }
    match safety(node, items).await {
        Ok(safety) => Reply::Safety(safety),
        Err(error) => not_now(&format!("{error:#}")),
    }
}

async fn safety(node: &Node, items: &[Item]) -> anyhow::Result<Vec<Safety>> {
    let uids: BTreeSet<&str> = items.iter().map(|item| item.study.as_str()).collect();
    let studies: BTreeMap<&str, _> = node.read(|view| {
        let mut studies = BTreeMap::new();
        for uid in &uids {
            studies.insert(*uid, (view.study(uid)?, view.purged_at(uid)?));
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
            let (study, purged_at) = studies.get(item.study.as_str()).map_or((None, None), |(s, p)| (s.as_ref(), *p));
            if coverage.is_safe(item.sop_instance.as_str(), Hash(item.dataset)) {
                Safety::Safe
            } else if study.is_none() && purged_at.is_some_and(|UnixMillisField(at)| item.received_at <= at) {
                Safety::Purged
            } else {
                Safety::Pending
            }
        })
        .collect())
}
