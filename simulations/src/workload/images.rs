//! A site's scanners and archives: instances that the mesh must keep once it said so.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use maillage::site::Remote;
use maillage_dicom::dimse::status::StatusKind;

use super::dicom::{Of, Sample};
use super::{hospital, http};
use crate::cluster::Cluster;
use crate::gateway::Receiver;
use crate::invariants::instances::Acknowledged;
use crate::rng::Rng;

/// Instances of one site in one run.
const INSTANCES_MAX: u64 = 400;
/// A sender that hears nothing for so long hangs up.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often an instance goes by STOW-RS rather than by C-STORE.
const BY_STOW: f64 = 0.3;
/// Of a C-STORE whose data set is not the one that is known (PS3.4 table B.2-1).
const DOES_NOT_MATCH: &str = "a9";
/// Failed SOP Sequence (0008,1198) of an answer to STOW-RS, and Failure Reason (0008,1197).
const FAILED: &str = "00081198";
const FAILURE_REASON: &str = "00081197";
/// How often other bytes come under the UID of an image that was just acknowledged.
const CONTESTED: f64 = 0.06;

/// Sends an instance to what takes images in `slot`; `false` when it was not acknowledged.
pub(super) async fn store(cluster: &Arc<Cluster>, slot: u32, sample: &Sample, rng: &mut Rng) -> bool {
    let Some(receiver) = cluster.receiver(slot) else { return false };
    let stored = if rng.chance(BY_STOW) {
        by_stow(cluster, &receiver, None, sample).await
    } else {
        by_c_store(cluster, receiver, sample).await
    };
    stored.is_some_and(|(stored, answer)| note(cluster, slot, sample, stored, &answer))
}

/// Sends an instance to what takes images in `slot` by C-STORE; `false` when it was not acknowledged.
pub(crate) async fn c_store(cluster: &Arc<Cluster>, slot: u32, sample: &Sample) -> bool {
    let Some(receiver) = cluster.receiver(slot) else { return false };
    let stored = by_c_store(cluster, receiver, sample).await;
    stored.is_some_and(|(stored, answer)| note(cluster, slot, sample, stored, &answer))
}

/// Whether it was stored, and what the answer says; `None` without an answer. It is the hospital's scanners that send.
pub(super) async fn by_c_store(cluster: &Cluster, receiver: Receiver, sample: &Sample) -> Option<(bool, String)> {
    let title = format!("CT{}", receiver.owner().slot);
    by_c_store_of(cluster, receiver, &title, sample).await
}

/// … sent under some AE title.
pub(super) async fn by_c_store_of(
    cluster: &Cluster,
    receiver: Receiver,
    title: &str,
    sample: &Sample,
) -> Option<(bool, String)> {
    let owner = receiver.owner();
    let (request, data_set) = (sample.request(title)?, sample.data_set.clone());
    offer(cluster, sample);
    let asked = cluster
        .world
        .spawn_on(owner, async move { tokio::time::timeout(PATIENCE, receiver.c_store(request, data_set)).await });
    let status = asked.await.ok()?.ok()?;
    Some((status.kind() == StatusKind::Success, format!("{:04x} {}", status.code(), status.comment())))
}

/// The same by STOW-RS, from an address if the sender is known by one. Of what failed the answer ends with the reason.
pub(super) async fn by_stow(
    cluster: &Cluster,
    receiver: &Receiver,
    from: Option<IpAddr>,
    sample: &Sample,
) -> Option<(bool, String)> {
    let mut request = stow(sample);
    if let Some(from) = from {
        request.extensions_mut().insert(Remote(from));
    }
    offer(cluster, sample);
    let answered = http::ask_receiver(cluster, receiver, PATIENCE, request).await?;
    let reason = answered.json()[FAILED]["Value"][0][FAILURE_REASON]["Value"][0].as_u64();
    let reason = reason.map(|reason| format!(" {reason:04x}")).unwrap_or_default();
    Some((answered.status == StatusCode::OK, format!("{}{reason}", answered.status)))
}

/// Remembers what is sent, whatever becomes of it.
fn offer(cluster: &Cluster, sample: &Sample) {
    cluster.watch.instances.offer(&sample.study, &sample.sop_instance, &sample.data_set);
}

