//! Workitems as Unified Procedure Steps: every change, and every refusal.

use super::*;
use crate::command::{ATTRIBUTES_MAX, Subscription};
use crate::remark::{Concordance, What};

const LABEL: u32 = 0x0074_1204;

fn attributes(values: &[(u32, &str)]) -> BTreeMap<u32, ByteBuf> {
    values.iter().map(|(tag, value)| (*tag, ByteBuf::from(value.as_bytes()))).collect()
}

fn create(uid: &str, accession: &str) -> Command {
    Command::CreateWorkitem {
        uid: UidText::fitted(uid),
        request: ready(accession, Priority::Urgent),
        order: consented(),
        attributes: attributes(&[(LABEL, "\"head\"")]),
    }
}

fn change(exam: ExamId, number: u32, transaction: &str, to: WorkitemState) -> Command {
    Command::ChangeWorkitem { exam, number, transaction_uid: UidText::fitted(transaction), to }
}

fn update(exam: ExamId, transaction: &str, values: &[(u32, &str)]) -> Command {
    let transaction_uid = UidText::fitted(transaction);
    Command::UpdateWorkitem { exam, number: 1, transaction_uid, attributes: attributes(values) }
}

fn created(bench: &mut Bench) -> ExamId {
    bench.run(PARIS, create("1.2.3", "A1")).exam().expect("created")
}

#[test]
fn a_created_workitem_is_the_reading_of_a_new_exam_and_its_uid_is_taken_once() {
    let mut bench = Bench::founded();
    let exam = created(&mut bench);
    assert_eq!(bench.view(|view| view.workitem_named("1.2.3")), Some((exam, 1)));
    let item = bench.view(|view| view.workitem(exam, 1)).expect("there");
    assert_eq!((item.step.kind, item.state), (WorkitemKind::Read, WorkitemState::Scheduled));
    assert_eq!(item.step.attributes, attributes(&[(LABEL, "\"head\"")]));
    let duplicate = Outcome::Refused(Refusal::DuplicateUid);
    assert_eq!(bench.run(PARIS, create("1.2.3", "A2")), duplicate);
    assert_eq!(bench.run(PARIS, create("1.2.4", "A1")), duplicate, "the exam's workitem has its UID already");
    assert_eq!(bench.run(PARIS, create("", "A3")), missing("a UID"));
    assert_eq!(bench.view(|view| view.exams(None, None, 9)).len(), 1, "what is refused leaves nothing");
}

#[test]
fn a_workitem_created_for_a_known_request_names_its_workitem_unless_it_is_being_read() {
    let mut bench = Bench::founded();
    let known = bench.add(ready("A1", Priority::Urgent));
    let adopted = bench.run(PARIS, create("1.2.3", "A1"));
    assert_eq!(adopted, Outcome::ExamAdded { exam: known, existed: true });
    let held = bench.add(ready("A2", Priority::Urgent));
    bench.take(PARIS, held);
    assert_eq!(bench.run(PARIS, create("1.2.4", "A2")), wrong(ExamState::Claimed));
    assert_eq!(bench.view(|view| view.workitem_named("1.2.4")), None);
}

