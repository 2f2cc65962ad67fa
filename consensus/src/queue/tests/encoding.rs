//! What is persisted keeps its bytes: commands of every format, records, and a mesh of format 1.

use super::*;
use crate::command::Subscription;
use crate::placement::{Change, Contract, Holders, Origin, Share};
use crate::remark::{Concordance, Finding};

#[test]
fn the_encoding_of_version_1_does_not_change() {
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
    expect_test::expect_file!["../golden/commands-v1.hex"].assert_eq(&hex_of(1, commands));
}

/// A line of hexadecimal digits for each command in its envelope.
fn hex_of(format: u8, commands: Vec<Command>) -> String {
    let id = CommandId(uuid::Uuid::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef));
    let mut text = String::new();
    for command in commands {
        assert_eq!(command.format(), format, "{command:?}");
        let envelope = Envelope { id, at: UnixMillisField(9), site: SiteId(4), user: Name::fitted("u"), command };
        let bytes = envelope.encode();
        assert_eq!(Envelope::decode(&bytes).expect("decode"), envelope);
        text.push_str(&hex(&bytes));
    }
    text
}

fn hex(bytes: &[u8]) -> String {
    let digits: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}\n", digits.concat())
}

fn an_order() -> Order {
    Order {
        consent: Consent::Emergency,
        specialty: Some(Specialty::NuclearMedicine),
        expertise: Text8::fitted("x"),
        regulate: true,
        question: Line::fitted("q"),
    }
}

fn a_finding() -> Finding {
    let (version, score) = (Text8::fitted("1"), 900);
    let [finding, location] = ["f", "l"].map(Line::fitted);
    Finding { algorithm: Name::fitted("a"), version, finding, score, location, priority: Some(Priority::Vital) }
}

/// Every command of format 2, in the order of its variants.
fn commands_of_format_2() -> Vec<Command> {
    let (exam, token, signature) = (ExamId(5), FencingToken(300), ByteBuf::from(vec![1, 2]));
    let (text, uid, reason) = (says("t"), UidText::fitted("1.2"), Line::fitted("r"));
    let attributes = BTreeMap::from([(0x0074_1204, ByteBuf::from(b"\"x\"".to_vec()))]);
    let (to, aet) = (Line::fitted("Dr"), Text8::fitted("ROOM1"));
    let reader = Reader {
        specialties: vec![Specialty::Radiology],
        expertise: vec![Text8::fitted("x")],
        modalities: vec![Text8::fitted("CT")],
    };
    vec![
        Command::Establish { mesh: [7; 32], name: Name::fitted("m"), copies: 3, founder: site("paris", 1), format: 2 },
        Command::RaiseFormat { to: 2 },
        Command::Attest { index: 7, chain: [1; 32] },
        Command::SetHospital(Hospital { sites: vec![SiteId(4)], ..hospital("h", place("t", "d", "r")) }),
        Command::Situate { place: place("t", "d", "r") },
        Command::SetPolicy(Policy::default()),
        Command::Order { request: request("A1", "P1"), order: an_order() },
        Command::Regulate { exam, verdict: Verdict::Refused { reason: reason.clone() } },
        Command::Acquire { exam },
        Command::Arrive { exam },
        Command::Next(reader),
        Command::Take { exam, transaction_uid: uid.clone() },
        Command::TakeOver { exam, reason: reason.clone() },
        Command::Open { exam, token },
        Command::Report { exam, token, kind: ReportKind::Preliminary, text: report("t"), signature: signature.clone() },
        Command::Addend { exam, text: report("t"), signature: signature.clone() },
        Command::Deliver { exam, report: 1, to: to.clone() },
        Command::FollowUp { exam, text: text.clone() },
        Command::Note { exam, text: text.clone() },
        Command::AskOpinion { exam, of: Name::fitted("n"), question: text.clone() },
        Command::GiveOpinion { exam, remark: 1, text: text.clone(), concordance: Concordance::DiffersMinor },
        Command::AddFinding { exam, finding: a_finding() },
        Command::RaiseCritical { exam, text: text.clone() },
        Command::Tell { exam, remark: 1, whom: to, read_back: true },
        Command::Escalate { exam, remark: 1 },
        Command::RaiseDiscrepancy { exam, grade: 2, text },
        Command::CreateWorkitem {
            uid: uid.clone(),
            request: request("A1", "P1"),
            order: an_order(),
            attributes: attributes.clone(),
        },
        Command::UpdateWorkitem { exam, number: 2, transaction_uid: uid.clone(), attributes },
        Command::ChangeWorkitem { exam, number: 2, transaction_uid: uid, to: WorkitemState::Completed },
        Command::AskCancel { exam, number: 2, reason: reason.clone() },
        Command::Subscribe(Subscription {
            aet: aet.clone(),
            workitem: Some((exam, 2)),
            filter: ByteBuf::from(vec![3]),
            deletion_lock: true,
            suspended: true,
            since: 9,
            reporter: Some(SiteId(7)),
            told: 0,
        }),
        Command::Unsubscribe { aet, workitem: None },
        Command::BreakGlass {
            exam,
            taken_at: UnixMillisField(8),
            reason: reason.clone(),
            report: Some(report("t")),
            signature,
        },
        Command::LegalHold { exam, reason: reason.clone() },
        Command::ReleaseHold { exam, reason: reason.clone() },
        Command::Purge { exam, reason, withdrawn: true },
        Command::RecordPurged { exam, study: UidText::fitted("1.2"), manifest: [1; 32] },
        Command::StagePlacement(a_contract()),
        Command::ApplyPlacement { version: 3, force: Line::fitted("r") },
        Command::RevertPlacement { version: 3 },
        Command::Drain { site: SiteId(4), reason: Line::fitted("r"), force: true },
        Command::Undrain { site: SiteId(4), reason: Line::fitted("r") },
        Command::ReportRoom { full: true },
        Command::GiveUp { study: UidText::fitted("1.2"), manifest: [1; 32] },
        Command::CreateGatewayToken { key: key("t", 2), lifetime_ms: 1, hospitals: vec![Line::fitted("h")] },
        Command::JoinGateway { token: key("t", 2), joiner: site("chu", 1) },
        Command::SetGateway { gateway: SiteId(7), hospitals: vec![Line::fitted("h")] },
        Command::KeepKey {
            study: UidText::fitted("1.2"),
            id: crate::ids::KeyId([2; 16]),
            sequence: 3,
            secret: crate::ids::Secret([4; 32]),
        },
    ]
}

