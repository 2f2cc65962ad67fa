//! Hospitals' gateways: images that arrive whatever fails, and reports that come back once.

#![expect(clippy::disallowed_methods, reason = "tests read and empty the inbox as a hospital does")]

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use maillage_dicom::commitment::{CommitmentRequest, PUSH_MODEL, PUSH_MODEL_INSTANCE};
use maillage_dicom::dimse::command::{Command, N_ACTION_RQ};
use maillage_dicom::dimse::scp::{
    BoxFuture, CallingPolicy, NoEvents, ScpConfig, ServiceAnswer, ServiceHandler, ServiceRequest, StoreHandler,
    StoreRequest, serve,
};
use maillage_dicom::dimse::scu::{Association, ScuTimeouts};
use maillage_dicom::dimse::{Status, StoreStatus};
use maillage_dicom::phantom::CtPhantom;
use maillage_dicom::{AeTitle, Uid};
use maillage_tests::exams::requested;
use maillage_tests::multipart::find;
use maillage_tests::study::{CALLED, CALLING, associate, file, store};
use maillage_tests::{Http, Mesh, Settings, Site, Slices, port, until, until_within};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::life::done;
use crate::mesh;

/// The hospital of the harness's requests.
const HOSPITAL: &str = "Test hospital";

/// A gateway. Its log is printed when its test fails.
struct Gateway(Site);

impl Drop for Gateway {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.print_log();
        }
    }
}

impl std::ops::Deref for Gateway {
    type Target = Site;

    fn deref(&self) -> &Site {
        &self.0
    }
}

impl std::ops::DerefMut for Gateway {
    fn deref_mut(&mut self) -> &mut Site {
        &mut self.0
    }
}

/// A gateway's settings: what makes no sense for one is refused.
fn settings() -> Settings {
    settings_keeping(3600)
}

/// … of one that keeps for so many seconds what is safe.
fn settings_keeping(keep_s: u64) -> Settings {
    Settings { quiet_seconds: 5, lines: vec![("[gateway]", format!("keep_s = {keep_s}"))], ..Settings::default() }
}

/// A gateway of the mesh, running.
async fn gateway(mesh: &Mesh) -> Gateway {
    gateway_of(mesh, &settings()).await
}

async fn gateway_of(mesh: &Mesh, settings: &Settings) -> Gateway {
    let made = ["token", "create", "--gateway", "--hospital", HOSPITAL];
    let token = mesh.sites[0].run_json(&made).await["token"].as_str().expect("a token").to_owned();
    let mut gateway = Gateway(mesh.prepare("chu", settings));
    gateway.run(&["join", &token, "--gateway"]).await.ended(0);
    gateway.start();
    gateway.ready().await;
    until("the gateway finds a centre", async || {
        let status = gateway.http().json("/api/v1/status").await;
        let answers = |centre: &&Value| centre["state"] == json!("answers");
        let centres = status["centres"].as_array().expect("centres");
        (centres.iter().filter(answers).count() == mesh.sites.len()).then_some(())
    })
    .await;
    gateway
}

async fn spool(http: Http) -> Value {
    http.json("/api/v1/status").await["spool"].clone()
}

/// Waits until nothing is left to send.
async fn empties(http: Http) {
    until_within(Duration::from_secs(90), "everything is sent", async || {
        let spool = spool(http).await;
        (spool["waiting"] == json!(0) && spool["in_flight"] == json!(0) && spool["rejected"] == json!(0)).then_some(())
    })
    .await;
}

/// Waits until a centre gives the study whole: each instance once, each byte.
async fn arrives(study: &Slices, at: Http) {
    until_within(Duration::from_secs(90), "the study is at a centre", async || {
        let answer = maillage_tests::study::retrieve(at, &study.path()).await;
        (answer.status == 200 && answer.parts().len() == study.instances.len()).then_some(())
    })
    .await;
    study.is_whole_at(at).await;
}