#[test]
fn an_update_needs_the_transaction_once_the_workitem_is_performed() {
    let mut bench = Bench::founded();
    let exam = created(&mut bench);
    let wrong_one = Outcome::Refused(Refusal::WrongTransaction);
    assert_eq!(bench.run(PARIS, update(exam, "2.25.1", &[])), wrong_one);
    let before = bench.index;
    assert_eq!(bench.run(PARIS, update(exam, "", &[(LABEL, "\"neck\""), (7, "1")])), Outcome::Done);
    assert!(bench.happened(exam, before).contains(&Happened::WorkitemUpdated { number: 1 }));
    assert_eq!(bench.run(PARIS, update(exam, "", &[(7, "")])), Outcome::Done);
    let item = bench.view(|view| view.workitem(exam, 1)).expect("there");
    assert_eq!(item.step.attributes, attributes(&[(LABEL, "\"neck\"")]), "an empty value removes");
    granted(bench.run(PARIS, change(exam, 1, "2.25.1", WorkitemState::InProgress)));
    assert_eq!(bench.run(PARIS, update(exam, "", &[])), wrong_one);
    assert_eq!(bench.run(PARIS, update(exam, "2.25.2", &[])), wrong_one);
    assert_eq!(bench.run(PARIS, update(exam, "2.25.1", &[(8, "2")])), Outcome::Done);
    bench.run(PARIS, change(exam, 1, "2.25.1", WorkitemState::Canceled));
    let over = Outcome::Refused(Refusal::WorkitemState { state: WorkitemState::Canceled });
    assert_eq!(bench.run(PARIS, update(exam, "2.25.1", &[])), over);
    let nowhere =
        Command::UpdateWorkitem { exam, number: 99, transaction_uid: UidText::default(), attributes: BTreeMap::new() };
    assert_eq!(bench.run(PARIS, nowhere), Outcome::Refused(Refusal::NoSuchWorkitem));
}

#[test]
fn a_workitem_keeps_a_bounded_number_of_attributes() {
    let mut bench = Bench::founded();
    let exam = created(&mut bench);
    let many = |from: u32| {
        let tags = (from..).take(ATTRIBUTES_MAX).map(|tag| (tag, ByteBuf::from("1"))).collect();
        Command::UpdateWorkitem { exam, number: 1, transaction_uid: UidText::default(), attributes: tags }
    };
    assert_eq!(bench.run(PARIS, many(0)), Outcome::Refused(Refusal::TooMany(Name::fitted("attributes"))));
    assert_eq!(bench.view(|view| view.workitem(exam, 1)).expect("there").step.attributes.len(), 1);
}

#[test]
fn one_transaction_performs_a_workitem_and_the_second_claimant_is_refused() {
    let mut bench = Bench::founded();
    let exam = created(&mut bench);
    let empty = bench.run(PARIS, change(exam, 1, "", WorkitemState::InProgress));
    assert_eq!(empty, Outcome::Refused(Refusal::WrongTransaction));
    let early = bench.run(PARIS, change(exam, 1, "2.25.1", WorkitemState::Completed));
    assert_eq!(early, Outcome::Refused(Refusal::WorkitemState { state: WorkitemState::Scheduled }));
    let claim = granted(bench.run(PARIS, change(exam, 1, "2.25.1", WorkitemState::InProgress))).claim;
    assert_eq!((claim.transaction_uid.as_str(), bench.exam(exam).claim), ("2.25.1", Some(claim.clone())));
    let second = bench.run(PARIS, change(exam, 1, "2.25.2", WorkitemState::InProgress));
    assert_eq!(second, Outcome::Refused(Refusal::WorkitemState { state: WorkitemState::InProgress }));
    let stranger = bench.run(PARIS, change(exam, 1, "2.25.2", WorkitemState::Canceled));
    assert_eq!(stranger, Outcome::Refused(Refusal::WrongTransaction));
    let unread = bench.run(PARIS, change(exam, 1, "2.25.1", WorkitemState::Completed));
    assert_eq!(unread, Outcome::Refused(Refusal::NotFinished(Name::fitted("a final report is needed"))));
    bench.run(PARIS, written(exam, claim.token, ReportKind::Final, "well"));
    let again = bench.run(PARIS, change(exam, 1, "2.25.1", WorkitemState::Completed));
    assert_eq!(again, Outcome::Refused(Refusal::WorkitemState { state: WorkitemState::Completed }));
}

#[test]
fn a_reading_canceled_by_its_performer_is_replaced_by_another() {
    let mut bench = Bench::founded();
    let exam = created(&mut bench);
    bench.run(PARIS, change(exam, 1, "2.25.1", WorkitemState::InProgress));
    assert_eq!(bench.run(PARIS, change(exam, 1, "2.25.1", WorkitemState::Canceled)), Outcome::Done);
    let items = bench.view(|view| view.workitems(exam));
    assert_eq!((items[0].state, items[1].state), (WorkitemState::Canceled, WorkitemState::Scheduled));
    assert_eq!((items[1].step.replaces, bench.exam(exam).workitem), (Some(1), 2));
    assert!(items[1].step.uid.is_empty(), "a UID names one workitem");
}

