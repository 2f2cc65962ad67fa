//! The outbox without a mesh: what it takes down, what it refuses, and what a restart finds.

use std::sync::atomic::{AtomicU64, Ordering};

use maillage_consensus::exam::ReportKind;
use maillage_consensus::ids::{ExamId, FencingToken, Line, Paragraph, Prose};
use maillage_host::UnixMillis;

use super::*;

const OWNER: Owner = Owner { site: 7, mesh: [3; 32] };
const EXAM: ExamId = ExamId(40);

struct Bench {
    root: tempfile::TempDir,
    now: Arc<AtomicU64>,
}

impl Bench {
    fn new() -> Self {
        Self { root: tempfile::tempdir().expect("a directory"), now: Arc::new(AtomicU64::new(1_000_000)) }
    }

    /// The outbox as a start finds it, kept until the guard is dropped.
    async fn open(&self) -> (Outbox, tokio_util::sync::DropGuard) {
        let now = Arc::clone(&self.now);
        let clock = Clock::from_fn(move || UnixMillis(now.load(Ordering::Relaxed)));
        let outbox = Outbox::open(Disk::real(self.root.path()), OWNER, clock).await.expect("opens");
        let stop = CancellationToken::new();
        drop(maillage_host::spawn(outbox.clone().keep(stop.clone())));
        (outbox, stop.drop_guard())
    }
}

fn id(n: u128) -> CommandId {
    CommandId(uuid::Uuid::from_u128(n))
}

fn name(user: &str) -> Name {
    Name::fitted(user)
}

fn take(n: u128, user: &str) -> Ask {
    Ask::Take { id: id(n), exam: EXAM, user: name(user), reason: Line::fitted("cut off") }
}

fn report(n: u128, user: &str, key: u128, text: &str) -> Ask {
    let (text, signature) = (Prose::fitted(text), Vec::new());
    Ask::Report { token: GlassToken(id(n)), exam: EXAM, user: name(user), key: id(key), text, signature }
}

fn settle(entry: &Entry, end: End) -> Ask {
    Ask::Settle { id: entry.id, revision: entry.revision, end }
}

fn complete(text: &str) -> Command {
    Command::Complete { exam: EXAM, token: FencingToken(9), report: Prose::fitted(text) }
}

#[tokio::test]
async fn an_exam_is_taken_by_one_user_once_however_often_they_ask() {
    let bench = Bench::new();
    let (outbox, _stop) = bench.open().await;
    let taken = outbox.ask(take(1, "dr-a")).await.expect("taken");
    assert_eq!((taken.state(), taken.is_held()), ("held", true));
    assert_eq!(outbox.ask(take(1, "dr-a")).await.as_ref(), Ok(&taken), "the same request");
    assert_eq!(outbox.ask(take(2, "dr-a")).await.as_ref(), Ok(&taken), "another request of the same user");
    let refused = outbox.ask(take(3, "dr-b")).await.expect_err("taken");
    assert!(matches!(&refused, Refused::Taken { user, .. } if user.as_str() == "dr-a"), "{refused}");
    assert_eq!(outbox.ask(take(1, "dr-b")).await, Err(Refused::OtherCommand));
    assert_eq!(outbox.book().entries().count(), 1);
}

#[tokio::test]
async fn a_report_is_its_claims_users_and_there_is_one() {
    let bench = Bench::new();
    let (outbox, _stop) = bench.open().await;
    outbox.ask(take(1, "dr-a")).await.expect("taken");
    assert!(matches!(outbox.ask(report(1, "dr-b", 8, "x")).await, Err(Refused::NotHeld(_))));
    assert!(matches!(outbox.ask(report(2, "dr-a", 8, "x")).await, Err(Refused::NotHeld(_))));
    let written = outbox.ask(report(1, "dr-a", 8, "no bleeding")).await.expect("durable");
    assert_eq!((written.state(), written.text()), ("queued", Some("no bleeding")));
    assert_eq!(outbox.ask(report(1, "dr-a", 8, "no bleeding")).await.as_ref(), Ok(&written));
    assert_eq!(outbox.ask(report(1, "dr-a", 8, "a bleeding")).await, Err(Refused::OtherCommand));
    assert!(matches!(outbox.ask(report(1, "dr-a", 10, "a bleeding")).await, Err(Refused::NotHeld(_))));
    assert!(matches!(outbox.ask(take(5, "dr-b")).await, Err(Refused::NotHeld(_))), "it is reported here");
    let back = Ask::GiveBack { token: GlassToken(id(1)), exam: EXAM, user: name("dr-a"), reason: Line::default() };
    assert!(matches!(outbox.ask(back).await, Err(Refused::NotHeld(_))));
}

