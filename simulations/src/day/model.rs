//! A day, fully drawn before anything runs.
//!
//! Whatever does not depend on the mesh is drawn here, from one seed: who asks for what and when, how long
//! regulation, scan and reading take, how large the study is. So four runs of one day differ in nothing
//! but the system under them, and one exam can be followed through all four.

mod draw;
mod kinds;
mod parameters;
mod places;
mod roster;

pub(crate) use draw::minutes_ms;
pub use kinds::Kind;
use maillage_consensus::exam::Priority;
pub use parameters::{Basis, Given, Parameters, Row};
pub use roster::{HourLoad, Roster};
use serde::{Deserialize, Serialize};

use crate::rng::Rng;

/// Index of a territory in its day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TerritoryId(pub usize);
/// Index of a reading centre in its day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CentreId(pub usize);
/// Index of a hospital in its day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HospitalId(pub usize);
/// Index of a reader's shift in its day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ReaderId(pub usize);

/// A territory: links to the outside may fail for all of it at once.
#[derive(Debug, Clone)]
pub struct Territory {
    /// For people.
    pub name: String,
}

/// A reading centre.
#[derive(Debug, Clone)]
pub struct Centre {
    /// For people: its city.
    pub name: String,
    /// Where it is.
    pub territory: TerritoryId,
    /// Workstations.
    pub seats: u32,
    /// Whether nuclear physicians read here.
    pub nuclear: bool,
}

/// A partner hospital.
#[derive(Debug, Clone)]
pub struct Hospital {
    /// For people.
    pub name: String,
    /// Where it is.
    pub territory: TerritoryId,
    /// The centre that it sends to.
    pub home: CentreId,
    /// The centre that it sends to when that one is away: in another territory.
    pub fallback: CentreId,
    /// Rate that its line leaves for images, in Mb/s.
    pub uplink_mbps: f64,
    /// Whether it has nuclear medicine.
    pub nuclear: bool,
    /// Its size: how often it asks, relative to the others.
    pub weight: f64,
}

/// Who may read an exam.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Discipline {
    /// Radiologists.
    Radiology,
    /// Nuclear physicians.
    NuclearMedicine,
}

/// One reader's shift at one seat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reader {
    /// Where.
    pub centre: CentreId,
    /// What this reader may read.
    pub discipline: Discipline,
    /// On duty from here, in ms.
    pub from_ms: u64,
    /// On duty until here; a reading under way is finished.
    pub until_ms: u64,
}

/// One exam, with everything that does not depend on the system.
#[derive(Debug, Clone)]
pub struct Exam {
    /// Accession number, unique in the day.
    pub accession: String,
    /// Who asks.
    pub hospital: HospitalId,
    /// Who may read it.
    pub discipline: Discipline,
    /// Modality (0008,0060).
    pub modality: &'static str,
    /// For people.
    pub kind: &'static str,
    /// How urgent.
    pub priority: Priority,
    /// When it is asked for, in ms; exams are in this order.
    pub requested_ms: u64,
    /// From request to the regulator's decision, in ms.
    pub regulation_ms: u64,
    /// Why the regulator refuses it, if so: then nothing follows.
    pub refused: Option<&'static str>,
    /// From request to the start of the scan, in ms.
    pub scan_after_ms: u64,
    /// Duration of the scan, in ms.
    pub scan_ms: u64,
    /// Images of the study.
    pub images: u64,
    /// Size of the study, in bytes: what its transfer takes time for.
    pub bytes: u64,
    /// Bytes that stand for it in simulated stores.
    pub bytes_simulated: u64,
    /// Time a reader needs from claim to signed report, in ms.
    pub reading_ms: u64,
    /// What the report says.
    pub report: String,
}

impl Exam {
    /// When the regulator has decided, in ms.
    pub fn regulated_ms(&self) -> u64 {
        self.requested_ms + self.regulation_ms
    }

    /// When the scan ends and its images can be sent, in ms; `None` when it is refused.
    pub fn acquired_ms(&self) -> Option<u64> {
        self.refused.is_none().then_some(self.requested_ms + self.scan_after_ms + self.scan_ms)
    }
}

/// A day: the work, the places and the people.
#[derive(Debug, Clone)]
pub struct Day {
    /// What it was drawn from.
    pub parameters: Parameters,
    /// And with.
    pub seed: u64,
    /// Whether it is a day of a weekend.
    pub weekend: bool,
    /// Territories.
    pub territories: Vec<Territory>,
    /// Reading centres.
    pub centres: Vec<Centre>,
    /// Hospitals.
    pub hospitals: Vec<Hospital>,
    /// The radiologists' roster by formula.
    pub roster: Roster,
    /// Shifts, seated.
    pub readers: Vec<Reader>,
    /// Exams, by the time of their request.
    pub exams: Vec<Exam>,
}

