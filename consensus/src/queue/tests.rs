//! The queue's rules, one sentence a test; what is persisted, byte for byte; and random commands of both
//! formats against a plain reference and against what must always hold.

mod care;
mod claims;
mod encoding;
mod glass;
mod images;
mod invariants;
mod life;
mod mesh;
mod next;
mod placement;
mod random;
mod reference;
mod repeats;
mod replica;
mod retention;
mod study_keys;
mod trail;
mod workitems;

use std::collections::BTreeMap;

use maillage_host::EngineHome as _;
use maillage_host::UnixMillis;
use maillage_host::engine::{Engine, MemoryHome};
use serde_bytes::ByteBuf;

use super::*;
use crate::command::{FORMAT, SiteDescription, StudyPart};
use crate::event::{Cursor, Happened};
use crate::exam::{
    Exam, ExamState, Patient, Priority, ReportKind, Request, Skipped, Text8, Unsolicited, Verdict, WorkitemKind,
    WorkitemState,
};
use crate::ids::{ExamId, FencingToken, Line, Paragraph, PeerKey, Prose, SiteId, UidText};
use crate::order::{Consent, Hospital, Order, Place, Policy, Reader, Specialty};
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
        self.propose(id, site, "dr-a", command)
    }

    /// A user's command.
    fn by(&mut self, site: SiteId, user: &str, command: Command) -> Outcome {
        self.propose(CommandId::random(), site, user, command)
    }

    fn propose(&mut self, id: CommandId, site: SiteId, user: &str, command: Command) -> Outcome {
        self.index += 1;
        self.now += 1_000;
        let envelope = Envelope { id, at: UnixMillisField(0), site, user: Name::fitted(user), command };
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

    fn order(&mut self, request: Request, order: Order) -> ExamId {
        match self.run(PARIS, Command::Order { request, order }) {
            Outcome::ExamAdded { exam, existed: false } => exam,
            other => panic!("{other:?}"),
        }
    }

    /// The images of an exam arrive, whole, at a site.
    fn images(&mut self, site: SiteId, exam: ExamId) {
        let study = format!("1.2.{exam}");
        let says = self.exam(exam).request;
        let recorded = self.run(site, Command::RecordStudy(part(&study, says, 1)));
        assert!(matches!(recorded, Outcome::StudyRecorded { exam: to, .. } if to == exam), "{recorded:?}");
    }

    fn take(&mut self, site: SiteId, exam: ExamId) -> Grant {
        granted(self.run(site, Command::ClaimTake { exam }))
    }

    /// An exam with a final report of that text.
    fn reported(&mut self, accession: &str, text: &str) -> ExamId {
        let exam = self.add(ready(accession, Priority::Urgent));
        let token = self.take(PARIS, exam).claim.token;
        assert_eq!(self.run(PARIS, written(exam, token, ReportKind::Final, text)), Outcome::Completed { report: 1 });
        exam
    }

    /// What has happened to an exam by commands after `index`.
    fn happened(&self, exam: ExamId, index: u64) -> Vec<Happened> {
        let events = self.view(|view| view.events(Cursor { index, place: u16::MAX }, usize::MAX));
        events.into_iter().filter(|(_, event)| event.exam == exam).map(|(_, event)| event.what).collect()
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

fn granted(outcome: Outcome) -> Grant {
    match outcome {
        Outcome::Claimed(grant) => grant,
        other => panic!("{other:?}"),
    }
}

fn remarked(outcome: &Outcome) -> u32 {
    match outcome {
        Outcome::Remarked { remark } => *remark,
        other => panic!("{other:?}"),
    }
}

fn missing(what: &str) -> Outcome {
    Outcome::Refused(Refusal::Missing(Name::fitted(what)))
}

fn wrong(state: ExamState) -> Outcome {
    Outcome::Refused(Refusal::WrongState { state })
}

fn written(exam: ExamId, token: FencingToken, kind: ReportKind, text: &str) -> Command {
    Command::Report { exam, token, kind, text: report(text), signature: ByteBuf::default() }
}

fn addendum(exam: ExamId, text: &str) -> Command {
    Command::Addend { exam, text: report(text), signature: ByteBuf::default() }
}

fn validated(exam: ExamId) -> Command {
    Command::Regulate { exam, verdict: Verdict::Validated { protocol: Line::fitted("head without contrast") } }
}

fn says(text: &str) -> Paragraph {
    Paragraph::fitted(text)
}

/// An order with consent, and nothing else.
fn consented() -> Order {
    Order { consent: Consent::Declared, ..Order::default() }
}

fn regulated() -> Order {
    Order { regulate: true, ..consented() }
}

fn hospital(name: &str, place: Place) -> Hospital {
    let (name, finess) = (Line::fitted(name), Text8::default());
    Hospital { name, finess, place, sites: Vec::new(), regulate: false, retention: Vec::new() }
}

fn place(territory: &str, department: &str, region: &str) -> Place {
    let [territory, department, region] = [territory, department, region].map(Name::fitted);
    Place { territory, department, region }
}