#[tokio::test]
async fn a_gateway_is_no_voter_no_learner_and_no_holder_and_is_shown_as_what_it_is() {
    let mesh = mesh(1).await;
    let paris = &mesh.sites[0];
    let made = paris.run_json(&["token", "create", "--gateway", "--hospital", HOSPITAL]).await;
    let token = made["token"].as_str().expect("a token").to_owned();
    // The token makes no centre of whom it is given to, and is not spent by the attempt.
    mesh.prepare("lyon", &Settings::default()).run(&["join", &token]).await.ended(5).complains_of(&["gateway"]);
    let odd = Settings {
        territory: "ouest".to_owned(),
        lines: vec![("[node]", "role = \"gateway\"".to_owned())],
        ..settings()
    };
    let odd = mesh.prepare("odd", &odd);
    odd.run(&["join", &token]).await.ended(2).complains_of(&["site.territory", "no readers"]);
    let centre = mesh.token("10m").await;
    let mut chu = Gateway(mesh.prepare("chu", &settings()));
    chu.run(&["join", &centre, "--gateway"]).await.ended(5).complains_of(&["reading centre"]);
    chu.run(&["join", &token, "--gateway"]).await.ended(0);
    chu.start();
    chu.ready().await;
    let peers = until("the centre hears the gateway", async || {
        let peers = paris.http().json("/api/v1/peers?fresh=true").await;
        let row = peers["peers"].as_array()?.iter().find(|peer| peer["name"] == json!("chu"))?.clone();
        (row["state"] == json!("connected")).then_some(row)
    })
    .await;
    assert_eq!((&peers["role"], &peers["weight"]), (&json!("gateway"), &json!(0)), "{peers}");
    assert_eq!((&peers["session_open"], &peers["hospitals"]), (&json!(false), &json!([HOSPITAL])), "{peers}");
    paris.run_json(&["peers", "gateway", "chu", "--hospital", "CHU", "--hospital", "Annexe"]).await;
    paris.run(&["peers", "gateway", "paris", "--hospital", "CHU"]).await.ended(1).complains_of(&["gateway"]);
    let peers = paris.run_json(&["peers", "list"]).await;
    assert_eq!(peers["peers"][1]["hospitals"], json!(["CHU", "Annexe"]), "{peers}");
    let contract = ["placement", "set", "contract", "site:chu", "--only", "paris"];
    paris.run(&contract).await.ended(5).complains_of(&["chu is a hospital's gateway", "gateway.centres"]);
    let status = paris.http().json("/api/v1/status").await;
    assert_eq!((&status["quorum"]["voters"], &status["format"]["mesh"]), (&json!(1), &json!(2)));
    let shown = chu.run(&["status"]).await.ended(0).stdout;
    assert!(shown.contains("chu, gateway") && shown.contains("paris"), "{shown}");
    chu.run(&["health"]).await.ended(0);
    chu.run(&["exams", "list"]).await.ended(1);
    chu.terminate().await;
}

#[tokio::test]
async fn a_centre_that_is_killed_in_the_middle_of_a_study_costs_seconds_and_no_image() {
    let mut mesh = mesh(3).await;
    let gateway = gateway(&mesh).await;
    let study = Slices::new("A1", "P1", 60);
    let mut association = associate(gateway.dicom(), CALLING, CALLED).await.expect("an association");
    let mut instances = study.instances.iter();
    for (uid, dataset) in instances.by_ref().take(30) {
        assert!(store(&mut association, uid, dataset.clone()).await.expect("an answer").is_stored());
    }
    let used = until("a centre is used", async || {
        let status = gateway.http().json("/api/v1/status").await;
        Some(status["centre"].as_str()?.to_owned())
    })
    .await;
    let killed = mesh.sites.iter().position(|site| site.name() == used).expect("a site");
    mesh.sites[killed].kill();
    let since = Instant::now();
    for (uid, dataset) in instances {
        assert!(store(&mut association, uid, dataset.clone()).await.expect("an answer").is_stored());
    }
    association.release().await.expect("released");
    until("another centre takes over", async || {
        let status = gateway.http().json("/api/v1/status").await;
        let other = status["centre"].as_str().is_some_and(|centre| centre != used);
        (other && status["spool"]["waiting"] == json!(0)).then_some(())
    })
    .await;
    let took = since.elapsed();
    assert!(took <= Duration::from_secs(5), "failed over in {took:?}");
    // What the dead centre had taken is sent again: nobody else may have it.
    let other = (killed + 1) % 3;
    arrives(&study, mesh.sites[other].http()).await;
    empties(gateway.http()).await;
}