#[tokio::test]
async fn a_restart_finds_everything_as_it_was() {
    let bench = Bench::new();
    let (outbox, stop) = bench.open().await;
    outbox.ask(take(1, "dr-a")).await.expect("taken");
    outbox.ask(Ask::Try { id: id(1) }).await.expect("tried");
    outbox.ask(report(1, "dr-a", 8, "no bleeding")).await.expect("durable");
    let other = Ask::Take { id: id(2), exam: ExamId(41), user: name("dr-b"), reason: Line::fitted("cut off") };
    outbox.ask(other).await.expect("taken");
    let back = Line::fitted("shift ended");
    let back = Ask::GiveBack { token: GlassToken(id(2)), exam: ExamId(41), user: name("dr-b"), reason: back };
    outbox.ask(back).await.expect("given back");
    let note = Command::Note { exam: EXAM, text: Paragraph::fitted("ask the ward") };
    let addendum = Command::Addend { exam: EXAM, text: Prose::fitted("and a cyst"), signature: vec![1].into() };
    let (kind, signature) = (ReportKind::Preliminary, vec![2].into());
    let preliminary =
        Command::Report { exam: EXAM, token: FencingToken(9), kind, text: Prose::fitted("first look"), signature };
    for (n, command) in [(3, complete("done")), (4, note), (5, addendum), (6, preliminary)] {
        outbox.queue(SiteId(7), id(n), name("dr-a"), command).await.expect("queued");
    }
    let settled = outbox.book().get(id(3)).expect("an entry").clone();
    outbox.ask(settle(&settled, End::Draft { report: 2 })).await.expect("settled");
    let before = outbox.book();
    drop((outbox, stop));
    let shown = |book: &Book| {
        let entries = book.entries().map(|e| (e.id, e.exam, e.user.clone(), e.at, e.what.clone(), e.end.clone()));
        entries.collect::<Vec<_>>()
    };
    // Each start writes the journal anew: what the first one finds must be what it leaves to the second.
    for start in 1..=2 {
        let (outbox, _stop) = bench.open().await;
        outbox.ask(Ask::Drop { id: id(99) }).await.expect_err("no such entry; the journal is written by now");
        assert_eq!(shown(&outbox.book()), shown(&before), "start {start}");
    }
    let after = before;
    let states: Vec<_> = after.entries().map(|entry| (entry.kind(), entry.state())).collect();
    assert_eq!(
        states,
        [
            ("break-glass", "queued"),
            ("break-glass", "queued"),
            ("report", "draft"),
            ("note", "queued"),
            ("addendum", "queued"),
            ("report", "queued")
        ]
    );
}

#[tokio::test]
async fn a_command_is_queued_once_under_its_id_and_only_if_it_says_something_of_an_exam() {
    let bench = Bench::new();
    let (outbox, _stop) = bench.open().await;
    let queue = |n, user: &str, command| outbox.queue(SiteId(7), id(n), name(user), command);
    let queued = queue(1, "dr-a", complete("done")).await.expect("queued");
    assert_eq!(queue(1, "dr-a", complete("done")).await, Ok(queued.clone()));
    // The mesh's format was raised meanwhile, and the client's report is put in the new words.
    let Some(Command::Report { exam, token, kind, text, .. }) = complete("done").in_other_words() else {
        panic!("format 2 has words for it");
    };
    let signed = Command::Report { exam, token, kind, text, signature: vec![7; 64].into() };
    assert_eq!(queue(1, "dr-a", signed.clone()).await, Ok(queued));
    assert_eq!(queue(1, "dr-b", signed).await, Err(Refused::OtherCommand));
    assert_eq!(queue(1, "dr-a", complete("other")).await, Err(Refused::OtherCommand));
    assert_eq!(queue(1, "dr-b", complete("done")).await, Err(Refused::OtherCommand));
    assert_eq!(outbox.ask(take(1, "dr-a")).await, Err(Refused::OtherCommand));
    let claim = Command::ClaimTake { exam: EXAM };
    assert_eq!(queue(2, "dr-a", claim).await, Err(Refused::NotQueueable));
}

#[tokio::test]
async fn what_was_reported_while_the_mesh_was_asked_is_not_settled_by_the_old_answer() {
    let bench = Bench::new();
    let (outbox, _stop) = bench.open().await;
    outbox.ask(take(1, "dr-a")).await.expect("taken");
    let asked = outbox.ask(Ask::Try { id: id(1) }).await.expect("tried");
    outbox.ask(report(1, "dr-a", 8, "no bleeding")).await.expect("durable");
    let late = outbox.ask(settle(&asked, End::Continues { token: FencingToken(50) })).await;
    assert_eq!(late, Err(Refused::Changed));
    assert!(outbox.book().has_unsent());
}

