//! What was done and what happened: events with a cursor, the audit trail, and a mesh of mixed versions.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use maillage_tests::exams::ready;
use maillage_tests::http::Events;
use maillage_tests::wait::until;
use maillage_tests::{Http, Mesh, Settings};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::{binary, mesh};

/// For what must come, on however busy a machine.
const PATIENCE: Duration = Duration::from_secs(30);

async fn add(http: Http, accession: &str) -> u64 {
    let added = http.post("/api/v1/exams", &ready(accession)).await.expect(201).json();
    added["id"].as_u64().expect("a number")
}

/// The next event's cursor, and the event; none for a stream's first word, which is a cursor alone.
async fn next(events: &mut Events) -> (String, Option<Value>) {
    let block = events.next(PATIENCE).await;
    let line = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let cursor = line("id:").unwrap_or_else(|| panic!("a cursor in {block}")).to_owned();
    (cursor, line("data:").map(|data| serde_json::from_str(data).expect("JSON")))
}

/// Reads on until every one of `exams` was seen to wait; returns all events, by cursor.
async fn read_until_all_wait(events: &mut Events, exams: &BTreeSet<u64>) -> Vec<(String, Value)> {
    let (mut seen, mut waiting) = (Vec::new(), BTreeSet::new());
    while !exams.is_subset(&waiting) {
        let (cursor, Some(event)) = next(events).await else { continue };
        assert_eq!(event["cursor"], json!(cursor));
        if event["what"] == "exam" && event["details"]["to"] == "waiting" {
            waiting.insert(event["exam"].as_u64().expect("a number"));
        }
        seen.push((cursor, event));
    }
    seen
}

#[tokio::test]
async fn a_client_cut_off_goes_on_at_another_node_and_misses_no_event() {
    let mut mesh = mesh(3).await;
    let leader = mesh.leader().await;
    let (first, second) = ((leader + 1) % 3, (leader + 2) % 3);
    let writer = mesh.sites[leader].http();
    let mut events = mesh.sites[first].http().events("/api/v1/events?after=now").await;
    let (start, nothing) = next(&mut events).await;
    assert_eq!(nothing, None, "from now on there is nothing yet");
    let mut exams = BTreeSet::new();
    for n in 0..10 {
        exams.insert(add(writer, &format!("E{n}")).await);
    }
    // It reads a few, and is cut off in the midst: its node is killed.
    let mut seen = Vec::new();
    while seen.len() < 4 {
        if let (cursor, Some(event)) = next(&mut events).await {
            seen.push((cursor, event));
        }
    }
    mesh.sites[first].kill();
    drop(events);
    for n in 10..20 {
        exams.insert(add(writer, &format!("E{n}")).await);
    }
    // At another node, as a browser does it: the address that it was given, and where it was.
    let last = seen.last().expect("some").0.clone();
    let there = mesh.sites[second].http();
    let mut events = there.events_with("/api/v1/events?after=now", &[("last-event-id", &last)]).await;
    assert_eq!(next(&mut events).await, (last.clone(), None));
    let known: BTreeSet<u64> = seen
        .iter()
        .filter(|(_, event)| event["what"] == "exam" && event["details"]["to"] == "waiting")
        .filter_map(|(_, event)| event["exam"].as_u64())
        .collect();
    let missing = exams.difference(&known).copied().collect();
    seen.extend(read_until_all_wait(&mut events, &missing).await);
    // Who was never cut off has seen the same, in the same order.
    let mut whole = writer.events(&format!("/api/v1/events?after={start}")).await;
    let whole = read_until_all_wait(&mut whole, &exams).await;
    assert_eq!(seen, whole);
    // The one that was killed comes back behind, and tells the rest of it, too.
    mesh.sites[first].start();
    let (cursor, count) = (whole[7].0.as_str(), (whole.len() - 8).to_string());
    mesh.sites[first].ready().await;
    let printed = mesh.sites[first].run(&["-o", "json", "events", "--after", cursor, "--count", &count]).await.ended(0);
    let printed: Vec<Value> = printed.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(printed, whole[8..].iter().map(|(_, event)| event.clone()).collect::<Vec<_>>());
    there.get("/api/v1/events?after=nonsense").await.expect(400);
    // The page's own stream is what it was.
    let mut page = there.events("/api/v1/events").await;
    assert!(page.next(PATIENCE).await.contains("event: queue"));
}

