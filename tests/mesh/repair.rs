//! A byte that rots on disk is never served, is reported, and is mended from another site.

#![expect(clippy::disallowed_types, reason = "tests spoil packs as a bad disk does")]

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;

use maillage_tests::study::{ACCEPT, retrieve};
use maillage_tests::{Mesh, Site, Slices, until};
use serde_json::json;

use crate::mesh;
use crate::sealed::{manifest_of, records};

/// Flips one bit of the first chunk of an instance in a site's packs.
fn rot(site: &Site, sop_instance: &str) {
    let manifest = manifest_of(site.data_dir(), sop_instance).expect("the instance is there");
    let chunks = records(site.data_dir());
    let chunk = chunks.iter().find(|record| record.hash == manifest.chunks[0].hash).expect("its chunk is there");
    let pack = OpenOptions::new().read(true).write(true).open(&chunk.path).expect("open");
    pack.write_all_at(&[chunk.payload[0] ^ 0x10], u64::try_from(chunk.at).expect("an offset")).expect("write");
    pack.sync_all().expect("sync");
}

async fn three_copies(mesh: &Mesh) -> Slices {
    let study = Slices::new("A1", "P1", 10);
    study.send(mesh.sites[0].dicom()).await;
    until("three sites hold the study", async || {
        let shown = mesh.sites[0].http().get(&format!("/api/v1/studies/{}", study.study)).await;
        (shown.status == 200 && shown.json()["copies"] == json!(3)).then_some(())
    })
    .await;
    study
}

#[tokio::test]
async fn a_rotten_byte_is_never_served_and_is_mended_from_another_site() {
    let mesh = mesh(3).await;
    let study = three_copies(&mesh).await;
    let site = &mesh.sites[1];
    site.run(&["study", "verify", &study.study]).await.ended(0);
    rot(site, study.first().0);
    study.is_whole_at(site.http()).await;
    until("the copy is whole again", async || {
        (site.run(&["study", "verify", &study.study]).await.code == 0).then_some(())
    })
    .await;
    study.is_whole_at(site.http()).await;
    assert_eq!(site.http().json("/api/v1/chunks").await["bad"], json!(0));
}

#[tokio::test]
async fn verify_finds_rot_and_ends_with_7() {
    let mesh = mesh(3).await;
    let study = three_copies(&mesh).await;
    let site = &mesh.sites[1];
    rot(site, study.first().0);
    let found = site.run(&["-o", "json", "study", "verify", &study.study]).await.ended(7);
    let report = found.json();
    assert_eq!(report["complete"], json!(false));
    assert_eq!(report["corrupt"].as_array().map(Vec::len), Some(1), "{report}");
    found.complains_of(&["study fetch"]);
    // What the hint says helps, if the node has not mended it by itself already.
    site.run(&["study", "fetch", &study.study]).await.ended(0);
    site.run(&["study", "verify", &study.study]).await.ended(0);
    study.is_whole_at(site.http()).await;
}

#[tokio::test]
async fn rot_that_came_while_the_site_was_down_is_found_too() {
    let mut mesh = mesh(3).await;
    let study = three_copies(&mesh).await;
    mesh.sites[1].terminate().await;
    rot(&mesh.sites[1], study.first().0);
    mesh.sites[1].start();
    mesh.sites[1].ready().await;
    study.is_whole_at(mesh.sites[1].http()).await;
    until("the copy is whole again", async || {
        (mesh.sites[1].run(&["study", "verify", &study.study]).await.code == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn with_no_other_copy_a_rotten_instance_is_refused() {
    let mesh = mesh(1).await;
    let study = Slices::new("A1", "P1", 3);
    study.send(mesh.sites[0].dicom()).await;
    until("the study is published", async || {
        let shown = mesh.sites[0].http().get(&format!("/api/v1/studies/{}", study.study)).await;
        (shown.status == 200).then_some(())
    })
    .await;
    let (uid, _) = study.first();
    rot(&mesh.sites[0], uid);
    let path = format!("{}/series/{}/instances/{uid}", study.path(), study.series);
    // Refused, or, when the rot is not in the first chunk, broken off: never a whole answer.
    let accept = [("accept", ACCEPT)];
    let answer = mesh.sites[0].http().send(&hyper::Method::GET, &path, &accept, "").await;
    if let Ok(refused) = answer {
        assert!([502, 503].contains(&refused.status), "{}: {}", refused.status, refused.text());
    }
    mesh.sites[0].run(&["study", "verify", &study.study]).await.ended(7);
    // Its neighbours are well.
    let (other, bytes) = study.instances.last_key_value().expect("an instance");
    let path = format!("{}/series/{}/instances/{other}", study.path(), study.series);
    let parts = retrieve(mesh.sites[0].http(), &path).await.expect(200).parts();
    assert!(maillage_tests::multipart::dataset(&parts[0].body) == *bytes);
}
