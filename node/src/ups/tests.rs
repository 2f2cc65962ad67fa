//! Data sets, searches and event reports over a queue in memory: every kind of workitem, through an exam's
//! life.

use std::sync::Arc;

use maillage_consensus::command::{Command, Envelope, FORMAT, SiteDescription, Subscription, UnixMillisField};
use maillage_consensus::event::Cursor;
use maillage_consensus::exam::{Patient, Priority, ReportKind, Request, Text8, Verdict, WorkitemKind};
use maillage_consensus::ids::{CommandId, ExamId, Line, Name, Paragraph, PeerKey, Prose, SiteId, UidText};
use maillage_consensus::machine::{Machine as _, Proposer};
use maillage_consensus::order::Order;
use maillage_consensus::remark::Finding;
use maillage_consensus::transaction::Transaction;
use maillage_consensus::{Outcome, Queue, View};
use maillage_host::engine::{Engine, MemoryHome};
use maillage_host::{EngineHome as _, UnixMillis};
use serde_bytes::ByteBuf;

use super::dataset::Dataset;
use super::describe::Scene;
use super::query::Query;
use super::{report, search, tags, uids};

const SITE: SiteId = SiteId(1);
const MESH: [u8; 32] = [9; 32];

struct Bench {
    engine: Arc<dyn Engine>,
    index: u64,
}

impl Bench {
    fn founded() -> Self {
        let mut bench = Self { engine: MemoryHome::default().open().expect("open"), index: 1 };
        let founder = SiteDescription {
            key: PeerKey::new(vec![1; 38]).expect("a key"),
            name: Name::fitted("paris"),
            zone: Name::fitted("zone"),
            addresses: Vec::new(),
            weight: 1,
        };
        let name = Name::fitted("test");
        bench.run(Command::Establish { mesh: MESH, name, copies: 3, founder, format: FORMAT });
        bench.run(Command::OpenSession);
        bench
    }

