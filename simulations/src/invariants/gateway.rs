//! I3, I5, I6 and I9 for a hospital's gateway: what it acknowledged is in its spool until the disks of two zones have it;
//! what it called delivered, its hospital has, durably; it is given nothing of another hospital; and after the faults its
//! spool owes nothing, what left it is nowhere on its disk, and every report of its exams has come or was delivered
//! otherwise.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use maillage_consensus::command::Command;
use maillage_consensus::exam::{Exam, Report};
use maillage_consensus::ids::ExamId;
use maillage_consensus::{Outcome, View};
use serde_json::Value;

use crate::cluster::{Cluster, Running};
use crate::disk::Ending;
use crate::durable;
use crate::gateway::Gatehouse;
use crate::invariants::commitments;
use crate::invariants::instances::Acknowledged;
use crate::rng::Rng;
use crate::workload::hospital;
use crate::world::{HARNESS, World, lock};

/// Acknowledged instances looked at each time: the newest, and some others.
const NEWEST: usize = 20;
const OTHERS: usize = 10;
/// How long after the last work the spool may owe something: as long as copies may take to be made …
const SENT: Duration = Duration::from_secs(300);
/// … or, where a centre's disk rots, until it is sent again to one that has it no more.
const SENT_AGAIN: Duration = Duration::from_secs(900);
/// … and a report may be on its way.
const DELIVERED: Duration = Duration::from_secs(60);
/// What has left the spool is overwritten by then, or at the next start at the latest.
const WIPED: Duration = Duration::from_secs(60);
/// Bytes at the end of what is stored of an instance by which the disk is searched for it: of its pixels, which no other has.
const MARK_BYTES: usize = 192;
/// What stands for what cannot be read yet.
const UNREADABLE: &str = "what cannot be read yet";
/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// Where a gateway puts reports.
const INBOX: &str = "inbox";

/// See the module.
pub(crate) struct Gateway {
    world: Arc<World>,
    rng: Mutex<Rng>,
    /// The end of what was stored of instances when they were seen in the spool.
    marks: Mutex<BTreeMap<String, Bytes>>,
    /// Instances that were seen to have left the spool.
    gone: Mutex<BTreeSet<String>>,
    /// Places in the log of deliveries that were looked at.
    seen: Mutex<BTreeSet<u64>>,
}

/// The file of a report.
fn file_of(exam: ExamId, report: u32) -> String {
    format!("exam-{exam}-report-{report}.json")
}

impl Gateway {
    pub(crate) fn new(world: Arc<World>, seed: u64) -> Self {
        let rng = Mutex::new(Rng::stream(seed, "spool"));
        Self { world, rng, marks: Mutex::default(), gone: Mutex::default(), seen: Mutex::default() }
    }

    /// Looks, as the gateway starts, whether what it acknowledged is there, bytes and all, or safe in the mesh.
    pub(crate) async fn check_start(&self, cluster: &Cluster, gatehouse: &Gatehouse) {
        let wanted = self.drawn(cluster, gatehouse.owner.slot);
        let mut kept = Vec::new();
        for instance in wanted {
            if self.is_in_spool(cluster, gatehouse, &instance).await {
                kept.push(instance);
            }
        }
        // What was dropped since is in the mesh, or the next look says so.
        cluster.watch.instances.check_spooled(gatehouse, &kept).await;
    }

    /// Looks whether what is no more in the spool is on the disks of two zones.
    pub(crate) async fn check(&self, cluster: &Cluster) {
        let Some(gatehouse) = cluster.gatehouse() else { return };
        for instance in self.drawn(cluster, gatehouse.owner.slot) {
            self.is_in_spool(cluster, &gatehouse, &instance).await;
        }
    }

    /// Looks at all of it, once everything is up.
    pub(crate) async fn check_all(&self, cluster: &Cluster) {
        let Some(gatehouse) = cluster.gatehouse() else { return };
        for instance in self.left(cluster, gatehouse.owner.slot) {
            self.is_in_spool(cluster, &gatehouse, &instance).await;
        }
    }

