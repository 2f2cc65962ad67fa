//! Transactions on a disk that forgets, and the shapes that other tests need.

use maillage_consensus::command::{StudyPart, UnixMillisField};
use maillage_consensus::exam::{Patient, Priority, Request, Text8};
use maillage_consensus::ids::{ExamId, Line, SiteId, UidText};
use maillage_consensus::mesh::{HeldPart, Study};
use maillage_dicom::dimse::status::Status;
use tokio::net::TcpListener;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::config::DicomPeer;
use crate::metrics::Metrics;

/// A study of one part.
pub(crate) fn study(uid: &str, manifest: [u8; 32], holders: Vec<SiteId>) -> Study {
    let uid = UidText::filled(uid).expect("a uid");
    let says = Request {
        accession: Line::default(),
        patient: Patient {
            id: Line::default(),
            issuer: Line::default(),
            name: Line::default(),
            birth_date: Text8::default(),
            sex: Text8::default(),
        },
        modality: Text8::default(),
        description: Line::default(),
        hospital: Line::default(),
        physician: Line::default(),
        priority: Priority::Urgent,
        awaits_images: true,
    };
    let part = StudyPart {
        study: uid.clone(),
        manifest,
        sequence: 1,
        instances: 1,
        bytes: 1,
        first_received_at: UnixMillisField(0),
        last_received_at: UnixMillisField(0),
        says,
    };
    Study { uid, parts: vec![HeldPart { origin: SiteId(1), exam: ExamId(1), part, holders, earlier: Vec::new() }] }
}

fn uid(text: &str) -> Uid {
    Uid::parse(text).expect("a uid")
}

fn references(names: &[&str]) -> Vec<Reference> {
    names.iter().map(|name| Reference { sop_class: uid("1.5"), sop_instance: uid(name) }).collect()
}

fn clock() -> Clock {
    Clock::from_fn(|| UnixMillis(1_000))
}

#[tokio::test]
async fn a_transaction_outlives_the_process_and_so_does_its_end() {
    let folder = tempfile::tempdir().expect("a directory");
    let disk = Disk::real(folder.path());
    let first = Commitments::open(disk.clone(), clock()).await.expect("opens");
    first.request(uid("1.9"), Requester::Web, references(&["1.1", "1.2"])).await.expect("taken");
    let again = Commitments::open(disk.clone(), clock()).await.expect("opens");
    let known = again.get(&uid("1.9")).expect("known");
    assert_eq!((known.references.len(), known.settled), (2, None));
    let settled = Settled { at: UnixMillisField(2_000), failed: vec![(0, reason::PROCESSING)] };
    again.change(&uid("1.9"), |one| one.settled = Some(settled.clone())).await.expect("changed");
    let third = Commitments::open(disk, clock()).await.expect("opens");
    assert_eq!(third.get(&uid("1.9")).expect("known").settled, Some(settled));
}

#[tokio::test]
async fn a_repeated_request_is_the_same_and_another_under_its_uid_is_refused() {
    let folder = tempfile::tempdir().expect("a directory");
    let all = Commitments::open(Disk::real(folder.path()), clock()).await.expect("opens");
    let ask = async |names: &[&str]| all.request(uid("1.9"), Requester::Web, references(names)).await;
    assert_eq!(ask(&["1.1"]).await, Ok(()));
    assert_eq!(ask(&["1.1"]).await, Ok(()));
    assert_eq!(ask(&["1.2"]).await, Err(RequestError::Duplicate));
    assert_eq!(ask(&[]).await, Err(RequestError::Empty));
    let many = vec![references(&["1.1"])[0].clone(); REFERENCES_MAX + 1];
    assert_eq!(all.request(uid("1.8"), Requester::Web, many).await, Err(RequestError::TooMany));
}