impl Day {
    /// Draws the day of a seed: the same one each time.
    pub fn draw(parameters: &Parameters, seed: u64, weekend: bool) -> Self {
        let territories = places::TERRITORIES.map(|place| Territory { name: place.name.to_owned() }).to_vec();
        let centre = |place: places::Place| Centre {
            name: place.name.to_owned(),
            territory: TerritoryId(place.territory),
            seats: place.seats,
            nuclear: place.nuclear,
        };
        let centres = places::PLACES.map(centre).to_vec();
        let hospitals = hospitals(parameters, &centres, &mut Rng::stream(seed, "day: hospitals"));
        let roster = Roster::new(parameters, weekend);
        let readers = roster.readers(&centres);
        let exams = exams(parameters, &hospitals, seed, weekend);
        Self { parameters: parameters.clone(), seed, weekend, territories, centres, hospitals, roster, readers, exams }
    }

    /// Time that an exam's images take over its hospital's line, in ms, when nothing is in the way.
    pub fn transfer_ms(&self, exam: &Exam) -> u64 {
        let rate = self.hospitals.get(exam.hospital.0).map_or(f64::INFINITY, |hospital| hospital.uplink_mbps);
        // Mb/s are thousands of bits in a millisecond.
        draw::whole(exam.bytes as f64 * 8.0 / (rate * 1_000.0)).max(1)
    }
}

/// Spread of hospitals' sizes (assumption): the largest ask about ten times as often as the smallest.
const HOSPITAL_CV: f64 = 0.6;

fn hospitals(parameters: &Parameters, centres: &[Centre], rng: &mut Rng) -> Vec<Hospital> {
    let shares = places::TERRITORIES.map(|territory| territory.hospitals);
    let rates = parameters.uplinks_mbps.value;
    let seats_if = |keep: &dyn Fn(&Centre) -> bool| -> Vec<f64> {
        centres.iter().map(|centre| if keep(centre) { f64::from(centre.seats) } else { 0.0 }).collect()
    };
    let count = parameters.hospitals.value;
    let nuclear = parameters.nuclear_hospitals.value;
    (0..count)
        .map(|number| {
            let territory = TerritoryId(draw::weighted(rng, shares));
            let home = CentreId(draw::weighted(rng, seats_if(&|centre| centre.territory == territory)));
            let fallback = CentreId(draw::weighted(rng, seats_if(&|centre| centre.territory != territory)));
            let uplink_mbps = rates[draw::weighted(rng, rates.map(|(share, _)| share))].1;
            let weight = draw::lognormal(rng, 1.0, HOSPITAL_CV);
            let name = format!("Hospital {:03}", number + 1);
            // Spread evenly over the list, so over the territories as they were drawn.
            let nuclear = (number + 1) * nuclear / count > number * nuclear / count;
            Hospital { name, territory, home, fallback, uplink_mbps, nuclear, weight }
        })
        .collect()
}

fn exams(parameters: &Parameters, hospitals: &[Hospital], seed: u64, weekend: bool) -> Vec<Exam> {
    let mut requests = Vec::new();
    for discipline in [Discipline::Radiology, Discipline::NuclearMedicine] {
        let (stream, per_day, hours) = match discipline {
            Discipline::Radiology => ("day: requests", parameters.exams(weekend), parameters.hours(weekend)),
            Discipline::NuclearMedicine => {
                ("day: nuclear requests", parameters.nuclear(weekend), &parameters.nuclear_hours.value)
            }
        };
        let times = draw::arrivals(&mut Rng::stream(seed, stream), per_day, hours);
        requests.extend(times.into_iter().map(|at_ms| (at_ms, discipline)));
    }
    requests.sort_unstable();
    let draw = |(number, (requested_ms, discipline)): (usize, (u64, Discipline))| {
        // A stream an exam: one more draw in one leaves the others as they were.
        let mut rng = Rng::stream(seed, &format!("day: exam {number}"));
        exam(parameters, hospitals, (number, requested_ms, discipline), &mut rng)
    };
    requests.into_iter().enumerate().map(draw).collect()
}

