//! Images of the exams at the head of the room come to who is likely to read them, within a budget, and count as no
//! copy.

use std::time::Duration;

use maillage_tests::exams::requested;
use maillage_tests::{Http, Mesh, Settings, Site, Slices, until};
use serde_json::{Value, json};

use crate::binary;
use crate::life::{add, done};
use crate::repair::rot;

/// Bytes that a site fetched for who is likely to read them.
const PREFETCHED: &str = "maillage_chunk_bytes_received_total{class=\"prefetch\"}";
/// … and dropped.
const DROPPED: &str = "maillage_prefetch_evicted_bytes_total";

/// A counter of a site, 0 while it has not counted.
pub(crate) async fn metric(http: Http, line: &str) -> u64 {
    let text = http.get("/metrics").await.expect(200).text();
    let found = text.lines().find_map(|own| own.strip_prefix(line)?.trim().parse().ok());
    found.unwrap_or(0)
}

async fn holders(http: Http, study: &Slices) -> Vec<String> {
    let shown = http.json(&format!("/api/v1/studies/{}", study.study)).await;
    let holders = shown["part_list"][0]["holders"].as_array().cloned().unwrap_or_default();
    holders.iter().map(|holder| holder["site_name"].as_str().expect("a name").to_owned()).collect()
}

/// Bytes that a site fetched for readers while it was asked for a study.
async fn fetched_to_read(http: Http, study: &Slices) -> u64 {
    let of_readers = "maillage_chunk_bytes_received_total{class=\"reader\"}";
    let before = metric(http, of_readers).await;
    study.is_whole_at(http).await;
    metric(http, of_readers).await - before
}

async fn comes_to(http: Http, study: &Slices) {
    until("the study is read at the site without asking another", async || {
        (fetched_to_read(http, study).await == 0).then_some(())
    })
    .await;
}

/// One copy a zone: the third site, which shares the receiver's, gets none, and prefetches up to `room_mib` MiB.
async fn with_a_third_site(room_mib: u64) -> Mesh {
    let zones = ["west", "north", "west"];
    let settings = |n: usize| Settings {
        zone: zones[n].to_owned(),
        copies: 2,
        lines: if n == 2 { vec![("[storage]", format!("prefetch_mib_max = {room_mib}"))] } else { Vec::new() },
        ..Settings::default()
    };
    Mesh::start(binary(), 3, settings).await
}

