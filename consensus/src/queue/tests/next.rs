//! Who is given which exam: contract, territory, expertise, specialty, and that nobody starves.

use super::*;
use crate::exam::Priority::{Scheduled, Urgent, Vital};

const HOUR: u64 = 3_600_000;

fn next(bench: &mut Bench, site: SiteId, reader: Reader) -> Option<ExamId> {
    match bench.run(site, Command::Next(reader)) {
        Outcome::Claimed(grant) => Some(grant.exam),
        Outcome::NothingWaiting => None,
        other => panic!("{other:?}"),
    }
}

fn nuclear() -> Reader {
    Reader { specialties: vec![Specialty::NuclearMedicine], ..Reader::default() }
}

#[test]
fn a_nuclear_physician_gets_pet_and_scintigraphy_and_a_radiologist_does_not() {
    let mut bench = Bench::founded();
    let of =
        |modality: &str, accession: &str| Request { modality: Text8::fitted(modality), ..ready(accession, Urgent) };
    let pet = bench.add(of("PT", "A1"));
    let scintigraphy = bench.add(of("NM", "A2"));
    let ct = bench.add(of("CT", "A3"));
    assert_eq!(next(&mut bench, PARIS, Reader::default()), Some(ct));
    assert_eq!(next(&mut bench, PARIS, Reader::default()), None);
    assert_eq!(next(&mut bench, PARIS, nuclear()), Some(pet));
    assert_eq!(next(&mut bench, PARIS, nuclear()), Some(scintigraphy));
    assert_eq!(next(&mut bench, PARIS, nuclear()), None);
}

/// Where each level of the room begins to be looked at: the exam of its first place, or none.
fn floor(bench: &Bench, priority: Priority) -> Option<ExamId> {
    let floor = bench.engine.get(&keys::waiting_floor(priority)).expect("get")?;
    let first = maillage_host::engine::scan_prefix(&*bench.engine, &keys::waiting_level(priority), 1).expect("scan");
    assert!(first.first().is_none_or(|(first, _)| floor <= *first), "an exam that waits is before the floor");
    bench.engine.get(&floor).expect("get")?;
    keys::trailing_number(&floor).map(ExamId)
}

#[test]
fn a_level_is_looked_at_from_its_first_place_on_however_exams_leave_it() {
    let mut bench = Bench::founded();
    let exams: Vec<ExamId> = (0..6).map(|n| bench.add(ready(&format!("A{n}"), Urgent))).collect();
    let scheduled = bench.add(ready("B", Scheduled));
    let take = |bench: &mut Bench, exam| {
        let transaction_uid = UidText::default();
        let taken = bench.run(PARIS, Command::Take { exam, transaction_uid });
        assert!(matches!(taken, Outcome::Claimed(_)), "{taken:?}");
    };
    take(&mut bench, exams[0]);
    assert_eq!(floor(&bench, Urgent), Some(exams[1]), "picked");
    take(&mut bench, exams[2]);
    assert_eq!(floor(&bench, Urgent), Some(exams[1]), "picked from behind the first");
    bench.run(PARIS, Command::Cancel { exam: exams[1], reason: Line::fitted("not needed") });
    assert_eq!(floor(&bench, Urgent), Some(exams[3]), "cancelled");
    bench.run(PARIS, Command::Prioritise { exam: exams[3], priority: Vital });
    assert_eq!(floor(&bench, Urgent), Some(exams[4]), "urgent no more");
    assert_eq!(next(&mut bench, PARIS, Reader::default()), Some(exams[3]));
    assert_eq!(next(&mut bench, PARIS, Reader::default()), Some(exams[4]));
    assert_eq!(floor(&bench, Urgent), Some(exams[5]), "given");
    take(&mut bench, exams[5]);
    assert_eq!(floor(&bench, Urgent), None, "the level is empty");
    assert_eq!(next(&mut bench, PARIS, Reader::default()), Some(scheduled));
}

#[test]
fn an_order_may_name_its_specialty_whatever_its_modality() {
    let mut bench = Bench::founded();
    let order = Order { specialty: Some(Specialty::NuclearMedicine), ..consented() };
    let exam = bench.order(ready("A1", Urgent), order);
    assert_eq!(next(&mut bench, PARIS, Reader::default()), None);
    let only_mr = Reader { modalities: vec![Text8::fitted("MR")], ..nuclear() };
    assert_eq!(next(&mut bench, PARIS, only_mr), None);
    assert_eq!(next(&mut bench, PARIS, nuclear()), Some(exam));
}

#[test]
fn an_exam_is_never_read_outside_its_hospitals_contract() {
    let mut bench = Bench::founded();
    let lyon = bench.join("lyon");
    let contract = Hospital { sites: vec![lyon], ..hospital("hospital", Place::default()) };
    bench.run(PARIS, Command::SetHospital(contract));
    let exam = bench.add(ready("A1", Vital));
    assert_eq!(next(&mut bench, PARIS, Reader::default()), None);
    assert_eq!(bench.run(PARIS, Command::ClaimTake { exam }), Outcome::Refused(Refusal::NoContract));
    assert_eq!(next(&mut bench, lyon, Reader::default()), Some(exam));
    assert_eq!(bench.run(PARIS, Command::SetHospital(hospital("", Place::default()))), missing("the hospital's name"));
}

