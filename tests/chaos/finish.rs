//! The end of a run: faults are undone, everything must finish within a bound, and what is there then is
//! compared with what clients were told.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::PoisonError;
use std::time::Duration;

use maillage_tests::exams::replicated;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::checks::finality::Sent;
use crate::checks::{Exam, Exams, claims, finality, logs, tokens};
use crate::history::Violation;
use crate::hospital::copies;
use crate::images::{Fetched, fetch};
use crate::nemesis;
use crate::site::Site;
use crate::world::{Phase, World};

/// Everything must be finished so long after the last fault: elections, sessions, copies after their
/// grace, and readers who read at their pace, on a slow machine.
pub(crate) const FINISH_WITHIN: Duration = Duration::from_secs(180);
/// An answer while nothing is wrong any more.
const ANSWER: Duration = Duration::from_secs(20);
/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// Copies that the mesh keeps.
const COPIES: usize = 3;
const LIVENESS: &str = "after the faults everything finishes";
/// Nothing was asked any more, so nothing can have come in between.
const REPLICAS: &str = "replicas agree";

/// Undoes every fault.
pub(crate) async fn heal(world: &World) {
    world.router.change_where(|_, _| true, |shape| *shape = world.base.clone());
    for site in world.living() {
        let _turn = site.turn.lock().await;
        let _ = site.set_clock(0);
        site.empty();
        site.signal(Signal::CONT);
        if !site.is_running() {
            let _ = site.start().await;
        }
    }
    let lost = world.sites.iter().filter(|site| site.is_lost()).count();
    let absent: Vec<&Site> = world.sites[world.founders..].iter().filter(|site| site.is_absent()).collect();
    let joined = world.sites.len() - world.founders - absent.len();
    for spare in absent.into_iter().take(lost.saturating_sub(joined)) {
        nemesis::replace(world, spare).await;
    }
    world.history.event("healed", &Value::Null);
}

/// Waits until everything is read and safe; what is not in time is a violation.
pub(crate) async fn settle(world: &World) {
    wait_for(world, async || unfinished(world).await).await;
}

/// Waits until all sites have applied the same. Everybody must have stopped asking: even a claim of
/// nothing is an entry of the log.
pub(crate) async fn converge(world: &World) {
    wait_for(world, async || diverging(world).await).await;
}

async fn wait_for(world: &World, look: impl AsyncFn() -> Option<String>) {
    let (since, mut said) = (Instant::now(), None);
    loop {
        let Some(what) = look().await else { return };
        if said.as_ref() != Some(&what) {
            world.history.event("looks at what was unfinished", &json!(what));
        }
        if since.elapsed() > FINISH_WITHIN {
            world.history.violation(Violation::new(LIVENESS, what));
            return;
        }
        said = Some(what);
        sleep(LOOK).await;
    }
}

/// The first thing found that is not finished yet.
async fn unfinished(world: &World) -> Option<String> {
    let living = world.living();
    for site in &living {
        let Some(status) = site.get(ANSWER, "/api/v1/status?fresh=true").await else {
            return Some(format!("{} gives no fresh status", site.name));
        };
        for state in ["requested", "receiving", "waiting", "claimed"] {
            let count = &status["queue"][state];
            if *count != json!(0) {
                return Some(format!("{count} exams are {state} at {}", site.name));
            }
        }
    }
    let Some(site) = living.first() else { return Some("no site lives".to_owned()) };
    let wanted = COPIES.min(living.len());
    for case in world.cases() {
        let sent = case.acknowledged.lock().unwrap_or_else(PoisonError::into_inner).len();
        if sent > 0 {
            match copies(world, site, &case).await {
                Some(copies) if copies >= wanted => {}
                found => return Some(format!("study {} has {found:?} copies of {wanted}", case.slices.study)),
            }
        }
    }
    None
}

/// Where the sites are, if not at the same.
async fn diverging(world: &World) -> Option<String> {
    let mut applied = BTreeMap::new();
    for site in world.living() {
        let Some(status) = site.get(ANSWER, "/api/v1/status?fresh=true").await else {
            return Some(format!("{} gives no fresh status", site.name));
        };
        applied.insert(site.name, (status["applied"].as_u64(), status["committed"].as_u64()));
    }
    let first = applied.values().next();
    let same = applied.values().all(|state| Some(state) == first);
    (!same).then(|| format!("sites have not applied the same: {applied:?}"))
}

