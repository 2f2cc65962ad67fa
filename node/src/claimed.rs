//! Images of exams that are claimed here: brought as they are claimed, each at once, for their readers wait.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt as _};
use maillage_consensus::mesh::HeldPart;
use maillage_store::Hash;
use maillage_transport::chunk::Class;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::copies::{report, retain_allowed};
use crate::node::Node;

/// What failed is tried again after this long, whatever changes.
const RETRY: Duration = Duration::from_secs(10);
/// Claims of one site whose images are brought at once; a centre has at most 7 seats.
const CLAIMED_MAX: usize = 64;

type Brought = (HeldPart, anyhow::Result<()>);

/// Brings the images of the exams that are claimed at this site until `shutdown`. One that comes slowly holds up none
/// of the others.
pub(crate) async fn run(node: Node, shutdown: CancellationToken) {
    let mut changes = node.changes();
    let (mut under_way, mut failed) = (BTreeSet::new(), BTreeSet::new());
    let mut brought: FuturesUnordered<BoxFuture<'static, Brought>> = FuturesUnordered::new();
    let mut look_at = Instant::now();
    loop {
        changes.mark_unchanged();
        for held in claimed_parts(&node).unwrap_or_default() {
            let is_due = Instant::now() >= look_at || !failed.contains(&held.part.manifest);
            if is_due && under_way.insert(held.part.manifest) {
                let node = node.clone();
                brought.push(Box::pin(async move {
                    let result = bring(&node, &held).await;
                    (held, result)
                }));
            }
        }
        if Instant::now() >= look_at {
            look_at = Instant::now() + RETRY;
        }
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            Some((held, result)) = brought.next() => {
                under_way.remove(&held.part.manifest);
                match result {
                    Ok(()) => drop(failed.remove(&held.part.manifest)),
                    Err(error) => if failed.insert(held.part.manifest) {
                        let study = held.part.study.as_str();
                        tracing::warn!(study, error = format!("{error:#}"), "images of a claimed exam not here yet");
                    },
                }
            }
            changed = changes.changed() => if changed.is_err() {
                return;
            },
            () = tokio::time::sleep_until(look_at) => {}
        }
    }
}

async fn bring(node: &Node, held: &HeldPart) -> anyhow::Result<()> {
    let was_prefetched = node.images().prefetched().has(Hash(held.part.manifest)).await;
    let brought = node.images().pull_part(held, Class::Reader, None).await?;
    node.metrics().prefetch_claim(was_prefetched && brought.fetched == 0);
    report(node, &held.part, true).await
}

/// Parts of the exams claimed at this site that are not here.
fn claimed_parts(node: &Node) -> anyhow::Result<Vec<HeldPart>> {
    let studies = node.read(|view| {
        let mut studies = Vec::new();
        for exam in view.claimed_at(node.site(), CLAIMED_MAX)? {
            for uid in &exam.studies {
                studies.extend(view.study(uid.as_str())?);
            }
        }
        Ok(studies)
    })?;
    let parts = studies.into_iter().flat_map(|study| study.parts);
    let mut lacking = parts.filter(|held| !held.holders.contains(&node.site())).collect();
    retain_allowed(node, &mut lacking)?;
    Ok(lacking)
}
