//! Faults of machines: full disks, wrong clocks.

use std::time::Duration;

use maillage_tests::draw::Draw;
use serde_json::json;

use super::pause;
use crate::site::{RESERVE_MIB, Site};
use crate::world::World;

/// How long a disk stays full, in milliseconds.
const FULL_MS: std::ops::Range<u64> = 3000..12_000;
/// The farthest that a clock jumps. Outcomes of commands are kept for a day of the mesh's clock, and
/// tokens live as long: farther would break promises that are not made.
const CLOCK_OFF_MAX_S: u64 = 1800;

/// Applies a fault and, but for clocks, undoes it. Returns whom it met.
pub(super) async fn apply(world: &World, kind: &str, draw: &mut Draw) -> Option<Vec<&'static str>> {
    let living: Vec<&Site> = world.living();
    let site = draw.pick(&living).copied()?;
    match kind {
        "clock" => {
            let offset = i64::try_from(draw.below(2 * CLOCK_OFF_MAX_S)).ok()? - i64::try_from(CLOCK_OFF_MAX_S).ok()?;
            // Most wrong clocks are wrong by little.
            let offset = if draw.chance(0.5) { offset / 100 } else { offset };
            site.set_clock(offset).ok()?;
            world.history.event("clocks set", &json!([site.name, offset]));
        }
        "disk-low" => {
            let _turn = site.turn.try_lock().ok()?;
            site.fill(RESERVE_MIB / 2).ok()?;
            world.history.event("disk low", &json!(site.name));
            pause(world, Duration::from_millis(draw.within(FULL_MS))).await;
            site.empty();
            world.history.event("disk freed", &json!(site.name));
        }
        "disk-full" => full(world, site, draw).await?,
        _ => return None,
    }
    Some(vec![site.name])
}

/// Not a byte is left. The node may end, which is what it says it does; somebody makes room and
/// restarts it, as its warnings ask.
async fn full(world: &World, site: &Site, draw: &mut Draw) -> Option<()> {
    let _turn = site.turn.try_lock().ok()?;
    world.excuse(site.number, true);
    let filled = site.fill(0);
    world.history.event("disk full", &json!([site.name, filled.as_ref().err().map(|error| format!("{error:#}"))]));
    pause(world, Duration::from_millis(draw.within(FULL_MS))).await;
    site.empty();
    site.kill();
    let _ = site.start().await;
    world.excuse(site.number, false);
    world.history.event("disk freed", &json!(site.name));
    filled.ok()
}
