//! The life of an exam: request, regulation, scan, images, reading, report, delivery, follow-up.

use super::*;

#[test]
fn an_exam_goes_from_its_request_to_its_follow_up() {
    let mut bench = Bench::founded();
    let exam = bench.order(request("A1", "P1"), regulated());
    let state = |bench: &Bench| bench.exam(exam).state;
    assert_eq!(bench.view(|view| view.to_regulate(9)).len(), 1);
    assert_eq!(bench.run(PARIS, validated(exam)), Outcome::Done);
    assert_eq!((state(&bench), bench.view(|view| view.to_regulate(9)).len()), (ExamState::Validated, 0));
    assert_eq!(bench.run(PARIS, Command::Acquire { exam }), Outcome::Done);
    assert_eq!(bench.run(PARIS, Command::Arrive { exam }), Outcome::Done);
    assert_eq!(state(&bench), ExamState::Receiving);
    bench.images(PARIS, exam);
    assert_eq!(state(&bench), ExamState::Waiting);
    let token = bench.take(PARIS, exam).claim.token;
    assert_eq!(bench.run(PARIS, Command::Open { exam, token }), Outcome::Done);
    assert_eq!(state(&bench), ExamState::Reading);
    let first = bench.run(PARIS, written(exam, token, ReportKind::Preliminary, "bleeding, perhaps"));
    assert_eq!((first, state(&bench)), (Outcome::Completed { report: 1 }, ExamState::Reading));
    let last = bench.run(PARIS, written(exam, token, ReportKind::Final, "bleeding"));
    assert_eq!((last, state(&bench)), (Outcome::Completed { report: 2 }, ExamState::Reported));
    let deliver = |report| Command::Deliver { exam, report, to: Line::fitted("Dr Martin, emergency") };
    assert_eq!(bench.run(PARIS, deliver(1)), missing("the standing report and whom it went to"));
    assert_eq!(bench.run(PARIS, deliver(2)), Outcome::Done);
    assert_eq!(
        bench.run(PARIS, Command::FollowUp { exam, text: says("operated on, well") }),
        Outcome::Remarked { remark: 1 }
    );
    assert_eq!(state(&bench), ExamState::FollowedUp);
    let kinds: Vec<_> = bench.view(|view| view.reports(exam)).iter().map(|report| report.signed.kind).collect();
    assert_eq!(kinds, [ReportKind::Preliminary, ReportKind::Final]);
    let items: Vec<_> =
        bench.view(|view| view.workitems(exam)).iter().map(|item| (item.step.kind, item.state)).collect();
    let done = WorkitemState::Completed;
    assert_eq!(items, [(WorkitemKind::Read, done), (WorkitemKind::Regulate, done), (WorkitemKind::Deliver, done)]);
    assert_eq!(bench.exam(exam).course.skipped, []);
}

#[test]
fn a_regulator_must_give_a_protocol_or_a_reason() {
    let mut bench = Bench::founded();
    let exam = bench.order(request("A1", "P1"), regulated());
    let verdict = |verdict| Command::Regulate { exam, verdict };
    let empty = Line::default();
    let protocol = bench.run(PARIS, verdict(Verdict::Validated { protocol: empty.clone() }));
    assert_eq!(protocol, missing("a protocol"));
    assert_eq!(bench.run(PARIS, verdict(Verdict::Refused { reason: empty })), missing("a reason"));
    assert_eq!(bench.exam(exam).state, ExamState::Requested);
    let reason = Line::fitted("no sign of it");
    assert_eq!(bench.run(PARIS, verdict(Verdict::Refused { reason: reason.clone() })), Outcome::Done);
    let refused = bench.exam(exam);
    assert_eq!(refused.state, ExamState::Refused);
    assert_eq!(refused.course.regulation.expect("kept").verdict, Verdict::Refused { reason: reason.clone() });
    let items = bench.view(|view| view.workitems(exam));
    assert_eq!((items[0].state, &items[0].reason), (WorkitemState::Canceled, &reason), "nobody is to read it");
    assert_eq!(items[1].state, WorkitemState::Completed, "the regulation is done");
    assert_eq!(bench.run(PARIS, Command::Acquire { exam }), wrong(ExamState::Refused));
    assert_eq!(bench.run(PARIS, validated(exam)), wrong(ExamState::Refused));
}

