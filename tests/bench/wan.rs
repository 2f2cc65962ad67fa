//! An exam is claimed at a centre that holds none of its images, over an emulated line of 100 Mb/s and 50 ms:
//! when the first slice can be read there, and when all are.
//!
//! ```text
//! namespace 0: holder ──line── namespace n: reader     claim, WADO-RS; a neighbour's echoes on the same line
//! namespaces 1, 2: more holders, each with a line of its own
//! ```
//! Beside it, on the same line: the bare bytes by TCP, which is the limit, and dcmtk's `storescu` to `storescp`.
//! With 0.5 % of loss, with cubic instead of the nodes' own controller, and with three holders.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use maillage_tests::wan::{Shape, Wan, check, missing, sweep};

use crate::lab::{Lab, program};
use crate::report::{Figure, Row, Section};
use crate::study::Study;

mod peers;
mod sites;

use peers::Neighbour;
use sites::Sites;

/// The line, each way.
const RATE_BITS_S: u64 = 100_000_000;
const DELAY: Duration = Duration::from_millis(25);
const LOSS: f64 = 0.005;
/// Where TCP and cubic crawl, this part of the slices shows the rate.
const CRAWL_PART: u32 = 8;
/// … and a bare wire is watched for so long.
const CRAWL_LIMIT: Duration = Duration::from_secs(20);
/// Far longer than the whole study takes on the line.
const WIRE_LIMIT: Duration = Duration::from_secs(120);
/// The study for which the aims in seconds are: 400 slices.
const AIM_BYTES: f64 = 210e6;
/// Seed of the first study: none has a slice of another, which would be stored already.
const SEED: u64 = 1000;

/// One way to have it.
struct Case {
    name: &'static str,
    note: &'static str,
    holders: usize,
    loss: f64,
    congestion: &'static str,
    part: u32,
}

const CLEAN: &str = "node, one holder";
const CLEAN_CUBIC: &str = "node with cubic, one holder";
const LOSSY: &str = "node, 0.5 % loss";
const LOSSY_CUBIC: &str = "node with cubic, 0.5 % loss";
const THREE: &str = "node, three holders";
const WIRE: &str = "limit: bare TCP";
const WIRE_LOSSY: &str = "bare TCP, 0.5 % loss";
const DCMTK: &str = "storescu -> storescp";
const DCMTK_LOSSY: &str = "storescu -> storescp, 0.5 % loss";

const CASES: [Case; 5] = [
    Case { name: CLEAN, note: "durable and recorded", holders: 1, loss: 0.0, congestion: "auto", part: 1 },
    Case { name: CLEAN_CUBIC, note: "", holders: 1, loss: 0.0, congestion: "cubic", part: 1 },
    Case { name: LOSSY, note: "", holders: 1, loss: LOSS, congestion: "auto", part: 1 },
    Case {
        name: LOSSY_CUBIC,
        note: "an eighth of the slices",
        holders: 1,
        loss: LOSS,
        congestion: "cubic",
        part: CRAWL_PART,
    },
    Case { name: THREE, note: "a line each", holders: 3, loss: 0.0, congestion: "auto", part: 1 },
];

fn line(loss: f64) -> Shape {
    Shape { delay: DELAY, rate: Some(RATE_BITS_S), loss, ..Shape::default() }
}

/// Measures.
pub(crate) async fn run(lab: &Lab, slices: u32) -> anyhow::Result<Section> {
    if let Some(why) = missing() {
        bail!("no emulated network: {why}");
    }
    sweep();
    emulator().await?;
    let control = peers::tcp_control();
    let title = format!("a claimed study of {slices} slices, 100 Mb/s and 50 ms there and back; TCP has {control}");
    let mut section = Section::new("wan", title);
    for case in &CASES {
        let sites = Sites::start(lab, case.holders, &line(case.loss), case.congestion).await.context(case.name)?;
        let mut rounds = Vec::new();
        for round in 0..lab.rounds {
            let study = Study::in_memory((slices / case.part).max(1), SEED + round as u64).await?;
            rounds.push(claimed(lab, &sites, &Arc::new(study), round).await.context(case.name)?);
        }
        section.push(row(case, &rounds));
    }
    let study = Study::write(lab, slices).await?;
    peers(lab, &study, &mut section).await?;
    ratios(&mut section, AIM_BYTES / study.bytes as f64);
    Ok(section)
}

/// Prints what the emulator does and fails if that is not what it is asked for.
async fn emulator() -> anyhow::Result<()> {
    let wan = Wan::new(2, &Shape::default(), 1)?;
    println!("\nthe emulated line:");
    let mut good = true;
    for finding in check(&wan, None).await? {
        let verdict = if finding.good { "ok" } else { "BAD" };
        println!("  {verdict:<4} {:<12} asked {:<32} measured {}", finding.what, finding.asked, finding.measured);
        good &= finding.good;
    }
    ensure!(good, "the emulated line is not what was asked for");
    Ok(())
}

/// What a claim brought.
struct Claimed {
    /// Seconds until the first slice could be read, and until all were here, durable and recorded.
    first: f64,
    all: f64,
    bytes: u64,
    /// What a neighbour on the line saw meanwhile.
    neighbour: Neighbour,
    /// The part that the line's full queue dropped.
    dropped: f64,
}

