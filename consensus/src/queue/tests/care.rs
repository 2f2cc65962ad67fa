//! What is said of an exam besides its report.

use super::*;
use crate::remark::{Concordance, Finding, What};

fn finding(priority: Option<Priority>) -> Finding {
    Finding {
        algorithm: Name::fitted("bleeds"),
        version: Text8::fitted("2.1"),
        finding: Line::fitted("intracranial haemorrhage"),
        score: 970,
        location: Line::fitted("frame 12"),
        priority,
    }
}

#[test]
fn a_second_opinion_is_asked_for_by_a_workitem_and_kept_beside_the_first() {
    let mut bench = Bench::founded();
    let lyon = bench.join("lyon");
    let exam = bench.reported("A1", "no bleeding");
    let ask = Command::AskOpinion { exam, of: Name::fitted("neuro"), question: says("do you see it?") };
    let remark = remarked(&bench.run(PARIS, ask));
    assert_eq!(bench.exam(exam).course.opinions_open, 1);
    let item = bench.view(|view| view.workitems(exam)).pop().expect("a workitem");
    assert_eq!((item.step.kind, item.step.asked.as_str()), (WorkitemKind::SecondOpinion, "neuro"));
    let answer =
        |text: &str| Command::GiveOpinion { exam, remark, text: says(text), concordance: Concordance::DiffersMajor };
    assert_eq!(bench.run(lyon, answer("")), missing("a text and its author"));
    assert_eq!(bench.by(lyon, "dr-l", answer("a thin subdural")), Outcome::Done);
    assert_eq!(bench.run(lyon, answer("again")), Outcome::Refused(Refusal::DoneAlready));
    assert_eq!(bench.exam(exam).course.opinions_open, 0);
    let What::Opinion(opinion) = bench.view(|view| view.remarks(exam)).remove(0).what else { panic!("an opinion") };
    let given = opinion.answer.expect("given");
    assert_eq!((given.user.as_str(), given.concordance), ("dr-l", Concordance::DiffersMajor));
    let item = bench.view(|view| view.workitem(exam, item.number)).expect("there");
    assert_eq!(item.state, WorkitemState::Completed);
    assert_eq!(bench.view(|view| view.reports(exam)).len(), 1, "the first reader's word stands");
    let nothing = Command::GiveOpinion { exam, remark: 9, text: says("?"), concordance: Concordance::Agrees };
    assert_eq!(bench.run(PARIS, nothing), Outcome::Refused(Refusal::NoSuchRemark));
}

#[test]
fn an_opinion_whose_workitem_was_canceled_is_kept_and_the_workitem_stays_canceled() {
    let mut bench = Bench::founded();
    let exam = bench.add(ready("A1", Priority::Urgent));
    let remark = remarked(&bench.run(PARIS, Command::AskOpinion { exam, of: Name::default(), question: says("?") }));
    let number = bench.view(|view| view.workitems(exam)).pop().expect("a workitem").number;
    let reason = Line::fitted("no longer needed");
    assert_eq!(bench.run(PARIS, Command::AskCancel { exam, number, reason }), Outcome::Done);
    let answer = Command::GiveOpinion { exam, remark, text: says("all well"), concordance: Concordance::Agrees };
    assert_eq!(bench.run(PARIS, answer), Outcome::Done);
    assert_eq!(bench.view(|view| view.workitem(exam, number)).expect("there").state, WorkitemState::Canceled);
}

#[test]
fn a_finding_raises_the_urgency_and_never_lowers_it() {
    let mut bench = Bench::founded();
    let exam = bench.add(ready("A1", Priority::Urgent));
    let add = |priority| Command::AddFinding { exam, finding: finding(priority) };
    for lower in [None, Some(Priority::Urgent), Some(Priority::SemiUrgent), Some(Priority::Scheduled)] {
        bench.run(PARIS, add(lower));
        assert_eq!(bench.exam(exam).request.priority, Priority::Urgent);
        assert!(bench.exam(exam).course.raised_by.is_empty());
    }
    let before = bench.index;
    bench.run(PARIS, add(Some(Priority::Vital)));
    let raised = bench.exam(exam);
    assert_eq!((raised.request.priority, raised.course.raised_by.as_str()), (Priority::Vital, "bleeds"));
    assert_eq!(raised.due_at.expect("due").0 - raised.ready_at.expect("ready").0, Priority::Vital.target_ms());
    let told = Happened::Priority { to: Priority::Vital, by: Name::fitted("bleeds") };
    assert!(bench.happened(exam, before).contains(&told));
    let kinds: Vec<_> =
        bench.view(|view| view.workitems(exam)).iter().map(|item| (item.step.kind, item.state)).collect();
    assert_eq!(kinds[1..], [(WorkitemKind::Analyse, WorkitemState::Completed); 5]);
    let nobody = Finding { version: Text8::default(), ..finding(None) };
    let refused = bench.run(PARIS, Command::AddFinding { exam, finding: nobody });
    assert_eq!(refused, missing("the algorithm's name and version"));
}

#[test]
fn a_finding_after_the_report_changes_no_urgency() {
    let mut bench = Bench::founded();
    let exam = bench.reported("A1", "no bleeding");
    bench.run(PARIS, Command::AddFinding { exam, finding: finding(Some(Priority::Vital)) });
    assert_eq!(bench.exam(exam).request.priority, Priority::Urgent);
    assert_eq!(bench.exam(exam).course.remarks, 1);
}

