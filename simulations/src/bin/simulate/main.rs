//! `simulate`: runs the mesh under simulated time, disks, network and faults.

mod batch;
mod day;
mod determinism;
mod mutants;
mod shim;
mod show;

use std::ops::Range;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use maillage_simulations::{Faults, Mutant, Settings};

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
    #[arg(long, default_value_t = 2)]
    minutes: u64,
    /// Sites, each with one node.
    #[arg(long, default_value_t = 5)]
    sites: u32,
    /// `swarm`, `none`, or a list of faults.
    #[arg(long, default_value = "swarm")]
    faults: Faults,
    /// A deliberate fault at a seam.
    #[arg(long)]
    mutant: Option<Mutant>,
}

impl Shape {
    fn settings(&self, seed: u64, trace: Option<PathBuf>) -> Settings {
        let Self { minutes, sites, faults, mutant } = self.clone();
        Settings { seed, minutes, sites, faults, mutant, trace }
    }
}

fn seeds(text: &str) -> Result<Range<u64>, String> {
    let parsed = text.split_once("..").and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?));
    parsed.filter(|range| !range.is_empty()).ok_or_else(|| format!("{text:?} is not A..B with A below B"))
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
        Action::CheckDeterminism { seed, shape } => determinism::check(seed, &shape),
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
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time().init();
    }
}

fn run(settings: &Settings) -> anyhow::Result<bool> {
    shim::fix_addresses();
    log_if_asked();
    let start = shim::real_now();
    shim::enable(settings.seed);
    let report = maillage_simulations::run(settings).context("run the simulation")?;
    show::report(settings, &report, shim::real_now() - start);
    Ok(report.violations.is_empty())
}
