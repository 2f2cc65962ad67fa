//! The central server against queueing theory, and in each failure.

use super::run;
use crate::day::erlang;
use crate::day::model::{CentreId, Day, Discipline, Parameters, Reader};
use crate::day::record::{Ended, Run};
use crate::day::scenario::{Failure, Harm, Scenario};
use crate::day::statistics::mean;
use crate::day::{HORIZON_MS, HOUR_MS, MINUTE_MS};

fn scenario(harm: Harm, from_ms: u64, until_ms: u64) -> Scenario {
    Scenario { name: "test".to_owned(), failures: vec![Failure { name: "test".to_owned(), harm, from_ms, until_ms }] }
}

fn weekend(seed: u64) -> Day {
    Day::draw(&Parameters::default(), seed, true)
}

fn all_read(day: &Day, run: &Run) {
    run.check(day).unwrap();
    for (exam, record) in day.exams.iter().zip(&run.records) {
        let is_nuclear = exam.discipline == Discipline::NuclearMedicine;
        assert_eq!(record.reported_ms.is_some(), exam.refused.is_none(), "{} {is_nuclear}", exam.accession);
    }
}

/// A day of constant rate, read by `readers` people around the clock.
fn steady(seed: u64, readers: usize, reading_min: f64, cv: f64) -> Day {
    let mut parameters = Parameters::default();
    parameters.exams_weekday.value = 4_000.0;
    parameters.hours_weekday.value = [1.0; 24];
    parameters.nuclear_per_year.value = 0.0;
    parameters.refused.value = 0.0;
    parameters.reading_cv.value = cv;
    parameters.uplinks_mbps.value = [(1.0, 1e6); 4];
    for kind in &mut parameters.kinds {
        kind.reading_min.value = reading_min;
    }
    let mut day = Day::draw(&parameters, seed, false);
    let reader =
        |_| Reader { centre: CentreId(0), discipline: Discipline::Radiology, from_ms: 0, until_ms: HORIZON_MS };
    day.readers = (0..readers).map(reader).collect();
    day
}

#[test]
fn mean_wait_at_a_constant_rate_is_that_of_allen_and_cunneen() {
    const SEEDS: u64 = 60;
    // Small beside the ten hours that are measured, so that the queue is in its steady state.
    const READING_MIN: f64 = 1.5;
    let per_min = 4_000.0 / 24.0 / 60.0;
    for (readers, cv) in [(5, 0.6), (5, 1.0), (6, 0.8)] {
        let waits = (0..SEEDS).flat_map(|seed| {
            let run = run(&steady(seed, readers, READING_MIN, cv), &Scenario::none());
            let steady = |ready_ms: u64| (4 * HOUR_MS..23 * HOUR_MS).contains(&ready_ms);
            let records = run.records.into_iter().filter(move |record| record.ready_ms.is_some_and(steady));
            records.filter_map(|record| record.wait_ms())
        });
        let measured = mean(waits).unwrap() / MINUTE_MS as f64;
        let expected = erlang::mean_wait(u32::try_from(readers).unwrap(), per_min, READING_MIN, cv);
        assert!((measured / expected - 1.0).abs() < 0.08, "{readers} readers, cv {cv}: {measured} and {expected} min");
    }
}

#[test]
fn without_failure_everything_is_read_once_and_near_the_published_mean() {
    let mut turnarounds = Vec::new();
    for seed in 0..10 {
        let day = weekend(seed);
        let run = run(&day, &Scenario::none());
        all_read(&day, &run);
        assert!(run.records.iter().all(|record| record.claims.len() <= 1));
        let exams = day.exams.iter().zip(&run.records).filter(|(exam, _)| exam.discipline == Discipline::Radiology);
        turnarounds.extend(exams.filter_map(|(_, record)| record.turnaround_ms()));
    }
    let mean = mean(turnarounds).unwrap() / MINUTE_MS as f64;
    assert!((15.0..17.5).contains(&mean), "{mean} min");
}

#[test]
fn while_the_cloud_is_lost_nothing_arrives_is_claimed_or_reported() {
    let day = weekend(1);
    let (from, until) = (3 * HOUR_MS, 5 * HOUR_MS);
    let run = run(&day, &scenario(Harm::CloudLost, from, until));
    all_read(&day, &run);
    let within = |at_ms: u64| from < at_ms && at_ms < until;
    for record in &run.records {
        assert!(!record.received.is_some_and(|(at_ms, _)| within(at_ms)));
        assert!(!record.claims.iter().any(|claim| within(claim.claimed_ms)));
        assert!(!record.reported_ms.is_some_and(within));
    }
    // Readers who had an exam open handed it in at once; nothing was given back, nothing read twice.
    assert!(run.records.iter().filter(|record| record.reported_ms == Some(until)).count() > 3);
    assert!(run.records.iter().all(|record| record.claims.len() <= 1));
    let waiting = run.waiting.iter().find(|sample| sample.at_ms == until - MINUTE_MS).unwrap();
    assert!(waiting.on_the_way > 10, "{waiting:?}");
}