#[tokio::test]
async fn a_node_behind_a_clients_cursor_says_nothing_until_it_is_there() {
    let mesh = mesh(3).await;
    let leader = mesh.leader().await;
    let (writer, reader) = (mesh.sites[leader].http(), mesh.sites[(leader + 1) % 3].http());
    add(writer, "B1").await;
    // A cursor that no node has reached: as if another were ahead of this one.
    let applied = reader.json("/api/v1/status").await["applied"].as_u64().expect("a number");
    let cursor = format!("{}.65535", applied + 25);
    let mut events = reader.events(&format!("/api/v1/events?after={cursor}")).await;
    assert_eq!(next(&mut events).await, (cursor.clone(), None));
    for n in 0..60 {
        add(writer, &format!("B2-{n}")).await;
    }
    let (first, event) = next(&mut events).await;
    assert!(event.is_some());
    let index = |cursor: &str| cursor.split('.').next().and_then(|index| index.parse::<u64>().ok()).expect("an index");
    assert_eq!(index(&first), applied + 26, "the very next, and none before it");
}

/// Reads one octet-counted message (RFC 6587 section 3.4.1).
async fn syslog_message(stream: &mut BufReader<TcpStream>) -> String {
    let message = async {
        let mut count = Vec::new();
        stream.read_until(b' ', &mut count).await.expect("a count");
        let count = String::from_utf8(count).expect("digits");
        let mut message = vec![0; count.trim_end().parse().expect("a number")];
        stream.read_exact(&mut message).await.expect("as many octets");
        String::from_utf8(message).expect("UTF-8")
    };
    tokio::time::timeout(PATIENCE, message).await.expect("a message in time")
}

/// The entry's number in a message.
fn number(message: &str) -> u64 {
    let (_, after) = message.split_once("urn:maillage:audit:").expect("an entry");
    after.split('"').next().and_then(|number| number.parse().ok()).expect("a number")
}

/// A time that sorts: seconds, and the fraction, which is written without its last zeroes.
fn moment(at: &str) -> String {
    let (seconds, fraction) = at.trim_end_matches('Z').split_once('.').unwrap_or((at.trim_end_matches('Z'), ""));
    format!("{seconds}.{fraction:0<3}")
}

