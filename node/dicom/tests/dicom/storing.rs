//! C-ECHO and C-STORE between our two sides, over TCP.

use std::time::Duration;

use bytes::Bytes;
use maillage_dicom::Uid;
use maillage_dicom::dimse::StoreStatus;
use maillage_dicom::dimse::command::Command;
use maillage_dicom::dimse::scp::{AssociationEnd, RejectReason};
use maillage_dicom::dimse::scu::ScuError;
use maillage_dicom::phantom::CtPhantom;
use tokio::time::{sleep, timeout};

use crate::peer::{PATIENCE, Scp, data, lock, request, store_command};

fn uid(n: usize) -> Uid {
    Uid::parse(&format!("1.2.3.{n}")).expect("a uid")
}

fn bytes(len: usize) -> Bytes {
    (0..len).map(|n| u8::try_from(n * 7 % 251).expect("a byte")).collect()
}

#[tokio::test]
async fn echo_is_answered_and_released() {
    let scp = Scp::start(|_| {}).await;
    let mut association = scp.sender().await;
    association.echo().await.expect("an echo");
    association.echo().await.expect("another echo");
    association.release().await.expect("released");
    scp.heard_closed(AssociationEnd::Released).await;
    assert_eq!(*lock(&scp.handler.echoes), 2);
}

#[tokio::test]
async fn data_sets_of_all_lengths_arrive_as_they_were() {
    let scp = Scp::start(|_| {}).await;
    let mut association = scp.sender().await;
    let lengths = [0, 1, 2, 16_378, 262_143, 262_144, 262_145, 1 << 20, 5_000_001, 100];
    for (n, len) in lengths.into_iter().enumerate() {
        let status = association.store(&Uid::CT_IMAGE_STORAGE, &uid(n), &Uid::EXPLICIT_LE, bytes(len)).await;
        assert_eq!(status.expect("an answer"), StoreStatus::SUCCESS);
    }
    association.release().await.expect("released");
    let stored = lock(&scp.handler.stored);
    for (n, (request, dataset)) in stored.iter().enumerate() {
        assert_eq!(dataset, &bytes(lengths[n]), "{} bytes", lengths[n]);
        assert_eq!((&request.sop_instance, &request.sop_class), (&uid(n), &Uid::CT_IMAGE_STORAGE));
        assert_eq!(request.transfer_syntax, Uid::EXPLICIT_LE);
        assert_eq!((request.calling_ae.as_str(), request.called_ae.as_str()), ("SENDER", "NODE"));
    }
    assert_eq!(stored.len(), lengths.len());
    let summary = lock(&scp.ears.closed)[0];
    assert_eq!((summary.stored, summary.refused, summary.bytes), (10, 0, lengths.iter().sum::<usize>() as u64));
}

#[tokio::test]
async fn small_units_are_kept_to() {
    let scp = Scp::start(|config| config.max_pdu = 1024).await;
    let mut association = scp.sender().await;
    let status = association.store(&Uid::CT_IMAGE_STORAGE, &uid(1), &Uid::EXPLICIT_LE, bytes(100_000)).await;
    assert!(status.expect("an answer").is_stored());
    assert_eq!(lock(&scp.handler.stored)[0].1, bytes(100_000));
}

#[tokio::test]
async fn fragments_and_commands_may_be_cut_anywhere() {
    let scp = Scp::start(|_| {}).await;
    let mut raw = scp.raw_associated().await;
    let command = Command::store(1, Uid::CT_IMAGE_STORAGE, uid(1)).encode();
    let (first, second) = command.split_at(11);
    let mut message = [data(1, true, false, first), data(1, true, true, second)].concat();
    message.extend(data(1, false, false, b""));
    // Two values in one unit.
    let pair = [data(1, false, false, b"abc"), data(1, false, true, b"de")].map(|pdu| pdu[6..].to_vec()).concat();
    message.extend([4, 0, 0, 0, 0]);
    message.push(u8::try_from(pair.len()).expect("short"));
    message.extend(pair);
    for byte in message {
        raw.send(&[byte]).await;
    }
    assert_eq!(raw.response().await.status, Some(0));
    assert_eq!(lock(&scp.handler.stored)[0].1, "abcde");
}

