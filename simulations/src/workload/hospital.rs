//! A site's hospital: it requests exams; some are to be read only once their images are here.

use std::sync::Arc;

use bytes::Bytes;
use maillage_consensus::Outcome;
use maillage_consensus::command::{Command, StudyPart};
use maillage_consensus::exam::{Patient, Priority, Request, Text8};
use maillage_consensus::ids::{Line, Name, UidText};

use super::{Answer, Sender, images};
use crate::cluster::Cluster;
use crate::rng::Rng;

/// Exams of one site in one run: the check of a history needs no more.
const EXAMS_MAX: u64 = 150;
/// How many of the exams wait for images.
const AWAITS_IMAGES: f64 = 0.2;

pub(crate) async fn run(cluster: Arc<Cluster>, slot: u32, rng: Rng) {
    let mut sender = Sender { cluster: Arc::clone(&cluster), slot, user: Name::default(), rng };
    for number in 0..EXAMS_MAX {
        let wait = sender.rng.around(cluster.plan.exam_every);
        tokio::time::sleep(wait).await;
        if cluster.is_ending() {
            return;
        }
        let awaits_images = sender.rng.chance(AWAITS_IMAGES);
        let request = request(slot, number, awaits_images, &mut sender.rng);
        let id = sender.new_id();
        let answer = sender.send(id, Command::AddExam(request.clone()), None).await;
        let Answer::Given(committed, Outcome::ExamAdded { exam, .. }) = answer else {
            cluster.world.violation("I3", format!("a request of slot {slot} was not added"));
            continue;
        };
        cluster.watch.finality.exam_added(exam.0, committed.index);
        cluster.history.exam_added(exam.0);
        cluster.world.event(0, format_args!("exam {exam} added for slot {slot}"));
        if awaits_images {
            send_images(&mut sender, number, request).await;
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

/// Stores the exam's images at this site, then tells the mesh, as a gathering node does.
async fn send_images(sender: &mut Sender, number: u64, request: Request) {
    let study = format!("2.25.{}.{number}", sender.slot);
    let instances = sender.rng.between(1, 3);
    let mut bytes = 0;
    for instance in 0..instances {
        let len = sender.rng.between(200, 20_000);
        bytes += len;
        let sample = images::instance(&study, instance, sender.rng.next(), len);
        while !images::store(&sender.cluster, sender.slot, &sample).await {
            let wait = sender.rng.millis(200, 2_000);
            tokio::time::sleep(wait).await;
        }
    }
    let manifest = *blake3::hash(study.as_bytes()).as_bytes();
    let at = Default::default();
    let part = StudyPart {
        study: UidText::fitted(&study),
        manifest,
        sequence: 1,
        instances: u32::try_from(instances).unwrap_or(1),
        bytes,
        first_received_at: at,
        last_received_at: at,
        says: request,
    };
    let id = sender.new_id();
    match sender.send(id, Command::RecordStudy(part), None).await {
        Answer::Given(_, Outcome::StudyRecorded { unsolicited: None, .. }) => {
            sender.cluster.world.sometimes("images met their request");
        }
        _ => sender.cluster.world.violation("I3", format!("the images of study {study} met no request")),
    }
}

/// Bytes that no other seed gives.
pub(super) fn noise(seed: u64, len: u64) -> Bytes {
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes.into()
}
