//! Images meet their request, or stand apart.

use super::*;

#[test]
fn images_meet_their_request_by_accession_and_patient() {
    let mut bench = Bench::founded();
    let exam = bench.add(request("A1", "P1"));
    assert_eq!(bench.exam(exam).state, ExamState::Requested);
    assert!(matches!(
        bench.run(PARIS, Command::ClaimTake { exam }),
        Outcome::Refused(Refusal::WrongState { state: ExamState::Requested })
    ));
    let recorded = bench.run(PARIS, Command::RecordStudy(part("1.2", request("A1", "P1"), 1)));
    assert_eq!(recorded, Outcome::StudyRecorded { exam, unsolicited: None });
    assert_eq!(bench.exam(exam).state, ExamState::Waiting);
}

/// Which of these sites hold the study's one part, and what its origin has vouched for.
fn strayed(bench: &Bench) -> Vec<(Vec<SiteId>, usize)> {
    let strayed = bench.view(|view| view.strayed(None, 9));
    strayed.into_iter().map(|(study, vouched)| (study.parts[0].holders.clone(), vouched.len())).collect()
}

#[test]
fn a_consent_that_is_withdrawn_lists_the_copies_until_each_is_given_up_and_the_origin_vouches() {
    let mut bench = Bench::founded();
    let [lyon, nantes] = ["lyon", "nantes"].map(|name| bench.join(name));
    let exam = bench.order(request("A1", "P1"), consented());
    bench.images(PARIS, exam);
    let study = bench.exam(exam).studies[0].clone();
    let manifest = bench.view(|view| view.study(study.as_str())).expect("known").parts[0].part.manifest;
    let holds = |bench: &mut Bench, site, holds| {
        bench.run(site, Command::RecordHolding { study: study.clone(), manifest, holds })
    };
    for site in [lyon, nantes] {
        holds(&mut bench, site, true);
    }
    assert!(strayed(&bench).is_empty());
    let refused = Order { consent: Consent::Refused, ..Order::default() };
    let again = Command::Order { request: request("A1", "P1"), order: refused };
    assert_eq!(bench.run(lyon, again), Outcome::ExamAdded { exam, existed: true });
    assert!(bench.exam(exam).is_confined());
    assert_eq!(strayed(&bench), [(vec![PARIS, lyon, nantes], 0)]);
    holds(&mut bench, lyon, true);
    assert_eq!(strayed(&bench)[0].1, 0, "only who received them vouches");
    for _ in 0..2 {
        holds(&mut bench, PARIS, true);
        assert_eq!(strayed(&bench)[0].1, 1, "once");
    }
    let lost = |bench: &Bench| bench.view(|view| view.counts()).more.copies_lost;
    holds(&mut bench, lyon, false);
    assert_eq!((strayed(&bench), lost(&bench)), (vec![(vec![PARIS, nantes], 1)], 0), "given up, not lost");
    holds(&mut bench, PARIS, false);
    assert_eq!((strayed(&bench), lost(&bench)), (vec![(vec![nantes], 0)], 1), "who lost it vouches no more");
    holds(&mut bench, PARIS, true);
    holds(&mut bench, nantes, false);
    assert!(strayed(&bench).is_empty());
    // A copy whose making was under way comes after all.
    holds(&mut bench, lyon, true);
    assert_eq!(strayed(&bench), [(vec![PARIS, lyon], 0)], "it is vouched for anew");
}

#[test]
fn a_refusal_that_comes_with_the_request_after_its_images_lists_their_copies() {
    let mut bench = Bench::founded();
    let lyon = bench.join("lyon");
    let Outcome::StudyRecorded { exam, unsolicited: Some(_) } =
        bench.run(PARIS, Command::RecordStudy(part("1.2", request("A1", "P1"), 1)))
    else {
        panic!("unasked for");
    };
    let manifest = part("1.2", request("A1", "P1"), 1).manifest;
    bench.run(lyon, Command::RecordHolding { study: UidText::fitted("1.2"), manifest, holds: true });
    let refused = Order { consent: Consent::Refused, ..Order::default() };
    let adopted = bench.run(PARIS, Command::Order { request: request("A1", "P1"), order: refused });
    assert_eq!(adopted, Outcome::ExamAdded { exam, existed: true });
    assert_eq!(strayed(&bench), [(vec![PARIS, lyon], 0)]);
}

