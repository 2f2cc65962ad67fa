//! After a purge and what follows it, no file of any site has a byte of the destroyed keys.

#![expect(clippy::disallowed_methods, reason = "tests look for bytes in all of a site's files")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use maillage_tests::multipart::find;
use maillage_tests::{Mesh, Settings, Site, Slices, until};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::binary;

/// Bytes of `pending-keys` before its first entry, and of one, as docs/protocol.md has them.
const HEADER: usize = 8;
const ENTRY: usize = 117;

/// The keys that a site has sealed a study under and not given to the mesh yet.
fn pending(site: &Site, study: &str) -> Vec<[u8; 32]> {
    let bytes = fs::read(site.data_dir().join("pending-keys")).expect("the file");
    let entries = bytes[HEADER..].chunks_exact(ENTRY).filter(|entry| find(entry, study.as_bytes()).is_some());
    let mut keys: Vec<[u8; 32]> = entries.map(|entry| entry[16..48].try_into().expect("32 bytes")).collect();
    keys.dedup();
    keys
}

/// The files under a directory in which any of the keys is.
fn with_keys(directory: &Path, keys: &[[u8; 32]]) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut found = Vec::new();
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        if path.is_dir() {
            found.extend(with_keys(&path, keys));
        } else if fs::read(&path).is_ok_and(|bytes| keys.iter().any(|key| find(&bytes, key).is_some())) {
            found.push(path);
        }
    }
    found
}

/// Sends a study, waits until three sites have it, and returns its keys.
async fn sealed(mesh: &Mesh, study: &Slices) -> Vec<[u8; 32]> {
    study.send(mesh.sites[0].dicom()).await;
    let keys = pending(&mesh.sites[0], &study.study);
    assert!(!keys.is_empty(), "it is not published yet");
    until("three sites hold the study", async || {
        let shown = mesh.sites[0].http().get(&format!("/api/v1/studies/{}", study.study)).await;
        (shown.status == 200 && shown.json()["copies"] == json!(3)).then_some(())
    })
    .await;
    keys
}

async fn purge(site: &Site, study: &Slices) {
    let shown = site.http().json(&format!("/api/v1/studies/{}", study.study)).await;
    let exam = shown["part_list"][0]["exam"].to_string();
    let reason = json!({ "reason": "withdrawn", "consent_withdrawn": true, "user": "dpo" });
    until("the purge is decided", async || {
        let answer = site.http().post(&format!("/api/v1/exams/{exam}/purge"), &reason).await;
        (answer.status == 200).then_some(())
    })
    .await;
}

async fn leaves(site: &Site, keys: &[[u8; 32]]) {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let left = with_keys(site.data_dir(), keys);
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < end, "the keys are still in {left:?}");
        sleep(Duration::from_millis(500)).await;
    }
}

#[tokio::test]
async fn no_file_of_any_site_has_a_destroyed_key_though_some_were_killed_in_the_middle() {
    let settings =
        |_| Settings { quiet_seconds: 4, lines: vec![("[storage]", "wipe_s = 1".to_owned())], ..Settings::default() };
    let mut mesh = Mesh::start(binary(), 3, settings).await;
    let (study, other) = (Slices::new("A1", "P1", 4), Slices::new("A2", "P2", 4));
    let keys = sealed(&mesh, &study).await;
    let others = sealed(&mesh, &other).await;
    for site in &mesh.sites {
        assert!(!with_keys(site.data_dir(), &keys).is_empty(), "the search finds what is there");
    }
    purge(&mesh.sites[0], &study).await;
    // A leader or a follower each: the one in the middle of its steps, the other before any.
    sleep(Duration::from_millis(2500)).await;
    for n in [1, 2] {
        mesh.sites[n].kill();
        mesh.sites[n].start();
        mesh.sites[n].ready().await;
    }
    for site in &mesh.sites {
        leaves(site, &keys).await;
    }
    // Another's keys are needed still, and open what they sealed; after a restart, too.
    for site in &mut mesh.sites {
        assert!(!with_keys(site.data_dir(), &others).is_empty());
        site.terminate().await;
        site.start();
    }
    for site in &mut mesh.sites {
        site.ready().await;
        other.is_whole_at(site.http()).await;
        assert_eq!(with_keys(site.data_dir(), &keys), Vec::<PathBuf>::new(), "at {}", site.name());
    }
    // The next round is for the next purge.
    purge(&mesh.sites[0], &other).await;
    for site in &mesh.sites {
        leaves(site, &others).await;
    }
}
