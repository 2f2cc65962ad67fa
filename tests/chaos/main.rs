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
use maillage_tests::kills::{Toll, kill_often};
use maillage_tests::wan::{self, Shape, Wan};
use maillage_tests::{Mesh, Settings};
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
    if let Task::Kills(count) = arguments.task {
        return kills(count, *arguments.seeds.start()).await;
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

/// Kills a node so many times while it takes images in; ends with a panic at the first that is lost.
async fn kills(count: u32, seed: u64) -> anyhow::Result<bool> {
    let node = std::env::current_exe()?.with_file_name("maillage");
    let settings = |_| Settings { quiet_seconds: 600, ..Settings::default() };
    let mut mesh = Mesh::start(&node, 1, settings).await;
    let toll = kill_often(&mut mesh, count, seed, |toll| {
        if toll.kills.is_multiple_of(25) {
            println!("{:>4} kills: {} acknowledged, all there", toll.kills, toll.acknowledged);
        }
    });
    let Toll { kills, acknowledged, unacknowledged } = toll.await;
    println!(
        "seed {seed}: {kills} kills, {acknowledged} instances acknowledged, each there bit for bit; {unacknowledged} \
         more were durable when the answer was cut off"
    );
    Ok(true)
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
