//! What was read by break glass is written into the books: accepted, or a visible second read.

use super::*;

fn glass(exam: ExamId, report_text: Option<&str>) -> Command {
    Command::BreakGlass {
        exam,
        taken_at: UnixMillisField(1_003_000),
        reason: Line::fitted("cut off, the patient cannot wait"),
        report: report_text.map(report),
        signature: ByteBuf::default(),
    }
}

fn accepted(report: u32) -> Outcome {
    Outcome::GlassMended { second_read: false, report: Some(report), grant: None }
}

fn second(report: Option<u32>) -> Outcome {
    Outcome::GlassMended { second_read: true, report, grant: None }
}

#[test]
fn break_glass_needs_a_reason_and_its_author() {
    let mut bench = Bench::founded();
    let exam = bench.add(ready("A1", Priority::Urgent));
    assert_eq!(bench.by(PARIS, "", glass(exam, Some("text"))), missing("a reason and its author"));
    assert_eq!(bench.run(PARIS, glass(ExamId(99), None)), Outcome::Refused(Refusal::NoSuchExam));
}

#[test]
fn where_nobody_else_read_it_the_report_is_the_report() {
    let mut bench = Bench::founded();
    let exam = bench.add(ready("A1", Priority::Urgent));
    assert_eq!(bench.run(PARIS, glass(exam, Some("bleeding"))), accepted(1));
    let read = bench.exam(exam);
    assert_eq!((read.state, read.claim, read.course.read_twice), (ExamState::Reported, None, false));
    assert_eq!(read.course.report, Some(1));
    let items = bench.view(|view| view.workitems(exam));
    assert_eq!(items[0].state, WorkitemState::Completed);
    assert!(items[0].reason.as_str().starts_with("break glass: cut off"), "{:?}", items[0].reason);
    let mut times = 0;
    bench.view(|view| view.turnarounds(UnixMillisField(0), UnixMillisField(u64::MAX), &mut |_| times += 1));
    assert_eq!(times, 1);
}

#[test]
fn images_that_the_mesh_had_not_heard_of_do_not_stand_in_the_way_and_a_skipped_regulator_is_on_record() {
    let mut bench = Bench::founded();
    let exam = bench.order(request("A1", "P1"), regulated());
    assert_eq!(bench.run(PARIS, glass(exam, Some("bleeding"))), accepted(1));
    assert_eq!(bench.exam(exam).course.skipped, [Skipped::Regulation]);
    let regulate = bench.view(|view| view.workitem(exam, 2)).expect("there");
    assert_eq!(regulate.state, WorkitemState::Canceled);
    assert!(bench.view(|view| view.to_regulate(9)).is_empty());
}

#[test]
fn who_still_reads_it_has_an_ordinary_claim_from_then_on() {
    let mut bench = Bench::founded();
    let exam = bench.add(ready("A1", Priority::Urgent));
    let Outcome::GlassMended { second_read: false, report: None, grant: Some(grant) } =
        bench.run(PARIS, glass(exam, None))
    else {
        panic!("a claim");
    };
    assert_eq!(bench.exam(exam).claim, Some(grant.claim.clone()));
    let done = bench.run(PARIS, written(exam, grant.claim.token, ReportKind::Final, "well"));
    assert_eq!(done, Outcome::Completed { report: 1 });
    bench.run(PARIS, Command::ExpireSession { site: PARIS, session: 1 });
    let other = bench.add(ready("A2", Priority::Urgent));
    assert_eq!(bench.run(PARIS, glass(other, None)), Outcome::Refused(Refusal::NoSession));
    assert_eq!(bench.exam(other).state, ExamState::Waiting);
}

#[test]
fn a_reader_whose_claim_outlived_the_cut_reports_under_it() {
    let mut bench = Bench::founded();
    let exam = bench.add(ready("A1", Priority::Urgent));
    let claim = bench.take(PARIS, exam).claim;
    assert_eq!(bench.run(PARIS, glass(exam, Some("bleeding"))), accepted(1));
    assert_eq!(bench.view(|view| view.reports(exam))[0].token, claim.token);
}

#[test]
fn where_somebody_holds_or_has_read_it_both_reports_stand_and_the_exam_says_it_was_read_twice() {
    let mut bench = Bench::founded();
    let lyon = bench.join("lyon");
    let held = bench.add(ready("A1", Priority::Urgent));
    let claim = granted(bench.by(lyon, "dr-l", Command::ClaimTake { exam: held })).claim;
    assert_eq!(bench.run(PARIS, glass(held, Some("mine"))), second(Some(1)));
    assert_eq!(bench.exam(held).claim.as_ref(), Some(&claim), "the other goes on");
    let theirs = bench.by(lyon, "dr-l", written(held, claim.token, ReportKind::Final, "theirs"));
    assert_eq!(theirs, Outcome::Completed { report: 2 });
    let read = bench.reported("A2", "theirs");
    assert_eq!(bench.run(PARIS, glass(read, Some("mine"))), second(Some(2)));
    assert_eq!(bench.run(PARIS, glass(read, None)), second(None));
    for (exam, standing) in [(held, 2), (read, 1)] {
        let kept = bench.exam(exam);
        assert!(kept.course.read_twice);
        assert_eq!((kept.course.report, kept.reports), (Some(standing), 2));
        let reports = bench.view(|view| view.reports(exam));
        let mine = reports.iter().find(|report| report.text.as_str() == "mine").expect("kept");
        assert_eq!((mine.signed.kind, mine.stale), (ReportKind::SecondRead, false));
    }
}

#[test]
fn a_report_of_a_cancelled_exam_is_kept_and_revives_nothing() {
    let mut bench = Bench::founded();
    let exam = bench.add(ready("A1", Priority::Urgent));
    bench.run(PARIS, Command::Cancel { exam, reason: Line::fitted("a mistake") });
    assert_eq!(bench.run(PARIS, glass(exam, Some("mine"))), second(Some(1)));
    assert_eq!(bench.exam(exam).state, ExamState::Cancelled);
    assert!(!bench.exam(exam).course.read_twice);
    assert_eq!(bench.view(|view| view.reports(exam)).len(), 1);
}

#[test]
fn a_break_glass_claim_goes_to_no_site_that_may_not_read_but_what_it_read_is_kept() {
    let mut bench = Bench::founded();
    let lyon = bench.join("lyon");
    let exam = bench.order(request("A1", "P1"), Order { consent: Consent::Refused, ..Order::default() });
    bench.images(lyon, exam);
    assert_eq!(bench.run(PARIS, glass(exam, None)), Outcome::Refused(Refusal::ConsentRefused));
    assert_eq!(bench.exam(exam).state, ExamState::Waiting);
    assert_eq!(bench.run(PARIS, glass(exam, Some("read all the same"))), accepted(1));
}
