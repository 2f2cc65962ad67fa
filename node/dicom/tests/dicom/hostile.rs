//! Peers that mean harm, or no DICOM at all.

use std::time::Duration;

use maillage_dicom::Uid;
use maillage_dicom::dimse::pdu::AssociateRj;
use maillage_dicom::dimse::scp::{AssociationEnd, RejectReason};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::peer::{PATIENCE, Scp, data, lock, request, store_command};

/// The receiving side still serves.
async fn still_serves(scp: &Scp) {
    let mut association = scp.sender().await;
    timeout(PATIENCE, association.echo()).await.expect("in time").expect("an echo");
    association.release().await.expect("released");
}

#[tokio::test]
async fn other_protocols_are_closed_at_once_and_unanswered() {
    let scp = Scp::start(|_| {}).await;
    let hellos: [&[u8]; 5] =
        [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\0\x01", b"SSH-2.0-x\r\n", b"\0", b"G"];
    for hello in hellos {
        let mut raw = scp.raw().await;
        let before = Instant::now();
        raw.send(hello).await;
        assert_eq!(raw.rest().await, b"");
        assert!(before.elapsed() < Duration::from_secs(2), "at once, not by a timeout");
    }
    scp.heard_rejected(RejectReason::NotDicom).await;
    assert!(lock(&scp.ears.rejected).iter().all(|&reason| reason == RejectReason::NotDicom));
    still_serves(&scp).await;
}

#[tokio::test]
async fn requests_that_lie_about_lengths_are_refused() {
    let scp = Scp::start(|_| {}).await;
    let good = request("SENDER", "NODE").encode();
    let mut long = good.to_vec();
    long[2..6].copy_from_slice(&u32::MAX.to_be_bytes());
    let mut item = good.to_vec();
    // The application context's length.
    item[76..78].copy_from_slice(&[0xFF, 0xFF]);
    let mut no_title = good.to_vec();
    no_title[26..42].fill(b' ');
    for (pdu, reason, answer) in [
        (long, RejectReason::BrokenPdu, AssociateRj::NO_REASON),
        (item, RejectReason::BrokenPdu, AssociateRj::NO_REASON),
        (no_title, RejectReason::CallingAe, AssociateRj::CALLING_AE),
    ] {
        let mut raw = scp.raw().await;
        raw.send(&pdu).await;
        let (kind, body) = raw.receive().await.expect("an answer");
        assert_eq!((kind, AssociateRj::decode(&body).expect("decodes")), (3, answer));
        scp.heard_rejected(reason).await;
    }
    let mut raw = scp.raw().await;
    raw.send(&data(1, false, true, b"data before any association")).await;
    assert_eq!(raw.receive().await.expect("an answer").0, 7, "an abort");
    still_serves(&scp).await;
}

#[tokio::test]
async fn broken_messages_end_their_association_only() {
    let scp = Scp::start(|_| {}).await;
    let mut bystander = scp.sender().await;
    let store = store_command("1.2.3");
    let with_pdv_len = |len: u32| {
        let mut pdu = data(1, false, true, &[0; 20]);
        pdu[6..10].copy_from_slice(&len.to_be_bytes());
        [store.clone(), pdu].concat()
    };
    let too_long = [4, 0, 0xFF, 0xFF, 0xFF, 0xFF].to_vec();
    let endless_command = data(1, true, false, &[0; 1024]).repeat(20);
    for (what, message) in [
        ("a value beyond its unit", with_pdv_len(1000)),
        ("a value of 4 GiB", with_pdv_len(u32::MAX)),
        ("a value without its own header", with_pdv_len(1)),
        ("a unit of 4 GiB", too_long),
        ("a command without end", endless_command),
        ("an unknown context", data(99, true, true, &store[12..])),
        ("data without a command", data(1, false, true, b"data")),
        ("data of another context", [store.clone(), data(3, false, true, b"data")].concat()),
        ("a command where data should be", [store.clone(), store.clone()].concat()),
        ("a command that is none", data(1, true, true, b"\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF")),
        ("a second request", request("SENDER", "NODE").encode().to_vec()),
        ("a release within a message", [store.clone(), vec![5, 0, 0, 0, 0, 4, 0, 0, 0, 0]].concat()),
        ("noise", vec![0x99; 100]),
    ] {
        let mut raw = scp.raw_associated().await;
        raw.send(&message).await;
        let (kind, _) = raw.receive().await.unwrap_or_else(|| panic!("{what}: no abort"));
        assert_eq!(kind, 7, "{what}");
    }
    scp.heard_closed(AssociationEnd::ProtocolError).await;
    bystander.echo().await.expect("not disturbed");
    assert_eq!(scp.stored(), 0);
}

#[tokio::test]
async fn a_silent_connection_is_closed_when_its_time_is_over() {
    let scp = Scp::start(|config| config.negotiation_timeout = Duration::from_millis(100)).await;
    let mut silent = scp.raw().await;
    let mut half = scp.raw().await;
    half.send(&request("SENDER", "NODE").encode()[..50]).await;
    assert_eq!(silent.rest().await, b"");
    assert_eq!(half.rest().await, b"");
    scp.heard_rejected(RejectReason::NoRequest).await;
    still_serves(&scp).await;
}

#[tokio::test]
async fn a_sender_that_stalls_within_a_message_is_aborted() {
    let scp = Scp::start(|config| config.stall_timeout = Duration::from_millis(100)).await;
    let mut raw = scp.raw_associated().await;
    raw.send(&[store_command("1.2.3"), data(1, false, false, b"and then nothing")].concat()).await;
    assert_eq!(raw.receive().await.expect("an abort").0, 7);
    scp.heard_closed(AssociationEnd::TimedOut).await;
    assert_eq!(scp.stored(), 0);
}

#[tokio::test]
async fn a_sender_slower_than_the_least_rate_is_aborted() {
    let scp = Scp::start(|config| config.message_grace = Duration::from_millis(300)).await;
    let mut raw = scp.raw_associated().await;
    raw.send(&store_command("1.2.3")).await;
    // A byte every 10 ms never stalls, yet may not hold its share of memory for ever.
    for byte in data(1, false, false, &[0; 10_000]) {
        if raw.0.try_write(&[byte]).is_err() || lock(&scp.ears.rejected).contains(&RejectReason::TooSlow) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(lock(&scp.ears.rejected).contains(&RejectReason::TooSlow));
    assert_eq!(raw.receive().await.expect("an abort").0, 7);
}

#[tokio::test]
async fn silent_connections_cannot_shut_others_out() {
    let scp = Scp::start(|config| {
        config.negotiating_max = 8;
        config.negotiating_per_address_max = 8;
    })
    .await;
    let mut silent = Vec::new();
    for n in 0..400 {
        silent.push(TcpStream::connect(scp.addr).await.expect("a connection"));
        if n % 100 == 99 {
            still_serves(&scp).await;
        }
    }
    scp.heard_rejected(RejectReason::Displaced).await;
    still_serves(&scp).await;
    drop(silent);
}

#[tokio::test]
async fn shell_and_markup_characters_in_titles_are_text() {
    let scp = Scp::start(|_| {}).await;
    let mut raw = scp.raw().await;
    raw.send(&request("`$(x)`;<b>", "NODE").encode()).await;
    assert_eq!(raw.receive().await.expect("an answer").0, 2);
    raw.send(&[store_command("1.2.3"), data(1, false, true, b"data")].concat()).await;
    assert_eq!(raw.response().await.status, Some(0));
    assert_eq!(lock(&scp.handler.stored)[0].0.calling_ae.as_str(), "`$(x)`;<b>");
}

#[tokio::test]
async fn a_hostile_acceptor_cannot_harm_the_sender() {
    let answers: [Vec<u8>; 5] = [
        b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
        [2, 0, 0xFF, 0xFF, 0xFF, 0xFF].to_vec(),
        [vec![2, 0, 0, 0, 0, 80], vec![0, 1], vec![0; 66], vec![0x21, 0, 0xFF, 0xFF], vec![0; 8]].concat(),
        [7, 0, 0, 0, 0, 4, 0, 0, 2, 1].to_vec(),
        Vec::new(),
    ];
    for answer in answers {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("an address");
        let acceptor = maillage_host::spawn(async move {
            let mut raw = crate::peer::Raw(listener.accept().await.expect("a connection").0);
            raw.receive().await.expect("a request");
            raw.send(&answer).await;
        });
        let (us, them) = (crate::peer::title("US"), crate::peer::title("THEM"));
        let contexts = [(Uid::VERIFICATION, vec![Uid::IMPLICIT_LE])];
        let connects =
            maillage_dicom::dimse::scu::Association::connect(addr, &us, &them, &contexts, Default::default());
        assert!(timeout(PATIENCE, connects).await.expect("in time").is_err());
        acceptor.await.expect("no panic");
    }
}
