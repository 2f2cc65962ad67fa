//! Every frame, whole and broken.

use std::collections::{BTreeMap, BTreeSet};

use openraft::{EmptyNode, EntryPayload};

use maillage_host::UnixMillis;

use super::{
    AppendEntriesRequest, Bytes, BytesMut, Duration, Failure, Frame, Greeting, Hello, LogId, TransferLeaderError,
    TransferLeaderRequest, Vote, VoteRequest, VoteResponse,
};
use crate::raft::status::ClockOffset;
use crate::raft::types::{Entry, LeaderId, Membership, Payload};

fn id(index: u64) -> LogId {
    LogId { leader_id: LeaderId { term: 3, node_id: 2 }, index }
}

fn greeting() -> Greeting {
    let measured = ClockOffset { ahead_ms: -1234, round_trip: Duration::from_millis(40) };
    Greeting { format: 2, measured: Some(measured) }
}

/// One of each frame.
fn frames() -> Vec<Frame> {
    let vote = Vote { leader_id: LeaderId { term: 4, node_id: 2 }, committed: true };
    let nodes: BTreeMap<u64, EmptyNode> = (1..5).map(|id| (id, EmptyNode {})).collect();
    let membership = Membership::new(vec![BTreeSet::from([1, 2, 3])], nodes).expect("valid");
    let payloads =
        [EntryPayload::Blank, EntryPayload::Normal(Payload("command".into())), EntryPayload::Membership(membership)];
    let entries = (5..).zip(payloads).map(|(index, payload)| Entry { log_id: id(index), payload }).collect();
    let append = AppendEntriesRequest { vote, prev_log_id: Some(id(4)), entries, leader_commit: Some(id(2)) };
    let request = VoteRequest { vote, last_log_id: Some(id(9)), leadership_transfer: true };
    let response = VoteResponse { vote, vote_granted: true, last_log_id: None };
    let changed = TransferLeaderError::VoteChanged { expected: vote, actual: vote };
    let behind = TransferLeaderError::LogNotFlushed { expected: Some(id(1)), actual: None };
    vec![
        Frame::Hello(Hello { mesh_id: [1; 32], epoch: 2, from: 3, to: 4 }),
        Frame::Append(append, Some(Duration::from_millis(7))),
        Frame::Vote(request.clone()),
        Frame::PreVote(request),
        Frame::Transfer(TransferLeaderRequest::new(vote, 3, Some(id(8)))),
        Frame::Snapshot(vote),
        Frame::Piece("piece".into()),
        Frame::SnapshotEnd,
        Frame::Propose(Duration::from_millis(8), "command".into()),
        Frame::ReadIndex(Duration::from_millis(9)),
        Frame::KeepAlive(None),
        Frame::KeepAlive(Some(Greeting { format: 2, measured: None })),
        Frame::KeepAlive(Some(greeting())),
        Frame::Appended(Some(id(1))),
        Frame::Conflict(id(2)),
        Frame::HigherVote(vote),
        Frame::Voted(response),
        Frame::Transferred(Ok(())),
        Frame::Transferred(Err(changed)),
        Frame::Transferred(Err(behind)),
        Frame::SnapshotTaken(vote),
        Frame::Committed(5, "outcome".into()),
        Frame::NotLeader(Some(3)),
        Frame::NotLeader(None),
        Frame::Failed(Failure::NotProposed),
        Frame::Failed(Failure::Unknown),
        Frame::Failed(Failure::Invalid("why".to_owned())),
        Frame::ReadAt(6),
        Frame::Heard(None),
        Frame::Heard(Some(UnixMillis(1_767_323_045_678))),
        Frame::Refused("why".to_owned()),
    ]
}

fn encoded(frame: &Frame) -> Bytes {
    let mut bytes = BytesMut::new();
    frame.encode(&mut bytes);
    bytes.freeze()
}

#[test]
fn every_frame_is_read_back_as_it_was_written() {
    for frame in frames() {
        let read = Frame::decode(encoded(&frame)).expect("a frame");
        assert_eq!(format!("{read:?}"), format!("{frame:?}"));
        assert_eq!(encoded(&read), encoded(&frame));
    }
}

#[test]
fn frames_cut_short_or_changed_never_panic() {
    for frame in frames() {
        let bytes = encoded(&frame);
        for len in 0..bytes.len() {
            let _ = Frame::decode(bytes.slice(..len));
        }
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut changed = bytes.to_vec();
                changed[at] ^= 1 << bit;
                let _ = Frame::decode(changed.into());
            }
        }
    }
}

#[test]
fn a_keep_alive_of_the_first_version_is_read_and_ours_can_be_written_as_one() {
    assert_eq!(encoded(&Frame::KeepAlive(None))[..], [11], "as the first version writes it");
    assert_eq!(encoded(&Frame::Heard(None))[..], [139], "and answers it");
    assert!(matches!(Frame::decode(Bytes::from_static(&[11])), Ok(Frame::KeepAlive(None))));
    assert!(matches!(Frame::decode(Bytes::from_static(&[139])), Ok(Frame::Heard(None))));
    // These bytes are on the wire between versions.
    let golden = [&[11, 2, 1][..], &(-1234_i64).to_le_bytes(), &40_u32.to_le_bytes()].concat();
    assert_eq!(encoded(&Frame::KeepAlive(Some(greeting())))[..], golden);
}

#[test]
fn what_a_later_version_adds_to_a_keep_alive_is_skipped() {
    for frame in [Frame::KeepAlive(Some(greeting())), Frame::Heard(Some(UnixMillis(7)))] {
        let longer = [&encoded(&frame)[..], b"more"].concat();
        assert_eq!(format!("{:?}", Frame::decode(longer.into()).expect("a frame")), format!("{frame:?}"));
    }
    assert!(Frame::decode(Bytes::from_static(&[11, 2, 1, 0])).is_err(), "half a body is none");
}