async fn claimed(lab: &Lab, sites: &Sites, study: &Arc<Study>, round: usize) -> anyhow::Result<Claimed> {
    sites.request(study).await?;
    sites.store(study).await?;
    sites.published(study, sites.holders).await?;
    lab.quiet().await?;
    let before = sites.counts();
    let echoes = sites.neighbour().await?;
    let since = tokio::time::Instant::now();
    sites.claim(&format!("dr-bench-{round}")).await?;
    let middle = study.slices.len() / 2;
    sites.slice(study, middle).await?;
    let first = since.elapsed().as_secs_f64();
    sites.published(study, sites.holders + 1).await?;
    let all = since.elapsed().as_secs_f64();
    let neighbour = echoes.stop().await?;
    let after = sites.counts();
    sites.whole(study).await?;
    let (full, passed) = (after.full - before.full, after.passed - before.passed);
    let dropped = full as f64 / (full + passed).max(1) as f64;
    Ok(Claimed { first, all, bytes: study.bytes, neighbour, dropped })
}

fn row(case: &Case, rounds: &[Claimed]) -> Row {
    let of = |value: fn(&Claimed) -> f64| rounds.iter().map(value).collect::<Vec<f64>>();
    let figures = vec![
        Figure::less_is_better("s first", of(|round| round.first)),
        Figure::less_is_better("s all", of(|round| round.all)),
        Figure::more_is_better("MB/s", of(|round| round.bytes as f64 / 1e6 / round.all)),
        Figure::less_is_better("ms p50", of(|round| round.neighbour.percentile_ms(50))),
        Figure::less_is_better("ms p99", of(|round| round.neighbour.percentile_ms(99))),
        Figure::less_is_better("% drop", of(|round| round.dropped * 100.0)),
    ];
    Row { name: case.name.to_owned(), note: case.note, figures }
}

/// What others do on the same line, once: it takes as long each time.
async fn peers(lab: &Lab, study: &Study, section: &mut Section) -> anyhow::Result<()> {
    for (loss, name, limit) in [(0.0, WIRE, WIRE_LIMIT), (LOSS, WIRE_LOSSY, CRAWL_LIMIT)] {
        let wan = Arc::new(Wan::new(2, &line(loss), 2)?);
        let before = wan.router.counts(0, 1);
        let echoes = peers::Echoes::start(&wan, 0, 1).await?;
        let (bytes, seconds) = peers::wire(&wan, study.bytes, limit).await.context(name)?;
        let neighbour = echoes.stop().await?;
        let after = wan.router.counts(0, 1);
        let (full, passed) = (after.full - before.full, after.passed - before.passed);
        let figures = vec![
            Figure::less_is_better("s all", vec![if bytes == study.bytes { seconds } else { f64::NAN }]),
            Figure::more_is_better("MB/s", vec![bytes as f64 / 1e6 / seconds]),
            Figure::less_is_better("ms p50", vec![neighbour.percentile_ms(50)]),
            Figure::less_is_better("ms p99", vec![neighbour.percentile_ms(99)]),
            Figure::less_is_better("% drop", vec![full as f64 * 100.0 / (full + passed).max(1) as f64]),
        ];
        section.push(Row { name: name.to_owned(), note: "once; no disk", figures });
    }
    let (Some(storescu), Some(storescp)) = (program("storescu"), program("storescp")) else {
        section.skip("storescu, storescp");
        return Ok(());
    };
    let few = Study::write(lab, (u32::try_from(study.slices.len())? / CRAWL_PART).max(1)).await?;
    for (loss, name, study) in [(0.0, DCMTK, study), (LOSS, DCMTK_LOSSY, &few)] {
        let wan = Arc::new(Wan::new(2, &line(loss), 2)?);
        let seconds = peers::dcmtk(lab, &wan, study, &storescu, &storescp).await.context(name)?;
        section.push(Row::transfer(name, "once; TCP_NODELAY=1, not durable", study.bytes, vec![seconds]));
    }
    Ok(())
}

fn ratios(section: &mut Section, scale: f64) {
    let of = |row: &str, unit: &str| section.median(row, unit);
    let found = [
        ("1 s / first slice", 1.0 / of(CLEAN, "s first"), 1.0),
        ("6 s / all, for 210 MB", 6.0 / (of(CLEAN, "s all") * scale), 1.0),
        ("bare TCP / node, s", of(WIRE, "s all") / of(CLEAN, "s all"), 2.8),
        ("storescu / node, s", of(DCMTK, "s") / of(CLEAN, "s all"), 6.5),
        ("three holders / one, MB/s", of(THREE, "MB/s") / of(CLEAN, "MB/s"), 2.0),
        ("0.5 % loss / none, MB/s", of(LOSSY, "MB/s") / of(CLEAN, "MB/s"), 0.85),
        ("0.5 % loss: own control / cubic, MB/s", of(LOSSY, "MB/s") / of(LOSSY_CUBIC, "MB/s"), 5.0),
        ("0.5 % loss: node / bare TCP, MB/s", of(LOSSY, "MB/s") / of(WIRE_LOSSY, "MB/s"), 1.0),
        ("0.5 % loss: node / storescu, MB/s", of(LOSSY, "MB/s") / of(DCMTK_LOSSY, "MB/s"), 1.0),
        ("neighbour's p99: bare TCP / node", of(WIRE, "ms p99") / of(CLEAN, "ms p99"), 1.0),
    ];
    for (name, value, at_least) in found {
        section.ratio(name, value, at_least);
    }
}
