//! The end of images: never before their time, never under a legal hold, everywhere, and provable.

use super::*;
use crate::mesh::Tombstone;
use crate::order::{Keep, RETENTION_MS};

const DAY_MS: u64 = 24 * 3_600_000;

impl Bench {
    fn purge(&mut self, exam: ExamId) -> Outcome {
        self.run(PARIS, Command::Purge { exam, reason: Line::default(), withdrawn: false })
    }

    fn purge_by_hand(&mut self, exam: ExamId, withdrawn: bool) -> Outcome {
        self.run(PARIS, Command::Purge { exam, reason: Line::fitted("asked for"), withdrawn })
    }

    fn confirm(&mut self, site: SiteId, tombstone: &Tombstone) -> Outcome {
        let Tombstone { exam, study, manifest, .. } = tombstone.clone();
        self.run(site, Command::RecordPurged { exam, study, manifest })
    }

    /// An exam that was read, reported and delivered, with images at Paris.
    fn delivered(&mut self, accession: &str) -> ExamId {
        let exam = self.add(request(accession, "P1"));
        self.images(PARIS, exam);
        let token = self.take(PARIS, exam).claim.token;
        self.run(PARIS, written(exam, token, ReportKind::Final, "nothing"));
        let delivered = self.run(PARIS, Command::Deliver { exam, report: 1, to: Line::fitted("Dr") });
        assert_eq!(delivered, Outcome::Done);
        exam
    }

    fn later(&mut self, ms: u64) {
        self.now += ms;
    }
}

fn refused(outcome: Outcome) -> Refusal {
    match outcome {
        Outcome::Refused(refusal) => refusal,
        other => panic!("{other:?}"),
    }
}

#[test]
fn images_are_purged_ninety_days_after_the_final_report_and_not_before() {
    let mut bench = Bench::founded();
    let lyon = bench.join("lyon");
    let exam = bench.delivered("A1");
    let reported_at = bench.exam(exam).ended_at.expect("reported").0;
    bench.later(RETENTION_MS - 10_000);
    let until = UnixMillisField(reported_at + RETENTION_MS);
    assert_eq!(refused(bench.purge(exam)), Refusal::Retained { until });
    assert_eq!(bench.exam(exam).state, ExamState::Delivered);
    bench.later(10_000);
    assert_eq!(bench.purge(exam), Outcome::Done);
    let after = bench.exam(exam);
    assert_eq!((after.state, after.course.report), (ExamState::Purged, Some(1)));
    assert_eq!(bench.view(|view| view.reports(exam)).len(), 1, "the report stays");
    assert_eq!(bench.view(|view| view.study(&format!("1.2.{exam}"))), None, "nobody finds the images");
    let [tombstone] = &bench.view(|view| view.tombstones(exam))[..] else { panic!("one part") };
    assert_eq!(tombstone.pending, [PARIS, lyon]);
    let counts = bench.view(|view| view.counts());
    assert_eq!((counts.studies, counts.more.purged, counts.more.purges_pending), (0, 1, 2));
    assert_eq!(refused(bench.purge(exam)), Refusal::WrongState { state: ExamState::Purged });
}

#[test]
fn every_site_confirms_once_and_the_trail_says_so() {
    let mut bench = Bench::founded();
    let lyon = bench.join("lyon");
    let exam = bench.delivered("A1");
    bench.later(RETENTION_MS);
    bench.purge(exam);
    let (found, more) = bench.view(|view| view.purges_of(lyon, None, 9));
    assert_eq!((found.len(), more), (1, None));
    assert_eq!(bench.confirm(lyon, &found[0]), Outcome::Done);
    assert_eq!(refused(bench.confirm(lyon, &found[0])), Refusal::DoneAlready);
    assert_eq!(bench.view(|view| view.purges_of(lyon, None, 9)).0, []);
    let [tombstone] = &bench.view(|view| view.tombstones(exam))[..] else { panic!("one part") };
    assert_eq!(tombstone.pending, [PARIS], "a site that is away stays on the list");
    assert_eq!(tombstone.confirmed.iter().map(|(site, _)| *site).collect::<Vec<_>>(), [lyon]);
    let trail = bench.view(|view| view.audit(0, 1000));
    let of = |kind: &str, site: SiteId| {
        trail.iter().filter(|link| link.entry.kind.as_str() == kind && link.entry.site == site).count()
    };
    assert_eq!((of("purge", PARIS), of("record-purged", lyon)), (1, 2));
    assert!(trail.iter().filter(|link| link.entry.kind.as_str() == "purge").all(|l| l.entry.exam == Some(exam)));
    assert_eq!(bench.view(|view| view.counts()).more.purges_pending, 1);
}

