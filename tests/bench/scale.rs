//! The replicated state at its size: millions of retained exams on one node's engine.
//!
//! Some exams live their whole lives through `Queue::apply`, as a replica would apply them from the log: ordered,
//! the key of their images kept, the images published and held by a second site, claimed, opened, reported,
//! delivered. The others are copies of such lives under other identifiers and at other times (`copies.rs`), which
//! come into the engine as a snapshot comes into a learner's. Then the last exams live on top of them all, and what
//! a reading room asks is timed against the full state: the waiting room's first page, and claims, alone and while
//! a snapshot is written; exams of years ago; the snapshot itself beside a bare write; an opening; and a learner's
//! installation of the snapshot.
//!
//! One node's state machine and engine, without Raft and network, which `claims` measures.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use maillage_consensus::View;
use maillage_consensus::mesh::Counts;
use maillage_host::EngineHome;
use maillage_host::engine::{FjallHome, MemoryHome, Reader};

use crate::ingest::preallocated;
use crate::lab::Lab;
use crate::report::{Figure, Row, Section};

mod copies;
mod identity;
mod life;
mod lives;
mod machine;
mod old;
mod snapshot;

use copies::Copies;
use lives::Lives;
use machine::Memory;
use snapshot::Tables;

/// As much memory for blocks as a node gives its state.
const CACHE_BYTES: u64 = 64 << 20;
/// Exams that live after the copies, at most: a week's, so that what is kept for a day or a week is there.
const LIVED: u64 = 25_200;
/// Exams in the waiting room, as on a bad night.
const WAITING: u64 = 200;
/// Exams on a page of the room.
const PAGE: usize = 50;
/// How often a page is read, and how many claims are made, for each figure.
const TIMES: u64 = 3_000;
/// Between two claims that are timed: as many a second are more than any night brings.
const PACE: Duration = Duration::from_millis(5);
/// After so many of them the exam that they were of is read to the end.
const CLAIMS_OF_ONE: u64 = 10;
/// Between two checkpoints, as a node makes them.
const CHECKPOINT: Duration = Duration::from_secs(1);
/// What the whole process may keep in memory.
const MEMORY_MAX_MIB: f64 = 2048.0;
/// What the first page may take at the 99th percentile.
const PAGE_MAX_MS: f64 = 10.0;
/// What is left of the disk to others: a snapshot that does not fit beside it is read and hashed, and not kept.
const DISK_LEFT: u64 = 15 << 30;
/// The most that is written to learn how fast the disk is.
const BARE_MAX: u64 = 4 << 30;
/// Tables by the first byte of their keys (`consensus/src/keys.rs`), those that grow with exams and those that
/// retention bounds.
const TABLES: [(&str, &[u8]); 9] = [
    ("exams", &[0x20]),
    ("their workitems", &[0x24]),
    ("their reports", &[0x25]),
    ("statistics", &[0x2a]),
    ("studies", &[0x30, 0x36]),
    ("keys of images", &[0x39, 0x3a]),
    ("other indexes", &[0x23, 0x26]),
    ("trail", &[0x50]),
    ("a day's outcomes, a week's events", &[0x40, 0x41, 0x52]),
];

/// Measures with `exams` retained exams.
pub(crate) async fn run(lab: &Lab, exams: u64) -> anyhow::Result<Section> {
    let dir = lab.dir("scale")?;
    let measured = maillage_host::offload(move || measure(dir.path(), exams).map_err(io::Error::other));
    measured.await.context("measure the state at its size")
}

