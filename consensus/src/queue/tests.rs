//! The queue's rules, one sentence a test, and random commands against what must always hold.

use std::collections::BTreeMap;

use maillage_host::EngineHome as _;
use maillage_host::UnixMillis;
use maillage_host::engine::{Engine, MemoryHome};
use proptest::prelude::{Just, Strategy, any, prop, prop_oneof};
use proptest::{prop_assert, prop_assert_eq, proptest};

use super::*;
use crate::command::{FORMAT, SiteDescription, StudyPart};
use crate::exam::{Exam, ExamState, Patient, Priority, Request, Text8, Unsolicited, WorkitemState};
use crate::ids::{ExamId, FencingToken, Line, PeerKey, Prose, SiteId, UidText};
use crate::outcome::Grant;
use crate::view::View;

const PARIS: SiteId = SiteId(1);
const LEADER: Proposer = Proposer { node: 1, is_leader: true };

/// A queue over an engine in memory, each command committed at the next index.
struct Bench {
    engine: std::sync::Arc<dyn Engine>,
    index: u64,
    now: u64,
}

impl Bench {
    /// A founded mesh of the newest format, with Paris in session.
    fn founded() -> Self {
        Self::of_format(FORMAT)
    }

    fn of_format(format: u8) -> Self {
        let mut bench = Self::empty();
        let (mesh, name, founder) = ([9; 32], Name::fitted("test"), site("paris", 1));
        let found = match format {
            1 => Command::Found { mesh, name, copies: 3, founder },
            _ => Command::Establish { mesh, name, copies: 3, founder, format },
        };
        assert_eq!(bench.run(PARIS, found), Outcome::Founded);
        assert_eq!(bench.run(PARIS, Command::OpenSession), Outcome::SessionOpened { session: 1 });
        bench
    }

    fn empty() -> Self {
        // Index 1 belongs to the group's own first entries.
        Self { engine: MemoryHome::default().open().expect("open"), index: 1, now: 1_000_000 }
    }

    fn run(&mut self, site: SiteId, command: Command) -> Outcome {
        self.run_as(CommandId::random(), site, command)
    }

    fn run_as(&mut self, id: CommandId, site: SiteId, command: Command) -> Outcome {
        self.index += 1;
        self.now += 1_000;
        let envelope = Envelope { id, at: UnixMillisField(0), site, user: Name::fitted("dr-a"), command };
        let from = Proposer { node: site.0, is_leader: true };
        let stamped = Queue.stamp(&*self.engine, &envelope.encode(), from, UnixMillis(self.now)).expect("stamp");
        let mut transaction = Transaction::new(&*self.engine);
        let outcome = Queue.apply(&mut transaction, self.index, &stamped).expect("apply");
        self.engine.commit(transaction.into_batch()).expect("commit");
        Outcome::decode(&outcome).expect("decode")
    }