#[tokio::test]
async fn a_damaged_transaction_is_set_aside_and_the_others_stay() {
    let folder = tempfile::tempdir().expect("a directory");
    let disk = Disk::real(folder.path());
    let all = Commitments::open(disk.clone(), clock()).await.expect("opens");
    for name in ["1.8", "1.9"] {
        all.request(uid(name), Requester::Web, references(&["1.1"])).await.expect("taken");
    }
    let name = disk.list("commitment").await.expect("a list").remove(0);
    let path = format!("commitment/{name}");
    let mut bytes = disk.read(&path).await.expect("read").to_vec();
    *bytes.last_mut().expect("a byte") ^= 1;
    disk.replace(&path, bytes.into()).await.expect("written");
    let again = Commitments::open(disk.clone(), clock()).await.expect("opens");
    let known = [uid("1.8"), uid("1.9")].iter().filter(|uid| again.get(uid).is_some()).count();
    assert_eq!(known, 1);
    assert!(disk.list("commitment").await.expect("a list").iter().any(|name| name.ends_with(".damaged")));
}

#[tokio::test(start_paused = true)]
async fn whoever_asks_again_for_what_is_settled_long_since_is_told_at_once() {
    let folder = tempfile::tempdir().expect("a directory");
    let all = Commitments::open(Disk::real(folder.path()), clock()).await.expect("opens");
    let title = |text: &str| AeTitle::parse(text).expect("a title");
    let by = Requester::Dimse { calling: title("PACS"), called: title("MAILLAGE") };
    all.request(uid("1.9"), by, references(&["1.1"])).await.expect("taken");
    let settled = Settled { at: UnixMillisField(1_000), failed: Vec::new() };
    all.change(&uid("1.9"), |one| one.settled = Some(settled)).await.expect("changed");
    // Nobody is known under that title: it is tried again ever more rarely.
    let teller = Teller { commitments: all.clone(), clock: clock(), metrics: Metrics::new(), peers: Vec::new() };
    let (shutdown, start) = (CancellationToken::new(), Instant::now());
    let asks_again = async {
        tokio::time::sleep(Duration::from_secs(1_500)).await;
        let (line, mut events) = EventLine::direct();
        all.keep_line(&uid("1.9"), line, Uid::EXPLICIT_LE);
        let event = events.next().await.expect("an event");
        assert!(start.elapsed() < Duration::from_secs(1_501), "{:?}", start.elapsed());
        event.answer(Status::SUCCESS);
        while all.get(&uid("1.9")).is_none_or(|one| !one.is_told()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        shutdown.cancel();
    };
    tokio::join!(report(teller, shutdown.clone()), asks_again);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_never_answers_holds_up_no_other_result() {
    let folder = tempfile::tempdir().expect("a directory");
    let all = Commitments::open(Disk::real(folder.path()), clock()).await.expect("opens");
    let title = |text: &str| AeTitle::parse(text).expect("a title");
    let settle = async |name: &str, calling: &str, line: Option<EventLine>| {
        let by = Requester::Dimse { calling: title(calling), called: title("MAILLAGE") };
        all.request(uid(name), by, references(&["1.1"])).await.expect("taken");
        if let Some(line) = line {
            all.keep_line(&uid(name), line, Uid::EXPLICIT_LE);
        }
        let settled = Settled { at: UnixMillisField(1_000), failed: Vec::new() };
        all.change(&uid(name), |one| one.settled = Some(settled)).await.expect("changed");
    };
    // Calls to it are taken by the system, and by nobody else. More results for it than are told at once.
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = silent.local_addr().expect("an address").port();
    for n in 100..140 {
        settle(&format!("1.1.{n}"), "SILENT", None).await;
    }
    let peers = vec![DicomPeer { ae_title: title("SILENT"), host: "127.0.0.1".to_owned(), port }];
    let teller = Teller { commitments: all.clone(), clock: clock(), metrics: Metrics::new(), peers };
    let shutdown = CancellationToken::new();
    let others = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        // Nor what it asks for on an association of its own.
        for (name, calling) in [("1.8", "SILENT"), ("1.9", "PACS")] {
            let (line, mut events) = EventLine::direct();
            settle(name, calling, Some(line)).await;
            let event = timeout(Duration::from_secs(5), events.next()).await;
            event.unwrap_or_else(|_| panic!("{name} is held up")).expect("an event").answer(Status::SUCCESS);
            while all.get(&uid(name)).is_none_or(|one| !one.is_told()) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        assert_eq!(all.untold().len(), 40);
        shutdown.cancel();
    };
    tokio::join!(report(teller, shutdown.clone()), others);
}
