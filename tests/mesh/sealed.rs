//! What lies on the disks is sealed: no byte of a patient or a picture is open in any pack, and the purge of a study
//! makes every copy of it noise, backups included.

#![expect(clippy::disallowed_methods, reason = "tests look into packs, and put back a backup of them")]

use std::fs;
use std::path::{Path, PathBuf};

use maillage_store::{Hash, InstanceManifest};
use maillage_tests::multipart::find;
use maillage_tests::study::retrieve;
use maillage_tests::{Http, Site, Slices, until};
use serde_json::json;

use crate::life::{exam, list};
use crate::mesh;

/// Bytes before a record's payload, as docs/protocol.md has them.
const RECORD_HEADER: usize = 64;
const NAME: &str = "HIDDEN^PATIENT";

/// A chunk or manifest where it lies in a site's packs.
pub(crate) struct Record {
    pub(crate) path: PathBuf,
    /// Of its payload.
    pub(crate) at: usize,
    pub(crate) hash: Hash,
    pub(crate) payload: Vec<u8>,
}

/// Everything that lies in the packs of a site, but for what was purged.
pub(crate) fn records(data_dir: &Path) -> Vec<Record> {
    let mut records = Vec::new();
    for path in files(&data_dir.join("packs")) {
        let pack = fs::read(&path).expect("read");
        let mut from = 0;
        while let Some(header) = find(&pack[from..], b"MaRe\x01").map(|at| from + at) {
            let Some(bytes) = pack.get(header..header + RECORD_HEADER) else { break };
            let len = u32::from_le_bytes(bytes[56..60].try_into().expect("four bytes")) as usize;
            let hash = Hash(bytes[24..56].try_into().expect("32 bytes"));
            let at = header + RECORD_HEADER;
            if let Some(payload) = pack.get(at..at + len).filter(|_| bytes[5] < 3) {
                records.push(Record { path: path.clone(), at, hash, payload: payload.to_vec() });
            }
            from = at;
        }
    }
    records
}

/// The manifest of an instance in a site's packs.
pub(crate) fn manifest_of(data_dir: &Path, sop_instance: &str) -> Option<InstanceManifest> {
    let mut manifests =
        records(data_dir).into_iter().filter_map(|record| InstanceManifest::decode(&record.payload).ok());
    manifests.rfind(|manifest| manifest.sop_instance == sop_instance)
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("look");
    entries.map(|entry| entry.expect("an entry").path()).filter(|path| path.is_file()).collect()
}

/// What of a study is open in a site's packs.
fn open_in(data_dir: &Path, study: &Slices) -> Option<String> {
    let (_, dataset) = study.first();
    let name = find(dataset, NAME.as_bytes()).expect("the data set names the patient");
    // From the middle of the image, where there is noise: room ahead in a pack is zeroes, as air is.
    let middle = dataset.len() - 128 * 128;
    for path in files(&data_dir.join("packs")) {
        let bytes = fs::read(&path).expect("read");
        for (what, secret) in [
            ("the patient's name", NAME.as_bytes()),
            ("the patient's id", b"HIDDEN-ID"),
            ("the head", &dataset[name - 16..name + 32]),
            ("the pixels", &dataset[middle..middle + 64]),
        ] {
            if find(&bytes, secret).is_some() {
                return Some(format!("{what} in {}", path.display()));
            }
        }
    }
    None
}

fn copy_directory(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    fs::create_dir_all(to).expect("create");
    for path in files(from) {
        fs::copy(&path, to.join(path.file_name().expect("a name"))).expect("copy");
    }
}

async fn on_three_sites(http: Http, study: &Slices) {
    until("three sites hold the study", async || {
        let shown = http.get(&format!("/api/v1/studies/{}", study.study)).await;
        (shown.status == 200 && shown.json()["copies"] == json!(3)).then_some(())
    })
    .await;
}

/// Waits until the mesh has all keys of a site, which then has none in a file.
async fn keys_are_handed_over(site: &Site) {
    until("no key is pending", async || {
        let len = fs::metadata(site.data_dir().join("pending-keys")).expect("the file").len();
        (len == 8).then_some(())
    })
    .await;
}

