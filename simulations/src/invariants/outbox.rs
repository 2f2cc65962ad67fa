//! Outboxes: what a node said that it keeps for the mesh comes there once, or awaits a person where it was
//! kept; and a second read is seen to be one, and stands in nobody's place.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use maillage_consensus::View;
use maillage_consensus::exam::{ExamState, Report, ReportKind};
use maillage_consensus::ids::ExamId;
use serde_json::Value;

use crate::cluster::{Cluster, Running};
use crate::rng::Rng;
use crate::workload::{http, is_apart};
use crate::world::{World, lock};

/// Facts of each kind looked at on each node each time, besides the last look at all.
const SAMPLE: usize = 25;
/// From the last fault until the outboxes are empty: an election, the longest pause between two tries of a
/// sender (15 s), and the reading of what was taken.
const EMPTY: Duration = Duration::from_secs(120);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// How long a node may take to show its outbox.
const SHOWN: Duration = Duration::from_secs(10);

/// A text that a node took down.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Kept {
    slot: u32,
    exam: u64,
    text: String,
}

/// A report beside that of whoever read the exam in the mesh.
#[derive(Debug, Clone, Copy)]
struct Second {
    exam: u64,
    number: u32,
    index: u64,
}

#[derive(Default)]
struct Facts {
    kept: Vec<Kept>,
    /// Exams taken by break glass: where, and under which entry.
    taken: BTreeMap<String, (u32, u64)>,
    seconds: Vec<Second>,
    /// Indexes at which break glass was decided.
    decided: BTreeSet<u64>,
    rng: Option<Rng>,
}

/// See the module.
pub(crate) struct Outbox {
    world: Arc<World>,
    facts: Mutex<Facts>,
}

impl Outbox {
    pub(crate) fn new(world: Arc<World>, seed: u64) -> Self {
        let facts = Facts { rng: Some(Rng::stream(seed, "outbox")), ..Facts::default() };
        Self { world, facts: Mutex::new(facts) }
    }

    /// The node of `slot` said that it keeps a text.
    pub(crate) fn kept(&self, slot: u32, exam: u64, text: &str) {
        let kept = Kept { slot, exam, text: text.to_owned() };
        let mut facts = lock(&self.facts);
        if !facts.kept.contains(&kept) {
            self.world.sometimes("a text was kept for later without a quorum");
            facts.kept.push(kept);
        }
    }

    /// … that an exam is taken by break glass.
    pub(crate) fn taken(&self, slot: u32, exam: u64, entry: &str) {
        self.world.sometimes("an exam was taken by break glass");
        lock(&self.facts).taken.insert(entry.to_owned(), (slot, exam));
    }

    /// The machine of `slot` is lost, and its outbox with it.
    pub(crate) fn forget(&self, slot: u32) {
        let mut facts = lock(&self.facts);
        facts.kept.retain(|kept| kept.slot != slot);
        facts.taken.retain(|_, (at, _)| *at != slot);
    }

    /// The mesh decided that the exam was read twice, and keeps the second report under a number.
    pub(crate) fn second_read(&self, exam: u64, number: Option<u32>, index: u64) {
        let mut facts = lock(&self.facts);
        // Each replica decides it.
        if facts.decided.insert(index) {
            self.world.sometimes("an exam was read twice");
            facts.seconds.extend(number.map(|number| Second { exam, number, index }));
        }
    }

    /// Looks at what a node shows; with `all`, of a node that has applied everything, at all of it.
    pub(crate) fn check(&self, running: &Running, all: bool) {
        let applied = if all { u64::MAX } else { running.group.applied() };
        let engine = running.group.reader();
        let view = View::new(&*engine);
        let (kept, seconds) = self.sample(all);
        for kept in kept {
            let times = times(&view, &kept);
            if times > 1 {
                let detail = format!("{:?}: exam {} has {times} times {:?}", running.owner, kept.exam, kept.text);
                self.world.violation("outbox", detail);
            }
        }
        for second in seconds.iter().filter(|second| second.index <= applied) {
            self.check_second(running, &view, *second);
        }
    }

    fn sample(&self, all: bool) -> (Vec<Kept>, Vec<Second>) {
        let mut facts = lock(&self.facts);
        let mut rng = facts.rng.take().unwrap_or_else(|| Rng::new(0));
        let (mut kept, mut seconds) = (facts.kept.clone(), facts.seconds.clone());
        if !all {
            rng.shuffle(&mut kept);
            rng.shuffle(&mut seconds);
            kept.truncate(SAMPLE);
            seconds.truncate(SAMPLE);
        }
        facts.rng = Some(rng);
        (kept, seconds)
    }

