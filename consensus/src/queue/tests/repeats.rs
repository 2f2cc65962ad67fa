//! What a site sends again after the mesh has forgotten that it did it.

use super::*;

/// More than a day passes, in which the mesh is busy enough to forget every outcome before.
fn days_pass(bench: &mut Bench, id: CommandId) {
    bench.now += 2 * OUTCOME_KEPT_MS;
    for _ in 0..100 {
        bench.run(PARIS, Command::OpenSession);
    }
    let kept = bench.engine.get(&keys::outcome(id)).expect("read");
    assert!(kept.is_none(), "the outcome is forgotten: otherwise this test shows nothing");
}

/// Runs a command, and again days later, and again. Returns its outcome, which is the same each time.
#[track_caller]
fn thrice(bench: &mut Bench, command: &Command) -> Outcome {
    let id = CommandId::random();
    let first = bench.run_as(id, PARIS, command.clone());
    for _ in 0..2 {
        days_pass(bench, id);
        assert_eq!(bench.run_as(id, PARIS, command.clone()), first, "{}", command.kind());
    }
    first
}

#[test]
fn a_note_sent_again_days_later_stands_once() {
    let mut bench = Bench::founded();
    let exam = bench.add(ready("A1", Priority::Urgent));
    bench.run(PARIS, Command::Note { exam, text: says("mine") });
    assert_eq!(thrice(&mut bench, &Command::Note { exam, text: says("mine") }), Outcome::Remarked { remark: 2 });
    assert_eq!(bench.view(|view| view.remarks(exam)).len(), 2, "the same words by another command are another note");
    assert_eq!(bench.exam(exam).course.remarks, 2);
}

#[test]
fn a_report_sent_again_days_later_is_no_draft_and_an_addendum_stands_once() {
    let mut bench = Bench::founded();
    let exam = bench.add(ready("A1", Priority::Urgent));
    let token = bench.take(PARIS, exam).claim.token;
    for (kind, report) in [(ReportKind::Preliminary, 1), (ReportKind::Final, 2)] {
        let outcome = thrice(&mut bench, &written(exam, token, kind, "bleeding"));
        assert_eq!(outcome, Outcome::Completed { report });
    }
    assert_eq!(thrice(&mut bench, &addendum(exam, "compared")), Outcome::Completed { report: 3 });
    let late = thrice(&mut bench, &written(exam, token, ReportKind::Final, "late"));
    assert_eq!(late, Outcome::Refused(Refusal::StaleToken { given: token, kept_as: Some(4) }));
    let complete = Command::Complete { exam, token, report: report("later") };
    let later = thrice(&mut bench, &complete);
    assert_eq!(later, Outcome::Refused(Refusal::StaleToken { given: token, kept_as: Some(5) }));
    assert_eq!(bench.view(|view| view.reports(exam)).len(), 5);
    assert_eq!(bench.exam(exam).state, ExamState::Reported);
}

#[test]
fn what_was_read_by_break_glass_is_no_second_reading_of_itself() {
    let mut bench = Bench::founded();
    let exam = bench.add(ready("A1", Priority::Urgent));
    let glass = |exam| Command::BreakGlass {
        exam,
        taken_at: UnixMillisField(1_003_000),
        reason: Line::fitted("cut off"),
        report: Some(report("bleeding")),
        signature: ByteBuf::default(),
    };
    let accepted = Outcome::GlassMended { second_read: false, report: Some(1), grant: None };
    assert_eq!(thrice(&mut bench, &glass(exam)), accepted);
    let read = bench.exam(exam);
    assert_eq!((read.reports, read.course.read_twice), (1, false));
    let read = bench.reported("A2", "theirs");
    let second = Outcome::GlassMended { second_read: true, report: Some(2), grant: None };
    assert_eq!(thrice(&mut bench, &glass(read)), second);
    assert_eq!(bench.exam(read).reports, 2);
}

#[test]
fn another_text_under_the_same_id_is_another_command_also_days_later() {
    let mut bench = Bench::founded();
    let exam = bench.reported("A1", "bleeding");
    for (first, other) in [
        (Command::Note { exam, text: says("one") }, Command::Note { exam, text: says("two") }),
        (addendum(exam, "one"), addendum(exam, "two")),
    ] {
        let id = CommandId::random();
        assert!(!matches!(bench.run_as(id, PARIS, first), Outcome::Refused(_)));
        days_pass(&mut bench, id);
        assert_eq!(bench.run_as(id, PARIS, other), Outcome::Refused(Refusal::OtherCommand));
    }
    assert_eq!((bench.exam(exam).course.remarks, bench.exam(exam).reports), (1, 2));
}

#[test]
fn what_was_asked_for_in_one_format_s_words_is_found_in_the_other_s() {
    let mut bench = Bench::founded();
    let [exam, other] = ["A1", "A2"].map(|accession| bench.add(ready(accession, Priority::Urgent)));
    let next = Command::ClaimNext { modalities: vec![UidText::fitted("CT")] };
    let mut asked = vec![Command::AddExam(ready("A3", Priority::Urgent)), Command::ClaimTake { exam: other }, next];
    let token = bench.take(PARIS, exam).claim.token;
    asked.push(Command::Complete { exam, token, report: report("bleeding") });
    for first in asked {
        let (id, kind) = (CommandId::random(), first.kind());
        let told = bench.run_as(id, PARIS, first.clone());
        assert!(!matches!(told, Outcome::Refused(_)), "{kind}: {told:?}");
        let second = first.in_other_words().expect("both formats have words for it");
        assert_eq!(bench.run_as(id, PARIS, second.clone()), Outcome::Refused(Refusal::OtherCommand), "{kind}");
        let again = second.in_other_words().expect("both formats have words for it");
        assert_eq!(bench.run_as(id, PARIS, again), told, "{kind}");
    }
}

#[test]
fn a_mesh_of_format_1_keeps_no_command_with_a_report() {
    let mut bench = Bench::of_format(1);
    let exam = bench.add(ready("A1", Priority::Urgent));
    let token = bench.take(PARIS, exam).claim.token;
    bench.run(PARIS, Command::Complete { exam, token, report: report("well") });
    assert_eq!(bench.view(|view| view.reports(exam))[0].signed.command, CommandId::default());
}
