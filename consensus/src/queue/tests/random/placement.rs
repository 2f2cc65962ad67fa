//! Random layouts, drained and full sites, copies made, lost and given up; and what each study then counts as, said
//! a second time and plainly.

use std::collections::BTreeSet;

use proptest::prelude::{Strategy, any, prop, prop_oneof};
use proptest::test_runner::TestCaseError;
use proptest::{prop_assert, prop_assert_eq};

use super::super::*;
use super::Life;
use crate::mesh::HeldPart;
use crate::placement::{Change, Contract, Holders, Origin, Share};

/// A random command about copies. Sites are named by their place among the three.
#[derive(Debug, Clone)]
pub(super) enum Placing {
    Copies(u8),
    Zones(u8),
    Share(usize, Option<u32>, bool),
    Contract(usize, Vec<usize>, u8),
    EndContract(usize),
    Apply(bool, bool),
    Revert(bool),
    Drain(usize, bool),
    Undrain(usize),
    Room(bool),
    Holds(usize, bool),
    GiveUp(usize),
}

pub(super) fn placing() -> impl Strategy<Value = Placing> {
    let site = || 0..3_usize;
    let weight = prop::option::of(prop::sample::select(vec![0_u32, 5, 100]));
    let stage = prop_oneof![
        (0..4_u8).prop_map(Placing::Copies),
        (0..4_u8).prop_map(Placing::Zones),
        (site(), weight, any::<bool>()).prop_map(|(site, weight, zone)| Placing::Share(site, weight, zone)),
        (site(), prop::collection::vec(site(), 0..3), 0..4_u8)
            .prop_map(|(site, only, copies)| Placing::Contract(site, only, copies)),
        site().prop_map(Placing::EndContract),
    ];
    prop_oneof![
        2 => stage,
        2 => (prop::bool::weighted(0.8), prop::bool::weighted(0.7)).prop_map(|(right, force)| Placing::Apply(right, force)),
        1 => any::<bool>().prop_map(Placing::Revert),
        1 => (site(), any::<bool>()).prop_map(|(site, force)| Placing::Drain(site, force)),
        1 => site().prop_map(Placing::Undrain),
        1 => any::<bool>().prop_map(Placing::Room),
        6 => (0..6_usize, prop::bool::weighted(0.9)).prop_map(|(n, holds)| Placing::Holds(n, holds)),
        3 => (0..6_usize).prop_map(Placing::GiveUp),
    ]
}