#[tokio::test]
async fn the_third_site_has_the_head_of_the_room_before_it_is_claimed_within_its_budget() {
    let mut mesh = with_a_third_site(1).await;
    let (receiver, third) = (mesh.sites[0].http(), mesh.sites[2].http());
    // Some 0.95 MB each: of two, the second does not fit.
    let arrives = async |accession: &str, priority: &str| {
        let mut order = requested(accession, &format!("P-{accession}"));
        order["priority"] = json!(priority);
        receiver.post("/api/v1/exams", &order).await.expect(201);
        let study = Slices::new(accession, &format!("P-{accession}"), 28);
        study.send(mesh.sites[0].dicom()).await;
        until("two sites hold the study", async || {
            let known = receiver.get(&format!("/api/v1/studies/{}", study.study)).await.status == 200;
            (known && holders(receiver, &study).await.len() == 2).then_some(())
        })
        .await;
        study
    };
    let first = arrives("A1", "urgent").await;
    comes_to(third, &first).await;
    assert!(metric(third, PREFETCHED).await > 0);
    assert_eq!(metric(third, DROPPED).await, 0);

    // A more urgent one takes its room.
    let second = arrives("A2", "vital").await;
    comes_to(third, &second).await;
    assert!(metric(third, DROPPED).await > 0);
    assert!(fetched_to_read(third, &first).await > 0, "the first was dropped, and is read from elsewhere");
    for study in [&first, &second] {
        assert_eq!(holders(receiver, study).await, ["paris", "lyon"], "what is prefetched is no copy");
    }

    // Claimed, it is a copy, from what is here; and there is room for the first again.
    let claim = third.post("/api/v1/claims/next", &json!({ "user": "dr-a" })).await.expect(200).json();
    assert_eq!(claim["exam"]["accession"], json!("A2"), "{claim}");
    until("the claimed study is a copy here", async || (holders(receiver, &second).await.len() == 3).then_some(()))
        .await;
    assert_eq!(metric(third, "maillage_prefetch_claims_total{outcome=\"hit\"}").await, 1);
    comes_to(third, &first).await;
    assert_eq!(holders(receiver, &first).await.len(), 2);

    // It is known after a restart, and still no copy; a copy is not dropped for want of room.
    mesh.sites[2].kill();
    mesh.sites[2].start();
    mesh.sites[2].ready().await;
    comes_to(third, &first).await;
    comes_to(third, &second).await;
    assert_eq!(holders(receiver, &first).await.len(), 2);
    // Whose patient refuses the transfer is not kept there.
    let mut refused = requested("A1", "P-A1");
    refused["consent"] = json!("refused");
    receiver.post("/api/v1/exams", &refused).await.expect(200);
    until("the images of the refused transfer are dropped", async || {
        let dropped = metric(third, DROPPED).await;
        (dropped > 0).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let verify = mesh.sites[2].run(&["-o", "json", "study", "verify", &second.study]).await.ended(0).json();
    assert_eq!(verify["complete"], Value::Bool(true));
}

/// A requested exam and its images, which come to this site and to one other: its number and its study.
async fn on_two_sites(site: &Site, accession: &str, patient: &str, modality: &str) -> (String, Slices) {
    let mut order = requested(accession, patient);
    order["modality"] = json!(modality);
    let id = add(site.http(), &order).await;
    let study = Slices::new(accession, patient, 4);
    study.send(site.dicom()).await;
    until("two sites hold the study", async || {
        let known = site.http().get(&format!("/api/v1/studies/{}", study.study)).await.status == 200;
        (known && holders(site.http(), &study).await.len() == 2).then_some(())
    })
    .await;
    (id, study)
}

/// … of one that is read and reported there.
async fn earlier(site: &Site, accession: &str, patient: &str, modality: &str) -> Slices {
    let (id, study) = on_two_sites(site, accession, patient, modality).await;
    let claim = done(site.http(), &format!("/api/v1/exams/{id}/claim"), json!({ "user": "dr-a" })).await;
    let report = json!({ "user": "dr-a", "token": claim["token"], "text": "Nothing." });
    done(site.http(), &format!("/api/v1/exams/{id}/report"), report).await;
    study
}

#[tokio::test]
async fn three_earlier_exams_of_the_patient_come_with_the_new_one_those_of_its_modality_first_and_nobody_elses() {
    let mut mesh = with_a_third_site(64).await;
    // Away as long as these exams wait to be read, for which it would bring their images.
    mesh.sites[2].kill();
    mesh.leader().await;
    let mut priors = Vec::new();
    for accession in ["B1", "B2", "B3"] {
        priors.push(earlier(&mesh.sites[0], accession, "P1", "CT").await);
    }
    // The newest, and the fourth of four.
    let other_modality = earlier(&mesh.sites[0], "B4", "P1", "MR").await;
    let other_patient = earlier(&mesh.sites[0], "B5", "P2", "CT").await;

    let third = mesh.sites[2].http();
    mesh.sites[2].start();
    mesh.sites[2].ready().await;
    mesh.settled().await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(metric(third, PREFETCHED).await, 0, "nobody is about to read what is reported");

    let (_, new) = on_two_sites(&mesh.sites[0], "A1", "P1", "CT").await;
    comes_to(third, &new).await;
    for prior in &priors {
        comes_to(third, prior).await;
    }
    // Time to bring more, if more were wanted.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(metric(third, PREFETCHED).await > 0);
    assert!(fetched_to_read(third, &other_modality).await > 0, "three are enough");
    assert!(fetched_to_read(third, &other_patient).await > 0, "nobody asks for them");

    // Claimed, the exam's own images are a copy; those to compare them with are at hand, and none.
    let claim = third.post("/api/v1/claims/next", &json!({ "user": "dr-b" })).await.expect(200).json();
    assert_eq!(claim["exam"]["accession"], json!("A1"), "{claim}");
    until("the claimed study is a copy here", async || (holders(third, &new).await.len() == 3).then_some(())).await;
    assert_eq!(metric(third, "maillage_prefetch_claims_total{outcome=\"hit\"}").await, 1);
    for prior in &priors {
        assert_eq!(fetched_to_read(third, prior).await, 0);
        assert_eq!(holders(third, prior).await, ["paris", "lyon"], "what is prefetched is no copy");
    }
}

#[tokio::test]
async fn a_study_that_grows_is_brought_as_it_grows_and_no_image_of_it_twice() {
    let mesh = with_a_third_site(64).await;
    let (receiver, third) = (&mesh.sites[0], &mesh.sites[2]);
    add(receiver.http(), &requested("A1", "P1")).await;
    let whole = Slices::new("A1", "P1", 28);
    let half = |from: usize| Slices {
        instances: whole.instances.clone().into_iter().skip(from).step_by(2).collect(),
        ..whole.clone()
    };
    // Its own disk is read, and no other.
    let has = async |instances: u64| {
        until("all that is published is here", async || {
            let shown = third.http().get(&format!("/api/v1/studies/{}", whole.study)).await;
            if shown.status != 200 || shown.json()["instances"] != json!(instances) {
                return None;
            }
            let found = third.run_json(&["study", "verify", &whole.study]).await;
            (found["instances"] == json!(instances) && found["not_here"] == json!([])).then_some(())
        })
        .await;
    };
    half(0).send(receiver.dicom()).await;
    has(14).await;
    let first = metric(third.http(), PREFETCHED).await;
    half(1).send(receiver.dicom()).await;
    has(28).await;
    let more = metric(third.http(), PREFETCHED).await - first;
    assert!(first > 0 && more < first * 3 / 2, "{first} bytes, then {more}");
    let dropped = until("what took its place is all that is left", async || {
        let dropped = metric(third.http(), DROPPED).await;
        (dropped > 0).then_some(dropped)
    })
    .await;
    assert!(dropped < first / 4, "a list of images, none of them: {dropped} bytes of {first}");
    assert_eq!(fetched_to_read(third.http(), &whole).await, 0);
    until("what is prefetched is no copy", async || {
        (holders(receiver.http(), &whole).await == ["paris", "lyon"]).then_some(())
    })
    .await;
}

#[tokio::test]
async fn rot_in_what_is_prefetched_is_mended_and_makes_no_copy_of_it() {
    let mesh = with_a_third_site(64).await;
    let (_, study) = on_two_sites(&mesh.sites[0], "A1", "P1", "CT").await;
    let third = &mesh.sites[2];
    comes_to(third.http(), &study).await;
    rot(third, study.first().0);
    study.is_whole_at(third.http()).await;
    until("the rot is found and mended", async || {
        (metric(third.http(), "maillage_scrub_repaired_total").await == 1).then_some(())
    })
    .await;
    assert_eq!(third.http().json("/api/v1/chunks").await["bad"], json!(0));
    assert_eq!(fetched_to_read(third.http(), &study).await, 0, "it is here again");
    // Time to tell the mesh, if it were told.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(holders(mesh.sites[0].http(), &study).await, ["paris", "lyon"], "what is prefetched is no copy");
}