#[tokio::test]
async fn a_claim_that_the_mesh_took_over_goes_on_under_its_own_token_and_a_second_read_goes_on_here() {
    let bench = Bench::new();
    let (outbox, _stop) = bench.open().await;
    let taken = outbox.ask(take(1, "dr-a")).await.expect("taken");
    outbox.ask(settle(&taken, End::Continues { token: FencingToken(50) })).await.expect("settled");
    assert_eq!(outbox.ask(report(1, "dr-a", 8, "x")).await, Err(Refused::Continues(FencingToken(50))));

    let other = Ask::Take { id: id(2), exam: ExamId(41), user: name("dr-a"), reason: Line::fitted("cut off") };
    let taken = outbox.ask(other).await.expect("taken");
    outbox.ask(settle(&taken, End::SecondRead { report: None })).await.expect("settled");
    let text = Prose::fitted("x");
    let (user, signature) = (name("dr-a"), Vec::new());
    let report = Ask::Report { token: GlassToken(id(2)), exam: ExamId(41), user, key: id(8), text, signature };
    assert_eq!(outbox.ask(report).await.expect("durable").state(), "queued", "it is written and sent all the same");
}

#[tokio::test]
async fn what_was_sent_is_shown_for_a_day_and_what_failed_until_a_person_says_so() {
    let bench = Bench::new();
    let (outbox, stop) = bench.open().await;
    for n in 1..=3 {
        let queued = outbox.queue(SiteId(7), id(n), name("dr-a"), complete("done")).await.expect("queued");
        assert_eq!(outbox.ask(Ask::Drop { id: id(n) }).await, Err(Refused::NotSent));
        match n {
            1 => outbox.ask(settle(&queued, End::Accepted { number: 1 })).await.expect("settled"),
            2 => outbox.ask(settle(&queued, End::Failed { why: Line::fitted("no such exam") })).await.expect("settled"),
            _ => continue,
        };
    }
    assert_eq!(outbox.book().counts(), Counts { waiting: 1, held: 0, unacknowledged: 1, settled: 1 });
    drop((outbox, stop));
    bench.now.fetch_add(book::KEPT_MS, Ordering::Relaxed);
    let (outbox, stop) = bench.open().await;
    outbox.ask(Ask::Drop { id: id(9) }).await.expect_err("no such entry; the first tick has passed");
    assert_eq!(outbox.book().counts().settled, 1, "a day is not over yet");
    drop((outbox, stop));
    bench.now.fetch_add(1, Ordering::Relaxed);
    let (outbox, stop) = bench.open().await;
    until(&outbox, |counts| counts.settled == 0).await;
    assert_eq!(outbox.book().counts(), Counts { waiting: 1, held: 0, unacknowledged: 1, settled: 0 });
    let dropped = outbox.ask(Ask::Drop { id: id(2) }).await.expect("acknowledged");
    assert_eq!(dropped.text(), Some("done"));
    drop((outbox, stop));
    let (outbox, _stop) = bench.open().await;
    assert_eq!(outbox.book().counts(), Counts { waiting: 1, ..Counts::default() });
    assert!(outbox.book().get(id(1)).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_journal_that_could_not_be_written_is_told_and_written_once_it_can_be() {
    let bench = Bench::new();
    let disk = Disk::real(bench.root.path());
    let (outbox, stop) = bench.open().await;
    let queued = outbox.queue(SiteId(7), id(1), name("dr-a"), complete("done")).await.expect("queued");
    outbox.ask(settle(&queued, End::Accepted { number: 1 })).await.expect("settled");
    let [moment, round] = [Duration::from_secs(1), FORGET_EVERY];
    tokio::time::sleep(moment).await;
    // Nothing can be put in its place.
    disk.create_dir("outbox/journal.new").await.expect("a directory");
    bench.now.fetch_add(book::KEPT_MS + 1, Ordering::Relaxed);
    assert_eq!(outbox.failure(), None);
    tokio::time::sleep(round).await;
    assert!(outbox.failure().is_some(), "what is old could not be left out");
    assert_eq!(outbox.book().counts().settled, 1);
    disk.remove_dir("outbox/journal.new").await.expect("removed");
    tokio::time::sleep(round).await;
    assert_eq!((outbox.failure(), outbox.book().counts()), (None, Counts::default()));

    outbox.ask(take(2, "dr-a")).await.expect("taken");
    drop((outbox, stop));
    disk.create_dir("outbox/journal.new").await.expect("a directory");
    let (outbox, _stop) = bench.open().await;
    tokio::time::sleep(moment).await;
    assert!(outbox.failure().is_some(), "what was read need not be what is on the disk");
    disk.remove_dir("outbox/journal.new").await.expect("removed");
    tokio::time::sleep(round).await;
    assert_eq!(outbox.failure(), None, "nothing is old, and nobody asked");
    assert_eq!(outbox.book().counts(), Counts { waiting: 1, held: 1, ..Counts::default() });
}

async fn until(outbox: &Outbox, holds: impl Fn(Counts) -> bool) {
    let mut book = outbox.watch();
    let waited = tokio::time::timeout(Duration::from_secs(60), book.wait_for(|book| holds(book.counts()))).await;
    waited.expect("in time").expect("the outbox is kept");
}