    /// Whether an instance was seen to have left the spool.
    pub(crate) fn saw_leave(&self, sop_instance: &str) -> bool {
        lock(&self.gone).contains(sop_instance)
    }

    /// What was acknowledged, but for what was seen to be gone.
    fn left(&self, cluster: &Cluster, slot: u32) -> Vec<Acknowledged> {
        let mut known = cluster.watch.instances.acknowledged_at(slot);
        let gone = lock(&self.gone);
        known.retain(|instance| !gone.contains(&instance.sop_instance));
        known
    }

    fn drawn(&self, cluster: &Cluster, slot: u32) -> Vec<Acknowledged> {
        let mut known = self.left(cluster, slot);
        let mut newest = known.split_off(known.len().saturating_sub(NEWEST));
        lock(&self.rng).shuffle(&mut known);
        known.truncate(OTHERS);
        newest.append(&mut known);
        newest
    }

    /// Whether an instance is in the spool; a violation when it is neither there nor in two zones.
    async fn is_in_spool(&self, cluster: &Cluster, gatehouse: &Gatehouse, instance: &Acknowledged) -> bool {
        match gatehouse.store.instance(&instance.sop_instance).await {
            Ok(Some(_)) => {
                self.remember(gatehouse, &instance.sop_instance).await;
                return true;
            }
            Ok(None) if self.world.is_alive(gatehouse.owner) => {}
            _ => return false,
        }
        // Whoever has it may be down; whether it is there at all is seen in the end, where it is retrieved.
        let Some(is_safe) = commitments::is_safe(cluster, &instance.study, &instance.sop_instance).await else {
            return false;
        };
        self.world.sometimes("an instance left the spool");
        lock(&self.gone).insert(instance.sop_instance.clone());
        if !is_safe {
            let detail = format!("{} left the spool of {:?} and is not safe", instance.sop_instance, gatehouse.owner);
            self.world.violation("I5", detail);
        }
        false
    }

    /// Remembers how an instance is stored that is in the spool.
    async fn remember(&self, gatehouse: &Gatehouse, sop_instance: &str) {
        if lock(&self.marks).contains_key(sop_instance) {
            return;
        }
        let stored = durable::of_instance(&gatehouse.store, sop_instance).await;
        if let Some(last) = stored.and_then(|stored| stored.into_iter().next_back()) {
            let mark = last.slice(last.len().saturating_sub(MARK_BYTES)..);
            lock(&self.marks).insert(sop_instance.to_owned(), mark);
        }
    }

    /// By what the disk is searched for that has left the spool, and has not come again since. None while that is not known.
    async fn of_what_left(&self, gatehouse: &Gatehouse) -> Option<BTreeSet<Bytes>> {
        let left: Vec<(String, Bytes)> = {
            let (marks, gone) = (lock(&self.marks), lock(&self.gone));
            let left = marks.iter().filter(|(sop_instance, _)| gone.contains(*sop_instance));
            left.map(|(sop_instance, mark)| (sop_instance.clone(), mark.clone())).collect()
        };
        let mut searched = BTreeSet::new();
        for (sop_instance, mark) in left {
            if gatehouse.store.instance(&sop_instance).await.ok()?.is_none() {
                searched.insert(mark);
            }
        }
        Some(searched)
    }

    /// A replica applied a command: if a gateway had a report delivered, its inbox is looked at.
    pub(crate) fn applied(&self, cluster: &Arc<Cluster>, index: u64, command: &Command, outcome: &Outcome) {
        let Command::Deliver { exam, report, to } = command else { return };
        let is_news = matches!(outcome, Outcome::Done) && to.as_str().starts_with("gateway ");
        if !is_news || !lock(&self.seen).insert(index) {
            return;
        }
        self.world.sometimes("a gateway had a report delivered");
        let (watch, cluster, exam, report) = (Arc::clone(&cluster.watch), Arc::clone(cluster), *exam, *report);
        drop(self.world.spawn_on(HARNESS, async move { watch.gateway.is_in_inbox(&cluster, exam, report) }));
    }