    fn check_second(&self, running: &Running, view: &View<'_>, second: Second) {
        let (id, number) = (ExamId(second.exam), second.number);
        let Ok(Some(exam)) = view.exam(id) else { return };
        let reports = view.reports(id).unwrap_or_default();
        let is_kept = reports.iter().any(|report| report.number == number && counts_as(report, ReportKind::SecondRead));
        // Of an exam that is off, or was when its images went, nobody waits for a report.
        let is_read = reports.iter().any(|report| counts_as(report, ReportKind::Final));
        let was_off = exam.state == ExamState::Purged && !is_read;
        let is_marked = exam.course.read_twice || exam.state.is_off() || was_off;
        if !is_kept || !is_marked || exam.course.report == Some(number) {
            let detail = format!(
                "{:?}: exam {id}, second read {number}: kept {is_kept}, marked {is_marked}, standing {:?}",
                running.owner, exam.course.report
            );
            self.world.violation("outbox", detail);
        }
    }

    /// Whether nothing that was kept is lost, by a node that has applied everything and by those that keep.
    pub(crate) async fn check_all(&self, cluster: &Cluster) {
        let mut shown: BTreeMap<u32, Vec<Value>> = BTreeMap::new();
        for running in cluster.all_running() {
            if let Some(entries) = entries(cluster, &running).await {
                shown.insert(running.owner.slot, entries);
            }
        }
        let Some(running) = cluster.newest() else { return };
        let engine = running.group.reader();
        let view = View::new(&*engine);
        let (kept, taken) = {
            let facts = lock(&self.facts);
            (facts.kept.clone(), facts.taken.clone())
        };
        for kept in kept {
            let here = shown.get(&kept.slot).into_iter().flatten();
            let awaits = |entry: &Value| entry["text"] == kept.text.as_str() && entry["needs_a_person"] == true;
            if times(&view, &kept) == 0 && !here.clone().any(awaits) {
                let detail = format!("slot {} lost the text {:?} of exam {}", kept.slot, kept.text, kept.exam);
                self.world.violation("I3", detail);
            }
        }
        for (entry, (slot, exam)) in taken {
            let here = shown.get(&slot).into_iter().flatten();
            if shown.contains_key(&slot) && !here.clone().any(|known| known["id"] == entry.as_str()) {
                let detail = format!("slot {slot} forgot that exam {exam} was taken by break glass, as {entry}");
                self.world.violation("I3", detail);
            }
        }
    }
}

fn counts_as(report: &Report, kind: ReportKind) -> bool {
    report.signed.kind == kind && !report.stale
}

/// How often a text is among an exam's reports.
fn times(view: &View<'_>, kept: &Kept) -> usize {
    let reports = view.reports(ExamId(kept.exam)).unwrap_or_default();
    reports.iter().filter(|report| report.text.as_str() == kept.text).count()
}

/// What a node's outbox shows to who administers it, with the proofs of its claims.
pub(crate) async fn entries(cluster: &Cluster, running: &Running) -> Option<Vec<Value>> {
    let request = http::request(axum::http::Method::GET, "/api/v1/outbox", None, None);
    let answered = http::ask_on_socket(cluster, running, SHOWN, request).await?;
    answered.json()["entries"].as_array().cloned()
}

/// Waits until every outbox is sent, and what was read by break glass is reported; a violation when that
/// takes too long.
pub(crate) async fn all_are_sent(cluster: &Arc<Cluster>) {
    let start = cluster.world.now();
    loop {
        let mut left = Vec::new();
        for slot in cluster.slots() {
            let Some(running) = cluster.running(slot) else {
                left.push(format!("slot {slot} is down"));
                continue;
            };
            match entries(cluster, &running).await {
                Some(entries) => left.extend(
                    entries
                        .iter()
                        .filter(|entry| entry["state"] == "queued" || entry["state"] == "held")
                        .map(|entry| format!("slot {slot} still has {entry}")),
                ),
                None => left.push(format!("slot {slot} does not show its outbox")),
            }
            let engine = running.group.reader();
            let held = View::new(&*engine).claimed(usize::MAX).unwrap_or_default();
            let apart = held.iter().filter(|exam| exam.claim.as_ref().is_some_and(|claim| is_apart(&claim.user)));
            left.extend(apart.map(|exam| format!("slot {slot} shows exam {} in hand", exam.id)));
        }
        if left.is_empty() {
            return;
        }
        if cluster.world.now() - start > EMPTY {
            let detail = format!("{EMPTY:?} after the last fault: {}", left.join("; "));
            cluster.world.violation("I9", detail);
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
}