fn measure(dir: &Path, exams: u64) -> anyhow::Result<Section> {
    let exams = exams.max(4 * identity::COHORT);
    let lived = LIVED.min((exams - 2 * identity::COHORT) / 2);
    let copied = exams - lived - 2 * identity::COHORT;
    let title = format!(
        "{exams} retained exams, of which {copied} are copies of {} that were lived and {lived} were lived after them; {WAITING} waiting; one node's engine",
        2 * identity::COHORT
    );
    let mut section = Section::new("scale", title);
    let home = FjallHome::new(dir.join("state"), CACHE_BYTES);
    let (mut lives, copies) = load(&home, copied, &mut section)?;
    live(&mut lives, lived, &mut section)?;
    let counts = View::new(&*lives.engine).counts()?;
    ensure!(counts.more.delivered == exams && counts.waiting == WAITING, "not every life was lived: {counts:?}");
    let state_bytes = machine::directory_bytes(&dir.join("state"));
    section.push(one("state on disk", "", state_bytes as f64 / 1e9, "GB", false));
    section.push(one("state on disk", "an exam", state_bytes as f64 / exams as f64, "bytes", false));

    let pages = timed(|_| first_page(&lives))?;
    section.push(pages.row("waiting room's first page", ""));
    let mut claims = Taken::default();
    for turn in 0..TIMES {
        claim(&mut lives, &mut claims, turn)?;
    }
    let claims = claims.sorted();
    section.push(claims.row("claim and release, applied", ""));
    ask_of_old_ones(&lives, &copies, &mut section)?;

    let path = dir.join("snapshot");
    let in_snapshot = View::new(&*lives.engine).counts()?;
    let meanwhile = snapshot(&mut lives, &copies, &path, exams, &mut section)?;
    // Before the opening below: the peak is what a node that runs needs.
    let memory = Memory::now();
    section.push(one("peak memory since the load", "resident; page cache is the system's", memory.peak, "MiB", false));
    section.push(one("… of which no file's, at the end", "", memory.anonymous, "MiB", false));
    let expected = View::new(&*lives.engine).counts()?;
    drop(lives);
    let since = Instant::now();
    let engine = home.open()?;
    ensure!(View::new(&*engine).counts()? == expected, "the state is another after opening");
    section.push(one("opened again", "", since.elapsed().as_secs_f64(), "s", false));
    drop(engine);

    if path.exists() {
        // Where both do not fit beside each other the state has said all it had to.
        std::fs::remove_dir_all(dir.join("state"))?;
        learn(dir, &path, &copies, &in_snapshot, &mut section)?;
    }
    section.ratio("first page, limit / p99", PAGE_MAX_MS / pages.p99(), 1.0);
    section.ratio("memory, limit / peak", MEMORY_MAX_MIB / memory.peak, 1.0);
    let ratio = claims.p99() / meanwhile.p99();
    section.ratio("claims' p99, idle / while a snapshot is written", ratio, 0.2);
    let rate = |row| section.median(row, "MB/s");
    let ratio = rate("snapshot written") / rate("bare write and fsync");
    section.ratio("snapshot / bare write", ratio, 0.1);
    Ok(section)
}

/// Lives the first exams in memory, and fills the engine with them and with `copied` copies.
fn load(home: &FjallHome, copied: u64, section: &mut Section) -> anyhow::Result<(Lives, Copies)> {
    let mut lives = Lives::begin(MemoryHome::default().open()?)?;
    let mut copies = Copies::prepare(&mut lives, copied)?;
    let since = Instant::now();
    let engine = home.replace(&mut |engine| copies.ingest(engine).map_err(io::Error::other))?;
    let seconds = since.elapsed().as_secs_f64();
    section.push(Row::transfer("copies made and ingested", "bytes of keys and values", copies.bytes, vec![seconds]));
    section.push(one("peak memory of the load", "", Memory::now().peak, "MiB", false));
    machine::forget_peak();
    lives.go_on(engine, copied);
    Ok((lives, copies))
}

/// Lets `exams` exams live to their end, and some more wait.
fn live(lives: &mut Lives, exams: u64, section: &mut Section) -> anyhow::Result<()> {
    let (since, first) = (Instant::now(), lives.next_index());
    let (mut checkpoint, mut told) = (Instant::now(), Instant::now());
    for done in 0..exams {
        lives.live_one()?;
        if checkpoint.elapsed() >= CHECKPOINT {
            lives.checkpoint()?;
            checkpoint = Instant::now();
        }
        if told.elapsed() >= Duration::from_secs(30) {
            eprintln!("scale: {done} of {exams} lives");
            told = Instant::now();
        }
    }
    lives.checkpoint()?;
    let rate = (lives.next_index() - first) as f64 / since.elapsed().as_secs_f64();
    section.push(one("whole lives applied on top", "commands of format 2, one thread", rate, "/s", true));
    for _ in 0..WAITING {
        lives.order_one()?;
    }
    lives.checkpoint()
}

/// Milliseconds that calls took, in ascending order: of the clock, and of this thread's processor time, which says
/// what a call costs also where other work has most of the machine.
#[derive(Default)]
struct Taken {
    elapsed: Vec<f64>,
    processor: Vec<f64>,
}

