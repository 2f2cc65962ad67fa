//! What strangers send to the HTTP side. The table of hostile inputs, over the real interface.

use std::time::Duration;

use hyper::Method;
use maillage_tests::study::{echo, file};
use maillage_tests::{Mesh, Site, Slices, until};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::mesh;

/// Memory that hostile input may cost a node, beyond what it had: far below what any of them asks for.
const MEMORY_SLACK: u64 = 256 << 20;

/// The site still takes, shows and sends images.
pub(crate) async fn still_serves(site: &Site) {
    echo(site.dicom()).await;
    let study = Slices::new("WELL", "WELL", 2);
    study.send(site.dicom()).await;
    study.is_whole_at(site.http()).await;
    site.http().get("/readyz").await.expect(200);
    let log = site.log();
    assert!(!log.contains("panicked"), "{log}");
}

/// A mesh of one, and the memory that it had at most by now.
pub(crate) async fn victim() -> (Mesh, u64) {
    let mesh = mesh(1).await;
    let study = Slices::new("WARM", "WARM", 2);
    study.send(mesh.sites[0].dicom()).await;
    let peak = mesh.sites[0].memory_peak();
    (mesh, peak)
}

#[track_caller]
pub(crate) fn took_no_memory(site: &Site, before: u64) {
    let peak = site.memory_peak();
    assert!(peak < before + MEMORY_SLACK, "memory rose from {} to {} MiB", before >> 20, peak >> 20);
}

/// Sends bytes and reads what comes until the end, or nothing.
pub(crate) async fn raw(to: std::net::SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(to).await.expect("a connection");
    // The other side may close before it has read everything.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let read = timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await;
    // A reset is an end too.
    let _ = read.expect("the connection is closed in time");
    answer
}

#[tokio::test]
async fn a_body_of_four_gigabytes_is_refused_before_it_is_read() {
    let (mesh, before) = victim().await;
    let site = &mesh.sites[0];
    for (path, kind) in [
        ("/api/v1/exams", "application/json"),
        ("/api/v1/claims/next", "application/json"),
        ("/api/v1/instances", "application/dicom"),
        ("/ui/next", "application/x-www-form-urlencoded"),
    ] {
        let since = Instant::now();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: {kind}\r\nContent-Length: 4000000000\r\n\
             Connection: close\r\n\r\n",
            site.http().0
        );
        let answer = String::from_utf8_lossy(&raw(site.http().0, head.as_bytes()).await).into_owned();
        assert!(answer.starts_with("HTTP/1.1 413 "), "{path}: {answer}");
        assert!(since.elapsed() < Duration::from_secs(5), "{path}: {:?}", since.elapsed());
    }
    took_no_memory(site, before);
    still_serves(site).await;
}

#[tokio::test]
async fn an_endless_chunked_body_is_cut_off() {
    let (mesh, before) = victim().await;
    let site = &mesh.sites[0];
    let mut stream = TcpStream::connect(site.http().0).await.expect("a connection");
    let head = format!(
        "POST /api/v1/exams HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
        site.http().0
    );
    stream.write_all(head.as_bytes()).await.expect("sent");
    let chunk = [b"10000\r\n".as_slice(), &vec![b' '; 0x10000], b"\r\n"].concat();
    let (mut from, mut to) = stream.split();
    let mut sent = 0usize;
    let flood = async {
        while sent < 256 << 20 && to.write_all(&chunk).await.is_ok() {
            sent += chunk.len();
        }
    };
    let mut answer = vec![0; 64];
    let answered = timeout(Duration::from_secs(20), async {
        tokio::select! {
            read = from.read(&mut answer) => read.unwrap_or(0),
            () = flood => 0,
        }
    });
    let read = answered.await.expect("in time");
    if read > 0 {
        assert!(answer.starts_with(b"HTTP/1.1 413 "), "{}", String::from_utf8_lossy(&answer));
    }
    assert!(sent < 64 << 20, "{sent} bytes were taken");
    took_no_memory(site, before);
    still_serves(site).await;
}

