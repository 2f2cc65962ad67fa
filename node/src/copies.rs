//! Copies: every node pulls the images that it is to hold, and says when it durably does.
//!
//! Where copies belong is a pure function of the replicated state, so that all sites agree without
//! asking. A site that returns or joins finds what it lacks in the list of studies that have too few
//! copies. A hold is reported only after the fsync behind every chunk of it.

use std::collections::BTreeSet;
use std::time::Duration;

use maillage_consensus::command::Command;
use maillage_consensus::ids::{CommandId, Name, SiteId};
use maillage_consensus::mesh::{HeldPart, Site, Study};
use maillage_store::StoreEvent;
use maillage_transport::chunk::Class;
use maillage_transport::placement::{self, SiteWeight};
use tokio_util::sync::CancellationToken;

use crate::node::Node;

/// Changes are let settle for so long: a burst of them is one round.
const SETTLE: Duration = Duration::from_millis(200);
/// A round is done at least this often, for what failed before.
const ROUND: Duration = Duration::from_secs(10);
/// Studies looked at in one round; the rest follow in the next.
const STUDIES_PER_ROUND: usize = 512;

/// Claims of one site whose images are brought at once; a centre has at most 7 seats.
const CLAIMED_MAX: usize = 64;

/// Pulls and reports copies until `shutdown`.
pub(crate) async fn run(node: Node, shutdown: CancellationToken) {
    let mut changes = node.changes();
    let mut events = node.store().events();
    let mut after: Option<String> = None;
    let mut reported = false;
    loop {
        if !reported {
            match report_all(&node).await {
                Ok(()) => reported = true,
                Err(error) => tracing::debug!(error = format!("{error:#}"), "holdings not compared yet"),
            }
        }
        if let Err(error) = bring_claimed(&node).await {
            tracing::warn!(error = format!("{error:#}"), "images of a claimed exam not here yet");
        }
        match round(&node, after.as_deref(), &shutdown).await {
            Ok(next) => after = next,
            Err(error) => tracing::warn!(error = format!("{error:#}"), "copies: round failed"),
        }
        // The next page at once; otherwise at a change, a lost hold, or the end of the round's time.
        if after.is_none() {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(ROUND) => {}
                changed = changes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    tokio::time::sleep(SETTLE).await;
                    changes.mark_unchanged();
                }
                event = events.recv() => if matches!(event, Ok(StoreEvent::HoldLost(_)) | Err(_)) {
                    reported = false;
                    tokio::time::sleep(SETTLE).await;
                },
            }
        }
        if shutdown.is_cancelled() {
            return;
        }
    }
}

/// Tells the mesh where its list of this site's holdings differs from what the store holds.
async fn report_all(node: &Node) -> anyhow::Result<()> {
    let held: BTreeSet<[u8; 32]> = node.store().held().await?.into_iter().map(|study| study.manifest.0).collect();
    let mut after: Option<String> = None;
    loop {
        let page = node.read(|view| view.studies(after.as_deref(), STUDIES_PER_ROUND))?;
        for study in &page {
            for part in &study.parts {
                let says = part.holders.contains(&node.site());
                let is = held.contains(&part.part.manifest);
                if says != is {
                    report(node, part, is).await?;
                }
            }
        }
        match page.last() {
            Some(last) if page.len() == STUDIES_PER_ROUND => after = Some(last.uid.to_string()),
            _ => return Ok(()),
        }
    }
}

async fn report(node: &Node, held: &HeldPart, holds: bool) -> anyhow::Result<()> {
    let command = Command::RecordHolding { study: held.part.study.clone(), manifest: held.part.manifest, holds };
    node.command(CommandId::random(), Name::default(), command).await?;
    Ok(())
}

/// Brings the images of the exams that are claimed at this site: their reader waits.
async fn bring_claimed(node: &Node) -> anyhow::Result<()> {
    let studies = node.read(|view| {
        let mut studies = Vec::new();
        for exam in view.claimed_at(node.site(), CLAIMED_MAX)? {
            for uid in &exam.studies {
                studies.extend(view.study(uid.as_str())?);
            }
        }
        Ok(studies)
    })?;
    for held in studies.iter().flat_map(|study| &study.parts) {
        if !held.holders.contains(&node.site()) {
            node.images().pull_part(held, Class::Urgent, None).await?;
            report(node, held, true).await?;
        }
    }
    Ok(())
}

/// Looks at one page of the studies that have too few copies; returns where the next page starts.
async fn round(node: &Node, after: Option<&str>, shutdown: &CancellationToken) -> anyhow::Result<Option<String>> {
    let (uids, sites, mesh, clock) = node.read(|view| {
        Ok((view.studies_below_wanted(after, STUDIES_PER_ROUND)?, view.sites()?, view.mesh()?, view.clock()?))
    })?;
    let copies = mesh.map_or(1, |mesh| usize::from(mesh.copies));
    let grace_ms = node.config().storage.placement_grace_s.saturating_mul(1000);
    let eligible: Vec<&Site> = sites
        .iter()
        .filter(|site| site.description.weight > 0)
        .filter(|site| site.session_open || site.away_since.is_some_and(|at| clock.0.saturating_sub(at.0) < grace_ms))
        .collect();
    for uid in &uids {
        if shutdown.is_cancelled() {
            return Ok(None);
        }
        let Some(study) = node.read(|view| view.study(uid))? else { continue };
        if let Err(error) = pull(node, &study, &eligible, copies).await {
            tracing::warn!(study = %uid, error = format!("{error:#}"), "copy not made yet");
        }
    }
    Ok(if uids.len() == STUDIES_PER_ROUND { uids.last().cloned() } else { None })
}

