//! What strangers send to the DICOM port, and DICOM files that mean harm.

use std::time::Duration;

use bytes::Bytes;
use maillage_tests::Slices;
use maillage_tests::study::{CALLED, CALLING, associate, echo, file, store};
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use crate::hostile::{raw, still_serves, took_no_memory, victim};

const SOP_CLASS: &str = "1.2.840.10008.5.1.4.1.1.2";
const UID: &str = "1.2.3.4.5";

/// Elements in explicit VR little endian, true or not.
#[derive(Default)]
struct Elements(Vec<u8>);

impl Elements {
    /// The UIDs and identifiers of an instance, up to group 0020.
    fn instance() -> Self {
        Self::default()
            .text(0x0008, 0x0016, "UI", SOP_CLASS)
            .text(0x0008, 0x0018, "UI", UID)
            .text(0x0008, 0x0050, "SH", "HOSTILE")
            .text(0x0010, 0x0020, "LO", "HOSTILE")
            .text(0x0020, 0x000D, "UI", "1.2.3.4")
            .text(0x0020, 0x000E, "UI", "1.2.3.4.1")
    }

    fn tag(mut self, group: u16, element: u16) -> Self {
        self.0.extend_from_slice(&group.to_le_bytes());
        self.0.extend_from_slice(&element.to_le_bytes());
        self
    }

    fn text(self, group: u16, element: u16, vr: &str, text: &str) -> Self {
        let mut value = text.as_bytes().to_vec();
        if value.len() % 2 == 1 {
            value.push(if vr == "UI" { 0 } else { b' ' });
        }
        let mut written = self.tag(group, element);
        written.0.extend_from_slice(vr.as_bytes());
        written.0.extend_from_slice(&u16::try_from(value.len()).expect("short").to_le_bytes());
        written.0.extend_from_slice(&value);
        written
    }

    /// A header with a 32-bit length.
    fn long(self, group: u16, element: u16, vr: &str, length: u32) -> Self {
        let mut written = self.tag(group, element);
        written.0.extend_from_slice(vr.as_bytes());
        written.0.extend_from_slice(&[0, 0]);
        written.0.extend_from_slice(&length.to_le_bytes());
        written
    }

    fn short(self, group: u16, element: u16, number: u16) -> Self {
        let mut written = self.tag(group, element);
        written.0.extend_from_slice(b"US\x02\0");
        written.0.extend_from_slice(&number.to_le_bytes());
        written
    }

    /// Sequences within sequences, all of undefined length, none closed.
    fn nested(mut self, depth: usize) -> Self {
        for _ in 0..depth {
            self = self.long(0x0040, 0xA730, "SQ", u32::MAX).tag(0xFFFE, 0xE000);
            self.0.extend_from_slice(&u32::MAX.to_le_bytes());
        }
        self
    }
}

fn hostile_datasets() -> Vec<(&'static str, Vec<u8>)> {
    let image = |rows, columns| {
        Elements::instance().short(0x0028, 0x0002, 1).short(0x0028, 0x0010, rows).short(0x0028, 0x0011, columns)
    };
    vec![
        ("a bomb: OB of almost 4 GiB", Elements::instance().long(0x7FE0, 0x0010, "OB", 0xFFFF_FFFE).0),
        ("a bomb: UN of almost 4 GiB", Elements::instance().long(0x0029, 0x0010, "UN", 0xFFFF_FFFE).0),
        ("undefined length in OW", Elements::instance().long(0x0029, 0x0010, "OW", u32::MAX).0),
        ("2,000 nested sequences", Elements::instance().nested(2_000).0),
        ("50,000 nested sequences", Elements::instance().nested(50_000).0),
        ("a sequence longer than the data set", Elements::instance().long(0x0040, 0xA730, "SQ", 0x7FFF_FFFE).0),
        ("pixels longer than the data set", {
            let mut bytes = image(4, 4).long(0x7FE0, 0x0010, "OW", 3_000_000_000).0;
            bytes.extend_from_slice(&[7; 32]);
            bytes
        }),
        ("no UIDs", Elements::default().text(0x0010, 0x0020, "LO", "HOSTILE").0),
        ("nothing but noise", (0..5000u32).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect()),
        ("cut in an element's header", {
            let mut bytes = Elements::instance().0;
            bytes.extend_from_slice(&[0x28, 0, 0x10]);
            bytes
        }),
    ]
}