impl Life {
    pub(super) fn place(&mut self, placing: &Placing, at: usize) -> Result<(), TestCaseError> {
        let before = self.bench.view(|view| view.placement());
        let staged = before.staged.as_ref().map_or(0, |staged| staged.version);
        let version = |right: bool| if right { staged } else { staged + 1 };
        let sites = self.sites;
        let change = match placing {
            Placing::Copies(copies) => Change::Copies(*copies),
            Placing::Zones(zones) => Change::Zones(*zones),
            Placing::Share(site, weight, zone) => {
                let zone = Name::fitted(if *zone { "one" } else { "" });
                Change::Share(Share { site: sites[*site], weight: *weight, zone, region: Name::default() })
            }
            Placing::Contract(site, only, copies) => {
                let holders = Holders::Only(only.iter().map(|site| sites[*site]).collect());
                let origin = Origin::Site(sites[*site]);
                Change::Contract(Contract { origin, holders, regions: Vec::new(), copies: *copies, zones: 0 })
            }
            Placing::EndContract(site) => Change::EndContract(Origin::Site(sites[*site])),
            Placing::Apply(right, force) => {
                let force = Line::fitted(if *force { "so be it" } else { "" });
                let outcome = self.run(at, Command::ApplyPlacement { version: version(*right), force: force.clone() });
                let after = self.bench.view(|view| view.placement());
                return match outcome {
                    Outcome::Done => {
                        prop_assert!(*right && before.staged.is_some());
                        prop_assert_eq!((Some(after.applied), after.staged), (before.staged, None));
                        Ok(())
                    }
                    Outcome::Refused(Refusal::OtherLayout { staged: told }) => {
                        prop_assert!(told == staged && (!right || staged == 0));
                        prop_assert_eq!(after, before);
                        Ok(())
                    }
                    Outcome::Refused(Refusal::PlacementImpossible { .. }) => {
                        prop_assert!(*right && force.is_empty());
                        prop_assert_eq!(after, before);
                        Ok(())
                    }
                    other => Err(TestCaseError::fail(format!("{other:?}"))),
                };
            }
            Placing::Revert(right) => {
                let outcome = self.run(at, Command::RevertPlacement { version: version(*right) });
                let after = self.bench.view(|view| view.placement());
                prop_assert_eq!(outcome == Outcome::Done, *right && staged > 0);
                prop_assert_eq!(after.applied, before.applied);
                prop_assert!(after.staged.is_none() || outcome != Outcome::Done);
                return Ok(());
            }
            Placing::Drain(site, force) => {
                let reason = Line::fitted("new disks");
                self.run(at, Command::Drain { site: sites[*site], reason, force: *force });
                return Ok(());
            }
            Placing::Undrain(site) => {
                self.run(at, Command::Undrain { site: sites[*site], reason: Line::default() });
                return Ok(());
            }
            Placing::Room(full) => {
                prop_assert_eq!(self.run(at, Command::ReportRoom { full: *full }), Outcome::Done);
                return Ok(());
            }
            Placing::Holds(n, _) | Placing::GiveUp(n) => return self.copy(*n, placing, at),
        };
        let outcome = self.run(at, Command::StagePlacement(change));
        prop_assert_eq!(outcome, Outcome::Staged { version: before.last + 1 });
        prop_assert_eq!(self.bench.view(|view| view.placement()).applied, before.applied);
        Ok(())
    }

    /// A copy is made, lost, or given up.
    fn copy(&mut self, n: usize, placing: &Placing, at: usize) -> Result<(), TestCaseError> {
        let Some(n) = self.at(n) else { return Ok(()) };
        let (study, site) = (UidText::fitted(&format!("1.2.{}", self.exams[n].id)), self.sites[at]);
        let Some(before) = self.bench.view(|view| view.study(study.as_str())) else { return Ok(()) };
        let manifest = before.parts[0].part.manifest;
        if let Placing::Holds(_, holds) = placing {
            let done = self.run(at, Command::RecordHolding { study, manifest, holds: *holds });
            prop_assert_eq!(done, Outcome::Done);
            return Ok(());
        }
        let outcome = self.run(at, Command::GiveUp { study: study.clone(), manifest });
        let after = self.bench.view(|view| view.study(study.as_str())).expect("still known");
        let (had, has) = (&before.parts[0].holders, &after.parts[0].holders);
        if outcome != Outcome::Done {
            prop_assert_eq!(before, after);
            return Ok(());
        }
        let left: Vec<SiteId> = had.iter().copied().filter(|holder| *holder != site).collect();
        prop_assert_eq!(has, &left);
        prop_assert!(had.contains(&site));
        prop_assert!(!after.parts[0].all_holders().contains(&site), "of earlier publications neither");
        let plainly = Plainly::new(&self.bench);
        let open: Vec<SiteId> = plainly.sites.iter().filter(|site| site.session_open).map(|site| site.id).collect();
        let counted: Vec<SiteId> = left
            .iter()
            .copied()
            .filter(|site| plainly.counts(&before.parts[0], *site) && open.contains(site))
            .collect();
        let could = plainly.sites.iter().filter(|site| plainly.could(&before.parts[0], site.id)).count();
        prop_assert!(!counted.is_empty(), "nobody is left who has it");
        prop_assert!(counted.len() >= plainly.copies(&before.parts[0]).min(could), "{counted:?} of {could}");
        Ok(())
    }
}

