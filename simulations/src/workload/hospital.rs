//! A site's hospital: it requests exams; some are to be read only once their images are here.

use std::sync::Arc;

use maillage_consensus::Outcome;
use maillage_consensus::command::Command;
use maillage_consensus::exam::{Patient, Priority, Request, Text8};
use maillage_consensus::ids::{Line, Name};

use super::dicom::{Of, Sample};
use super::{Answer, Sender, images};
use crate::cluster::Cluster;
use crate::rng::Rng;

/// Exams of one site in one run: the check of a history needs no more.
const EXAMS_MAX: u64 = 150;
/// How many of the exams wait for images.
const AWAITS_IMAGES: f64 = 0.4;

pub(crate) async fn run(cluster: Arc<Cluster>, slot: u32, rng: Rng) {
    let mut sender = Sender::new(Arc::clone(&cluster), slot, Name::default(), rng);
    for number in 0..EXAMS_MAX {
        let wait = sender.rng.around(cluster.plan.exam_every);
        tokio::time::sleep(wait).await;
        if cluster.is_ending() {
            return;
        }
        let awaits_images = sender.rng.chance(AWAITS_IMAGES);
        let request = request(slot, number, awaits_images, &mut sender.rng);
        let id = sender.new_id();
        let answer = sender.send(id, Command::AddExam(request), None).await;
        let Answer::Given(index, Outcome::ExamAdded { exam, .. }) = answer else {
            cluster.world.violation("I3", format!("a request of slot {slot} was not added"));
            continue;
        };
        cluster.watch.finality.exam_added(exam.0, index);
        cluster.history.exam_added(exam.0);
        cluster.world.event(0, format_args!("exam {exam} added for slot {slot}"));
        if awaits_images {
            send_images(&mut sender, number).await;
        }
    }
}

fn request(slot: u32, number: u64, awaits_images: bool, rng: &mut Rng) -> Request {
    let patient = Patient { id: Line::fitted(&format!("P{slot}-{number}")), ..Patient::default() };
    Request {
        accession: Line::fitted(&format!("A{slot}-{number}")),
        patient,
        modality: Text8::fitted("CT"),
        description: Line::fitted("head without contrast"),
        hospital: Line::fitted(&format!("hospital {slot}")),
        physician: Line::default(),
        priority: Priority::ALL[rng.index(Priority::ALL.len())],
        awaits_images,
    }
}

/// Sends the exam's images to this site until each is acknowledged. Some senders are cut in the middle
/// and begin again.
async fn send_images(sender: &mut Sender, number: u64) {
    let (study, slot) = (format!("2.25.{}.{number}", sender.slot), sender.slot);
    let (accession, patient) = (format!("A{slot}-{number}"), format!("P{slot}-{number}"));
    let of = Of { study: &study, accession: &accession, patient: &patient, modality: "CT" };
    let instances = sender.rng.between(1, 4);
    let samples: Vec<Sample> = (0..instances)
        .map(|instance| {
            let len = sender.rng.between(200, 20_000);
            Sample::new(&of, instance, sender.rng.next(), len)
        })
        .collect();
    let cut_after = sender.rng.chance(0.1).then(|| sender.rng.index(samples.len()));
    if let Some(count) = cut_after {
        for sample in &samples[..count] {
            images::store(&sender.cluster, slot, sample, &mut sender.rng).await;
        }
        sender.cluster.world.sometimes("a sender was cut in mid-study");
        let wait = sender.rng.millis(100, 8_000);
        tokio::time::sleep(wait).await;
    }
    for sample in &samples {
        while !images::store(&sender.cluster, slot, sample, &mut sender.rng).await {
            let wait = sender.rng.millis(200, 2_000);
            tokio::time::sleep(wait).await;
        }
    }
    sender.cluster.watch.instances.sent(slot, &study);
}