    /// Whether a report is durably in the inbox, as it was signed.
    fn is_in_inbox(&self, cluster: &Cluster, exam: ExamId, report: u32) {
        let (Some(slot), Some(signed)) = (cluster.gateway_slot(), signed(cluster, exam, report)) else { return };
        let path = format!("{INBOX}/{}", file_of(exam, report));
        if !cluster.disks.keeps_in(slot, &path, &[signed.text.as_str().to_owned().into()]) {
            let detail = format!("report {report} of exam {exam} was called delivered, and is not in the inbox");
            self.world.violation("I3", detail);
        }
    }
}

/// A report as some node that is up shows it.
fn signed(cluster: &Cluster, exam: ExamId, number: u32) -> Option<Report> {
    let of = |running: Running| View::new(&*running.group.reader()).reports(exam).ok();
    cluster.all_running().into_iter().filter_map(of).flatten().find(|report| report.number == number)
}

/// Waits until the spool owes nothing to the mesh; a violation when that takes too long.
pub(crate) async fn owes_nothing(cluster: &Cluster) {
    let Some(slot) = cluster.gateway_slot() else { return };
    let start = cluster.world.now();
    let limit = if cluster.rotten().is_some() { SENT_AGAIN } else { SENT } + cluster.plan.grace;
    loop {
        let owed = cluster.gatehouse().map(|gatehouse| gatehouse.node.unsafe_instances());
        if owed == Some(0) {
            return;
        }
        if cluster.world.now() - start > limit {
            let all_is_sent = cluster.gatehouse().is_some_and(|gatehouse| gatehouse.node.unsent_instances() == 0);
            if all_is_sent && !cluster.can_be_safe(slot) {
                return cluster.world.sometimes("the layout left a gateway's images no second zone");
            }
            let detail = format!("{limit:?} after the last work, the gateway owes {owed:?} instances");
            return cluster.world.violation("I9", detail);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Waits until nothing of what has left the spool is on the gateway's disk, which may take a start; a violation when it
/// takes more.
pub(crate) async fn is_wiped(cluster: &Cluster) {
    let Some(slot) = cluster.gateway_slot() else { return };
    let mut wait = Wait::new(cluster, slot, "what left its spool");
    loop {
        let searched = match cluster.gatehouse() {
            Some(gatehouse) => cluster.watch.gateway.of_what_left(&gatehouse).await,
            None => None,
        };
        let left = match &searched {
            Some(marks) => cluster.disks.find(slot, marks),
            None => Some(UNREADABLE.to_owned()),
        };
        let Some(path) = left else {
            if searched.is_some_and(|marks| !marks.is_empty()) {
                cluster.world.sometimes("a gateway's disk was searched for what left its spool");
            }
            return;
        };
        if !wait.goes_on(&path).await {
            return;
        }
    }
}

/// Waits until the gateway has none of these instances, which were purged. Of what is safe it asks every hour whether it was,
/// and at its start.
pub(crate) async fn has_none_of(cluster: &Cluster, purged: &BTreeSet<String>) {
    let Some(slot) = cluster.gateway_slot().filter(|_| !purged.is_empty()) else { return };
    let mut wait = Wait::new(cluster, slot, "what was purged");
    loop {
        let left = match cluster.gatehouse() {
            Some(gatehouse) => first_of(&gatehouse, purged).await,
            None => Some(UNREADABLE),
        };
        let Some(left) = left else { return cluster.world.sometimes("a gateway dropped what was purged") };
        if !wait.goes_on(left).await {
            return;
        }
    }
}

/// The first of some instances that is in the spool.
async fn first_of<'a>(gatehouse: &Gatehouse, instances: &'a BTreeSet<String>) -> Option<&'a str> {
    for sop_instance in instances {
        match gatehouse.store.instance(sop_instance).await {
            Ok(None) => {}
            Ok(Some(_)) => return Some(sop_instance),
            Err(_) => return Some(UNREADABLE),
        }
    }
    None
}

/// A wait for the gateway to be rid of something, which may take a start.
struct Wait<'a> {
    cluster: &'a Cluster,
    slot: u32,
    what: &'static str,
    until: Duration,
    is_started_again: bool,
}