/// What the layout says, read off it without the code that decides by it. The generator makes contracts of single
/// sites only.
struct Plainly {
    placement: crate::placement::Placement,
    draining: BTreeSet<SiteId>,
    sites: Vec<crate::mesh::Site>,
}

impl Plainly {
    fn new(bench: &Bench) -> Self {
        let standings = bench.view(|view| view.standings());
        let draining = standings.into_iter().filter(|one| one.draining.is_some()).map(|one| one.site).collect();
        Self { placement: bench.view(|view| view.placement()), draining, sites: bench.view(|view| view.sites()) }
    }

    fn contract(&self, held: &HeldPart) -> Option<&Contract> {
        self.placement.applied.contracts.iter().find(|contract| contract.origin == Origin::Site(held.origin))
    }

    fn counts(&self, held: &HeldPart, site: SiteId) -> bool {
        let allowed = self.contract(held).is_none_or(|contract| contract.holders.sites().contains(&site));
        (allowed || site == held.origin) && !self.draining.contains(&site)
    }

    fn could(&self, held: &HeldPart, site: SiteId) -> bool {
        let share = self.placement.applied.sites.iter().find(|share| share.site == site);
        self.counts(held, site) && share.and_then(|share| share.weight) != Some(0)
    }

    fn copies(&self, held: &HeldPart) -> usize {
        let asked = [self.contract(held).map_or(0, |contract| contract.copies), self.placement.applied.copies, 3];
        let copies = asked.into_iter().find(|copies| *copies > 0).unwrap_or(3);
        usize::from(copies.max(self.placement.applied.zones))
    }

    fn zones(&self, holders: &[SiteId]) -> usize {
        let zone = |site: &SiteId| {
            let share = self.placement.applied.sites.iter().find(|share| share.site == *site);
            share.map(|share| share.zone.to_string()).filter(|zone| !zone.is_empty()).unwrap_or(site.to_string())
        };
        holders.iter().map(zone).collect::<BTreeSet<_>>().len()
    }

    fn is_short(&self, held: &HeldPart) -> bool {
        let counted: Vec<SiteId> = held.holders.iter().copied().filter(|site| self.counts(held, *site)).collect();
        let could: Vec<SiteId> = self.sites.iter().map(|site| site.id).filter(|site| self.could(held, *site)).collect();
        let asked = usize::from(self.placement.applied.zones);
        let usual = self.zones(&could).min(self.copies(held)).min(if asked == 0 { 2 } else { asked.min(2) });
        counted.len() < self.copies(held) || self.zones(&counted) < asked.max(usual)
    }
}

/// The counts and the list of studies with too few copies are what a recount gives.
pub(in crate::queue::tests) fn studies_are_a_recount(bench: &Bench, format: u8) -> Result<(), TestCaseError> {
    let studies = bench.view(|view| view.studies(None, usize::MAX));
    let plainly = Plainly::new(bench);
    let (mut below_two, mut below_wanted, mut confined) = (0, Vec::new(), 0);
    for study in &studies {
        let stays = |held: &HeldPart| format >= 2 && bench.exam(held.exam).is_confined();
        let open: Vec<&HeldPart> = study.parts.iter().filter(|held| !stays(held)).collect();
        below_two += u64::from(open.iter().any(|held| held.holders.len() < 2));
        confined += u64::from(open.len() < study.parts.len());
        if open.iter().any(|held| plainly.is_short(held)) {
            below_wanted.push(study.uid.to_string());
        }
    }
    let counts = bench.view(|view| view.counts());
    prop_assert_eq!(counts.studies, studies.len() as u64);
    prop_assert_eq!((counts.studies_below_two, counts.more.studies_confined), (below_two, confined));
    prop_assert_eq!(counts.studies_below_wanted, below_wanted.len() as u64);
    prop_assert_eq!(bench.view(|view| view.studies_below_wanted(None, usize::MAX)), below_wanted);
    Ok(())
}
