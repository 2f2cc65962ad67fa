//! `simulate`: runs the mesh under simulated time, disks, network and faults.

mod batch;
mod day;
mod determinism;
mod mutants;
mod shim;
mod show;
mod shrink;

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand};
use maillage_simulations::{Fault, Faults, Mutant, Settings, Transport, acting};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

/// A run allocates for all its nodes on one thread: an eighth of its time less than with the system's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Simulated minutes with faults, if nothing is said.
const MINUTES: u64 = 2;
/// Sites, if nothing is said: as many voters as the mesh ever has.
const SITES: u32 = 5;
/// As much stack as a process's first thread has: builds without optimisation need it.
const STACK_BYTES: usize = 8 << 20;

/// The mesh's production code under a simulated clock, network and disk.
#[derive(Debug, Parser)]
#[command(name = "simulate")]
struct Cli {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Run one seed in this process.
    Run {
        /// Everything random comes from it.
        #[arg(long)]
        seed: u64,
        #[command(flatten)]
        shape: Shape,
        /// Write every event to this file.
        #[arg(long)]
        trace: Option<PathBuf>,
    },
    /// Run many seeds, each in a process of its own.
    Sweep {
        /// As A..B, B excluded.
        #[arg(long, value_parser = seeds)]
        seeds: Range<u64>,
        /// Processes at once.
        #[arg(long, default_value_t = 2)]
        jobs: usize,
        #[command(flatten)]
        shape: Shape,
    },
    /// Run one seed twice and compare all events.
    CheckDeterminism {
        /// The seed.
        #[arg(long)]
        seed: u64,
        /// The program of the second run: another build of this one, in another profile say
        #[arg(long)]
        with: Option<PathBuf>,
        #[command(flatten)]
        shape: Shape,
    },
    /// Find the smallest fault plan that still breaks what a seed breaks.
    Shrink {
        /// The seed.
        #[arg(long)]
        seed: u64,
        /// Processes at once.
        #[arg(long, default_value_t = 2)]
        jobs: usize,
        #[command(flatten)]
        shape: Shape,
    },
    /// Play a day of the service on the mesh and on one central server, and write a page that compares them.
    Day {
        /// Everything random comes from it.
        #[arg(long)]
        seed: u64,
        #[command(flatten)]
        shape: day::DayShape,
        /// Where the page goes.
        #[arg(long)]
        out: PathBuf,
    },
    /// Play one day on the mesh in this process.
    MeshDay {
        /// Everything random comes from it.
        #[arg(long)]
        seed: u64,
        #[command(flatten)]
        shape: day::DayShape,
        /// A random mixture of faults besides the scenario.
        #[arg(long)]
        faults: bool,
        /// Leave the records of the exams in this file.
        #[arg(long)]
        records: Option<PathBuf>,
        /// Write every event to this file.
        #[arg(long)]
        trace: Option<PathBuf>,
    },
    /// Play many days with random faults, each in a process of its own.
    SweepDays {
        /// As A..B, B excluded.
        #[arg(long, value_parser = seeds)]
        seeds: Range<u64>,
        /// Processes at once.
        #[arg(long, default_value_t = 2)]
        jobs: usize,
        #[command(flatten)]
        shape: day::DayShape,
    },
    /// Show that each deliberate fault is caught.
    Mutants {
        /// Only this one.
        #[arg(long)]
        only: Option<Mutant>,
        /// Processes at once.
        #[arg(long, default_value_t = 2)]
        jobs: usize,
    },
}

/// What a run looks like, besides its seed.
#[derive(Debug, Clone, Args)]
struct Shape {
    /// Simulated minutes with faults.
    #[arg(long, default_value_t = MINUTES)]
    minutes: u64,
    /// … or hours.
    #[arg(long, conflicts_with = "minutes", value_parser = clap::value_parser!(u64).range(1..=168))]
    hours: Option<u64>,
    /// Sites, each with one node.
    #[arg(long, default_value_t = SITES)]
    sites: u32,
    /// `swarm`, `none`, or a list of faults.
    #[arg(long, default_value = "swarm")]
    faults: Faults,
    /// Kinds of fault to leave out; the others happen as they would with them.
    #[arg(long, value_delimiter = ',')]
    without: Vec<Fault>,
    /// Leave out all faults but those of these numbers (as `run` prints them), or all with `none`.
    #[arg(long, value_parser = numbers)]
    only_faults: Option<Numbers>,
    /// What carries the bytes between nodes.
    #[arg(long, value_enum, default_value_t)]
    transport: Transport,
    /// A deliberate fault at a seam.
    #[arg(long)]
    mutant: Option<Mutant>,
}

