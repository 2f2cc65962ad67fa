//! How images reach the central server: over each hospital's line, one study after another.

use crate::day::model::{Day, TerritoryId};
use crate::day::record::{Place, Record};
use crate::day::scenario::{Harm, Scenario};

/// The records of a day up to the arrival of the images: nothing that readers do changes it.
pub(super) fn records(day: &Day, scenario: &Scenario) -> Vec<Record> {
    let mut records: Vec<Record> = day.exams.iter().map(Record::drawn).collect();
    let downs: Vec<Vec<(u64, u64)>> =
        (0..day.territories.len()).map(|at| scenario.spans(|harm| stops_sending(harm, TerritoryId(at)))).collect();
    let mut by_scan: Vec<(u64, usize)> =
        records.iter().enumerate().filter_map(|(at, record)| Some((record.acquired_ms?, at))).collect();
    by_scan.sort_unstable();
    let mut line_free_ms = vec![0; day.hospitals.len()];
    for (acquired_ms, at) in by_scan {
        let exam = &day.exams[at];
        let hospital = exam.hospital.0;
        let from_ms = acquired_ms.max(line_free_ms[hospital]);
        let done_ms = done(from_ms, day.transfer_ms(exam), &downs[day.hospitals[hospital].territory.0]);
        line_free_ms[hospital] = done_ms;
        records[at].received = Some((done_ms, Place::Cloud));
        records[at].ready_ms = Some(done_ms);
    }
    records
}

/// Hospitals do not send through the centre that is lost.
fn stops_sending(harm: Harm, from: TerritoryId) -> bool {
    match harm {
        Harm::CloudLost => true,
        Harm::TerritoryCut(territory) => territory == from,
        Harm::CentreLost(_) | Harm::CentreCut(_) => false,
    }
}

/// When work of this length ends that begins at `from_ms` and rests while the line is down.
fn done(from_ms: u64, work_ms: u64, downs: &[(u64, u64)]) -> u64 {
    let (mut at_ms, mut left_ms) = (from_ms, work_ms);
    for (down_ms, up_ms) in downs.iter().copied().filter(|(_, up_ms)| *up_ms > from_ms) {
        let before_ms = down_ms.saturating_sub(at_ms);
        if left_ms <= before_ms {
            break;
        }
        left_ms -= before_ms;
        at_ms = up_ms;
    }
    at_ms + left_ms
}

#[cfg(test)]
mod tests {
    use super::done;

    #[test]
    fn a_transfer_rests_while_the_line_is_down() {
        let downs = [(100, 200), (250, 300)];
        assert_eq!(done(10, 50, &downs), 60);
        assert_eq!(done(80, 20, &downs), 100);
        assert_eq!(done(80, 30, &downs), 210);
        assert_eq!(done(150, 10, &downs), 210);
        assert_eq!(done(80, 80, &downs), 310);
        assert_eq!(done(400, 7, &downs), 407);
    }
}