#[test]
fn a_legal_hold_keeps_images_until_it_is_released() {
    let mut bench = Bench::founded();
    let exam = bench.delivered("A1");
    let reason = Line::fitted("expert opinion ordered by the court");
    let unexplained = bench.run(PARIS, Command::LegalHold { exam, reason: Line::default() });
    assert!(matches!(refused(unexplained), Refusal::Missing(_)));
    assert_eq!(bench.run(PARIS, Command::LegalHold { exam, reason: reason.clone() }), Outcome::Done);
    assert_eq!(bench.view(|view| view.counts()).more.legal_holds, 1);
    bench.later(10 * RETENTION_MS);
    assert_eq!(refused(bench.purge(exam)), Refusal::OnHold);
    assert_eq!(refused(bench.purge_by_hand(exam, true)), Refusal::OnHold);
    assert_eq!(bench.run(PARIS, Command::ReleaseHold { exam, reason: reason.clone() }), Outcome::Done);
    assert_eq!(bench.purge(exam), Outcome::Done);
    let late = bench.run(PARIS, Command::LegalHold { exam, reason });
    assert_eq!(refused(late), Refusal::WrongState { state: ExamState::Purged });
    assert_eq!(bench.view(|view| view.counts()).more.legal_holds, 0);
}

#[test]
fn an_exam_that_is_held_by_a_reader_is_never_purged_and_one_never_read_much_later() {
    let mut bench = Bench::founded();
    let exam = bench.add(request("A1", "P1"));
    bench.images(PARIS, exam);
    bench.later(RETENTION_MS + DAY_MS);
    assert!(matches!(refused(bench.purge(exam)), Refusal::Retained { .. }), "somebody may still wait for it");
    let token = bench.take(PARIS, exam).claim.token;
    bench.later(10 * RETENTION_MS);
    assert_eq!(refused(bench.purge(exam)), Refusal::WrongState { state: ExamState::Claimed });
    bench.run(PARIS, Command::Open { exam, token });
    assert_eq!(refused(bench.purge_by_hand(exam, true)), Refusal::WrongState { state: ExamState::Reading });
    bench.run(PARIS, Command::Release { exam, token, reason: Line::default() });
    assert_eq!(bench.purge(exam), Outcome::Done);
    let open = bench.view(|view| view.workitems(exam));
    assert!(open.iter().all(|workitem| workitem.state == WorkitemState::Canceled), "{open:?}");
    assert_eq!(bench.view(|view| view.waiting(UnixMillisField(u64::MAX), 9)), []);
}

#[test]
fn a_hospital_and_a_modality_may_have_times_of_their_own() {
    let mut bench = Bench::founded();
    let keep = |modality: &str, ms| Keep { modality: Text8::fitted(modality), ms };
    let policy = Policy { retention: vec![keep("MR", 5 * DAY_MS), keep("", 7 * DAY_MS)], ..Policy::default() };
    bench.run(PARIS, Command::SetPolicy(policy.clone()));
    let exam = bench.delivered("A1");
    let until = |bench: &Bench| {
        let exam = bench.exam(exam);
        (bench.view(|view| view.retained_until(&exam)).0 - exam.ended_at.expect("reported").0) / DAY_MS
    };
    assert_eq!(until(&bench), 7, "the rule for all");
    let mut its = hospital(bench.exam(exam).request.hospital.as_str(), place("t", "d", "r"));
    its.retention = vec![keep("CT", 3 * DAY_MS)];
    bench.run(PARIS, Command::SetHospital(its.clone()));
    assert_eq!(until(&bench), 3, "its hospital's rule");
    its.retention = vec![keep("PT", 3 * DAY_MS)];
    bench.run(PARIS, Command::SetHospital(its));
    assert_eq!(until(&bench), 7, "which says nothing of this modality");
    bench.later(7 * DAY_MS);
    assert_eq!(bench.purge(exam), Outcome::Done);
}

#[test]
fn images_are_expected_to_go_by_the_rule_for_their_hospital_and_modality_as_if_their_exam_were_over() {
    let mut bench = Bench::founded();
    let exam = bench.add(request("A1", "P1"));
    bench.images(PARIS, exam);
    let off = bench.add(request("A2", "P1"));
    bench.images(PARIS, off);
    let received_at = bench.exam(off).course.images_at.or(bench.exam(off).ready_at).expect("images").0;
    bench.run(PARIS, Command::Cancel { exam: off, reason: Line::fitted("a mistake") });
    let expected = |bench: &Bench, exam, now| {
        let exam = bench.exam(exam);
        bench.view(|view| view.expected_until(&exam, UnixMillisField(now))).0
    };
    let now = bench.now + 2 * DAY_MS;
    assert_eq!(expected(&bench, exam, now), now + RETENTION_MS, "not twice as long, as if nobody ever read it");
    assert_eq!(expected(&bench, off, now), received_at + RETENTION_MS);
    let mut its = hospital(bench.exam(exam).request.hospital.as_str(), place("t", "d", "r"));
    let keep = |modality: &str, ms| Keep { modality: Text8::fitted(modality), ms };
    its.retention = vec![keep("CT", 3 * DAY_MS), keep("", 900 * DAY_MS)];
    bench.run(PARIS, Command::SetHospital(its));
    assert_eq!(expected(&bench, exam, now), now + 3 * DAY_MS);
    assert_eq!(expected(&bench, off, now), received_at + 3 * DAY_MS);
    let delivered = bench.delivered("A3");
    let over = bench.exam(delivered);
    assert_eq!(expected(&bench, delivered, now), bench.view(|view| view.retained_until(&over)).0);
}