async fn pull(node: &Node, study: &Study, eligible: &[&Site], copies: usize) -> anyhow::Result<()> {
    for held in &study.parts {
        if held.holders.contains(&node.site()) {
            continue;
        }
        if !belongs(study.uid.as_str(), &held.holders, eligible, copies).contains(&node.site()) {
            continue;
        }
        let bytes = held.part.bytes;
        let started = tokio::time::Instant::now();
        node.images().pull_part(held, Class::Background, None).await?;
        report(node, held, true).await?;
        let seconds = started.elapsed().as_secs_f64();
        tracing::info!(study = %study.uid, bytes, seconds, "copy made");
    }
    Ok(())
}

/// The sites that are to hold a study's part: those that do and are there, then others by rendezvous
/// hashing until there are `copies`, zones not covered yet first.
fn belongs(study: &str, holders: &[SiteId], eligible: &[&Site], copies: usize) -> BTreeSet<SiteId> {
    let weights: Vec<SiteWeight<'_>> = eligible
        .iter()
        .map(|site| SiteWeight {
            id: site.id.0,
            zone: site.description.zone.as_str(),
            weight: f64::from(site.description.weight),
        })
        .collect();
    let ranked = placement::choose(&blake3::hash(study.as_bytes()), &weights, weights.len());
    let zone_of = |id: SiteId| eligible.iter().find(|site| site.id == id).map(|site| site.description.zone.as_str());
    let mut chosen: BTreeSet<SiteId> = holders.iter().copied().filter(|id| zone_of(*id).is_some()).collect();
    let mut zones: BTreeSet<&str> = chosen.iter().filter_map(|id| zone_of(*id)).collect();
    for only_new_zones in [true, false] {
        for id in ranked.iter().map(|id| SiteId(*id)) {
            let Some(zone) = zone_of(id) else { continue };
            if chosen.len() < copies && !chosen.contains(&id) && (!only_new_zones || !zones.contains(zone)) {
                chosen.insert(id);
                zones.insert(zone);
            }
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use maillage_consensus::command::{SiteDescription, UnixMillisField};
    use maillage_consensus::ids::PeerKey;

    use super::*;

    fn site(id: u64, zone: &str) -> Site {
        Site {
            id: SiteId(id),
            description: SiteDescription {
                key: PeerKey::new(vec![1; 38]).expect("a key"),
                name: Name::fitted(&format!("site-{id}")),
                zone: Name::fitted(zone),
                addresses: Vec::new(),
                weight: 100,
            },
            joined_at: UnixMillisField(0),
            sessions: 1,
            session_open: true,
            away_since: None,
        }
    }

    #[test]
    fn copies_go_to_distinct_zones_and_holders_keep_theirs() {
        let sites: Vec<Site> =
            [(1, "a"), (2, "a"), (3, "b"), (4, "c"), (5, "c")].map(|(id, zone)| site(id, zone)).into();
        let eligible: Vec<&Site> = sites.iter().collect();
        for n in 0..50 {
            let study = format!("1.2.{n}");
            let chosen = belongs(&study, &[SiteId(2)], &eligible, 3);
            assert_eq!(chosen.len(), 3);
            assert!(chosen.contains(&SiteId(2)), "who received it holds it");
            let zones: BTreeSet<&str> = sites
                .iter()
                .filter(|site| chosen.contains(&site.id))
                .map(|site| site.description.zone.as_str())
                .collect();
            assert_eq!(zones.len(), 3, "one copy a zone");
            let as_they_fill: BTreeSet<SiteId> =
                belongs(&study, &chosen.iter().copied().collect::<Vec<_>>(), &eligible, 3);
            assert_eq!(as_they_fill, chosen, "a copy that is made changes nothing");
        }
    }

    #[test]
    fn fewer_zones_than_copies_still_give_all_copies() {
        let sites: Vec<Site> = [(1, "a"), (2, "a"), (3, "a")].map(|(id, zone)| site(id, zone)).into();
        let eligible: Vec<&Site> = sites.iter().collect();
        assert_eq!(belongs("1.2", &[SiteId(1)], &eligible, 3).len(), 3);
        assert_eq!(belongs("1.2", &[SiteId(1)], &eligible[..1], 3).len(), 1);
        let gone = [SiteId(9)];
        assert!(!belongs("1.2", &gone, &eligible, 2).contains(&SiteId(9)), "a holder that is gone does not count");
    }
}
