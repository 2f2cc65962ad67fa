//! Which sites are to hold a part: by the layout, the sites that are there, and rendezvous hashing.
//!
//! Before any layout was applied, who holds a copy keeps it, and only what is missing is placed by hashing. Under
//! a layout every copy but its receiver's own lies where hashing puts it, so that weights are what they say: a
//! change of the layout moves copies, as few as it can. Who received images keeps them either way; the bytes are
//! there, and its own archive sends more of the study to it.

use std::collections::BTreeSet;

use maillage_consensus::View;
use maillage_consensus::ids::SiteId;
use maillage_consensus::machine::ApplyError;
use maillage_consensus::mesh::{HeldPart, Site};
use maillage_consensus::placement::{Ground, Layout, Plan};
use maillage_transport::placement::{self, SiteWeight};

use crate::node::Node;

/// A layout, and the sites that are there to hold copies by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Choice {
    plan: Plan,
    there: BTreeSet<SiteId>,
}

impl Choice {
    /// By the layout that holds.
    pub(crate) fn now(node: &Node, view: &View<'_>) -> Result<Self, ApplyError> {
        Self::by(view.placement()?.applied, node, view)
    }

    /// By another.
    pub(crate) fn by(layout: Layout, node: &Node, view: &View<'_>) -> Result<Self, ApplyError> {
        let sites = view.sites()?;
        let there = eligible(node, view, &sites)?;
        Ok(Self::of(view.plan_over(layout, sites)?, there))
    }

    fn of(plan: Plan, there: BTreeSet<SiteId>) -> Self {
        Self { plan: plan.at_rest(), there }
    }

    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Whether a site is there, or away for less than the grace.
    pub(crate) fn is_there(&self, site: SiteId) -> bool {
        self.there.contains(&site)
    }

    /// The sites that are to hold a part.
    pub(crate) fn holders(&self, held: &HeldPart) -> BTreeSet<SiteId> {
        let may = |ground: &&Ground| {
            let holds = held.holders.contains(&ground.site);
            let takes = !ground.is_full || holds;
            self.there.contains(&ground.site) && takes && self.plan.counts(held.origin, ground.site)
        };
        let grounds: Vec<&Ground> = self.plan.grounds().iter().filter(may).collect();
        let copies = self.plan.copies(held.origin);
        if self.plan.layout().version == 0 {
            return completed(held.part.study.as_str(), &held.holders, &grounds, copies);
        }
        let receiver: &[SiteId] = if held.holders.contains(&held.origin) { &[held.origin] } else { &[] };
        completed(held.part.study.as_str(), receiver, &grounds, copies)
    }

    /// Whether a site has a copy of a part that the layout has no place for: it is draining, or may not have it.
    pub(crate) fn is_out_of_place(&self, held: &HeldPart, site: SiteId) -> bool {
        !self.plan.counts(held.origin, site)
    }

    /// Whether a site has a copy of a part beyond those that the layout wants.
    pub(crate) fn is_beyond(&self, held: &HeldPart, site: SiteId) -> bool {
        self.plan.layout().version > 0 && held.origin != site && !self.holders(held).contains(&site)
    }

    /// Whether all those hold a part that are to: what is beyond them is too much, and not on its way.
    pub(crate) fn is_settled(&self, held: &HeldPart) -> bool {
        self.holders(held).iter().all(|site| held.holders.contains(site))
    }
}

/// The sites that can hold copies: in session, or away for less than the grace.
fn eligible(node: &Node, view: &View<'_>, sites: &[Site]) -> Result<BTreeSet<SiteId>, ApplyError> {
    let now = node.state_time(view)?.0;
    let grace_ms = node.config().storage.placement_grace_s.saturating_mul(1000);
    let can = |site: &&Site| {
        let away = site.away_since.is_some_and(|at| now.saturating_sub(at.0) < grace_ms);
        !site.is_gateway() && site.description.weight > 0 && (site.session_open || away)
    };
    Ok(sites.iter().filter(can).map(|site| site.id).collect())
}

/// Those of `stay` that are among `grounds`, then others by rendezvous hashing until there are `copies`, zones not
/// covered yet first; one more where all that stay are in one zone.
fn completed(study: &str, stay: &[SiteId], grounds: &[&Ground], copies: usize) -> BTreeSet<SiteId> {
    let weights: Vec<SiteWeight<'_>> = grounds
        .iter()
        .map(|ground| SiteWeight { id: ground.site.0, zone: ground.zone.as_str(), weight: f64::from(ground.weight) })
        .collect();
    let ranked = placement::choose(&blake3::hash(study.as_bytes()), &weights, weights.len());
    let zone_of = |id: SiteId| grounds.iter().find(|ground| ground.site == id).map(|ground| ground.zone.as_str());
    let mut chosen: BTreeSet<SiteId> = stay.iter().copied().filter(|id| zone_of(*id).is_some()).collect();
    let mut zones: BTreeSet<&str> = chosen.iter().filter_map(|id| zone_of(*id)).collect();
    for only_new_zones in [true, false] {
        for id in ranked.iter().map(|id| SiteId(*id)) {
            let Some(zone) = zone_of(id) else { continue };
            let is_wanted = chosen.len() < copies || copies > 1 && zones.len() < 2 && !zones.contains(zone);
            if is_wanted && !chosen.contains(&id) && (!only_new_zones || !zones.contains(zone)) {
                chosen.insert(id);
                zones.insert(zone);
            }
        }
    }
    chosen
}

#[cfg(test)]
mod tests;