    fn run(&mut self, command: Command) -> Outcome {
        self.index += 1;
        let (id, user) = (CommandId::random(), Name::fitted("dr-a"));
        let envelope = Envelope { id, at: UnixMillisField(0), site: SITE, user, command };
        let from = Proposer { node: SITE.0, is_leader: true };
        let now = UnixMillis(1_767_323_045_000 + self.index * 1_000);
        let stamped = Queue.stamp(&*self.engine, &envelope.encode(), from, now).expect("stamp");
        let mut transaction = Transaction::new(&*self.engine);
        let outcome = Queue.apply(&mut transaction, self.index, &stamped).expect("apply");
        self.engine.commit(transaction.into_batch()).expect("commit");
        let outcome = Outcome::decode(&outcome).expect("an outcome");
        assert!(!matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
        outcome
    }

    fn order(&mut self, accession: &str, priority: Priority, order: Order) -> ExamId {
        let request = Request {
            accession: Line::fitted(accession),
            patient: Patient { id: Line::fitted("P1"), name: Line::fitted("DOE^JANE"), ..Patient::default() },
            modality: Text8::fitted("CT"),
            description: Line::fitted("head"),
            hospital: Line::fitted("Hospital A"),
            physician: Line::fitted("HOUSE^G"),
            priority,
            awaits_images: false,
        };
        match self.run(Command::Order { request, order }) {
            Outcome::ExamAdded { exam, .. } => exam,
            other => panic!("{other:?}"),
        }
    }

    fn search(&self, pairs: &[(&str, &str)]) -> Vec<Dataset> {
        let pairs: Vec<_> = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let query = Query::parse(&pairs).expect("a query");
        let (view, newest) = (View::new(&*self.engine), ExamId(self.index + 1));
        let found = search::search(&view, &scene(), &query, UnixMillisField(0), newest).expect("found");
        found.results.iter().map(|json| Dataset::parse(json.to_string().as_bytes()).expect("a data set")).collect()
    }
}

fn scene() -> Scene {
    Scene {
        uids: uids::Uids::new(&MESH),
        service: "http://node/dicom-web".to_owned(),
        ae_title: "NODE".to_owned(),
        sites: [(SITE, "paris".to_owned())].into(),
    }
}

/// An exam that a regulator validated, an algorithm looked at, a colleague was asked about, and that was
/// given back once and then reported.
fn lived(bench: &mut Bench) -> ExamId {
    let exam = bench.order(
        "A1",
        Priority::Vital,
        Order { regulate: true, question: Line::fitted("bleeding?"), ..Order::default() },
    );
    let finding = Finding {
        algorithm: Name::fitted("brain-ai"),
        version: Text8::fitted("2"),
        finding: Line::fitted("haemorrhage"),
        score: 990,
        location: Line::default(),
        priority: None,
    };
    bench.run(Command::AddFinding { exam, finding });
    let question = Paragraph::fitted("fracture?");
    bench.run(Command::AskOpinion { exam, of: Name::fitted("dr-b"), question });
    let claim = |bench: &mut Bench| match bench.run(Command::Take { exam, transaction_uid: UidText::fitted("1.2.3") }) {
        Outcome::Claimed(grant) => grant.claim.token,
        other => panic!("{other:?}"),
    };
    let token = claim(bench);
    bench.run(Command::Release { exam, token, reason: Line::fitted("called away") });
    let token = claim(bench);
    let (text, signature) = (Prose::fitted("Nothing."), ByteBuf::new());
    bench.run(Command::Report { exam, token, kind: ReportKind::Final, text, signature });
    exam
}

#[test]
fn every_workitem_of_an_exam_is_a_procedure_step() {
    let mut bench = Bench::founded();
    let exam = lived(&mut bench);
    let steps = bench.search(&[("includefield", "all"), ("ReferencedRequestSequence.AccessionNumber", "A1")]);
    let said: Vec<String> = steps
        .iter()
        .map(|step| {
            let code = step.item(tags::WORKITEM_CODES).text(tags::CODE_MEANING);
            let [state, priority, ready] =
                [tags::PROCEDURE_STEP_STATE, tags::PRIORITY, tags::INPUT_READINESS_STATE].map(|tag| step.text(tag));
            format!("{code}: {state} {priority} {ready}: {}", step.text(tags::PROCEDURE_STEP_LABEL))
        })
        .collect();
    assert_eq!(
        said,
        [
            "Interpretation: CANCELED HIGH READY: Read CT head",
            "Validation of the request: CANCELED HIGH READY: Validate CT head",
            "Computer Aided Detection: COMPLETED HIGH READY: Analyse CT head",
            "Second opinion: SCHEDULED HIGH READY: Second opinion CT head",
            "Interpretation: COMPLETED HIGH READY: Read CT head",
            "Delivery of the report: SCHEDULED HIGH READY: Deliver the report of CT head",
        ]
    );
    let uid = |step: &Dataset| step.text(tags::SOP_INSTANCE_UID);
    let replaced = steps[4].item(tags::REPLACED_STEPS).text(tags::REFERENCED_SOP_INSTANCE_UID);
    assert_eq!(replaced, uid(&steps[0]), "a replacement names what it replaces");
    let reason = steps[0].item(tags::PROGRESS_INFORMATION).text(tags::REASON_FOR_CANCELLATION);
    assert_eq!(reason, "called away");
    let performed = steps[4].item(tags::PERFORMED_PROCEDURE);
    assert_eq!(performed.item(tags::ACTUAL_HUMAN_PERFORMERS).text(tags::HUMAN_PERFORMER_NAME), "dr-a");
    assert!(performed.is_valued(tags::PERFORMED_END_DATE_TIME));
    assert_eq!(steps[3].item(tags::SCHEDULED_HUMAN_PERFORMERS).text(tags::HUMAN_PERFORMER_NAME), "dr-b");
    for step in &steps {
        assert!(!step.has(tags::TRANSACTION_UID), "the access lock is not shown");
        let request = step.item(tags::REFERENCED_REQUESTS);
        assert_eq!(request.text(tags::REASON_FOR_PROCEDURE), "bleeding?");
        assert_eq!(request.text(tags::REQUESTED_PROCEDURE_ID), exam.to_string());
        assert_eq!(bench.search(&[("SOPInstanceUID", &uid(step))]).len(), 1);
    }
}

#[test]
fn a_search_sees_what_is_open_first_and_then_the_newest() {
    let mut bench = Bench::founded();
    let reported = lived(&mut bench);
    let [older, newer] = ["A2", "A3"].map(|accession| bench.order(accession, Priority::Vital, Order::default()));
    let exams = |pairs: &[(&str, &str)]| {
        let found = bench.search(pairs);
        let exam = |step: &Dataset| step.item(tags::REFERENCED_REQUESTS).text(tags::REQUESTED_PROCEDURE_ID);
        found.iter().map(exam).collect::<Vec<String>>()
    };
    let reading = "ScheduledWorkitemCodeSequence.CodeValue";
    let [first, second, third] = [older, newer, reported].map(|id| id.to_string());
    assert_eq!(exams(&[("ProcedureStepState", "SCHEDULED"), (reading, "110005")]), [first.clone(), second]);
    assert_eq!(exams(&[("ProcedureStepState", "COMPLETED"), (reading, "110005")]), [third]);
    assert_eq!(exams(&[(reading, "110005"), ("limit", "1")]), [first]);
}

#[test]
fn subscribers_are_told_of_every_step_of_a_life_in_order() {
    let mut bench = Bench::founded();
    let subscription = Subscription {
        aet: Text8::fitted("WATCH"),
        workitem: None,
        filter: ByteBuf::new(),
        deletion_lock: false,
        suspended: false,
        since: 0,
        reporter: None,
        told: 0,
    };
    bench.run(Command::Subscribe(subscription));
    let exam = bench.order("A1", Priority::Urgent, Order { regulate: true, ..Order::default() });
    bench.run(Command::Regulate { exam, verdict: Verdict::Validated { protocol: Line::fitted("CT1") } });
    let token = match bench.run(Command::Take { exam, transaction_uid: UidText::fitted("1.2.3") }) {
        Outcome::Claimed(grant) => grant.claim.token,
        other => panic!("{other:?}"),
    };
    bench.run(Command::Release { exam, token, reason: Line::fitted("called away") });
    let view = View::new(&*bench.engine);
    let (scene, subscriptions) = (scene(), view.subscriptions().expect("read"));
    let mut told = Vec::new();
    let mut uids = Vec::new();
    for (at, event) in view.events(Cursor::default(), 100).expect("events") {
        let Some(report) = report::report(&view, &scene, &subscriptions, at, &event).expect("a report") else {
            continue;
        };
        let (_, number) = scene.uids.parse(&report.text(tags::AFFECTED_SOP_INSTANCE_UID)).expect("made here");
        let [kind, state, why] = [tags::EVENT_TYPE_ID, tags::PROCEDURE_STEP_STATE, tags::REASON_FOR_CANCELLATION]
            .map(|tag| report.text(tag));
        let ready = report.text(tags::INPUT_READINESS_STATE);
        told.push([number.to_string(), kind, state, ready, why].join(" ").trim_end().to_owned());
        assert_eq!(scene.uids.cursor(&report.text(tags::UID)), Some(at));
        uids.push(at);
    }
    assert_eq!(
        told,
        [
            "1 1 SCHEDULED READY",
            "2 1 SCHEDULED READY",
            "2 1 COMPLETED READY",
            "1 1 SCHEDULED READY",
            "1 1 IN PROGRESS READY",
            "1 5",
            "1 1 CANCELED READY called away",
            "3 1 SCHEDULED READY",
        ]
    );
    assert!(uids.is_sorted());
    let later = Subscription { since: uids[2].index, ..subscriptions[0].clone() };
    let (at, event) = view.events(Cursor::default(), 1).expect("events").remove(0);
    assert_eq!(report::report(&view, &scene, &[later], at, &event).expect("read"), None, "before it subscribed");
}

#[test]
fn kinds_have_codes_of_their_own() {
    let kinds = [
        WorkitemKind::Read,
        WorkitemKind::Regulate,
        WorkitemKind::SecondOpinion,
        WorkitemKind::Analyse,
        WorkitemKind::Deliver,
    ];
    let codes: std::collections::BTreeSet<String> =
        kinds.iter().map(|kind| super::describe::code_of(*kind).item().into_json().to_string()).collect();
    assert_eq!(codes.len(), kinds.len());
}
