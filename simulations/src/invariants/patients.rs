//! I8: no image is ever shown under another patient: an exam has the studies of its own examination, and who asks for a
//! patient's exams is shown that patient's, of which each says whose it is; in the end all of them, with their images
//! (I3).
//!
//! Hospitals here name the study of exam `n` at slot `s` `2.25.s.n` and its accession number `As-n`, so
//! that a wrong match shows in the state of every node; and two of them give the same Patient IDs.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::http::{Method, StatusCode};
use maillage_consensus::View;
use maillage_consensus::exam::Patient;
use maillage_consensus::ids::ExamId;
use serde_json::Value;

use super::{prefetch, retrieval};
use crate::cluster::{Cluster, Running};
use crate::rng::Rng;
use crate::workload::{hospital, http};

/// Exams looked at each time, the newest, besides the last look at all.
const NEWEST: usize = 60;
/// A reader who hears nothing for so long looks no further.
const PATIENCE: Duration = Duration::from_secs(10);
/// Patients with priors who are looked at in the end at each node.
const PATIENTS: usize = 6;
/// How long in the end the images of one prior may take: everything was there a moment ago.
const PRIOR_WITHIN: Duration = Duration::from_secs(60);

/// The study of an examination, by its accession number; none when it is no hospital's.
fn study_of(accession: &str) -> Option<String> {
    Some(format!("2.25.{}", accession.strip_prefix('A')?.replace('-', ".")))
}

/// Looks at the exams as the node of `running` knows them; at all of them with `all`.
pub(crate) fn check(cluster: &Cluster, running: &Running, all: bool) {
    let exams = cluster.history.exams();
    let first = if all { 0 } else { exams.len().saturating_sub(NEWEST) };
    let engine = running.group.reader();
    let view = View::new(&*engine);
    for id in exams.into_iter().skip(first) {
        // One that this node has not reached yet.
        let Ok(Some(exam)) = view.exam(ExamId(id)) else { continue };
        let accession = exam.request.accession.as_str();
        let Some(own) = study_of(accession) else { continue };
        for study in exam.studies.iter().filter(|study| study.as_str() != own) {
            let detail = format!("{:?}: exam {id} of examination {accession} shows study {study}", running.owner);
            cluster.world.violation("I8", detail);
        }
        if !exam.studies.is_empty() {
            cluster.world.sometimes("an exam had its own images");
        }
    }
}

/// An exam as a list shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) exam: u64,
    pub(crate) studies: Vec<String>,
    accession: String,
    /// Patient ID and its issuer.
    patient: [String; 2],
}

impl Shown {
    fn of(line: &Value) -> Option<Self> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Some(Self {
            exam: line["id"].as_u64()?,
            studies: line["studies"].as_array()?.iter().map(text).collect(),
            accession: text(&line["accession"]),
            patient: [text(&line["patient"]["id"]), text(&line["patient"]["issuer"])],
        })
    }

    fn is_of(&self, patient: &Patient) -> bool {
        self.patient == [patient.id.as_str(), patient.issuer.as_str()]
    }

    /// What is wrong with it in answer to a question for the exams of one Patient ID, if anything is; `whose` knows of
    /// whom an examination is.
    fn fault(&self, asked: &str, whose: impl Fn(&str) -> Option<Patient>) -> Option<String> {
        let Self { exam, accession, patient: [id, issuer], .. } = self;
        if id != asked {
            return Some(format!("exam {exam} of patient {id} is shown to who asks for {asked}"));
        }
        let own = whose(accession)?;
        if !self.is_of(&own) {
            let (own_id, own_issuer) = (&own.id, &own.issuer);
            return Some(format!("exam {exam} of patient {own_id} of {own_issuer} is shown as {id} of {issuer}"));
        }
        let study = study_of(accession)?;
        let other = self.studies.iter().find(|shown| **shown != study)?;
        Some(format!("exam {exam} of examination {accession} is shown with study {other}"))
    }
}

/// A patient's exams as the node of `running` shows them to who asks for the Patient ID; `None` when it does not answer.
async fn exams_of(cluster: &Cluster, running: &Running, patient: &Patient) -> Option<Vec<Shown>> {
    let (mut shown, mut after) = (Vec::new(), None);
    loop {
        let from = after.map(|after: u64| format!("&after={after}")).unwrap_or_default();
        let path = format!("/api/v1/exams?patient={}{from}", patient.id);
        let answered = http::ask(cluster, running, PATIENCE, http::request(Method::GET, &path, None, None)).await?;
        if answered.status != StatusCode::OK {
            return None;
        }
        let said = answered.json();
        shown.extend(said["exams"].as_array()?.iter().filter_map(Shown::of));
        after = said["next"].as_u64();
        if after.is_none() {
            break;
        }
    }
    let whose = |accession: &str| hospital::patient_of(cluster.plan.seed, accession);
    for fault in shown.iter().filter_map(|exam| exam.fault(patient.id.as_str(), whose)) {
        cluster.world.violation("I8", format!("{:?}: {fault}", running.owner));
    }
    let all = shown.len();
    shown.retain(|exam| exam.is_of(patient));
    if shown.len() < all {
        cluster.world.sometimes("two hospitals had a patient each of one identifier");
    }
    Some(shown)
}

