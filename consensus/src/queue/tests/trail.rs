//! Formats, the audit chain and the stream of events.

use super::*;
use crate::audit::{self, Link};
use crate::event::EVENTS_KEPT_MS;

fn chain(bench: &Bench) -> Vec<Link> {
    bench.view(|view| view.audit(0, usize::MAX))
}

#[test]
fn the_format_rises_a_step_at_a_time_and_only_by_the_leader() {
    let mut bench = Bench::of_format(1);
    let order = Command::Order { request: ready("A1", Priority::Urgent), order: consented() };
    let envelope = |command| Envelope {
        id: CommandId::random(),
        at: UnixMillisField(0),
        site: PARIS,
        user: Name::fitted("u"),
        command,
    };
    let early = Queue.stamp(&*bench.engine, &envelope(order.clone()).encode(), LEADER, UnixMillis(1));
    assert_eq!(early, Err(StampError::NotYet), "it would stop a node that does not know it");
    // One that came into the log all the same is refused by all alike.
    let mut transaction = Transaction::new(&*bench.engine);
    let bytes = Queue.apply(&mut transaction, 99, &envelope(order).encode()).expect("apply");
    assert_eq!(Outcome::decode(&bytes).expect("decode"), Outcome::Refused(Refusal::Format { format: 1 }));
    drop(transaction);
    let follower = Proposer { node: 1, is_leader: false };
    let raise = envelope(Command::RaiseFormat { to: 2 }).encode();
    assert!(Queue.stamp(&*bench.engine, &raise, follower, UnixMillis(1)).is_err());
    for (to, format) in [(1, 1), (3, 1), (0, 1)] {
        assert_eq!(bench.run(PARIS, Command::RaiseFormat { to }), Outcome::Refused(Refusal::Format { format }));
    }
    assert_eq!(bench.run(PARIS, Command::RaiseFormat { to: 2 }), Outcome::Done);
    assert_eq!(bench.view(|view| view.format()), 2);
    let beyond = bench.run(PARIS, Command::RaiseFormat { to: FORMAT + 1 });
    assert_eq!(beyond, Outcome::Refused(Refusal::Format { format: FORMAT }));
}

#[test]
fn exams_of_format_1_go_on_after_the_mesh_has_risen() {
    let mut bench = Bench::of_format(1);
    let exam = bench.add(ready("A1", Priority::Urgent));
    let first = bench.take(PARIS, exam).claim.token;
    bench.run(PARIS, Command::Release { exam, token: first, reason: Line::default() });
    assert!(chain(&bench).is_empty(), "format 1 has no trail");
    bench.run(PARIS, Command::RaiseFormat { to: 2 });
    let second = bench.take(PARIS, exam).claim.token;
    bench.run(PARIS, Command::TakeOver { exam, reason: Line::fitted("now") });
    let late = bench.run(PARIS, written(exam, second, ReportKind::Final, "late"));
    assert_eq!(late, Outcome::Refused(Refusal::StaleToken { given: second, kept_as: Some(1) }));
    let numbers: Vec<_> = bench.view(|view| view.workitems(exam)).iter().map(|item| item.number).collect();
    assert_eq!(numbers, [1, 2, 3], "no number is given twice");
    assert_eq!(bench.exam(exam).workitem, 3);
}

#[test]
fn the_chain_covers_every_command_and_every_refusal() {
    let mut bench = Bench::founded();
    let exam = bench.add(ready("A1", Priority::Urgent));
    bench.run(PARIS, Command::Cancel { exam: ExamId(99), reason: Line::fitted("a mistake") });
    let id = CommandId::random();
    bench.run_as(id, PARIS, Command::ClaimNext { modalities: vec![] });
    bench.run_as(id, PARIS, Command::ClaimNext { modalities: vec![] });
    bench.run_as(id, PARIS, Command::ClaimTake { exam });
    bench.run(SiteId(77), Command::OpenSession);
    let links = chain(&bench);
    let told: Vec<_> = links.iter().map(|link| (link.entry.kind.to_string(), link.entry.outcome.to_string())).collect();
    let expected = [
        ("establish", "done"),
        ("open-session", "done"),
        ("add-exam", "done"),
        ("cancel", "no such exam"),
        ("claim-next", "done"),
        ("claim-take", "this command id was used for another command"),
        ("open-session", "the site is not a member of this mesh"),
    ];
    assert_eq!(told, expected.map(|(kind, outcome)| (kind.to_owned(), outcome.to_owned())), "a repeat does nothing");
    assert_eq!((links[3].entry.why.as_str(), links[3].entry.exam), ("a mistake", Some(ExamId(99))));
    assert_eq!(links[2].entry.exam, Some(exam), "the exam that its outcome names");
    let mut value = [0; 32];
    for link in &links {
        value = audit::chain(&value, &link.entry);
        assert_eq!(value, link.chain);
    }
    assert_eq!(bench.engine.get(&keys::CHAIN).expect("read"), Some(value.to_vec()));
}

