//! A hospital with one exam: asks for it, is regulated, scans, sends the images.
//!
//! It speaks to the node of its home centre, and to that of its fallback when the home centre is away or does
//! not answer. Scans do not wait for the mesh: a telephone does. A study takes its line for as long as its
//! real size needs; what goes into the simulated stores is smaller.

use std::sync::Arc;
use std::time::Duration;

use maillage_consensus::command::Command;
use maillage_consensus::exam::{ExamState, Patient, Priority, Request, Text8, Verdict};
use maillage_consensus::ids::{ExamId, Line, Name};
use maillage_consensus::order::{Consent, Order};
use maillage_consensus::{Outcome, Refusal};

use super::stage::Stage;
use super::wires;
use crate::day::model::{CentreId, Exam};
use crate::rng::Rng;
use crate::workload::dicom::{Of, Sample};
use crate::workload::{Answer, Sender, images};

/// How long one node is asked before the other is.
const PATIENCE: Duration = Duration::from_secs(10);
/// When neither answered, it is tried again after this time.
const AGAIN: Duration = Duration::from_secs(15);
/// Instances that stand for a study.
const INSTANCES: u64 = 3;
/// Tries at an instance before the study goes to the other centre.
const TRIES: u32 = 4;
/// Between two tries at an instance.
const RETRY: Duration = Duration::from_secs(2);
/// How often a hospital looks whether its exam shows in the waiting room, once the images were sent.
const LOOK: Duration = Duration::from_secs(60);

/// The hospital's part in an exam, from the request until nobody can need it any more.
pub(super) async fn run(stage: Arc<Stage>, exam: usize) {
    stage.sleep_until(stage.day.exams[exam].requested_ms).await;
    let rng = Rng::stream(stage.day.seed, &format!("day: hospital of exam {exam}"));
    let hospital = Hospital { exam, drawn: stage.day.exams[exam].clone(), stage };
    tokio::join!(hospital.ask(rng), hospital.send_images());
}

/// The study's UID of an exam: what its images are known by.
fn study(exam: usize) -> String {
    format!("2.25.{}", exam + 1)
}

struct Hospital {
    stage: Arc<Stage>,
    exam: usize,
    drawn: Exam,
}

impl Hospital {
    /// Home first.
    fn centres(&self) -> [CentreId; 2] {
        let hospital = &self.stage.day.hospitals[self.drawn.hospital.0];
        [hospital.home, hospital.fallback]
    }

    fn reaches(&self, centre: CentreId) -> bool {
        self.stage.reaches(&self.stage.outages().borrow(), self.drawn.hospital, centre)
    }

    fn patient(&self) -> String {
        format!("P{:05}", self.exam + 1)
    }

    /// Requests the exam; when the regulator refuses it, says so.
    async fn ask(&self, rng: Rng) {
        let mut sender = Sender::over_http(Arc::clone(&self.stage.cluster), 0, Name::default(), rng);
        let request = Request {
            accession: Line::fitted(&self.drawn.accession),
            patient: Patient { id: Line::fitted(&self.patient()), ..Patient::default() },
            modality: Text8::fitted(self.drawn.modality),
            description: Line::fitted(self.drawn.kind),
            hospital: Line::fitted(&self.stage.day.hospitals[self.drawn.hospital.0].name),
            physician: Line::default(),
            priority: self.drawn.priority,
            awaits_images: true,
        };
        let is_vital = self.drawn.priority == Priority::Vital;
        let consent = if is_vital { Consent::Emergency } else { Consent::Declared };
        let order = Order { consent, regulate: true, ..Order::default() };
        let (index, outcome) = self.until_answered(&mut sender, &Command::Order { request, order }).await;
        let Outcome::ExamAdded { exam, .. } = outcome else {
            return self.stage.cluster.world.violation("I3", format!("exam {} not added: {outcome:?}", self.exam));
        };
        self.stage.cluster.watch.finality.exam_added(exam.0, index);
        self.stage.cluster.history.exam_added(exam.0);
        self.stage.know(self.exam, |known| known.exam = Some(exam.0));
        self.stage.cluster.world.event(0, format_args!("exam {exam} is {}", self.drawn.accession));
        self.stage.sleep_until(self.drawn.regulated_ms()).await;
        self.regulate(&mut sender, exam).await;
        if self.drawn.refused.is_none() {
            self.stage.sleep_until(self.drawn.requested_ms + self.drawn.scan_after_ms).await;
            // Where the word came late, the images may be here already: no matter.
            self.until_answered(&mut sender, &Command::Acquire { exam }).await;
        }
    }

    /// The regulator's word: a protocol, or why not.
    async fn regulate(&self, sender: &mut Sender, exam: ExamId) {
        let verdict = match self.drawn.refused {
            Some(reason) => Verdict::Refused { reason: Line::fitted(reason) },
            None => Verdict::Validated { protocol: Line::fitted(self.drawn.kind) },
        };
        sender.user = Name::fitted("regulator");
        let said = self.until_answered(sender, &Command::Regulate { exam, verdict }).await;
        sender.user = Name::default();
        match (self.drawn.refused, said.1) {
            (Some(_), Outcome::Done) => self.stage.know(self.exam, |known| known.is_refused = true),
            (None, Outcome::Done) => {}
            // The mesh was away so long that an emergency was read meanwhile.
            (None, Outcome::Refused(Refusal::WrongState { .. })) => {
                self.stage.cluster.world.sometimes("a regulator's word came after the images of an emergency");
            }
            (_, other) => {
                self.stage.cluster.world.violation("I3", format!("exam {exam} is not regulated: {other:?}"));
            }
        }
    }

