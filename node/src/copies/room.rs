//! Whether this site has room for more copies, told to the mesh when that changes: a site that is full is not
//! chosen for new copies, and keeps what it has.
//!
//! The mesh is told rarely: a site is full a while before its store refuses, and has room again only well above
//! that.

use std::time::Duration;

use maillage_consensus::command::Command;
use maillage_consensus::ids::{CommandId, Name};
use maillage_consensus::outcome::Outcome;
use tokio_util::sync::CancellationToken;

use crate::node::Node;

/// Between two looks.
const ROUND: Duration = Duration::from_secs(20);
/// … after one whose result the mesh could not be told.
const RETRY: Duration = Duration::from_secs(2);
/// The least room above the reserve with which a site takes copies: a few groups of chunks that are on their way.
const MARGIN_MIN: u64 = 64 << 20;
/// The margin is one part in so many of the reserve, if that is more.
const MARGIN_PARTS: u64 = 4;
/// A full site takes copies again when it has so many margins.
const MARGINS_AGAIN: u64 = 3;
/// The format that has a word for it.
const FORMAT: u8 = 2;

/// Tells the mesh until `shutdown`.
pub(crate) async fn run(node: Node, shutdown: CancellationToken) {
    loop {
        let pause = match round(&node).await {
            Ok(()) => ROUND,
            Err(error) => {
                tracing::debug!(error = format!("{error:#}"), "the mesh does not know yet whether there is room here");
                RETRY
            }
        };
        if shutdown.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
    }
}

async fn round(node: &Node) -> anyhow::Result<()> {
    let free = node.store().space().await?.free;
    let (format, plan) = node.read(|view| Ok((view.format()?, view.plan()?)))?;
    let Some(known) = plan.ground(node.site()).filter(|_| format >= FORMAT) else { return Ok(()) };
    let reserve = node.config().storage.reserve_mib.saturating_mul(1 << 20);
    let full = is_full(free, reserve, known.is_full);
    if full == known.is_full {
        return Ok(());
    }
    match node.command(CommandId::random(), Name::default(), Command::ReportRoom { full }).await? {
        Outcome::Done if full => tracing::warn!(free_mib = free >> 20, "no room for more copies: others take them"),
        Outcome::Done => tracing::info!(free_mib = free >> 20, "room for copies again"),
        other => anyhow::bail!("report room: {other:?}"),
    }
    Ok(())
}

/// Whether a site with so many bytes free counts as full, which it did or did not before.
fn is_full(free: u64, reserve: u64, was: bool) -> bool {
    let margin = (reserve / MARGIN_PARTS).max(MARGIN_MIN);
    let margins = if was { MARGINS_AGAIN } else { 1 };
    free < reserve.saturating_add(margin.saturating_mul(margins))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_is_full_before_its_store_refuses_and_takes_copies_again_well_above_that() {
        const GIB: u64 = 1 << 30;
        assert!(!is_full(2 * GIB, GIB, false));
        assert!(is_full(GIB + GIB / 5, GIB, false), "a fifth above the reserve");
        assert!(is_full(GIB + GIB / 2, GIB, true), "it was full: not yet");
        assert!(!is_full(GIB + GIB / 2, GIB, false), "it was not: not yet either");
        assert!(!is_full(2 * GIB, GIB, true));
        assert!(is_full(63 << 20, 0, false), "without a reserve too");
        assert!(is_full(u64::MAX - 1, u64::MAX, false), "a reserve beyond any disk");
    }
}
