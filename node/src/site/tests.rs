//! A whole site in this process, with its wall clock in the test's hand: what takes a week in production.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use maillage_consensus::exam::{Patient, Priority, Request, Text8};
use maillage_consensus::ids::{CommandId, Line, Name};
use maillage_consensus::order::{Hospital, Keep, Place};
use maillage_consensus::{Command, Outcome, Queue};
use maillage_dicom::phantom::CtPhantom;
use maillage_host::engine::MemoryHome;
use maillage_host::{Clock, Disk, UnixMillis};
use maillage_store::StoreConfig;
use maillage_tests::exams::ready;
use maillage_tests::{Http, until};
use maillage_transport::{Endpoint, EndpointConfig, Identity, Membership, Socket};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{Host, Member, Site};
use crate::config::Settings;
use crate::data_dir::MeshFile;
use crate::http;
use crate::ingest::{Announced, Source};
use crate::pack_day::DAY_MS;

/// Longer than events are kept.
const EIGHT_DAYS_MS: u64 = 8 * 24 * 3_600_000;

/// A founded mesh of one site, and the clock that it lives by.
struct Alone {
    site: Site,
    http: Http,
    now: Arc<AtomicU64>,
    shutdown: CancellationToken,
    endpoint: Endpoint,
    directory: tempfile::TempDir,
}

async fn alone() -> Alone {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let http = Http(listener.local_addr().expect("an address"));
    let settings = Settings::from_toml(&format!(
        "[node]\nname = \"paris\"\nzone = \"paris\"\ndata_dir = \"/nowhere\"\n[http]\nlisten = \"{}\"\n\
         [storage]\nreserve_mib = 1\n[dicom]\nany_caller = true\n",
        http.0
    ));
    let directory = tempfile::tempdir().expect("a directory");
    let now = Arc::new(AtomicU64::new(Clock::system().now().0));
    let hand = Arc::clone(&now);
    let clock = Clock::from_fn(move || UnixMillis(hand.load(Ordering::Relaxed)));
    let (identity, membership) = (Identity::generate(), Membership::new(clock.clone()));
    let any = Socket::Udp("127.0.0.1:0".parse().expect("an address"));
    let endpoint = EndpointConfig::new(identity.clone(), membership.clone(), any, clock.clone());
    let endpoint = Endpoint::bind(endpoint).expect("a port");
    let member = Member::new(identity, MeshFile::of_founder([7; 32], "test", "paris"), membership);
    let wires = member.wires(&endpoint);
    let host = Host {
        disk: Disk::real(directory.path()),
        state: Arc::<MemoryHome>::default(),
        index: Arc::<MemoryHome>::default(),
        clock,
        images: StoreConfig::default(),
        queue: Arc::new(Queue),
    };
    let shutdown = CancellationToken::new();
    let site = Site::open(settings.expect("settings"), member, host, wires, shutdown.clone()).await.expect("it opens");
    site.start();
    site.found().await.expect("founded");
    site.run(http::serve_tcp(listener, site.http(), shutdown.clone()));
    until("the site is in session", async || {
        let status = http.json("/api/v1/status").await;
        (status["peers"][0]["session_open"] == json!(true)).then_some(())
    })
    .await;
    Alone { site, http, now, shutdown, endpoint, directory }
}

impl Alone {
    async fn end(self) {
        self.shutdown.cancel();
        self.site.stop(self.endpoint.close()).await;
    }
}

