//! What is prefetched stays within its room at every node, has a reason, and is there when it is claimed (which is no
//! promise, but must happen).
//!
//! The reason is that the exam may be read here soon, or is a prior, of the very same patient, of one that may be. Whose
//! images come to a centre beside an exam is whom its readers take them to be of.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use maillage_consensus::command::Command;
use maillage_consensus::exam::{Patient, ReportKind};
use maillage_consensus::ids::{ExamId, SiteId};
use maillage_consensus::{Outcome, View};
use maillage_store::Hash;

use crate::cluster::{Cluster, Running};
use crate::world::{Owner, World, lock};

/// Bytes beyond the room that are no breach: what a part takes besides its data sets (manifests, seals) is known only
/// once it is here, and then something else goes.
const SLACK: u64 = 64 << 10;
/// The share of the room from which on it counts as used, in hundredths.
const USED_PERCENT: u64 = 50;
/// How long a reason may be over when what was chosen for it is noted: a process is stopped for half a minute at most.
const REASON_LASTS: Duration = Duration::from_secs(40);

/// An exam as a reason to prefetch.
#[derive(Debug, Clone, PartialEq)]
struct Reason {
    exam: u64,
    patient: Patient,
    /// For how long the node has known that it is over; none when it is not, or nobody saw since when.
    over_for: Option<Duration>,
}

impl Reason {
    fn lasts(&self) -> bool {
        self.over_for.is_none_or(|over| over < REASON_LASTS)
    }

    /// Whether it is another exam of the same patient.
    fn is_beside(&self, other: &Self) -> bool {
        let is_same = self.patient.id == other.patient.id && self.patient.issuer == other.patient.issuer;
        is_same && self.exam != other.exam
    }
}

#[derive(Default)]
struct Facts {
    /// When a life of a node came to know that an exam is over.
    over: BTreeMap<(Owner, u64), Duration>,
    /// What each node's life was last seen to have prefetched, by slot.
    seen: BTreeMap<u32, (Owner, BTreeSet<Hash>)>,
}

/// See the module.
pub(crate) struct Prefetch {
    world: Arc<World>,
    facts: Mutex<Facts>,
}

impl Prefetch {
    pub(crate) fn new(world: Arc<World>) -> Self {
        Self { world, facts: Mutex::default() }
    }

    /// The node applied a command that is no repeat.
    pub(crate) fn applied(&self, owner: Owner, command: &Command, outcome: &Outcome) {
        let ends = matches!(
            (command, outcome),
            (Command::Complete { .. } | Command::Report { kind: ReportKind::Final, .. }, Outcome::Completed { .. })
                | (Command::Cancel { .. }, Outcome::Done)
        );
        if let Some(exam) = command.exam().filter(|_| ends) {
            lock(&self.facts).over.entry((owner, exam.0)).or_insert(self.world.now());
        }
    }

    /// What a node has noted since the last look had a reason. What an earlier life noted, that one was asked for.
    fn has_reasons(&self, cluster: &Cluster, running: &Running, noted: Vec<Hash>) {
        let (owner, noted) = (running.owner, BTreeSet::from_iter(noted));
        let before = lock(&self.facts).seen.insert(owner.slot, (owner, noted.clone()));
        let before = before.filter(|(life, _)| *life == owner).map(|(_, before)| before);
        let Some(before) = before else { return };
        // It may note long after it chose.
        if noted.is_subset(&before) || cluster.disks.has_stalled(owner.slot) {
            return;
        }
        let engine = running.group.reader();
        let view = View::new(&*engine);
        let studies = view.studies(None, usize::MAX).unwrap_or_default();
        let parts = studies.iter().flat_map(|study| &study.parts);
        let is_new = |manifest: &Hash| noted.contains(manifest) && !before.contains(manifest);
        let of: BTreeSet<u64> =
            parts.filter(|held| is_new(&Hash(held.part.manifest))).map(|held| held.exam.0).collect();
        let brought: Vec<Reason> = of.iter().filter_map(|exam| self.reason(&view, owner, *exam)).collect();
        if brought.iter().all(Reason::lasts) {
            return;
        }
        let exams = cluster.history.exams();
        let known: Vec<Reason> = exams.iter().filter_map(|exam| self.reason(&view, owner, *exam)).collect();
        for one in brought.iter().filter(|one| !one.lasts()) {
            if known.iter().any(|other| other.is_beside(one) && other.lasts()) {
                self.world.sometimes("a prior was prefetched");
            } else {
                let detail = format!(
                    "{owner:?} prefetches exam {}, which is over and no prior of its patient's exams to be read",
                    one.exam
                );
                self.world.violation("prefetch", detail);
            }
        }
    }