#[test]
fn the_chain_differs_when_an_entry_or_a_write_differs() {
    let life = |text: &str, spoil: bool| {
        let mut bench = Bench::founded();
        let exam = bench.add(ready("A1", Priority::Urgent));
        if spoil {
            // A byte of the state that no command wrote.
            let mut found = bench.exam(exam);
            found.request.priority = Priority::Vital;
            let mut batch = maillage_host::Batch::default();
            batch.put(keys::exam(exam), found.encode(2));
            bench.engine.commit(batch).expect("commit");
        }
        bench.now = 5_000_000;
        bench.index = 50;
        bench.propose(CommandId(uuid::Uuid::from_u128(7)), PARIS, text, Command::Acquire { exam });
        let id = CommandId(uuid::Uuid::from_u128(8));
        bench.propose(id, PARIS, "dr-a", Command::Take { exam, transaction_uid: UidText::default() });
        chain(&bench).pop().expect("entries")
    };
    let writes = |link: &Link| link.entry.writes;
    assert_eq!(writes(&life("u", false)), writes(&life("u", false)), "the same life, the same writes");
    assert_ne!(writes(&life("u", false)), writes(&life("u", true)), "another state, other writes");
    let one = life("u", false);
    let other = audit::Entry { user: Name::fitted("somebody else"), ..one.entry.clone() };
    assert_ne!(audit::chain(&[0; 32], &one.entry), audit::chain(&[0; 32], &other));
    assert_ne!(audit::chain(&[0; 32], &one.entry), audit::chain(&[1; 32], &one.entry));
}

#[test]
fn a_site_attests_its_chain_and_each_replica_says_whether_it_agrees() {
    let mut bench = Bench::founded();
    let lyon = bench.join("lyon");
    let last = chain(&bench).pop().expect("entries");
    let index = last.entry.index;
    let said = |bench: &Bench| {
        let all = bench.view(|view| view.attestations());
        all.iter().map(|one| (one.site, one.index, one.agrees)).collect::<Vec<_>>()
    };
    bench.run(lyon, Command::Attest { index, chain: last.chain });
    assert_eq!(said(&bench), [(lyon, index, Some(true))]);
    bench.run(lyon, Command::Attest { index, chain: [3; 32] });
    assert_eq!(said(&bench), [(lyon, index, Some(false))]);
    bench.run(lyon, Command::Attest { index: 9_999, chain: [3; 32] });
    assert_eq!(said(&bench), [(lyon, 9_999, None)], "an entry that this replica does not have");
}

#[test]
fn the_trail_is_read_back_to_front_across_gaps() {
    let mut bench = Bench::founded();
    for n in 0..30_u64 {
        bench.index += if n == 15 { 500 } else { 0 };
        bench.add(ready(&format!("A{n}"), Priority::Urgent));
    }
    let all: Vec<u64> = chain(&bench).iter().map(|link| link.entry.index).collect();
    let back: Vec<u64> = bench.view(|view| view.audit_back(u64::MAX, 20)).iter().map(|link| link.entry.index).collect();
    let expected: Vec<u64> = all.iter().rev().take(20).copied().collect();
    assert_eq!(back, expected);
    let more: Vec<u64> = bench.view(|view| view.audit_back(back[19], 99)).iter().map(|link| link.entry.index).collect();
    assert_eq!(more, all.iter().rev().skip(20).copied().collect::<Vec<_>>());
}

#[test]
fn events_are_read_on_from_a_cursor_and_none_twice() {
    let mut bench = Bench::founded();
    let exam = bench.reported("A1", "well");
    let all = bench.view(|view| view.events(Cursor::default(), usize::MAX));
    let (mut seen, mut after) = (Vec::new(), Cursor::default());
    while let Some((cursor, event)) = bench.view(|view| view.events(after, 1)).pop() {
        after = cursor.to_string().parse().expect("a cursor");
        assert_eq!(after, cursor);
        seen.push((cursor, event));
    }
    assert_eq!(seen, all);
    let states: Vec<_> = all
        .iter()
        .filter_map(|(_, event)| match event.what {
            Happened::Exam { from, to } if event.exam == exam => Some((from, to)),
            _ => None,
        })
        .collect();
    use ExamState::{Claimed, Reported, Waiting};
    assert_eq!(states, [(None, Waiting), (Some(Waiting), Claimed), (Some(Claimed), Reported)]);
}

#[test]
fn events_are_kept_for_a_week_and_what_is_forgotten_is_known() {
    let mut bench = Bench::founded();
    bench.add(ready("A1", Priority::Urgent));
    let first = bench.view(|view| view.events(Cursor::default(), usize::MAX));
    assert_eq!(bench.view(|view| view.forgotten()), Cursor::default());
    bench.now += EVENTS_KEPT_MS - 60_000;
    bench.add(ready("A2", Priority::Urgent));
    assert_eq!(bench.view(|view| view.forgotten()), Cursor::default(), "a week is not over");
    bench.now += 120_000;
    bench.add(ready("A3", Priority::Urgent));
    assert_eq!(bench.view(|view| view.forgotten()), first.last().expect("events").0);
    let left = bench.view(|view| view.events(Cursor::default(), usize::MAX));
    assert!(left.iter().all(|(cursor, _)| *cursor > first.last().expect("events").0));
    assert_eq!(left.iter().filter(|(_, event)| matches!(event.what, Happened::Exam { .. })).count(), 2);
}
