//! Operations of a service handler, over real sockets: what reaches it, what is answered before it.

use bytes::Bytes;
use maillage_dicom::Uid;
use maillage_dicom::dimse::command::{
    C_FIND_RQ, C_STORE_RQ, Command, N_ACTION_RQ, N_CREATE_RQ, N_DELETE_RQ, N_GET_RQ, N_SET_RQ,
};
use maillage_dicom::dimse::scp::SERVICE_LEN_MAX;
use maillage_dicom::dimse::scu::{Association, ScuError};

use crate::peer::{DESK, Raw, Scp, data, request};

fn uid(text: &str) -> Uid {
    Uid::parse(text).expect("a uid")
}

/// (0010,0020) of two characters in implicit VR little endian.
const SOUND: &[u8] = b"\x10\x00\x20\x00\x02\x00\x00\x00P1";

/// A request about instance 1.2.3 that names class and instance where its operation has them.
fn command(field: u16) -> Command {
    let (class, instance) = (Some(uid(DESK)), Some(Ok(uid("1.2.3"))));
    match field {
        C_FIND_RQ => Command { field, sop_class: class, ..Command::default() },
        N_CREATE_RQ | C_STORE_RQ => Command { field, sop_class: class, sop_instance: instance, ..Command::default() },
        _ => Command { field, requested_class: class, requested_instance: instance, ..Command::default() },
    }
}

async fn asked(scp: &Scp) -> Association {
    scp.connect(&[(uid(DESK), vec![Uid::IMPLICIT_LE])]).await.expect("an association")
}

async fn status(association: &mut Association, command: Command, dataset: Option<&'static [u8]>) -> u16 {
    let answers = association.perform(&uid(DESK), command, dataset.map(Bytes::from_static)).await.expect("an answer");
    answers.last().and_then(|(answer, _)| answer.status).expect("a status")
}

#[tokio::test]
async fn operations_reach_the_handler_of_their_class_and_its_answers_the_requestor() {
    let scp = Scp::start(|_| {}).await;
    let mut association = asked(&scp).await;
    let answers = association.perform(&uid(DESK), command(C_FIND_RQ), Some(Bytes::from_static(SOUND))).await;
    let answers = answers.expect("answers");
    assert_eq!(answers.len(), SOUND.len() + 1, "each match, and the end");
    assert!(
        answers[..SOUND.len()]
            .iter()
            .all(|(answer, found)| { answer.status == Some(0xFF00) && found.as_deref() == Some(SOUND) })
    );
    assert_eq!(answers.last().map(|(answer, found)| (answer.status, found.is_some())), Some((Some(0), false)));
    let nameless = Command { sop_instance: None, ..command(N_CREATE_RQ) };
    let made = association.perform(&uid(DESK), nameless, None).await.expect("an answer");
    assert_eq!(made[0].0.sop_instance, Some(Ok(uid("1.2.3.4"))), "the handler named it");
    let action = Command { action_type: Some(3), ..command(N_ACTION_RQ) };
    let answer = association.perform(&uid(DESK), action, None).await.expect("an answer").remove(0).0;
    assert_eq!((answer.status, answer.action_type), (Some(0xC303), Some(3)));
    assert_eq!(answer.sop_instance, Some(Ok(uid("1.2.3"))));
    assert_eq!(status(&mut association, command(N_DELETE_RQ), None).await, 0x0211);
    association.release().await.expect("released");
}