impl<'a> Wait<'a> {
    fn new(cluster: &'a Cluster, slot: u32, what: &'static str) -> Self {
        Self { cluster, slot, what, until: cluster.world.now() + WIPED, is_started_again: false }
    }

    /// Waits a while longer for what is `left`; `false` when that is too long, which is a violation.
    async fn goes_on(&mut self, left: &str) -> bool {
        let world = &self.cluster.world;
        if world.now() > self.until && self.is_started_again {
            world.violation("I6", format!("{WIPED:?} after its start, the gateway has {}: {left}", self.what));
            return false;
        }
        if world.now() > self.until {
            world.sometimes("a gateway was started again to be rid of something");
            self.cluster.stop(self.slot, Ending::Killed, "to be started again");
            (self.until, self.is_started_again) = (world.now() + WIPED, true);
        }
        tokio::time::sleep(LOOK).await;
        true
    }
}

/// Waits until every report of the gateway's hospital has been delivered, and looks at all of the inbox.
pub(crate) async fn reports_are_delivered(cluster: &Cluster) {
    let Some(slot) = cluster.gateway_slot() else { return };
    let start = cluster.world.now();
    loop {
        let open: Vec<ExamId> =
            exams(cluster, slot).iter().filter(|(exam, _)| is_owed(exam)).map(|(exam, _)| exam.id).collect();
        if open.is_empty() {
            break;
        }
        if cluster.world.now() - start > DELIVERED {
            let detail = format!("{DELIVERED:?} after the last work, reports of exams {open:?} are not delivered");
            return cluster.world.violation("I9", detail);
        }
        tokio::time::sleep(LOOK).await;
    }
    let Some(gatehouse) = cluster.gatehouse() else { return };
    let exams = exams(cluster, slot);
    for name in gatehouse.disk.list(INBOX).await.unwrap_or_default() {
        let Ok(bytes) = gatehouse.disk.read(&format!("{INBOX}/{name}")).await else { continue };
        let document: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let is_of = |(exam, report): (&Exam, &Report)| {
            name == file_of(exam.id, report.number)
                && document["exam"] == exam.id.0
                && document["report"]["text"] == report.text.as_str()
        };
        let mut reports = exams.iter().flat_map(|(exam, reports)| reports.iter().map(move |report| (exam, report)));
        if !reports.any(is_of) {
            cluster.world.violation("I8", format!("{name} in the inbox is no report of the gateway's hospital"));
        }
        cluster.world.sometimes("a report came into a gateway's inbox");
    }
}

/// The exams of the gateway's hospital and their reports that count, as a node shows them.
fn exams(cluster: &Cluster, slot: u32) -> Vec<(Exam, Vec<Report>)> {
    let Some(running) = cluster.all_running().into_iter().next() else { return Vec::new() };
    let engine = running.group.reader();
    let view = View::new(&*engine);
    let known = cluster.history.exams().into_iter().filter_map(|exam| view.exam(ExamId(exam)).ok().flatten());
    let theirs = known.filter(|exam| exam.request.hospital == hospital::name(slot));
    let with_reports = |exam: Exam| {
        let mut reports = view.reports(exam.id).unwrap_or_default();
        reports.retain(|report| !report.stale);
        (exam, reports)
    };
    theirs.map(with_reports).collect()
}

/// Whether a report stands that nobody has.
fn is_owed(exam: &Exam) -> bool {
    exam.course.report.is_some() && exam.course.delivered_at.is_none()
}
