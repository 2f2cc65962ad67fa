//! Streams that a correct member never opens.

use std::sync::Arc;
use std::time::Duration;

use maillage_host::engine::MemoryHome;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::time::timeout;

use crate::raft::testing::{Mesh, Site, commit, real_disk, toy_command};
use crate::raft::types::{LeaderId, Vote};
use crate::raft::wire::{Frame, Greeting, Hello};
use crate::raft::{Duplex, Group};

async fn founder() -> (Group, tempfile::TempDir) {
    let (directory, disk) = real_disk();
    let group = Mesh::default().found(vec![Site::new(disk, Arc::new(MemoryHome::default()))]).await.remove(0);
    (group, directory)
}

/// A stream to `group` from the authenticated node 2, and the task that serves it.
fn stream(group: &Group) -> (DuplexStream, tokio::task::JoinHandle<()>) {
    let (near, far) = tokio::io::duplex(1 << 20);
    let (reader, writer) = tokio::io::split(far);
    let group = group.clone();
    let serving = maillage_host::spawn(async move {
        group.serve(2, Duplex { reader: Box::new(reader), writer: Box::new(writer) }).await;
    });
    (near, serving)
}

fn hello() -> Hello {
    Hello { mesh_id: [9; 32], epoch: 1, from: 2, to: 1 }
}

/// Sends frames and returns the first answer, if there is one before the stream ends.
async fn ask(group: &Group, frames: &[Frame]) -> Option<Frame> {
    let (near, _serving) = stream(group);
    let (reader, writer) = tokio::io::split(near);
    let (mut reader, mut writer) =
        crate::raft::wire::split(Duplex { reader: Box::new(reader), writer: Box::new(writer) });
    for frame in frames {
        writer.queue(frame).expect("fits");
    }
    writer.flush().await.expect("sent");
    timeout(Duration::from_secs(5), reader.next(1 << 20)).await.expect("answered").expect("a frame")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_another_mesh_epoch_or_node_is_refused_with_the_reason() {
    let (group, _directory) = founder().await;
    for (hello, reason) in [
        (Hello { mesh_id: [8; 32], ..hello() }, "another mesh"),
        (Hello { epoch: 2, ..hello() }, "another epoch of the mesh"),
        (Hello { to: 3, ..hello() }, "another node is meant"),
        (Hello { from: 3, ..hello() }, "not the node that was authenticated"),
    ] {
        match ask(&group, &[Frame::Hello(hello), Frame::KeepAlive(None)]).await {
            Some(Frame::Refused(said)) => assert_eq!(said, reason),
            other => panic!("{reason}: {other:?}"),
        }
    }
    // To a node of the first version, which says nothing of itself, without the clock that it cannot read.
    assert!(matches!(ask(&group, &[Frame::Hello(hello()), Frame::KeepAlive(None)]).await, Some(Frame::Heard(None))));
    let greeting = Frame::KeepAlive(Some(Greeting { format: 2, measured: None }));
    assert!(matches!(ask(&group, &[Frame::Hello(hello()), greeting]).await, Some(Frame::Heard(Some(_)))));
    group.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_cannot_vote_or_lead_in_the_name_of_another() {
    let (group, _directory) = founder().await;
    let term = group.leads().expect("it leads");
    let vote = Vote { leader_id: LeaderId { term: term + 5, node_id: 3 }, committed: true };
    for frame in [
        Frame::Snapshot(vote),
        Frame::Vote(openraft::raft::VoteRequest::new(vote, None)),
        Frame::Append(
            openraft::raft::AppendEntriesRequest { vote, prev_log_id: None, entries: vec![], leader_commit: None },
            None,
        ),
    ] {
        let answer = ask(&group, &[Frame::Hello(hello()), frame]).await;
        assert!(matches!(answer, Some(Frame::Refused(_))), "{answer:?}");
    }
    assert_eq!(group.leads(), Some(term), "nobody was deposed");
    group.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_ends_its_stream_and_nothing_else() {
    let (group, _directory) = founder().await;
    let garbage: Vec<Vec<u8>> = vec![
        vec![0; 64],
        vec![0xff; 64],
        b"GET / HTTP/1.1\r\nHost: example\r\n\r\n".to_vec(),
        [&4_000_000_000_u32.to_le_bytes()[..], &[1; 32]].concat(),
        [&5_u32.to_le_bytes()[..], &[99; 5]].concat(),
    ];
    for bytes in &garbage {
        let (mut near, serving) = stream(&group);
        near.write_all(bytes).await.expect("written");
        timeout(Duration::from_secs(2), serving).await.expect("the stream is ended").expect("without a panic");
        let mut rest = Vec::new();
        near.read_to_end(&mut rest).await.expect("closed");
    }
    // The same after a good hello.
    for bytes in &garbage {
        let (near, serving) = stream(&group);
        let (reader, writer) = tokio::io::split(near);
        let (_reader, mut frames) =
            crate::raft::wire::split(Duplex { reader: Box::new(reader), writer: Box::new(writer) });
        frames.queue(&Frame::Hello(hello())).expect("fits");
        frames.queue_raw(bytes);
        frames.flush().await.expect("sent");
        timeout(Duration::from_secs(2), serving).await.expect("the stream is ended").expect("without a panic");
    }
    commit(&group, toy_command(1, b"still here")).await;
    group.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_snapshot_is_refused_and_leaves_nothing() {
    let (group, directory) = founder().await;
    let vote = Vote { leader_id: LeaderId { term: 50, node_id: 2 }, committed: true };
    let frames = [
        Frame::Hello(hello()),
        Frame::Snapshot(vote),
        Frame::Piece(bytes::Bytes::from_static(&[1; 1000])),
        Frame::SnapshotEnd,
    ];
    let answer = ask(&group, &frames).await;
    assert!(!matches!(answer, Some(Frame::SnapshotTaken(_))), "{answer:?}");
    assert!(group.watch().borrow().fatal.is_none());
    commit(&group, toy_command(1, b"still here")).await;
    let left = maillage_host::Disk::real(directory.path()).list("raft/snapshots").await.expect("list");
    assert!(left.is_empty(), "{left:?}");
    group.shutdown().await;
}
