//! Giving up copies: images that must not leave the site that received them, and have.
//!
//! A request may come after its images and say that the patient refuses the transfer, or the patient may
//! withdraw a consent. Copies elsewhere are then given up, but the last whole one never is: first the site
//! that received the images reads every byte of them, brings back what is damaged while the copies are still
//! there, and says so to the mesh. Only then the others release theirs, and say that.

use std::collections::BTreeSet;

use maillage_consensus::command::Command;
use maillage_consensus::ids::{CommandId, Name};
use maillage_consensus::mesh::HeldPart;
use maillage_store::{Hash, Hold, StoreError};
use maillage_transport::chunk::Class;
use tokio_util::sync::CancellationToken;

use super::{ROUND, SETTLE, report};
use crate::node::Node;

/// Studies read from the state at once; there are few, and each leaves the list in the end.
const STUDIES_AT_ONCE: usize = 64;

/// Gives up copies, and verifies what other sites are to give up, until `shutdown`.
pub(crate) async fn run(node: Node, shutdown: CancellationToken) {
    let mut changes = node.changes();
    let mut failed = BTreeSet::new();
    loop {
        changes.mark_unchanged();
        let round = async {
            if let Err(error) = round(&node, &mut failed).await {
                tracing::debug!(error = format!("{error:#}"), "images of refused transfers: round failed");
            }
            // What failed is tried again after a while, whatever changes.
            match tokio::time::timeout(ROUND, changes.changed()).await {
                Ok(changed) => changed.is_ok(),
                Err(_) => true,
            }
        };
        match shutdown.run_until_cancelled(round).await {
            Some(true) => {}
            _ => return,
        }
        tokio::time::sleep(SETTLE).await;
    }
}

async fn round(node: &Node, failed: &mut BTreeSet<[u8; 32]>) -> anyhow::Result<()> {
    let mut after: Option<String> = None;
    loop {
        let page = node.read(|view| view.strayed(after.as_deref(), STUDIES_AT_ONCE))?;
        for (study, vouched) in &page {
            for held in &study.parts {
                let is_vouched = vouched.contains(&held.part.manifest);
                if node.read(|view| view.exam(held.exam))?.is_none_or(|exam| !exam.is_confined()) {
                    continue;
                }
                match tend(node, held, is_vouched).await {
                    Ok(()) => drop(failed.remove(&held.part.manifest)),
                    Err(error) => {
                        if failed.insert(held.part.manifest) {
                            let (study, error) = (study.uid.as_str(), format!("{error:#}"));
                            tracing::warn!(study, error, "copies of images that must not leave their site remain");
                        }
                    }
                }
            }
        }
        match page.last() {
            Some((last, _)) if page.len() == STUDIES_AT_ONCE => after = Some(last.uid.to_string()),
            _ => return Ok(()),
        }
    }
}

/// What this site has to do about one part.
async fn tend(node: &Node, held: &HeldPart, is_vouched: bool) -> anyhow::Result<()> {
    if held.origin == node.site() {
        return if is_vouched || !held.is_elsewhere() { Ok(()) } else { vouch(node, held).await };
    }
    if !is_vouched || !held.holders.contains(&held.origin) {
        return Ok(());
    }
    // As of now: the site that vouched may have lost it since.
    node.linearize().await?;
    let still = node.read(|view| {
        let study = view.study(held.part.study.as_str())?;
        let part = study.and_then(|study| study.parts.into_iter().find(|part| part.origin == held.origin));
        let Some(part) = part.filter(|part| part.holders.contains(&held.origin)) else { return Ok(false) };
        Ok(!view.may_hold(node.site(), &part)?)
    })?;
    if still { give_up(node, held).await } else { Ok(()) }
}

/// Reads every byte of what this site received, and tells the mesh that it holds it.
async fn vouch(node: &Node, held: &HeldPart) -> anyhow::Result<()> {
    let manifest = Hash(held.part.manifest);
    let whole = match node.store().verify_study(manifest).await {
        Ok(found) => found.missing.is_empty() && found.corrupt.is_empty() && found.contradictory.is_empty(),
        Err(StoreError::Missing(_) | StoreError::Corrupt(_)) => false,
        Err(error) => return Err(error.into()),
    };
    if !whole {
        // The copies are still there: what is damaged here is brought back, and read in the next round.
        node.images().pull_part(held, Class::Repair, None).await?;
        anyhow::bail!("what this site received was damaged, and was brought back from the copies");
    }
    if matches!(node.store().hold(manifest).await?, Hold::Incomplete { .. }) {
        anyhow::bail!("what this site received is no longer whole");
    }
    report(node, &held.part, true).await
}

/// Releases a copy that this site must not have, and says so. What is left of its bytes is reached by
/// nobody: the study is not shown here, and nothing asks a site for a copy that it does not hold.
async fn give_up(node: &Node, held: &HeldPart) -> anyhow::Result<()> {
    for (part, _) in held.publications().filter(|(_, holders)| holders.contains(&node.site())) {
        release(node, Hash(part.manifest)).await?;
        let command = Command::RecordHolding { study: part.study.clone(), manifest: part.manifest, holds: false };
        node.command(CommandId::random(), Name::default(), command).await?;
        tracing::info!(study = %held.part.study, "copy given up: the patient refuses the transfer");
    }
    Ok(())
}

/// Ends this site's hold on one publication of a part, durably. Reclaiming the bytes of what nothing holds
/// begins here.
async fn release(node: &Node, manifest: Hash) -> Result<(), StoreError> {
    node.store().release(manifest).await
}