#[test]
fn other_workitems_are_performed_and_completed_only_when_their_work_is_done() {
    let mut bench = Bench::founded();
    let exam = bench.order(request("A1", "P1"), regulated());
    granted(bench.run(PARIS, change(exam, 2, "2.25.1", WorkitemState::InProgress)));
    let not_yet = |what: &str| Outcome::Refused(Refusal::NotFinished(Name::fitted(what)));
    let complete = |number, uid| change(exam, number, uid, WorkitemState::Completed);
    assert_eq!(bench.run(PARIS, complete(2, "2.25.1")), not_yet("a verdict is needed"));
    bench.run(PARIS, validated(exam));
    bench.images(PARIS, exam);
    let token = bench.take(PARIS, exam).claim.token;
    bench.run(PARIS, written(exam, token, ReportKind::Final, "well"));
    granted(bench.run(PARIS, change(exam, 3, "2.25.2", WorkitemState::InProgress)));
    assert_eq!(bench.run(PARIS, complete(3, "2.25.2")), not_yet("a delivery is needed"));
    bench.run(PARIS, Command::Deliver { exam, report: 1, to: Line::fitted("Dr Martin") });
    assert_eq!(bench.view(|view| view.workitem(exam, 3)).expect("there").state, WorkitemState::Completed);
}

#[test]
fn a_performer_whose_site_is_away_loses_a_second_opinion_too_and_another_may_give_it() {
    let mut bench = Bench::founded();
    let lyon = bench.join("lyon");
    let exam = bench.add(ready("A1", Priority::Urgent));
    let remark = remarked(&bench.run(PARIS, Command::AskOpinion { exam, of: Name::default(), question: says("?") }));
    granted(bench.by(lyon, "dr-l", change(exam, 2, "2.25.1", WorkitemState::InProgress)));
    let before = bench.index;
    bench.run(PARIS, Command::ExpireSession { site: lyon, session: 1 });
    let reason = Line::fitted("the session of lyon ended");
    let lost = Happened::ClaimLost { user: Name::fitted("dr-l"), site: lyon, reason };
    assert!(bench.happened(exam, before).contains(&lost));
    let items = bench.view(|view| view.workitems(exam));
    assert_eq!((items[1].state, items[2].state), (WorkitemState::Canceled, WorkitemState::Scheduled));
    assert_eq!((items[2].step.kind, items[2].step.replaces), (WorkitemKind::SecondOpinion, Some(2)));
    let answer = Command::GiveOpinion { exam, remark, text: says("well"), concordance: Concordance::Agrees };
    bench.run(PARIS, answer);
    assert_eq!(bench.view(|view| view.workitem(exam, 3)).expect("there").state, WorkitemState::Completed);
    let What::Opinion(opinion) = bench.view(|view| view.remarks(exam)).remove(0).what else { panic!("an opinion") };
    assert_eq!(opinion.workitem, 3);
}