fn a_contract() -> Change {
    let (origin, holders) = (Origin::Territory(Name::fitted("t")), Holders::AllBut(vec![SiteId(4)]));
    Change::Contract(Contract { origin, holders, regions: vec![Name::fitted("r")], copies: 2, zones: 1 })
}

#[test]
fn the_encoding_of_format_2_does_not_change() {
    let commands = commands_of_format_2();
    let kinds: std::collections::BTreeSet<_> = commands.iter().map(Command::kind).collect();
    assert_eq!(kinds.len(), commands.len(), "each command once");
    expect_test::expect_file!["../golden/commands-v2.hex"].assert_eq(&hex_of(2, commands));
}

/// A life that leaves every kind of record in the state.
fn a_life_at_format_2(bench: &mut Bench) {
    let lyon = bench.join("lyon");
    let mut number = 0_u128;
    let mut run = |bench: &mut Bench, site: SiteId, command: Command| {
        number += 1;
        bench.propose(CommandId(uuid::Uuid::from_u128(number)), site, "dr-a", command)
    };
    run(bench, PARIS, Command::SetHospital(hospital("hospital", place("t", "d", "r"))));
    run(bench, PARIS, Command::Situate { place: place("t", "d", "r") });
    run(bench, PARIS, Command::SetPolicy(Policy { critical_ms: 60_000, ..Policy::default() }));
    let order = Command::Order { request: request("A1", "P1"), order: Order { regulate: true, ..an_order() } };
    let exam = run(bench, PARIS, order).exam().expect("added");
    run(bench, PARIS, Command::Acquire { exam });
    run(bench, PARIS, Command::RecordStudy(part("1.2", request("A1", "P1"), 1)));
    run(bench, PARIS, Command::AddFinding { exam, finding: a_finding() });
    run(bench, PARIS, Command::AskOpinion { exam, of: Name::fitted("n"), question: says("q") });
    run(bench, PARIS, Command::RaiseCritical { exam, text: says("t") });
    let token =
        granted(run(bench, lyon, Command::Take { exam, transaction_uid: UidText::fitted("2.25.1") })).claim.token;
    run(bench, lyon, Command::Release { exam, token, reason: Line::fitted("r") });
    run(bench, lyon, written(exam, token, ReportKind::Final, "a draft"));
    let token =
        granted(run(bench, lyon, Command::Take { exam, transaction_uid: UidText::fitted("2.25.2") })).claim.token;
    run(bench, lyon, written(exam, token, ReportKind::Final, "the report"));
    run(bench, PARIS, Command::RaiseDiscrepancy { exam, grade: 2, text: says("d") });
    let [create, update] = [26, 27].map(|at| commands_of_format_2().swap_remove(at));
    let Command::CreateWorkitem { uid, order, attributes, .. } = create else { panic!("{create:?}") };
    let request = ready("A2", Priority::Urgent);
    let made = run(bench, PARIS, Command::CreateWorkitem { uid, request, order, attributes }).exam().expect("made");
    let Command::UpdateWorkitem { attributes, .. } = update else { panic!("{update:?}") };
    let transaction_uid = UidText::default();
    run(bench, PARIS, Command::UpdateWorkitem { exam: made, number: 1, transaction_uid, attributes });
    let subscription = commands_of_format_2().swap_remove(30);
    let Command::Subscribe(subscription) = subscription else { panic!("{subscription:?}") };
    run(bench, PARIS, Command::Subscribe(Subscription { workitem: None, ..subscription }));
    run(bench, lyon, Command::Attest { index: 3, chain: [1; 32] });
    let share = Share { site: lyon, weight: Some(300), zone: Name::fitted("z"), region: Name::fitted("r") };
    run(bench, PARIS, Command::StagePlacement(Change::Share(share)));
    run(bench, PARIS, Command::ApplyPlacement { version: 1, force: Line::default() });
    run(
        bench,
        PARIS,
        Command::StagePlacement(Change::Contract(Contract {
            origin: Origin::Site(lyon),
            holders: Holders::Only(vec![PARIS]),
            regions: vec![Name::fitted("r")],
            copies: 2,
            zones: 1,
        })),
    );
    run(bench, PARIS, Command::Drain { site: lyon, reason: Line::fitted("r"), force: true });
    run(bench, lyon, Command::ReportRoom { full: true });
    let (token, hospitals) = (key("chu", 2), vec![Line::fitted("hospital")]);
    run(bench, PARIS, Command::CreateGatewayToken { key: token.clone(), lifetime_ms: 1_000, hospitals });
    run(bench, PARIS, Command::JoinGateway { token, joiner: site("chu", 1) });
    let keep = |n: u8, sequence| Command::KeepKey {
        study: UidText::fitted("1.3"),
        id: crate::ids::KeyId([n; 16]),
        sequence,
        secret: crate::ids::Secret([n; 32]),
    };
    run(bench, PARIS, keep(1, 1));
    run(bench, PARIS, keep(2, 2));
    let purged =
        run(bench, PARIS, Command::RecordStudy(part("1.3", super::request("A3", "P3"), 1))).exam().expect("made");
    run(bench, PARIS, Command::Purge { exam: purged, reason: Line::fitted("r"), withdrawn: true });
}