/// Remembers what a sender was told.
fn note(cluster: &Cluster, slot: u32, sample: &Sample, stored: bool, answer: &str) -> bool {
    let world = &cluster.world;
    world.event(slot, format_args!("instance {}: {answer}", sample.sop_instance));
    if stored {
        cluster.watch.senders.taken(&sample.sop_instance);
        let Sample { study, sop_instance, data_set } = sample.clone();
        cluster.watch.instances.acknowledged(slot, Acknowledged { study, sop_instance, data_set });
    } else {
        world.sometimes("an instance was refused");
        cluster.watch.senders.refused(cluster, slot, &sample.sop_instance, answer);
    }
    stored
}

fn stow(sample: &Sample) -> Request<Body> {
    let mut body = b"--part\r\nContent-Type: application/dicom\r\n\r\n".to_vec();
    body.extend_from_slice(&sample.file());
    body.extend_from_slice(b"\r\n--part--\r\n");
    Request::post("/dicom-web/studies")
        .header(header::HOST, "localhost")
        .header(header::CONTENT_TYPE, "multipart/related; type=\"application/dicom\"; boundary=part")
        .body(Body::from(body))
        .unwrap_or_default()
}

/// Sends other bytes under the UID of an image that was acknowledged here: they are refused, and it stays as it was.
async fn contest(cluster: &Arc<Cluster>, slot: u32, sent: &Sample, of: &Of<'_>, rng: &mut Rng) {
    let sop_instance = &sent.sop_instance;
    let Some(number) = sop_instance.rsplit('.').next().and_then(|number| number.parse().ok()) else { return };
    let other = Sample::new(of, number, rng.next(), rng.between(1, 8_000));
    let is_acknowledged = || cluster.watch.instances.is_acknowledged_at(slot, sop_instance);
    let is_of_it = other.sop_instance == *sop_instance;
    let Some(receiver) = cluster.receiver(slot).filter(|_| is_of_it && is_acknowledged()) else { return };
    cluster.watch.instances.contest(sop_instance);
    let Some((stored, answer)) = by_c_store(cluster, receiver, &other).await else { return };
    // With a machine that was lost meanwhile the first is gone.
    if stored && is_acknowledged() {
        let detail = format!("other bytes under {sop_instance} were acknowledged in slot {slot}: {answer}");
        cluster.world.violation("I3", detail);
    }
    if answer.starts_with(DOES_NOT_MATCH) {
        cluster.world.sometimes("other bytes under a known UID were refused");
    }
}

/// Sends late images of studies that are known already, some twice.
pub(crate) async fn run(cluster: Arc<Cluster>, slot: u32, mut rng: Rng) {
    let mut last: Option<Sample> = None;
    for number in 0..cluster.plan.at_most(INSTANCES_MAX) {
        tokio::time::sleep(rng.around(cluster.plan.instance_every)).await;
        if cluster.is_ending() {
            return;
        }
        let len = if rng.chance(0.05) { rng.between(20_000, 200_000) } else { rng.between(1, 8_000) };
        let studies = cluster.watch.instances.studies_of(slot);
        let Some(study) = rng.pick(&studies).cloned() else { continue };
        let accession = format!("A{slot}-{}", study.rsplit('.').next().unwrap_or_default());
        let Some(patient) = hospital::patient_of(cluster.plan.seed, &accession) else { continue };
        let of = Of {
            study: &study,
            accession: &accession,
            patient: patient.id.as_str(),
            issuer: patient.issuer.as_str(),
            institution: "",
            modality: "CT",
        };
        let fresh = Sample::new(&of, 1_000 + number, rng.next(), len);
        // A sender that got no answer sends again; one that did sometimes does, too.
        let again = last.take().filter(|_| rng.chance(0.2));
        let sample = again.unwrap_or(fresh);
        let stored = store(&cluster, slot, &sample, &mut rng).await;
        if stored && cluster.gateway_slot() != Some(slot) && rng.chance(CONTESTED) {
            contest(&cluster, slot, &sample, &of, &mut rng).await;
        }
        last = Some(sample).filter(|_| !stored || rng.chance(0.1));
    }
}