#[tokio::test]
async fn images_are_taken_while_no_centre_answers_and_all_arrive_once_though_the_gateway_is_killed() {
    let mut mesh = mesh(2).await;
    let mut gateway = gateway(&mesh).await;
    let studies = [("A1", 8), ("A2", 12), ("A3", 4)].map(|(accession, slices)| Slices::new(accession, "P1", slices));
    for site in &mut mesh.sites {
        site.kill();
    }
    studies[0].send(gateway.dicom()).await;
    gateway.kill();
    gateway.start();
    gateway.ready().await;
    studies[1].send(gateway.dicom()).await;
    // STOW-RS takes the same way.
    for (uid, dataset) in &studies[2].instances {
        let mut body = b"--b\r\ncontent-type: application/dicom\r\n\r\n".to_vec();
        body.extend_from_slice(&file(uid, dataset));
        body.extend_from_slice(b"\r\n--b--\r\n");
        let headers = [("content-type", "multipart/related; type=\"application/dicom\"; boundary=b")];
        let sent = gateway.http().send(&hyper::Method::POST, "/dicom-web/studies", &headers, body).await;
        sent.expect("an answer").expect(200);
    }
    let waiting = until("all is in the spool", async || {
        let spool = spool(gateway.http()).await;
        (spool["waiting"] == json!(24)).then_some(spool)
    })
    .await;
    assert_eq!(waiting["safe"], json!(0), "{waiting}");
    for site in &mut mesh.sites {
        site.start();
    }
    sleep(Duration::from_millis(1500)).await;
    gateway.kill();
    gateway.start();
    gateway.ready().await;
    for study in &studies {
        arrives(study, mesh.sites[0].http()).await;
    }
    empties(gateway.http()).await;
    until("all is safe", async || (spool(gateway.http()).await["safe"] == json!(24)).then_some(())).await;
}

/// N-ACTION: these instances are to be committed. The association ends with the answer; the transaction's UID.
async fn ask_to_commit(gateway: &Site, study: &Slices) -> String {
    let class = Uid::parse(PUSH_MODEL).expect("a uid");
    let instance = Uid::parse(PUSH_MODEL_INSTANCE).expect("a uid");
    let title = |text: &str| AeTitle::parse(text).expect("a title");
    let contexts = [(class.clone(), vec![Uid::EXPLICIT_LE])];
    let (ours, theirs) = (title(CALLING), title(CALLED));
    let mut association = Association::connect(gateway.dicom(), &ours, &theirs, &contexts, ScuTimeouts::default())
        .await
        .expect("an association");
    let uids: Vec<Uid> = study.instances.keys().map(|uid| Uid::parse(uid).expect("a uid")).collect();
    let class_of_all = CtPhantom::SOP_CLASS;
    let references = uids.iter().map(|uid| (&class_of_all, uid));
    let transaction = Uid::generate();
    let dataset =
        maillage_dicom::commitment::encode_result(&Uid::EXPLICIT_LE, &transaction, references, std::iter::empty());
    let command = Command {
        field: N_ACTION_RQ,
        requested_class: Some(class.clone()),
        requested_instance: Some(Ok(instance)),
        action_type: Some(1),
        ..Command::default()
    };
    let answers = association.perform(&class, command, Some(dataset)).await.expect("an answer");
    assert_eq!(answers.last().expect("one").0.status, Some(0), "taken");
    transaction.to_string()
}

/// How many commitments ended so.
async fn commitments(gateway: &Site, outcome: &str) -> u64 {
    let metrics = gateway.http().get("/metrics").await.text();
    let series = format!("maillage_commitments_total{{outcome=\"{outcome}\"}} ");
    metrics.lines().find_map(|line| line.strip_prefix(&series)?.parse().ok()).unwrap_or(0)
}

#[tokio::test]
async fn a_modality_is_told_that_its_images_are_safe_when_two_zones_have_them_and_not_before() {
    let mut mesh = mesh(2).await;
    let gateway = gateway(&mesh).await;
    mesh.sites[1].kill();
    let study = Slices::new("A1", "P1", 5);
    study.send(gateway.dicom()).await;
    ask_to_commit(&gateway, &study).await;
    arrives(&study, mesh.sites[0].http()).await;
    sleep(Duration::from_secs(4)).await;
    let told = commitments(&gateway, "committed").await + commitments(&gateway, "failed").await;
    assert_eq!(told, 0, "one zone has them");
    assert_eq!(spool(gateway.http()).await["safe"], json!(0));
    mesh.sites[1].start();
    until("the commitment is given", async || (commitments(&gateway, "committed").await == 1).then_some(())).await;
}

/// What a modality was told by N-EVENT-REPORT.
#[derive(Debug, PartialEq)]
struct Told {
    /// Event Type ID.
    event: Option<u16>,
    by: String,
    transaction: String,
    committed: BTreeSet<String>,
    names_failures: bool,
}