#[tokio::test]
async fn requests_that_make_no_sense_are_answered_before_the_handler() {
    let scp = Scp::start(|_| {}).await;
    let mut association = asked(&scp).await;
    let other = Command { requested_class: Some(uid("1.2.840.10008.1.20.2")), ..command(N_GET_RQ) };
    assert_eq!(status(&mut association, other, None).await, 0x0122);
    let affected = Command { field: N_GET_RQ, ..command(N_CREATE_RQ) };
    assert_eq!(status(&mut association, affected, None).await, 0x0122, "an N-GET names what it requests");
    let nameless = Command { requested_instance: None, ..command(N_ACTION_RQ) };
    assert_eq!(status(&mut association, nameless, Some(SOUND)).await, 0x0117);
    assert_eq!(status(&mut association, command(N_SET_RQ), None).await, 0x0120);
    assert_eq!(status(&mut association, command(C_FIND_RQ), None).await, 0xA900);
    assert_eq!(status(&mut association, command(C_STORE_RQ), Some(SOUND)).await, 0x0122, "no storage class");
    assert_eq!(status(&mut association, command(N_GET_RQ), None).await, 0, "and the association goes on");
    assert_eq!(scp.stored(), 0);
}

#[tokio::test]
async fn a_broken_or_endless_data_set_never_reaches_the_handler() {
    let scp = Scp::start(|_| {}).await;
    let mut association = asked(&scp).await;
    // One byte more announced than there is.
    assert_eq!(status(&mut association, command(N_SET_RQ), Some(b"\x10\x00\x20\x00\x03\x00\x00\x00P1")).await, 0x0110);
    assert_eq!(status(&mut association, command(C_FIND_RQ), Some(b"\x10\x00")).await, 0xC000);
    let long = Bytes::from(vec![0; SERVICE_LEN_MAX + 1]);
    let answers = association.perform(&uid(DESK), command(N_SET_RQ), Some(long)).await.expect("an answer");
    assert_eq!(answers[0].0.status, Some(0x0213));
    assert_eq!(status(&mut association, command(N_GET_RQ), None).await, 0);
}

#[tokio::test]
async fn a_service_takes_only_transfer_syntaxes_in_which_it_can_answer() {
    let scp = Scp::start(|_| {}).await;
    let refused = scp.connect(&[(uid(DESK), vec![Uid::EXPLICIT_BE, Uid::DEFLATED_EXPLICIT_LE])]).await;
    let mut refused = refused.expect("an association without contexts");
    let error = refused.perform(&uid(DESK), command(N_GET_RQ), None).await.expect_err("not accepted");
    assert!(matches!(error, ScuError::NotAccepted { .. }), "{error}");
}

#[tokio::test]
async fn a_search_ends_when_its_requestor_cancels_it() {
    let scp = Scp::start(|_| {}).await;
    let mut raw = raw_associated(&scp).await;
    let find = Command { message_id: Some(7), has_data_set: true, ..command(C_FIND_RQ) };
    // 65,530 matches, far more than the connection's buffers hold.
    let mut identifier = b"\x10\x00\x20\x00".to_vec();
    identifier.extend_from_slice(&65_522_u32.to_le_bytes());
    identifier.resize(8 + 65_522, b'x');
    raw.send(&data(1, true, true, &find.encode())).await;
    for (at, part) in identifier.chunks(16_000).enumerate() {
        raw.send(&data(1, false, at == 4, part)).await;
    }
    assert_eq!(raw.response().await.status, Some(0xFF00));
    let cancel = Command { field: 0x0FFF, responds_to: Some(7), ..Command::default() };
    raw.send(&data(1, true, true, &cancel.encode())).await;
    for _ in 0..65_530 * 6 {
        let (_, body) = raw.receive().await.expect("more, or the end");
        // A command's last fragment; those of the data sets are passed over.
        if body[5] == 3 {
            match Command::decode(&body[6..]).expect("a command").status {
                Some(0xFF00) => {}
                status => return assert_eq!(status, Some(0xFE00)),
            }
        }
    }
    panic!("all was found in spite of the cancellation");
}

async fn raw_associated(scp: &Scp) -> Raw {
    let mut raw = scp.raw().await;
    let mut request = request("ASKER", "NODE");
    request.contexts[0].abstract_syntax = uid(DESK);
    request.contexts[0].transfer_syntaxes = vec![Uid::IMPLICIT_LE];
    raw.send(&request.encode()).await;
    assert_eq!(raw.receive().await.expect("an answer").0, 2, "accepted");
    raw
}