    fn view<T>(&self, read: impl FnOnce(&View<'_>) -> Result<T, ApplyError>) -> T {
        read(&View::new(&*self.engine)).expect("read")
    }

    fn exam(&self, id: ExamId) -> Exam {
        self.view(|view| view.exam(id)).expect("the exam exists")
    }

    /// A site that joined by a fresh token and opened its session.
    fn join(&mut self, name: &str) -> SiteId {
        let token = key(name, 2);
        self.run(PARIS, Command::CreateToken { key: token.clone(), lifetime_ms: 3_600_000 });
        let Outcome::Joined { site } = self.run(PARIS, Command::Join { token, joiner: site(name, 1) }) else {
            panic!("the site joins");
        };
        self.run(site, Command::OpenSession);
        site
    }

    fn add(&mut self, request: Request) -> ExamId {
        match self.run(PARIS, Command::AddExam(request)) {
            Outcome::ExamAdded { exam, existed: false } => exam,
            other => panic!("{other:?}"),
        }
    }

    fn take(&mut self, site: SiteId, exam: ExamId) -> Grant {
        match self.run(site, Command::ClaimTake { exam }) {
            Outcome::Claimed(grant) => grant,
            other => panic!("{other:?}"),
        }
    }
}

fn key(name: &str, kind: u8) -> PeerKey {
    let mut bytes = vec![kind];
    bytes.extend_from_slice(blake3::hash(name.as_bytes()).as_bytes());
    PeerKey::new(bytes).expect("a key")
}

fn site(name: &str, kind: u8) -> SiteDescription {
    let (name_text, zone) = (Name::fitted(name), Name::fitted(name));
    SiteDescription { key: key(name, kind), name: name_text, zone, addresses: Vec::new(), weight: 100 }
}

fn request(accession: &str, patient: &str) -> Request {
    Request {
        accession: Line::fitted(accession),
        patient: Patient { id: Line::fitted(patient), ..Patient::default() },
        modality: Text8::fitted("CT"),
        description: Line::fitted("head"),
        hospital: Line::fitted("hospital"),
        physician: Line::default(),
        priority: Priority::Urgent,
        awaits_images: true,
    }
}

fn ready(accession: &str, priority: Priority) -> Request {
    Request { awaits_images: false, priority, ..request(accession, "P1") }
}

fn born(accession: &str, patient: &str, birth_date: &str) -> Request {
    let mut request = request(accession, patient);
    request.patient.birth_date = Text8::fitted(birth_date);
    request
}

fn part(study: &str, says: Request, sequence: u64) -> StudyPart {
    StudyPart {
        study: UidText::fitted(study),
        manifest: *blake3::hash(format!("{study} {sequence}").as_bytes()).as_bytes(),
        sequence,
        instances: 3,
        bytes: 3_000,
        first_received_at: UnixMillisField(1),
        last_received_at: UnixMillisField(2),
        says,
    }
}

fn report(text: &str) -> Prose {
    Prose::new(text).expect("a report")
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
        kind: crate::exam::ReportKind::Final,
        text: Prose::fitted(text),
        signature: vec![signature; 64].into(),
    };
    let id = CommandId::random();
    assert_eq!(bench.run_as(id, PARIS, report("Normal.", 1)), Outcome::Completed { report: 1 });
    assert_eq!(bench.run_as(id, lyon, report("Normal.", 2)), Outcome::Completed { report: 1 });
    assert_eq!(bench.view(|view| view.reports(exam)).len(), 1);
    assert_eq!(bench.run_as(id, lyon, report("Another.", 2)), Outcome::Refused(Refusal::OtherCommand));
}

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
    let earlier = parts[0].previous.as_ref().expect("the better held publication is remembered");
    assert_eq!((earlier.part.sequence, earlier.holders.len()), (1, 2));
    assert_eq!(bench.run(lyon, holding(second.manifest)), Outcome::Done);
    let parts = bench.view(|view| view.study("1.2")).expect("study").parts;
    assert_eq!(parts[0].previous, None, "the new publication is held as well as the old one was");
    assert_eq!(bench.view(|view| view.studies_below_wanted(None, 10)), ["1.2"]);
}

#[test]
fn a_token_admits_one_site_once_within_its_time() {
    let mut bench = Bench::founded();
    let token = key("token", 2);
    let join = |name: &str| Command::Join { token: key("token", 2), joiner: site(name, 1) };
    assert_eq!(bench.run(PARIS, join("lyon")), Outcome::Refused(Refusal::TokenUnknown));
    bench.run(PARIS, Command::CreateToken { key: token.clone(), lifetime_ms: 10_000 });
    let Outcome::Joined { site: lyon } = bench.run(PARIS, join("lyon")) else { panic!("joined") };
    assert_eq!(bench.run(PARIS, join("lyon")), Outcome::Joined { site: lyon }, "the answer was lost: asked again");
    assert_eq!(bench.run(PARIS, join("nantes")), Outcome::Refused(Refusal::TokenUsed));
    bench.run(PARIS, Command::CreateToken { key: token, lifetime_ms: 10_000 });
    assert_eq!(bench.run(PARIS, join("paris")), Outcome::Refused(Refusal::NameTaken));
    bench.now += 20_000;
    assert_eq!(bench.run(PARIS, join("nantes")), Outcome::Refused(Refusal::TokenExpired));
}

#[test]
fn a_stranger_proposes_nothing() {
    let mut bench = Bench::founded();
    let outcome = bench.run(SiteId(77), Command::AddExam(ready("A1", Priority::Urgent)));
    assert_eq!(outcome, Outcome::Refused(Refusal::NotAMember));
    assert_eq!(Bench::empty().index, 1);
}