/// A modality that listens for results of storage commitment, and acknowledges each.
struct Modality {
    told: mpsc::UnboundedReceiver<Told>,
    _stop: DropGuard,
}

impl Modality {
    async fn listen(at: SocketAddr) -> Self {
        let (teller, told) = mpsc::unbounded_channel();
        let ear = Arc::new(Ear { classes: [Uid::parse(PUSH_MODEL).expect("a uid")], teller });
        let title = AeTitle::parse(CALLING).expect("a title");
        let config = ScpConfig { calling: CallingPolicy::Any, ..ScpConfig::new(title) };
        let listener = TcpListener::bind(at).await.expect("listen");
        let stop = CancellationToken::new();
        let services: Vec<Arc<dyn ServiceHandler>> = vec![Arc::clone(&ear) as _];
        drop(maillage_host::spawn(serve(listener, config, ear as _, services, Arc::new(NoEvents) as _, stop.clone())));
        Self { told, _stop: stop.drop_guard() }
    }

    /// What it is told within a time; none when that passes.
    async fn hears_within(&mut self, seconds: u64) -> Option<Told> {
        let heard = timeout(Duration::from_secs(seconds), self.told.recv()).await;
        heard.ok().map(|told| told.expect("it listens"))
    }
}

struct Ear {
    classes: [Uid; 1],
    teller: mpsc::UnboundedSender<Told>,
}

impl StoreHandler for Ear {
    fn store(&self, _request: StoreRequest, _dataset: Bytes) -> BoxFuture<'_, StoreStatus> {
        Box::pin(std::future::ready(StoreStatus::not_authorized("it makes images, and takes none")))
    }
}

impl ServiceHandler for Ear {
    fn sop_classes(&self) -> &[Uid] {
        &self.classes
    }

    fn perform(&self, request: ServiceRequest, _matches: mpsc::Sender<Bytes>) -> BoxFuture<'_, ServiceAnswer> {
        // What is committed has the form of what was asked for.
        let result = CommitmentRequest::decode(&request.dataset, &request.transfer_syntax).expect("a result");
        let told = Told {
            event: request.event_type,
            by: request.calling_ae.as_str().to_owned(),
            transaction: result.transaction.to_string(),
            committed: result.references.iter().map(|(_, instance)| instance.to_string()).collect(),
            // (0008,1198) Failed SOP Sequence.
            names_failures: find(&request.dataset, b"\x08\x00\x98\x11").is_some(),
        };
        // A test that is over hears nothing more.
        let _ = self.teller.send(told);
        Box::pin(std::future::ready(ServiceAnswer::from(Status::SUCCESS)))
    }
}

#[tokio::test]
async fn a_modality_that_left_hears_once_that_its_images_are_safe_and_then_another_zone_has_them() {
    let mut mesh = mesh(2).await;
    let at = port::free();
    let mut modality = Modality::listen(at).await;
    let settings = Settings { peers: vec![(CALLING.to_owned(), at)], ..settings() };
    let mut gateway = gateway_of(&mesh, &settings).await;
    mesh.sites[1].kill();
    let study = Slices::new("A1", "P1", 5);
    study.send(gateway.dicom()).await;
    let transaction = ask_to_commit(&gateway, &study).await;
    arrives(&study, mesh.sites[0].http()).await;
    // The gateway remembers what it was asked.
    gateway.kill();
    gateway.start();
    gateway.ready().await;
    assert_eq!(modality.hears_within(4).await, None, "one zone has them");

    mesh.sites[1].start();
    let told = modality.hears_within(60).await.expect("a report");
    let committed = study.instances.keys().cloned().collect();
    let expected = Told { event: Some(1), by: CALLED.to_owned(), transaction, committed, names_failures: false };
    assert_eq!(told, expected);
    // It was no lie: without the centre that received them, and without the spool.
    until("the acknowledgement is recorded", async || (commitments(&gateway, "acknowledged").await == 1).then_some(()))
        .await;
    gateway.kill();
    mesh.sites[0].kill();
    arrives(&study, mesh.sites[1].http()).await;
    mesh.sites[0].start();
    gateway.start();
    gateway.ready().await;
    assert_eq!(modality.hears_within(4).await, None, "told already");
}

