//! I6: after a purge and a heal no disk holds anything of it, whoever was away, and no node shows it; and what came
//! after the purge is there (which is I3's to see). What nobody asks to be purged goes no sooner than its time is over, by
//! the state's clock; and it does go (I9). Nothing goes under a legal hold, whoever asks for it.
//!
//! When that is, and what is held, is told by what the archives of the workload ask for: not by what the mesh makes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::http::{Method, StatusCode};
use bytes::Bytes;
use maillage_consensus::command::{Command, Envelope, UnixMillisField};
use maillage_consensus::exam::{Exam, ExamState};
use maillage_consensus::ids::{ExamId, KeyId, SiteId};
use maillage_consensus::study_key::KeptKey;
use maillage_consensus::transaction::Transaction;
use maillage_consensus::{Outcome, View};
use maillage_store::Hash;

use crate::cluster::{Cluster, Running};
use crate::invariants::gateway;
use crate::invariants::giving::Overlay;
use crate::workload::dicom::parts;
use crate::workload::{http, purging};
use crate::world::{World, lock};

/// How long after the last work every site must have confirmed every purge.
const CONFIRMED: Duration = Duration::from_secs(120);
/// How long after the last work all images must be gone whose time ends: what is left of it, an election, and half a
/// minute in which the leader looks through all exams …
const OVER: Duration = Duration::from_secs(120);
/// … or longer where there are more than it looks at in that time.
const LOOKED_AT_A_SECOND: u64 = 128;
/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// A viewer that hears nothing for so long gives up.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is stored of a study before its purge.
#[derive(Debug, Clone, Default)]
pub(crate) struct Kept {
    pub(crate) study: String,
    /// SOP Instance UIDs.
    pub(crate) instances: BTreeSet<String>,
    /// Of what came through a hospital's gateway, which knew the mesh's time since, the sites that had received it, with each
    /// instance. Another may have been sent the same, and publish it later: that is none of the purged exam's.
    pub(crate) through_a_gateway_to: BTreeSet<(u64, String)>,
    /// Chunks and manifests.
    pub(crate) objects: Vec<Hash>,
    /// Bytes that are stored of them and nowhere else, as they are in packs and as they came.
    pub(crate) marks: Vec<Bytes>,
    /// Under which they are sealed.
    pub(crate) keys: Vec<KeyId>,
}

/// The exam whose images a command ends because their time is over.
pub(crate) fn ends_retention_of(command: &Command) -> Option<ExamId> {
    match command {
        Command::Purge { exam, reason, .. } if reason.is_empty() => Some(*exam),
        _ => None,
    }
}

/// When the images of an exam are to go; none while they are wanted, and of all but the archives' hospitals: no run is as
/// long as the mesh keeps those.
fn until(exam: &Exam) -> Option<UnixMillisField> {
    let kept_ms = purging::kept_ms(&exam.request.hospital)?;
    let since = match exam.state {
        ExamState::Delivered | ExamState::FollowedUp => exam.ended_at?,
        ExamState::Cancelled | ExamState::Refused => exam.course.images_at?,
        _ => return None,
    };
    Some(UnixMillisField(since.0.saturating_add(kept_ms)))
}

/// Whether the images of an exam are to go, now or later, and nothing keeps them.
fn is_to_go(exam: &Exam) -> bool {
    until(exam).is_some() && exam.course.legal_hold.is_none() && !exam.studies.is_empty()
}

/// Whether a node shows an exam with its images though their time is over.
pub(crate) fn is_kept_beyond(running: &Running, exam: ExamId) -> bool {
    let engine = running.group.reader();
    let view = View::new(&*engine);
    let until = view.exam(exam).ok().flatten().and_then(|exam| until(&exam));
    until.zip(view.clock().ok()).is_some_and(|(until, now)| until <= now)
}

/// An exam whose images are about to go, as it was before, and the state's time.
pub(crate) struct Before {
    exam: Exam,
    now: UnixMillisField,
    /// Whether they go because their time is over, and nobody asked.
    by_itself: bool,
}

impl Before {
    /// None for other commands.
    pub(crate) fn of(transaction: &Transaction<'_>, envelope: &Envelope) -> Option<Self> {
        let Command::Purge { exam, .. } = &envelope.command else { return None };
        let state = Overlay(transaction);
        let view = View::new(&state);
        let exam = view.exam(*exam).ok()??;
        let by_itself = ends_retention_of(&envelope.command).is_some();
        Some(Self { exam, now: view.clock().ok()?.max(envelope.at), by_itself })
    }