#[test]
fn the_clock_of_the_state_never_goes_back() {
    let mut bench = Bench::founded();
    let before = bench.view(|view| view.clock());
    bench.now = 5;
    let exam = bench.add(ready("A1", Priority::Urgent));
    assert!(bench.exam(exam).added_at >= before);
}

#[test]
fn an_unknown_command_stops_the_replica_and_is_refused_before_the_log() {
    let bench = Bench::founded();
    let mut transaction = Transaction::new(&*bench.engine);
    for bytes in [&[][..], &[3, 0, 0], &[2, 0, 0], &[1, 0xff, 0xff]] {
        assert!(Queue.stamp(&*bench.engine, bytes, LEADER, UnixMillis(1)).is_err());
        assert!(matches!(Queue.apply(&mut transaction, 9, bytes), Err(ApplyError::Unknown { index: 9, .. })));
    }
}

#[test]
fn the_encoding_of_version_1_does_not_change() {
    let id = CommandId(uuid::Uuid::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef));
    let exam = ExamId(5);
    let token = FencingToken(300);
    let commands = vec![
        Command::Found { mesh: [7; 32], name: Name::fitted("m"), copies: 3, founder: site("paris", 1) },
        Command::CreateToken { key: key("t", 2), lifetime_ms: 1 },
        Command::RevokeToken { key: key("t", 2) },
        Command::Join { token: key("t", 2), joiner: site("lyon", 1) },
        Command::Describe { description: site("lyon", 1) },
        Command::OpenSession,
        Command::ExpireSession { site: SiteId(4), session: 2 },
        Command::AddExam(request("A1", "P1")),
        Command::ClaimNext { modalities: vec![UidText::fitted("CT")] },
        Command::ClaimTake { exam },
        Command::Release { exam, token, reason: Line::fitted("r") },
        Command::Complete { exam, token, report: report("text") },
        Command::RecordStudy(part("1.2", request("A1", "P1"), 1)),
        Command::RecordHolding { study: UidText::fitted("1.2"), manifest: [1; 32], holds: true },
        Command::Reconcile { unsolicited: exam, into: ExamId(6) },
        Command::Cancel { exam, reason: Line::fitted("r") },
        Command::Prioritise { exam, priority: Priority::Vital },
    ];
    let mut hex = String::new();
    for command in commands {
        let envelope = Envelope { id, at: UnixMillisField(9), site: SiteId(4), user: Name::fitted("u"), command };
        let bytes = envelope.encode();
        assert_eq!(Envelope::decode(&bytes).expect("decode"), envelope);
        for byte in bytes {
            hex.push_str(&format!("{byte:02x}"));
        }
        hex.push('\n');
    }
    expect_test::expect_file!["golden/commands-v1.hex"].assert_eq(&hex);
}

/// A random step of a random life.
#[derive(Debug, Clone)]
enum Step {
    Add(Priority, bool),
    Next,
    Take(usize),
    Release(usize, bool),
    Complete(usize, bool),
    Expire(usize),
    Open(usize),
    Cancel(usize),
    Images(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let priority = prop_oneof![Just(Priority::Vital), Just(Priority::Urgent), Just(Priority::Scheduled)];
    prop_oneof![
        (priority, any::<bool>()).prop_map(|(priority, images)| Step::Add(priority, images)),
        Just(Step::Next),
        (0..8_usize).prop_map(Step::Take),
        (0..8_usize, any::<bool>()).prop_map(|(exam, stale)| Step::Release(exam, stale)),
        (0..8_usize, any::<bool>()).prop_map(|(exam, stale)| Step::Complete(exam, stale)),
        (0..3_usize).prop_map(Step::Expire),
        (0..3_usize).prop_map(Step::Open),
        (0..8_usize).prop_map(Step::Cancel),
        (0..8_usize).prop_map(Step::Images),
    ]
}

/// An exam, its state, who holds it, and the last token granted for it.
type Known = (ExamId, ExamState, Option<(SiteId, FencingToken)>, FencingToken);

/// The plainest statement of the queue's rules: who holds what, under which token.
struct Reference {
    exams: Vec<Known>,
    sessions: BTreeMap<SiteId, (u64, bool)>,
    greatest: FencingToken,
}

proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(200))]

    #[test]
    fn random_lives_agree_with_the_reference(steps in prop::collection::vec((step(), 0..3_usize), 1..80)) {
        let mut bench = Bench::founded();
        let sites = [PARIS, bench.join("lyon"), bench.join("nantes")];
        let mut reference = Reference { exams: Vec::new(), sessions: BTreeMap::new(), greatest: FencingToken(0) };
        for site in sites {
            reference.sessions.insert(site, (1, true));
        }
        for (step, at) in steps {
            check_step(&mut bench, &mut reference, &sites, step, sites[at])?;
            check_state(&bench, &reference)?;
        }
    }
}

