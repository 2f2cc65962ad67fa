//! Storage commitment: nobody is told that images are safe before two zones hold them.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use maillage_dicom::Uid;
use maillage_dicom::phantom::CtPhantom;
use maillage_tests::http::Answer;
use maillage_tests::study::CALLED;
use maillage_tests::study::{file, retrieve};
use maillage_tests::{Http, Mesh, Ran, Settings, Slices, port, until};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::interop::{python, script};
use crate::{binary, mesh};

const DICOM_JSON: &str = "application/dicom+json";

/// Asks for the commitment of these instances by their UIDs.
async fn ask<'u>(http: Http, transaction: &Uid, instances: impl Iterator<Item = &'u str>) -> Answer {
    let item = |sop: &str| json!({ "00081150": ui(CtPhantom::SOP_CLASS.as_str()), "00081155": ui(sop) });
    let body = json!({ "00081199": { "vr": "SQ", "Value": instances.map(item).collect::<Vec<_>>() } });
    let headers = [("content-type", DICOM_JSON)];
    let sent = http.send(&hyper::Method::POST, &path(transaction), &headers, body.to_string()).await;
    sent.unwrap_or_else(|error| panic!("{}", error.0))
}

fn ui(text: &str) -> Value {
    json!({ "vr": "UI", "Value": [text] })
}

fn path(transaction: &Uid) -> String {
    format!("/dicom-web/commitment-requests/{transaction}")
}

/// The result once it is there; until then the answer is 202.
async fn result(http: Http, transaction: &Uid) -> Value {
    until("the transaction is settled", async || {
        let answer = http.get(&path(transaction)).await;
        if answer.status == 202 {
            assert!(answer.body.is_empty(), "pending has no payload");
            return None;
        }
        Some(answer.expect(200).json())
    })
    .await
}

/// How many items a sequence of a result has.
fn count(result: &Value, sequence: &str) -> usize {
    result[sequence]["Value"].as_array().map_or(0, Vec::len)
}

#[tokio::test]
async fn a_commitment_is_pending_until_a_second_zone_holds_every_instance_and_then_is_given() {
    let mut mesh = mesh(3).await;
    let (alone, others) = (0, [1, 2]);
    let study = Slices::new("A1", "P1", 12);
    let transaction = Uid::generate();
    for n in others {
        mesh.sites[n].kill();
    }
    study.send(mesh.sites[alone].dicom()).await;
    let http = mesh.sites[alone].http();
    let first = ask(http, &transaction, study.instances.keys().map(String::as_str)).await.expect(202);
    assert_eq!(first.header("retry-after"), "5");
    ask(http, &transaction, study.instances.keys().map(String::as_str)).await.expect(202);
    let other = ask(http, &transaction, std::iter::once(study.first().0)).await.expect(409);
    assert_eq!(other.json()["code"], json!("transaction-used"));
    // One copy is all that there can be; the node is killed too, and remembers.
    tokio::time::sleep(Duration::from_secs(3)).await;
    http.get(&path(&transaction)).await.expect(202);
    mesh.sites[alone].kill();
    mesh.sites[alone].start();
    until("the transaction is known again", async || {
        let answer = http.send(&hyper::Method::GET, &path(&transaction), &[], "").await.ok()?;
        (answer.status == 202).then_some(())
    })
    .await;

    for n in others {
        mesh.sites[n].start();
    }
    let result = result(http, &transaction).await;
    assert_eq!(result["00081195"], ui(transaction.as_str()));
    assert_eq!((count(&result, "00081199"), count(&result, "00081198")), (12, 0), "{result}");
    // It was no lie: without the site that received it the study is whole at another.
    mesh.sites[alone].kill();
    until("another site has the study whole", async || {
        for n in others {
            if retrieve(mesh.sites[n].http(), &study.path()).await.status == 200 {
                study.is_whole_at(mesh.sites[n].http()).await;
                return Some(());
            }
        }
        None
    })
    .await;
}