#[tokio::test]
async fn paths_and_uids_that_climb_lead_nowhere() {
    let (mesh, _) = victim().await;
    let site = &mesh.sites[0];
    let long = format!("/dicom-web/studies/1.{}", "2".repeat(64));
    for path in [
        "/dicom-web/studies/..%2F..%2Fidentity",
        "/dicom-web/studies/../../identity",
        "/dicom-web/studies/%2Fetc%2Fpasswd",
        "/dicom-web/studies/1.2%00.3",
        "/static/../identity",
        "/static/..%2f..%2fidentity",
        "/api/v1/studies/..%2F..%2Fidentity",
        &long,
    ] {
        let answer = site.http().send(&Method::GET, path, &[], "").await.expect("an answer");
        assert!([400, 404].contains(&answer.status), "{path}: {} {}", answer.status, answer.text());
    }
    let study = Slices::new("A1", "P1", 1);
    let (uid, dataset) = study.first();
    // The data set's own UIDs, each replaced by something of the same length.
    for victim in [&study.study, &study.series, uid] {
        for evil in ["../../../../etc/passwd", "/etc/passwd", "1.2\0.3", "1..2", "", "é.1.2"] {
            let mut bytes = dataset.to_vec();
            let at = maillage_tests::multipart::find(&bytes, victim.as_bytes()).expect("the UID");
            let mut value = evil.as_bytes().to_vec();
            value.resize(victim.len(), 0);
            bytes[at..at + victim.len()].copy_from_slice(&value);
            let refused = site.http().post_file(file(uid, &bytes)).await;
            assert_eq!(refused.status, 400, "{evil:?}: {}", refused.text());
        }
    }
    let found = walk(mesh.root());
    assert!(!found.iter().any(|name| name.contains("passwd") || name.contains("..")), "{found:?}");
    let studies = until("the first study is published", async || {
        let studies = site.http().json("/api/v1/studies?fresh=true").await["studies"].as_array()?.clone();
        (!studies.is_empty()).then_some(studies)
    })
    .await;
    assert_eq!(studies.len(), 1, "and nothing else: {studies:?}");
    still_serves(site).await;
}

/// The names of all files under a folder.
#[expect(clippy::disallowed_methods, reason = "looks at a node's files from outside")]
fn walk(root: &std::path::Path) -> Vec<String> {
    let (mut names, mut folders) = (Vec::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("look").flatten() {
            names.push(entry.file_name().to_string_lossy().into_owned());
            if entry.path().is_dir() {
                folders.push(entry.path());
            }
        }
    }
    names
}

#[tokio::test]
async fn other_protocols_on_the_http_port_are_closed() {
    let (mesh, before) = victim().await;
    let site = &mesh.sites[0];
    let associate: Vec<u8> = [&[1, 0, 0, 0, 0, 200, 0, 1, 0, 0][..], &[b' '; 194]].concat();
    let header = format!("GET / HTTP/1.1\r\nHost: {}\r\nX: {}\r\n\r\n", site.http().0, "x".repeat(1 << 20));
    let two_lengths = format!(
        "POST /api/v1/exams HTTP/1.1\r\nHost: {}\r\nContent-Length: 5\r\nContent-Length: 6\r\nConnection: close\r\n\r\nabcdef",
        site.http().0
    );
    for bytes in
        [&associate[..], b"\x16\x03\x01\x02\0\x01\0\r\n\r\n", &[0xFF; 4096], header.as_bytes(), two_lengths.as_bytes()]
    {
        let answer = raw(site.http().0, bytes).await;
        let text = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || text.starts_with("HTTP/1.1 4"), "{text}");
    }
    took_no_memory(site, before);
    still_serves(site).await;
}

#[tokio::test]
async fn shell_and_formula_characters_are_only_text() {
    let (mesh, _) = victim().await;
    let site = &mesh.sites[0];
    let mut exam = maillage_tests::exams::ready("A;$(touch /tmp/x)`id`");
    exam["patient"]["name"] = json!("=cmd()|'/c calc'!A1^$(reboot)");
    let id = site.http().post("/api/v1/exams", &exam).await.expect(201).json()["id"].to_string();
    let shown = site.http().json(&format!("/api/v1/exams/{id}?fresh=true")).await;
    assert_eq!(shown["patient"]["name"], exam["patient"]["name"]);
    assert_eq!(shown["accession"], exam["accession"]);
    let mut exam = maillage_tests::exams::ready("A2");
    exam["description"] = json!("a\u{1b}[2Jb");
    site.http().post("/api/v1/exams", &exam).await.expect(400);
    still_serves(site).await;
}
