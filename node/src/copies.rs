//! Copies: every node pulls the images that it is to hold, and says when it durably does.
//!
//! Where copies belong is a pure function of the replicated state, so that all sites agree without
//! asking. A site that returns or joins finds what it lacks in the list of studies that have too few
//! copies. A hold is reported only after the fsync behind every chunk of it.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::stream::{self, StreamExt as _};
use maillage_consensus::View;
use maillage_consensus::command::Command;
use maillage_consensus::ids::{CommandId, Name, SiteId};
use maillage_consensus::machine::ApplyError;
use maillage_consensus::mesh::{Counts, HeldPart, Site};
use maillage_store::StoreEvent;
use maillage_transport::chunk::Class;
use maillage_transport::placement::{self, SiteWeight};
use tokio_util::sync::CancellationToken;

use crate::node::Node;

pub(crate) mod confined;

/// Changes are let settle for so long: a burst of them is one round.
const SETTLE: Duration = Duration::from_millis(200);
/// A round is done at least this often, for what failed before.
const ROUND: Duration = Duration::from_secs(10);
/// Studies read from the state at once.
const STUDIES_PER_ROUND: usize = 512;
/// Studies pulled at once: one that waits for a slow holder does not hold up the others.
const PULLS: usize = 4;
/// Parts whose failure is remembered as said.
const WARNED_MAX: usize = 10_000;

/// Pulls and reports copies until `shutdown`.
pub(crate) async fn run(node: Node, shutdown: CancellationToken) {
    let mut changes = node.changes();
    let mut events = node.store().events();
    let mut sweep = Sweep::default();
    let mut reported = false;
    loop {
        if !reported {
            match report_all(&node).await {
                Ok(()) => reported = true,
                Err(error) => tracing::debug!(error = format!("{error:#}"), "holdings not compared yet"),
            }
        }
        if let Err(error) = sweep.run(&node, &shutdown).await {
            tracing::warn!(error = format!("{error:#}"), "copies: round failed");
        }
        let pause = tokio::time::sleep(ROUND);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = &mut pause => break,
                changed = changes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    tokio::time::sleep(SETTLE).await;
                    changes.mark_unchanged();
                    if sweep.is_stale(&node) {
                        break;
                    }
                }
                event = events.recv() => if matches!(event, Ok(StoreEvent::HoldLost(_)) | Err(_)) {
                    reported = false;
                    break;
                },
            }
        }
    }
}