#[tokio::test]
async fn two_copies_in_one_zone_are_one_copy() {
    let settings = |_| Settings { zone: "one-building".to_owned(), ..Settings::default() };
    let mesh = Mesh::start(binary(), 2, settings).await;
    let study = Slices::new("A1", "P1", 4);
    study.send(mesh.sites[0].dicom()).await;
    let http = mesh.sites[0].http();
    until("both sites hold the study", async || {
        let shown = http.get(&format!("/api/v1/studies/{}", study.study)).await;
        let shown: Value = (shown.status == 200).then(|| shown.json())?;
        (shown["part_list"][0]["holders"].as_array()?.len() == 2).then_some(())
    })
    .await;
    let transaction = Uid::generate();
    ask(http, &transaction, study.instances.keys().map(String::as_str)).await.expect(202);
    // The copies are there: were they counted, it would be settled by the next round.
    tokio::time::sleep(Duration::from_secs(3)).await;
    http.get(&path(&transaction)).await.expect(202);
}

#[tokio::test]
async fn what_is_not_here_or_not_what_it_is_called_fails_and_what_is_late_fails_at_the_time_out() {
    let settings = |_| Settings {
        lines: vec![("[storage]", "commitment_timeout_s = 6".to_owned())],
        quiet_seconds: 1,
        ..Settings::default()
    };
    let mesh = Mesh::start(binary(), 2, settings).await;
    let http = mesh.sites[0].http();
    let study = Slices::new("A1", "P1", 3);
    study.send(mesh.sites[0].dicom()).await;
    let unknown = Uid::generate();
    let transaction = Uid::generate();
    ask(http, &transaction, study.instances.keys().map(String::as_str).chain([unknown.as_str()])).await;
    let partly = result(http, &transaction).await;
    let refused = &partly["00081198"]["Value"][0];
    assert_eq!((&refused["00081155"], &refused["00081197"]["Value"][0]), (&ui(unknown.as_str()), &json!(0x0112)));
    assert_eq!((count(&partly, "00081199"), count(&partly, "00081198")), (3, 1), "{partly}");

    // Other bytes under a known UID: they are kept apart, and nobody can tell which are meant.
    let (uid, dataset) = study.first();
    let mut other = dataset.to_vec();
    *other.last_mut().expect("a byte") ^= 1;
    stow(http, uid, &other).await.expect(202);
    let contested = Uid::generate();
    ask(http, &contested, std::iter::once(uid)).await;
    let contested = result(http, &contested).await;
    assert_eq!(contested["00081198"]["Value"][0]["00081197"]["Value"], json!([0x0110]), "{contested}");

    let mut mesh = mesh;
    mesh.sites[1].kill();
    let late = Slices::new("A2", "P2", 2);
    late.send(mesh.sites[0].dicom()).await;
    let transaction = Uid::generate();
    ask(http, &transaction, late.instances.keys().map(String::as_str)).await.expect(202);
    let failed = result(http, &transaction).await;
    assert_eq!((count(&failed, "00081199"), count(&failed, "00081198")), (0, 2), "{failed}");
    assert_eq!(failed["00081198"]["Value"][0]["00081197"]["Value"], json!([0x0110]));
    http.get(&path(&Uid::generate())).await.expect(404);
    http.get("/dicom-web/commitment-requests/x").await.expect(400);
}

/// STOW-RS of one instance.
async fn stow(http: Http, uid: &str, dataset: &[u8]) -> Answer {
    let mut body = b"--b\r\ncontent-type: application/dicom\r\n\r\n".to_vec();
    body.extend_from_slice(&file(uid, dataset));
    body.extend_from_slice(b"\r\n--b--\r\n");
    let headers = [("content-type", "multipart/related; type=\"application/dicom\"; boundary=b")];
    let sent = http.send(&hyper::Method::POST, "/dicom-web/studies", &headers, body).await;
    sent.unwrap_or_else(|error| panic!("{}", error.0))
}

/// The title of the application entity that asks by DIMSE.
const ASKER: &str = "MODALITY";

/// N-ACTION by pynetdicom, which then keeps its association for `wait` seconds or until it was told. What
/// it printed.
async fn ask_by_dimse(python: &Path, at: SocketAddr, transaction: &Uid, wait: u32, study: &Slices) -> Vec<Value> {
    let mut command = Command::new(python);
    command.arg(script("commit.py")).arg("ask").args([at.ip().to_string(), at.port().to_string()]);
    command.args([CALLED, ASKER, transaction.as_str(), &wait.to_string(), CtPhantom::SOP_CLASS.as_str()]);
    let ran = Ran::to_end(command.args(study.instances.keys())).await.ended(0);
    ran.stdout.lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect()
}

