//! What goes wrong in a day, as data that every system is given alike.

use super::model::{CentreId, Day, TerritoryId};
use super::{HOUR_MS, MINUTE_MS};

/// What fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Harm {
    /// A centre has no power: its node, its workstations, its readers stop.
    CentreLost(CentreId),
    /// A centre's own line is cut: its readers sit before working machines.
    CentreCut(CentreId),
    /// The central cloud is gone: the mesh's cloud site, and the central server's only data centre.
    CloudLost,
    /// A territory's links to all others are cut; inside it they work.
    TerritoryCut(TerritoryId),
}

/// Something that fails for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// For people.
    pub name: String,
    /// What.
    pub harm: Harm,
    /// From here, in ms.
    pub from_ms: u64,
    /// Until here, in ms.
    pub until_ms: u64,
}

/// The failures of a day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scenario {
    /// The name by which it is asked for.
    pub name: String,
    /// In order of their beginning.
    pub failures: Vec<Failure>,
}

impl Scenario {
    /// Names that `named` knows.
    pub const NAMES: [&str; 5] = ["none", "bad-night", "centre-lost", "cloud-lost", "territory-cut"];

    /// Nothing fails.
    pub fn none() -> Self {
        Self { name: "none".to_owned(), failures: Vec::new() }
    }

    /// The scenario of this name for a day: what it harms are the largest centre and the territory with the
    /// second most seats, at the hours when it hurts. `None` for an unknown name.
    pub fn named(name: &str, day: &Day) -> Option<Self> {
        let failures = match name {
            "none" => Vec::new(),
            "bad-night" => vec![centre_lost(day)?, cloud_lost(), territory_cut(day)?],
            "centre-lost" => vec![centre_lost(day)?],
            "cloud-lost" => vec![cloud_lost()],
            "territory-cut" => vec![territory_cut(day)?],
            _ => return None,
        };
        Some(Self { name: name.to_owned(), failures })
    }

    /// Beginnings and ends, in order of time; at one instant, ends come first.
    pub fn turns(&self) -> Vec<Turn> {
        let mut turns: Vec<Turn> = Vec::new();
        for failure in &self.failures {
            turns.push(Turn { at_ms: failure.from_ms, begins: true, harm: failure.harm });
            turns.push(Turn { at_ms: failure.until_ms, begins: false, harm: failure.harm });
        }
        turns.sort_by_key(|turn| (turn.at_ms, turn.begins));
        turns
    }

    /// The spans during which any failure that `matters` lasts: in order, joined where they touch.
    pub fn spans(&self, matters: impl Fn(Harm) -> bool) -> Vec<(u64, u64)> {
        let mut spans: Vec<(u64, u64)> = Vec::new();
        let mut failures: Vec<&Failure> = self.failures.iter().filter(|failure| matters(failure.harm)).collect();
        failures.sort_by_key(|failure| failure.from_ms);
        for failure in failures {
            match spans.last_mut() {
                Some(last) if failure.from_ms <= last.1 => last.1 = last.1.max(failure.until_ms),
                _ => spans.push((failure.from_ms, failure.until_ms)),
            }
        }
        spans
    }
}

/// A failure that begins or ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// When, in ms.
    pub at_ms: u64,
    /// Begins; else ends.
    pub begins: bool,
    /// What.
    pub harm: Harm,
}

fn cloud_lost() -> Failure {
    Failure { name: "Cloud lost".to_owned(), harm: Harm::CloudLost, from_ms: 3 * HOUR_MS, until_ms: 5 * HOUR_MS }
}

fn centre_lost(day: &Day) -> Option<Failure> {
    let (at, centre) = day.centres.iter().enumerate().max_by_key(|(at, centre)| (centre.seats, usize::MAX - at))?;
    let name = format!("{} lost", centre.name);
    Some(Failure { name, harm: Harm::CentreLost(CentreId(at)), from_ms: 2 * HOUR_MS, until_ms: 6 * HOUR_MS })
}

fn territory_cut(day: &Day) -> Option<Failure> {
    let seats = |at: usize| -> u32 {
        day.centres.iter().filter(|centre| centre.territory.0 == at).map(|centre| centre.seats).sum()
    };
    let mut by_seats: Vec<usize> = (0..day.territories.len()).collect();
    by_seats.sort_by_key(|at| (std::cmp::Reverse(seats(*at)), *at));
    let at = by_seats.get(1).copied()?;
    let (from_ms, until_ms) = (20 * HOUR_MS + 30 * MINUTE_MS, 21 * HOUR_MS + 15 * MINUTE_MS);
    let name = format!("{} cut off", day.territories.get(at)?.name);
    Some(Failure { name, harm: Harm::TerritoryCut(TerritoryId(at)), from_ms, until_ms })
}

#[cfg(test)]
mod tests {
    use super::{Failure, Harm, Scenario};
    use crate::day::model::{CentreId, Day, Parameters};

    #[test]
    fn every_name_is_known_and_lasts() {
        let day = Day::draw(&Parameters::default(), 1, true);
        for name in Scenario::NAMES {
            let scenario = Scenario::named(name, &day).unwrap();
            assert!(scenario.failures.iter().all(|failure| failure.from_ms < failure.until_ms));
            assert_eq!(scenario.turns().len(), 2 * scenario.failures.len());
        }
        assert_eq!(Scenario::named("bad-night", &day).unwrap().failures.len(), 3);
        assert_eq!(Scenario::named("sunshine", &day), None);
    }

    #[test]
    fn spans_join_where_they_touch() {
        let failure = |from_ms, until_ms, harm| Failure { name: String::new(), harm, from_ms, until_ms };
        let other = Harm::CentreLost(CentreId(1));
        let failures = vec![
            failure(40, 50, Harm::CloudLost),
            failure(10, 20, Harm::CloudLost),
            failure(15, 30, other),
            failure(30, 35, Harm::CloudLost),
        ];
        let scenario = Scenario { name: String::new(), failures };
        assert_eq!(scenario.spans(|_| true), [(10, 35), (40, 50)]);
        assert_eq!(scenario.spans(|harm| harm == Harm::CloudLost), [(10, 20), (30, 35), (40, 50)]);
    }
}
