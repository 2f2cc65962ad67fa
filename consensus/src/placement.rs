//! Where copies may lie: the layout that the mesh has agreed on, the one that is staged beside it, and whether
//! each site takes copies now.
//!
//! A layout is changed as Garage's is: changes are staged, looked at, and applied by the version that was looked
//! at. What follows from it for one part is the [`Plan`]'s to say, by the replicated state alone, so that every
//! site says the same.

use serde::{Deserialize, Serialize};

use crate::command::UnixMillisField;
use crate::ids::{Line, Name, SiteId};
use crate::record::Record;

mod plan;

pub use plan::{Ground, Impossible, Plan};

/// The greatest weight of a site: 16 PB, counted in GB. Placement's fixed-point scores take no more.
pub const WEIGHT_MAX: u32 = 16_777_216;
/// The most copies that a layout or a contract may ask for; more would not be safer than the voters who know of
/// them.
pub const COPIES_MAX: u8 = 7;
/// The most contracts: each origin has one, and there are about a hundred hospitals' gateways to come.
pub const CONTRACTS_MAX: usize = 512;
/// The most sites that a layout names.
pub const SHARES_MAX: usize = 512;

/// What the mesh has agreed on, and what somebody proposes instead.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Placement {
    /// What holds. Version 0: nothing was ever applied, and holders keep what they have.
    pub applied: Layout,
    /// What would hold, under the version by which it is applied.
    pub staged: Option<Layout>,
    /// The highest version that any layout had, dropped ones included.
    pub last: u64,
}

impl Record for Placement {
    const VERSION: u8 = 2;
    const WHAT: &'static str = "placement";
}

/// Where copies lie.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Layout {
    /// Rises with each change that is staged; 0 before the first.
    pub version: u64,
    /// Copies of each image; 0: as many as the mesh was founded with.
    pub copies: u8,
    /// Distinct zones that each image needs; 0: two, where there are two.
    pub zones: u8,
    /// Sites that are not as they describe themselves, in ascending order.
    pub sites: Vec<Share>,
    /// For whom others may hold, in ascending order of origin.
    pub contracts: Vec<Contract>,
}

/// What a site takes, other than it says itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// The site.
    pub site: SiteId,
    /// Its share of the copies, relative to the others': its capacity in GB, say. None: its configuration's.
    pub weight: Option<u32>,
    /// What fails together with it; empty: its configuration's.
    pub zone: Name,
    /// Where it lies, for contracts; empty: the region of its readers.
    pub region: Name,
}

/// Whose images may lie where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contract {
    /// Whose: those that these sites received.
    pub origin: Origin,
    /// Which other sites may hold them.
    pub holders: Holders,
    /// Only sites in these regions may; empty: in any.
    pub regions: Vec<Name>,
    /// Copies; 0: as the layout says.
    pub copies: u8,
    /// Distinct zones; 0: as the layout says.
    pub zones: u8,
}

/// Whose images a contract is about. The narrowest that names a site counts alone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Origin {
    /// What no other contract names.
    Any,
    /// The sites of one hospitals' group.
    Territory(Name),
    /// One site.
    Site(SiteId),
}

/// Which sites may hold another's images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Holders {
    /// All.
    Any,
    /// These only.
    Only(Vec<SiteId>),
    /// All but these.
    AllBut(Vec<SiteId>),
}

impl Holders {
    fn allows(&self, site: SiteId) -> bool {
        match self {
            Self::Any => true,
            Self::Only(sites) => sites.contains(&site),
            Self::AllBut(sites) => !sites.contains(&site),
        }
    }

    /// The sites that are named.
    pub fn sites(&self) -> &[SiteId] {
        match self {
            Self::Any => &[],
            Self::Only(sites) | Self::AllBut(sites) => sites,
        }
    }
}

impl Contract {
    /// The sites that it names.
    pub(crate) fn sites(&self) -> impl Iterator<Item = SiteId> {
        let origin = match &self.origin {
            Origin::Site(site) => Some(*site),
            Origin::Any | Origin::Territory(_) => None,
        };
        origin.into_iter().chain(self.holders.sites().iter().copied())
    }
}

/// One change of the staged layout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// Copies of each image; 0: as many as the mesh was founded with.
    Copies(u8),
    /// Distinct zones that each image needs; 0: two, where there are two.
    Zones(u8),
    /// A site's share; one that says nothing ends what was said before.
    Share(Share),
    /// A contract, in the place of its origin's earlier one.
    Contract(Contract),
    /// No contract of this origin any more.
    EndContract(Origin),
}

impl Layout {
    /// Makes a change. False: there is too much already.
    pub(crate) fn change(&mut self, change: &Change) -> bool {
        match change {
            Change::Copies(copies) => self.copies = *copies,
            Change::Zones(zones) => self.zones = *zones,
            Change::Share(share) => {
                self.sites.retain(|other| other.site != share.site);
                if share.weight.is_some() || !share.zone.is_empty() || !share.region.is_empty() {
                    self.sites.push(share.clone());
                    self.sites.sort_unstable_by_key(|share| share.site);
                }
            }
            Change::Contract(contract) => {
                self.contracts.retain(|other| other.origin != contract.origin);
                self.contracts.push(contract.clone());
                self.contracts.sort_unstable_by(|one, other| one.origin.cmp(&other.origin));
            }
            Change::EndContract(origin) => self.contracts.retain(|other| other.origin != *origin),
        }
        self.sites.len() <= SHARES_MAX && self.contracts.len() <= CONTRACTS_MAX
    }
}

/// Whether a site takes copies now, beside what the layout says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// The site.
    pub site: SiteId,
    /// Its copies go elsewhere.
    pub draining: Option<Draining>,
    /// Since when it has no room for more.
    pub full_since: Option<UnixMillisField>,
}

impl Standing {
    /// A site that takes copies.
    pub(crate) fn usual(site: SiteId) -> Self {
        Self { site, draining: None, full_since: None }
    }
}

impl Record for Standing {
    const VERSION: u8 = 2;
    const WHAT: &'static str = "standing";
}

/// Who drains a site, since when and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Draining {
    /// Since when.
    pub at: UnixMillisField,
    /// Why.
    pub reason: Line,
    /// Who asked for it.
    pub user: Name,
}