    fn reason(&self, view: &View<'_>, owner: Owner, exam: u64) -> Option<Reason> {
        let known = view.exam(ExamId(exam)).ok()??;
        let is_over = known.state.is_reported() || known.state.is_off();
        let since = lock(&self.facts).over.get(&(owner, exam)).copied().filter(|_| is_over);
        let over_for = since.map(|since| self.world.now().saturating_sub(since));
        Some(Reason { exam, patient: known.request.patient, over_for })
    }
}

/// What the node of `running` has prefetched is no more than it may, and nothing without a reason.
pub(crate) async fn check(cluster: &Cluster, running: &Running) {
    let room = cluster.plan.storage.prefetch_mib << 20;
    let noted = running.node.prefetched().await;
    let bytes = running.store.stored_bytes(noted.clone()).await.unwrap_or(0);
    if bytes > room + SLACK {
        let detail = format!("{:?} has prefetched {bytes} bytes, and has room for {room}", running.owner);
        cluster.world.violation("prefetch", detail);
    } else if bytes > 0 {
        cluster.world.sometimes("images were prefetched");
        if bytes * 100 > room * USED_PERCENT {
            cluster.world.sometimes("the room for what is prefetched was used");
        }
    }
    cluster.watch.prefetch.has_reasons(cluster, running, noted);
}

/// An exam was claimed at `slot`: notes when its images are there and nobody counts on them.
pub(crate) async fn claimed(cluster: &Cluster, slot: u32, exam: u64) {
    let Some(running) = cluster.running(slot) else { return };
    let parts = {
        let engine = running.group.reader();
        let view = View::new(&*engine);
        let studies = view.exam(ExamId(exam)).ok().flatten().map(|exam| exam.studies).unwrap_or_default();
        let studies = studies.iter().filter_map(|uid| view.study(uid.as_str()).ok().flatten());
        studies.flat_map(|study| study.parts).collect::<Vec<_>>()
    };
    let site = SiteId(running.site);
    for held in parts.iter().filter(|held| held.origin != site && !held.holders.contains(&site)) {
        match running.store.lacks(Hash(held.part.manifest)).await {
            Ok(lacks) if lacks.is_empty() => cluster.world.sometimes("a claim found its images prefetched"),
            _ => cluster.world.sometimes("a claim had its images brought"),
        }
    }
}

/// Whether some part of a study is at the node of `running` because it was prefetched, all of it.
pub(crate) async fn has_brought(running: &Running, study: &str) -> bool {
    let noted = running.node.prefetched().await;
    let parts = {
        let engine = running.group.reader();
        View::new(&*engine).study(study).ok().flatten().map(|study| study.parts).unwrap_or_default()
    };
    for manifest in parts.iter().map(|held| Hash(held.part.manifest)).filter(|manifest| noted.contains(manifest)) {
        if running.store.lacks(manifest).await.is_ok_and(|lacks| lacks.is_empty()) {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use maillage_consensus::ids::Line;

    use super::*;

    #[test]
    fn a_prior_is_of_the_same_patient_and_not_of_another_hospitals_of_the_same_identifier() {
        let of = |exam: u64, id: &str, issuer: &str| {
            let patient = Patient { id: Line::fitted(id), issuer: Line::fitted(issuer), ..Patient::default() };
            Reason { exam, patient, over_for: Some(REASON_LASTS) }
        };
        let prior = of(1, "P1", "H1");
        assert!(of(2, "P1", "H1").is_beside(&prior));
        for other in [of(1, "P1", "H1"), of(2, "P1", "H2"), of(2, "P2", "H1")] {
            assert!(!other.is_beside(&prior), "{other:?}");
        }
        assert!(!prior.lasts() && Reason { over_for: None, ..prior.clone() }.lasts());
        assert!(Reason { over_for: Some(REASON_LASTS / 2), ..prior }.lasts());
    }
}
