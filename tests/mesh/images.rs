//! Copies of images: in distinct zones, made up for when a site returns, read from anywhere.

use std::collections::BTreeMap;
use std::time::Duration;

use maillage_tests::exams::requested;
use maillage_tests::study::{CALLED, CALLING, associate, retrieve, store};
use maillage_tests::{Http, Mesh, Settings, Slices, until};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::disk::documents;
use crate::prefetch::metric;
use crate::{binary, mesh};

/// The names of the sites that hold a study, once they are `count`.
async fn holders(http: Http, study: &Slices, count: usize) -> Vec<String> {
    until(&format!("{count} sites hold the study"), async || {
        let shown = http.get(&format!("/api/v1/studies/{}", study.study)).await;
        let shown: Value = (shown.status == 200).then(|| shown.json())?;
        let holders = shown["part_list"][0]["holders"].as_array()?;
        let names = holders.iter().map(|holder| holder["site_name"].as_str().expect("a name").to_owned());
        let names: Vec<String> = names.collect();
        (names.len() == count).then_some(names)
    })
    .await
}

#[tokio::test]
async fn three_copies_lie_in_three_zones_and_the_fourth_site_reads_them_all_the_same() {
    // The second site shares the receiver's zone: it is the one that gets no copy.
    let zones = ["west", "west", "north", "east"];
    let settings = |n: usize| Settings { zone: zones[n].to_owned(), ..Settings::default() };
    let mesh = Mesh::start(binary(), 4, settings).await;
    let (receiver, without) = (&mesh.sites[0], &mesh.sites[1]);
    for round in 0..3 {
        let (accession, patient) = (format!("A{round}"), format!("P{round}"));
        receiver.http().post("/api/v1/exams", &requested(&accession, &patient)).await.expect(201);
        let study = Slices::new(&accession, &patient, 12);
        study.send(receiver.dicom()).await;
        let mut names = holders(receiver.http(), &study, 3).await;
        names.sort();
        assert_eq!(names, ["lille", "nantes", "paris"], "one a zone");
        let list = receiver.http().json("/api/v1/exams?fresh=true").await;
        let exam = list["exams"].as_array().expect("exams").iter().find(|exam| exam["accession"] == json!(accession));
        let exam = exam.expect("the exam");
        assert_eq!((&exam["copies"], &exam["copies_wanted"]), (&json!(3), &json!(3)));
    }
    let study = Slices::new("A0", "P0", 12);
    assert_eq!(without.http().json("/api/v1/chunks").await["chunks"], json!(0), "the fourth site holds nothing");
    reads_everything(without.http(), &study).await;
    assert_eq!(without.http().json("/api/v1/chunks").await["chunks"], json!(0), "reading makes no copy");

    let report = without.run_json(&["study", "verify", &study.study]).await;
    assert_eq!(
        (&report["complete"], &report["here"]),
        (&json!(true), &json!(false)),
        "nothing is to be here: {report}"
    );
    assert_eq!(report["not_here"][0]["holders"].as_array().map(Vec::len), Some(3), "{report}");
    let out = mesh.root().join("fetched");
    let fetched = without.run_json(&["study", "fetch", &study.study, "--out", &out.display().to_string()]).await;
    assert_eq!((&fetched["instances"], &fetched["files"]), (&json!(12), &json!(12)));
    assert_eq!(files_in(&out), 12);
    let report = without.run_json(&["study", "verify", &study.study]).await;
    assert_eq!((&report["complete"], &report["instances"]), (&json!(true), &json!(12)));
    assert_eq!(holders(receiver.http(), &study, 4).await.len(), 4, "a fetched copy is known to the mesh");
    without.run(&["study", "fetch", "1.2.3.4"]).await.ended(1);
}

#[expect(clippy::disallowed_methods, reason = "a folder that a person named")]
fn files_in(folder: &std::path::Path) -> usize {
    std::fs::read_dir(folder).expect("look").count()
}