impl Taken {
    fn time(&mut self, call: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
        let (since, processor) = (Instant::now(), processor_ms());
        call()?;
        self.elapsed.push(since.elapsed().as_secs_f64() * 1e3);
        self.processor.push(processor_ms() - processor);
        Ok(())
    }

    fn sorted(mut self) -> Self {
        self.elapsed.sort_unstable_by(f64::total_cmp);
        self.processor.sort_unstable_by(f64::total_cmp);
        self
    }

    fn p99(&self) -> f64 {
        percentile(&self.elapsed, 99)
    }

    fn row(&self, name: &str, note: &'static str) -> Row {
        let of = |unit, sorted: &[f64], share| Figure::less_is_better(unit, vec![percentile(sorted, share)]);
        let elapsed = &self.elapsed;
        let figures = vec![
            of("ms p50", elapsed, 50),
            of("ms p99", elapsed, 99),
            of("CPU p50", &self.processor, 50),
            of("CPU p99", &self.processor, 99),
        ];
        Row { name: name.to_owned(), note, figures }
    }
}

/// Processor time of this thread so far.
fn processor_ms() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6
}

/// What each of [`TIMES`] calls took.
fn timed(mut call: impl FnMut(u64) -> anyhow::Result<()>) -> anyhow::Result<Taken> {
    let mut taken = Taken::default();
    for turn in 0..TIMES {
        taken.time(|| call(turn))?;
    }
    Ok(taken.sorted())
}

/// Times one claim and its release, at its pace, and now and then has an exam read.
fn claim(lives: &mut Lives, taken: &mut Taken, turn: u64) -> anyhow::Result<()> {
    taken.time(|| lives.claim_and_release())?;
    if (turn + 1).is_multiple_of(CLAIMS_OF_ONE) {
        lives.read_next()?;
    }
    std::thread::sleep(PACE);
    Ok(())
}

fn first_page(lives: &Lives) -> anyhow::Result<()> {
    let frozen = lives.engine.view();
    let page = View::new(&*frozen).waiting(lives.now(), PAGE)?;
    ensure!(page.len() == PAGE, "the page is short");
    Ok(())
}

/// A copy, another each turn, from everywhere among them.
fn some_copy(copies: &Copies, turn: u64) -> u64 {
    let numbers = copies.numbers();
    let random = u64::from_le_bytes(identity::random(identity::What::Study, turn));
    numbers.start + random % (numbers.end - numbers.start)
}

fn ask_of_old_ones(lives: &Lives, copies: &Copies, section: &mut Section) -> anyhow::Result<()> {
    let reader: &dyn Reader = &*lives.engine;
    let found = timed(|turn| {
        let n = some_copy(copies, turn);
        old::look_up(reader, copies, n).with_context(|| format!("look for the copy {n}"))
    })?;
    section.push(found.row("an old exam, by accession number", "with report, study and key"));
    let (seconds, reports) = old::month(reader, copies)?;
    let rate = reports as f64 / seconds;
    section.push(one("statistics of an old month", "reports read", rate, "/s", true));
    let rate = old::trail(reader, copies, lives.next_index() - 1)?;
    section.push(one("trail read and verified", "entries of copies and of lives", rate, "/s", true));
    Ok(())
}

/// Writes a snapshot, where there is room; the time that each claim took meanwhile.
fn snapshot(
    lives: &mut Lives,
    copies: &Copies,
    path: &Path,
    exams: u64,
    section: &mut Section,
) -> anyhow::Result<Taken> {
    let bare = path.with_file_name("bare");
    let since = Instant::now();
    preallocated(&bare, BARE_MAX.min(copies.bytes))?;
    let bare_seconds = since.elapsed().as_secs_f64();
    std::fs::remove_file(&bare)?;
    let bare_bytes = BARE_MAX.min(copies.bytes);
    section.push(Row::transfer(
        "bare write and fsync",
        "of as many bytes, 4 GiB at most",
        bare_bytes,
        vec![bare_seconds],
    ));

    // Lengths before each pair, and what was lived since.
    let estimated = copies.bytes / 100 * 112 + (512 << 20);
    let fits = machine::room(path.parent().context("no directory")?)? >= estimated + DISK_LEFT;
    let (last, exams) = (lives.next_index() - 1, exams + lives.read());
    let (seconds, tables, meanwhile) = dump_meanwhile(lives, fits.then_some(path))?;
    let bytes = tables.iter().map(|table| table.bytes + 8 * table.rows).sum();
    let (name, note) = match fits {
        true => ("snapshot written", "from a view, claims going on"),
        false => ("snapshot read and hashed", "from a view, claims going on; no room for it on the disk"),
    };
    section.push(Row::transfer(name, note, bytes, vec![seconds]));
    section.push(meanwhile.row("claim and release, meanwhile", ""));
    check_tables(&tables, exams, last)?;
    for (name, tags) in TABLES {
        let bytes: u64 = tags.iter().filter_map(|tag| tables.get(usize::from(*tag))).map(|table| table.bytes).sum();
        let name = format!("snapshot's {name}");
        section.push(one(&name, "keys and values, an exam", bytes as f64 / exams as f64, "bytes", false));
    }
    Ok(meanwhile)
}

