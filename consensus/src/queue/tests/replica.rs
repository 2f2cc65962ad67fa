//! A mesh of format 1 keeps its bytes: what this code writes there is what the code before format 2 wrote.

use std::fmt::Write as _;

use super::*;

/// Plays commands with ids, users and times that no run changes.
struct Tape {
    engine: std::sync::Arc<dyn Engine>,
    index: u64,
}

impl Tape {
    fn play(&mut self, site: SiteId, user: &str, command: Command) -> Outcome {
        self.index += 1;
        let id = CommandId(uuid::Uuid::from_u128(u128::from(self.index)));
        let at = UnixMillisField(1_000_000 + self.index * 40_000);
        let envelope = Envelope { id, at, site, user: Name::fitted(user), command };
        let mut transaction = Transaction::new(&*self.engine);
        let outcome = Queue.apply(&mut transaction, self.index, &envelope.encode()).expect("apply");
        self.engine.commit(transaction.into_batch()).expect("commit");
        Outcome::decode(&outcome).expect("decode")
    }

    /// A line for each kind of record: how many there are, and the hash of all their keys and values.
    fn digest(&self) -> String {
        let mut kinds: BTreeMap<u8, (u64, blake3::Hasher)> = BTreeMap::new();
        let all = maillage_host::engine::scan_prefix(&*self.engine, &[], usize::MAX).expect("scan");
        for (key, value) in all {
            let (count, hasher) = kinds.entry(key[0]).or_insert_with(|| (0, blake3::Hasher::new()));
            *count += 1;
            for part in [&key, &value] {
                hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
            }
        }
        let mut text = String::new();
        for (kind, (count, hasher)) in kinds {
            let _ = writeln!(text, "{kind:02x} {count} {}", hasher.finalize());
        }
        text
    }
}

fn exam_of(outcome: &Outcome) -> ExamId {
    match outcome {
        Outcome::ExamAdded { exam, .. } | Outcome::StudyRecorded { exam, .. } => *exam,
        other => panic!("{other:?}"),
    }
}

fn grant_of(outcome: Outcome) -> (ExamId, FencingToken) {
    match outcome {
        Outcome::Claimed(grant) => (grant.exam, grant.claim.token),
        other => panic!("{other:?}"),
    }
}

/// Every command of format 1, done and refused; returns the site that joined.
fn a_life_at_format_1(tape: &mut Tape) -> SiteId {
    let found = Command::Found { mesh: [9; 32], name: Name::fitted("test"), copies: 2, founder: site("paris", 1) };
    tape.play(PARIS, "", found);
    tape.play(PARIS, "", Command::OpenSession);
    for name in ["lyon", "nantes"] {
        tape.play(PARIS, "root", Command::CreateToken { key: key(name, 2), lifetime_ms: 3_600_000 });
    }
    let joined = tape.play(PARIS, "", Command::Join { token: key("lyon", 2), joiner: site("lyon", 1) });
    let Outcome::Joined { site: lyon } = joined else { panic!("{joined:?}") };
    tape.play(PARIS, "root", Command::RevokeToken { key: key("nantes", 2) });
    tape.play(PARIS, "", Command::Join { token: key("nantes", 2), joiner: site("nantes", 1) });
    tape.play(lyon, "", Command::OpenSession);
    tape.play(lyon, "", Command::Describe { description: SiteDescription { weight: 7, ..site("lyon", 1) } });

    let mut exams = Vec::new();
    for (accession, priority) in [("A1", Priority::Urgent), ("A2", Priority::Vital), ("A3", Priority::Scheduled)] {
        exams.push(exam_of(&tape.play(PARIS, "", Command::AddExam(ready(accession, priority)))));
    }
    let awaited = exam_of(&tape.play(lyon, "", Command::AddExam(request("A4", "P4"))));
    let (exam, token) = grant_of(tape.play(lyon, "dr-l", Command::ClaimNext { modalities: vec![] }));
    tape.play(PARIS, "dr-a", Command::ClaimTake { exam });
    tape.play(lyon, "dr-l", Command::Release { exam, token, reason: Line::fitted("a telephone call") });
    let (other, second) = grant_of(tape.play(lyon, "dr-l", Command::ClaimNext { modalities: vec![] }));
    tape.play(lyon, "dr-l", Command::Complete { exam, token, report: report("under a lost claim") });
    tape.play(lyon, "dr-l", Command::Complete { exam: other, token: second, report: report("nothing abnormal") });
    grant_of(tape.play(lyon, "dr-l", Command::ClaimTake { exam }));
    tape.play(PARIS, "", Command::ExpireSession { site: lyon, session: 1 });
    tape.play(PARIS, "", Command::ExpireSession { site: lyon, session: 1 });
    tape.play(lyon, "", Command::OpenSession);
    tape.play(PARIS, "dr-a", Command::Prioritise { exam: exams[2], priority: Priority::Vital });
    tape.play(PARIS, "dr-a", Command::Prioritise { exam: other, priority: Priority::Vital });

    let first = part("1.2", request("A4", "P4"), 1);
    tape.play(lyon, "", Command::RecordStudy(first.clone()));
    for holds in [true, false, true] {
        let (study, manifest) = (UidText::fitted("1.2"), first.manifest);
        tape.play(PARIS, "", Command::RecordHolding { study, manifest, holds });
    }
    tape.play(lyon, "", Command::RecordStudy(part("1.2", request("A4", "P4"), 2)));
    tape.play(lyon, "", Command::RecordStudy(first));
    let apart = exam_of(&tape.play(PARIS, "", Command::RecordStudy(part("1.3", request("A9", "P4"), 1))));
    tape.play(PARIS, "", Command::RecordStudy(part("1.4", request("A4", "P9"), 1)));
    tape.play(PARIS, "dr-a", Command::Reconcile { unsolicited: apart, into: awaited });
    tape.play(PARIS, "", Command::RecordStudy(part("1.5", request("A5", "P5"), 1)));
    tape.play(PARIS, "", Command::AddExam(Request { priority: Priority::Vital, ..request("A5", "P5") }));
    tape.play(PARIS, "dr-a", Command::Cancel { exam: awaited, reason: Line::fitted("a mistake") });
    tape.play(PARIS, "", Command::AddExam(request("A4", "P4")));
    let (exam, token) = grant_of(tape.play(PARIS, "dr-a", Command::ClaimNext { modalities: vec![] }));
    tape.play(PARIS, "dr-a", Command::Complete { exam, token, report: report("fracture of the left wrist") });
    tape.play(PARIS, "dr-a", Command::Cancel { exam, reason: Line::fitted("too late") });
    tape.play(SiteId(99), "", Command::OpenSession);
    lyon
}

#[test]
fn a_mesh_of_format_1_keeps_the_very_bytes_that_the_code_before_format_2_kept() {
    let mut tape = Tape { engine: MemoryHome::default().open().expect("open"), index: 1 };
    a_life_at_format_1(&mut tape);
    expect_test::expect_file!["../golden/state-v1.txt"].assert_eq(&tape.digest());
}