#[tokio::test]
async fn nothing_lies_open_and_a_purge_makes_a_backup_of_the_packs_unreadable() {
    let mut mesh = mesh(3).await;
    let http = mesh.sites[0].http();
    let study = Slices::named("A1", "HIDDEN-ID", NAME, 4);
    let other = Slices::named("A2", "HIDDEN-ID", NAME, 4);
    study.send(mesh.sites[0].dicom()).await;
    other.send(mesh.sites[0].dicom()).await;
    // Acknowledged, and perhaps not published: the keys are with this site alone.
    mesh.sites[0].kill();
    mesh.sites[0].start();
    mesh.sites[0].ready().await;
    on_three_sites(http, &study).await;
    on_three_sites(http, &other).await;
    for site in &mesh.sites {
        assert_eq!(open_in(site.data_dir(), &study), None, "at {}", site.name());
        assert!(!records(site.data_dir()).is_empty(), "the search finds what is there");
        study.is_whole_at(site.http()).await;
    }
    keys_are_handed_over(&mesh.sites[0]).await;
    let first = manifest_of(mesh.sites[0].data_dir(), study.first().0).expect("its manifest");
    let key = first.key.expect("sealed").to_string();
    assert!(first.chunks.iter().all(|chunk| chunk.form.is_sealed()));

    // A backup, then the purge, while one site is down.
    mesh.sites[0].kill();
    let (packs, backup) = (mesh.sites[0].data_dir().join("packs"), mesh.root().join("backup"));
    copy_directory(&packs, &backup);
    mesh.sites[0].start();
    mesh.sites[0].ready().await;
    mesh.sites[2].kill();
    let shown = http.json(&format!("/api/v1/studies/{}", study.study)).await;
    let id = shown["part_list"][0]["exam"].to_string().trim_matches('"').to_owned();
    let reason = json!({ "reason": "withdrawn", "consent_withdrawn": true, "user": "dpo" });
    // The site that was killed may have led: the others elect first, and refuse meanwhile.
    until("the purge is decided", async || {
        let answer = http.post(&format!("/api/v1/exams/{id}/purge"), &reason).await;
        assert!(matches!(answer.status, 200 | 503), "{answer:?}");
        (answer.status == 200).then_some(())
    })
    .await;
    // At once, whoever has still to overwrite it.
    for site in &mesh.sites[..2] {
        until("nobody is shown the images", async || {
            (retrieve(site.http(), &study.path()).await.status == 404).then_some(())
        })
        .await;
    }
    let shown = until("two sites have purged", async || {
        let shown = exam(http, &id).await;
        let part = list(&shown["retention"], "parts").first()?.clone();
        (list(&part, "pending").len() == 1).then_some(part)
    })
    .await;
    assert!(list(&shown, "keys_destroyed").contains(&json!(key)), "{shown}");

    // The backup is put back, with an index made of it.
    mesh.sites[0].kill();
    copy_directory(&backup, &packs);
    fs::remove_dir_all(mesh.sites[0].data_dir().join("index")).expect("remove");
    mesh.sites[0].start();
    mesh.sites[0].ready().await;
    let back = manifest_of(mesh.sites[0].data_dir(), study.first().0).expect("it is there again");
    let there = records(mesh.sites[0].data_dir());
    assert!(back.chunks.iter().all(|chunk| there.iter().any(|record| record.hash == chunk.hash)), "every byte of it");
    for site in &mesh.sites[..2] {
        let refused = retrieve(site.http(), &study.path()).await;
        assert!([404, 410].contains(&refused.status), "{} {}", refused.status, refused.text());
        other.is_whole_at(site.http()).await;
    }

    // The site that was away cannot read it either, from the moment on that it knows.
    mesh.sites[2].start();
    mesh.sites[2].ready().await;
    until("the last site has purged", async || {
        let shown = exam(http, &id).await;
        let part = list(&shown["retention"], "parts").first()?.clone();
        list(&part, "pending").is_empty().then_some(())
    })
    .await;
    retrieve(mesh.sites[2].http(), &study.path()).await.expect(404);
    other.is_whole_at(mesh.sites[2].http()).await;

    // What is sent again is new, and sealed under another key.
    study.send(mesh.sites[1].dicom()).await;
    until("the images are there anew", async || {
        (retrieve(mesh.sites[1].http(), &study.path()).await.status == 200).then_some(())
    })
    .await;
    study.is_whole_at(mesh.sites[1].http()).await;
    let anew = manifest_of(mesh.sites[1].data_dir(), study.first().0).expect("its manifest");
    assert_ne!(anew.key, first.key);
}