#[tokio::test]
async fn many_associations_store_at_once_within_a_small_budget() {
    let scp = Scp::start(|config| config.in_flight_len_max = 1 << 20).await;
    let senders = (0..8).map(|sender| {
        let (addr, contexts) = (scp.addr, [(Uid::CT_IMAGE_STORAGE, vec![Uid::EXPLICIT_LE])]);
        maillage_host::spawn(async move {
            let (us, them) = (crate::peer::title("SENDER"), crate::peer::title("NODE"));
            let mut association =
                maillage_dicom::dimse::scu::Association::connect(addr, &us, &them, &contexts, Default::default())
                    .await
                    .expect("an association");
            for n in 0..4 {
                // Longer than the whole budget: only the overdraft lets one through.
                let status = association
                    .store(&Uid::CT_IMAGE_STORAGE, &uid(10 * sender + n), &Uid::EXPLICIT_LE, bytes(1_500_000))
                    .await;
                assert_eq!(status.expect("an answer"), StoreStatus::SUCCESS);
            }
            association.release().await.expect("released");
        })
    });
    for sender in senders.collect::<Vec<_>>() {
        timeout(PATIENCE, sender).await.expect("no deadlock").expect("no panic");
    }
    assert_eq!(scp.stored(), 32);
    assert!(lock(&scp.handler.stored).iter().all(|(_, dataset)| *dataset == bytes(1_500_000)));
}

#[tokio::test]
async fn a_spent_budget_stops_reading_until_the_handler_is_done() {
    let scp = Scp::start(|config| config.in_flight_len_max = 1 << 20).await;
    let permits = scp.handler.gate.acquire_many(1_000_000).await.expect("the gate");
    permits.forget();
    let mut stores = Vec::new();
    for n in 0..4 {
        let mut association = scp.sender().await;
        stores.push(maillage_host::spawn(async move {
            association.store(&Uid::CT_IMAGE_STORAGE, &uid(n), &Uid::EXPLICIT_LE, bytes(3_000_000)).await
        }));
    }
    sleep(Duration::from_millis(200)).await;
    // One has overdrawn and waits in the handler; the others are held up by TCP.
    assert!(stores.iter().all(|store| !store.is_finished()));
    scp.handler.gate.add_permits(4);
    for store in stores {
        assert_eq!(store.await.expect("no panic").expect("an answer"), StoreStatus::SUCCESS);
    }
}

/// Slices of half a mebibyte that come in at once.
const AT_ONCE: usize = 32;

#[tokio::test]
async fn only_so_much_comes_in_at_once_unless_the_handler_takes_long() {
    let scp = Scp::start(|_| {}).await;
    scp.handler.gate.acquire_many(1_000_000).await.expect("the gate").forget();
    let mut stores = Vec::new();
    for n in 0..AT_ONCE + 8 {
        let mut association = scp.sender().await;
        stores.push(maillage_host::spawn(async move {
            association.store(&Uid::CT_IMAGE_STORAGE, &uid(n), &Uid::EXPLICIT_LE, bytes(1 << 19)).await
        }));
    }
    sleep(Duration::from_millis(600)).await;
    assert_eq!(*lock(&scp.handler.begun), AT_ONCE);
    sleep(Duration::from_millis(1_200)).await;
    assert_eq!(*lock(&scp.handler.begun), AT_ONCE + 8, "nobody waits for long");
    scp.handler.gate.add_permits(stores.len());
    for store in stores {
        assert_eq!(store.await.expect("no panic").expect("an answer"), StoreStatus::SUCCESS);
    }
}

#[tokio::test]
async fn senders_that_pause_in_a_data_set_keep_nobody_waiting() {
    let scp = Scp::start(|_| {}).await;
    let mut pausing = Vec::new();
    for n in 0..AT_ONCE + 8 {
        let mut raw = scp.raw_associated().await;
        raw.send(&store_command(&format!("1.2.3.{n}"))).await;
        raw.send(&data(1, false, false, &bytes(1_000))).await;
        pausing.push(raw);
    }
    sleep(Duration::from_millis(200)).await;
    let mut association = scp.sender().await;
    let (class, instance, syntax) = (Uid::CT_IMAGE_STORAGE, uid(100), Uid::EXPLICIT_LE);
    let storing = association.store(&class, &instance, &syntax, bytes(1 << 19));
    let status = timeout(Duration::from_millis(500), storing).await.expect("at once");
    assert_eq!(status.expect("an answer"), StoreStatus::SUCCESS);
    for mut raw in pausing {
        raw.send(&data(1, false, true, &bytes(1_000))).await;
        assert_eq!(raw.response().await.status, Some(0));
    }
}

