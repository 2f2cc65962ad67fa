//! `chaos`: a mesh of real processes under a seeded workload and seeded faults, judged from outside.
//!
//! ```text
//! main ─ run ─ world (sites: namespaces, disks, processes; network; history)
//!            ├ hospitals, readers, observers   what is asked, and what was told
//!            ├ nemesis                         faults, in three lanes
//!            └ finish ─ checks                 what must be true of it in the end
//! ```
//! What happens is drawn from the seed; when it happens is up to a real machine, so a seed gives the same
//! plan and not the same run. See `docs/chaos.md`.

#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a program beside the nodes, which harms and looks at them from outside and is never simulated"
)]

use std::process::ExitCode;

use anyhow::bail;
use maillage_tests::wan::{self, Shape, Wan};
use tokio::signal::unix::{SignalKind, signal};

mod arguments;
mod checks;
mod client;
mod finish;
mod history;
mod hospital;
mod images;
mod nemesis;
mod reader;
mod run;
mod site;
mod summary;
mod world;

use arguments::{Arguments, Task};

#[tokio::main]
async fn main() -> ExitCode {
    match interruptible().await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Ends at a signal by dropping the work, and with it every process, disk and namespace of it.
async fn interruptible() -> anyhow::Result<bool> {
    let arguments = Arguments::parse(std::env::args().skip(1))?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        result = task(&arguments) => result,
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
        _ = terminate.recv() => bail!("terminated"),
    }
}

/// Does what was asked; false when something must never have been.
async fn task(arguments: &Arguments) -> anyhow::Result<bool> {
    if arguments.task == Task::Faults {
        for kind in nemesis::KINDS {
            println!("{:<15} {}", kind.name, kind.what);
        }
        return Ok(true);
    }
    if let Some(why) = wan::missing() {
        if arguments.may_skip {
            println!("skipped: chaos: {why}");
            return Ok(true);
        }
        bail!("{why}");
    }
    wan::sweep();
    if arguments.task == Task::WanCheck {
        return wan_check().await;
    }
    let mut good = true;
    for seed in arguments.seeds.clone() {
        good &= run::run(arguments, seed).await?;
    }
    Ok(good)
}

/// Measures the emulated network, and whether the measurement notices a network that is not as asked.
async fn wan_check() -> anyhow::Result<bool> {
    let wan = Wan::new(2, &Shape::default(), 1)?;
    let mut good = true;
    println!("The network is what was asked:");
    for finding in wan::check(&wan, None).await? {
        good &= finding.good;
        let verdict = if finding.good { "ok" } else { "BAD" };
        println!("  {verdict:<4} {:<12} asked {:<32} measured {}", finding.what, finding.asked, finding.measured);
    }
    println!("The check notices when it is not:");
    for finding in wan::check(&wan, Some(wan::spoil)).await? {
        good &= !finding.good;
        let verdict = if finding.good { "BAD" } else { "ok" };
        println!("  {verdict:<4} {:<12} asked {:<32} measured {}", finding.what, finding.asked, finding.measured);
    }
    Ok(good)
}
