//! Images find their exam by accession number and patient, or stand apart for a person to look at.

use maillage_tests::exams::requested;
use maillage_tests::study::{CALLED, CALLING, associate, store};
use maillage_tests::{Http, Slices, until};
use serde_json::{Value, json};

use crate::mesh;

/// The exam that a study belongs to, once the study is published.
async fn exam_of(http: Http, study: &Slices) -> Value {
    until("the study has an exam", async || {
        let exams = http.json("/api/v1/exams?fresh=true").await;
        let has = |exam: &&Value| exam["studies"].as_array().is_some_and(|uids| uids.contains(&json!(study.study)));
        exams["exams"].as_array()?.iter().find(has).cloned()
    })
    .await
}

#[tokio::test]
async fn images_join_the_exam_of_their_accession_number_and_patient() {
    let mesh = mesh(1).await;
    let site = &mesh.sites[0];
    let id = site.http().post("/api/v1/exams", &requested("A1", "P1")).await.expect(201).json()["id"].clone();
    let study = Slices::new("A1", "P1", 5);
    study.send(site.dicom()).await;
    let exam = exam_of(site.http(), &study).await;
    assert_eq!((&exam["id"], &exam["state"], &exam["unsolicited"]), (&id, &json!("waiting"), &json!(null)));
    assert_eq!(exam["images_here"], json!(true));
    let shown = site.run_json(&["study", "show", &study.study]).await;
    assert_eq!((&shown["instances"], &shown["exams"]), (&json!(5), &json!([id])));
}

#[tokio::test]
async fn images_of_another_patient_are_never_attached_to_the_request() {
    let mesh = mesh(1).await;
    let site = &mesh.sites[0];
    let id = site.http().post("/api/v1/exams", &requested("A1", "P1")).await.expect(201).json()["id"].clone();
    let wrong = Slices::new("A1", "P2", 3);
    wrong.send(site.dicom()).await;
    let exam = exam_of(site.http(), &wrong).await;
    assert_ne!(exam["id"], id);
    assert_eq!((&exam["unsolicited"], &exam["patient"]["id"]), (&json!("other-patient"), &json!("P2")));
    let request = site.http().json(&format!("/api/v1/exams/{id}?fresh=true")).await;
    assert_eq!((&request["state"], &request["studies"]), (&json!("requested"), &json!([])));
    let page = site.http().get("/?lang=en").await.expect(200).text();
    assert!(page.contains("To reconcile") && page.contains("another patient"), "a person is told");

    // A person decides that they belong together after all.
    let (from, into) = (exam["id"].to_string(), id.to_string());
    site.run_json(&["exams", "reconcile", &from, "--into", &into]).await;
    let request = site.http().json(&format!("/api/v1/exams/{id}?fresh=true")).await;
    assert_eq!((&request["state"], &request["studies"]), (&json!("waiting"), &json!([wrong.study])));
    let gone = site.http().json(&format!("/api/v1/exams/{from}?fresh=true")).await;
    assert_eq!((&gone["state"], &gone["reconciled_into"]), (&json!("cancelled"), &id));
    site.run(&["exams", "reconcile", &from, "--into", &into]).await.ended(1);
}

#[tokio::test]
async fn a_request_that_comes_after_its_images_adopts_them() {
    let mesh = mesh(1).await;
    let site = &mesh.sites[0];
    let study = Slices::new("A1", "P1", 3);
    study.send(site.dicom()).await;
    let unsolicited = exam_of(site.http(), &study).await;
    assert_eq!((&unsolicited["unsolicited"], &unsolicited["state"]), (&json!("no-request"), &json!("waiting")));
    // Another patient's request with the same accession number does not.
    let other = site.http().post("/api/v1/exams", &requested("A1", "P2")).await.expect(201).json();
    assert_ne!(other["id"], unsolicited["id"]);
    let added = site.http().post("/api/v1/exams", &requested("A1", "P1")).await.expect(200).json();
    assert_eq!(added, json!({ "id": unsolicited["id"], "existed": true }));
    let exam = exam_of(site.http(), &study).await;
    assert_eq!((&exam["id"], &exam["unsolicited"]), (&unsolicited["id"], &json!(null)));
    assert_eq!(exam["hospital"], json!("Test hospital"), "what the request says is known now");
}

#[tokio::test]
async fn an_instance_of_another_patient_is_refused_by_the_study_it_claims() {
    let mesh = mesh(1).await;
    let site = &mesh.sites[0];
    let study = Slices::new("A1", "PATIENT1", 2);
    study.send(site.dicom()).await;
    let (uid, dataset) = study.first();
    let swapped = replaced(dataset, b"PATIENT1", b"PATIENT2");
    let swapped = replaced(&swapped, uid.as_bytes(), format!("{}9", &uid[..uid.len() - 1]).as_bytes());
    let new_uid = format!("{}9", &uid[..uid.len() - 1]);
    let mut association = associate(site.dicom(), CALLING, CALLED).await.expect("an association");
    let status = store(&mut association, &new_uid, swapped.into()).await.expect("an answer");
    assert!(!status.is_stored(), "{status:?}");
    assert!(!status.comment().contains("PATIENT"), "no patient in a comment: {status:?}");
    study.is_whole_at(site.http()).await;
}

fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let at = maillage_tests::multipart::find(bytes, from).expect("it is there");
    [&bytes[..at], to, &bytes[at + from.len()..]].concat()
}