#[tokio::test]
async fn hostile_data_sets_are_refused_by_every_door_at_once_and_without_memory() {
    let (mesh, before) = victim().await;
    let site = &mesh.sites[0];
    for (what, bytes) in hostile_datasets() {
        let since = Instant::now();
        let mut association = associate(site.dicom(), CALLING, CALLED).await.expect("an association");
        let status = store(&mut association, UID, Bytes::from(bytes.clone())).await.expect("an answer");
        assert!(!status.is_stored(), "{what}: {status:?}");
        // PS3.4 table B.2-1: what can never be stored is said to be so, or the sender tries for ever.
        assert!((0xA900..=0xCFFF).contains(&status.code()), "{what}: {status:?}");
        association.echo().await.expect("the association goes on");

        let refused = site.http().post_file(file(UID, &bytes)).await.expect(400).json();
        assert_eq!(refused["code"], json!("rejected"), "{what}: {refused}");
        assert!(since.elapsed() < Duration::from_secs(3), "{what} took {:?}", since.elapsed());
    }
    assert_eq!(site.http().get("/api/v1/studies/1.2.3.4").await.status, 404, "nothing of them was kept");
    took_no_memory(site, before);
    let metrics = site.http().get("/metrics").await.expect(200).text();
    for (interface, least) in [("dimse", 10), ("import", 10)] {
        let lines =
            metrics.lines().filter(|line| line.starts_with("maillage_rejected_total") && line.contains(interface));
        let sum: u64 = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum();
        assert!(sum >= least, "{interface}: {sum} refusals are counted");
    }
    still_serves(site).await;
}

#[tokio::test]
async fn the_smallest_bomb_has_266_bytes_and_does_nothing() {
    let (mesh, before) = victim().await;
    let site = &mesh.sites[0];
    for vr in ["OB", "UN"] {
        let mut bomb = file(UID, &Elements::default().long(0x7FE0, 0x0010, vr, 0xFFFF_FFFE).0).to_vec();
        bomb.resize(bomb.len().max(266), 0);
        site.http().post_file(bomb).await.expect(400);
    }
    took_no_memory(site, before);
    still_serves(site).await;
}

#[tokio::test]
async fn an_executable_in_the_preamble_is_not_kept() {
    let (mesh, _) = victim().await;
    let site = &mesh.sites[0];
    let study = Slices::new("A1", "P1", 1);
    let (uid, dataset) = study.first();
    let mut polyglot = file(uid, dataset).to_vec();
    polyglot[..4].copy_from_slice(b"MZ\x90\0");
    polyglot[64..72].copy_from_slice(b"malware!");
    site.http().post_file(polyglot).await.expect(200);
    let came = maillage_tests::study::retrieve(site.http(), &study.path()).await.expect(200);
    study.is_whole_in(&came);
    assert_eq!(came.parts()[0].body[..128], [0; 128], "the preamble is zeros");
    still_serves(site).await;
}

#[tokio::test]
async fn other_protocols_on_the_dicom_port_are_closed_unanswered() {
    let (mesh, before) = victim().await;
    let site = &mesh.sites[0];
    let noise: Vec<u8> = (0..1u32 << 20).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3] | 8).collect();
    for bytes in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], b"\x16\x03\x01\x02\0\x01\0", b"SSH-2.0-x\r\n", &noise] {
        let since = Instant::now();
        assert_eq!(raw(site.dicom(), bytes).await, b"");
        assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    }
    // An association request that declares 4 GB is answered by a rejection or an end, not by waiting.
    let request = [&[1, 0, 0xFF, 0xFF, 0xFF, 0xFF][..], &[0; 100]].concat();
    let answer = raw(site.dicom(), &request).await;
    assert!(answer.is_empty() || answer[0] == 3 || answer[0] == 7, "{answer:?}");
    took_no_memory(site, before);
    still_serves(site).await;
}

#[tokio::test]
async fn silent_connections_do_not_keep_others_out() {
    let (mesh, before) = victim().await;
    let site = &mesh.sites[0];
    let mut silent = Vec::new();
    for n in 0..300 {
        let Ok(mut stream) = TcpStream::connect(site.dicom()).await else { continue };
        if n % 2 == 0 {
            // Half of an association request's header.
            let _ = stream.write_all(&[1, 0, 0]).await;
        }
        silent.push(stream);
    }
    sleep(Duration::from_millis(200)).await;
    let since = Instant::now();
    echo(site.dicom()).await;
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    took_no_memory(site, before);
    drop(silent);
    still_serves(site).await;
}
