//! What a layout says of one part's copies: how many, who may have them, which of them count, and whether the
//! mesh does without one.
//!
//! Which sites of those that may are the best is the rendezvous hashing of the transport's to say; everything
//! that must not go wrong is here, where the queue decides by it.

use std::collections::BTreeSet;

use super::{Contract, Layout, Origin, Standing};
use crate::ids::{Name, SiteId};
use crate::mesh::{HeldPart, Site};
use crate::order::Place;

/// Zones in which images are wanted that nothing else is said of, where there are so many: with one, a fire
/// takes them.
const ZONES_USUAL: usize = 2;
/// Copies without which images are not safe.
const COPIES_SAFE: usize = 2;

/// A site as ground for copies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ground {
    /// The site.
    pub site: SiteId,
    /// Its name.
    pub name: Name,
    /// What fails together with it.
    pub zone: Name,
    /// Where it lies.
    pub region: Name,
    /// Its hospitals' group.
    pub territory: Name,
    /// Its share; 0 holds none.
    pub weight: u32,
    /// Whether it is in session.
    pub is_here: bool,
    /// Whether its copies go elsewhere.
    pub is_draining: bool,
    /// Whether it has no room for more.
    pub is_full: bool,
}

/// A layout over the sites as they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    layout: Layout,
    copies: u8,
    grounds: Vec<Ground>,
}

/// Images that could not lie as they have to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Impossible {
    /// Those that this site receives.
    pub origin: SiteId,
    /// Copies that they need.
    pub copies: usize,
    /// … that sites could hold.
    pub copies_possible: usize,
    /// Zones that they need.
    pub zones: usize,
    /// … in which sites could hold them.
    pub zones_possible: usize,
}

impl Plan {
    /// `layout` over `sites`, each with the place of its readers; `copies` is what the mesh was founded with.
    pub fn new(layout: Layout, copies: u8, sites: Vec<(Site, Place)>, standings: &[Standing]) -> Self {
        let ground = |(site, place): (Site, Place)| {
            let share = layout.sites.iter().find(|share| share.site == site.id);
            let standing = standings.iter().find(|standing| standing.site == site.id);
            let said = |text: Option<&Name>, own: Name| text.filter(|text| !text.is_empty()).cloned().unwrap_or(own);
            let own = u32::from(site.description.weight);
            Ground {
                site: site.id,
                zone: said(share.map(|share| &share.zone), site.description.zone),
                region: said(share.map(|share| &share.region), place.region),
                territory: place.territory,
                // Who holds none by what it is takes none by a layout either.
                weight: share.and_then(|share| share.weight).filter(|_| own > 0).unwrap_or(own),
                name: site.description.name,
                is_here: site.session_open,
                is_draining: standing.is_some_and(|standing| standing.draining.is_some()),
                is_full: standing.is_some_and(|standing| standing.full_since.is_some()),
            }
        };
        let grounds = sites.into_iter().map(ground).collect();
        Self { layout, copies, grounds }
    }

    /// The same, whoever is in session: what the layout and the sites are in themselves.
    #[must_use]
    pub fn at_rest(mut self) -> Self {
        self.grounds.iter_mut().for_each(|ground| ground.is_here = false);
        self
    }

    /// The layout.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The sites, in ascending order.
    pub fn grounds(&self) -> &[Ground] {
        &self.grounds
    }

    /// One site.
    pub fn ground(&self, site: SiteId) -> Option<&Ground> {
        self.grounds.iter().find(|ground| ground.site == site)
    }

    /// The contract about what a site receives.
    pub fn contract(&self, origin: SiteId) -> Option<&Contract> {
        let territory = self.ground(origin).map(|ground| &ground.territory).filter(|name| !name.is_empty());
        let of = |wanted: &Origin| self.layout.contracts.iter().find(|contract| contract.origin == *wanted);
        of(&Origin::Site(origin)).or_else(|| of(&Origin::Territory(territory?.clone()))).or_else(|| of(&Origin::Any))
    }

    /// Copies wanted of what a site receives: never fewer than the zones that it needs.
    pub fn copies(&self, origin: SiteId) -> usize {
        let usual = if self.layout.copies == 0 { self.copies } else { self.layout.copies };
        let copies = self.contract(origin).map(|contract| contract.copies).filter(|copies| *copies > 0);
        usize::from(copies.unwrap_or(usual).max(1)).max(self.zones_asked(origin))
    }

    /// Zones that somebody has asked for; 0 for none.
    fn zones_asked(&self, origin: SiteId) -> usize {
        let zones = self.contract(origin).map(|contract| contract.zones).filter(|zones| *zones > 0);
        usize::from(zones.unwrap_or(self.layout.zones))
    }

    /// Whether a site may hold what `origin` receives. Who received it may.
    pub fn allows(&self, origin: SiteId, site: SiteId) -> bool {
        let Some(contract) = self.contract(origin).filter(|_| origin != site) else { return true };
        let in_region = |ground: &Ground| contract.regions.is_empty() || contract.regions.contains(&ground.region);
        contract.holders.allows(site) && self.ground(site).is_some_and(in_region)
    }

    /// Whether a copy at `site` of what `origin` receives is one of those wanted: it may lie there, and stays.
    pub fn counts(&self, origin: SiteId, site: SiteId) -> bool {
        self.ground(site).is_some_and(|ground| !ground.is_draining) && self.allows(origin, site)
    }