/// What the node of `running` shows of the patient of `exam` besides that.
pub(crate) async fn priors_of(cluster: &Cluster, running: &Running, exam: u64) -> Vec<Shown> {
    let accession = {
        let engine = running.group.reader();
        View::new(&*engine).exam(ExamId(exam)).ok().flatten().map(|exam| exam.request.accession)
    };
    let patient = accession.and_then(|accession| hospital::patient_of(cluster.plan.seed, accession.as_str()));
    let Some(patient) = patient else { return Vec::new() };
    let mut shown = exams_of(cluster, running, &patient).await.unwrap_or_default();
    shown.retain(|prior| prior.exam != exam);
    shown
}

/// Whether each node, once it has applied everything, shows all exams of patients who were here more than once, and
/// gives the images of each, prefetched or not.
pub(crate) async fn priors_are_there(cluster: &Cluster) {
    let mut rng = Rng::stream(cluster.plan.seed, "priors in the end");
    let acknowledged = cluster.watch.instances.studies();
    for running in cluster.all_running() {
        let mut several = patients_with_priors(cluster, &running);
        rng.shuffle(&mut several);
        for (patient, exams) in several.into_iter().take(PATIENTS) {
            let Some(shown) = exams_of(cluster, &running, &patient).await else { continue };
            let is_missing = |exam: &&u64| !shown.iter().any(|shown| shown.exam == **exam);
            for exam in exams.iter().filter(is_missing) {
                let detail = format!("{:?} does not show exam {exam} among its patient's", running.owner);
                cluster.world.violation("I3", detail);
            }
            for study in shown.iter().flat_map(|shown| &shown.studies).filter(|study| acknowledged.contains(*study)) {
                if prefetch::has_brought(&running, study).await {
                    cluster.world.sometimes("a prefetched prior was at its centre in the end");
                }
                let deadline = cluster.world.now() + PRIOR_WITHIN;
                if !retrieval::is_there(cluster, running.owner.slot, study, deadline).await {
                    return;
                }
            }
        }
    }
}

/// Patients with more than one acknowledged exam, and which those are.
fn patients_with_priors(cluster: &Cluster, running: &Running) -> Vec<(Patient, Vec<u64>)> {
    let engine = running.group.reader();
    let view = View::new(&*engine);
    let mut exams: BTreeMap<[String; 2], (Patient, Vec<u64>)> = BTreeMap::new();
    for id in cluster.history.exams() {
        let Ok(Some(exam)) = view.exam(ExamId(id)) else { continue };
        let patient = hospital::patient_of(cluster.plan.seed, exam.request.accession.as_str());
        let Some(patient) = patient else { continue };
        let key = [patient.id.to_string(), patient.issuer.to_string()];
        exams.entry(key).or_insert_with(|| (patient, Vec::new())).1.push(id);
    }
    exams.into_values().filter(|(_, exams)| exams.len() > 1).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_exam_of_another_patient_is_a_mix_up_however_it_is_shown() {
        let whose = |accession: &str| hospital::patient_of(7, accession);
        let own = hospital::patient(7, 1, 0);
        let line = |accession: &str, issuer: &str, study: &str| {
            let patient = json!({ "id": own.id, "issuer": issuer });
            let line = json!({ "id": 9, "accession": accession, "patient": patient, "studies": [study] });
            Shown::of(&line).expect("an exam")
        };
        let fault = |shown: &Shown| shown.fault(own.id.as_str(), whose);
        let shown = line("A1-0", "H1", "2.25.1.0");
        assert!(fault(&shown).is_none() && shown.is_of(&own));
        assert!(shown.fault("P9", whose).is_some_and(|why| why.contains("who asks for P9")));
        // Another hospital's patient of the same identifier, told apart and not.
        let other = line("A2-0", "H2", "2.25.2.0");
        assert!(fault(&other).is_none() && !other.is_of(&own));
        assert!(fault(&line("A2-0", "H1", "2.25.2.0")).is_some_and(|why| why.contains("is shown as P0 of H1")));
        assert!(fault(&line("A1-0", "H1", "2.25.2.0")).is_some_and(|why| why.contains("with study 2.25.2.0")));
    }
}