#[test]
fn images_wait_for_the_regulator_and_the_exam_then_counts_from_when_they_came() {
    let mut bench = Bench::founded();
    let exam = bench.order(request("A1", "P1"), regulated());
    assert_eq!(bench.run(PARIS, Command::Acquire { exam }), missing("a regulator's verdict"));
    bench.images(PARIS, exam);
    let came = UnixMillisField(bench.now);
    assert_eq!(bench.exam(exam).state, ExamState::Receiving);
    assert_eq!(bench.run(PARIS, Command::ClaimTake { exam }), wrong(ExamState::Receiving));
    bench.run(PARIS, validated(exam));
    let ready = bench.exam(exam);
    assert_eq!((ready.state, ready.ready_at), (ExamState::Waiting, Some(came)));
}

#[test]
fn a_hospital_may_require_a_regulator_whatever_its_requests_say() {
    let mut bench = Bench::founded();
    let hospital = hospital("hospital", Place::default());
    bench.run(PARIS, Command::SetHospital(Hospital { regulate: true, ..hospital }));
    let exam = bench.order(ready("A1", Priority::Urgent), consented());
    assert_eq!(bench.exam(exam).state, ExamState::Receiving);
    assert_eq!(bench.view(|view| view.to_regulate(9)).len(), 1);
}

#[test]
fn an_emergency_is_scanned_and_read_without_a_regulator_and_the_record_says_so() {
    for (priority, consent) in [(Priority::Vital, Consent::Declared), (Priority::Urgent, Consent::Emergency)] {
        let mut bench = Bench::founded();
        let order = Order { consent, ..regulated() };
        let exam = bench.order(Request { priority, ..request("A1", "P1") }, order);
        assert_eq!(bench.run(PARIS, Command::Acquire { exam }), Outcome::Done);
        bench.images(PARIS, exam);
        let read = bench.exam(exam);
        assert_eq!(read.state, ExamState::Waiting);
        assert_eq!(read.course.skipped, [Skipped::RegulationBeforeAcquisition, Skipped::Regulation]);
        let items = bench.view(|view| view.workitems(exam));
        assert_eq!((items[1].step.kind, items[1].state), (WorkitemKind::Regulate, WorkitemState::Canceled));
        assert!(bench.view(|view| view.to_regulate(9)).is_empty());
    }
}

#[test]
fn an_exam_that_becomes_an_emergency_waits_no_longer_for_the_regulator() {
    let mut bench = Bench::founded();
    let exam = bench.order(request("A1", "P1"), regulated());
    bench.images(PARIS, exam);
    bench.run(PARIS, Command::Prioritise { exam, priority: Priority::Vital });
    let raised = bench.exam(exam);
    assert_eq!((raised.state, raised.course.skipped), (ExamState::Waiting, vec![Skipped::Regulation]));
    assert_eq!(raised.course.raised_by.as_str(), "dr-a");
}

#[test]
fn images_before_their_request_and_a_consent_that_nobody_declared_are_on_record() {
    let mut bench = Bench::founded();
    bench.run(PARIS, Command::RecordStudy(part("1.2", request("A1", "P1"), 1)));
    let order = Order { regulate: true, ..Order::default() };
    let outcome = bench.run(PARIS, Command::Order { request: request("A1", "P1"), order });
    let Outcome::ExamAdded { exam, existed: true } = outcome else { panic!("{outcome:?}") };
    let skipped = [Skipped::RequestBeforeImages, Skipped::Regulation, Skipped::Consent];
    assert_eq!(bench.exam(exam).course.skipped, skipped);
    let undeclared = bench.add(ready("A2", Priority::Urgent));
    assert_eq!(bench.exam(undeclared).course.skipped, [Skipped::Consent]);
}

#[test]
fn without_consent_an_exam_is_read_only_where_its_images_were_received() {
    let mut bench = Bench::founded();
    let lyon = bench.join("lyon");
    let refused = Order { consent: Consent::Refused, ..Order::default() };
    let exam = bench.order(request("A1", "P1"), refused);
    bench.images(lyon, exam);
    let elsewhere = Outcome::Refused(Refusal::ConsentRefused);
    assert_eq!(bench.run(PARIS, Command::Next(Reader::default())), Outcome::NothingWaiting);
    assert_eq!(bench.run(PARIS, Command::ClaimNext { modalities: vec![] }), Outcome::NothingWaiting);
    assert_eq!(bench.run(PARIS, Command::ClaimTake { exam }), elsewhere);
    assert_eq!(granted(bench.run(lyon, Command::Next(Reader::default()))).exam, exam);
    let reason = Line::fitted("I am quicker");
    assert_eq!(bench.run(PARIS, Command::TakeOver { exam, reason }), elsewhere);
}