/// A listener for results, by pynetdicom.
struct Listener {
    lines: Lines<BufReader<ChildStdout>>,
    _child: Child,
}

impl Listener {
    async fn start(python: &Path, at: SocketAddr) -> Self {
        let mut command = Command::new(python);
        command.arg(script("commit.py")).args(["listen", &at.port().to_string(), ASKER]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn().expect("starts");
        let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let mut listener = Self { lines, _child: child };
        assert_eq!(listener.next().await, json!({ "listening": true }));
        listener
    }

    async fn next(&mut self) -> Value {
        let line = tokio::time::timeout(Duration::from_secs(60), self.lines.next_line()).await;
        let line = line.expect("a line in time").expect("readable").expect("it runs");
        serde_json::from_str(&line).expect("a JSON line")
    }
}

fn told(transaction: &Uid, study: &Slices, on: &str) -> Value {
    let committed: Vec<&String> = study.instances.keys().collect();
    json!({ "event": 1, "transaction": transaction.as_str(), "committed": committed, "failed": {}, "on": on })
}

#[tokio::test]
async fn a_modality_is_told_on_its_own_association_when_the_result_is_there() {
    let Some(python) = python("pydicom, pynetdicom").await else { return };
    let mesh = mesh(2).await;
    let site = &mesh.sites[0];
    let study = Slices::new("A1", "P1", 5);
    study.send(site.dicom()).await;
    let transaction = Uid::generate();
    let lines = ask_by_dimse(&python, site.dicom(), &transaction, 40, &study).await;
    let mut expected = told(&transaction, &study, "own");
    assert_eq!(lines, [json!({ "status": 0 }), expected.clone()]);

    // One that is not here is named with its reason, beside those that are safe.
    let mut more = study.clone();
    let unknown = Uid::generate().to_string();
    more.instances.insert(unknown.clone(), Default::default());
    let transaction = Uid::generate();
    let lines = ask_by_dimse(&python, site.dicom(), &transaction, 40, &more).await;
    expected["event"] = json!(2);
    expected["transaction"] = json!(transaction.as_str());
    expected["failed"][unknown] = json!(0x0112);
    assert_eq!(lines[1..], [expected]);
    let metrics = site.http().get("/metrics").await;
    let metrics = String::from_utf8_lossy(&metrics.body).into_owned();
    assert!(metrics.contains("maillage_commitments_total{outcome=\"acknowledged\"} 2"), "{metrics}");
}

#[tokio::test]
async fn kill_9_between_the_answer_and_the_report_still_brings_the_report_once_the_modality_listens() {
    let Some(python) = python("pydicom, pynetdicom").await else { return };
    let listens = port::free();
    let settings = move |_| Settings {
        lines: vec![(
            "[dicom]",
            format!("peers = [{{ ae_title = \"{ASKER}\", host = \"localhost\", port = {} }}]", listens.port()),
        )],
        ..Settings::default()
    };
    let mut mesh = Mesh::start(binary(), 2, settings).await;
    mesh.sites[1].kill();
    let study = Slices::new("A1", "P1", 3);
    study.send(mesh.sites[0].dicom()).await;
    let transaction = Uid::generate();
    let lines = ask_by_dimse(&python, mesh.sites[0].dicom(), &transaction, 0, &study).await;
    assert_eq!(lines, [json!({ "status": 0 })], "taken, and nothing told while there is one copy");
    mesh.sites[0].kill();
    for site in &mut mesh.sites {
        site.start();
        site.ready().await;
    }
    // The result is found while nobody listens; it is told when somebody does, and not again.
    let found = result(mesh.sites[0].http(), &transaction).await;
    assert_eq!(count(&found, "00081199"), 3, "{found}");
    tokio::time::sleep(Duration::from_secs(3)).await;
    mesh.sites[0].kill();
    mesh.sites[0].start();
    let mut listener = Listener::start(&python, listens).await;
    assert_eq!(listener.next().await, told(&transaction, &study, "new"));
    until("the acknowledgement is recorded", async || {
        mesh.sites[0].log().contains("outcome=\"acknowledged\"").then_some(())
    })
    .await;
    mesh.sites[0].kill();
    mesh.sites[0].start();
    mesh.sites[0].ready().await;
    let again = tokio::time::timeout(Duration::from_secs(5), listener.lines.next_line()).await;
    assert!(again.is_err(), "told again: {again:?}");
}