fn check_step(
    bench: &mut Bench,
    reference: &mut Reference,
    sites: &[SiteId; 3],
    step: Step,
    site: SiteId,
) -> Result<(), proptest::test_runner::TestCaseError> {
    let open = reference.sessions[&site].1;
    let count = reference.exams.len();
    let pick = |n: usize| if count == 0 { None } else { Some(n % count) };
    match step {
        Step::Add(priority, images) => {
            let added = bench.add(Request {
                awaits_images: images,
                priority,
                ..request(&format!("A{}", bench.index), &format!("P{}", bench.index))
            });
            let state = if images { ExamState::Requested } else { ExamState::Waiting };
            reference.exams.push((added, state, None, FencingToken(0)));
        }
        Step::Images(n) => {
            let Some(n) = pick(n) else { return Ok(()) };
            let says = bench.exam(reference.exams[n].0).request;
            let study = format!("1.2.{}", reference.exams[n].0);
            let cancelled = reference.exams[n].1 == ExamState::Cancelled;
            let outcome = bench.run(site, Command::RecordStudy(part(&study, says, 1)));
            if cancelled {
                // The images of a cancelled exam are not thrown away: they stand apart, or with it.
                if let Outcome::StudyRecorded { exam, .. } = outcome
                    && !reference.exams.iter().any(|known| known.0 == exam)
                {
                    reference.exams.push((exam, ExamState::Waiting, None, FencingToken(0)));
                }
            } else if reference.exams[n].1 == ExamState::Requested {
                reference.exams[n].1 = ExamState::Waiting;
            }
        }
        Step::Next => {
            let outcome = bench.run(site, Command::ClaimNext { modalities: vec![] });
            let waiting = reference.exams.iter().any(|exam| exam.1 == ExamState::Waiting);
            match outcome {
                Outcome::Claimed(grant) => grant_checked(reference, site, &grant)?,
                Outcome::NothingWaiting => prop_assert!(!waiting),
                Outcome::Refused(Refusal::NoSession) => prop_assert!(!open),
                other => prop_assert!(false, "{other:?}"),
            }
        }
        Step::Take(n) => {
            let Some(n) = pick(n) else { return Ok(()) };
            let (exam, state, holder, _) = reference.exams[n];
            match bench.run(site, Command::ClaimTake { exam }) {
                Outcome::Claimed(grant) => grant_checked(reference, site, &grant)?,
                Outcome::Refused(Refusal::AlreadyClaimed(by)) => prop_assert_eq!(Some(by.site), holder.map(|h| h.0)),
                Outcome::Refused(Refusal::NoSession) => prop_assert!(!open && state == ExamState::Waiting),
                Outcome::Refused(Refusal::WrongState { state: is }) => prop_assert_eq!(is, state),
                other => prop_assert!(false, "{other:?}"),
            }
        }
        Step::Release(n, stale) | Step::Complete(n, stale) => {
            let Some(n) = pick(n) else { return Ok(()) };
            let (exam, _, holder, last) = reference.exams[n];
            let token = if stale { FencingToken(last.0.saturating_sub(1)) } else { last };
            let holds = holder.is_some_and(|(_, current)| current == token);
            let complete = matches!(step, Step::Complete(..));
            let command = if complete {
                Command::Complete { exam, token, report: report("text") }
            } else {
                Command::Release { exam, token, reason: Line::default() }
            };
            match bench.run(site, command) {
                Outcome::Refused(Refusal::StaleToken { .. }) => prop_assert!(!holds),
                Outcome::Done | Outcome::Completed { .. } => {
                    prop_assert!(holds);
                    reference.exams[n].1 = if complete { ExamState::Reported } else { ExamState::Waiting };
                    reference.exams[n].2 = None;
                }
                other => prop_assert!(false, "{other:?}"),
            }
        }
        Step::Expire(n) => {
            let (session, open) = reference.sessions[&sites[n]];
            let outcome = bench.run(site, Command::ExpireSession { site: sites[n], session });
            let held = reference.exams.iter().filter(|exam| exam.2.is_some_and(|h| h.0 == sites[n])).count();
            if open {
                prop_assert_eq!(outcome, Outcome::SessionExpired { freed: u32::try_from(held).expect("few") });
                reference.sessions.insert(sites[n], (session, false));
                for exam in reference.exams.iter_mut().filter(|exam| exam.2.is_some_and(|h| h.0 == sites[n])) {
                    exam.1 = ExamState::Waiting;
                    exam.2 = None;
                }
            } else {
                prop_assert_eq!(outcome, Outcome::Refused(Refusal::SessionOver));
            }
        }
        Step::Open(n) => {
            let (session, open) = reference.sessions[&sites[n]];
            let session = if open { session } else { session + 1 };
            prop_assert_eq!(bench.run(sites[n], Command::OpenSession), Outcome::SessionOpened { session });
            reference.sessions.insert(sites[n], (session, true));
        }
        Step::Cancel(n) => {
            let Some(n) = pick(n) else { return Ok(()) };
            let (exam, state, ..) = reference.exams[n];
            let outcome = bench.run(site, Command::Cancel { exam, reason: Line::fitted("mistake") });
            if matches!(state, ExamState::Requested | ExamState::Waiting) {
                prop_assert_eq!(outcome, Outcome::Done);
                reference.exams[n].1 = ExamState::Cancelled;
            } else {
                prop_assert_eq!(outcome, Outcome::Refused(Refusal::WrongState { state }));
            }
        }
    }
    Ok(())
}