#[tokio::test]
async fn the_trail_is_verified_exported_and_sent_to_a_syslog_server() {
    let server = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let syslog = Some(format!("tcp://{}", server.local_addr().expect("an address")));
    let settings = Settings { syslog, ..Settings::default() };
    let mut mesh = Mesh::start(binary(), 1, |_| settings.clone()).await;
    let http = mesh.sites[0].http();
    let exam = add(http, "T1").await;
    let claim = http.post(&format!("/api/v1/exams/{exam}/claim"), &json!({ "user": "dr-a" })).await.expect(200).json();
    let report = json!({ "user": "dr-a", "token": claim["token"], "text": "All is well." });
    http.post(&format!("/api/v1/exams/{exam}/report"), &report).await.expect(200);
    // The trail, by pages and by the command line.
    let all = http.json("/api/v1/audit?after=0&limit=1000").await;
    let all = all["entries"].as_array().expect("entries").clone();
    let kinds: Vec<&str> = all.iter().filter_map(|entry| entry["kind"].as_str()).collect();
    for kind in ["establish", "open-session", "order", "take", "report"] {
        assert!(kinds.contains(&kind), "{kind} in {kinds:?}");
    }
    let mut paged = Vec::new();
    let mut after = json!(0);
    while !after.is_null() {
        let page = http.json(&format!("/api/v1/audit?after={after}&limit=2")).await;
        paged.extend(page["entries"].as_array().expect("entries").clone());
        after = page["next"].clone();
    }
    assert_eq!(paged[..all.len()], all, "pages leave nothing out");
    let back = http.json(&format!("/api/v1/audit?before={}&limit=3", all[3]["index"])).await;
    assert_eq!(back["entries"], json!([all[2], all[1], all[0]]));
    let site = &mesh.sites[0];
    let tail = site.run_json(&["audit", "tail", "-n", "1000"]).await;
    assert_eq!(tail["entries"].as_array().expect("entries")[..all.len()], all, "oldest first");
    site.run(&["audit", "attest"]).await.ended(0);
    let verdict = site.run_json(&["audit", "verify"]).await;
    assert_eq!(verdict["broken"], Value::Null, "{verdict}");
    assert!(verdict["entries"].as_u64() > Some(all.len() as u64));
    assert_eq!(verdict["attestations"][0]["agrees"], json!(true));
    // Exports.
    let fhir = site.run(&["audit", "export", "--format", "fhir"]).await.ended(0).stdout;
    let fhir: Vec<Value> = fhir.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert!(fhir.len() >= all.len() && fhir.iter().all(|event| event["resourceType"] == "AuditEvent"));
    let bundle = site.run(&["audit", "export", "--format", "fhir-bundle"]).await.ended(0).json();
    assert!(bundle["entry"].as_array().expect("a bundle").len() >= fhir.len());
    let (from, to) = (all[2]["at"].as_str().expect("a time"), all[all.len() - 1]["at"].as_str().expect("a time"));
    let part = site.run(&["audit", "export", "--format", "dicom", "--from", from, "--to", to]).await.ended(0).stdout;
    let within = all
        .iter()
        .filter(|entry| (moment(from)..moment(to)).contains(&moment(entry["at"].as_str().unwrap_or_default())))
        .count();
    assert_eq!(part.lines().count(), within, "{part}");
    assert!(part.lines().all(|line| line.starts_with("<85>1 ") && line.contains("<AuditMessage>")));
    site.run(&["audit", "export", "--format", "dicom", "--to", "2020-01-01"]).await.ended(0);
    // The syslog server is sent every entry; cut off, it is sent what it may have missed.
    let mut got = BTreeMap::new();
    let (stream, _) = server.accept().await.expect("a connection");
    let mut stream = BufReader::new(stream);
    let last = all[all.len() - 1]["index"].as_u64().expect("a number");
    while !got.contains_key(&last) {
        let message = syslog_message(&mut stream).await;
        got.insert(number(&message), message);
    }
    drop(stream);
    assert_eq!(mesh.sites[0].terminate().await.0, 0);
    mesh.sites[0].start();
    mesh.sites[0].ready().await;
    let after_restart = until("it leads again", async || {
        let added = http.post("/api/v1/exams", &ready("T2")).await;
        (added.status == 201 || added.status == 200).then(|| added.json()["id"].as_u64().expect("a number"))
    })
    .await;
    let (stream, _) = tokio::time::timeout(PATIENCE, server.accept()).await.expect("again").expect("a connection");
    let mut stream = BufReader::new(stream);
    while !got.contains_key(&after_restart) {
        let message = syslog_message(&mut stream).await;
        got.insert(number(&message), message);
    }
    let every = http.json("/api/v1/audit?after=0&limit=1000").await;
    for entry in every["entries"].as_array().expect("entries") {
        let index = entry["index"].as_u64().expect("a number");
        assert!(index > after_restart || got.contains_key(&index), "entry {index} never came");
    }
    let claimed = got.values().find(|message| message.contains(r#"originalText="take""#)).expect("the claim");
    assert!(claimed.contains(r#"UserID="dr-a""#) && claimed.contains("P-T1"), "{claimed}");
}

#[tokio::test]
async fn a_mesh_of_mixed_versions_runs_at_the_lowest_and_rises_when_the_last_is_upgraded() {
    let settings = |number: usize| Settings { format_max: (number == 0).then_some(1), ..Settings::default() };
    let mut mesh = Mesh::start(binary(), 3, settings).await;
    let sites: Vec<Http> = mesh.sites.iter().map(maillage_tests::Site::http).collect();
    // A leader that knows more leads: it still must not raise the format past the one that knows less.
    if mesh.leader().await == 0 {
        mesh.sites[0].terminate().await;
        mesh.leader().await;
        mesh.sites[0].start();
        mesh.sites[0].ready().await;
        mesh.settled().await;
    }
    let leader = sites[mesh.leader().await];
    until("the leader has heard every site's format", async || {
        let peers = leader.json("/api/v1/peers").await;
        let formats: Vec<u64> =
            peers["peers"].as_array()?.iter().map(|peer| peer["format"].as_u64().unwrap_or_default()).collect();
        (formats == [1, 2, 2]).then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    for (http, site) in sites.iter().zip(&mesh.sites) {
        let status = http.json("/api/v1/status").await;
        assert_eq!(status["format"]["mesh"], json!(1), "{}", site.name());
        // The commands of the first format work, and what is not to be written yet is not.
        add(*http, &format!("M-{}", site.name())).await;
        assert_eq!(http.json("/api/v1/audit?after=0").await["entries"], json!([]));
        let refused = site.run(&["audit", "attest"]).await.ended(1);
        refused.complains_of(&["the mesh runs at format 1"]);
    }
    let warned = leader.json("/api/v1/status").await["warnings"].to_string();
    assert!(warned.contains("it waits for paris"), "{warned}");
    // Upgraded, at last.
    mesh.sites[0].terminate().await;
    mesh.sites[0].configure(&Settings::default());
    mesh.sites[0].start();
    mesh.sites[0].ready().await;
    for http in &sites {
        until("the mesh rises", async || {
            (http.json("/api/v1/status").await["format"]["mesh"] == json!(2)).then_some(())
        })
        .await;
    }
    for site in &mesh.sites {
        site.run(&["audit", "attest"]).await.ended(0);
    }
    for site in &mesh.sites {
        until("all attested, and all agree", async || {
            let found = site.run_json(&["audit", "verify"]).await;
            let said = found["attestations"].as_array()?;
            let agree = said.iter().filter(|said| said["agrees"] == json!(true)).count();
            (agree == 3 && found["broken"].is_null()).then_some(())
        })
        .await;
    }
    let first = &sites[1].json("/api/v1/audit?after=0&limit=1").await["entries"][0];
    assert_eq!(first["kind"], json!("raise-format"), "the trail begins where the format rose");
}

#[tokio::test]
async fn a_leader_whose_clock_is_wrong_hands_over_and_says_so() {
    let mut mesh = mesh(3).await;
    mesh.sites[0].terminate().await;
    if !mesh.sites[0].with_own_clock() {
        eprintln!("not tested: Debian's faketime is not installed");
        return;
    }
    mesh.sites[0].start();
    mesh.sites[0].ready().await;
    mesh.settled().await;
    let clock = mesh.sites[0].http();
    // It may lead as long as its clock is right.
    for _ in 0..5 {
        match mesh.leader().await {
            0 => break,
            other => {
                mesh.sites[other].terminate().await;
                mesh.leader().await;
                mesh.sites[other].start();
                mesh.sites[other].ready().await;
                mesh.settled().await;
            }
        }
    }
    let led = mesh.leader().await == 0;
    mesh.sites[0].set_clock(90);
    until("another leads, and the one that is wrong knows it", async || {
        let status = clock.json("/api/v1/status").await;
        let ahead = status["clock"]["ahead_ms"].as_i64().unwrap_or_default();
        (status["role"] != json!("leader") && status["clock"]["off"] == json!(true) && ahead > 80_000).then_some(())
    })
    .await;
    assert!(!led || mesh.sites[0].log().contains("it must not lead, and hands over"), "it led, and gave way");
    let ready = clock.get("/readyz?verbose").await.expect(200).text();
    assert!(ready.contains("clock degraded"), "{ready}");
    let leader = mesh.leader().await;
    assert_ne!(leader, 0);
    until("the leader is told, and shows, whose clock it is", async || {
        let peers = mesh.sites[leader].http().json("/api/v1/peers").await;
        (peers["peers"][0]["clock_ahead_ms"].as_i64() > Some(80_000)).then_some(())
    })
    .await;
    mesh.sites[0].set_clock(0);
    until("a clock that was set right is believed", async || {
        (clock.json("/api/v1/status").await["clock"]["off"] == json!(false)).then_some(())
    })
    .await;
}