#[test]
fn the_records_of_format_2_do_not_change() {
    let mut bench = Bench::founded();
    a_life_at_format_2(&mut bench);
    let mut text = String::new();
    // What the random ids of a bench's own commands are in, and what the chain covers, differs each time.
    let random = [0x40, 0x41, 0x50, 0x51, 0x42];
    let all = maillage_host::engine::scan_prefix(&*bench.engine, &[], usize::MAX).expect("scan");
    let mut kinds = std::collections::BTreeSet::new();
    for (key, value) in all.iter().filter(|(key, _)| !random.contains(&key[0])) {
        kinds.insert(key[0]);
        text.push_str(&format!("{} {}", hex(key).trim_end(), hex(value)));
    }
    let kinds_expected = [
        0x20, 0x24, 0x25, 0x28, 0x29, 0x2a, 0x2b, 0x32, 0x36, 0x37, 0x38, 0x39, 0x3a, 0x3b, 0x52, 0x54, 0x60, 0x61,
        0x62, 0x63,
    ];
    for kind in kinds_expected {
        assert!(kinds.contains(&kind), "no record of kind {kind:02x}");
    }
    expect_test::expect_file!["../golden/records-v2.hex"].assert_eq(&text);
    let link = bench.view(|view| view.audit(0, 1)).remove(0);
    let id = CommandId(uuid::Uuid::from_u128(7));
    let entry = audit::Entry { id, command: [1; 32], writes: [2; 32], ..link.entry };
    let fixed = audit::Link { chain: audit::chain(&[0; 32], &entry), entry };
    expect_test::expect_file!["../golden/audit-v2.hex"].assert_eq(&hex(&crate::record::Record::encode(&fixed, 2)));
}