    /// The holders of a part that count.
    pub fn counted(&self, held: &HeldPart) -> Vec<SiteId> {
        held.holders.iter().copied().filter(|site| self.counts(held.origin, *site)).collect()
    }

    /// Whether a part lies at fewer sites than it should, or in fewer zones: than somebody has asked for, or than two
    /// where two could have it.
    pub fn is_short(&self, held: &HeldPart) -> bool {
        let (counted, (_, zones)) = (self.counted(held), self.possible(held.origin));
        counted.len() < self.copies(held.origin) || self.zones_of(&counted) < self.zones_asked(held.origin).max(zones)
    }

    /// Distinct zones of these sites.
    pub(crate) fn zones_of(&self, sites: &[SiteId]) -> usize {
        let zones: BTreeSet<&Name> =
            self.grounds.iter().filter(|ground| sites.contains(&ground.site)).map(|ground| &ground.zone).collect();
        zones.len()
    }

    /// The sites that could have what `origin` receives, were they all there and had room.
    pub fn could_hold(&self, origin: SiteId) -> Vec<SiteId> {
        let could = |ground: &&Ground| ground.weight > 0 && self.counts(origin, ground.site);
        self.grounds.iter().filter(could).map(|ground| ground.site).collect()
    }

    /// Whether the mesh does without `site`'s copy of a part: as many others in session as are wanted, or as
    /// there could ever be, hold it, in as many zones; and no zone is lost that a wanted copy would be in. A copy that
    /// may lie where it is is spared only if the others are safe without it: a drain makes nothing less safe.
    pub fn spares(&self, held: &HeldPart, site: SiteId) -> bool {
        let counted = self.counted_here(held.origin, &held.holders);
        let others: Vec<SiteId> = counted.iter().copied().filter(|other| *other != site).collect();
        let (copies, zones) = self.possible(held.origin);
        let zones = zones.max(copies.min(self.zones_of(&counted)));
        let is_enough = others.len() >= copies && self.zones_of(&others) >= zones;
        is_enough && (!self.allows(held.origin, site) || self.stays_safe(held.origin, site, &others))
    }

    /// Whether `others` are two, whatever sites are drained or weigh nothing, in two zones if the copy at `site` made it
    /// two; fewer where somebody has asked for fewer.
    fn stays_safe(&self, origin: SiteId, site: SiteId, others: &[SiteId]) -> bool {
        let with_it: Vec<SiteId> = others.iter().copied().chain([site]).collect();
        let zones = self.zones_needed(origin).min(ZONES_USUAL).min(self.zones_of(&with_it));
        let copies = self.copies(origin).min(COPIES_SAFE);
        others.len() >= copies && self.zones_of(others) >= zones.min(copies)
    }

    /// Zones that somebody has asked for, or else as usual.
    fn zones_needed(&self, origin: SiteId) -> usize {
        match self.zones_asked(origin) {
            0 => ZONES_USUAL,
            asked => asked,
        }
    }

    /// Whether what `site` has of what `origin` received is of use beside what these sites in session hold: they are
    /// fewer than wanted, or than there could ever be, or in fewer zones; or fewer than makes images safe, and it may
    /// lie there.
    pub(crate) fn is_of_use(&self, origin: SiteId, holders: &BTreeSet<SiteId>, site: SiteId) -> bool {
        let counted = self.counted_here(origin, holders);
        let (copies, zones) = self.possible(origin);
        let suffices = counted.len() >= copies && self.zones_of(&counted) >= zones;
        !suffices || self.allows(origin, site) && !self.stays_safe(origin, site, &counted)
    }

    /// Those of `holders` that are in session and count.
    fn counted_here<'a>(&self, origin: SiteId, holders: impl IntoIterator<Item = &'a SiteId>) -> Vec<SiteId> {
        let is_here = |site: &SiteId| self.ground(*site).is_some_and(|ground| ground.is_here);
        holders.into_iter().copied().filter(is_here).filter(|site| self.counts(origin, *site)).collect()
    }

    /// Copies and zones wanted of what `origin` receives, or as many as there could ever be.
    fn possible(&self, origin: SiteId) -> (usize, usize) {
        let could = self.could_hold(origin);
        let copies = self.copies(origin).min(could.len()).max(1);
        (copies, self.zones_needed(origin).min(copies).min(self.zones_of(&could)))
    }

    /// For whose images too few sites, or sites in too few zones, could hold copies: fewer than somebody has asked
    /// for, than two copies unless one is wanted, or than two zones where there are two.
    pub fn impossible(&self) -> Vec<Impossible> {
        let every: BTreeSet<&Name> =
            self.grounds.iter().filter(|ground| ground.weight > 0).map(|ground| &ground.zone).collect();
        let every_site = self.grounds.iter().filter(|ground| ground.weight > 0).count();
        let of = |ground: &Ground| {
            let origin = ground.site;
            let could = self.could_hold(origin);
            let zones = match self.zones_asked(origin) {
                0 => ZONES_USUAL.min(every.len()).min(self.copies(origin)),
                asked => asked,
            };
            let asked = self.contract(origin).map_or(0, |contract| contract.copies).max(self.layout.copies);
            let copies = usize::from(asked).max(zones).max(self.copies(origin).min(COPIES_SAFE).min(every_site));
            let (copies_possible, zones_possible) = (could.len(), self.zones_of(&could));
            let is_possible = copies_possible >= copies && zones_possible >= zones;
            (!is_possible).then_some(Impossible { origin, copies, copies_possible, zones, zones_possible })
        };
        self.grounds.iter().filter_map(of).collect()
    }
}