/// The study, its series and an instance by WADO-RS, and what is refused.
async fn reads_everything(http: Http, study: &Slices) {
    study.is_whole_at(http).await;
    let series = format!("{}/series/{}", study.path(), study.series);
    study.is_whole_in(&retrieve(http, &series).await.expect(200));
    let (uid, dataset) = study.first();
    let instance = format!("{series}/instances/{uid}");
    let parts = retrieve(http, &instance).await.expect(200).parts();
    assert_eq!(parts.len(), 1);
    assert!(maillage_tests::multipart::dataset(&parts[0].body) == *dataset);
    let single = [("accept", "application/dicom; transfer-syntax=*")];
    let single = http.send(&hyper::Method::GET, &instance, &single, "").await.expect("an answer").expect(200);
    assert_eq!(single.header("content-type"), "application/dicom; transfer-syntax=1.2.840.10008.1.2.1");
    assert!(maillage_tests::multipart::dataset(&single.body) == *dataset);

    let other_syntax =
        [("accept", "multipart/related; type=\"application/dicom\"; transfer-syntax=1.2.840.10008.1.2.4.50")];
    http.send(&hyper::Method::GET, &instance, &other_syntax, "").await.expect("an answer").expect(406);
    for unknown in
        ["/dicom-web/studies/1.2.3", &format!("{}/series/1.2.3", study.path()), &format!("{series}/instances/1.2")]
    {
        retrieve(http, unknown).await.expect(404);
    }
}

