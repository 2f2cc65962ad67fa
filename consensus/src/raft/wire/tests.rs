//! Every frame, whole and broken.

use std::collections::{BTreeMap, BTreeSet};

use openraft::{EmptyNode, EntryPayload};

use super::{
    AppendEntriesRequest, Bytes, BytesMut, Duration, Failure, Frame, Hello, LogId, TransferLeaderError,
    TransferLeaderRequest, Vote, VoteRequest, VoteResponse,
};
use crate::raft::types::{Entry, LeaderId, Membership, Payload};

fn id(index: u64) -> LogId {
    LogId { leader_id: LeaderId { term: 3, node_id: 2 }, index }
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
        Frame::KeepAlive,
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
        Frame::Heard,
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