#[test]
fn a_request_to_cancel_ends_what_nobody_performs_and_is_told_to_who_performs() {
    let mut bench = Bench::founded();
    let exam = created(&mut bench);
    let other = bench.run(PARIS, create("1.2.9", "A9")).exam().expect("created");
    let ask = |exam, number| Command::AskCancel { exam, number, reason: Line::fitted("scanned elsewhere") };
    assert_eq!(bench.run(PARIS, ask(exam, 1)), Outcome::Done);
    assert_eq!(bench.exam(exam).state, ExamState::Cancelled);
    assert_eq!(bench.run(PARIS, ask(exam, 1)), Outcome::Refused(Refusal::DoneAlready));
    assert_eq!(bench.run(PARIS, ask(exam, 9)), Outcome::Refused(Refusal::NoSuchWorkitem));
    let token = bench.take(PARIS, other).claim.token;
    let before = bench.index;
    assert_eq!(bench.run(PARIS, ask(other, 1)), Outcome::Done);
    assert_eq!(bench.exam(other).state, ExamState::Claimed, "its reader decides");
    let reason = Line::fitted("scanned elsewhere");
    assert!(bench.happened(other, before).contains(&Happened::CancelAsked { number: 1, reason }));
    bench.run(PARIS, written(other, token, ReportKind::Final, "well"));
    let over = Outcome::Refused(Refusal::WorkitemState { state: WorkitemState::Completed });
    assert_eq!(bench.run(PARIS, ask(other, 1)), over);
}

fn subscription(aet: &str, workitem: Option<(ExamId, u32)>) -> Subscription {
    let (filter, deletion_lock, suspended) = (ByteBuf::default(), false, false);
    Subscription {
        aet: Text8::fitted(aet),
        workitem,
        filter,
        deletion_lock,
        suspended,
        since: 0,
        reporter: None,
        told: 0,
    }
}

#[test]
fn a_subscription_begins_at_its_command_and_keeps_that_when_it_is_made_again() {
    let mut bench = Bench::founded();
    let exam = created(&mut bench);
    let subscribe = |one| Command::Subscribe(one);
    assert_eq!(bench.run(PARIS, subscribe(subscription("", None))), missing("an AE title"));
    let nowhere = subscription("ROOM1", Some((exam, 9)));
    assert_eq!(bench.run(PARIS, subscribe(nowhere)), Outcome::Refused(Refusal::NoSuchWorkitem));
    bench.run(PARIS, subscribe(subscription("ROOM1", None)));
    let since = bench.index;
    bench.run(PARIS, subscribe(subscription("ROOM1", Some((exam, 1)))));
    bench.run(PARIS, subscribe(Subscription { suspended: true, ..subscription("ROOM1", None) }));
    let mut all = bench.view(|view| view.subscriptions());
    all.sort_by_key(|one| one.since);
    let kept: Vec<_> = all.iter().map(|one| (one.workitem, one.suspended, one.since)).collect();
    assert_eq!(kept, [(None, true, since), (Some((exam, 1)), false, since + 1)]);
    let unsubscribe = |workitem| Command::Unsubscribe { aet: Text8::fitted("ROOM1"), workitem };
    assert_eq!(bench.run(PARIS, unsubscribe(None)), Outcome::Done);
    assert_eq!(bench.run(PARIS, unsubscribe(None)), Outcome::Refused(Refusal::NoSuchWorkitem));
    assert_eq!(bench.view(|view| view.subscriptions()).len(), 1);
}

#[test]
fn how_far_a_subscriber_was_told_only_rises_and_changes_nothing_else() {
    let mut bench = Bench::founded();
    created(&mut bench);
    let subscribe = |one| Command::Subscribe(one);
    let own = |bench: &Bench| bench.view(|view| view.subscriptions()).remove(0);
    let told = |told| Command::Subscribe(Subscription { told, ..subscription("ROOM1", None) });
    assert_eq!(bench.run(PARIS, told(3)), Outcome::Refused(Refusal::NoSuchWorkitem), "none is made by it");
    bench.run(PARIS, subscribe(Subscription { reporter: Some(PARIS), ..subscription("ROOM1", None) }));
    bench.run(PARIS, subscribe(Subscription { suspended: true, ..subscription("ROOM1", None) }));
    assert_eq!(bench.run(PARIS, told(3)), Outcome::Done);
    bench.run(PARIS, told(2));
    let kept = own(&bench);
    assert_eq!((kept.told, kept.suspended, kept.reporter), (3, true, Some(PARIS)));
    bench.run(PARIS, told(u64::MAX));
    assert_eq!(own(&bench).told, bench.index, "nothing can have been told that has not happened");
}