#[test]
fn claims_of_a_lost_centre_return_by_hand_and_are_read_elsewhere() {
    let day = weekend(1);
    let (from, until) = (20 * HOUR_MS, 23 * HOUR_MS);
    let lost = CentreId(0);
    let run = run(&day, &scenario(Harm::CentreLost(lost), from, until));
    all_read(&day, &run);
    let at_lost = |record: &&super::super::record::Record| {
        record.claims.iter().any(|claim| claim.centre == lost && matches!(claim.ended, Some((_, Ended::Returned))))
    };
    let returned: Vec<_> = run.records.iter().filter(at_lost).collect();
    assert!(!returned.is_empty());
    for record in returned {
        assert_eq!(record.claims[0].ended, Some((from + 15 * MINUTE_MS, Ended::Returned)));
        assert!(record.claims[1].centre != lost && record.claims[0].late_report_ms.is_none());
    }
    let claims = run.records.iter().flat_map(|record| &record.claims);
    assert!(!claims.clone().any(|claim| claim.centre == lost && (from + 1..until).contains(&claim.claimed_ms)));
    assert!(claims.clone().any(|claim| claim.centre == lost && claim.claimed_ms >= until));
}

#[test]
fn nobody_gives_claims_back_before_the_server_is_back() {
    let day = weekend(1);
    let centre = Harm::CentreLost(CentreId(0));
    let mut scenario = scenario(centre, 20 * HOUR_MS, 23 * HOUR_MS);
    let back_ms = 21 * HOUR_MS;
    let (name, from_ms) = ("cloud".to_owned(), 20 * HOUR_MS + MINUTE_MS);
    scenario.failures.push(Failure { name, harm: Harm::CloudLost, from_ms, until_ms: back_ms });
    let run = run(&day, &scenario);
    all_read(&day, &run);
    let ends = run.records.iter().flat_map(|record| &record.claims).filter_map(|claim| claim.ended);
    let returned: Vec<u64> = ends.filter(|(_, how)| *how == Ended::Returned).map(|(at_ms, _)| at_ms).collect();
    assert!(!returned.is_empty());
    assert!(returned.iter().all(|at_ms| (back_ms..=back_ms + MINUTE_MS).contains(at_ms)), "{returned:?}");
}

#[test]
fn a_centre_that_is_back_soon_reads_its_exams_again_from_the_beginning() {
    let day = weekend(1);
    let (from, until) = (20 * HOUR_MS, 20 * HOUR_MS + 10 * MINUTE_MS);
    let run = run(&day, &scenario(Harm::CentreLost(CentreId(0)), from, until));
    all_read(&day, &run);
    let held = |claim: &&super::super::record::Claim| {
        claim.centre == CentreId(0) && claim.claimed_ms < from && claim.ended.is_some_and(|(at, _)| at > from)
    };
    let mut seen = 0;
    for (exam, record) in day.exams.iter().zip(&run.records) {
        assert!(record.claims.len() <= 1);
        if record.claims.iter().any(|claim| held(&claim)) {
            assert_eq!(record.reported_ms, Some(until + exam.reading_ms));
            seen += 1;
        }
    }
    assert!(seen > 0);
}

#[test]
fn a_territory_cut_off_is_blind_and_what_it_still_reads_is_read_twice() {
    let mut twice = 0;
    for seed in 0..10 {
        let day = weekend(seed);
        let (from, until) = (20 * HOUR_MS + 30 * MINUTE_MS, 21 * HOUR_MS + 15 * MINUTE_MS);
        let cut = day.centres[3].territory;
        let run = run(&day, &scenario(Harm::TerritoryCut(cut), from, until));
        all_read(&day, &run);
        let inside = |centre: CentreId| day.centres[centre.0].territory == cut;
        for (exam, record) in day.exams.iter().zip(&run.records) {
            let within = |at_ms: u64| from < at_ms && at_ms < until;
            assert!(!record.claims.iter().any(|claim| inside(claim.centre) && within(claim.claimed_ms)));
            if day.hospitals[exam.hospital.0].territory == cut {
                assert!(!record.received.is_some_and(|(at_ms, _)| within(at_ms)));
            }
            twice += record.claims.iter().filter(|claim| claim.late_report_ms.is_some()).count();
        }
    }
    assert!(twice > 0);
}

#[test]
fn urgent_exams_wait_less() {
    let (mut vital, mut later) = (Vec::new(), Vec::new());
    for seed in 0..20 {
        let day = weekend(seed);
        let run = run(&day, &scenario(Harm::CloudLost, 19 * HOUR_MS, 20 * HOUR_MS));
        for (exam, record) in day.exams.iter().zip(&run.records) {
            let wait = record.wait_ms();
            let urgent = exam.priority == maillage_consensus::exam::Priority::Vital;
            if exam.discipline == Discipline::Radiology {
                if urgent { vital.extend(wait) } else { later.extend(wait) }
            }
        }
    }
    let (vital, later) = (mean(vital).unwrap(), mean(later).unwrap());
    assert!(vital * 3.0 < later, "{vital} and {later} ms");
}