    /// Sends a command under one id to whichever node can be reached, until one answers.
    async fn until_answered(&self, sender: &mut Sender, command: &Command) -> (u64, Outcome) {
        let id = sender.new_id();
        loop {
            for (at, centre) in self.centres().into_iter().enumerate() {
                if !self.reaches(centre) {
                    continue;
                }
                sender.slot = wires::slot(centre);
                if let Answer::Given(index, outcome) = sender.send(id, command.clone(), Some(PATIENCE)).await {
                    if at == 1 {
                        self.stage.cluster.world.sometimes("a hospital asked its fallback centre");
                    }
                    return (index, outcome);
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Sends the images, and again when they are where nobody can see them.
    async fn send_images(&self) {
        let Some(acquired_ms) = self.drawn.acquired_ms() else { return };
        self.stage.sleep_until(acquired_ms).await;
        let samples = self.samples();
        let mut at = self.send(&samples, None).await;
        let received_ms = self.stage.now_ms();
        self.stage.know(self.exam, |known| known.received = Some((received_ms, at)));
        // Whose receiver went away before the others knew of the study: nobody could read it.
        while !self.is_in_the_waiting_room() {
            tokio::time::sleep(LOOK).await;
            if !self.reaches(at) && !self.is_in_the_waiting_room() {
                self.stage.cluster.world.sometimes("a study was sent again because its receiver was lost");
                at = self.send(&samples, Some(at)).await;
            }
        }
        loop {
            self.stage.asked_again[self.exam].notified().await;
            self.stage.cluster.world.sometimes("a study was sent again because a reader could not open it");
            at = self.send(&samples, Some(at)).await;
        }
    }

    fn samples(&self) -> Vec<Sample> {
        let (study, patient) = (study(self.exam), self.patient());
        let (accession, modality) = (self.drawn.accession.as_str(), self.drawn.modality);
        let of = Of { study: &study, accession, patient: &patient, issuer: "", institution: "", modality };
        let len = self.drawn.bytes_simulated / INSTANCES;
        let mut pixels = Rng::stream(self.stage.day.seed, &format!("day: images of exam {}", self.exam));
        (1..=INSTANCES).map(|number| Sample::new(&of, number, pixels.next(), len)).collect()
    }

    /// Whether the hospital's worklist shows the exam with its images, on a node that it can reach.
    fn is_in_the_waiting_room(&self) -> bool {
        let Some(exam) = self.stage.known(self.exam).exam else { return false };
        let shows = |centre: &CentreId| {
            let node = self.stage.node(*centre).filter(|_| self.reaches(*centre));
            let state = node.and_then(|node| self.stage.shown(&node, exam));
            state.is_some_and(|state| {
                !matches!(state, ExamState::Requested | ExamState::Validated | ExamState::Acquiring)
            })
        };
        self.centres().iter().any(shows)
    }

    /// Sends the study whole to one centre, over the hospital's line; to another than `not` if one answers.
    /// Returns where.
    async fn send(&self, samples: &[Sample], not: Option<CentreId>) -> CentreId {
        let _line = self.stage.lines[self.drawn.hospital.0].lock().await;
        let transfer = Duration::from_millis(self.stage.day.transfer_ms(&self.drawn));
        let mut avoided = not;
        loop {
            let mut there: Vec<CentreId> = self.centres().into_iter().filter(|centre| self.reaches(*centre)).collect();
            there.sort_by_key(|centre| Some(*centre) == avoided);
            let Some(centre) = there.first().copied() else {
                // Nowhere to send to, until something is mended. The sender of outages outlives this.
                let _ = self.stage.outages().changed().await;
                continue;
            };
            let mut outages = self.stage.outages();
            let gone = outages.wait_for(|outages| !self.stage.reaches(outages, self.drawn.hospital, centre));
            if tokio::time::timeout(transfer, gone).await.is_ok() {
                self.stage.cluster.world.sometimes("a transfer was cut off");
                continue;
            }
            if self.store_all(samples, centre).await {
                return centre;
            }
            self.stage.cluster.world.sometimes("a study went to another centre");
            avoided = Some(centre);
        }
    }

    async fn store_all(&self, samples: &[Sample], centre: CentreId) -> bool {
        let slot = wires::slot(centre);
        for sample in samples {
            let mut tries = 0;
            while !self.reaches(centre) || !images::c_store(&self.stage.cluster, slot, sample).await {
                tries += 1;
                if tries >= TRIES {
                    return false;
                }
                tokio::time::sleep(RETRY).await;
            }
        }
        if let Some(first) = samples.first() {
            self.stage.cluster.watch.instances.sent(slot, &first.study);
        }
        true
    }
}
