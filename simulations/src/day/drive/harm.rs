//! The scenario's failures, done to the mesh, and a seed's random faults beside them.

use std::sync::Arc;
use std::time::Duration;

use super::stage::Stage;
use super::wires;
use crate::day::HOUR_MS;
use crate::day::scenario::{Harm, Scenario, Turn};
use crate::disk::Ending;
use crate::nemesis;

/// Does what the scenario says until its last failure is over, and random faults for `hours`.
pub(super) async fn run(stage: Arc<Stage>, scenario: Scenario, hours: u64) {
    let until = stage.cluster.world.now() + Duration::from_millis(hours * HOUR_MS);
    let random = maillage_host::spawn(nemesis::run(Arc::clone(&stage.cluster), until));
    for turn in scenario.turns() {
        stage.sleep_until(turn.at_ms).await;
        stage.cluster.world.event(0, format_args!("{turn:?}"));
        act(&stage, turn);
    }
    // A panic in it is a violation already.
    let _ = random.await;
}

fn act(stage: &Stage, Turn { begins, harm, .. }: Turn) {
    // Before its nodes: who hears of a failure finds it done.
    stage.turn(harm, begins);
    match harm {
        Harm::CentreLost(centre) => power(stage, wires::slot(centre), begins),
        Harm::CloudLost => power(stage, wires::cloud(&stage.day), begins),
        Harm::CentreCut(centre) => links(stage, |slot| slot == wires::slot(centre), begins),
        Harm::TerritoryCut(territory) => {
            links(stage, |slot| wires::territory(&stage.day, slot) == territory.0, begins);
        }
    }
}

fn power(stage: &Stage, slot: u32, fails: bool) {
    if fails {
        stage.cluster.hold_down(slot);
        stage.cluster.stop(slot, Ending::PowerCut, "by the scenario");
        stage.cluster.world.sometimes("a site was lost for hours");
    } else {
        stage.cluster.let_up(slot);
    }
}

/// Cuts, or mends, all links between those inside and the others.
fn links(stage: &Stage, is_inside: impl Fn(u32) -> bool, fail: bool) {
    let fabric = &stage.cluster.fabric;
    let change = |from: u32, to: u32| if fail { fabric.cut(from, to) } else { fabric.mend(from, to) };
    let (inside, outside): (Vec<u32>, Vec<u32>) = stage.cluster.slots().partition(|slot| is_inside(*slot));
    for (a, b) in inside.iter().flat_map(|a| outside.iter().map(move |b| (*a, *b))) {
        change(a, b);
        change(b, a);
    }
    stage.cluster.world.sometimes(if fail { "a region was cut off" } else { "a region's links came back" });
}