/// Every exam must have its rows in every table that grows with exams.
fn check_tables(tables: &Tables, exams: u64, last: u64) -> anyhow::Result<()> {
    let rows = |tag: u8| tables.get(usize::from(tag)).map_or(0, |table| table.rows);
    for tag in life::ONE_EACH {
        // Those that wait have no report yet.
        ensure!((exams..=exams + WAITING).contains(&rows(tag)), "table {tag:#04x} has {} rows", rows(tag));
    }
    // The founding command has the second log index, and is the first in a mesh of format 2.
    ensure!(last - rows(life::AUDIT) <= 2, "the trail has {} entries of {last}", rows(life::AUDIT));
    Ok(())
}

/// Writes a snapshot in another thread, from a view of this moment, while claims go on here. Seconds of the one,
/// what was in it, milliseconds of each of the others.
fn dump_meanwhile(lives: &mut Lives, path: Option<&Path>) -> anyhow::Result<(f64, Tables, Taken)> {
    let (view, done) = (lives.engine.view(), AtomicBool::new(false));
    let mut taken = Taken::default();
    let (seconds, tables) = std::thread::scope(|scope| -> anyhow::Result<(f64, Tables)> {
        let dumping = scope.spawn(|| {
            let since = Instant::now();
            let dumped = snapshot::dump(&*view, path);
            done.store(true, Ordering::Release);
            dumped.map(|tables| (since.elapsed().as_secs_f64(), tables))
        });
        let (mut checkpoint, mut turn) = (Instant::now(), 0);
        while !done.load(Ordering::Acquire) {
            claim(lives, &mut taken, turn)?;
            turn += 1;
            if checkpoint.elapsed() >= CHECKPOINT {
                lives.checkpoint()?;
                checkpoint = Instant::now();
            }
        }
        Ok(dumping.join().map_err(|_| anyhow::anyhow!("the snapshot's thread panicked"))??)
    })?;
    Ok((seconds, tables, taken.sorted()))
}

/// A learner installs the snapshot.
fn learn(dir: &Path, path: &Path, copies: &Copies, before: &Counts, section: &mut Section) -> anyhow::Result<()> {
    machine::forget_peak();
    let (learner, bytes) = (FjallHome::new(dir.join("learner"), CACHE_BYTES), path.metadata()?.len());
    let since = Instant::now();
    let engine = learner.replace(&mut |engine| snapshot::install(path, engine))?;
    section.push(Row::transfer("learner installs it", "", bytes, vec![since.elapsed().as_secs_f64()]));
    section.push(one("peak memory of the learner", "", Memory::now().peak, "MiB", false));
    let counts = View::new(&*engine).counts()?;
    ensure!(counts.more == before.more && counts.studies == before.studies, "the learner's state is another");
    for turn in 0..100 {
        let n = some_copy(copies, turn);
        old::look_up(&*engine, copies, n).with_context(|| format!("look for the copy {n} at the learner"))?;
    }
    Ok(())
}

fn percentile(sorted: &[f64], share: usize) -> f64 {
    let rank = (sorted.len() * share).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
}

fn one(name: &str, note: &'static str, value: f64, unit: &'static str, more: bool) -> Row {
    let figure =
        if more { Figure::more_is_better(unit, vec![value]) } else { Figure::less_is_better(unit, vec![value]) };
    Row { name: name.to_owned(), note, figures: vec![figure] }
}
