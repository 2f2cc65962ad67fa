//! Claims: granted to one, fenced by tokens, ended with their site's session.

use super::*;

#[test]
fn a_claimed_exam_is_refused_to_the_second_with_its_holders_name() {
    let mut bench = Bench::founded();
    let lyon = bench.join("lyon");
    let exam = bench.add(ready("A1", Priority::Urgent));
    bench.take(lyon, exam);
    match bench.run(PARIS, Command::ClaimTake { exam }) {
        Outcome::Refused(Refusal::AlreadyClaimed(holder)) => {
            assert_eq!((holder.site, holder.site_name.as_str(), holder.user.as_str()), (lyon, "lyon", "dr-a"));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(bench.run(PARIS, Command::ClaimNext { modalities: vec![] }), Outcome::NothingWaiting);
}

#[test]
fn a_repeated_command_returns_the_first_outcome_and_does_nothing() {
    let mut bench = Bench::founded();
    bench.add(ready("A1", Priority::Urgent));
    bench.add(ready("A2", Priority::Urgent));
    let id = CommandId::random();
    let first = bench.run_as(id, PARIS, Command::ClaimNext { modalities: vec![] });
    let again = bench.run_as(id, PARIS, Command::ClaimNext { modalities: vec![] });
    assert!(matches!(first, Outcome::Claimed(_)));
    assert_eq!(first, again);
    assert_eq!(bench.view(|view| view.counts()).waiting, 1, "the second exam is still there");
}

#[test]
fn a_command_id_used_for_another_command_does_nothing_and_says_so() {
    let mut bench = Bench::founded();
    let exam = bench.add(ready("A1", Priority::Urgent));
    let token = bench.take(PARIS, exam).claim.token;
    let id = CommandId::random();
    let first = Command::Complete { exam, token, report: report("no bleeding") };
    assert_eq!(bench.run_as(id, PARIS, first), Outcome::Completed { report: 1 });
    let corrected = Command::Complete { exam, token, report: report("bleeding") };
    assert_eq!(bench.run_as(id, PARIS, corrected), Outcome::Refused(Refusal::OtherCommand));
    assert_eq!(bench.view(|view| view.reports(exam)).len(), 1);
}

#[test]
fn a_refusal_that_a_moment_changes_is_not_remembered() {
    let mut bench = Bench::founded();
    bench.add(ready("A1", Priority::Urgent));
    bench.run(PARIS, Command::ExpireSession { site: PARIS, session: 1 });
    let id = CommandId::random();
    let next = || Command::ClaimNext { modalities: vec![] };
    assert_eq!(bench.run_as(id, PARIS, next()), Outcome::Refused(Refusal::NoSession));
    bench.run(PARIS, Command::OpenSession);
    assert!(matches!(bench.run_as(id, PARIS, next()), Outcome::Claimed(_)));
}

#[test]
fn nobody_speaks_for_another_site_and_only_the_leader_ends_a_session() {
    let empty = MemoryHome::default().open().expect("open");
    let say = |site: u64, node: u64, is_leader: bool, command: Command| {
        let envelope = Envelope {
            id: CommandId::random(),
            at: UnixMillisField(0),
            site: SiteId(site),
            user: Name::default(),
            command,
        };
        Queue.stamp(&*empty, &envelope.encode(), Proposer { node, is_leader }, UnixMillis(1))
    };
    assert!(say(4, 4, false, Command::OpenSession).is_ok());
    assert!(say(5, 4, false, Command::OpenSession).is_err());
    let expire = || Command::ExpireSession { site: SiteId(9), session: 1 };
    assert!(say(4, 4, true, expire()).is_ok());
    assert!(say(4, 4, false, expire()).is_err());
}

#[test]
fn claim_next_passes_over_what_its_reader_has_just_given_back() {
    let mut bench = Bench::founded();
    let first = bench.add(ready("A1", Priority::Vital));
    let second = bench.add(ready("A2", Priority::Scheduled));
    let next = |bench: &mut Bench| match bench.run(PARIS, Command::ClaimNext { modalities: vec![] }) {
        Outcome::Claimed(grant) => (grant.exam, grant.claim.token),
        other => panic!("{other:?}"),
    };
    let (exam, token) = next(&mut bench);
    assert_eq!(exam, first);
    bench.run(PARIS, Command::Release { exam, token, reason: Line::default() });
    assert_eq!(next(&mut bench).0, second);
    assert_eq!(next(&mut bench).0, first, "nothing else is left");
}

#[test]
fn outcomes_are_kept_for_a_day_and_not_for_ever() {
    let mut bench = Bench::founded();
    let id = CommandId::random();
    let add = |bench: &mut Bench| bench.run_as(id, PARIS, Command::AddExam(ready("", Priority::Urgent)));
    let first = add(&mut bench);
    bench.now += OUTCOME_KEPT_MS - 60_000;
    assert_eq!(add(&mut bench), first);
    bench.now += 120_000;
    // One command makes the room in which the next finds the old outcome gone.
    bench.run(PARIS, Command::OpenSession);
    assert_ne!(add(&mut bench), first);
}

#[test]
fn the_room_is_ordered_by_urgency_then_by_time_left() {
    let mut bench = Bench::founded();
    let scheduled = bench.add(ready("A1", Priority::Scheduled));
    let urgent_first = bench.add(ready("A2", Priority::Urgent));
    let urgent_second = bench.add(ready("A3", Priority::Urgent));
    let vital = bench.add(ready("A4", Priority::Vital));
    let order: Vec<ExamId> =
        bench.view(|view| view.waiting(UnixMillisField(0), 10)).into_iter().map(|exam| exam.id).collect();
    assert_eq!(order, [vital, urgent_first, urgent_second, scheduled]);
    bench.run(PARIS, Command::Prioritise { exam: scheduled, priority: Priority::Vital });
    match bench.run(PARIS, Command::ClaimNext { modalities: vec![] }) {
        Outcome::Claimed(grant) => assert_eq!(grant.exam, scheduled, "raised to vital, it has waited longest"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn claim_next_keeps_to_the_modalities_asked_for() {
    let mut bench = Bench::founded();
    bench.add(ready("A1", Priority::Vital));
    let pet = bench.add(Request { modality: Text8::fitted("PT"), ..ready("A2", Priority::Scheduled) });
    match bench.run(PARIS, Command::ClaimNext { modalities: vec![UidText::fitted("PT")] }) {
        Outcome::Claimed(grant) => assert_eq!(grant.exam, pet),
        other => panic!("{other:?}"),
    }
    let none = bench.run(PARIS, Command::ClaimNext { modalities: vec![UidText::fitted("MR")] });
    assert_eq!(none, Outcome::NothingWaiting);
}

#[test]
fn a_stale_token_neither_releases_nor_reports_and_its_text_is_kept_as_a_draft() {
    let mut bench = Bench::founded();
    let exam = bench.add(ready("A1", Priority::Urgent));
    let old = bench.take(PARIS, exam).claim.token;
    bench.run(PARIS, Command::Release { exam, token: old, reason: Line::default() });
    let new = bench.take(PARIS, exam).claim.token;
    assert!(new > old, "a later grant has the greater token");

    let release = bench.run(PARIS, Command::Release { exam, token: old, reason: Line::default() });
    assert_eq!(release, Outcome::Refused(Refusal::StaleToken { given: old, kept_as: None }));
    let late = bench.run(PARIS, Command::Complete { exam, token: old, report: report("late") });
    assert_eq!(late, Outcome::Refused(Refusal::StaleToken { given: old, kept_as: Some(1) }));
    assert_eq!(bench.exam(exam).state, ExamState::Claimed, "the true reader goes on");
    let done = bench.run(PARIS, Command::Complete { exam, token: new, report: report("true") });
    assert_eq!(done, Outcome::Completed { report: 2 });
    let reports = bench.view(|view| view.reports(exam));
    let kept: Vec<_> = reports.iter().map(|report| (report.text.as_str(), report.stale)).collect();
    assert_eq!(kept, [("late", true), ("true", false)]);
    let again = bench.run(PARIS, Command::Complete { exam, token: new, report: report("over it") });
    assert!(matches!(again, Outcome::Refused(Refusal::StaleToken { .. })), "a completion is final: {again:?}");
}

#[test]
fn a_token_that_was_never_granted_leaves_no_draft() {
    let mut bench = Bench::founded();
    let exam = bench.add(ready("A1", Priority::Urgent));
    let forged = bench.run(PARIS, Command::Complete { exam, token: FencingToken(7), report: report("forged") });
    assert_eq!(forged, Outcome::Refused(Refusal::StaleToken { given: FencingToken(7), kept_as: None }));
    assert!(bench.view(|view| view.reports(exam)).is_empty());
}

#[test]
fn the_end_of_a_session_returns_its_claims_and_a_late_expiry_does_nothing() {
    let mut bench = Bench::founded();
    let lyon = bench.join("lyon");
    let exam = bench.add(ready("A1", Priority::Urgent));
    let grant = bench.take(lyon, exam);
    let expired = bench.run(PARIS, Command::ExpireSession { site: lyon, session: 1 });
    assert_eq!(expired, Outcome::SessionExpired { freed: 1 });
    assert_eq!(bench.exam(exam).state, ExamState::Waiting);
    let workitems = bench.view(|view| view.workitems(exam));
    let states: Vec<_> = workitems.iter().map(|workitem| workitem.state).collect();
    assert_eq!(states, [WorkitemState::Canceled, WorkitemState::Scheduled], "UPS has no un-claim");
    assert_eq!(workitems[0].reason.as_str(), "the session of lyon ended");

    let refused = bench.run(lyon, Command::ClaimTake { exam });
    assert_eq!(refused, Outcome::Refused(Refusal::NoSession));
    assert_eq!(bench.run(lyon, Command::OpenSession), Outcome::SessionOpened { session: 2 });
    bench.take(lyon, exam);
    let late = bench.run(PARIS, Command::ExpireSession { site: lyon, session: 1 });
    assert_eq!(late, Outcome::Refused(Refusal::SessionOver));
    assert_eq!(bench.exam(exam).state, ExamState::Claimed);
    assert!(grant.claim.token < bench.exam(exam).claim.expect("claimed").token);
}

#[test]
fn a_take_over_needs_a_reason_cancels_the_old_claim_and_tells_its_holder() {
    let mut bench = Bench::founded();
    let lyon = bench.join("lyon");
    let exam = bench.add(ready("A1", Priority::Urgent));
    let take_over = |reason: &str| Command::TakeOver { exam, reason: Line::fitted(reason) };
    assert_eq!(bench.run(PARIS, take_over("mine")), wrong(ExamState::Waiting));
    let old = granted(bench.by(lyon, "dr-l", Command::ClaimTake { exam })).claim;
    assert_eq!(bench.run(PARIS, take_over("")), missing("a reason"));
    let before = bench.index;
    let new = granted(bench.run(PARIS, take_over("the patient is in the theatre"))).claim;
    assert!(new.token > old.token);
    let why = Line::fitted("taken over by dr-a: the patient is in the theatre");
    let warned = Happened::ClaimLost { user: old.user.clone(), site: lyon, reason: why.clone() };
    assert!(bench.happened(exam, before).contains(&warned));
    let items = bench.view(|view| view.workitems(exam));
    assert_eq!((items[0].state, &items[0].reason), (WorkitemState::Canceled, &why));
    assert_eq!((items[1].state, items[1].step.replaces), (WorkitemState::InProgress, Some(1)));
    let late = bench.by(lyon, "dr-l", written(exam, old.token, ReportKind::Final, "fracture"));
    assert_eq!(late, Outcome::Refused(Refusal::StaleToken { given: old.token, kept_as: Some(1) }));
    assert_eq!(bench.run(PARIS, written(exam, new.token, ReportKind::Final, "true")), Outcome::Completed { report: 2 });
    assert_eq!(bench.exam(exam).course.report, Some(2), "the draft stands beside it and is not the report");
}

#[test]
fn a_take_over_from_a_site_without_a_session_changes_nothing() {
    let mut bench = Bench::founded();
    let lyon = bench.join("lyon");
    let exam = bench.add(ready("A1", Priority::Urgent));
    let grant = bench.take(PARIS, exam);
    bench.run(PARIS, Command::ExpireSession { site: lyon, session: 1 });
    let refused = bench.run(lyon, Command::TakeOver { exam, reason: Line::fitted("now") });
    assert_eq!(refused, Outcome::Refused(Refusal::NoSession));
    assert_eq!(bench.exam(exam).claim, Some(grant.claim));
    assert_eq!(bench.view(|view| view.workitems(exam)).len(), 1);
}

#[test]
fn the_end_of_a_session_warns_whoever_was_reading() {
    let mut bench = Bench::founded();
    let lyon = bench.join("lyon");
    let exam = bench.add(ready("A1", Priority::Urgent));
    bench.by(lyon, "dr-l", Command::ClaimTake { exam });
    let before = bench.index;
    bench.run(PARIS, Command::ExpireSession { site: lyon, session: 1 });
    let reason = Line::fitted("the session of lyon ended");
    let warned = Happened::ClaimLost { user: Name::fitted("dr-l"), site: lyon, reason };
    assert!(bench.happened(exam, before).contains(&warned));
}

#[test]
fn the_transaction_is_the_clients_or_one_derived_from_its_command() {
    let mut bench = Bench::founded();
    let exam = bench.add(ready("A1", Priority::Urgent));
    let uid = UidText::fitted("2.25.77");
    let grant = granted(bench.run(PARIS, Command::Take { exam, transaction_uid: uid.clone() }));
    assert_eq!(grant.claim.transaction_uid, uid);
    bench.run(PARIS, Command::Release { exam, token: grant.claim.token, reason: Line::default() });
    let id = CommandId::random();
    let take = Command::Take { exam, transaction_uid: UidText::default() };
    let derived = granted(bench.run_as(id, PARIS, take)).claim.transaction_uid;
    assert_eq!(derived.as_str(), format!("2.25.{}", id.0.as_u128()));
}

#[test]
fn a_draft_under_a_lost_claim_is_kept_even_after_the_final_report() {
    let mut bench = Bench::founded();
    let exam = bench.add(ready("A1", Priority::Urgent));
    let old = bench.take(PARIS, exam).claim.token;
    bench.run(PARIS, Command::Release { exam, token: old, reason: Line::default() });
    let new = bench.take(PARIS, exam).claim.token;
    bench.run(PARIS, written(exam, new, ReportKind::Final, "no fracture"));
    let draft = bench.run(PARIS, written(exam, old, ReportKind::Preliminary, "a fracture"));
    assert_eq!(draft, Outcome::Refused(Refusal::StaleToken { given: old, kept_as: Some(2) }));
    let reports = bench.view(|view| view.reports(exam));
    assert_eq!((reports[1].stale, reports[1].text.as_str()), (true, "a fracture"));
    assert_eq!((bench.exam(exam).state, bench.exam(exam).course.report), (ExamState::Reported, Some(1)));
}

#[test]
fn a_signed_report_repeated_at_another_site_is_the_same_command() {
    let mut bench = Bench::founded();
    let lyon = bench.join("lyon");
    let exam = bench.add(Request { awaits_images: false, ..request("A1", "P1") });
    let token = bench.take(PARIS, exam).claim.token;
    // Each site signs with a key of its own.
    let report = |text: &str, signature: u8| Command::Report {
        exam,
        token,
        kind: ReportKind::Final,
        text: Prose::fitted(text),
        signature: vec![signature; 64].into(),
    };
    let id = CommandId::random();
    assert_eq!(bench.run_as(id, PARIS, report("Normal.", 1)), Outcome::Completed { report: 1 });
    assert_eq!(bench.run_as(id, lyon, report("Normal.", 2)), Outcome::Completed { report: 1 });
    assert_eq!(bench.view(|view| view.reports(exam)).len(), 1);
    assert_eq!(bench.run_as(id, lyon, report("Another.", 2)), Outcome::Refused(Refusal::OtherCommand));
}