#[test]
fn a_critical_result_escalates_until_somebody_is_told() {
    const WAIT: u64 = 15 * 60_000;
    let mut bench = Bench::founded();
    let exam = bench.reported("A1", "bleeding");
    let remark = remarked(&bench.run(PARIS, Command::RaiseCritical { exam, text: says("bleeding in the brain") }));
    let raised = bench.now;
    assert_eq!(bench.view(|view| view.counts()).more.critical_open, 1);
    assert_eq!(bench.view(|view| view.criticals(9)), [(exam, remark, UnixMillisField(raised + WAIT))]);
    let escalate = || Command::Escalate { exam, remark };
    let tell = |whom: &str| Command::Tell { exam, remark, whom: Line::fitted(whom), read_back: true };
    assert_eq!(bench.run(PARIS, escalate()), Outcome::Refused(Refusal::DoneAlready), "not due yet");
    for times in 1..=3 {
        bench.now += WAIT;
        let before = bench.index;
        assert_eq!(bench.run(PARIS, escalate()), Outcome::Done);
        assert!(bench.happened(exam, before).contains(&Happened::Escalated { number: remark }));
        let What::Critical(critical) = bench.view(|view| view.remarks(exam)).remove(0).what else { panic!("critical") };
        assert_eq!((critical.escalated, critical.due_at), (times, UnixMillisField(bench.now + WAIT)));
    }
    assert_eq!(bench.run(PARIS, tell("")), missing("who was told, and by whom"));
    assert_eq!(bench.run(PARIS, tell("Dr Martin, emergency")), Outcome::Done);
    assert_eq!(bench.run(PARIS, tell("again")), Outcome::Refused(Refusal::DoneAlready));
    assert!(bench.view(|view| view.criticals(9)).is_empty());
    assert_eq!(bench.view(|view| view.counts()).more.critical_open, 0);
    bench.now += WAIT;
    assert_eq!(bench.run(PARIS, escalate()), Outcome::Refused(Refusal::DoneAlready));
    let What::Critical(critical) = bench.view(|view| view.remarks(exam)).remove(0).what else { panic!("critical") };
    let told = critical.told.expect("told");
    assert_eq!((told.whom.as_str(), told.user.as_str(), told.read_back), ("Dr Martin, emergency", "dr-a", true));
}

#[test]
fn an_exam_with_two_critical_results_counts_once_until_both_are_told() {
    let mut bench = Bench::founded();
    let exam = bench.add(ready("A1", Priority::Urgent));
    let numbers: Vec<u32> = ["bleeding", "and a fracture"]
        .map(|text| remarked(&bench.run(PARIS, Command::RaiseCritical { exam, text: says(text) })))
        .into();
    let open =
        |bench: &Bench| (bench.view(|view| view.counts()).more.critical_open, bench.exam(exam).course.critical_open);
    assert_eq!(open(&bench), (1, 2));
    for (remark, left) in numbers.into_iter().zip([(1, 1), (0, 0)]) {
        bench.run(PARIS, Command::Tell { exam, remark, whom: Line::fitted("Dr M"), read_back: false });
        assert_eq!(open(&bench), left);
    }
}

#[test]
fn a_discrepancy_needs_a_report_and_is_open_until_the_physician_is_told() {
    let mut bench = Bench::founded();
    let unread = bench.add(ready("A0", Priority::Scheduled));
    let raise = |exam| Command::RaiseDiscrepancy { exam, grade: 3, text: says("missed at night") };
    assert_eq!(bench.run(PARIS, raise(unread)), wrong(ExamState::Waiting));
    let exam = bench.reported("A1", "no fracture");
    let remark = remarked(&bench.run(PARIS, raise(exam)));
    assert_eq!(bench.exam(exam).course.discrepancies_open, 1);
    assert!(bench.view(|view| view.criticals(9)).is_empty(), "nobody is telephoned for it");
    let told = Command::Tell { exam, remark, whom: Line::fitted("Dr Martin"), read_back: false };
    assert_eq!(bench.run(PARIS, told), Outcome::Done);
    assert_eq!(bench.exam(exam).course.discrepancies_open, 0);
}

#[test]
fn a_note_has_a_text_and_an_author_and_nobody_is_told_of_it() {
    let mut bench = Bench::founded();
    let exam = bench.add(ready("A1", Priority::Urgent));
    let note = |text: &str| Command::Note { exam, text: says(text) };
    assert_eq!(bench.run(PARIS, note("")), missing("a text and its author"));
    assert_eq!(bench.by(PARIS, "", note("who am I?")), missing("a text and its author"));
    let remark = remarked(&bench.run(PARIS, note("the patient has moved to Lyon")));
    let told = Command::Tell { exam, remark, whom: Line::fitted("Dr Martin"), read_back: false };
    assert_eq!(bench.run(PARIS, told), Outcome::Refused(Refusal::NoSuchRemark));
    let nowhere = bench.run(PARIS, Command::Note { exam: ExamId(99), text: says("x") });
    assert_eq!(nowhere, Outcome::Refused(Refusal::NoSuchExam));
}

#[test]
fn figures_out_of_their_range_never_reach_the_log() {
    let exam = ExamId(1);
    let wild = [
        Command::RaiseDiscrepancy { exam, grade: 0, text: says("x") },
        Command::RaiseDiscrepancy { exam, grade: 5, text: says("x") },
        Command::AddFinding { exam, finding: Finding { score: 1001, ..finding(None) } },
        Command::SetPolicy(Policy { kept_for: [0, 1001, 0], ..Policy::default() }),
        Command::SetPolicy(Policy { critical_ms: 59_999, ..Policy::default() }),
    ];
    let bench = Bench::founded();
    for command in wild {
        let (id, at, user) = (CommandId::random(), UnixMillisField(0), Name::fitted("u"));
        let envelope = Envelope { id, at, site: PARIS, user, command };
        assert!(Queue.stamp(&*bench.engine, &envelope.encode(), LEADER, UnixMillis(1)).is_err());
    }
}
