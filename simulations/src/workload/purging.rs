//! A site's archive: it keeps studies that nobody requested and has them purged, whatever becomes of the exams made
//! of them meanwhile; of some, another image comes after that, which has to stay.
//!
//! It has a hospital, too, whose images are kept for a short time: their exams are read, or cancelled, some on legal hold,
//! and it asks for no purge of them.
//!
//! Another archive does the same behind a hospital's gateway, and sends what comes afterwards through it.
//!
//! Nobody else counts on these images, but for those: they are in no list of what was acknowledged.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use maillage_consensus::View;
use maillage_consensus::command::Command;
use maillage_consensus::exam::Text8;
use maillage_consensus::ids::{ExamId, KeyId, Line, Name, SiteId};
use maillage_consensus::order::{Hospital, Keep, Place};
use maillage_consensus::outcome::{Outcome, Refusal};
use maillage_store::Hash;

use super::dicom::{Of, Sample};
use super::{Answer, Sender, images};
use crate::cluster::{Cluster, Running};
use crate::gateway::Gatehouse;
use crate::invariants::purges::{self, Kept};
use crate::rng::Rng;

/// Mean pause between two studies.
const PAUSE: Duration = Duration::from_secs(12);
/// Studies of one site in one run.
const STUDIES_MAX: u64 = 40;
/// Instances of each.
const INSTANCES: u64 = 2;
/// How long an archive waits for its study to be published, or for its exam to be such as can be purged.
const WAITS: Duration = Duration::from_secs(60);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// Up to so much later it is purged: some copies are made by then, others under way.
const LATER_MS: (u64, u64) = (0, 6_000);
/// How often they are on legal hold before.
const HELD: f64 = 0.2;
/// Why they are.
const HOLD: &str = "the court asks for it";
/// How often another image comes afterwards.
const COMES_AFTER: f64 = 0.3;
/// … and how often through a gateway, which has few studies in one run.
const COMES_AFTER_TO_A_GATEWAY: f64 = 0.8;
/// Bytes at the end of an image as it was sent by which a disk is searched for it; the smallest have 64 of pixels.
const SENT_MARK_BYTES: usize = 48;
/// Bytes at the end of a stored chunk by which a disk is searched for it. The head of an image ends with its shape, which
/// others share: so many that its UIDs are among them.
const MARK_BYTES: usize = 192;
/// What the names of archives' hospitals begin with.
const HOSPITAL: &str = "archive ";
/// For how long the images of such a hospital are kept: long beside their publication, short beside a run.
const KEPT: Duration = Duration::from_secs(20);
/// Mean pause between two studies of such a hospital.
const KEPT_PAUSE: Duration = Duration::from_secs(6);
/// How often their exams are left to whoever reads them; the others are cancelled.
const READ: f64 = 0.4;
/// How often those that are cancelled are on legal hold, until their time is over for so long.
const HELD_BEYOND: f64 = 0.3;
const BEYOND_MS: (u64, u64) = (2_000, 15_000);

/// For how many milliseconds the images of a hospital are kept, if it is an archive's.
pub(crate) fn kept_ms(hospital: &Line) -> Option<u64> {
    hospital.as_str().starts_with(HOSPITAL).then(|| u64::try_from(KEPT.as_millis()).unwrap_or(u64::MAX))
}

/// Until the work ends; a purge that is asked for then is still carried through.
///
/// Its images go to what takes them at `images_to`.
pub(super) async fn run(cluster: Arc<Cluster>, slot: u32, images_to: u32, rng: Rng) {
    let name = Name::fitted(&format!("archive-{slot}"));
    let mut archive = Archive { sender: Sender::new(Arc::clone(&cluster), slot, name, rng), images_to };
    for number in 0..cluster.plan.at_most(STUDIES_MAX) {
        let pause = archive.sender.rng.around(PAUSE);
        tokio::time::sleep(pause).await;
        if cluster.is_ending() {
            return;
        }
        archive.keep_and_purge(number).await;
    }
}

/// Until the work ends. What is kept then goes by itself, too.
pub(super) async fn keep_until_over(cluster: Arc<Cluster>, slot: u32, rng: Rng) {
    let name = Name::fitted(&format!("archive-{slot}"));
    let mut archive = Archive { sender: Sender::new(Arc::clone(&cluster), slot, name, rng), images_to: slot };
    let hospital = format!("{HOSPITAL}{slot}");
    if !archive.say_for_how_long(&hospital).await {
        return;
    }
    for number in 0..cluster.plan.at_most(STUDIES_MAX) {
        let pause = archive.sender.rng.around(KEPT_PAUSE);
        tokio::time::sleep(pause).await;
        if cluster.is_ending() {
            return;
        }
        archive.keep_for_a_time(&hospital, number).await;
    }
}

struct Archive {
    sender: Sender,
    images_to: u32,
}