    /// Why they must not, if so.
    fn objection(&self) -> Option<String> {
        let Self { exam, now, by_itself } = self;
        if exam.course.legal_hold.is_some() {
            return Some("under a legal hold".to_owned());
        }
        if !by_itself {
            return None;
        }
        match until(exam) {
            Some(until) if until <= *now => None,
            Some(until) => Some(format!("{} ms before their time is over", until.0 - now.0)),
            None => Some(format!("though it is {}, and nobody said that they end now", exam.state)),
        }
    }
}

/// See the module.
pub(crate) struct Purges {
    world: Arc<World>,
    kept: Mutex<BTreeMap<ExamId, Kept>>,
    /// Acknowledged purges, with an index of the log at which they had been applied.
    told: Mutex<BTreeMap<ExamId, u64>>,
    /// Acknowledged legal holds that nobody has asked to end, with their places in the log.
    held: Mutex<BTreeMap<ExamId, u64>>,
    /// Places in the log of purges that were looked at.
    seen: Mutex<BTreeSet<u64>>,
}

impl Purges {
    pub(crate) fn new(world: Arc<World>) -> Self {
        Self { world, kept: Mutex::default(), told: Mutex::default(), held: Mutex::default(), seen: Mutex::default() }
    }

    /// A study that is to be purged later.
    pub(crate) fn keeps(&self, exam: ExamId, kept: Kept) {
        lock(&self.kept).insert(exam, kept);
    }

    /// A client was told that the purge of `exam` is decided, by an answer at `index`.
    pub(crate) fn purged(&self, exam: ExamId, index: u64) {
        lock(&self.told).insert(exam, index);
    }

    /// A client was told that an exam is on legal hold, by the command at `index`.
    pub(crate) fn held(&self, exam: ExamId, index: u64) {
        lock(&self.held).insert(exam, index);
    }

    /// A client is about to ask that the hold ends.
    pub(crate) fn lets_go(&self, exam: ExamId) {
        lock(&self.held).remove(&exam);
    }

    /// A replica applied a purge, before which this was so.
    pub(crate) fn applied(&self, index: u64, before: &Before, outcome: &Outcome) {
        if !matches!(outcome, Outcome::Done) || !lock(&self.seen).insert(index) {
            return;
        }
        if before.by_itself {
            self.world.sometimes("images were purged when their time was over");
        }
        let id = before.exam.id;
        let held = lock(&self.held).get(&id).copied().filter(|held| *held < index);
        let forgotten = held.map(|held| format!("though they were on legal hold since {held}"));
        if let Some(why) = before.objection().or(forgotten) {
            self.world.violation("I6", format!("the images of exam {id} were purged at {index} {why}"));
        }
    }

    /// An acknowledged purge stands on every node that has reached it.
    pub(crate) fn check(&self, running: &Running) {
        let applied = running.group.applied();
        let engine = running.group.reader();
        let view = View::new(&*engine);
        for (exam, index) in lock(&self.told).iter() {
            if *index <= applied && !is_purged(&view, *exam) {
                let detail = format!("{:?}: exam {exam} is not purged, though it was told so", running.owner);
                self.world.violation("I6", detail);
            }
        }
    }

    /// What must be gone, as the node of `running` knows it: also purges whose answer was lost.
    fn gone(&self, running: &Running) -> Vec<Kept> {
        let engine = running.group.reader();
        let view = View::new(&*engine);
        let kept = lock(&self.kept);
        kept.iter().filter(|(exam, _)| is_purged(&view, **exam)).map(|(_, kept)| kept.clone()).collect()
    }
}

fn is_purged(view: &View<'_>, exam: ExamId) -> bool {
    view.exam(exam).ok().flatten().is_some_and(|exam| exam.state == ExamState::Purged)
}