/// A hospital of Paris's territory, and Lyon far away in another region.
fn near_and_far() -> (Bench, SiteId) {
    let mut bench = Bench::founded();
    let lyon = bench.join("lyon");
    bench.run(PARIS, Command::Situate { place: place("ghu", "75", "idf") });
    bench.run(lyon, Command::Situate { place: place("hcl", "69", "ara") });
    bench.run(PARIS, Command::SetHospital(hospital("hospital", place("ghu", "75", "idf"))));
    (bench, lyon)
}

#[test]
fn an_exam_is_kept_for_its_territory_first_and_then_for_wider_circles() {
    let (mut bench, lyon) = near_and_far();
    let region = bench.join("versailles");
    bench.run(region, Command::Situate { place: place("", "78", "idf") });
    let department = bench.join("the other side of the river");
    bench.run(department, Command::Situate { place: place("other", "75", "idf") });
    bench.add(ready("A1", Urgent));
    let ready_at = bench.now;
    // Of an hour: a tenth for the territory, two tenths for the department, three for the region.
    for (site, minutes) in [(department, 6), (region, 12), (lyon, 18)] {
        bench.now = ready_at + minutes * 60_000 - 2_000;
        assert_eq!(next(&mut bench, site, Reader::default()), None, "{minutes} minutes are not over");
        bench.now = ready_at + minutes * 60_000;
        let exam = next(&mut bench, site, Reader::default()).expect("now it is anybody's so near");
        let token = bench.exam(exam).claim.expect("held").token;
        bench.run(site, Command::Release { exam, token, reason: Line::default() });
    }
}

#[test]
fn an_exam_is_kept_only_while_a_nearer_site_is_in_session() {
    let (mut bench, lyon) = near_and_far();
    let exam = bench.add(ready("A1", Urgent));
    assert_eq!(next(&mut bench, lyon, Reader::default()), None);
    bench.run(lyon, Command::ExpireSession { site: PARIS, session: 1 });
    assert_eq!(next(&mut bench, lyon, Reader::default()), Some(exam), "nobody is nearer");
}

#[test]
fn a_life_at_stake_is_kept_from_nobody_and_what_is_picked_is_recorded() {
    let (mut bench, lyon) = near_and_far();
    let vital = bench.add(ready("A1", Vital));
    let urgent = bench.add(ready("A2", Urgent));
    assert_eq!(next(&mut bench, lyon, Reader::default()), Some(vital));
    bench.take(lyon, urgent);
    assert!(!bench.exam(vital).course.picked, "given");
    assert!(bench.exam(urgent).course.picked, "picked by hand, though it is kept for others");
}

#[test]
fn a_rare_case_is_kept_for_experts_for_a_share_of_its_target() {
    let mut bench = Bench::founded();
    let order = Order { expertise: Text8::fitted("paediatric"), ..consented() };
    let rare = bench.order(ready("A1", Urgent), order);
    let ready_at = bench.now;
    let expert = Reader { expertise: vec![Text8::fitted("paediatric")], ..Reader::default() };
    assert_eq!(next(&mut bench, PARIS, Reader::default()), None);
    assert_eq!(next(&mut bench, PARIS, expert), Some(rare));
    let token = bench.exam(rare).claim.expect("held").token;
    bench.run(PARIS, Command::Release { exam: rare, token, reason: Line::default() });
    bench.now = ready_at + HOUR / 4;
    assert_eq!(next(&mut bench, PARIS, Reader::default()), Some(rare), "a quarter of its target is over");
}

#[test]
fn a_policy_changes_for_how_long_an_exam_is_kept() {
    let (mut bench, lyon) = near_and_far();
    let policy = Policy { kept_for: [0, 0, 0], ..Policy::default() };
    bench.run(PARIS, Command::SetPolicy(policy));
    let exam = bench.add(ready("A1", Urgent));
    assert_eq!(next(&mut bench, lyon, Reader::default()), Some(exam));
}

#[test]
fn an_exam_that_waits_for_targets_on_end_rises_above_a_flood_of_more_urgent_ones() {
    let mut bench = Bench::founded();
    let starved = bench.add(ready("A0", Scheduled));
    bench.now += 24 * HOUR;
    let flood = |bench: &mut Bench, n: u64| bench.add(ready(&format!("B{n}"), Urgent));
    let first = flood(&mut bench, 1);
    assert_eq!(next(&mut bench, PARIS, Reader::default()), Some(first), "just due: still scheduled");
    // Two targets late: it stands with the urgent ones, and is due before all of them.
    bench.now += 48 * HOUR;
    flood(&mut bench, 2);
    let room: Vec<ExamId> =
        bench.view(|view| view.waiting(UnixMillisField(bench.now), 9)).into_iter().map(|exam| exam.id).collect();
    assert_eq!(room[0], starved, "what the worklist shows is what is given");
    assert_eq!(next(&mut bench, PARIS, Reader::default()), Some(starved));
}
