//! The replicated state at its size: millions of retained exams on one node's engine.
//!
//! Every exam lives its whole life through `Queue::apply`, as a replica would apply it from the log:
//! ordered, its images published and held by a second site, claimed, opened, reported, delivered. Then what a
//! reading room asks is timed against the full state: the waiting room's first page, and claims, alone and
//! while a snapshot is written; the snapshot itself beside a bare write of the same bytes; a learner's
//! installation of it; an opening after a kill.
//!
//! One node's state machine and engine, without Raft and network, which `claims` measures.

use std::fs::File;
use std::io::{BufWriter, Read as _, Write as _};
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use maillage_consensus::View;
use maillage_consensus::command::UnixMillisField;
use maillage_host::engine::{Engine, FjallHome, Reader};
use maillage_host::{Batch, EngineHome};

use crate::ingest::preallocated;
use crate::lab::Lab;
use crate::report::{Figure, Row, Section};

mod lives;

use lives::Lives;

/// As much memory for blocks as a node gives its state.
const CACHE_BYTES: u64 = 64 << 20;
/// Exams in the waiting room, as on a bad night.
const WAITING: u64 = 200;
/// Exams on a page of the room.
const PAGE: usize = 50;
/// How often a page is read, and how many claims are made, for each figure.
const TIMES: usize = 3_000;
/// Between two checkpoints, as a node makes them.
const CHECKPOINT: Duration = Duration::from_secs(1);
/// Pairs committed at once when a snapshot is installed.
const INSTALL_BATCH: usize = 10_000;
/// What the whole process may keep in memory.
const MEMORY_MAX_MIB: f64 = 2048.0;
/// What the first page may take at the 99th percentile.
const PAGE_MAX_MS: f64 = 10.0;

/// Measures with `exams` retained exams.
pub(crate) async fn run(lab: &Lab, exams: u64) -> anyhow::Result<Section> {
    let dir = lab.dir("scale")?;
    maillage_host::offload(move || measure(dir.path(), exams).map_err(std::io::Error::other))
        .await
        .context("measure the state at its size")
}

fn measure(dir: &Path, exams: u64) -> anyhow::Result<Section> {
    let title = format!("{exams} retained exams, {WAITING} waiting, on one node's engine");
    let mut section = Section::new("scale", title);
    let home = FjallHome::new(dir.join("state"), CACHE_BYTES);
    let mut lives = Lives::begin(home.open()?)?;
    let loaded = load(&mut lives, exams)?;
    section.push(one("whole lives applied", "commands of format 2, one thread", loaded.commands_a_second, "/s", true));
    section.push(one("state on disk", "", directory_bytes(&dir.join("state")) / 1e9, "GB", false));

    let pages = timed(|| first_page(&lives))?;
    section.push(percentiles("waiting room's first page", &pages));
    let claims = timed(|| lives.claim_and_release())?;
    section.push(percentiles("claim and release, applied", &claims));

    let path = dir.join("snapshot");
    let (dump, meanwhile) = dump_meanwhile(&mut lives, &path)?;
    let bytes = path.metadata()?.len();
    let bare = bare_write(&dir.join("bare"), bytes)?;
    section.push(Row::transfer("snapshot written", "from a view, claims going on", bytes, vec![dump]));
    section.push(Row::transfer("bare write and fsync", "of as many bytes", bytes, vec![bare]));
    section.push(percentiles("claim and release, meanwhile", &meanwhile));

    let learner = FjallHome::new(dir.join("learner"), CACHE_BYTES);
    let since = Instant::now();
    let copy = learner.replace(&mut |engine| install(&path, engine))?;
    section.push(Row::transfer("learner installs it", "", bytes, vec![since.elapsed().as_secs_f64()]));
    let counts = |reader: &dyn Reader| View::new(reader).counts();
    ensure!(counts(&*copy)? == counts(&*lives.engine)?, "the learner's state is another");
    drop(copy);

    // Memory before the opening below: the peak is what a node that runs needs.
    let memory = peak_memory_mib();
    section.push(one("peak memory", "of this process, all of the above", memory, "MiB", false));
    let expected = counts(&*lives.engine)?;
    drop(lives);
    let since = Instant::now();
    let engine = home.open()?;
    ensure!(counts(&*engine)? == expected, "the state is another after opening");
    section.push(one("opened again", "", since.elapsed().as_secs_f64(), "s", false));

    section.ratio("first page, limit / p99", PAGE_MAX_MS / percentile(&pages, 99), 1.0);
    section.ratio("memory, limit / peak", MEMORY_MAX_MIB / memory, 1.0);
    section.ratio(
        "claims' p99, idle / while a snapshot is written",
        percentile(&claims, 99) / percentile(&meanwhile, 99),
        0.2,
    );
    section.ratio("snapshot / bare write", bare / dump, 0.1);
    Ok(section)
}

struct Loaded {
    commands_a_second: f64,
}

/// Lets `exams` exams live to their end, and some more wait.
fn load(lives: &mut Lives, exams: u64) -> anyhow::Result<Loaded> {
    let (since, mut checkpoint) = (Instant::now(), Instant::now());
    let mut told = Instant::now();
    for done in 0..exams {
        lives.live_one()?;
        if checkpoint.elapsed() >= CHECKPOINT {
            lives.checkpoint()?;
            checkpoint = Instant::now();
        }
        if told.elapsed() >= Duration::from_secs(30) {
            eprintln!("scale: {done} of {exams} exams");
            told = Instant::now();
        }
    }
    lives.checkpoint()?;
    let commands_a_second = lives.commands() as f64 / since.elapsed().as_secs_f64();
    for _ in 0..WAITING {
        lives.order_one()?;
    }
    lives.checkpoint()?;
    let counts = View::new(&*lives.engine).counts()?;
    ensure!(counts.more.delivered == exams && counts.waiting == WAITING, "not every life was lived: {counts:?}");
    Ok(Loaded { commands_a_second })
}

