//! Images come in: durable when confirmed, from known senders only, and never overwritten.

use std::fs;

use maillage_dicom::dimse::scu::ScuError;
use maillage_tests::exams::requested;
use maillage_tests::kills::kill_often;
use maillage_tests::study::{CALLED, CALLING, associate, echo, file};
use maillage_tests::{Caller, Mesh, Settings, Slices, until};
use serde_json::{Value, json};

use crate::{binary, mesh};

#[tokio::test]
async fn every_confirmed_instance_survives_kill_9_straight_after_the_last_success() {
    // Nothing is published before the kill: what comes back comes from the packs alone.
    let settings = Settings { quiet_seconds: 60, ..Settings::default() };
    let mut mesh = Mesh::start(binary(), 1, |_| settings.clone()).await;
    let site = &mut mesh.sites[0];
    for accession in ["A1", "A2", "A3"] {
        site.http().post("/api/v1/exams", &requested(accession, "P1")).await.expect(201);
        let study = Slices::new(accession, "P1", 20);
        let association = study.send_unreleased(site.dicom()).await;
        site.kill();
        drop(association);
        site.start();
        site.ready().await;
        study.is_whole_at(site.http()).await;
    }
    // And what was never published is found and published after the restart.
    until("the studies reach their exam", async || {
        let exams = site.http().json("/api/v1/exams").await;
        let waits =
            |exam: &Value| exam["state"] == json!("waiting") && exam["studies"].as_array().map(Vec::len) == Some(1);
        let exams = exams["exams"].as_array()?;
        (exams.len() == 3 && exams.iter().all(waits)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn kill_9_in_the_midst_of_sending_loses_no_confirmed_instance() {
    let settings = Settings { quiet_seconds: 60, ..Settings::default() };
    let mut mesh = Mesh::start(binary(), 1, |_| settings.clone()).await;
    let study = Slices::new("A1", "P1", 40);
    let address = mesh.sites[0].dicom();
    let mut association = associate(address, CALLING, CALLED).await.expect("an association");
    let mut confirmed = study.clone();
    confirmed.instances.clear();
    for (n, (uid, dataset)) in study.instances.iter().enumerate() {
        if n == 25 {
            // The next answer may or may not come; only what was confirmed counts.
            let sending = maillage_tests::study::store(&mut association, uid, dataset.clone());
            let site = &mut mesh.sites[0];
            let (sent, ()) = tokio::join!(sending, async { site.kill() });
            if sent.is_ok_and(|status| status.is_stored()) {
                confirmed.instances.insert(uid.clone(), dataset.clone());
            }
            break;
        }
        let status = maillage_tests::study::store(&mut association, uid, dataset.clone()).await.expect("an answer");
        assert!(status.is_stored());
        confirmed.instances.insert(uid.clone(), dataset.clone());
    }
    let site = &mut mesh.sites[0];
    site.start();
    site.ready().await;
    let came = maillage_tests::study::retrieve(site.http(), &study.path()).await.expect(200);
    assert!(came.parts().len() >= confirmed.instances.len());
    // A sender that was cut off sends all again; each is there once.
    study.send(site.dicom()).await;
    study.is_whole_at(site.http()).await;
}

/// A few of the five hundred that `chaos kills` does.
#[tokio::test]
async fn ten_kills_at_random_points_lose_nothing_that_was_acknowledged() {
    let settings = |_| Settings { quiet_seconds: 60, ..Settings::default() };
    let mut mesh = Mesh::start(binary(), 1, settings).await;
    let toll = kill_often(&mut mesh, 10, 1, |_| {}).await;
    assert!(toll.acknowledged > 0, "nothing was acknowledged: the kills came too early to show anything");
}

#[tokio::test]
async fn a_quota_refuses_what_is_new_and_never_what_is_sent_again() {
    let lines = vec![("[ingest]", "day_mib = 1".to_owned())];
    let mesh = Mesh::start(binary(), 1, |_| Settings { lines: lines.clone(), ..Settings::default() }).await;
    let site = &mesh.sites[0];
    let study = Slices::new("A1", "P1", 40);
    let mut association = associate(site.dicom(), CALLING, CALLED).await.expect("an association");
    let mut stored = study.clone();
    stored.instances.clear();
    let mut refused = 0;
    for (uid, dataset) in &study.instances {
        let status = maillage_tests::study::store(&mut association, uid, dataset.clone()).await.expect("an answer");
        if status.is_stored() {
            stored.instances.insert(uid.clone(), dataset.clone());
        } else {
            assert_eq!((status.code(), status.comment()), (0xA700, "the sender's quota of the day is used up"));
            refused += 1;
        }
    }
    let bytes: usize = stored.instances.values().map(bytes::Bytes::len).sum();
    assert!(refused > 0 && bytes <= 1 << 20 && bytes > 1 << 19, "{refused} refused, {bytes} bytes stored");
    association.release().await.expect("a released association");
    stored.send(site.dicom()).await;
    stored.is_whole_at(site.http()).await;
    // By STOW-RS another sender: its address, whose day has not begun.
    let http = site.http();
    for n in 0..3 {
        let body = stow_body(study.instances.iter().skip(n * 13).take(13));
        let headers = [("content-type", "multipart/related; type=\"application/dicom\"; boundary=b")];
        let answer = http.send(&hyper::Method::POST, "/dicom-web/studies", &headers, body).await.expect("an answer");
        if answer.status == 429 {
            assert_eq!(answer.header("retry-after"), "60");
            return;
        }
        assert!(matches!(answer.status, 200 | 202), "{}", answer.status);
    }
    let another = Slices::new("A2", "P2", 40);
    let headers = [("content-type", "multipart/related; type=\"application/dicom\"; boundary=b")];
    for (n, one) in another.instances.iter().enumerate() {
        let body = stow_body(std::iter::once(one));
        let answer = http.send(&hyper::Method::POST, "/dicom-web/studies", &headers, body).await.expect("an answer");
        if answer.status == 429 {
            assert!(n > 0);
            assert_eq!(answer.header("retry-after"), "60");
            return;
        }
        answer.expect(200);
    }
    panic!("STOW-RS has no quota");
}

/// A multipart body of these instances.
fn stow_body<'s>(instances: impl Iterator<Item = (&'s String, &'s bytes::Bytes)>) -> Vec<u8> {
    let mut body = Vec::new();
    for (uid, dataset) in instances {
        body.extend_from_slice(b"--b\r\ncontent-type: application/dicom\r\n\r\n");
        body.extend_from_slice(&file(uid, dataset));
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(b"--b--\r\n");
    body
}

#[tokio::test]
async fn a_sender_over_its_rate_waits_for_its_answers_and_another_does_not() {
    // A study of 20 slices has some 660 KiB: three seconds more than the first, which is free.
    let limit = "senders = [{ ae_title = \"TEST-CT\", rate_kib_s = 165 }]";
    let lines = vec![("[ingest]", limit.to_owned())];
    let mesh = Mesh::start(binary(), 1, |_| Settings { lines: lines.clone(), ..Settings::default() }).await;
    let site = &mesh.sites[0];
    let (limited, free) = (Slices::new("A1", "P1", 20), Slices::new("A2", "P2", 20));
    let since = tokio::time::Instant::now();
    limited.send(site.dicom()).await;
    let took = since.elapsed();
    assert!(took >= std::time::Duration::from_millis(2500), "not held back: {took:?}");
    let mut association = associate(site.dicom(), "OTHER", CALLED).await.expect("an association");
    let since = tokio::time::Instant::now();
    for (uid, dataset) in &free.instances {
        let status = maillage_tests::study::store(&mut association, uid, dataset.clone()).await.expect("an answer");
        assert!(status.is_stored());
    }
    assert!(since.elapsed() < took, "one sender's rate is not another's");
    association.release().await.expect("a released association");
    limited.is_whole_at(site.http()).await;
}

#[tokio::test]
async fn an_exam_is_receiving_everywhere_while_its_study_is_being_sent() {
    // Nothing is published before the sender is done.
    let settings = Settings { quiet_seconds: 60, ..Settings::default() };
    let mesh = Mesh::start(binary(), 3, |_| settings.clone()).await;
    let (receiver, other) = (&mesh.sites[1], &mesh.sites[2]);
    let add = async |body: Value| receiver.http().post("/api/v1/exams", &body).await.expect(201).json()["id"].clone();
    let (exam, its_double) = (add(requested("A1", "P1")).await, add(requested("A1", "P2")).await);
    let study = Slices::new("A1", "P1", 4);
    let mut association = associate(receiver.dicom(), CALLING, CALLED).await.expect("an association");
    let state = async |id: &Value| other.http().json(&format!("/api/v1/exams/{id}?fresh=true")).await["state"].clone();
    for (n, (uid, dataset)) in study.instances.iter().enumerate() {
        let status = maillage_tests::study::store(&mut association, uid, dataset.clone()).await.expect("an answer");
        assert!(status.is_stored());
        if n == 0 {
            until("the exam is receiving", async || (state(&exam).await == json!("receiving")).then_some(())).await;
        }
        assert_eq!(state(&exam).await, json!("receiving"));
    }
    assert_eq!(state(&its_double).await, json!("requested"), "another patient's images are no news of this exam");
    let told = other.http().json("/api/v1/audit?limit=100&fresh=true").await;
    let told = told["entries"].as_array().expect("entries").iter().filter(|entry| entry["kind"] == json!("arrive"));
    assert_eq!(told.count(), 1, "once, not once an instance");
    association.release().await.expect("released");
    until("the exam waits", async || (state(&exam).await == json!("waiting")).then_some(())).await;
    study.is_whole_at(receiver.http()).await;
}

#[tokio::test]
async fn only_known_callers_that_call_us_by_our_name_are_let_in() {
    let caller = |ae_title: &str, address: Option<&str>| Caller {
        ae_title: ae_title.to_owned(),
        address: address.map(str::to_owned),
    };
    let callers = vec![caller("CT1", None), caller("MR1", Some("10.0.0.0/8")), caller("US1", Some("127.0.0.0/8"))];
    let settings = Settings { callers, ..Settings::default() };
    let mesh = Mesh::start(binary(), 1, |_| settings.clone()).await;
    let to = mesh.sites[0].dicom();
    for calling in ["CT1", "US1"] {
        let mut association = associate(to, calling, CALLED).await.expect("a known caller");
        association.echo().await.expect("an echo");
    }
    for (calling, called, source, reason) in [
        // PS3.8 table 9-21: by the service user, 3 calling and 7 called AE title not recognised.
        ("STRANGER", CALLED, 1, 3),
        ("MR1", CALLED, 1, 3),
        ("ct1", CALLED, 1, 3),
        ("CT1", "ARCHIVE", 1, 7),
        ("CT1", "maillage", 1, 7),
    ] {
        let refused = associate(to, calling, called).await.expect_err("refused");
        let ScuError::Rejected(why) = refused else { panic!("{calling} to {called}: {refused}") };
        assert_eq!((why.source_code, why.reason), (source, reason), "{calling} to {called}");
    }
    let metrics = mesh.sites[0].http().get("/metrics").await.expect(200).text();
    let count = |reason: &str| {
        let line = metrics.lines().find(|line| line.contains("rejected_total") && line.contains(reason));
        line.unwrap_or_else(|| panic!("{reason} is counted: {metrics}")).to_owned()
    };
    assert!(count("called_ae").ends_with(" 2"), "{}", count("called_ae"));
    assert!(!count("calling_a").is_empty());
}

#[tokio::test]
async fn the_same_bytes_twice_are_one_instance_and_other_bytes_never_replace_it() {
    let mesh = mesh(1).await;
    let http = mesh.sites[0].http();
    let study = Slices::new("A1", "P1", 2);
    let (uid, dataset) = study.first();
    let outcome = async |bytes: &[u8]| http.post_file(file(uid, bytes)).await.expect(200).json()["outcome"].clone();
    assert_eq!(outcome(dataset).await, json!("new"));
    assert_eq!(outcome(dataset).await, json!("duplicate"));
    let chunks = http.json("/api/v1/chunks").await["chunks"].as_u64().expect("a number");
    let mut other = dataset.to_vec();
    let last = other.len() - 1;
    other[last] ^= 1;
    assert_eq!(outcome(&other).await, json!("conflict"));
    assert_eq!(outcome(&other).await, json!("conflict"), "still flagged when it comes again");
    let apart = http.json("/api/v1/chunks").await["conflicts"].clone();
    assert_eq!(apart.as_array().map(Vec::len), Some(1), "one instance is listed as kept apart: {apart}");
    assert_eq!(outcome(dataset).await, json!("duplicate"));

    let path = format!("{}/series/{}/instances/{uid}", study.path(), study.series);
    let parts = maillage_tests::study::retrieve(http, &path).await.expect(200).parts();
    assert_eq!(parts.len(), 1);
    assert!(maillage_tests::multipart::dataset(&parts[0].body) == *dataset, "the first bytes are what is shown");
    let kept = http.json("/api/v1/chunks").await["chunks"].as_u64().expect("a number");
    assert!(kept > chunks, "the other bytes are kept too, apart: {kept} chunks after {chunks}");
    let metrics = http.get("/metrics").await.expect(200).text();
    assert!(metrics.lines().any(|line| line.contains("rejected_total") && line.contains("uid-conflict")), "{metrics}");
    // By C-STORE as well: a sender must not believe that what it sent is what is shown.
    let mut association = associate(mesh.sites[0].dicom(), CALLING, CALLED).await.expect("an association");
    let status = maillage_tests::study::store(&mut association, uid, other.into()).await.expect("an answer");
    assert!(!status.is_stored(), "{status:?}");
    study.send(mesh.sites[0].dicom()).await;
    study.is_whole_at(http).await;
}

#[tokio::test]
async fn import_takes_folders_and_reports_what_it_left_out() {
    let mesh = mesh(1).await;
    let site = &mesh.sites[0];
    let study = Slices::new("A1", "P1", 6);
    let folder = mesh.root().join("disc");
    let deep = folder.join("a/b");
    make(&deep);
    for (n, (uid, dataset)) in study.instances.iter().enumerate() {
        let place = if n % 2 == 0 { &deep } else { &folder };
        write(&place.join(format!("IM{n:04}")), &file(uid, dataset));
    }
    let (uid, dataset) = study.first();
    write(&folder.join("again.dcm"), &file(uid, dataset));
    write(&folder.join("readme.txt"), b"no image");
    write(&folder.join("DICOMDIR"), &file(uid, dataset));
    let folder_name = folder.display().to_string();

    let ran = site.run(&["-o", "json", "study", "import", &folder_name]).await.ended(0);
    let summary = ran.json();
    for (what, count) in [("new", 6), ("duplicate", 1), ("conflict", 0), ("refused", 0), ("not_dicom", 2)] {
        assert_eq!(summary[what], json!(count), "{what}: {summary}");
    }
    study.is_whole_at(site.http()).await;

    let mut garbage = vec![0; 128];
    garbage.extend_from_slice(b"DICMnot really");
    write(&folder.join("garbage"), &garbage);
    write(&folder.join("empty.dcm"), b"");
    write(&folder.join("cut.dcm"), &file(uid, dataset)[..900]);
    let ran = site.run(&["-o", "json", "study", "import", &folder_name, "--jobs", "2"]).await.ended(1);
    let summary = ran.json();
    for (what, count) in [("new", 0), ("duplicate", 7), ("refused", 3), ("not_dicom", 2)] {
        assert_eq!(summary[what], json!(count), "{what}: {summary}");
    }
    ran.complains_of(&["garbage", "empty.dcm", "cut.dcm"]);
    let table = site.run(&["study", "import", &folder_name]).await.ended(1).stdout;
    assert!(table.contains("7 duplicate") && table.contains("3 refused"), "{table}");
    site.run(&["study", "import", "/nowhere/at/all"]).await.ended(1);
    echo(site.dicom()).await;
}

#[expect(clippy::disallowed_methods, reason = "the disc from which a person imports")]
fn make(folder: &std::path::Path) {
    fs::create_dir_all(folder).expect("make a folder");
}

#[expect(clippy::disallowed_methods, reason = "the disc from which a person imports")]
fn write(path: &std::path::Path, bytes: &[u8]) {
    fs::write(path, bytes).expect("write a file");
}
