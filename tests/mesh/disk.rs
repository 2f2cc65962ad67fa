//! A disk that fills up, and one that is gone: what is refused, what goes on, and how it ends.

#![expect(clippy::disallowed_methods, reason = "tests fill and take away a site's disk")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use hyper::Method;
use maillage_tests::exams::requested;
use maillage_tests::multipart::{self, find};
use maillage_tests::study::{CALLED, CALLING, associate, file, retrieve, store};
use maillage_tests::{Mesh, Settings, Site, Slices, until};
use serde_json::json;
use tokio::time::sleep;

use crate::{binary, mesh};

/// The size of the site's volume: the engines and the log of a young site, the reserve, and some images.
const VOLUME_MIB: u64 = 320;
/// Left to the queue when images are refused, as the harness configures it.
const RESERVE_MIB: u64 = 64;

/// A volume of its own under a directory, until dropped.
struct Volume(PathBuf);

impl Volume {
    /// None where that is not allowed.
    fn mount(at: PathBuf) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        fs::create_dir_all(&at).expect("make the place");
        let size = format!("size={VOLUME_MIB}m,mode=0700");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&at).output();
        mounted.is_ok_and(|done| done.status.success()).then_some(Self(at))
    }

    fn free_mib(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.0).expect("look");
        (stat.f_bavail * stat.f_frsize) >> 20
    }

    /// A file that leaves so much room.
    fn fill_up_to(&self, free_mib: u64) -> PathBuf {
        let ballast = self.0.join("ballast");
        let len = usize::try_from(self.free_mib().saturating_sub(free_mib) << 20).expect("small");
        fs::write(&ballast, vec![1; len]).expect("fill the volume");
        ballast
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // The site's process may still have it open.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// An instance's data set with a document of `len` bytes instead of its pixels: noise, which no coder makes shorter.
fn with_document(uid: &str, dataset: &[u8], len: usize) -> Vec<u8> {
    let pixels = find(dataset, b"\xe0\x7f\x10\x00OW").expect("pixel data");
    let mut bulky = dataset[..pixels].to_vec();
    // (0042,0011) Encapsulated Document.
    bulky.extend_from_slice(b"\x42\x00\x11\x00OB\0\0");
    bulky.extend_from_slice(&u32::try_from(len).expect("small").to_le_bytes());
    let mut noise = vec![0; len];
    blake3::Hasher::new().update(uid.as_bytes()).finalize_xof().fill(&mut noise);
    bulky.extend_from_slice(&noise);
    bulky
}

/// A study of `count` documents of 1 MiB each, which take as much on the line and on the disk.
pub(crate) fn documents(accession: &str, patient: &str, count: u32) -> Slices {
    let mut study = Slices::new(accession, patient, count);
    for (uid, dataset) in &mut study.instances {
        *dataset = with_document(uid, dataset, 1 << 20).into();
    }
    study
}

/// Sends images until there is room for none, not even in what the packs have set aside.
async fn fill_the_packs(site: &Site) {
    let many = Slices::new("FILL", "FILL", 80);
    let mut instances = many.instances.iter();
    for len in [4 << 20, 512 << 10, 64 << 10, 8 << 10, 1 << 10] {
        loop {
            let (uid, dataset) = instances.next().expect("as many as it takes");
            match site.http().post_file(file(uid, &with_document(uid, dataset, len))).await.status {
                200 => {}
                507 => break,
                other => panic!("{other}"),
            }
        }
    }
}

/// The status of a C-STORE of the first instance.
async fn c_store(site: &Site, study: &Slices) -> u16 {
    let mut association = associate(site.dicom(), CALLING, CALLED).await.expect("an association");
    let (uid, dataset) = study.first();
    let status = store(&mut association, uid, dataset.clone()).await.expect("an answer");
    association.release().await.expect("released");
    status.code()
}

/// The status of a STOW-RS of the first instance, and of an import of it as a file.
async fn by_http(site: &Site, study: &Slices) -> [u16; 2] {
    let (uid, dataset) = study.first();
    let part10 = file(uid, dataset);
    let boundary = "frontier";
    let mut body = format!("--{boundary}\r\nContent-Type: application/dicom\r\n\r\n").into_bytes();
    body.extend_from_slice(&part10);
    body.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
    let kind = format!("multipart/related; type=\"application/dicom\"; boundary={boundary}");
    let headers = [("content-type", kind.as_str()), ("accept", "application/dicom+json")];
    let stowed = site.http().send(&Method::POST, "/dicom-web/studies", &headers, body).await.expect("an answer");
    let imported = site.http().post_file(part10).await;
    [stowed.status, imported.status]
}

#[tokio::test]
async fn on_a_full_volume_images_are_refused_the_queue_and_reads_go_on_and_room_is_enough_to_recover() {
    let mut mesh = Mesh::empty(binary()).await;
    let Some(volume) = Volume::mount(mesh.root().join("paris")) else {
        eprintln!("skipped on_a_full_volume…: mounting a tmpfs takes root");
        return;
    };
    mesh.join(&Settings::default()).await;
    let site = &mesh.sites[0];
    let before = Slices::new("A0", "P0", 4);
    before.send(site.dicom()).await;
    assert!(volume.free_mib() > RESERVE_MIB + 32, "{} MiB are free", volume.free_mib());

    let ballast = volume.fill_up_to(RESERVE_MIB - 16);
    fill_the_packs(site).await;
    let refused = Slices::new("A1", "P1", 2);
    assert_eq!(c_store(site, &refused).await, 0xA700, "out of resources: the sender tries again");
    assert_eq!(by_http(site, &refused).await, [507, 507]);
    assert_eq!(c_store(site, &before).await, 0, "what is here needs no room");
    let rejected = site.http().get("/metrics").await.expect(200).text();
    assert!(rejected.contains("reason=\"disk-full\""), "{rejected}");
    // The queue takes commands all the while, far more than a segment of the log holds in a moment.
    for n in 0..300 {
        site.http().post("/api/v1/exams", &requested(&format!("Q{n}"), "P9")).await.expect(201);
    }
    before.is_whole_at(site.http()).await;
    let ready = site.http().get("/readyz?verbose").await.expect(200).text();
    assert!(ready.contains("disk degraded") && ready.contains("raft ok"), "{ready}");
    let warned = site.run(&["status"]).await.ended(0).stdout;
    assert!(warned.contains("under the reserve: images are refused"), "{warned}");
    assert_eq!(c_store(site, &refused).await, 0xA700, "still");

    fs::remove_file(ballast).expect("make room");
    assert_eq!(c_store(site, &refused).await, 0, "with room, and no restart");
    refused.send(site.dicom()).await;
    refused.is_whole_at(site.http()).await;
    assert!(site.log().contains("room for images"), "{}", site.log());
    site.run(&["verify"]).await.ended(0);
    assert_eq!(mesh.sites[0].terminate().await.0, 0);
}

#[tokio::test]
async fn a_node_whose_disk_is_gone_acknowledges_nothing_more_and_ends_with_the_reason() {
    let mut mesh = mesh(3).await;
    let leader = mesh.leader().await;
    fs::remove_dir_all(take_away(mesh.sites[leader].data_dir())).expect("and lose it");
    let code = mesh.sites[leader].ends(Duration::from_secs(20)).await;
    assert_eq!(code, 1);
    let log = mesh.sites[leader].log();
    assert!(log.contains("the data directory is gone"), "{log}");
    let other = mesh.leader().await;
    assert_ne!(other, leader);
    until("the others go on", async || {
        let added = mesh.sites[other].http().post("/api/v1/exams", &requested("A1", "P1")).await;
        (added.status == 201).then_some(())
    })
    .await;
    let shown = mesh.sites[other].http().json("/api/v1/exams?fresh=true").await;
    assert_eq!(shown["exams"].as_array().map(Vec::len), Some(1), "{}", json!(shown));
}

#[tokio::test]
async fn images_sent_to_a_disk_that_is_gone_are_refused_and_all_that_was_acknowledged_is_there_when_it_is_back() {
    // Nothing is published of the study that is being sent: what its sender was told rests on this disk alone.
    let mut mesh = Mesh::start(binary(), 1, |_| Settings { quiet_seconds: 60, ..Settings::default() }).await;
    let site = &mut mesh.sites[0];
    let (before, begun, anew) = (Slices::new("A0", "P0", 4), Slices::new("A1", "P1", 8), Slices::new("A2", "P2", 3));
    before.send(site.dicom()).await;
    let mut association = associate(site.dicom(), CALLING, CALLED).await.expect("an association");
    let (mut instances, mut acknowledged) = (begun.instances.iter(), Vec::new());
    for (uid, dataset) in instances.by_ref().take(4) {
        let status = store(&mut association, uid, dataset.clone()).await.expect("an answer");
        assert!(status.is_stored(), "{status:?}");
        acknowledged.push(dataset.clone());
    }

    let aside = take_away(site.data_dir());
    let (to, (uid, dataset)) = (site.dicom(), anew.first());
    let sends_anew = async {
        // Until nobody listens any more.
        while let Ok(mut association) = associate(to, CALLING, CALLED).await {
            if let Ok(status) = store(&mut association, uid, dataset.clone()).await {
                assert_eq!(status.code(), 0xA700, "its sender tries again: {status:?}");
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    let goes_on = async {
        // What fits into a pack that is open may reach it still. It counts only if it is there later.
        for (uid, dataset) in instances {
            match store(&mut association, uid, dataset.clone()).await {
                Ok(status) if status.is_stored() => acknowledged.push(dataset.clone()),
                Ok(status) => assert_eq!(status.code(), 0xA700, "its sender tries again: {status:?}"),
                Err(_) => break,
            }
        }
    };
    let ((), (), code) = tokio::join!(sends_anew, goes_on, site.ends(Duration::from_secs(20)));
    assert_eq!(code, 1);
    assert!(site.log().contains("the data directory is gone"), "{}", site.log());

    fs::rename(aside, site.data_dir()).expect("bring it back");
    site.start();
    site.ready().await;
    before.is_whole_at(site.http()).await;
    let came = retrieve(site.http(), &begun.path()).await.expect(200).parts();
    let came: Vec<Bytes> = came.iter().map(|part| multipart::dataset(&part.body)).collect();
    let lost = acknowledged.iter().filter(|dataset| !came.contains(dataset)).count();
    assert_eq!(lost, 0, "of {} acknowledged, {} are there", acknowledged.len(), came.len());
    for study in [&begun, &anew] {
        study.send(site.dicom()).await;
        study.is_whole_at(site.http()).await;
    }
    site.run(&["verify"]).await.ended(0);
}

/// As when a volume is detached: what is open stays open, and has no name. Where it is now.
fn take_away(directory: &Path) -> PathBuf {
    let aside = directory.with_extension("gone");
    fs::rename(directory, &aside).expect("take it away");
    aside
}
