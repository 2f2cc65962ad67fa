//! Faults of processes: killed, frozen, lost with their disks.

use std::time::Duration;

use maillage_tests::draw::Draw;
use rustix::process::Signal;
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

use super::pause;
use crate::hospital::copies;
use crate::site::Site;
use crate::world::{Phase, World};

/// How long a killed node stays away, in milliseconds: shorter and longer than a session.
const AWAY_MS: std::ops::Range<u64> = 200..12_000;
/// How long a node is frozen.
const FROZEN_MS: std::ops::Range<u64> = 500..14_000;
/// How long nobody replaces a lost site.
const REPLACED_AFTER_MS: std::ops::Range<u64> = 1000..8000;
/// A joining that faults keep failing is given up after so long, once they are over.
const JOIN_LIMIT: Duration = Duration::from_secs(150);

/// Applies a fault and undoes it. Returns whom it met; `None` when there was nobody to meet.
pub(super) async fn apply(world: &World, kind: &str, draw: &mut Draw) -> Option<Vec<&'static str>> {
    match kind {
        "kill" => kill(world, draw, 1).await,
        "kill-several" => {
            let several = draw.within(2..4);
            kill(world, draw, usize::try_from(several).unwrap_or(2)).await
        }
        "kill-all" => kill(world, draw, usize::MAX).await,
        "kill-leader" => {
            let leader = world.leader().await?;
            kill_these(world, draw, vec![leader]).await
        }
        "stop" => freeze(world, draw, None).await,
        "stop-leader" => {
            let leader = world.leader().await?;
            freeze(world, draw, Some(leader)).await
        }
        "lose-site" => lose(world, draw).await,
        _ => None,
    }
}

fn some<'a>(world: &'a World, draw: &mut Draw, count: usize) -> Vec<&'a Site> {
    let mut running: Vec<&Site> = world.sites.iter().filter(|site| site.is_running()).collect();
    draw.shuffle(&mut running);
    running.truncate(count);
    running
}

async fn kill(world: &World, draw: &mut Draw, count: usize) -> Option<Vec<&'static str>> {
    let victims = some(world, draw, count);
    kill_these(world, draw, victims).await
}

async fn kill_these(world: &World, draw: &mut Draw, victims: Vec<&Site>) -> Option<Vec<&'static str>> {
    let mut held = Vec::new();
    for site in victims {
        // Another lane may be at this one.
        if let Ok(turn) = site.turn.try_lock() {
            held.push((site, turn));
        }
    }
    for (site, _) in &held {
        site.kill();
    }
    let names: Vec<_> = held.iter().map(|(site, _)| site.name).collect();
    world.history.event("killed", &json!(names));
    for (site, _turn) in held {
        pause(world, Duration::from_millis(draw.within(AWAY_MS))).await;
        let _ = site.start().await;
        world.history.event("started", &json!(site.name));
    }
    (!names.is_empty()).then_some(names)
}

async fn freeze<'a>(world: &'a World, draw: &mut Draw, whom: Option<&'a Site>) -> Option<Vec<&'static str>> {
    let site = whom.or_else(|| some(world, draw, 1).first().copied())?;
    let _turn = site.turn.try_lock().ok()?;
    site.signal(Signal::STOP);
    world.history.event("frozen", &json!(site.name));
    pause(world, Duration::from_millis(draw.within(FROZEN_MS))).await;
    site.signal(Signal::CONT);
    world.history.event("thawed", &json!(site.name));
    Some(vec![site.name])
}

/// Takes a site's disk, and lets a new site join.
async fn lose(world: &World, draw: &mut Draw) -> Option<Vec<&'static str>> {
    let spare = world.sites.iter().find(|site| site.is_absent())?;
    let lost = world.sites.iter().filter(|site| site.is_lost()).count();
    // Only founders vote; of them a majority must keep its disks.
    let voters = if world.founders < 5 { world.founders.min(3) } else { 5 };
    if lost + 1 > voters.saturating_sub(1) / 2 || (lost > 0 && !is_safe_to_lose(world, draw).await) {
        return None;
    }
    let victim = some(world, draw, 1).first().copied()?;
    {
        let _turn = victim.turn.try_lock().ok()?;
        victim.lose();
    }
    world.history.event("lost", &json!(victim.name));
    pause(world, Duration::from_millis(draw.within(REPLACED_AFTER_MS))).await;
    replace(world, spare).await;
    Some(vec![victim.name, spare.name])
}

/// Lets a new site join, again and again while faults prevent it.
pub(crate) async fn replace(world: &World, spare: &Site) {
    let _turn = spare.turn.lock().await;
    let mut since = Instant::now();
    while since.elapsed() < JOIN_LIMIT && !spare.is_living() {
        let joined = timeout(JOIN_LIMIT, world.join(spare)).await;
        match joined {
            Ok(Ok(())) => world.history.event("joined", &json!(spare.name)),
            Ok(Err(error)) => world.history.event("joins that failed", &json!([spare.name, format!("{error:#}")])),
            Err(_) => world.history.event("joins that failed", &json!([spare.name, "no end"])),
        }
        if world.phase() == Phase::Faults {
            since = Instant::now();
        }
        sleep(Duration::from_secs(1)).await;
    }
}

/// Whether every study that anybody knows of is on two sites that are left.
async fn is_safe_to_lose(world: &World, draw: &mut Draw) -> bool {
    let Some(site) = world.any_running(draw) else { return false };
    for case in world.cases() {
        if copies(world, site, &case).await.is_some_and(|copies| copies < 2) {
            return false;
        }
    }
    true
}