#[tokio::test]
async fn copies_are_given_up_when_consent_is_withdrawn_once_the_receiver_has_verified_its_own() {
    let mut mesh = Mesh::start(binary(), 3, |_| Settings::default()).await;
    let mut order = requested("A1", "P1");
    order["consent"] = json!("declared");
    mesh.sites[1].http().post("/api/v1/exams", &order).await.expect(201);
    let study = Slices::new("A1", "P1", 8);
    study.send(mesh.sites[1].dicom()).await;
    holders(mesh.sites[0].http(), &study, 3).await;
    study.is_whole_at(mesh.sites[2].http()).await;

    // The site that received them cannot be asked: its copies are all that is left.
    mesh.sites[1].kill();
    order["consent"] = json!("refused");
    let withdrawn = mesh.sites[0].http().post("/api/v1/exams", &order).await.expect(200).json();
    assert_eq!(withdrawn["existed"], json!(true));
    let exam = format!("/api/v1/exams/{}?fresh=true", withdrawn["id"]);
    assert_eq!(mesh.sites[2].http().json(&exam).await["consent"], json!("refused"));
    for site in [0, 2] {
        let refused = retrieve(mesh.sites[site].http(), &study.path()).await.expect(403);
        assert!(refused.text().contains("consent-refused"), "it is shown nowhere else, at once");
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(holders(mesh.sites[0].http(), &study, 3).await.len(), 3, "nobody vouched for the first copy");

    mesh.sites[1].start();
    mesh.sites[1].ready().await;
    assert_eq!(holders(mesh.sites[0].http(), &study, 1).await, ["lyon"]);
    study.is_whole_at(mesh.sites[1].http()).await;
    // Nor does a restart bring a copy back to the list, or a sweep bring it back to the disk.
    mesh.sites[2].kill();
    mesh.sites[2].start();
    mesh.sites[2].ready().await;
    mesh.settled().await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(holders(mesh.sites[2].http(), &study, 1).await, ["lyon"]);
    retrieve(mesh.sites[2].http(), &study.path()).await.expect(403);
}

#[tokio::test]
async fn a_site_that_was_down_gets_its_copy_when_it_returns() {
    let mut mesh = mesh(3).await;
    let leader = mesh.leader().await;
    let (away, receiver) = ((leader + 1) % 3, (leader + 2) % 3);
    mesh.sites[away].kill();
    let study = Slices::new("A1", "P1", 20);
    study.send(mesh.sites[receiver].dicom()).await;
    let there = holders(mesh.sites[receiver].http(), &study, 2).await;
    assert!(!there.contains(&mesh.sites[away].name().to_owned()));
    let exam = mesh.sites[receiver].http().json("/api/v1/exams?fresh=true").await["exams"][0].clone();
    assert_eq!((&exam["copies"], &exam["copies_wanted"]), (&json!(2), &json!(3)), "what is missing is seen");

    mesh.sites[away].start();
    mesh.sites[away].ready().await;
    holders(mesh.sites[receiver].http(), &study, 3).await;
    let report = mesh.sites[away].run_json(&["study", "verify", &study.study]).await;
    assert_eq!((&report["complete"], &report["instances"]), (&json!(true), &json!(20)));
    // Its copy is a copy of its own: with it alone the study is whole.
    mesh.sites[receiver].kill();
    mesh.sites[leader].kill();
    study.is_whole_at(mesh.sites[away].http()).await;
}

#[tokio::test]
async fn images_that_no_living_site_holds_are_refused_rather_than_cut_short() {
    let mut mesh = Mesh::start(binary(), 3, |_| Settings { copies: 1, ..Settings::default() }).await;
    let leader = mesh.leader().await;
    let (receiver, reader) = ((leader + 1) % 3, leader);
    let study = Slices::new("A1", "P1", 10);
    study.send(mesh.sites[receiver].dicom()).await;
    assert_eq!(holders(mesh.sites[reader].http(), &study, 1).await, [mesh.sites[receiver].name()]);
    study.is_whole_at(mesh.sites[reader].http()).await;
    mesh.sites[receiver].kill();
    let refused = retrieve(mesh.sites[reader].http(), &study.path()).await.expect(503);
    assert_eq!(refused.json()["code"], json!("images-unavailable"));
    mesh.sites[receiver].start();
    mesh.sites[receiver].ready().await;
    until("the images can be had again", async || {
        (retrieve(mesh.sites[reader].http(), &study.path()).await.status == 200).then_some(())
    })
    .await;
    study.is_whole_at(mesh.sites[reader].http()).await;
}

#[tokio::test]
async fn a_site_verifies_what_it_is_to_have_of_a_study_and_says_where_the_rest_is() {
    let mesh = Mesh::start(binary(), 3, |_| Settings { copies: 1, ..Settings::default() }).await;
    let all = Slices::new("A1", "P1", 12);
    let (path, verify) = (format!("/api/v1/studies/{}", all.study), ["study", "verify", all.study.as_str()]);
    for (n, site) in mesh.sites[..2].iter().enumerate() {
        let part = all.instances.iter().skip(n * 5).take(5 + 2 * n);
        let part = part.map(|(uid, dataset)| (uid.clone(), dataset.clone())).collect();
        Slices { instances: part, ..all.clone() }.send(site.dicom()).await;
    }
    for site in &mesh.sites {
        until("both parts are known", async || {
            let shown = site.http().get(&path).await;
            (shown.status == 200 && shown.json()["parts"] == json!(2)).then_some(())
        })
        .await;
    }
    let [first, second] = [0, 1].map(|n| mesh.sites[n].name().to_owned());
    for (site, other, counts) in [(0, &second, [5, 7]), (1, &first, [7, 5])] {
        let report = mesh.sites[site].run_json(&verify).await;
        assert_eq!((&report["complete"], &report["here"]), (&json!(true), &json!(true)), "{report}");
        let elsewhere = report["not_here"].as_array().expect("parts");
        assert_eq!((&report["instances"], elsewhere.len()), (&json!(counts[0]), 1), "{report}");
        assert_eq!(elsewhere[0]["instances"], json!(counts[1]), "{report}");
        assert_eq!(elsewhere[0]["holders"][0]["site_name"], json!(other), "{report}");
    }
    let shown = mesh.sites[0].run(&verify).await.ended(0).stdout;
    assert!(shown.contains(&format!("7 instances from {second}, held by {second}")), "{shown}");
    let report = mesh.sites[2].run_json(&verify).await;
    assert_eq!((&report["complete"], &report["here"], &report["instances"]), (&json!(true), &json!(false), &json!(0)));
    assert_eq!(report["not_here"].as_array().map(Vec::len), Some(2), "{report}");
    let everywhere = [&verify[..], &["--everywhere"]].concat();
    let report = mesh.sites[2].run_json(&everywhere).await;
    assert_eq!(
        (&report["complete"], report["elsewhere"].as_array().map(Vec::len)),
        (&json!(true), Some(2)),
        "{report}"
    );
}

#[tokio::test]
async fn what_has_come_of_a_study_is_read_where_it_came_and_elsewhere_while_its_sender_still_sends() {
    // One copy: the other site has none.
    let settings = |_| Settings { copies: 1, quiet_seconds: 3, ..Settings::default() };
    let mesh = Mesh::start(binary(), 2, settings).await;
    let (receiver, elsewhere) = (&mesh.sites[0], &mesh.sites[1]);
    receiver.http().post("/api/v1/exams", &requested("A1", "P1")).await.expect(201);
    let study = Slices::new("A1", "P1", 20);
    let mut come = Slices { instances: BTreeMap::new(), ..study.clone() };
    let mut instances = study.instances.iter();
    let mut association = associate(receiver.dicom(), CALLING, CALLED).await.expect("an association");
    for _ in 0..2 {
        for (uid, dataset) in instances.by_ref().take(10) {
            let status = store(&mut association, uid, dataset.clone()).await.expect("an answer");
            assert!(status.is_stored(), "{status:?}");
            come.instances.insert(uid.clone(), dataset.clone());
        }
        // At once where it came: what its sender was told is here is shown, whether the mesh knows of it or not.
        come.is_whole_at(receiver.http()).await;
        // The sender pauses, and has the association open.
        until("what has come is shown elsewhere", async || {
            let answer = retrieve(elsewhere.http(), &study.path()).await;
            (answer.status == 200 && answer.parts().len() == come.instances.len()).then_some(())
        })
        .await;
        come.is_whole_at(elsewhere.http()).await;
    }
    association.echo().await.expect("it was open all the while");
    association.release().await.expect("a released association");
    study.is_whole_at(elsewhere.http()).await;
    assert_eq!(elsewhere.http().json("/api/v1/chunks").await["chunks"], json!(0), "reading makes no copy");
}

#[tokio::test]
async fn copies_come_no_faster_than_a_site_takes_them_and_its_readers_do_not_wait_for_them() {
    let settings = |n: usize| Settings {
        quiet_seconds: 5,
        lines: if n == 1 { vec![("[storage]", "copy_mb_s_max = 1".to_owned())] } else { Vec::new() },
        ..Settings::default()
    };
    let mesh = Mesh::start(binary(), 3, settings).await;
    let (receiver, slow) = (&mesh.sites[0], &mesh.sites[1]);
    let first = documents("A1", "P1", 5);
    first.send(receiver.dicom()).await;
    let mut there = holders(receiver.http(), &first, 2).await;
    let since = Instant::now();
    there.sort();
    assert_eq!(there, ["nantes", "paris"], "who has no limit has its copy first");
    holders(receiver.http(), &first, 3).await;
    let took = since.elapsed();
    let copied = metric(slow.http(), "maillage_chunk_bytes_received_total{class=\"copy\"}").await;
    assert!(copied >= 5 << 20, "{copied} bytes");
    // A megabyte is a second; a quarter of one may come at once, and some while the other's copy was made.
    let least = Duration::from_millis(copied / 1000) - Duration::from_millis(1_500);
    assert!(took >= least, "{copied} bytes in {took:?}");

    let second = documents("A2", "P2", 5);
    second.send(receiver.dicom()).await;
    let there = holders(receiver.http(), &second, 2).await;
    assert!(!there.contains(&slow.name().to_owned()), "{there:?}");
    until("the study is known where it is read", async || {
        (slow.http().get(&format!("/api/v1/studies/{}", second.study)).await.status == 200).then_some(())
    })
    .await;
    let since = Instant::now();
    second.is_whole_at(slow.http()).await;
    assert!(since.elapsed() < least, "a reader waited {:?}", since.elapsed());
}