fn exam(
    parameters: &Parameters,
    hospitals: &[Hospital],
    (number, requested_ms, discipline): (usize, u64, Discipline),
    rng: &mut Rng,
) -> Exam {
    let kinds = match discipline {
        Discipline::Radiology => &parameters.kinds,
        Discipline::NuclearMedicine => &parameters.nuclear_kinds,
    };
    let kind = &kinds[draw::weighted(rng, kinds.iter().map(|kind| kind.share))];
    let may_ask = |hospital: &Hospital| match discipline {
        Discipline::NuclearMedicine if !hospital.nuclear => 0.0,
        _ => hospital.weight,
    };
    let hospital = HospitalId(draw::weighted(rng, hospitals.iter().map(may_ask)));
    let priority = Priority::ALL[draw::weighted(rng, kind.urgency)];
    let haste = if priority == Priority::Vital { parameters.vital_delay.value } else { 1.0 };
    let cv = parameters.delay_cv.value;
    let regulation = draw::lognormal(rng, parameters.regulation_min.value * haste, cv);
    let scanner = (parameters.request_to_scan_min.value - parameters.regulation_min.value).max(1.0);
    let scan_after = regulation + draw::lognormal(rng, scanner * haste, cv);
    let scan = draw::lognormal(rng, kind.scan_min, SCAN_CV);
    let reading = draw::lognormal(rng, kind.reading_min.value, parameters.reading_cv.value);
    let images = rng.between(kind.images.0, kind.images.1);
    let (small, large) = parameters.bytes_simulated.value;
    // An absolute emergency is never refused.
    let refused = (rng.chance(parameters.refused.value) && priority != Priority::Vital)
        .then(|| rng.pick(&REFUSALS).copied().unwrap_or_default());
    let conclusion = rng.pick(kind.conclusions).copied().unwrap_or_default();
    Exam {
        accession: format!("D{:05}", number + 1),
        hospital,
        discipline,
        modality: kind.modality,
        kind: kind.name,
        priority,
        requested_ms,
        regulation_ms: minutes_ms(regulation),
        refused,
        scan_after_ms: minutes_ms(scan_after),
        scan_ms: minutes_ms(scan),
        images,
        bytes: images * draw::whole(kind.image_mb * 1e6),
        bytes_simulated: rng.between(small, large),
        reading_ms: minutes_ms(reading).max(1),
        report: format!("{}. {conclusion}", kind.name),
    }
}

/// Spread of scan times within a kind (assumption): the protocol decides, the patient less.
const SCAN_CV: f64 = 0.3;
/// Why regulators refuse.
const REFUSALS: [&str; 3] = [
    "no question that imaging answers",
    "already examined elsewhere today",
    "can wait for the hospital's own radiologist",
];

#[cfg(test)]
mod tests {
    use super::{Day, Discipline, Parameters};
    use crate::day::statistics::mean;

    #[test]
    fn a_seed_gives_one_day_and_another_seed_another() {
        let draw = |seed| format!("{:?}", Day::draw(&Parameters::default(), seed, true));
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn days_have_the_published_numbers() {
        let parameters = Parameters::default();
        for (weekend, expected) in [(false, 750.0), (true, 950.0)] {
            let days: Vec<Day> = (0..20).map(|seed| Day::draw(&parameters, seed, weekend)).collect();
            let count = |discipline| {
                let of = |day: &Day| day.exams.iter().filter(|exam| exam.discipline == discipline).count() as u64;
                mean(days.iter().map(of)).unwrap()
            };
            let radiology = count(Discipline::Radiology);
            assert!((radiology / expected - 1.0).abs() < 0.03, "{radiology}");
            let nuclear = count(Discipline::NuclearMedicine);
            assert!((nuclear / parameters.nuclear(weekend) - 1.0).abs() < 0.25, "{nuclear}");
            let exams = || days.iter().flat_map(|day| &day.exams);
            let minutes = |ms: Option<f64>| ms.unwrap() / 60_000.0;
            let reading =
                minutes(mean(exams().filter(|e| e.discipline == Discipline::Radiology).map(|e| e.reading_ms)));
            assert!((reading - parameters.reading().0).abs() < 0.3, "{reading}");
            let transfer =
                minutes(mean(days.iter().flat_map(|day| day.exams.iter().map(|exam| day.transfer_ms(exam)))));
            assert!((0.2..2.0).contains(&transfer), "{transfer}");
        }
    }

    #[test]
    fn large_hospitals_ask_more_often_than_small_ones() {
        let day = Day::draw(&Parameters::default(), 3, true);
        let mut by_size: Vec<usize> = (0..day.hospitals.len()).collect();
        by_size.sort_by(|a, b| day.hospitals[*a].weight.total_cmp(&day.hospitals[*b].weight));
        let asked = |some: &[usize]| day.exams.iter().filter(|exam| some.contains(&exam.hospital.0)).count();
        let (small, large) = (asked(&by_size[..25]), asked(&by_size[75..]));
        assert!(large > small * 2, "{large} and {small}");
    }

    #[test]
    fn nuclear_medicine_comes_from_its_seven_hospitals_and_fallbacks_lie_elsewhere() {
        let day = Day::draw(&Parameters::default(), 3, false);
        assert_eq!(day.hospitals.iter().filter(|hospital| hospital.nuclear).count(), 7);
        for exam in day.exams.iter().filter(|exam| exam.discipline == Discipline::NuclearMedicine) {
            assert!(day.hospitals[exam.hospital.0].nuclear);
        }
        for hospital in &day.hospitals {
            assert_eq!(day.centres[hospital.home.0].territory, hospital.territory);
            assert_ne!(day.centres[hospital.fallback.0].territory, hospital.territory);
        }
        assert!(day.exams.is_sorted_by_key(|exam| exam.requested_ms));
        assert!(day.exams.iter().any(|exam| exam.refused.is_some()));
    }
}
