//! I5 for where copies lie: of what a site receives, none is noted at a site that its contract leaves out, if it was
//! published while the contract held. Whoever knows of the publication knows of the contract, too: nothing is under way.
//!
//! What holds is reckoned from the commands that change the layout, as they were asked for, and from what became of them:
//! not by what the mesh makes of them. Contracts of the workload are about one site's images, and name others.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use maillage_consensus::Outcome;
use maillage_consensus::command::{Command, Envelope};
use maillage_consensus::ids::{Address, SiteId};
use maillage_consensus::placement::{Change, Contract, Holders, Origin};

use crate::world::{World, lock};

/// See the module.
pub(crate) struct Contracts {
    world: Arc<World>,
    reckoned: Mutex<Reckoned>,
}

/// What a command shows.
#[derive(Debug, PartialEq, Eq)]
enum Shown {
    Nothing,
    /// Images come to a site that has a contract.
    UnderContract,
    /// A copy is where it must not be.
    Breach(String),
}

#[derive(Default)]
struct Reckoned {
    /// The last place in the log that was looked at: the others are replicas behind the first, or started again.
    upto: u64,
    /// Who may have what a site receives, and since which place in the log.
    applied: BTreeMap<SiteId, (Holders, u64)>,
    staged: Option<BTreeMap<SiteId, Holders>>,
    /// Who received a publication, and its place in the log.
    published: BTreeMap<Address, (SiteId, u64)>,
}

impl Contracts {
    pub(crate) fn new(world: Arc<World>) -> Self {
        Self { world, reckoned: Mutex::default() }
    }

    /// A replica applied a command for the first time.
    pub(crate) fn applied(&self, index: u64, envelope: &Envelope, outcome: &Outcome) {
        let mut reckoned = lock(&self.reckoned);
        if index <= reckoned.upto {
            return;
        }
        reckoned.upto = index;
        let shown = reckoned.run(index, envelope, outcome);
        drop(reckoned);
        match shown {
            Shown::Nothing => {}
            Shown::UnderContract => self.world.sometimes("images came under a contract"),
            Shown::Breach(why) => self.world.violation("I5", format!("at {index}, {why}")),
        }
    }
}

impl Reckoned {
    fn run(&mut self, index: u64, envelope: &Envelope, outcome: &Outcome) -> Shown {
        let site = envelope.site;
        match (&envelope.command, outcome) {
            (Command::StagePlacement(change), Outcome::Staged { .. }) => self.stage(change),
            (Command::RevertPlacement { .. }, Outcome::Done) => self.staged = None,
            (Command::ApplyPlacement { .. }, Outcome::Done) => self.apply(index),
            (Command::RecordStudy(part), Outcome::StudyRecorded { .. }) => {
                return self.publish(part.manifest, site, index);
            }
            (Command::RecordHolding { manifest, holds: true, .. }, Outcome::Done) => return self.hold(manifest, site),
            _ => {}
        }
        Shown::Nothing
    }

    fn stage(&mut self, change: &Change) {
        let now = || self.applied.iter().map(|(origin, (holders, _))| (*origin, holders.clone())).collect();
        let staged = self.staged.get_or_insert_with(now);
        match change {
            Change::Contract(Contract { origin: Origin::Site(origin), holders, .. }) => {
                staged.insert(*origin, holders.clone());
            }
            Change::EndContract(Origin::Site(origin)) => {
                staged.remove(origin);
            }
            _ => {}
        }
    }

    fn apply(&mut self, index: u64) {
        let Some(staged) = self.staged.take() else { return };
        let before = std::mem::take(&mut self.applied);
        let since = |origin: &SiteId, holders: &Holders| {
            before.get(origin).filter(|(known, _)| known == holders).map_or(index, |(_, since)| *since)
        };
        let now = staged.into_iter().map(|(origin, holders)| {
            let since = since(&origin, &holders);
            (origin, (holders, since))
        });
        self.applied = now.collect();
    }

    fn publish(&mut self, manifest: Address, origin: SiteId, index: u64) -> Shown {
        self.published.entry(manifest).or_insert((origin, index));
        if self.applied.contains_key(&origin) { Shown::UnderContract } else { Shown::Nothing }
    }

    /// A site says that it holds a publication.
    fn hold(&self, manifest: &Address, site: SiteId) -> Shown {
        let Some((origin, published)) = self.published.get(manifest) else { return Shown::Nothing };
        let Some((holders, since)) = self.applied.get(origin) else { return Shown::Nothing };
        if *origin == site || since > published || allows(holders, site) {
            return Shown::Nothing;
        }
        Shown::Breach(format!(
            "site {site} holds what site {origin} published at {published}, whose contract leaves it out since {since}"
        ))
    }
}

fn allows(holders: &Holders, site: SiteId) -> bool {
    match holders {
        Holders::Any => true,
        Holders::Only(sites) => sites.contains(&site),
        Holders::AllBut(sites) => !sites.contains(&site),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARIS: SiteId = SiteId(1);
    const LYON: SiteId = SiteId(2);
    const METZ: SiteId = SiteId(3);

    fn contract(holders: Holders) -> Change {
        let (regions, copies, zones) = (Vec::new(), 0, 0);
        Change::Contract(Contract { origin: Origin::Site(PARIS), holders, regions, copies, zones })
    }

    fn is_breach(shown: &Shown) -> bool {
        matches!(shown, Shown::Breach(_))
    }

    #[test]
    fn who_is_left_out_holds_nothing_that_was_published_under_the_contract() {
        let mut reckoned = Reckoned::default();
        assert_eq!(reckoned.publish([1; 32], PARIS, 10), Shown::Nothing);
        reckoned.stage(&contract(Holders::AllBut(vec![LYON])));
        assert_eq!(reckoned.publish([2; 32], PARIS, 20), Shown::Nothing, "it is only staged");
        reckoned.apply(30);
        assert_eq!(reckoned.publish([3; 32], PARIS, 40), Shown::UnderContract);
        assert_eq!(reckoned.publish([4; 32], METZ, 41), Shown::Nothing);
        assert!(is_breach(&reckoned.hold(&[3; 32], LYON)));
        for (manifest, site) in [([3; 32], METZ), ([3; 32], PARIS), ([1; 32], LYON), ([2; 32], LYON), ([4; 32], LYON)] {
            assert_eq!(reckoned.hold(&manifest, site), Shown::Nothing, "{manifest:?} at {site}");
        }
    }

    #[test]
    fn a_contract_holds_on_in_the_next_layout_and_begins_anew_when_it_is_another() {
        let mut reckoned = Reckoned::default();
        reckoned.stage(&contract(Holders::AllBut(vec![LYON])));
        reckoned.apply(10);
        reckoned.publish([1; 32], PARIS, 20);
        reckoned.stage(&Change::Copies(2));
        reckoned.apply(30);
        assert!(is_breach(&reckoned.hold(&[1; 32], LYON)), "it has held all the while");
        reckoned.stage(&contract(Holders::Only(vec![METZ])));
        reckoned.apply(40);
        assert_eq!(reckoned.hold(&[1; 32], LYON), Shown::Nothing, "it may be under way since the one before");
        reckoned.stage(&Change::EndContract(Origin::Site(PARIS)));
        reckoned.apply(50);
        reckoned.publish([2; 32], PARIS, 60);
        assert_eq!(reckoned.hold(&[2; 32], LYON), Shown::Nothing);
    }
}