impl Archive {
    async fn keep_and_purge(&mut self, number: u64) {
        let cluster = Arc::clone(&self.sender.cluster);
        let (study, patient) = (format!("2.25.90{}.{number}", self.images_to), format!("K{}-{number}", self.images_to));
        let of = Of { study: &study, accession: "", patient: &patient, issuer: "", institution: "", modality: "CT" };
        let Some(exam) = self.keep(&of).await else { return };
        let later = self.sender.rng.millis(LATER_MS.0, LATER_MS.1);
        tokio::time::sleep(later).await;
        if self.sender.rng.chance(HELD) {
            self.hold_for_a_while(exam).await;
        }
        let comes_after = if self.is_behind_a_gateway() { COMES_AFTER_TO_A_GATEWAY } else { COMES_AFTER };
        if self.purge(exam).await && self.sender.rng.chance(comes_after) && !cluster.is_ending() {
            let late = Sample::new(&of, INSTANCES, self.sender.rng.next(), 200);
            if images::store(&cluster, self.images_to, &late, &mut self.sender.rng).await {
                cluster.world.sometimes(match self.is_behind_a_gateway() {
                    true => "an image came to a gateway after its study was purged",
                    false => "an image came after its study was purged",
                });
            }
        }
    }

    /// Has the mesh keep a hospital's images for as long as it is to be; `false` if it does not.
    async fn say_for_how_long(&mut self, hospital: &str) -> bool {
        let name = Line::fitted(hospital);
        let retention = kept_ms(&name).map(|ms| Keep { modality: Text8::default(), ms }).into_iter().collect();
        let (finess, place) = (Text8::default(), Place::default());
        let hospital = Hospital { name, finess, place, sites: Vec::new(), regulate: false, retention };
        let id = self.sender.new_id();
        let said = self.sender.send(id, Command::SetHospital(hospital), None).await;
        matches!(said, Answer::Given(_, Outcome::Done))
    }

    /// Keeps a study of that hospital until its time is over, as the mesh alone will notice.
    async fn keep_for_a_time(&mut self, hospital: &str, number: u64) {
        let cluster = Arc::clone(&self.sender.cluster);
        let (study, patient) =
            (format!("2.25.91{}.{number}", self.sender.slot), format!("R{}-{number}", self.sender.slot));
        let (patient, institution) = (patient.as_str(), hospital);
        let of = Of { study: &study, accession: "", patient, issuer: "", institution, modality: "CT" };
        let Some(exam) = self.keep(&of).await else { return };
        if self.sender.rng.chance(READ) {
            return;
        }
        let later = self.sender.rng.millis(LATER_MS.0, LATER_MS.1);
        tokio::time::sleep(later).await;
        let is_held = self.sender.rng.chance(HELD_BEYOND) && self.hold(exam).await;
        let reason = Line::fitted("nobody is to read it");
        let id = self.sender.new_id();
        // Who has begun to read it goes on.
        self.sender.send(id, Command::Cancel { exam, reason }, None).await;
        if is_held {
            let beyond = self.sender.rng.millis(BEYOND_MS.0, BEYOND_MS.1);
            tokio::time::sleep(KEPT + beyond).await;
            if cluster.running(self.sender.slot).is_some_and(|running| purges::is_kept_beyond(&running, exam)) {
                cluster.world.sometimes("a legal hold kept images beyond their time");
            }
            self.release_hold(exam).await;
        }
    }

    /// Sends a study and waits until the mesh knows it; its exam.
    async fn keep(&mut self, of: &Of<'_>) -> Option<ExamId> {
        let mut sent = Vec::new();
        for instance in 0..INSTANCES {
            let len = self.sender.rng.between(64, 6_000);
            let sample = Sample::new(of, instance, self.sender.rng.next(), len);
            if !self.store(&sample).await {
                return None;
            }
            sent.push(sample.data_set.slice(sample.data_set.len().saturating_sub(SENT_MARK_BYTES)..));
        }
        let (exam, mut kept) = self.published(of.study).await?;
        if self.is_behind_a_gateway() {
            self.is_within_reach(&kept).await?;
        }
        kept.marks.append(&mut sent);
        self.sender.cluster.watch.purges.keeps(exam, kept);
        Some(exam)
    }

    /// Stores an instance, in a few tries.
    async fn store(&mut self, sample: &Sample) -> bool {
        let cluster = Arc::clone(&self.sender.cluster);
        for _ in 0..5 {
            if let Some(receiver) = cluster.receiver(self.images_to)
                && images::by_c_store(&cluster, receiver, sample).await.is_some_and(|(stored, _)| stored)
            {
                return true;
            }
            let wait = self.sender.rng.millis(200, 2_000);
            tokio::time::sleep(wait).await;
        }
        false
    }

    fn is_behind_a_gateway(&self) -> bool {
        self.sender.cluster.gateway_slot() == Some(self.images_to)
    }

    /// The nodes that may have received its images.
    fn receiving(&self) -> Vec<Running> {
        match self.is_behind_a_gateway() {
            true => self.sender.cluster.all_running(),
            false => self.sender.cluster.running(self.images_to).into_iter().collect(),
        }
    }

