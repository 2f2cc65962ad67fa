//! What supervisors, Prometheus and whoever reads logs are told, and what they must never be told.

use std::time::Duration;

use maillage_tests::exams::requested;
use maillage_tests::{Mesh, Site, Slices, until};
use serde_json::json;

use crate::mesh;

const NAME: &str = "QUIXOTIC^ALONSA";
const PATIENT: &str = "PATIENT-7351";
const ACCESSION: &str = "ACC-90210";

/// A mesh of three in which a patient was requested, imaged, claimed, read and reported, wrongly sent
/// and wrongly asked for; with the study.
async fn with_a_patient() -> (Mesh, Slices) {
    let mesh = mesh(3).await;
    let site = &mesh.sites[0];
    let mut exam = requested(ACCESSION, PATIENT);
    exam["patient"]["name"] = json!(NAME);
    let id = site.http().post("/api/v1/exams", &exam).await.expect(201).json()["id"].to_string();
    let study = Slices::named(ACCESSION, PATIENT, NAME, 5);
    study.send(site.dicom()).await;
    let (uid, dataset) = study.first();
    let mut other = dataset.to_vec();
    *other.last_mut().expect("bytes") ^= 1;
    site.http().post_file(maillage_tests::study::file(uid, &other)).await.expect(200);
    site.http().post_file(maillage_tests::study::file(uid, &dataset[..dataset.len() - 5])).await.expect(400);
    until("the study is on three sites", async || {
        let exam = site.http().json(&format!("/api/v1/exams/{id}")).await;
        (exam["copies"] == json!(3)).then_some(())
    })
    .await;
    let granted = mesh.sites[1].http().post("/api/v1/claims/next", &json!({ "user": "dr-a" })).await.expect(200).json();
    mesh.sites[2].http().post(&format!("/api/v1/exams/{id}/claim"), &json!({ "user": "dr-b" })).await.expect(409);
    study.is_whole_at(mesh.sites[2].http()).await;
    mesh.sites[1].run(&["study", "verify", &study.study]).await.ended(0);
    let report = json!({ "user": "dr-a", "token": granted["token"], "text": format!("{NAME} is well.") });
    mesh.sites[1].http().post(&format!("/api/v1/exams/{id}/report"), &report).await.expect(200);
    mesh.sites[0].http().get("/").await.expect(200);
    let bad = json!({ "accession": ACCESSION, "patient": { "id": PATIENT, "name": NAME, "sex": NAME } });
    mesh.sites[0].http().post("/api/v1/exams", &bad).await.expect(400);
    (mesh, study)
}

#[tokio::test]
async fn health_and_metrics_and_logs_name_no_patient() {
    let (mesh, study) = with_a_patient().await;
    let (uid, _) = study.first();
    for site in &mesh.sites {
        let http = site.http();
        assert_eq!(http.get("/livez").await.expect(200).text(), "ok\n");
        let ready = http.get("/readyz?verbose").await.expect(200).text();
        assert!(ready.contains("raft ok") && ready.contains("store ok") && ready.ends_with("ready\n"), "{ready}");
        let metrics = http.get("/metrics").await.expect(200);
        assert!(metrics.header("content-type").starts_with("application/openmetrics-text"));
        let metrics = metrics.text();
        assert!(metrics.ends_with("# EOF\n"));
        for name in ["QUIXOTIC", "ALONSA", PATIENT, ACCESSION, &study.study, uid, "dr-a", "dr-b"] {
            assert!(!metrics.contains(name), "{name} is in the metrics of {}", site.name());
            assert!(!ready.contains(name));
        }
        let log = site.log();
        for name in ["QUIXOTIC", "ALONSA", PATIENT, ACCESSION] {
            let line = log.lines().find(|line| line.contains(name));
            assert_eq!(line, None, "{name} is in the log of {}", site.name());
        }
        assert!(log.contains("INFO"), "there is a log");
    }
}

#[tokio::test]
async fn metrics_count_what_happened() {
    let (mesh, _) = with_a_patient().await;
    let metrics = mesh.sites[0].http().get("/metrics").await.expect(200).text();
    let value = |start: &str, labels: &[&str]| {
        let fits = |line: &&str| line.starts_with(start) && labels.iter().all(|label| line.contains(label));
        let line = metrics.lines().find(fits).unwrap_or_else(|| panic!("{start} {labels:?} in {metrics}"));
        line.rsplit(' ').next().and_then(|number| number.parse::<f64>().ok()).expect("a number")
    };
    assert_eq!(value("maillage_instances_received_total", &["new"]), 5.0);
    assert_eq!(value("maillage_instances_received_total", &["conflict"]), 1.0);
    assert!(value("maillage_received_bytes_total", &[]) > 5.0 * 32_768.0);
    assert!(value("maillage_rejected_total", &["import"]) >= 1.0);
    assert!(value("maillage_commands_total", &[]) >= 1.0);
    assert!(value("maillage_http_requests_total", &["/api/v1/exams/{id}"]) >= 1.0, "routes, not paths");
    for line in metrics.lines().filter(|line| !line.starts_with('#')) {
        assert!(line.starts_with("maillage_"), "{line}");
    }
}

#[tokio::test]
async fn sigterm_ends_every_site_within_5_seconds_with_0() {
    let mut mesh = mesh(3).await;
    let study = Slices::new("A1", "P1", 10);
    study.send(mesh.sites[0].dicom()).await;
    for n in 0..3 {
        // The last ones have no quorum left, and end all the same.
        ends_in_good_order(&mut mesh.sites[n]).await;
    }
    for site in &mut mesh.sites {
        site.start();
    }
    for site in &mut mesh.sites {
        site.ready().await;
    }
    mesh.settled().await;
    study.is_whole_at(mesh.sites[0].http()).await;
}

async fn ends_in_good_order(site: &mut Site) {
    let (code, took) = site.terminate().await;
    assert_eq!(code, 0, "{}", site.name());
    assert!(took < Duration::from_secs(5), "{} took {took:?}", site.name());
}

#[tokio::test]
async fn sigterm_is_not_held_up_by_pages_that_listen() {
    let mut mesh = mesh(1).await;
    let mut events = mesh.sites[0].http().events("/api/v1/events").await;
    events.next(Duration::from_secs(5)).await;
    ends_in_good_order(&mut mesh.sites[0]).await;
}

#[tokio::test]
async fn sigterm_is_not_held_up_by_senders_that_stay() {
    let mut mesh = mesh(1).await;
    let study = Slices::new("A1", "P1", 3);
    let idle = tokio::net::TcpStream::connect(mesh.sites[0].dicom()).await.expect("a connection");
    let association = study.send_unreleased(mesh.sites[0].dicom()).await;
    ends_in_good_order(&mut mesh.sites[0]).await;
    drop((idle, association));
}
