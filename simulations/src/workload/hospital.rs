//! A hospital: it requests exams at a site's node, and sends images there, or to a gateway of its own; some exams are
//! to be read only once their images are here.

use std::sync::Arc;
use std::time::Duration;

use maillage_consensus::Outcome;
use maillage_consensus::command::Command;
use maillage_consensus::exam::{ExamState, Patient, Priority, Request, Text8};
use maillage_consensus::ids::{ExamId, Line, Name};
use maillage_consensus::order::{Consent, Order};
use maillage_consensus::remark::Finding;

use super::dicom::{Of, Sample};
use super::{Answer, Sender, desk, images};
use crate::cluster::Cluster;
use crate::invariants::events::ALGORITHM;
use crate::rng::Rng;

/// Exams of one site in one run: the check of a history needs no more.
const EXAMS_MAX: u64 = 150;
/// How many of the exams wait for images.
const AWAITS_IMAGES: f64 = 0.4;
/// How many are asked for with all that a request can say.
const ORDERS: f64 = 0.6;
/// How many of those need a regulator.
const REGULATED: f64 = 0.4;
/// How many are of a patient who was here before.
const RETURNS: f64 = 0.3;
/// How many an algorithm looks at.
const ANALYSED: f64 = 0.3;
/// How long an algorithm tries to say what it found.
const ANALYSIS: Duration = Duration::from_secs(3);
/// Between two looks whether the regulator has said something.
const REGULATION_LOOK: Duration = Duration::from_millis(400);

/// What requests call the hospital whose images go to `images_to`.
pub(crate) fn name(images_to: u32) -> Line {
    Line::fitted(&format!("hospital {images_to}"))
}

/// Who is examined in examination `number` of the hospital whose images go to `images_to`. Some patients come again, and
/// two hospitals give the same identifiers: each is the issuer of its own.
pub(crate) fn patient(seed: u64, images_to: u32, number: u64) -> Patient {
    let mut first = number;
    while first > 0 {
        let mut rng = Rng::stream(seed, &format!("patient {images_to} {first}"));
        if !rng.chance(RETURNS) {
            break;
        }
        first = rng.below(first);
    }
    let (id, issuer) = (Line::fitted(&format!("P{first}")), Line::fitted(&format!("H{images_to}")));
    Patient { id, issuer, ..Patient::default() }
}

/// The same by an accession number; none when it is no hospital's.
pub(crate) fn patient_of(seed: u64, accession: &str) -> Option<Patient> {
    let (images_to, number) = accession.strip_prefix('A')?.split_once('-')?;
    Some(patient(seed, images_to.parse().ok()?, number.parse().ok()?))
}

/// Requests at `slot`, and sends images to what takes them at `images_to`.
pub(crate) async fn run(cluster: Arc<Cluster>, slot: u32, images_to: u32, rng: Rng) {
    let mut sender = Sender::new(Arc::clone(&cluster), slot, Name::default(), rng);
    for number in 0..cluster.plan.at_most(EXAMS_MAX) {
        let wait = sender.rng.around(cluster.plan.exam_every);
        tokio::time::sleep(wait).await;
        if cluster.is_ending() {
            return;
        }
        let awaits_images = sender.rng.chance(AWAITS_IMAGES);
        let who = patient(cluster.plan.seed, images_to, number);
        let request = request(images_to, number, who, awaits_images, &mut sender.rng);
        let priority = request.priority;
        let order = sender.rng.chance(ORDERS).then(|| order(awaits_images, &mut sender.rng));
        let id = sender.new_id();
        let command = match &order {
            Some(order) => Command::Order { request, order: order.clone() },
            None => Command::AddExam(request),
        };
        let answer = sender.send(id, command, None).await;
        let Answer::Given(index, Outcome::ExamAdded { exam, .. }) = answer else {
            cluster.world.violation("I3", format!("a request of slot {slot} was not added"));
            continue;
        };
        cluster.watch.finality.exam_added(exam.0, index);
        cluster.history.exam_added(exam.0);
        cluster.watch.events.requested(exam.0, priority);
        let order = order.unwrap_or_default();
        if order.consent == Consent::Refused {
            cluster.world.sometimes("a patient refused the transfer");
        }
        cluster.world.event(0, format_args!("exam {exam} added for slot {slot}"));
        if awaits_images && is_scanned(&mut sender, exam, priority, &order).await {
            send_images(&mut sender, images_to, number).await;
        }
        if sender.rng.chance(ANALYSED) {
            analyse(&mut sender, exam).await;
        }
    }
}

