//! Purging: what the mesh has purged goes from this site's disk, and the mesh is told that it has.
//!
//! The list of what a site has still to purge is in the replicated state, so that a site that was away finds it
//! when it is back. Each part is purged and confirmed on its own: one that fails is tried again and holds up none
//! of the others.

use std::collections::BTreeSet;
use std::time::Duration;

use maillage_consensus::command::Command;
use maillage_consensus::ids::{CommandId, Name};
use maillage_consensus::mesh::Tombstone;
use maillage_consensus::outcome::{Outcome, Refusal};
use maillage_store::{Hash, KeyId, Publication, StoreError};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::node::Node;

/// Changes are let settle for so long: a burst of them is one round.
const SETTLE: Duration = Duration::from_millis(200);
/// A round is done at least this often, for what failed before.
const ROUND: Duration = Duration::from_secs(10);
/// Parts read from the state at once.
const PAGE: usize = 64;
/// Between two looks for packs past their day: days end seldom, and a look reads a row for each pack.
const RECLAIM: Duration = Duration::from_secs(3600);
/// Parts whose failure is remembered as said.
const WARNED_MAX: usize = 10_000;

/// What became of one part.
enum Purged {
    Confirmed,
    /// Something of it is still being fetched: after that.
    Later,
    Failed(StoreError),
}

/// Purges and confirms until `shutdown`.
pub(crate) async fn run(node: Node, shutdown: CancellationToken) {
    let mut changes = node.changes();
    let mut warned = BTreeSet::new();
    let mut reclaim_at = Instant::now() + RECLAIM;
    loop {
        if let Err(error) = round(&node, &shutdown, &mut warned).await {
            // Most likely no quorum; what is gone is confirmed later.
            tracing::debug!(error = format!("{error:#}"), "purges not confirmed yet");
        }
        if Instant::now() >= reclaim_at {
            reclaim(&node).await;
            reclaim_at = Instant::now() + RECLAIM;
        }
        let wait = async {
            match tokio::time::timeout(ROUND, changes.changed()).await {
                Ok(Ok(())) => tokio::time::sleep(SETTLE).await,
                Ok(Err(_)) => return false,
                Err(_) => {}
            }
            true
        };
        match shutdown.run_until_cancelled(wait).await {
            Some(true) => changes.mark_unchanged(),
            _ => return,
        }
    }
}

/// Purges and confirms what the mesh knows now.
pub(crate) async fn round(
    node: &Node,
    shutdown: &CancellationToken,
    warned: &mut BTreeSet<[u8; 32]>,
) -> anyhow::Result<()> {
    let mut after: Option<Vec<u8>> = None;
    loop {
        let (page, next) = node.read(|view| view.purges_of(node.site(), after.as_deref(), PAGE))?;
        for tombstone in &page {
            let Some(done) = shutdown.run_until_cancelled(purge(node, tombstone)).await else { return Ok(()) };
            match done? {
                Purged::Confirmed => drop(warned.remove(&tombstone.manifest)),
                Purged::Later => {}
                Purged::Failed(error) => {
                    if warned.len() < WARNED_MAX && warned.insert(tombstone.manifest) {
                        tracing::error!(exam = tombstone.exam.0, %error, "images not purged yet");
                    }
                }
            }
        }
        match next {
            Some(next) => after = Some(next),
            None => return Ok(()),
        }
    }
}

/// Purges one part and says so.
async fn purge(node: &Node, tombstone: &Tombstone) -> anyhow::Result<Purged> {
    let own = tombstone.origin == node.site();
    let _turn = if own { Some(node.images().publishing().await) } else { None };
    if own {
        // After a crash this node may know less than it had said: that it purged this, and what it published since,
        // which would go with it.
        node.linearize().await?;
        let is_pending =
            |one: &Tombstone| one.manifest == tombstone.manifest && one.pending.binary_search(&node.site()).is_ok();
        if !node.read(|view| view.tombstones(tombstone.exam))?.iter().any(is_pending) {
            return Ok(Purged::Confirmed);
        }
    }
    if node.images().is_arriving(tombstone.study.as_str()) {
        return Ok(Purged::Later);
    }
    let publication = Publication {
        study_uid: tombstone.study.to_string(),
        origin: tombstone.origin.0,
        sequence: tombstone.sequence,
        manifest: Hash(tombstone.manifest),
    };
    match node.store().purge(&publication, own).await {
        Ok(()) => {}
        // In seconds: the next round finds it done.
        Err(StoreError::Landed) => return Ok(Purged::Later),
        Err(error) => return Ok(Purged::Failed(error)),
    }
    // Most are in the file no more: but a crash may have come between their publication and this.
    let keys: BTreeSet<KeyId> = tombstone.keys.iter().map(|id| KeyId(id.0)).collect();
    if let Err(error) = node.store().keys().forget(&keys).await {
        return Ok(Purged::Failed(error));
    }
    let Tombstone { exam, study, manifest, .. } = tombstone.clone();
    let command = Command::RecordPurged { exam, study, manifest };
    match node.command(CommandId::random(), Name::default(), command).await? {
        Outcome::Done => {
            tracing::info!(exam = exam.0, instances = tombstone.instances, "images purged");
            Ok(Purged::Confirmed)
        }
        Outcome::Refused(Refusal::DoneAlready) => Ok(Purged::Confirmed),
        other => anyhow::bail!("confirm a purge: {other:?}"),
    }
}

async fn reclaim(node: &Node) {
    match node.store().reclaim().await {
        Ok(reclaimed) if reclaimed.packs > 0 => {
            tracing::info!(reclaimed.packs, reclaimed.unreferenced, "packs past their day written anew");
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "packs past their day were not looked through"),
    }
}