#[test]
fn images_of_another_patient_are_never_attached_to_the_request() {
    let mut bench = Bench::founded();
    let exam = bench.add(born("A1", "P1", "19701231"));
    for (says, why) in [
        (request("A1", "P2"), Unsolicited::OtherPatient),
        (request("A9", "P1"), Unsolicited::NoRequest),
        (request("", "P1"), Unsolicited::NoIdentifiers),
        (request("A1", ""), Unsolicited::NoIdentifiers),
        (born("A1", "P1", "19990101"), Unsolicited::OtherPatient),
    ] {
        let study = format!("1.2.{}", bench.index);
        match bench.run(PARIS, Command::RecordStudy(part(&study, says, 1))) {
            Outcome::StudyRecorded { exam: made, unsolicited: Some(reason) } => {
                assert_ne!(made, exam);
                assert_eq!(reason, why);
                assert_eq!(bench.exam(made).state, ExamState::Waiting, "an emergency does not wait for paper");
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(bench.exam(exam).studies.is_empty());
    assert_eq!(bench.view(|view| view.counts()).unsolicited, 5);
}

#[test]
fn one_study_uid_with_two_patients_makes_two_exams() {
    let mut bench = Bench::founded();
    let lyon = bench.join("lyon");
    let first = bench.add(request("A1", "P1"));
    let second = bench.add(request("A2", "P2"));
    bench.run(PARIS, Command::RecordStudy(part("1.2", request("A1", "P1"), 1)));
    let other = bench.run(lyon, Command::RecordStudy(part("1.2", request("A2", "P2"), 1)));
    assert_eq!(other, Outcome::StudyRecorded { exam: second, unsolicited: None });
    let parts = bench.view(|view| view.study("1.2")).expect("the study").parts;
    let exams: Vec<_> = parts.iter().map(|held| (held.origin, held.exam)).collect();
    assert_eq!(exams, [(PARIS, first), (lyon, second)]);
}

#[test]
fn a_request_that_comes_after_its_images_adopts_them() {
    let mut bench = Bench::founded();
    let Outcome::StudyRecorded { exam, unsolicited: Some(_) } =
        bench.run(PARIS, Command::RecordStudy(part("1.2", request("A1", "P1"), 1)))
    else {
        panic!("unsolicited at first");
    };
    let vital = Request { priority: Priority::Vital, ..request("A1", "P1") };
    assert_eq!(bench.run(PARIS, Command::AddExam(vital)), Outcome::ExamAdded { exam, existed: true });
    let exam = bench.exam(exam);
    assert_eq!((exam.unsolicited, exam.request.priority), (None, Priority::Vital));
    assert_eq!(bench.view(|view| view.counts()).unsolicited, 0);
}

#[test]
fn an_exam_requested_again_after_a_cancellation_has_its_images() {
    let mut bench = Bench::founded();
    let first = bench.add(request("A1", "P1"));
    bench.run(PARIS, Command::RecordStudy(part("1.2", request("A1", "P1"), 1)));
    bench.run(PARIS, Command::Cancel { exam: first, reason: Line::fitted("mistake") });
    let second = bench.add(request("A1", "P1"));
    assert_eq!(bench.exam(second).state, ExamState::Waiting);
    let lyon = bench.join("lyon");
    let more = bench.run(lyon, Command::RecordStudy(part("1.2", request("A1", "P1"), 1)));
    assert_eq!(more, Outcome::StudyRecorded { exam: second, unsolicited: None });
}

#[test]
fn reconciling_moves_the_images_and_ends_the_unsolicited_exam() {
    let mut bench = Bench::founded();
    let into = bench.add(request("A1", "P1"));
    let Outcome::StudyRecorded { exam: unsolicited, .. } =
        bench.run(PARIS, Command::RecordStudy(part("1.2", request("A7", "P1"), 1)))
    else {
        panic!("recorded");
    };
    assert_eq!(bench.run(PARIS, Command::Reconcile { unsolicited, into }), Outcome::Done);
    assert_eq!(bench.exam(into).state, ExamState::Waiting);
    assert_eq!(bench.exam(into).studies, [UidText::fitted("1.2")]);
    let ended = bench.exam(unsolicited);
    assert_eq!((ended.state, ended.reconciled_into), (ExamState::Cancelled, Some(into)));
    // More images of the same study follow it to where it went.
    let more = bench.run(PARIS, Command::RecordStudy(part("1.2", request("A7", "P1"), 2)));
    assert_eq!(more, Outcome::StudyRecorded { exam: into, unsolicited: None });
}

/// The earlier publications of the one part that are remembered, and their holders.
fn earlier(bench: &Bench) -> Vec<(u64, Vec<SiteId>)> {
    let study = bench.view(|view| view.study("1.2")).expect("study");
    study.parts[0].earlier.iter().map(|earlier| (earlier.part.sequence, earlier.holders.clone())).collect()
}

fn holding(part: &StudyPart, holds: bool) -> Command {
    Command::RecordHolding { study: part.study.clone(), manifest: part.manifest, holds }
}

#[test]
fn earlier_publications_are_remembered_until_as_many_as_are_wanted_have_caught_up() {
    let mut bench = Bench::founded();
    let [lyon, nantes, brest] = ["lyon", "nantes", "brest"].map(|name| bench.join(name));
    let parts = [1, 2, 3].map(|sequence| part("1.2", request("A1", "P1"), sequence));
    bench.run(PARIS, Command::RecordStudy(parts[0].clone()));
    for site in [lyon, nantes, brest] {
        bench.run(site, holding(&parts[0], true));
    }
    bench.run(PARIS, Command::RecordStudy(parts[1].clone()));
    assert_eq!(earlier(&bench), [(1, vec![PARIS, lyon, nantes, brest])]);
    // Two zones have all of it now: whoever asks is told that it may be deleted.
    bench.run(lyon, holding(&parts[1], true));
    bench.run(PARIS, Command::RecordStudy(parts[2].clone()));
    assert_eq!(earlier(&bench), [(2, vec![PARIS, lyon]), (1, vec![PARIS, lyon, nantes, brest])]);
    bench.run(nantes, holding(&parts[1], true));
    assert_eq!(earlier(&bench), [(2, vec![PARIS, lyon, nantes])], "three are wanted");
}

#[test]
fn what_drained_sites_have_of_earlier_publications_is_remembered_while_fewer_than_two_others_have_it() {
    let mut bench = Bench::founded();
    let [lyon, nantes] = ["lyon", "nantes"].map(|name| bench.join(name));
    let parts = [1, 2].map(|sequence| part("1.2", request("A1", "P1"), sequence));
    bench.run(PARIS, Command::RecordStudy(parts[0].clone()));
    bench.run(lyon, holding(&parts[0], true));
    for site in [lyon, nantes] {
        let drain = Command::Drain { site, reason: Line::fitted("new disks"), force: true };
        assert_eq!(bench.run(PARIS, drain), Outcome::Done);
    }
    bench.run(PARIS, Command::RecordStudy(parts[1].clone()));
    assert_eq!(earlier(&bench), [(1, vec![PARIS, lyon])], "paris alone could have more");
    let undrain = Command::Undrain { site: nantes, reason: Line::default() };
    assert_eq!(bench.run(PARIS, undrain), Outcome::Done);
    bench.run(nantes, holding(&parts[1], true));
    assert_eq!(earlier(&bench), []);
}

#[test]
fn a_site_that_lost_what_it_had_takes_nothing_from_what_is_known_of_the_others() {
    let mut bench = Bench::founded();
    let [lyon, nantes, brest] = ["lyon", "nantes", "brest"].map(|name| bench.join(name));
    let parts = [1, 2, 3, 4].map(|sequence| part("1.2", request("A1", "P1"), sequence));
    bench.run(PARIS, Command::RecordStudy(parts[0].clone()));
    bench.run(lyon, holding(&parts[0], true));
    bench.run(nantes, holding(&parts[0], true));
    bench.run(PARIS, Command::RecordStudy(parts[1].clone()));
    bench.run(PARIS, holding(&parts[1], false));
    bench.run(lyon, holding(&parts[1], true));
    bench.run(PARIS, Command::RecordStudy(parts[2].clone()));
    bench.run(PARIS, holding(&parts[2], false));
    bench.run(PARIS, Command::RecordStudy(parts[3].clone()));
    bench.run(PARIS, holding(&parts[3], false));
    assert_eq!(earlier(&bench), [(2, vec![lyon]), (1, vec![PARIS, lyon, nantes])], "the third is at none");
    // Sites that copy an earlier one, because nobody has the latest, are noted with it.
    bench.run(brest, holding(&parts[1], true));
    bench.run(nantes, holding(&parts[1], true));
    assert_eq!(
        earlier(&bench),
        [(2, vec![lyon, nantes, brest])],
        "three have the second, which lists all of the first"
    );
    bench.run(PARIS, holding(&parts[3], true));
    bench.run(brest, holding(&parts[3], true));
    assert_eq!(earlier(&bench), [(2, vec![lyon, nantes, brest])]);
    bench.run(lyon, holding(&parts[3], true));
    assert_eq!(earlier(&bench), []);
}

#[test]
fn a_part_published_again_counts_only_its_origin_as_holder_until_the_others_catch_up() {
    let mut bench = Bench::founded();
    let lyon = bench.join("lyon");
    let first = part("1.2", request("A1", "P1"), 1);
    bench.run(PARIS, Command::RecordStudy(first.clone()));
    let holding = |manifest| Command::RecordHolding { study: UidText::fitted("1.2"), manifest, holds: true };
    assert_eq!(bench.run(lyon, holding(first.manifest)), Outcome::Done);
    assert_eq!(bench.view(|view| view.counts()).studies_below_two, 0);
    let second = part("1.2", request("A1", "P1"), 2);
    bench.run(PARIS, Command::RecordStudy(second.clone()));
    assert_eq!(bench.view(|view| view.counts()).studies_below_two, 1);
    let unknown = bench.run(lyon, holding([7; 32]));
    assert_eq!(unknown, Outcome::Refused(Refusal::NoSuchPart));
    let late = bench.run(PARIS, Command::RecordStudy(first));
    assert_eq!(late, Outcome::Refused(Refusal::PartSuperseded { sequence: 2 }));
    let parts = bench.view(|view| view.study("1.2")).expect("study").parts;
    assert_eq!(parts[0].part.sequence, 2, "an old publication does not come back");
    let earlier = parts[0].earlier.first().expect("the better held publication is remembered");
    assert_eq!((earlier.part.sequence, earlier.holders.len()), (1, 2));
    assert_eq!(bench.run(lyon, holding(second.manifest)), Outcome::Done);
    let parts = bench.view(|view| view.study("1.2")).expect("study").parts;
    assert_eq!(parts[0].earlier, [], "the new publication is held as well as the old one was");
    assert_eq!(bench.view(|view| view.studies_below_wanted(None, 10)), ["1.2"]);
}