/// Waits until no node shows images that are to go by themselves; a violation when that takes too long.
pub(crate) async fn all_are_over(cluster: &Cluster) {
    let (mut left, mut most): (BTreeSet<ExamId>, usize) = (BTreeSet::new(), 0);
    for running in cluster.all_running() {
        let engine = running.group.reader();
        let exams = View::new(&*engine).exams(None, None, usize::MAX).unwrap_or_default();
        most = most.max(exams.len());
        left.extend(exams.iter().filter(|exam| is_to_go(exam)).map(|exam| exam.id));
    }
    let limit = OVER + Duration::from_secs(u64::try_from(most).unwrap_or(u64::MAX) / LOOKED_AT_A_SECOND);
    let deadline = cluster.world.now() + limit;
    loop {
        let nodes = cluster.all_running();
        left.retain(|exam| nodes.iter().any(|running| shows_what_is_to_go(running, *exam)));
        let Some(exam) = left.first() else { return };
        if cluster.world.now() > deadline {
            let detail = format!("{limit:?} after the last work, the images of exam {exam} are kept beyond their time");
            cluster.world.violation("I9", detail);
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn shows_what_is_to_go(running: &Running, exam: ExamId) -> bool {
    let engine = running.group.reader();
    let exam = View::new(&*engine).exam(exam).ok().flatten();
    exam.is_some_and(|exam| is_to_go(&exam))
}

/// Waits until every site has confirmed every purge, then searches stores, disks and answers.
pub(crate) async fn all_are_gone(cluster: &Cluster) {
    let deadline = cluster.world.now() + CONFIRMED;
    while let Some(pending) = unconfirmed(cluster) {
        if cluster.world.now() > deadline {
            cluster.world.violation("I9", format!("{CONFIRMED:?} after the last work, {pending}"));
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
    gateway::has_none_of(cluster, &gone_from_a_gateway(cluster).await).await;
    for running in cluster.all_running() {
        let gone = cluster.watch.purges.gone(&running);
        if gone.is_empty() {
            continue;
        }
        for kept in &gone {
            opens_no_more(cluster, &running, kept);
            is_not_stored(cluster, &running, kept).await;
            is_not_shown(cluster, &running, kept).await;
        }
        let marks: BTreeSet<Bytes> = gone.into_iter().flat_map(|kept| kept.marks).collect();
        if let Some(path) = cluster.disks.find(running.owner.slot, &marks) {
            cluster.world.violation("I6", format!("{:?} has purged bytes in {path}", running.owner));
        }
        cluster.world.sometimes("a disk was searched for purged images");
    }
}

/// What must be gone that came through a gateway, as any node knows it.
async fn gone_from_a_gateway(cluster: &Cluster) -> BTreeSet<String> {
    let nodes = cluster.all_running();
    let gone = nodes.iter().flat_map(|running| cluster.watch.purges.gone(running));
    let gone = gone.filter(|kept| !kept.through_a_gateway_to.is_empty());
    let mut instances = BTreeMap::new();
    for kept in gone {
        instances.extend(kept.instances.into_iter().map(|instance| (instance, kept.through_a_gateway_to.clone())));
    }
    let mut left = BTreeSet::new();
    for (instance, received) in instances {
        if !is_anothers(cluster, &received, &instance).await {
            left.insert(instance);
        }
    }
    left
}

/// Whether a site has received an instance that is none of those of which it is known, if of any.
async fn is_anothers(cluster: &Cluster, received: &BTreeSet<(u64, String)>, sop_instance: &str) -> bool {
    if received.is_empty() {
        return false;
    }
    for running in cluster.all_running() {
        let is_here = running.store.instance(sop_instance).await.is_ok_and(|listed| listed.is_some());
        if is_here && !received.contains(&(running.site, sop_instance.to_owned())) {
            cluster.world.sometimes("another centre published later what a gateway had sent it, too");
            return true;
        }
    }
    false
}

/// What a site has still to confirm; a machine that is lost with its disk confirms nothing.
fn unconfirmed(cluster: &Cluster) -> Option<String> {
    cluster.all_running().iter().find_map(|running| {
        let engine = running.group.reader();
        let (pending, _) = View::new(&*engine).purges_of(SiteId(running.site), None, 1).ok()?;
        let first = pending.first()?;
        Some(format!("{:?} has not confirmed the purge of exam {}", running.owner, first.exam))
    })
}

/// Copies that were made before the purge, of backups too, open nowhere: no state has their keys.
fn opens_no_more(cluster: &Cluster, running: &Running, kept: &Kept) {
    let engine = running.group.reader();
    let view = View::new(&*engine);
    for id in &kept.keys {
        match view.study_key(*id) {
            Ok(Some(key)) if matches!(key.what, KeptKey::Destroyed { .. }) => {
                cluster.world.sometimes("a key was destroyed")
            }
            Ok(Some(_)) => {
                let detail = format!("{:?} has the key of study {}, which was purged", running.owner, kept.study);
                cluster.world.violation("I6", detail);
            }
            _ => {}
        }
    }
}

async fn is_not_stored(cluster: &Cluster, running: &Running, kept: &Kept) {
    let missing = running.store.missing(&kept.objects).await.unwrap_or_default();
    if missing.len() < kept.objects.len() {
        let left = kept.objects.len() - missing.len();
        let detail = format!("{:?} stores {left} purged objects of study {}", running.owner, kept.study);
        cluster.world.violation("I6", detail);
    }
}

async fn is_not_shown(cluster: &Cluster, running: &Running, kept: &Kept) {
    let request = http::request(Method::GET, &format!("/dicom-web/studies/{}", kept.study), None, None);
    let Some(answered) = http::ask(cluster, running, PATIENCE, request).await else { return };
    if answered.status != StatusCode::OK {
        return;
    }
    let shown = parts(&answered.content_type, &answered.body).unwrap_or_default();
    for (sop_instance, _) in shown.iter().filter(|(shown, _)| kept.instances.contains(shown)) {
        if is_anothers(cluster, &kept.through_a_gateway_to, sop_instance).await {
            continue;
        }
        cluster.world.violation("I6", format!("{:?} shows {sop_instance}, which was purged", running.owner));
    }
}

#[cfg(test)]
mod tests {
    use maillage_consensus::exam::{Course, LegalHold, Patient, Priority, Request, Text8};
    use maillage_consensus::ids::{Line, Name, UidText};

    use super::*;

    const IMAGES_AT: u64 = 1_000;
    const REPORTED_AT: u64 = 9_000;

    fn exam(hospital: &str, state: ExamState) -> Exam {
        let request = Request {
            accession: Line::default(),
            patient: Patient::default(),
            modality: Text8::fitted("CT"),
            description: Line::default(),
            hospital: Line::fitted(hospital),
            physician: Line::default(),
            priority: Priority::Urgent,
            awaits_images: true,
        };
        Exam {
            id: ExamId(7),
            request,
            state,
            added_at: UnixMillisField(IMAGES_AT),
            ready_at: Some(UnixMillisField(IMAGES_AT)),
            due_at: None,
            ended_at: Some(UnixMillisField(REPORTED_AT)),
            unsolicited: None,
            reconciled_into: None,
            studies: vec![UidText::fitted("2.25.911.7")],
            workitem: 1,
            claim: None,
            reports: 0,
            images_after_report: false,
            course: Course { images_at: Some(UnixMillisField(IMAGES_AT)), ..Course::default() },
        }
    }

    fn objection(exam: Exam, now: u64) -> Option<String> {
        Before { exam, now: UnixMillisField(now), by_itself: true }.objection()
    }

    fn on_hold(mut exam: Exam) -> Exam {
        let (reason, user, at) = (Line::fitted("the court"), Name::default(), UnixMillisField(0));
        exam.course.legal_hold = Some(LegalHold { reason, user, at });
        exam
    }

    #[test]
    fn images_go_a_time_after_the_report_or_where_there_is_to_be_none_after_they_came() {
        let kept_ms = purging::kept_ms(&Line::fitted("archive 1")).expect("an archive's");
        for (state, since) in [(ExamState::Delivered, REPORTED_AT), (ExamState::Cancelled, IMAGES_AT)] {
            let exam = exam("archive 1", state);
            assert!(is_to_go(&exam));
            assert!(objection(exam.clone(), since + kept_ms - 1).is_some_and(|why| why.starts_with("1 ms before")));
            assert_eq!(objection(exam, since + kept_ms), None);
        }
    }

    #[test]
    fn images_that_are_wanted_or_of_another_hospital_or_on_hold_never_go_by_themselves() {
        let held = on_hold(exam("archive 1", ExamState::Cancelled));
        let wanted = [ExamState::Waiting, ExamState::Reported].map(|state| exam("archive 1", state));
        let other = exam("hospital 1", ExamState::Cancelled);
        for exam in wanted.into_iter().chain([other, held]) {
            assert!(!is_to_go(&exam), "{}", exam.state);
            assert!(objection(exam, u64::MAX).is_some());
        }
    }

    #[test]
    fn a_purge_that_somebody_asks_for_may_come_before_the_time_but_not_under_a_hold() {
        let asked = |exam| Before { exam, now: UnixMillisField(IMAGES_AT), by_itself: false }.objection();
        let exam = exam("archive 1", ExamState::Cancelled);
        assert_eq!(asked(exam.clone()), None);
        assert_eq!(asked(on_hold(exam)).as_deref(), Some("under a legal hold"));
    }

    #[test]
    fn a_purge_that_somebody_asks_for_ends_no_retention() {
        let purge = |reason: &str| Command::Purge { exam: ExamId(7), reason: Line::fitted(reason), withdrawn: false };
        assert_eq!(ends_retention_of(&purge("")), Some(ExamId(7)));
        assert_eq!(ends_retention_of(&purge("asked for")), None);
    }
}
