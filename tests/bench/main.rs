//! `bench`: what the mesh does in a second, beside what others do on the same machine.
//!
//! ```text
//! main -- ingest (a CT study by C-STORE: node, storescp, Orthanc, the bare disk)
//!      -- copy   (that study to a second node: node, bare quinn)
//!      -- claims (claims by HTTP on three nodes: mesh, etcd)
//!      -- codec  (pixels of real files and of the phantom: ours, zstd, JPEG-LS, HTJ2K)
//!      -- wan    (a claimed study over an emulated line: node, bare TCP, storescp; by name only: it needs root)
//!      -- memory (peak of a node that takes or gives 1, 10 and 100 studies at once; by name only)
//!      -- scale  (the state at its size: by name only, it takes minutes for each million exams)
//! ```
//! A figure means nothing without its peer in the same minute on the same disk, so every figure is
//! measured in rounds in which its peers take their turns. Everything that is measured is checked too:
//! a sender that failed or a copy that is not whole ends the run instead of giving a figure.

#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a program beside the nodes, which prepares and reads files from outside and is never simulated"
)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

mod claims;
mod codec;
mod copy;
mod http;
mod ingest;
mod lab;
mod memory;
mod mesh;
mod process;
mod report;
mod scale;
mod study;
mod wan;

use lab::Lab;
use report::Report;

/// A part that takes longer than this is stuck, and the others are worth having.
const PART_LIMIT: Duration = Duration::from_secs(300);
/// … but for the one that loads what it measures.
const SCALE_LIMIT: Duration = Duration::from_secs(4 * 3600);
/// … and for the one whose peers take a minute a study.
const WAN_LIMIT: Duration = Duration::from_secs(1800);
const USAGE: &str = "usage: bench [ingest|copy|claims|codec|all|wan|memory|scale] [--rounds N] [--slices N] [--exams N] [--json FILE] [--dir DIR]";

/// What to do.
struct Arguments {
    parts: Vec<&'static str>,
    rounds: usize,
    slices: u32,
    exams: u64,
    json: Option<PathBuf>,
    dir: PathBuf,
}

impl Arguments {
    fn parse(mut given: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        let mut arguments =
            Self { parts: Vec::new(), rounds: 3, slices: 400, exams: 100_000, json: None, dir: std::env::temp_dir() };
        while let Some(word) = given.next() {
            let mut value = || given.next().with_context(|| format!("{word} needs a value"));
            match word.as_str() {
                "ingest" => arguments.parts.push("ingest"),
                "copy" => arguments.parts.push("copy"),
                "claims" => arguments.parts.push("claims"),
                "codec" => arguments.parts.push("codec"),
                "scale" => arguments.parts.push("scale"),
                "wan" => arguments.parts.push("wan"),
                "memory" => arguments.parts.push("memory"),
                "--exams" => arguments.exams = value()?.parse::<u64>()?.clamp(1, 100_000_000),
                "all" => arguments.parts.extend(["ingest", "copy", "claims", "codec"]),
                "--rounds" => arguments.rounds = value()?.parse::<usize>()?.clamp(1, 100),
                "--slices" => arguments.slices = value()?.parse::<u32>()?.clamp(1, 5000),
                "--json" => arguments.json = Some(value()?.into()),
                "--dir" => arguments.dir = value()?.into(),
                _ => bail!("{word} is not known\n{USAGE}"),
            }
        }
        if arguments.parts.is_empty() {
            arguments.parts.extend(["ingest", "copy", "claims", "codec"]);
        }
        Ok(arguments)
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let mut given = std::env::args().skip(1).peekable();
    let result = match given.next_if(|word| word == copy::SENDER) {
        Some(_) => copy::send_raw(given).await,
        None => interruptible(given).await,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Ends at a signal by dropping the work, and with it every process and file of it.
async fn interruptible(given: impl Iterator<Item = String>) -> anyhow::Result<()> {
    let arguments = Arguments::parse(given)?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        result = all(arguments) => result,
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
        _ = terminate.recv() => bail!("terminated"),
    }
}

async fn all(arguments: Arguments) -> anyhow::Result<()> {
    let lab = Lab::new(&arguments.dir, arguments.rounds)?;
    let mut report = Report::new(arguments.rounds);
    let mut failed = false;
    let study = match arguments.parts.iter().any(|part| ["ingest", "copy"].contains(part)) {
        true => Some(study::Study::write(&lab, arguments.slices).await?),
        false => None,
    };
    for part in &arguments.parts {
        let measured = async {
            match (*part, &study) {
                ("ingest", Some(study)) => ingest::run(&lab, study).await,
                ("copy", Some(study)) => copy::run(&lab, study).await,
                ("codec", _) => codec::run(&lab).await,
                ("wan", _) => wan::run(&lab, arguments.slices).await,
                ("memory", _) => memory::run(&lab, arguments.slices).await,
                ("scale", _) => scale::run(&lab, arguments.exams).await,
                _ => claims::run(&lab).await,
            }
        };
        // Loading millions of exams is no sign of being stuck.
        let limit = match *part {
            "scale" => SCALE_LIMIT,
            "wan" => WAN_LIMIT,
            _ => PART_LIMIT,
        };
        match timeout(limit, measured).await {
            Ok(Ok(mut section)) => {
                section.ended();
                section.print();
                report.sections.push(section);
            }
            Ok(Err(error)) => {
                eprintln!("{part}: {error:#}");
                failed = true;
            }
            Err(_) => {
                eprintln!("{part}: not done within {} s", limit.as_secs());
                failed = true;
            }
        }
    }
    if let Some(file) = &arguments.json {
        std::fs::write(file, format!("{:#}\n", report.to_json())).context("write the JSON")?;
    }
    if failed { bail!("not every figure could be measured") } else { Ok(()) }
}