    /// Waits until the mesh knows the study; its exam, and what is stored of it.
    async fn published(&mut self, study: &str) -> Option<(ExamId, Kept)> {
        let until = tokio::time::Instant::now() + WAITS;
        while tokio::time::Instant::now() < until {
            tokio::time::sleep(LOOK).await;
            let (mut exams, mut kept) = (BTreeSet::new(), Kept { study: study.to_owned(), ..Kept::default() });
            for running in self.receiving() {
                let part = {
                    let engine = running.group.reader();
                    let known = View::new(&*engine).study(study).ok().flatten();
                    known.and_then(|known| known.parts.into_iter().find(|held| held.origin == SiteId(running.site)))
                };
                let Some(held) = part else { continue };
                let stored = running.store.instances(study).await.ok()?;
                // What is stored and not published yet is none of its exam's, and stays when that is purged.
                if usize::try_from(held.part.instances).is_ok_and(|published| published < stored.len()) {
                    kept.instances.clear();
                    break;
                }
                exams.insert(held.exam);
                kept.objects.push(Hash(held.part.manifest));
                for instance in stored {
                    kept.instances.insert(instance.entry.sop_instance.clone());
                    if self.is_behind_a_gateway() {
                        kept.through_a_gateway_to.insert((running.site, instance.entry.sop_instance.clone()));
                    }
                    kept.objects.push(instance.entry.manifest);
                    let manifest = running.store.instance_manifest(instance.entry.manifest).await.ok()??;
                    kept.keys.extend(manifest.key.map(|key| KeyId(key.0)));
                    for chunk in &manifest.chunks {
                        kept.objects.push(chunk.hash);
                        let stored = running.store.get(chunk.hash).await.ok()??;
                        kept.marks.push(stored.slice(stored.len().saturating_sub(MARK_BYTES)..));
                    }
                }
            }
            if let (Some(exam), 1, INSTANCES) = (exams.first(), exams.len(), kept.instances.len() as u64) {
                return Some((*exam, kept));
            }
        }
        None
    }

    /// Waits until a purge reaches what the gateway has.
    async fn is_within_reach(&self, kept: &Kept) -> Option<()> {
        let until = tokio::time::Instant::now() + WAITS;
        while tokio::time::Instant::now() < until {
            let gatehouse = self.sender.cluster.gatehouse();
            let reached = |gatehouse: Gatehouse| kept.instances.iter().all(|sop| gatehouse.node.is_within_reach(sop));
            if gatehouse.is_some_and(reached) {
                return Some(());
            }
            tokio::time::sleep(LOOK).await;
        }
        None
    }

    /// Puts an exam on legal hold, sees that it is not purged, and lifts the hold.
    async fn hold_for_a_while(&mut self, exam: ExamId) {
        if !self.hold(exam).await {
            return;
        }
        let id = self.sender.new_id();
        let purge = Command::Purge { exam, reason: Line::fitted("the patient asks again"), withdrawn: true };
        match self.sender.send(id, purge, Some(WAITS)).await {
            Answer::Given(index, Outcome::Done) => {
                let detail = format!("exam {exam} was purged at {index} under a legal hold");
                self.sender.cluster.world.violation("I6", detail);
            }
            Answer::Given(_, Outcome::Refused(Refusal::OnHold)) => {
                self.sender.cluster.world.sometimes("a legal hold kept images");
            }
            _ => {}
        }
        self.release_hold(exam).await;
    }

    /// Whether it could put an exam on legal hold.
    async fn hold(&mut self, exam: ExamId) -> bool {
        let id = self.sender.new_id();
        let hold = Command::LegalHold { exam, reason: Line::fitted(HOLD) };
        let Answer::Given(index, Outcome::Done) = self.sender.send(id, hold, Some(WAITS)).await else { return false };
        self.sender.cluster.watch.purges.held(exam, index);
        true
    }

    async fn release_hold(&mut self, exam: ExamId) {
        self.sender.cluster.watch.purges.lets_go(exam);
        let id = self.sender.new_id();
        self.sender.send(id, Command::ReleaseHold { exam, reason: Line::fitted(HOLD) }, None).await;
    }

    /// Has an exam's images purged, once its state allows it.
    async fn purge(&mut self, exam: ExamId) -> bool {
        let until = tokio::time::Instant::now() + WAITS;
        let reason = Line::fitted("the patient withdrew the consent");
        while tokio::time::Instant::now() < until {
            let command = Command::Purge { exam, reason: reason.clone(), withdrawn: true };
            let id = self.sender.new_id();
            match self.sender.send(id, command, Some(WAITS)).await {
                Answer::Given(index, Outcome::Done) => {
                    self.sender.cluster.world.sometimes("a study was purged");
                    self.sender.cluster.watch.purges.purged(exam, index);
                    return true;
                }
                // Somebody is reading it.
                Answer::Given(_, Outcome::Refused(Refusal::WrongState { .. })) => tokio::time::sleep(4 * LOOK).await,
                _ => return false,
            }
        }
        false
    }
}
