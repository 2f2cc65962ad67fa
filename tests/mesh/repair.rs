//! A byte that rots on disk is never served, is reported, and is mended from another site.

#![expect(clippy::disallowed_methods, clippy::disallowed_types, reason = "tests spoil packs as a bad disk does")]

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use maillage_host::Clock;
use maillage_tests::study::{ACCEPT, retrieve};
use maillage_tests::{Mesh, Settings, Site, Slices, until, until_within};
use maillage_transport::chunk::{self, ChunkSource, Limits};
use maillage_transport::presence::{Presence, PresenceConfig};
use maillage_transport::{Alpn, Endpoint, EndpointConfig, Identity, Membership, Socket};
use serde_json::{Value, json};

use crate::sealed::{manifest_of, records};
use crate::{binary, mesh};

/// Flips one bit of the first chunk of an instance in a site's packs.
pub(crate) fn rot(site: &Site, sop_instance: &str) {
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
async fn a_copy_beyond_those_that_are_wanted_is_mended_though_nobody_would_make_it_again() {
    let mesh = Mesh::start(binary(), 3, |_| Settings { copies: 2, ..Settings::default() }).await;
    let study = Slices::new("A1", "P1", 10);
    study.send(mesh.sites[0].dicom()).await;
    let path = format!("/api/v1/studies/{}", study.study);
    let holders = async || {
        let shown = mesh.sites[0].http().get(&path).await;
        let shown: Value = (shown.status == 200).then(|| shown.json())?;
        let holders = shown["part_list"][0]["holders"].as_array()?.iter();
        Some(holders.filter_map(|holder| holder["site_name"].as_str().map(str::to_owned)).collect::<Vec<_>>())
    };
    let two = until("two sites hold the study", async || holders().await.filter(|names| names.len() == 2)).await;
    let third = mesh.sites.iter().find(|site| !two.contains(&site.name().to_owned())).expect("the third");
    // A reader there had it brought. The copies that are wanted are elsewhere: what looks after those leaves it be.
    third.run(&["study", "fetch", &study.study]).await.ended(0);
    until("the third holds it, too", async || holders().await.filter(|names| names.len() == 3)).await;
    rot(third, study.first().0);
    study.is_whole_at(third.http()).await;
    until("the copy is whole again", async || {
        (third.run(&["study", "verify", &study.study]).await.code == 0).then_some(())
    })
    .await;
    until("the mesh counts on it again", async || holders().await.filter(|names| names.len() == 3)).await;
    let metrics = third.http().get("/metrics").await.expect(200).text();
    let brought = "maillage_chunk_bytes_received_total{class=\"repair\"} ";
    let brought = metrics.lines().find_map(|line| line.strip_prefix(brought)?.parse::<u64>().ok());
    assert!(brought > Some(0), "{metrics}");
    assert!(!metrics.contains("maillage_chunk_bytes_received_total{class=\"copy\"}"), "no copy was made: {metrics}");
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
    found.complains_of(&["repair --study"]);
    // What the hint says helps, if the node has not mended it by itself already.
    site.run(&["repair", "--study", &study.study]).await.ended(0);
    site.run(&["study", "verify", &study.study]).await.ended(0);
    study.is_whole_at(site.http()).await;
}

#[tokio::test]
async fn verify_everywhere_says_of_each_site_what_it_has() {
    let mut mesh = mesh(3).await;
    let study = three_copies(&mesh).await;
    let state = |report: &Value, name: &str| {
        let sites = report["elsewhere"].as_array().expect("sites").iter();
        let mut of_it = sites.filter(|site| site["site_name"].as_str() == Some(name));
        of_it.next().unwrap_or_else(|| panic!("{name} in {report}"))["state"].as_str().expect("a state").to_owned()
    };
    let verify = ["-o", "json", "study", "verify", &study.study, "--everywhere"];
    let [other, third] = [1, 2].map(|n| mesh.sites[n].name().to_owned());
    let report = mesh.sites[0].run(&verify).await.ended(0).json();
    assert_eq!((&report["complete"], &report["here"]), (&json!(true), &json!(true)), "{report}");
    assert_eq!([&other, &third].map(|name| state(&report, name)), ["complete", "complete"]);
    assert!(report["elsewhere"][0]["objects"].as_u64() >= Some(11), "manifests and chunks: {report}");
    let shown = mesh.sites[0].run(&["study", "verify", &study.study, "--everywhere"]).await.ended(0).stdout;
    assert!(shown.contains(&other) && shown.contains("complete: every byte"), "{shown}");

    for site in &mesh.sites[..2] {
        site.run(&["scrub", "pause"]).await.ended(0);
    }
    // Rot that nobody has read there. It is mended as soon as it is found: not where nothing can be had from others.
    mesh.sites[2].kill();
    mesh.sites[1].terminate().await;
    rot(&mesh.sites[1], study.first().0);
    rot(&mesh.sites[0], study.first().0);
    mesh.sites[1].start();
    mesh.sites[1].ready().await;
    let report = until("it is found", async || {
        let ran = mesh.sites[0].run(&verify).await;
        let report = serde_json::from_str::<Value>(&ran.stdout).ok().filter(|_| ran.code == 7)?;
        (state(&report, &other) != "unreachable").then_some(report)
    })
    .await;
    assert_eq!((report["complete"].clone(), state(&report, &third)), (json!(false), "unreachable".to_owned()));
    assert!(["damaged", "incomplete"].contains(&state(&report, &other).as_str()), "{report}");
    assert_eq!(report["corrupt"].as_array().map(Vec::len), Some(1), "and here: {report}");
    let found = &report["elsewhere"].as_array().expect("sites")[0];
    let named = |key: &str| found[key].as_array().map_or(0, Vec::len);
    assert_eq!(named("missing") + named("damaged"), 1, "one chunk of all: {report}");
    mesh.sites[0].run(&["study", "verify", "1.2.3", "--everywhere"]).await.ended(1);
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

/// What the scrub says when its pass is over.
async fn scrubbed(site: &Site) -> Value {
    site.run(&["scrub", "start"]).await.ended(0);
    until("the scrub has read everything", async || {
        let scrub = site.run_json(&["scrub", "status"]).await;
        (scrub["state"] == json!("resting")).then_some(scrub)
    })
    .await
}

/// The value of a metric without labels.
async fn metric(site: &Site, name: &str) -> f64 {
    let metrics = site.http().get("/metrics").await.expect(200).text();
    let line = metrics.lines().find(|line| line.split(' ').next() == Some(name));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or_else(|| panic!("{name} in {metrics}"))
}

#[tokio::test]
async fn the_scrub_finds_rot_that_nobody_reads_and_has_it_mended() {
    let mut mesh = mesh(3).await;
    let study = three_copies(&mesh).await;
    let site = &mesh.sites[1];
    rot(site, study.first().0);
    site.run(&["scrub", "pause"]).await.ended(0);
    mesh.sites[1].terminate().await;
    mesh.sites[1].start();
    mesh.sites[1].ready().await;
    let site = &mesh.sites[1];
    assert_eq!(site.run_json(&["scrub", "status"]).await["state"], json!("paused"), "a pause survives a restart");
    assert_eq!(metric(site, "maillage_scrub_last_full_pass_age_seconds").await, f64::INFINITY);
    let done = scrubbed(site).await;
    assert_eq!((&done["last"]["found"], &done["unrepaired"]), (&json!(1), &json!(0)), "{done}");
    until("it is mended", async || {
        let stats = site.http().json("/api/v1/chunks").await;
        (stats["bad"] == json!(0)).then_some(())
    })
    .await;
    site.run(&["verify"]).await.ended(0);
    assert!(metric(site, "maillage_scrub_bytes_total").await > 10_000.0);
    assert_eq!(metric(site, "maillage_scrub_found_total").await, 1.0);
    assert_eq!(metric(site, "maillage_scrub_repaired_total").await, 1.0);
    assert!(metric(site, "maillage_scrub_last_full_pass_age_seconds").await < 60.0);
    study.is_whole_at(site.http()).await;
    let status = site.http().json("/api/v1/status").await;
    assert_eq!(status["scrub"]["state"], json!("resting"), "{status}");
}

#[tokio::test]
async fn packs_that_are_gone_and_an_index_that_is_gone_are_made_up_for() {
    let mut mesh = mesh(3).await;
    let study = three_copies(&mesh).await;
    for lose_index in [false, true] {
        let site = &mut mesh.sites[1];
        site.terminate().await;
        for entry in fs::read_dir(site.data_dir().join("packs")).expect("look") {
            let path = entry.expect("an entry").path();
            if path.is_file() {
                fs::remove_file(path).expect("remove");
            }
        }
        if lose_index {
            fs::remove_dir_all(site.data_dir().join("index")).expect("remove");
        }
        let offline = site.run(&["-o", "json", "verify"]).await;
        assert_eq!(offline.code, if lose_index { 0 } else { 7 }, "what a store alone can know: {}", offline.stdout);
        site.start();
        site.ready().await;
        let site = &mesh.sites[1];
        site.run(&["repair"]).await;
        until("everything is here again", async || {
            let verified = site.run(&["-o", "json", "verify"]).await;
            let report = (verified.code == 0).then(|| verified.json())?;
            (report["parts"] == json!(1) && report["missing"] == json!(0)).then_some(())
        })
        .await;
    }
    // From its own disk alone.
    let whole = [0, 2];
    whole.into_iter().for_each(|other| mesh.sites[other].kill());
    study.is_whole_at(mesh.sites[1].http()).await;
}

#[tokio::test]
async fn what_nobody_has_is_an_alarm_and_verify_and_repair_say_so() {
    let mesh = mesh(1).await;
    let study = Slices::new("A1", "P1", 3);
    study.send(mesh.sites[0].dicom()).await;
    let site = &mesh.sites[0];
    until("the study is published", async || {
        let shown = site.http().get(&format!("/api/v1/studies/{}", study.study)).await;
        (shown.status == 200).then_some(())
    })
    .await;
    site.run(&["verify"]).await.ended(0);
    rot(site, study.first().0);
    let found = site.run(&["-o", "json", "verify"]).await.ended(7);
    assert_eq!((&found.json()["damaged"], &found.json()["bad"]), (&json!(1), &json!(1)));
    found.complains_of(&["maillage repair"]);
    let repaired = site.run(&["-o", "json", "repair"]).await.ended(3).json();
    assert_eq!((&repaired["nowhere_count"], &repaired["nowhere"][0]["study"]), (&json!(1), &json!(study.study)));
    until("the alarm is raised", async || {
        let status = site.http().json("/api/v1/status").await;
        let warned = status["warnings"]
            .as_array()?
            .iter()
            .any(|warning| warning["what"].as_str().is_some_and(|what| what.starts_with("ALARM: 1 damaged chunks")));
        warned.then_some(())
    })
    .await;
    assert_eq!(metric(site, "maillage_scrub_unrepaired").await, 1.0);
    assert!(site.log().contains("ALARM: damaged chunks are on no site that can be asked"));
    // Its sender has it still.
    study.send(site.dicom()).await;
    site.run(&["verify"]).await.ended(0);
    study.is_whole_at(site.http()).await;
}

#[tokio::test]
async fn a_site_is_lost_for_good_and_its_copies_are_made_again_byte_for_byte() {
    let settings = |_| Settings {
        session_ttl_s: 3,
        lines: vec![("[storage]", "placement_grace_s = 3".to_owned())],
        ..Settings::default()
    };
    let mut mesh = Mesh::start(binary(), 4, settings).await;
    let studies: Vec<Slices> = (0..3).map(|n| Slices::new(&format!("A{n}"), &format!("P{n}"), 6)).collect();
    let holders = async |mesh: &Mesh, study: &Slices| -> Option<Vec<String>> {
        let shown = mesh.sites[0].http().get(&format!("/api/v1/studies/{}", study.study)).await;
        let shown: Value = (shown.status == 200).then(|| shown.json())?;
        let holders = shown["part_list"][0]["holders"].as_array()?.iter();
        Some(holders.filter_map(|holder| holder["site_name"].as_str().map(str::to_owned)).collect())
    };
    for study in &studies {
        study.send(mesh.sites[0].dicom()).await;
        until("three copies", async || holders(&mesh, study).await.filter(|names| names.len() == 3)).await;
    }
    let names = holders(&mesh, &studies[0]).await.expect("holders");
    let lost =
        (1..4).find(|n| names.contains(&mesh.sites[*n].name().to_owned())).expect("a holder beside the receiver");
    let lost_name = mesh.sites[lost].name().to_owned();
    mesh.sites[lost].kill();
    fs::remove_dir_all(mesh.sites[lost].data_dir()).expect("the disk goes with it");
    let mut left: Vec<Vec<String>> = Vec::new();
    for study in &studies {
        let made = until_within(Duration::from_secs(90), "three copies on sites that are left", async || {
            let names: Vec<String> =
                holders(&mesh, study).await?.into_iter().filter(|name| *name != lost_name).collect();
            (names.len() == 3).then_some(names)
        });
        left.push(made.await);
    }
    // Each from one disk alone: nobody else is there to be asked.
    for n in (0..4).filter(|n| *n != lost) {
        mesh.sites[n].terminate().await;
    }
    for n in (0..4).filter(|n| *n != lost) {
        let site = &mut mesh.sites[n];
        site.start();
        site.ready().await;
        let mut whole = 0;
        for (study, names) in studies.iter().zip(&left) {
            if names.contains(&site.name().to_owned()) {
                site.run(&["study", "verify", &study.study]).await.ended(0);
                study.is_whole_at(site.http()).await;
                whole += 1;
            }
        }
        assert_eq!(whole, 3, "of four sites, three are left, and each has all of it");
        site.terminate().await;
    }
}

/// Has every chunk, and all of them wrong.
struct Liar {
    asked: AtomicU64,
}

impl ChunkSource for Liar {
    fn read(&self, hash: blake3::Hash) -> BoxFuture<'_, io::Result<Option<Bytes>>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move { Ok(Some(Bytes::copy_from_slice(&hash.as_bytes()[..16]))) })
    }
}

/// A peer with the identity, the address and the place in the mesh of a site, and a mind of its own.
fn byzantine(site: &Site) -> (Endpoint, Presence, Arc<Liar>) {
    let secret = fs::read_to_string(site.data_dir().join("identity")).expect("its key");
    let secret: Vec<u8> = (0..32).map(|n| u8::from_str_radix(&secret[2 * n..2 * n + 2], 16).expect("digits")).collect();
    let identity = Identity::from_secret(secret.as_slice().try_into().expect("32 bytes"));
    let file = fs::read_to_string(site.data_dir().join("mesh.json")).expect("its mesh");
    let known: Value = serde_json::from_str(&file).expect("JSON");
    let membership = Membership::new(Clock::system());
    let members = known["members"].as_array().expect("members").iter().filter_map(|member| {
        let peer = member["peer_id"].as_str()?.parse().ok().filter(|peer| *peer != identity.peer_id())?;
        let addresses = member["addresses"].as_array()?.iter().filter_map(|at| at.as_str()?.parse().ok());
        Some((peer, addresses.collect::<Vec<SocketAddr>>()))
    });
    membership.set_members(members.collect::<BTreeMap<_, _>>());
    let config = EndpointConfig::new(identity, membership, Socket::Udp(site.mesh()), Clock::system());
    let endpoint = Endpoint::bind(config).expect("its port");
    let liar = Arc::new(Liar { asked: AtomicU64::default() });
    let source: Arc<dyn ChunkSource> = Arc::<Liar>::clone(&liar);
    drop(maillage_host::spawn(chunk::serve(endpoint.accept(Alpn::Chunk), source, Limits::default())));
    let mesh_id = known["mesh_id"].as_str().expect("an id");
    let (presence, mut events) = Presence::start(&endpoint, &PresenceConfig::new(mesh_id)).expect("presence");
    drop(maillage_host::spawn(async move { while events.recv().await.is_some() {} }));
    (endpoint, presence, liar)
}

#[tokio::test]
async fn a_byzantine_peer_is_found_out_penalised_and_reported_and_never_believed() {
    let mut mesh = Mesh::start(binary(), 3, |_| Settings { copies: 2, ..Settings::default() }).await;
    let study = Slices::new("A1", "P1", 10);
    study.send(mesh.sites[0].dicom()).await;
    let path = format!("/api/v1/studies/{}", study.study);
    let other = until("two sites hold the study", async || {
        let shown = mesh.sites[0].http().get(&path).await;
        let shown: Value = (shown.status == 200).then(|| shown.json())?;
        let names: Vec<&str> = shown["part_list"][0]["holders"]
            .as_array()?
            .iter()
            .filter_map(|holder| holder["site_name"].as_str())
            .collect();
        (names.len() == 2).then(|| (1..3).find(|n| names.contains(&mesh.sites[*n].name()))).flatten()
    })
    .await;
    let reader = 3 - other;
    mesh.sites[other].terminate().await;
    let site = &mesh.sites[reader];
    let row = async || {
        let peers = site.http().json("/api/v1/peers").await;
        let row = peers["peers"]
            .as_array()
            .and_then(|rows| rows.iter().find(|row| row["name"].as_str() == Some(mesh.sites[other].name())).cloned());
        row.expect("its row")
    };
    until("it is missed", async || (row().await["state"] == json!("unreachable")).then_some(())).await;
    let (_endpoint, _presence, liar) = byzantine(&mesh.sites[other]);
    until("it passes for a member", async || (row().await["state"] == json!("connected")).then_some(())).await;

    let seen = until("it is found out", async || {
        study.is_whole_at(site.http()).await;
        let seen = row().await;
        (seen["wrong_bytes"].as_u64() > Some(0)).then_some(seen)
    })
    .await;
    let asked = liar.asked.load(Ordering::Relaxed);
    assert!(asked > 0 && seen["penalised_s"].as_u64() > Some(200), "{asked} {seen}");
    let metrics = site.http().get("/metrics").await.expect(200).text();
    let counted = format!("maillage_peer_wrong_bytes_total{{site=\"{}\"}}", seen["site"]);
    assert!(metrics.contains(&counted), "{counted} in {metrics}");
    let warned = site.run(&["status"]).await.ended(0).stdout;
    assert!(warned.contains("wrong answers: others are asked first"), "{warned}");

    study.is_whole_at(site.http()).await;
    assert_eq!(liar.asked.load(Ordering::Relaxed), asked, "others are asked first");
    // Its own copy is read there, and is none.
    let verify = ["-o", "json", "study", "verify", &study.study, "--everywhere"];
    until("its copy is called damaged", async || {
        let report: Value = serde_json::from_str(&mesh.sites[0].run(&verify).await.stdout).ok()?;
        let mut sites = report["elsewhere"].as_array()?.iter();
        let its = sites.find(|site| site["site_name"].as_str() == Some(mesh.sites[other].name()))?;
        (its["state"] == json!("damaged") && its["damaged"].as_array()?.len() > 1).then_some(())
    })
    .await;
    // Now it is the only one that says it has them.
    mesh.sites[0].kill();
    let accept = [("accept", ACCEPT)];
    let site = &mesh.sites[reader];
    let answer = site.http().send(&hyper::Method::GET, &study.path(), &accept, "").await;
    assert!(answer.is_err() || answer.is_ok_and(|answer| [502, 503].contains(&answer.status)), "never believed");
}
