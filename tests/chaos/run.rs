//! One run: a mesh is founded, lives through its faults, finishes, and is judged.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::json;
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::arguments::Arguments;
use crate::history::{History, Violation};
use crate::nemesis::{self, Kind, Lane};
use crate::site::{Machine, faketime};
use crate::summary::summarise;
use crate::world::{Phase, World};
use crate::{finish, hospital, reader};

/// Seats at each site.
const SEATS: usize = 2;
/// A task that does not stop by then never does; its requests have shorter limits.
const STOP_WITHIN: Duration = Duration::from_secs(90);

/// Runs a seed. False when something must never have been.
///
/// # Errors
/// When the mesh could not even be founded.
pub(crate) async fn run(arguments: &Arguments, seed: u64) -> anyhow::Result<bool> {
    let root = match &arguments.disk {
        Some(disk) => TempDir::with_prefix_in("chaos-", disk)?,
        None => TempDir::with_prefix("chaos-")?,
    };
    let good = in_directory(arguments, seed, root.path()).await;
    if let Some(keep) = &arguments.keep {
        keep_records(root.path(), &keep.join(format!("seed-{seed}")))?;
    } else if !matches!(good, Ok(true)) {
        println!("records are kept in {}", root.keep().display());
    }
    good
}

async fn in_directory(arguments: &Arguments, seed: u64, root: &Path) -> anyhow::Result<bool> {
    let binary = std::env::current_exe()?.with_file_name("maillage");
    ensure!(binary.is_file(), "{} is not built: cargo build -p maillage", binary.display());
    let (kinds, skipped) = possible(arguments);
    let machine = Machine {
        binary,
        root: root.to_owned(),
        disk_mib: arguments.disk.is_none().then(|| arguments.disk_mib.unwrap_or_else(|| disk_mib(arguments.duration))),
        clocks: kinds.iter().any(|kind| kind.name == "clock"),
    };
    // As many as may be lost.
    let spares = if kinds.iter().all(|kind| kind.name != "lose-site") {
        0
    } else if arguments.sites < 5 {
        1
    } else {
        2
    };
    let history = History::new(&root.join("history.jsonl"))?;
    let world = Arc::new(World::new(seed, arguments.sites, spares, &machine, history)?);
    println!("seed {seed}: {} sites, faults for {} s", arguments.sites, arguments.duration.as_secs());
    for kind in &skipped {
        println!("  skipped: {}: this machine or setting has no way to do it", kind.name);
    }
    world.found().await.context("found the mesh")?;
    let settled = live(&world, arguments, &kinds).await;
    let undecided = finish::check(&world).await;
    summarise(&world, settled, undecided);
    Ok(world.history.violations().is_empty())
}

/// Room for all images of a run: nothing is ever deleted.
fn disk_mib(duration: Duration) -> u64 {
    512 + duration.as_secs() * 24 / 60
}

/// The faults that this machine can do, and those that it cannot.
fn possible(arguments: &Arguments) -> (Vec<Kind>, Vec<Kind>) {
    arguments.faults.iter().partition(|kind| match kind.name {
        "clock" => faketime().is_some(),
        "disk-low" | "disk-full" => arguments.disk.is_none(),
        _ => true,
    })
}

/// The life of the mesh until everybody has stopped. Returns how long it took to finish after the faults.
async fn live(world: &Arc<World>, arguments: &Arguments, kinds: &[Kind]) -> Duration {
    let (mut hospitals, mut others, mut lanes) = (JoinSet::new(), JoinSet::new(), JoinSet::new());
    for site in 0..world.founders {
        hospitals.spawn(hospital::run(Arc::clone(world), site));
        others.spawn(reader::run_observer(Arc::clone(world), site));
        for seat in 0..SEATS {
            others.spawn(reader::run(Arc::clone(world), site, seat));
        }
    }
    others.spawn(reader::run_colleague(Arc::clone(world)));
    let watched = Arc::clone(world);
    others.spawn(async move { watched.watch().await });
    for lane in [Lane::Processes, Lane::Network, Lane::Machines] {
        lanes.spawn(nemesis::run(Arc::clone(world), kinds.to_vec(), lane));
    }
    sleep(arguments.duration).await;
    world.enter(Phase::Finish);
    world.history.event("faults end", &json!(null));
    while lanes.join_next().await.is_some() {}
    finish::heal(world).await;
    let since = Instant::now();
    let all_safe = async { while hospitals.join_next().await.is_some() {} };
    if timeout(finish::FINISH_WITHIN, all_safe).await.is_err() {
        let what = "hospitals could not deliver everything".to_owned();
        world.history.violation(Violation::new("after the faults everything finishes", what));
    }
    finish::settle(world).await;
    let settled = since.elapsed();
    world.enter(Phase::Over);
    let stopped = async {
        while hospitals.join_next().await.is_some() {}
        while others.join_next().await.is_some() {}
    };
    if timeout(STOP_WITHIN, stopped).await.is_err() {
        world.history.event("tasks that did not stop", &json!(others.len()));
    }
    finish::converge(world).await;
    settled
}

/// History, logs and configurations; data directories are gone with their disks.
fn keep_records(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            std::fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    println!("records are in {}", to.display());
    Ok(())
}