#[tokio::test]
async fn a_sender_that_finds_no_memory_in_time_hears_it() {
    let scp = Scp::start(|config| {
        config.in_flight_len_max = 1 << 18;
        config.stall_timeout = Duration::from_millis(300);
    })
    .await;
    scp.handler.gate.acquire_many(1_000_000).await.expect("the gate").forget();
    let mut holder = scp.sender().await;
    let held = maillage_host::spawn(async move {
        holder.store(&Uid::CT_IMAGE_STORAGE, &uid(1), &Uid::EXPLICIT_LE, bytes(3_000_000)).await
    });
    sleep(Duration::from_millis(150)).await;
    let mut late = scp.sender().await;
    let mut latest = scp.sender().await;
    let dataset = bytes(400_000);
    let (class, syntax, second, third) = (Uid::CT_IMAGE_STORAGE, Uid::EXPLICIT_LE, uid(2), uid(3));
    let (first, second) = tokio::join!(
        late.store(&class, &second, &syntax, dataset.clone()),
        latest.store(&class, &third, &syntax, dataset),
    );
    for status in [first, second] {
        assert_eq!(status.expect("an answer"), StoreStatus::out_of_resources("busy, try again later"));
    }
    scp.heard_rejected(RejectReason::Busy).await;
    scp.handler.gate.add_permits(1);
    assert!(held.await.expect("no panic").expect("an answer").is_stored());
}

#[tokio::test]
async fn refusals_reach_the_sender_with_their_comment() {
    let scp = Scp::start(|_| {}).await;
    let mut association = scp.sender().await;
    for status in [
        StoreStatus::out_of_resources("disk is full"),
        StoreStatus::does_not_match("uids differ"),
        StoreStatus::cannot_understand("sequences nest too deep at byte 1040"),
    ] {
        *lock(&scp.handler.refuse) = Some(status.clone());
        let answer = association.store(&Uid::CT_IMAGE_STORAGE, &uid(1), &Uid::EXPLICIT_LE, bytes(10)).await;
        assert_eq!(answer.expect("an answer"), status);
    }
    *lock(&scp.handler.refuse) = None;
    let answer = association.store(&Uid::CT_IMAGE_STORAGE, &uid(1), &Uid::EXPLICIT_LE, bytes(10)).await;
    assert!(answer.expect("an answer").is_stored());
}

#[tokio::test]
async fn an_instance_over_the_bound_is_refused_and_the_next_is_stored() {
    let scp = Scp::start(|config| config.instance_len_max = 1 << 20).await;
    let mut association = scp.sender().await;
    let long = association.store(&Uid::CT_IMAGE_STORAGE, &uid(1), &Uid::EXPLICIT_LE, bytes(1_500_000)).await;
    assert_eq!(long.expect("an answer"), StoreStatus::out_of_resources("instance is too long"));
    let short = association.store(&Uid::CT_IMAGE_STORAGE, &uid(2), &Uid::EXPLICIT_LE, bytes(1 << 20)).await;
    assert!(short.expect("an answer").is_stored());
    scp.heard_rejected(RejectReason::InstanceTooLong).await;
    assert_eq!(scp.stored(), 1);
    assert_eq!(*lock(&scp.handler.passed_over), 1_500_000, "it came all the same");
}

#[tokio::test]
async fn requests_that_make_no_sense_are_answered_and_the_association_lives() {
    let scp = Scp::start(|_| {}).await;
    let mut raw = scp.raw_associated().await;
    let other_class = Command::store(1, Uid::VERIFICATION, uid(1)).encode();
    let mut bad_uid = Command::store(1, Uid::CT_IMAGE_STORAGE, Uid::parse("1.2.33").expect("a uid")).encode();
    let at = bad_uid.windows(6).position(|window| window == b"1.2.33").expect("the uid");
    bad_uid[at..at + 6].copy_from_slice(b"../../");
    let mut find = Command::store(1, Uid::CT_IMAGE_STORAGE, uid(1));
    find.field = 0x0020;
    for (command, status) in [(other_class, 0x0122), (bad_uid, 0x0117), (find.encode(), 0x0211)] {
        raw.send(&[data(1, true, true, &command), data(1, false, true, b"data")].concat()).await;
        assert_eq!(raw.response().await.status, Some(status));
    }
    raw.send(&[store_command("1.2.3"), data(1, false, true, b"data")].concat()).await;
    assert_eq!(raw.response().await.status, Some(0));
    assert_eq!(scp.stored(), 1);
    assert_eq!(*lock(&scp.handler.passed_over), 12, "what came with the other three");
}

#[tokio::test]
async fn an_aborted_or_lost_instance_is_discarded_and_those_before_it_stay() {
    let scp = Scp::start(|_| {}).await;
    for (last_word, end) in [
        (&[7, 0, 0, 0, 0, 4, 0, 0, 0, 0][..], AssociationEnd::AbortedByPeer),
        (&[][..], AssociationEnd::ConnectionLost),
    ] {
        let mut raw = scp.raw_associated().await;
        raw.send(&[store_command("1.2.3"), data(1, false, true, b"whole")].concat()).await;
        assert_eq!(raw.response().await.status, Some(0));
        raw.send(&[store_command("1.2.4"), data(1, false, false, b"half of it")].concat()).await;
        raw.send(last_word).await;
        drop(raw);
        scp.heard_closed(end).await;
    }
    let stored = lock(&scp.handler.stored);
    assert_eq!(stored.iter().map(|(_, dataset)| &dataset[..]).collect::<Vec<_>>(), [b"whole", b"whole"]);
}