fn request(images_to: u32, number: u64, patient: Patient, awaits_images: bool, rng: &mut Rng) -> Request {
    Request {
        accession: Line::fitted(&format!("A{images_to}-{number}")),
        patient,
        modality: Text8::fitted("CT"),
        description: Line::fitted("head without contrast"),
        hospital: name(images_to),
        physician: Line::default(),
        priority: Priority::ALL[rng.index(Priority::ALL.len())],
        awaits_images,
    }
}

/// What the request says of consent and regulation. An exam whose patient refuses the transfer has no
/// images here: where one would go is for the tests of placement.
fn order(awaits_images: bool, rng: &mut Rng) -> Order {
    let consent = match rng.below(20) {
        0..=11 => Consent::Declared,
        12..=14 => Consent::Undeclared,
        15..=17 => Consent::Emergency,
        _ if awaits_images => Consent::Declared,
        _ => Consent::Refused,
    };
    Order { consent, regulate: rng.chance(REGULATED), ..Order::default() }
}

/// Waits for the regulator, unless it is an emergency, and scans. Whether there are images.
async fn is_scanned(sender: &mut Sender, exam: ExamId, priority: Priority, order: &Order) -> bool {
    let cluster = Arc::clone(&sender.cluster);
    let is_emergency = priority == Priority::Vital || order.consent == Consent::Emergency;
    if order.regulate && is_emergency {
        cluster.world.sometimes("an emergency did not wait for its regulator");
    }
    if order.regulate && !is_emergency {
        loop {
            match desk::state_at(&cluster, sender.slot, exam) {
                Some(ExamState::Requested) | None => tokio::time::sleep(REGULATION_LOOK).await,
                Some(ExamState::Refused) => return false,
                Some(_) => break,
            }
        }
    }
    if order.regulate || sender.rng.chance(0.3) {
        let id = sender.new_id();
        // Refused where an algorithm made an emergency of it meanwhile, or its images are here: no matter.
        sender.send(id, Command::Acquire { exam }, None).await;
    }
    true
}

/// An algorithm looks at the exam, and may ask for more urgency, or for less, in vain.
async fn analyse(sender: &mut Sender, exam: ExamId) {
    let priority = Priority::ALL[sender.rng.index(Priority::ALL.len())];
    let finding = Finding {
        algorithm: Name::fitted(&format!("{ALGORITHM}-{}", sender.slot)),
        version: Text8::fitted("1.0"),
        finding: Line::fitted("intracranial haemorrhage"),
        score: 900,
        location: Line::default(),
        priority: Some(priority),
    };
    let id = sender.new_id();
    sender.send(id, Command::AddFinding { exam, finding }, Some(ANALYSIS)).await;
}

/// Sends the exam's images until each is acknowledged. Some senders are cut in the middle and begin again.
async fn send_images(sender: &mut Sender, slot: u32, number: u64) {
    let study = format!("2.25.{slot}.{number}");
    let (accession, patient) = (format!("A{slot}-{number}"), patient(sender.cluster.plan.seed, slot, number));
    let of = Of {
        study: &study,
        accession: &accession,
        patient: patient.id.as_str(),
        issuer: patient.issuer.as_str(),
        institution: "",
        modality: "CT",
    };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_patients_come_again_and_two_hospitals_give_the_same_identifiers() {
        const SEED: u64 = 7;
        let again = (0..100).filter(|number| patient(SEED, 1, *number).id.as_str() != format!("P{number}")).count();
        assert!((15..50).contains(&again), "{again} of a hundred");
        let (one, other) = (patient(SEED, 1, 0), patient(SEED, 2, 0));
        assert!(one.id == other.id && !one.same_as(&other));
        assert_eq!(patient_of(SEED, "A3-17"), Some(patient(SEED, 3, 17)));
        assert_eq!([patient_of(SEED, "U3-17"), patient_of(SEED, ""), patient_of(SEED, "A3")], [None, None, None]);
    }
}