/// Milliseconds that each of [`TIMES`] calls took, in ascending order.
fn timed(mut call: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<Vec<f64>> {
    let mut taken = Vec::with_capacity(TIMES);
    for _ in 0..TIMES {
        let since = Instant::now();
        call()?;
        taken.push(since.elapsed().as_secs_f64() * 1e3);
    }
    taken.sort_unstable_by(f64::total_cmp);
    Ok(taken)
}

fn first_page(lives: &Lives) -> anyhow::Result<()> {
    let frozen = lives.engine.view();
    let view = View::new(&*frozen);
    let page = view.waiting(UnixMillisField(lives.now()), PAGE)?;
    ensure!(page.len() == PAGE, "the page is short");
    Ok(())
}

/// Writes a snapshot in another thread, from a view of this moment, while claims go on here. Seconds of
/// the one, milliseconds of each of the others.
fn dump_meanwhile(lives: &mut Lives, path: &Path) -> anyhow::Result<(f64, Vec<f64>)> {
    let (view, done) = (lives.engine.view(), AtomicBool::new(false));
    let mut taken = Vec::new();
    let seconds = std::thread::scope(|scope| -> anyhow::Result<f64> {
        let dumping = scope.spawn(|| {
            let since = Instant::now();
            let written = dump(&*view, path);
            done.store(true, Ordering::Release);
            written.map(|()| since.elapsed().as_secs_f64())
        });
        while !done.load(Ordering::Acquire) {
            let since = Instant::now();
            lives.claim_and_release()?;
            taken.push(since.elapsed().as_secs_f64() * 1e3);
        }
        Ok(dumping.join().map_err(|_| anyhow::anyhow!("the snapshot's thread panicked"))??)
    })?;
    taken.sort_unstable_by(f64::total_cmp);
    Ok((seconds, taken))
}

fn length_of(bytes: &[u8]) -> std::io::Result<[u8; 4]> {
    u32::try_from(bytes.len()).map(u32::to_le_bytes).map_err(std::io::Error::other)
}

/// Each pair as two lengths and two strings of bytes; synced.
fn dump(view: &dyn Reader, path: &Path) -> std::io::Result<()> {
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
    let mut failure = None;
    view.scan(Bound::Unbounded, Bound::Unbounded, &mut |key, value| {
        let written = (|| {
            out.write_all(&length_of(key)?)?;
            out.write_all(&length_of(value)?)?;
            out.write_all(key)?;
            out.write_all(value)
        })();
        failure = written.err();
        failure.is_none()
    })?;
    match failure {
        Some(error) => Err(error),
        None => out.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all(),
    }
}

/// Reads what [`dump`] wrote into an empty engine.
fn install(path: &Path, engine: &dyn Engine) -> std::io::Result<()> {
    let mut file = std::io::BufReader::with_capacity(1 << 20, File::open(path)?);
    let mut batch = Batch::default();
    let mut lengths = [0_u8; 8];
    loop {
        match file.read_exact(&mut lengths) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(error),
        }
        let length = |at: usize| u32::from_le_bytes([lengths[at], lengths[at + 1], lengths[at + 2], lengths[at + 3]]);
        let (mut key, mut value) = (vec![0; length(0) as usize], vec![0; length(4) as usize]);
        file.read_exact(&mut key)?;
        file.read_exact(&mut value)?;
        batch.put(key, value);
        if batch.0.len() >= INSTALL_BATCH {
            engine.commit(std::mem::take(&mut batch))?;
        }
    }
    engine.commit(batch)
}

/// Seconds for a plain write of as many bytes, synced: the disk's own limit.
fn bare_write(path: &Path, bytes: u64) -> anyhow::Result<f64> {
    let since = Instant::now();
    preallocated(path, bytes)?;
    Ok(since.elapsed().as_secs_f64())
}

fn directory_bytes(path: &Path) -> f64 {
    let mut bytes = 0;
    let mut open = vec![path.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(found) if found.is_dir() => open.push(entry.path()),
                Ok(found) => bytes += found.len(),
                Err(_) => {}
            }
        }
    }
    bytes as f64
}

/// The most memory that this process ever had, `proc(5)`.
fn peak_memory_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.trim().parse().ok());
    peak.map_or(f64::NAN, |kib: f64| kib / 1024.0)
}

fn percentile(sorted: &[f64], share: usize) -> f64 {
    let rank = (sorted.len() * share).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
}

fn percentiles(name: &str, sorted: &[f64]) -> Row {
    let of = |unit, share| Figure::less_is_better(unit, vec![percentile(sorted, share)]);
    Row { name: name.to_owned(), note: "", figures: vec![of("ms p50", 50), of("ms p99", 99), of("ms max", 100)] }
}

fn one(name: &str, note: &'static str, value: f64, unit: &'static str, more: bool) -> Row {
    let figure =
        if more { Figure::more_is_better(unit, vec![value]) } else { Figure::less_is_better(unit, vec![value]) };
    Row { name: name.to_owned(), note, figures: vec![figure] }
}

/// An engine, shared by whoever times it.
type Shared = Arc<dyn Engine>;