#[tokio::test]
async fn shutdown_finishes_what_is_under_way_and_aborts_what_idles() {
    let scp = Scp::start(|_| {}).await;
    scp.handler.gate.acquire_many(1_000_000).await.expect("the gate").forget();
    let mut idle = scp.raw_associated().await;
    let mut busy = scp.sender().await;
    let store =
        maillage_host::spawn(
            async move { busy.store(&Uid::CT_IMAGE_STORAGE, &uid(1), &Uid::EXPLICIT_LE, bytes(10)).await },
        );
    sleep(Duration::from_millis(100)).await;
    scp.shutdown.cancel();
    assert_eq!(idle.receive().await.expect("an abort").0, 7);
    drop(idle);
    assert!(!store.is_finished());
    scp.handler.gate.add_permits(1);
    assert!(store.await.expect("no panic").expect("an answer").is_stored());
    scp.heard_closed(AssociationEnd::Shutdown).await;
    let served = async {
        while !scp.task.is_finished() {
            sleep(Duration::from_millis(5)).await
        }
    };
    timeout(PATIENCE, served).await.expect("serve returns");
    assert!(tokio::net::TcpStream::connect(scp.addr).await.is_err(), "nobody listens");
}

#[tokio::test]
async fn shutdown_does_not_wait_beyond_its_grace() {
    let scp = Scp::start(|config| config.shutdown_grace = Duration::from_millis(100)).await;
    scp.handler.gate.acquire_many(1_000_000).await.expect("the gate").forget();
    let mut busy = scp.sender().await;
    let store =
        maillage_host::spawn(
            async move { busy.store(&Uid::CT_IMAGE_STORAGE, &uid(1), &Uid::EXPLICIT_LE, bytes(10)).await },
        );
    sleep(Duration::from_millis(100)).await;
    scp.shutdown.cancel();
    let answer = timeout(PATIENCE, store).await.expect("ended").expect("no panic");
    assert!(matches!(answer, Err(ScuError::Wire(_))), "{answer:?}");
}

#[tokio::test]
async fn what_was_not_accepted_is_not_sent() {
    let scp = Scp::start(|_| {}).await;
    let mut association = scp.sender().await;
    let other_syntax = association.store(&Uid::CT_IMAGE_STORAGE, &uid(1), &Uid::IMPLICIT_LE, bytes(10)).await;
    assert!(matches!(other_syntax, Err(ScuError::NotAccepted { .. })));
    assert!(association.accepts(&Uid::CT_IMAGE_STORAGE, &Uid::EXPLICIT_LE));
    association.echo().await.expect("still usable");
}

#[tokio::test]
async fn a_phantom_study_arrives_bit_for_bit() {
    let scp = Scp::start(|_| {}).await;
    let phantom = CtPhantom { slices: 5, rows: 256, columns: 256, ..CtPhantom::default() };
    let mut association = scp.sender().await;
    for n in 0..phantom.slices {
        let (sop_instance, dataset) = phantom.slice(n);
        let stored =
            association.store(&CtPhantom::SOP_CLASS, &sop_instance, &CtPhantom::TRANSFER_SYNTAX, dataset).await;
        assert!(stored.expect("an answer").is_stored());
    }
    association.release().await.expect("released");
    let stored = lock(&scp.handler.stored);
    for (n, (request, dataset)) in (0..).zip(stored.iter()) {
        assert_eq!((request.sop_instance.clone(), dataset.clone()), phantom.slice(n));
    }
}

#[tokio::test]
async fn a_response_comes_in_pieces_when_the_peer_wants_it_so() {
    let scp = Scp::start(|_| {}).await;
    let mut asked = request("SENDER", "NODE");
    asked.user.max_pdu = 128;
    let mut raw = scp.raw().await;
    raw.send(&asked.encode()).await;
    raw.receive().await.expect("an answer");
    *lock(&scp.handler.refuse) = Some(StoreStatus::cannot_understand("x".repeat(64)));
    let long = Uid::parse(&"1.23".repeat(16)).expect("a uid");
    raw.send(&[store_command(long.as_str()), data(1, false, true, b"data")].concat()).await;
    let (_, first) = raw.receive().await.expect("a piece");
    let (_, second) = raw.receive().await.expect("another piece");
    assert!(first.len() <= 128 && second.len() <= 128);
    assert_eq!((first[5], second[5]), (1, 3), "command, then last part of command");
    let command = Command::decode(&[&first[6..], &second[6..]].concat()).expect("a command");
    assert_eq!(command.status, Some(0xC000));
}
