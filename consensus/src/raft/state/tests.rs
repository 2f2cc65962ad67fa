//! The applied state and its snapshots.

use crate::machine::Proposer;
use maillage_host::EngineHome as _;
use maillage_host::UnixMillis;
use maillage_host::engine::{FjallHome, MemoryHome};
use openraft::RaftSnapshotBuilder as _;

use super::{
    Applied, Arc, Bytes, Engine, Entry, EntryPayload, Halt, LogId, Machine, Payload, RaftStateMachine as _,
    SnapshotStore, State, io,
};
use crate::raft::testing::{Toy, real_disk, toy_command};
use crate::raft::types::LeaderId;

fn id(index: u64) -> LogId {
    LogId { leader_id: LeaderId { term: 1, node_id: 1 }, index }
}

fn normal(index: u64, value: &[u8]) -> Entry {
    let empty = MemoryHome::default().open().expect("open");
    let leader = Proposer { node: 1, is_leader: true };
    let stamped = Toy.stamp(&*empty, &toy_command(index, value), leader, UnixMillis(0)).expect("valid");
    Entry { log_id: id(index), payload: EntryPayload::Normal(Payload(Bytes::from(stamped))) }
}

struct Fixture {
    _directory: tempfile::TempDir,
    store: Arc<SnapshotStore>,
    halt: Halt,
    state: State,
}

async fn fixture(home: Arc<dyn maillage_host::EngineHome>) -> Fixture {
    let (directory, disk) = real_disk();
    let store = Arc::new(SnapshotStore::open(disk, [9; 32]).await.expect("snapshots"));
    let halt = Halt::default();
    let state = State::open(home, Arc::new(Toy), Arc::clone(&store), halt.clone()).await.expect("state");
    Fixture { _directory: directory, store, halt, state }
}

async fn apply(state: &mut State, entries: Vec<Entry>) -> io::Result<()> {
    state.apply(futures::stream::iter(entries.into_iter().map(|entry| Ok((entry, None))))).await
}

#[tokio::test]
async fn an_unknown_command_halts_the_node_after_what_came_before_it() {
    let mut fixture = fixture(Arc::new(MemoryHome::default())).await;
    let unknown = normal(3, &[crate::raft::testing::UNKNOWN]);
    let applied = apply(&mut fixture.state, vec![normal(1, b"a"), normal(2, b"b"), unknown, normal(4, b"c")]).await;
    assert!(applied.is_err());
    assert!(fixture.halt.reason().is_some_and(|reason| reason.contains("unknown command at index 3")));
    let view = fixture.state.view();
    assert_eq!(view.index(), 2, "what came before is applied");
    assert_eq!(view.engine().get(b"n").expect("get"), Some(2_u64.to_be_bytes().to_vec()), "and nothing of the unknown");
    assert_eq!(Applied::read(&*view.engine()).expect("read").log_id, Some(id(2)));
}

#[tokio::test]
async fn the_chain_does_not_depend_on_how_entries_were_batched() {
    let mut together = fixture(Arc::new(MemoryHome::default())).await;
    let mut apart = fixture(Arc::new(MemoryHome::default())).await;
    let entries: Vec<Entry> = (1..50).map(|index| normal(index, &index.to_be_bytes())).collect();
    apply(&mut together.state, entries.clone()).await.expect("apply");
    for entry in entries {
        apply(&mut apart.state, vec![entry]).await.expect("apply");
    }
    assert_eq!(together.state.view().chain(), apart.state.view().chain());
    apply(&mut apart.state, vec![normal(50, b"more")]).await.expect("apply");
    assert_ne!(together.state.view().chain().1, apart.state.view().chain().1);
}

#[tokio::test]
async fn the_state_knows_after_reopening_how_far_it_was() {
    let directory = tempfile::tempdir().expect("directory");
    let home = || Arc::new(FjallHome::new(directory.path().join("state"), 1 << 20));
    let mut fixture = fixture(home()).await;
    apply(&mut fixture.state, vec![normal(1, b"a"), normal(2, b"b")]).await.expect("apply");
    fixture.state.view().checkpoint().await.expect("checkpoint");
    let chain = fixture.state.view().chain();
    drop(fixture);
    let reopened = self::fixture(home()).await;
    assert_eq!(reopened.state.view().chain(), chain);
}