/// Compares what is there with what clients were told. Everybody must have stopped.
pub(crate) async fn check(world: &World) -> usize {
    debug_assert!(world.phase() == Phase::Over);
    let (ops, sent) = (world.history.ops(), sent(world));
    tokens::check(&ops).into_iter().for_each(|violation| world.history.violation(violation));
    let (mut undecided, mut first) = (0, None);
    for site in world.living() {
        let Some((exams, shown)) = exams(site).await else {
            world.history.violation(Violation::new(LIVENESS, format!("{} does not show its exams", site.name)));
            continue;
        };
        let found = finality::check(site.name, &ops, &exams, &sent);
        found.into_iter().for_each(|violation| world.history.violation(violation));
        match &first {
            None => {
                let (found, hard) = claims::check(&ops, &exams);
                found.into_iter().for_each(|violation| world.history.violation(violation));
                undecided = hard;
                first = Some((site.name, shown));
            }
            Some((other, expected)) if *expected != shown => {
                let differing = expected.iter().find(|(id, exam)| shown.get(id) != Some(exam)).map(|(id, _)| id);
                let what = format!("{} and {other} show exams differently, first {differing:?}", site.name);
                world.history.violation(Violation::new(REPLICAS, what));
            }
            Some(_) => {}
        }
    }
    images(world).await;
    for site in &world.sites {
        let log = String::from_utf8_lossy(&fs::read(site.log()).unwrap_or_default()).into_owned();
        logs::check(site.name, &log).into_iter().for_each(|violation| world.history.violation(violation));
    }
    undecided
}

fn sent(world: &World) -> BTreeMap<String, Sent> {
    let cases = world.cases().into_iter().map(|case| {
        let has_images = !case.acknowledged.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
        let sent = Sent { patient: case.patient.clone(), study: case.slices.study.clone(), has_images };
        (case.accession.clone(), sent)
    });
    cases.collect()
}

/// All exams that a site shows, as they are judged and as they are compared between sites.
async fn exams(site: &Site) -> Option<(Exams, BTreeMap<u64, Value>)> {
    let (mut ids, mut after) = (BTreeSet::new(), String::new());
    loop {
        let list = site.get(ANSWER, &format!("/api/v1/exams?limit=1000&fresh=true{after}")).await?;
        ids.extend(list["exams"].as_array()?.iter().filter_map(|exam| exam["id"].as_u64()));
        match list["next"].as_u64() {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    let (mut exams, mut all) = (Exams::new(), BTreeMap::new());
    for id in ids {
        let mut shown = site.get(ANSWER, &format!("/api/v1/exams/{id}")).await?;
        exams.insert(id, Exam::parse(&shown)?);
        for about_the_answer in ["age_ms", "fresh"] {
            shown.as_object_mut()?.remove(about_the_answer);
        }
        all.insert(id, replicated(&shown));
    }
    Some((exams, all))
}

/// Every acknowledged instance, from every site, byte for byte; and every holder holds what it said.
async fn images(world: &World) {
    let sites = world.living().into_iter().map(|site| async move {
        for case in world.cases() {
            if case.acknowledged.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
                continue;
            }
            if let Fetched::Not(why) = fetch(world, site, &case).await {
                let what = format!("study {} cannot be read at {}: {why}", case.slices.study, site.name);
                world.history.violation(Violation::new("every acknowledged image is there", what));
            }
        }
        verify(world, site).await;
    });
    futures::future::join_all(sites).await;
}

/// What a site says that it holds whole, it reads and hashes whole.
async fn verify(world: &World, site: &Site) {
    for case in world.cases() {
        let study = &case.slices.study;
        let held = site.get(ANSWER, &format!("/api/v1/studies/{study}")).await;
        if held.is_none_or(|study| study["images_here"] != json!(true)) {
            continue;
        }
        let path = format!("/api/v1/studies/{study}/verify");
        let answer = site.http(ANSWER, hyper::Method::POST, path, Vec::new(), String::new()).await;
        let report: Option<Value> = answer.ok().and_then(|answer| serde_json::from_slice(&answer.body).ok());
        if report.as_ref().is_none_or(|report| report["complete"] != json!(true)) {
            let what = format!("{} says that it holds {study}: {report:?}", site.name);
            world.history.violation(Violation::new("a holder holds", what));
        }
    }
}