#[test]
fn a_person_purges_what_is_off_or_without_consent_and_nothing_else() {
    let mut bench = Bench::founded();
    let delivered = bench.delivered("A1");
    assert!(matches!(refused(bench.purge_by_hand(delivered, false)), Refusal::Retained { .. }));
    assert_eq!(bench.purge_by_hand(delivered, true), Outcome::Done, "the consent was withdrawn");
    assert_eq!(bench.exam(delivered).course.purged.expect("purged").reason.as_str(), "asked for");
    let off = bench.add(request("A2", "P1"));
    bench.images(PARIS, off);
    bench.run(PARIS, Command::Cancel { exam: off, reason: Line::fitted("a mistake") });
    assert!(matches!(refused(bench.purge(off)), Refusal::Retained { .. }));
    assert_eq!(bench.purge_by_hand(off, false), Outcome::Done);
    // Asked for again, it is a request of its own.
    let again = bench.run(PARIS, Command::AddExam(request("A2", "P1")));
    assert!(matches!(again, Outcome::ExamAdded { exam, existed: false } if exam != off), "{again:?}");
}

#[test]
fn images_after_a_purge_make_an_exam_of_their_own_once_their_site_has_purged() {
    let mut bench = Bench::founded();
    let exam = bench.delivered("A1");
    let study = format!("1.2.{exam}");
    bench.later(RETENTION_MS);
    bench.purge(exam);
    let says = bench.exam(exam).request;
    let next = StudyPart { manifest: [9; 32], ..part(&study, says, 2) };
    let too_early = bench.run(PARIS, Command::RecordStudy(next.clone()));
    assert_eq!(refused(too_early), Refusal::Purging, "its publication may list what is to be gone");
    let tombstone = bench.view(|view| view.tombstones(exam)).remove(0);
    bench.confirm(PARIS, &tombstone);
    let old = StudyPart { sequence: 1, ..next.clone() };
    assert_eq!(refused(bench.run(PARIS, Command::RecordStudy(old))), Refusal::PartSuperseded { sequence: 1 });
    assert_eq!(bench.view(|view| view.purged_of(PARIS, &study)), (false, 1));
    match bench.run(PARIS, Command::RecordStudy(next)) {
        Outcome::StudyRecorded { exam: to, unsolicited: Some(Unsolicited::NoRequest) } => assert_ne!(to, exam),
        other => panic!("{other:?}"),
    }
    assert_eq!(bench.exam(exam).state, ExamState::Purged);
}

#[test]
fn another_exams_part_of_the_same_study_stays() {
    let mut bench = Bench::founded();
    let lyon = bench.join("lyon");
    let exam = bench.delivered("A1");
    let study = format!("1.2.{exam}");
    let other =
        Request { patient: Patient { id: Line::fitted("P9"), ..request("A9", "P9").patient }, ..request("A9", "P9") };
    let theirs = StudyPart { manifest: [7; 32], ..part(&study, other, 1) };
    let Outcome::StudyRecorded { exam: kept, .. } = bench.run(lyon, Command::RecordStudy(theirs)) else {
        panic!("kept")
    };
    assert_ne!(kept, exam);
    bench.later(RETENTION_MS);
    assert_eq!(bench.purge(exam), Outcome::Done);
    let left = bench.view(|view| view.study(&study)).expect("the other part");
    assert_eq!(left.parts.iter().map(|held| held.exam).collect::<Vec<_>>(), [kept]);
    assert_eq!(bench.view(|view| view.tombstones(exam)).len(), 1);
}

#[test]
fn only_the_leader_purges_without_a_reason() {
    let bench = Bench::founded();
    let command = |reason: &str| Envelope {
        id: CommandId::random(),
        at: UnixMillisField(0),
        site: PARIS,
        user: Name::default(),
        command: Command::Purge { exam: ExamId(5), reason: Line::fitted(reason), withdrawn: false },
    };
    let from = Proposer { node: 1, is_leader: false };
    let stamp = |reason| Queue.stamp(&*bench.engine, &command(reason).encode(), from, UnixMillis(9));
    assert!(stamp("").is_err());
    assert!(stamp("asked for").is_ok());
}

#[test]
fn a_purge_waits_for_no_gateway_and_says_when_it_was() {
    let mut bench = Bench::founded();
    let token = key("chu", 2);
    bench.run(PARIS, Command::CreateGatewayToken { key: token.clone(), lifetime_ms: 3_600_000, hospitals: Vec::new() });
    bench.run(PARIS, Command::JoinGateway { token, joiner: site("chu", 1) });
    let exam = bench.delivered("A1");
    let study = format!("1.2.{exam}");
    assert_eq!(bench.view(|view| view.purged_at(&study)), None);
    bench.later(RETENTION_MS);
    assert_eq!(bench.purge(exam), Outcome::Done);
    let tombstone = bench.view(|view| view.tombstones(exam)).remove(0);
    assert_eq!(tombstone.pending, [PARIS], "the gateway is in no list");
    assert_eq!(bench.view(|view| view.purged_at(&study)), Some(tombstone.at));
}
