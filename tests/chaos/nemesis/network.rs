//! Faults of the network: cut, one way or both, slow, lossy, narrow.

use std::collections::BTreeSet;
use std::time::Duration;

use maillage_tests::draw::Draw;
use maillage_tests::wan::Shape;
use serde_json::json;

use super::pause;
use crate::site::Site;
use crate::world::World;

/// How long a fault lasts, in milliseconds: shorter and longer than an election and a session.
const LASTS_MS: std::ops::Range<u64> = 1500..14_000;
/// Between two turns of a flapping line.
const FLAP_MS: std::ops::Range<u64> = 300..2000;

/// Applies a fault and undoes it. Returns whom it met.
pub(super) async fn apply(world: &World, kind: &str, draw: &mut Draw) -> Option<Vec<&'static str>> {
    let lasts = Duration::from_millis(draw.within(LASTS_MS));
    let mut living: Vec<&Site> = world.living();
    draw.shuffle(&mut living);
    let met = match kind {
        "partition" => {
            let side = draw.within(1..u64::try_from(living.len()).unwrap_or(2).max(2));
            living.truncate(usize::try_from(side).unwrap_or(1));
            cut_off(world, &living)
        }
        "isolate-leader" => {
            let leader = world.leader().await?;
            cut_off(world, &[leader])
        }
        "one-way" => {
            let (site, deaf) = (living.first()?.number, draw.chance(0.5));
            world
                .router
                .change_where(|from, to| if deaf { to == site } else { from == site }, |shape| shape.up = false);
            vec![living.first()?.name]
        }
        "partial" => {
            let pairs = partial(draw, &living);
            let is_cut = |from: usize, to: usize| pairs.contains(&(from.min(to), from.max(to)));
            world.router.change_where(is_cut, |shape| shape.up = false);
            let met = living.iter().filter(|site| pairs.iter().any(|(a, b)| [*a, *b].contains(&site.number)));
            met.map(|site| site.name).collect()
        }
        "flapping" => {
            let site = living.first()?;
            told(world, kind, &[site.name]);
            flap(world, draw, site.number, lasts).await;
            world.router.change_where(|_, _| true, |shape| *shape = world.base.clone());
            return Some(vec![site.name]);
        }
        _ => degrade(world, kind, draw, &living)?,
    };
    told(world, kind, &met);
    pause(world, lasts).await;
    world.router.change_where(|_, _| true, |shape| *shape = world.base.clone());
    world.history.event("network healed", &json!(kind));
    Some(met)
}

fn told(world: &World, kind: &str, met: &[&str]) {
    world.history.event("network harmed", &json!([kind, met]));
}

fn cut_off(world: &World, sites: &[&Site]) -> Vec<&'static str> {
    let side: BTreeSet<usize> = sites.iter().map(|site| site.number).collect();
    world.router.change_where(|from, to| side.contains(&from) != side.contains(&to), |shape| shape.up = false);
    sites.iter().map(|site| site.name).collect()
}

/// One to three pairs.
fn partial(draw: &mut Draw, living: &[&Site]) -> BTreeSet<(usize, usize)> {
    let pairs = 1 + draw.below(3);
    let drawn = (0..pairs).filter_map(|_| {
        let (a, b) = (draw.pick(living)?.number, draw.pick(living)?.number);
        (a != b).then_some((a.min(b), a.max(b)))
    });
    drawn.collect()
}

async fn flap(world: &World, draw: &mut Draw, site: usize, lasts: Duration) {
    let (mut left, mut up) = (lasts, false);
    while !left.is_zero() {
        world.router.change_where(|from, to| from == site || to == site, |shape| shape.up = up);
        let turn = Duration::from_millis(draw.within(FLAP_MS)).min(left);
        if !pause(world, turn).await {
            return;
        }
        left -= turn;
        up = !up;
    }
}

/// Worse lines, of everybody or of one site.
fn degrade(world: &World, kind: &str, draw: &mut Draw, living: &[&Site]) -> Option<Vec<&'static str>> {
    let (site, everybody) = (living.first()?, draw.chance(0.4));
    let worse = match kind {
        "delay" => Shape {
            delay: Duration::from_millis(draw.within(50..250)),
            jitter: Duration::from_millis(draw.within(5..80)),
            ..world.base.clone()
        },
        #[expect(clippy::cast_precision_loss, reason = "a small number")]
        "loss" => Shape { loss: draw.within(2..20) as f64 / 100.0, ..world.base.clone() },
        "rate" => Shape { rate: Some(draw.within(1..6) * 1_000_000), queue: 32 << 10, ..world.base.clone() },
        _ => return None,
    };
    let is_met = |from, to| everybody || from == site.number || to == site.number;
    world.router.change_where(is_met, |shape| *shape = worse.clone());
    let met = living.iter().take(if everybody { living.len() } else { 1 });
    Some(met.map(|site| site.name).collect())
}