/// The head of a request for a WebSocket, as a browser or a PACS asks for one.
const UPGRADE: [(&str, &str); 4] = [
    ("connection", "upgrade"),
    ("upgrade", "websocket"),
    ("sec-websocket-version", "13"),
    ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_for_events_that_are_forgotten_is_told_so_and_where_to_go_on_from() {
    let alone = alone().await;
    let http = alone.http;
    let add = async |accession: &str| http.post("/api/v1/exams", &ready(accession)).await.expect(201).json();
    add("OLD").await;
    let seen = http.json("/api/v1/status").await["applied"].as_u64().expect("an index");
    let events = format!("/api/v1/events?after={seen}");
    let reports = format!("/dicom-web/subscribers/AET?after={seen}.65535");
    let get = hyper::Method::GET;
    let kept = http.send(&get, &reports, &UPGRADE, "").await;
    assert!(!kept.is_ok_and(|answer| answer.status == 410), "what is kept is told");
    assert!(http.events(&events).await.next(std::time::Duration::from_secs(10)).await.contains("id: "));

    add("MIDDLE").await;
    alone.now.fetch_add(EIGHT_DAYS_MS, Ordering::Relaxed);
    // Each command forgets a few events; the state's time is that of the commands.
    for n in 0..20 {
        add(&format!("NEW{n}")).await;
    }
    for headers in [&[][..], &[("last-event-id", "2.0")][..]] {
        let gone = http.send(&get, &events, headers, "").await.expect("an answer").expect(410).json();
        assert_eq!(gone["code"], json!("cursor-forgotten"), "{gone}");
        let restart = gone["forgotten"].as_str().expect("where to go on from").to_owned();
        let index: u64 = restart.split('.').next().and_then(|index| index.parse().ok()).expect("a cursor");
        assert!(index > seen, "{gone}");
        // From there on nothing is missed: the first of what is kept comes next.
        let mut kept = http.events(&format!("/api/v1/events?after={restart}")).await;
        kept.next(std::time::Duration::from_secs(10)).await;
        let first = kept.next(std::time::Duration::from_secs(10)).await;
        assert!(first.contains("\"cursor\"") && first.contains("data: "), "{first}");
    }
    let gone = http.send(&get, &reports, &UPGRADE, "").await.expect("an answer").expect(410).json();
    let restart = gone["forgotten"].as_str().expect("where to go on from");
    assert!(restart.starts_with("2.25."), "an event's UID, as the reports carry it: {gone}");
    let again = http.send(&get, &format!("/dicom-web/subscribers/AET?after={restart}"), &UPGRADE, "").await;
    assert!(!again.is_ok_and(|answer| answer.status == 410), "and from there it is told");
    alone.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_lie_with_others_that_go_on_the_day_of_their_hospitals_rule() {
    let alone = alone().await;
    let node = alone.site.node().clone();
    let command = async |command: Command| {
        let outcome = node.command(CommandId::random(), Name::default(), command).await.expect("an outcome");
        assert!(!matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
    };
    let image = |accession: &str| CtPhantom {
        slices: 1,
        rows: 32,
        columns: 32,
        accession_number: accession.to_owned(),
        ..CtPhantom::default()
    };
    let receive = async |phantom: CtPhantom| {
        let (sop_instance, dataset) = phantom.slice(0);
        let announced = Announced {
            sop_class: CtPhantom::SOP_CLASS,
            sop_instance,
            transfer_syntax: CtPhantom::TRANSFER_SYNTAX,
            foreign_preamble: false,
        };
        node.ingest().receive(Source::Local, announced, dataset).await.expect("received");
    };
    let disk = Disk::real(alone.directory.path());
    let days = async || {
        let mut days = Vec::new();
        for name in disk.list("packs").await.expect("a list") {
            let header = disk.read(&format!("packs/{name}")).await.expect("a pack");
            days.push(u64::from_le_bytes(header[24..32].try_into().expect("a day")));
        }
        days.sort_unstable();
        days
    };
    let hospital = "The hospital that asks";
    let keep = |modality: &str, days| Keep { modality: Text8::fitted(modality), ms: days * DAY_MS };
    command(Command::SetHospital(Hospital {
        name: Line::fitted(hospital),
        finess: Text8::default(),
        place: Place::default(),
        sites: Vec::new(),
        regulate: false,
        retention: vec![keep("CT", 7), keep("", 400)],
    }))
    .await;
    let today = alone.now.load(Ordering::Relaxed) / DAY_MS;

    receive(image("UNASKED")).await;
    assert_eq!(days().await, [today + 90], "of which hospital they are is not known yet");
    for (accession, modality) in [("CT1", "CT"), ("MR1", "MR")] {
        command(Command::AddExam(Request {
            accession: Line::fitted(accession),
            patient: Patient { id: Line::fitted(&CtPhantom::default().patient_id), ..Patient::default() },
            modality: Text8::fitted(modality),
            description: Line::default(),
            hospital: Line::fitted(hospital),
            physician: Line::default(),
            priority: Priority::Urgent,
            awaits_images: true,
        }))
        .await;
        receive(image(accession)).await;
    }
    assert_eq!(days().await, [today + 7, today + 90, today + 400]);
    let shown = async || {
        let known = |uid: &str| node.read(|view| view.study(uid)).expect("a state").is_some();
        ["UNASKED", "CT1", "MR1"].iter().all(|accession| known(image(accession).study_uid().as_str())).then_some(())
    };
    until("they are published", shown).await;
    assert_eq!(days().await, [today + 7, today + 90, today + 400], "with their studies' manifests");
    alone.end().await;
}