impl Shape {
    fn settings(&self, seed: u64, trace: Option<PathBuf>) -> Settings {
        let Self { minutes, hours, sites, faults, without, only_faults, transport, mutant } = self.clone();
        let minutes = hours.map_or(minutes, |hours| hours * 60);
        let only_faults = only_faults.map(|Numbers(numbers)| numbers);
        Settings { seed, minutes, sites, faults, without, only_faults, transport, mutant, trace }
    }

    /// Whether every kind of fault may come, and nothing is broken on purpose.
    fn is_whole_swarm(&self) -> bool {
        self.faults == Faults::Swarm && self.without.is_empty() && self.only_faults.is_none() && self.mutant.is_none()
    }

    /// What a run is if nothing is said of it.
    fn swarm() -> Self {
        Self {
            minutes: MINUTES,
            hours: None,
            sites: SITES,
            faults: Faults::Swarm,
            without: Vec::new(),
            only_faults: None,
            transport: Transport::default(),
            mutant: None,
        }
    }
}

fn seeds(text: &str) -> Result<Range<u64>, String> {
    let parsed = text.split_once("..").and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?));
    parsed.filter(|range| !range.is_empty()).ok_or_else(|| format!("{text:?} is not A..B with A below B"))
}

/// Numbers of faults.
#[derive(Debug, Clone)]
struct Numbers(Vec<u64>);

fn numbers(text: &str) -> Result<Numbers, String> {
    if text == "none" {
        return Ok(Numbers(Vec::new()));
    }
    let parsed: Result<Vec<u64>, _> = text.split(',').map(str::parse).collect();
    parsed.map(Numbers).map_err(|error| format!("{text:?} is not a list of numbers, nor `none`: {error}"))
}

fn main() -> ExitCode {
    match act(Cli::parse().action) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Returns whether all went well.
fn act(action: Action) -> anyhow::Result<bool> {
    match action {
        Action::Run { seed, shape, trace } => run(&shape.settings(seed, trace)),
        Action::Sweep { seeds, jobs, shape } => batch::sweep(seeds, jobs, &shape),
        Action::CheckDeterminism { seed, with, shape } => determinism::check(seed, with, &shape),
        Action::Shrink { seed, jobs, shape } => shrink::shrink(seed, jobs, &shape),
        Action::Day { seed, shape, out } => day::report(seed, &shape, &out),
        Action::MeshDay { seed, shape, faults, records, trace } => {
            day::mesh(&shape.settings(seed, faults, trace), records.as_deref())
        }
        Action::SweepDays { seeds, jobs, shape } => day::sweep(seeds, jobs, &shape),
        Action::Mutants { only, jobs } => mutants::show_all(only, jobs),
    }
}

/// The nodes' own log lines, for whoever set `RUST_LOG`.
fn log_if_asked() {
    if std::env::var_os("RUST_LOG").is_some() {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        lines.with_ansi(false).with_timer(Simulated).init();
    }
}

/// Before each line: the simulated time and the slot of the node, as in a trace.
struct Simulated;

impl FormatTime for Simulated {
    fn format_time(&self, w: &mut Writer<'_>) -> fmt::Result {
        let (now, slot) = acting();
        write!(w, "{:>13} n{slot}", now.as_micros())
    }
}

/// Runs `simulation` with this process's randomness and clocks from `seed`.
///
/// On a thread of its own: hash maps draw their keys once a thread, so on this one those of the
/// arguments' and the log's would be drawn before randomness is the seed's, and count after.
fn simulated<T: Send + 'static>(seed: u64, simulation: impl FnOnce() -> T + Send + 'static) -> anyhow::Result<T> {
    let thread = std::thread::Builder::new().name("simulation".to_owned()).stack_size(STACK_BYTES);
    let running = thread.spawn(move || {
        shim::enable(seed);
        simulation()
    });
    let Ok(result) = running.context("start the simulation's thread")?.join() else { bail!("the simulation panicked") };
    Ok(result)
}

fn run(settings: &Settings) -> anyhow::Result<bool> {
    shim::fix_addresses();
    log_if_asked();
    let start = shim::real_now();
    let owned = settings.clone();
    let report = simulated(settings.seed, move || maillage_simulations::run(&owned))?.context("run the simulation")?;
    show::report(settings, &report, shim::real_now() - start);
    Ok(report.violations.is_empty())
}