/// Builds a snapshot of `from` and installs it in `to`, as if it had travelled.
async fn transfer(from: &mut Fixture, to: &mut Fixture) {
    let snapshot = from.state.get_snapshot_builder().await.build_snapshot().await.expect("build");
    let file = from.store.open_file(&snapshot.snapshot.0).await.expect("open");
    let mut incoming = crate::raft::snapshot::Incoming::begin(Arc::clone(&to.store)).await.expect("begin");
    let mut at = 0;
    while at < snapshot.snapshot.0.len {
        let piece = file.read_at(at, 1 << 20).await.expect("read");
        at += piece.len() as u64;
        incoming.push(piece).await.expect("push");
    }
    let received = incoming.finish().await.expect("right");
    to.state.install_snapshot(&snapshot.meta, received).await.expect("install");
}

#[tokio::test]
async fn a_snapshot_carries_the_state_whatever_its_size() {
    // The larger is beyond what is read into memory before it is installed.
    for (count, len) in [(10, 100), (70, 1 << 20)] {
        let mut from = fixture(Arc::new(MemoryHome::default())).await;
        for index in 1..=count {
            apply(&mut from.state, vec![normal(index, &vec![7; len])]).await.expect("apply");
        }
        let mut to = fixture(Arc::new(MemoryHome::default())).await;
        apply(&mut to.state, vec![normal(1, b"what is to vanish")]).await.expect("apply");
        let before = to.state.view().engine();
        transfer(&mut from, &mut to).await;
        let (view, expected) = (to.state.view(), from.state.view());
        assert_eq!(view.chain(), expected.chain());
        let all = |engine: &dyn Engine| {
            let mut pairs = maillage_host::engine::scan_prefix(engine, b"", usize::MAX).expect("scan");
            pairs.retain(|(key, _)| key[0] != 0);
            pairs
        };
        assert!(all(&*view.engine()) == all(&*expected.engine()), "the states differ");
        assert_eq!(before.get(b"n").expect("get"), Some(1_u64.to_be_bytes().to_vec()), "an old reader is undisturbed");
    }
}

#[tokio::test]
async fn only_the_newest_snapshot_is_kept_and_those_in_use() {
    let mut fixture = fixture(Arc::new(MemoryHome::default())).await;
    let build = async |state: &mut State, index| {
        apply(state, vec![normal(index, b"x")]).await.expect("apply");
        state.get_snapshot_builder().await.build_snapshot().await.expect("build").snapshot
    };
    let first = build(&mut fixture.state, 1).await;
    let second = build(&mut fixture.state, 2).await;
    assert!(fixture.store.open_file(&first.0).await.is_ok(), "it is in use");
    let path = first.0.path.clone();
    drop(first);
    fixture.store.sweep().await;
    let files = fixture._directory.path().join("raft/snapshots");
    assert!(!fixture._directory.path().join(path).exists(), "nobody uses it");
    assert!(fixture._directory.path().join(&second.0.path).exists());
    assert!(files.exists());
}

#[tokio::test]
async fn a_snapshot_that_rots_is_never_installed() {
    let mut from = fixture(Arc::new(MemoryHome::default())).await;
    apply(&mut from.state, (1..100).map(|index| normal(index, b"value")).collect()).await.expect("apply");
    let snapshot = from.state.get_snapshot_builder().await.build_snapshot().await.expect("build");
    let file = from.store.open_file(&snapshot.snapshot.0).await.expect("open");
    file.write_at(snapshot.snapshot.0.len / 2, vec![Bytes::from_static(b"rot")], true).await.expect("write");
    let before = from.state.view().chain();
    assert!(from.state.install_snapshot(&snapshot.meta, snapshot.snapshot).await.is_err());
    assert!(from.halt.reason().is_some());
    assert_eq!(from.state.view().chain(), before, "the old state is untouched");
}