/// Tells the mesh where its list of this site's holdings differs from what the store holds.
async fn report_all(node: &Node) -> anyhow::Result<()> {
    let mut after: Option<String> = None;
    loop {
        // The state first, then the store: a study is held before it is published, so that one
        // published meanwhile is not taken for lost.
        let page = node.read(|view| view.studies(after.as_deref(), STUDIES_PER_ROUND))?;
        let held: BTreeSet<[u8; 32]> = node.store().held().await?.into_iter().map(|study| study.manifest.0).collect();
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

pub(crate) async fn report(node: &Node, held: &HeldPart, holds: bool) -> anyhow::Result<()> {
    let command = Command::RecordHolding { study: held.part.study.clone(), manifest: held.part.manifest, holds };
    node.command(CommandId::random(), Name::default(), command).await?;
    Ok(())
}

/// Keeps the parts that may leave the sites that received them.
pub(crate) fn retain_allowed(node: &Node, parts: &mut Vec<HeldPart>) -> anyhow::Result<()> {
    let allowed =
        node.read(|view| parts.iter().map(|held| view.may_hold(node.site(), held)).collect::<Result<Vec<_>, _>>())?;
    let mut allowed = allowed.into_iter();
    parts.retain(|_| allowed.next().unwrap_or(false));
    Ok(())
}

/// What a pass over the studies looked at, so that the next knows whether there is anything new.
#[derive(Debug, Default)]
struct Sweep {
    /// The sites that could hold copies when all studies were last looked at and no copy failed, and
    /// how many copies had been lost by then.
    looked_at_all: Option<(BTreeSet<SiteId>, u64)>,
    /// … and at the last pass, whatever became of it.
    attempted: BTreeSet<SiteId>,
    seen: Option<Counts>,
    warned: BTreeSet<[u8; 32]>,
}

impl Sweep {
    /// Whether studies or sites have changed since the last pass.
    fn is_stale(&self, node: &Node) -> bool {
        let now = node.read(|view| Ok((view.counts()?, eligible(node, view)?)));
        now.is_ok_and(|(counts, sites)| {
            let ids: BTreeSet<SiteId> = sites.iter().map(|site| site.id).collect();
            ids != self.attempted || self.seen.is_none_or(|seen| copies_of(&seen) != copies_of(&counts))
        })
    }

    /// Pulls what belongs here: of the studies with too few copies, or of all when the sites that can
    /// hold copies have changed or one lost a copy, since the state counts a holder that is gone until it
    /// says otherwise: a study may have too few without being in the list.
    async fn run(&mut self, node: &Node, shutdown: &CancellationToken) -> anyhow::Result<()> {
        let (counts, sites, mesh) = node.read(|view| Ok((view.counts()?, eligible(node, view)?, view.mesh()?)))?;
        let copies = mesh.map_or(1, |mesh| usize::from(mesh.copies)).min(sites.len());
        let ids: BTreeSet<SiteId> = sites.iter().map(|site| site.id).collect();
        let as_of = Some((ids.clone(), counts.more.copies_lost));
        let all = self.looked_at_all != as_of;
        let mut whole = true;
        let mut after: Option<String> = None;
        loop {
            let page = node.read(|view| {
                if all {
                    return view.studies(after.as_deref(), STUDIES_PER_ROUND);
                }
                let uids = view.studies_below_wanted(after.as_deref(), STUDIES_PER_ROUND)?;
                Ok(uids
                    .iter()
                    .map(|uid| view.study(uid))
                    .collect::<Result<Vec<_>, _>>()?
                    .into_iter()
                    .flatten()
                    .collect())
            })?;
            let mut lacking: Vec<HeldPart> = page
                .iter()
                .flat_map(|study| &study.parts)
                .filter(|held| !held.holders.contains(&node.site()))
                .filter(|held| belongs(held.part.study.as_str(), &held.holders, &sites, copies).contains(&node.site()))
                .cloned()
                .collect();
            retain_allowed(node, &mut lacking)?;
            let pulls: Vec<_> = lacking.into_iter().map(|held| pull(node.clone(), held)).collect();
            let mut pulls = stream::iter(pulls).buffer_unordered(PULLS);
            while let Some(Some((held, result))) = shutdown.run_until_cancelled(pulls.next()).await {
                whole &= result.is_ok();
                self.tell(&held, result);
            }
            match page.last() {
                Some(last) if page.len() == STUDIES_PER_ROUND && !shutdown.is_cancelled() => {
                    after = Some(last.uid.to_string());
                }
                _ => break,
            }
        }
        // After a failure the next pass looks at all again: a study that counts a lost holder is in no list.
        if whole && !shutdown.is_cancelled() {
            self.looked_at_all = as_of;
        }
        (self.attempted, self.seen) = (ids, Some(counts));
        Ok(())
    }

    /// Says why a copy was not made, once for each part.
    fn tell(&mut self, held: &HeldPart, result: anyhow::Result<()>) {
        match result {
            Ok(()) => drop(self.warned.remove(&held.part.manifest)),
            Err(error) => {
                if self.warned.len() < WARNED_MAX && self.warned.insert(held.part.manifest) {
                    tracing::warn!(study = %held.part.study, error = format!("{error:#}"), "copy not made yet");
                }
            }
        }
    }
}

fn copies_of(counts: &Counts) -> [u64; 4] {
    [counts.studies, counts.studies_below_two, counts.studies_below_wanted, counts.more.copies_lost]
}

/// The sites that can hold copies: in session, or away for less than the grace.
fn eligible(node: &Node, view: &View<'_>) -> Result<Vec<Site>, ApplyError> {
    let now = node.state_time(view)?.0;
    let grace_ms = node.config().storage.placement_grace_s.saturating_mul(1000);
    let mut sites = view.sites()?;
    sites.retain(|site| {
        let away = site.away_since.is_some_and(|at| now.saturating_sub(at.0) < grace_ms);
        site.description.weight > 0 && (site.session_open || away)
    });
    Ok(sites)
}

async fn pull(node: Node, held: HeldPart) -> (HeldPart, anyhow::Result<()>) {
    let started = tokio::time::Instant::now();
    let pulled = async {
        node.images().pull_part(&held, Class::Copy, None).await?;
        report(&node, &held, true).await
    };
    let result = pulled.await;
    if result.is_ok() {
        let (bytes, seconds) = (held.part.bytes, started.elapsed().as_secs_f64());
        tracing::info!(study = %held.part.study, bytes, seconds, "copy made");
    }
    (held, result)
}

/// The sites that are to hold a study's part: those that do and are there, then others by rendezvous
/// hashing until there are `copies`, zones not covered yet first.
fn belongs(study: &str, holders: &[SiteId], eligible: &[Site], copies: usize) -> BTreeSet<SiteId> {
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
    use super::*;
    use crate::roster::testing::site;

    #[test]
    fn copies_go_to_distinct_zones_and_holders_keep_theirs() {
        let sites: Vec<Site> =
            [(1, "a"), (2, "a"), (3, "b"), (4, "c"), (5, "c")].map(|(id, zone)| site(id, zone)).into();
        let eligible = &sites[..];
        for n in 0..50 {
            let study = format!("1.2.{n}");
            let chosen = belongs(&study, &[SiteId(2)], eligible, 3);
            assert_eq!(chosen.len(), 3);
            assert!(chosen.contains(&SiteId(2)), "who received it holds it");
            let zones: BTreeSet<&str> = sites
                .iter()
                .filter(|site| chosen.contains(&site.id))
                .map(|site| site.description.zone.as_str())
                .collect();
            assert_eq!(zones.len(), 3, "one copy a zone");
            let as_they_fill: BTreeSet<SiteId> =
                belongs(&study, &chosen.iter().copied().collect::<Vec<_>>(), eligible, 3);
            assert_eq!(as_they_fill, chosen, "a copy that is made changes nothing");
        }
    }

    #[test]
    fn fewer_zones_than_copies_still_give_all_copies() {
        let sites: Vec<Site> = [(1, "a"), (2, "a"), (3, "a")].map(|(id, zone)| site(id, zone)).into();
        let eligible = &sites[..];
        assert_eq!(belongs("1.2", &[SiteId(1)], eligible, 3).len(), 3);
        assert_eq!(belongs("1.2", &[SiteId(1)], &eligible[..1], 3).len(), 1);
        let gone = [SiteId(9)];
        assert!(!belongs("1.2", &gone, eligible, 2).contains(&SiteId(9)), "a holder that is gone does not count");
    }
}