fn grant_checked(
    reference: &mut Reference,
    site: SiteId,
    grant: &Grant,
) -> Result<(), proptest::test_runner::TestCaseError> {
    prop_assert!(grant.claim.token > reference.greatest, "a later grant has the greater token");
    reference.greatest = grant.claim.token;
    let exam = reference.exams.iter_mut().find(|exam| exam.0 == grant.exam);
    let Some(exam) = exam else { return Err(proptest::test_runner::TestCaseError::fail("granted an unknown exam")) };
    prop_assert_eq!(exam.1, ExamState::Waiting, "only a waiting exam is granted");
    prop_assert!(reference.sessions[&site].1, "only a site in session is granted");
    (exam.1, exam.2, exam.3) = (ExamState::Claimed, Some((site, grant.claim.token)), grant.claim.token);
    Ok(())
}

fn check_state(bench: &Bench, reference: &Reference) -> Result<(), proptest::test_runner::TestCaseError> {
    let counts = bench.view(|view| view.counts());
    let count = |state| reference.exams.iter().filter(|exam| exam.1 == state).count() as u64;
    prop_assert_eq!(counts.requested, count(ExamState::Requested));
    prop_assert_eq!(counts.waiting, count(ExamState::Waiting));
    prop_assert_eq!(counts.claimed, count(ExamState::Claimed));
    prop_assert_eq!(counts.reported, count(ExamState::Reported));
    prop_assert_eq!(counts.cancelled, count(ExamState::Cancelled));
    let room = bench.view(|view| view.waiting(UnixMillisField(0), usize::MAX));
    prop_assert_eq!(room.len() as u64, counts.waiting);
    let keys: Vec<_> = room.iter().map(|exam| (exam.request.priority, exam.due_at, exam.id)).collect();
    prop_assert!(keys.is_sorted(), "the room is in order");
    prop_assert_eq!(bench.view(|view| view.claimed(usize::MAX)).len() as u64, counts.claimed);
    for (id, state, holder, _) in &reference.exams {
        let exam = bench.exam(*id);
        prop_assert_eq!(exam.state, *state);
        prop_assert_eq!(exam.claim.map(|claim| (claim.site, claim.token)), *holder);
    }
    Ok(())
}