#[tokio::test]
async fn what_has_left_the_spool_is_committed_by_what_the_mesh_has_and_what_nobody_has_is_not() {
    let mut mesh = mesh(2).await;
    let gateway = gateway_of(&mesh, &settings_keeping(1)).await;
    let study = Slices::new("A1", "P1", 5);
    study.send(gateway.dicom()).await;
    until_within(Duration::from_secs(60), "the mesh has it, and the spool no more", async || {
        let spool = spool(gateway.http()).await;
        let states = ["waiting", "in_flight", "pushed", "safe", "rejected"];
        let left: u64 = states.iter().filter_map(|state| spool[state].as_u64()).sum();
        (left == 0).then_some(())
    })
    .await;
    arrives(&study, mesh.sites[0].http()).await;
    ask_to_commit(&gateway, &study).await;
    until("the mesh's word is given", async || (commitments(&gateway, "committed").await == 1).then_some(())).await;
    // Not of an image that no centre has.
    ask_to_commit(&gateway, &Slices::new("A2", "P2", 2)).await;
    until("it is refused", async || (commitments(&gateway, "failed").await == 1).then_some(())).await;

    // While a centre is away that may have it, nobody knows that nobody has it.
    mesh.sites[1].kill();
    ask_to_commit(&gateway, &Slices::new("A3", "P3", 2)).await;
    until("the centre is missed", async || {
        let status = gateway.http().json("/api/v1/status").await;
        let silent = |centre: &Value| centre["state"] == json!("silent");
        status["centres"].as_array()?.iter().any(silent).then_some(())
    })
    .await;
    sleep(Duration::from_secs(3)).await;
    assert_eq!((commitments(&gateway, "committed").await, commitments(&gateway, "failed").await), (1, 1));
    mesh.sites[1].start();
    until_within(Duration::from_secs(60), "everybody says that it is nowhere", async || {
        (commitments(&gateway, "failed").await == 2).then_some(())
    })
    .await;
}

/// An exam of a hospital, read and reported at Paris: its number.
async fn reported(mesh: &Mesh, accession: &str, hospital: &str, text: &str) -> u64 {
    let http = mesh.sites[0].http();
    let mut exam = requested(accession, &format!("P-{accession}"));
    exam["hospital"] = json!(hospital);
    exam["awaits_images"] = json!(false);
    let id = http.post("/api/v1/exams", &exam).await.expect(201).json()["id"].as_u64().expect("a number");
    let claimed = done(http, &format!("/api/v1/exams/{id}/claim"), json!({ "user": "dr-a" })).await;
    let body = json!({ "user": "dr-a", "token": claimed["token"], "text": text });
    http.post(&format!("/api/v1/exams/{id}/report"), &body).await.expect(200);
    id
}

fn inbox(gateway: &Site) -> Vec<String> {
    let entries = fs::read_dir(gateway.data_dir().join("inbox")).expect("an inbox");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_report_comes_back_to_its_own_hospital_once_whatever_is_killed() {
    let mut mesh = mesh(3).await;
    let mut gateway = gateway(&mesh).await;
    let theirs = reported(&mesh, "B1", "Another hospital", "not for you").await;
    let first = reported(&mesh, "A1", HOSPITAL, "no fracture").await;
    let name = |exam: u64| format!("exam-{exam}-report-1.json");
    until("the report is in the inbox", async || inbox(&gateway).contains(&name(first)).then_some(())).await;
    let path = gateway.data_dir().join("inbox").join(name(first));
    let document: Value = serde_json::from_slice(&fs::read(&path).expect("readable")).expect("JSON");
    assert_eq!((&document["report"]["text"], &document["accession"]), (&json!("no fracture"), &json!("A1")));
    assert_eq!((&document["fhir"]["status"], &document["patient"]["id"]), (&json!("final"), &json!("P-A1")));
    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o077, 0, "for nobody else");
    let http = mesh.sites[1].http();
    until("the mesh knows", async || {
        let exam = http.json(&format!("/api/v1/exams/{first}")).await;
        (exam["state"] == json!("delivered")).then_some(())
    })
    .await;
    let other = http.json(&format!("/api/v1/exams/{theirs}?fresh=true")).await;
    assert_eq!(other["state"], json!("reported"), "another hospital's is nobody's here");

    // The hospital takes it; the gateway dies, and so does the centre that it used.
    fs::remove_file(&path).expect("taken");
    gateway.kill();
    mesh.sites[2].kill();
    let second = reported(&mesh, "A2", HOSPITAL, "a fracture").await;
    gateway.start();
    gateway.ready().await;
    until("the next is in the inbox", async || inbox(&gateway).contains(&name(second)).then_some(())).await;
    sleep(Duration::from_secs(3)).await;
    assert_eq!(inbox(&gateway), [name(second)], "each once, and only theirs");
}