#[test]
fn an_exam_is_opened_once_by_who_holds_it() {
    let mut bench = Bench::founded();
    let exam = bench.add(ready("A1", Priority::Urgent));
    let token = bench.take(PARIS, exam).claim.token;
    let other = FencingToken(token.0 - 1);
    let stale = Outcome::Refused(Refusal::StaleToken { given: other, kept_as: None });
    assert_eq!(bench.run(PARIS, Command::Open { exam, token: other }), stale);
    assert_eq!(bench.run(PARIS, Command::Open { exam, token }), Outcome::Done);
    let opened = bench.exam(exam).course.opened_at;
    assert_eq!(opened, Some(UnixMillisField(bench.now)));
    assert_eq!(bench.run(PARIS, Command::Open { exam, token }), Outcome::Done);
    assert_eq!(bench.exam(exam).course.opened_at, opened, "again is no news");
    bench.run(PARIS, Command::Release { exam, token, reason: Line::default() });
    assert_eq!(bench.exam(exam).course.opened_at, None);
    let token = bench.take(PARIS, exam).claim.token;
    bench.run(PARIS, written(exam, token, ReportKind::Preliminary, "a first word"));
    assert!(bench.exam(exam).course.opened_at.is_some(), "who writes of it has opened it");
}

#[test]
fn an_addendum_stands_beside_the_final_report_and_is_to_be_delivered_too() {
    let mut bench = Bench::founded();
    let exam = bench.reported("A1", "no fracture");
    let deliver = |report| Command::Deliver { exam, report, to: Line::fitted("Dr Martin") };
    assert_eq!(bench.run(PARIS, deliver(1)), Outcome::Done);
    assert_eq!(bench.run(PARIS, deliver(1)), wrong(ExamState::Delivered));
    assert_eq!(bench.by(PARIS, "", addendum(exam, "a word")), missing("a text and its author"));
    assert_eq!(
        bench.run(PARIS, addendum(exam, "a fracture of the fifth metatarsal")),
        Outcome::Completed { report: 2 }
    );
    assert_eq!(bench.exam(exam).state, ExamState::Reported);
    assert_eq!(bench.exam(exam).course.delivered_at, None);
    assert_eq!(bench.run(PARIS, deliver(1)), missing("the standing report and whom it went to"));
    assert_eq!(bench.run(PARIS, deliver(2)), Outcome::Done);
    let texts: Vec<_> = bench.view(|view| view.reports(exam)).iter().map(|report| report.text.to_string()).collect();
    assert_eq!(texts, ["no fracture", "a fracture of the fifth metatarsal"]);
}

#[test]
fn a_report_without_a_text_is_none_and_neither_is_an_addendum_under_a_claim() {
    let mut bench = Bench::founded();
    let exam = bench.add(ready("A1", Priority::Urgent));
    let token = bench.take(PARIS, exam).claim.token;
    let write = |kind, text: &str| Command::Report {
        exam,
        token,
        kind,
        text: Prose::fitted(text),
        signature: ByteBuf::default(),
    };
    assert_eq!(bench.run(PARIS, write(ReportKind::Final, "")), missing("a text"));
    for kind in [ReportKind::Addendum, ReportKind::SecondRead] {
        assert_eq!(bench.run(PARIS, write(kind, "text")), missing("a preliminary or final report"));
    }
    assert_eq!(bench.exam(exam).state, ExamState::Claimed);
    assert_eq!(bench.run(PARIS, addendum(exam, "too early")), wrong(ExamState::Claimed));
    assert_eq!(bench.run(PARIS, Command::FollowUp { exam, text: says("?") }), wrong(ExamState::Claimed));
}

#[test]
fn the_times_of_every_final_report_are_kept_for_statistics() {
    let mut bench = Bench::founded();
    let exam = bench.add(ready("A1", Priority::Urgent));
    let ready_at = bench.now;
    let token = bench.take(PARIS, exam).claim.token;
    let claimed_at = bench.now;
    bench.now += 600_000;
    bench.run(PARIS, written(exam, token, ReportKind::Final, "well"));
    let mut all = Vec::new();
    let ever = UnixMillisField(u64::MAX);
    bench.view(|view| view.turnarounds(UnixMillisField(0), ever, &mut |one| all.push(one)));
    assert_eq!(all.len(), 1);
    assert_eq!((all[0].waited_ms(), all[0].total_ms()), (claimed_at - ready_at, bench.now - ready_at));
    assert_eq!((all[0].reader.as_str(), all[0].site), ("dr-a", PARIS));
}
