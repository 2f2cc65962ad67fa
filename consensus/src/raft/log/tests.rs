//! The log under crashes, rot and failing disks.

use bytes::Bytes;
use openraft::EntryPayload;
use openraft_rt::Oneshot as _;
use openraft_rt_tokio::TokioOneshot;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::{
    Disk, Halt, IOFlushed, Identity, Limits, Log, LogError, RaftLogReader as _, RaftLogStorage as _, directory, io,
    segment_path,
};
use crate::raft::testing::{CrashDisk, real_disk};
use crate::raft::types::{Entry, LeaderId, LogId, Payload, Vote};

const IDENTITY: Identity = Identity { node_id: 7, mesh_id: [3; 32] };

fn id(term: u64, index: u64) -> LogId {
    LogId { leader_id: LeaderId { term, node_id: 1 }, index }
}

fn entry(term: u64, index: u64, len: usize) -> Entry {
    let byte = (term.wrapping_mul(31) ^ index).to_le_bytes()[0];
    Entry { log_id: id(term, index), payload: EntryPayload::Normal(Payload(Bytes::from(vec![byte; len]))) }
}

fn vote(term: u64) -> Vote {
    Vote { leader_id: LeaderId { term, node_id: 1 }, committed: false }
}

async fn append(log: &mut Log, entries: Vec<Entry>) -> io::Result<()> {
    let (done, flushed) = TokioOneshot::channel();
    log.append(entries, IOFlushed::signal(done)).await?;
    flushed.await.map_err(io::Error::other)?
}

async fn open(disk: &Disk) -> Log {
    try_open(disk, Limits::default()).await.expect("the log opens")
}

async fn try_open(disk: &Disk, limits: Limits) -> Result<Log, LogError> {
    Log::open(disk, IDENTITY, limits, Halt::default()).await
}

/// Limits under which a few entries fill a segment and hardly any stays in memory.
const SMALL: Limits = Limits { segment_bytes: 4096, extent_bytes: 2048, tail_bytes: 2048, tail_entries: 4 };

async fn all(log: &Log) -> Vec<Entry> {
    log.entries(0, u64::MAX, usize::MAX).await.expect("readable")
}

#[tokio::test]
async fn everything_that_was_acknowledged_is_there_after_reopening() {
    let (_directory, disk) = real_disk();
    let mut log = open(&disk).await;
    let entries: Vec<Entry> = (0..100).map(|index| entry(1, index, 100)).collect();
    append(&mut log, entries.clone()).await.expect("append");
    log.save_vote(&vote(5)).await.expect("vote");
    log.truncate_after(Some(id(1, 89))).await.expect("truncate");
    append(&mut log, vec![entry(5, 90, 10)]).await.expect("append");
    log.save_committed(Some(id(1, 80))).await.expect("committed");
    log.purge(id(1, 9)).await.expect("purge");
    log.close().await;

    let mut log = open(&disk).await;
    assert_eq!(log.read_vote().await.expect("vote"), Some(vote(5)));
    assert_eq!(log.read_committed().await.expect("committed"), Some(id(1, 80)));
    let state = log.get_log_state().await.expect("state");
    assert_eq!((state.last_purged_log_id, state.last_log_id), (Some(id(1, 9)), Some(id(5, 90))));
    let mut expected = entries[10..90].to_vec();
    expected.push(entry(5, 90, 10));
    assert_eq!(all(&log).await, expected);
}

#[tokio::test]
async fn entries_no_longer_in_memory_are_read_from_disk_across_segments() {
    let (_directory, disk) = real_disk();
    let mut log = try_open(&disk, SMALL).await.expect("open");
    let entries: Vec<Entry> = (0..200).map(|index| entry(1, index, 200)).collect();
    for chunk in entries.chunks(7) {
        append(&mut log, chunk.to_vec()).await.expect("append");
    }
    assert!(disk.list(directory()).await.expect("list").len() > 5, "several segments");
    assert_eq!(all(&log).await, entries);
    assert_eq!(log.try_get_log_entries(50..=60).await.expect("read"), &entries[50..=60]);
    let some = log.limited_get_log_entries(0, 200).await.expect("read");
    assert_eq!(some, &entries[..some.len()]);
    let log = try_open(&disk, SMALL).await.expect("reopen");
    assert_eq!(all(&log).await, entries);
}

#[tokio::test]
async fn a_page_for_a_follower_is_limited_by_bytes_but_holds_at_least_one_entry() {
    let (_directory, disk) = real_disk();
    let mut log = open(&disk).await;
    append(&mut log, (0..8).map(|index| entry(1, index, 400 << 10)).collect()).await.expect("append");
    assert_eq!(log.limited_get_log_entries(0, 8).await.expect("read").len(), 2);
    assert_eq!(log.entries(3, 8, 10).await.expect("read").len(), 1);
}

#[tokio::test]
async fn purging_removes_whole_segments_and_survives_reopening() {
    let (_directory, disk) = real_disk();
    let mut log = try_open(&disk, SMALL).await.expect("open");
    log.save_vote(&vote(3)).await.expect("vote");
    for index in 0..100 {
        append(&mut log, vec![entry(1, index, 200)]).await.expect("append");
    }
    let before = disk.list(directory()).await.expect("list").len();
    log.purge(id(1, 79)).await.expect("purge");
    let after = disk.list(directory()).await.expect("list").len();
    assert!(after < before / 2, "{after} of {before} segments are left");
    log.close().await;
    let mut log = try_open(&disk, SMALL).await.expect("reopen");
    assert_eq!(log.read_vote().await.expect("vote"), Some(vote(3)), "carried from segment to segment");
    assert_eq!(all(&log).await.first().map(|entry| entry.log_id.index), Some(80));
    log.purge(id(2, 500)).await.expect("purge beyond the end");
    append(&mut log, vec![entry(2, 501, 10)]).await.expect("append");
    log.close().await;
    let log = try_open(&disk, SMALL).await.expect("reopen");
    assert_eq!(all(&log).await, [entry(2, 501, 10)]);
}

#[tokio::test]
async fn nothing_of_what_was_purged_is_on_disk_once_a_new_segment_was_begun() {
    let (_directory, disk) = real_disk();
    let mut log = open(&disk).await;
    log.save_vote(&vote(3)).await.expect("vote");
    append(&mut log, (0..10).map(|index| entry(1, index, 100)).collect()).await.expect("append");
    let clear = log.roll().await.expect("roll");
    assert_eq!(clear, 9);
    append(&mut log, vec![entry(2, 10, 100)]).await.expect("append");
    let purged = [entry(1, 9, 100), entry(1, 0, 100)].map(|entry| match entry.payload {
        EntryPayload::Normal(Payload(bytes)) => bytes,
        _ => Bytes::new(),
    });
    let on_disk = async || {
        let mut found = 0;
        for name in disk.list(directory()).await.expect("list") {
            let bytes = disk.read(&format!("{}/{name}", directory())).await.expect("read");
            found += purged.iter().filter(|secret| bytes.windows(100).any(|window| window == &secret[..])).count();
        }
        found
    };
    assert_eq!(on_disk().await, 2);
    log.purge(id(1, 9)).await.expect("purge");
    assert_eq!(on_disk().await, 0);
    // Rolled without anything between, and reopened.
    log.roll().await.expect("roll");
    log.roll().await.expect("roll");
    log.close().await;
    let mut log = open(&disk).await;
    assert_eq!(log.read_vote().await.expect("vote"), Some(vote(3)));
    assert_eq!(all(&log).await, [entry(2, 10, 100)]);
    append(&mut log, vec![entry(2, 11, 10)]).await.expect("append");
}

/// A log of ten synced entries, its last segment's path, and where each record of an entry begins.
async fn ten_entries(disk: &Disk) -> (String, Vec<u64>) {
    let mut log = open(disk).await;
    for index in 0..10 {
        append(&mut log, vec![entry(1, index, 100)]).await.expect("append");
    }
    let found = log.memory().find(0, 10, usize::MAX).expect("found");
    assert_eq!(found.tail.len(), 10);
    let places = (0..10).map(|index| log.memory().place_of(index)).collect();
    log.close().await;
    (segment_path(1), places)
}

async fn damage(disk: &Disk, path: &str, at: u64, bytes: &'static [u8]) {
    let file = disk.open(path).await.expect("open");
    file.write_at(at, vec![Bytes::from_static(bytes)], true).await.expect("write");
}

#[tokio::test]
async fn a_torn_tail_is_cut_and_the_log_goes_on() {
    let (_directory, disk) = real_disk();
    let mut log = open(&disk).await;
    append(&mut log, (0..10).map(|index| entry(1, index, 100)).collect()).await.expect("append");
    let path = segment_path(1);
    let end = log.memory().place_of(9);
    drop(log);
    // The last record's body never arrived, though bytes behind it did.
    damage(&disk, &path, end + 20, &[0; 64]).await;
    let mut log = open(&disk).await;
    assert_eq!(all(&log).await.len(), 9);
    append(&mut log, vec![entry(2, 9, 50)]).await.expect("append");
    log.close().await;
    assert_eq!(all(&open(&disk).await).await.last(), Some(&entry(2, 9, 50)));
}

#[tokio::test]
async fn rot_before_the_last_synced_write_is_refused_and_not_cut() {
    for at in [0, 4, 8] {
        let (_directory, disk) = real_disk();
        let (path, places) = ten_entries(&disk).await;
        damage(&disk, &path, places[at] + 30, b"rot").await;
        let error = try_open(&disk, Limits::default()).await.err().expect("refused");
        assert!(matches!(error, LogError::Corrupt { segment: 1, offset, .. } if offset == places[at]), "{error}");
        let again = try_open(&disk, Limits::default()).await.err().expect("refused again");
        assert_eq!(again.to_string(), error.to_string(), "nothing was repaired in silence");
    }
}

#[tokio::test]
async fn a_zeroed_page_in_the_middle_is_rot_and_not_the_end() {
    let (_directory, disk) = real_disk();
    let (path, places) = ten_entries(&disk).await;
    damage(&disk, &path, places[5], &[0; 133]).await;
    assert!(matches!(try_open(&disk, Limits::default()).await, Err(LogError::Corrupt { .. })));
}

#[tokio::test]
async fn rot_in_the_last_entry_is_found_after_a_clean_close() {
    let (_directory, disk) = real_disk();
    let (path, places) = ten_entries(&disk).await;
    damage(&disk, &path, places[9] + 30, b"rot").await;
    assert!(matches!(try_open(&disk, Limits::default()).await, Err(LogError::Corrupt { .. })));
}

#[tokio::test]
async fn rot_in_an_earlier_segment_and_missing_segments_are_refused() {
    for missing in [false, true] {
        let (_directory, disk) = real_disk();
        let mut log = try_open(&disk, SMALL).await.expect("open");
        for index in 0..100 {
            append(&mut log, vec![entry(1, index, 200)]).await.expect("append");
        }
        log.close().await;
        if missing {
            disk.remove(&segment_path(2)).await.expect("remove");
        } else {
            damage(&disk, &segment_path(2), 300, b"rot").await;
        }
        let error = try_open(&disk, SMALL).await.err().expect("refused");
        assert!(matches!(error, LogError::Corrupt { segment: 2, .. }), "{error}");
    }
}

#[tokio::test]
async fn the_first_segment_cannot_be_taken_away() {
    let (_directory, disk) = real_disk();
    let mut log = try_open(&disk, SMALL).await.expect("open");
    for index in 0..100 {
        append(&mut log, vec![entry(1, index, 200)]).await.expect("append");
    }
    log.close().await;
    disk.remove(&segment_path(1)).await.expect("remove");
    assert!(matches!(try_open(&disk, SMALL).await, Err(LogError::Corrupt { .. })));
}

#[tokio::test]
async fn the_log_of_another_node_or_mesh_is_refused() {
    let (_directory, disk) = real_disk();
    ten_entries(&disk).await;
    for other in [Identity { node_id: 8, ..IDENTITY }, Identity { mesh_id: [4; 32], ..IDENTITY }] {
        let opened = Log::open(&disk, other, Limits::default(), Halt::default()).await;
        assert!(matches!(opened, Err(LogError::Foreign { .. })));
    }
}

#[tokio::test]
async fn a_vote_is_durable_when_it_is_answered() {
    for seed in 0..50 {
        let crash = CrashDisk::new(seed);
        let mut log = open(&crash.handle()).await;
        log.save_vote(&vote(9)).await.expect("vote");
        crash.crash();
        let mut log = open(&crash.handle()).await;
        assert_eq!(log.read_vote().await.expect("vote"), Some(vote(9)), "seed {seed}");
    }
}

#[tokio::test]
async fn a_disk_that_lies_about_syncs_is_noticed_by_these_tests() {
    let mut forgotten = 0;
    for seed in 0..50 {
        let crash = CrashDisk::new(seed);
        crash.lie_about_syncs();
        let mut log = open(&crash.handle()).await;
        log.save_vote(&vote(9)).await.expect("vote");
        crash.crash();
        let remembered = match try_open(&crash.handle(), Limits::default()).await {
            Ok(mut log) => log.read_vote().await.expect("vote") == Some(vote(9)),
            Err(_) => false,
        };
        forgotten += u32::from(!remembered);
    }
    assert!(forgotten > 10, "only {forgotten} of 50 votes were lost without fsync");
}

#[tokio::test]
async fn a_failed_fsync_halts_the_node_and_is_never_retried() {
    let crash = CrashDisk::new(1);
    let halt = Halt::default();
    let mut log = Log::open(&crash.handle(), IDENTITY, Limits::default(), halt.clone()).await.expect("open");
    append(&mut log, vec![entry(1, 0, 10)]).await.expect("append");
    crash.fail_syncs(true);
    assert!(append(&mut log, vec![entry(1, 1, 10)]).await.is_err());
    assert!(halt.reason().is_some());
    crash.fail_syncs(false);
    let syncs = crash.syncs();
    assert!(log.save_vote(&vote(2)).await.is_err(), "a later fsync could succeed without the lost pages");
    assert_eq!(crash.syncs(), syncs);
}

/// What a log was asked, and what of it was acknowledged.
#[derive(Default)]
struct Model {
    entries: std::collections::BTreeMap<u64, Entry>,
    vote: Option<Vote>,
    purged: Option<LogId>,
    term: u64,
}

impl Model {
    fn next_index(&self) -> u64 {
        let last = self.entries.keys().next_back().copied();
        last.max(self.purged.map(|id| id.index)).map_or(0, |last| last + 1)
    }
}

/// One random step; `Err` when the power failed in it.
async fn step(log: &mut Log, model: &mut Model, rng: &mut StdRng) -> io::Result<()> {
    match rng.random_range(0..20) {
        0 => {
            model.term += 1;
            let vote = vote(model.term);
            log.save_vote(&vote).await?;
            model.vote = Some(vote);
        }
        1 if model.entries.len() > 3 => {
            let keep = model.next_index() - 1 - rng.random_range(1..3);
            let after = model.entries.get(&keep).map(|entry| entry.log_id).or(model.purged);
            // From here on they may be gone.
            model.entries.retain(|index, _| *index <= keep);
            log.truncate_after(after).await?;
        }
        2 if model.entries.len() > 20 => {
            let upto = *model.entries.keys().nth(rng.random_range(5..15)).expect("there are that many");
            let upto = model.entries[&upto].log_id;
            model.entries.retain(|index, _| *index > upto.index);
            log.purge(upto).await?;
            model.purged = Some(upto);
        }
        3 => {
            let committed = model.entries.values().next_back().map(|entry| entry.log_id);
            log.save_committed(committed).await?;
        }
        4 => drop(log.roll().await?),
        _ => {
            let first = model.next_index();
            let count = rng.random_range(1..6);
            let entries: Vec<Entry> =
                (first..first + count).map(|index| entry(model.term, index, rng.random_range(0..900))).collect();
            append(log, entries.clone()).await?;
            model.entries.extend(entries.into_iter().map(|entry| (entry.log_id.index, entry)));
        }
    }
    Ok(())
}

/// After a crash everything acknowledged is there; of the step under way, anything may be.
async fn check(log: &mut Log, model: &Model, seed: u64) {
    assert!(log.read_vote().await.expect("vote") >= model.vote, "seed {seed}: a vote was forgotten");
    let state = log.get_log_state().await.expect("state");
    assert!(state.last_purged_log_id >= model.purged, "seed {seed}: a purge was forgotten");
    assert!(state.last_log_id >= log.read_committed().await.expect("committed"), "seed {seed}");
    let entries = all(log).await;
    for pair in entries.windows(2) {
        assert_eq!(pair[0].log_id.index + 1, pair[1].log_id.index, "seed {seed}: a hole");
    }
    let found: std::collections::BTreeMap<u64, &Entry> = entries.iter().map(|e| (e.log_id.index, e)).collect();
    let purged_to = state.last_purged_log_id.map_or(0, |id| id.index + 1);
    for (index, expected) in model.entries.range(purged_to..) {
        assert_eq!(found.get(index), Some(&expected), "seed {seed}: entry {index} is not what was acknowledged");
    }
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_whenever_the_power_fails() {
    let mut crashes = 0;
    for seed in 0..100 {
        let mut rng = StdRng::seed_from_u64(seed);
        let crash = CrashDisk::new(seed);
        let mut model = Model::default();
        for _life in 0..4 {
            let mut log = try_open(&crash.handle(), SMALL).await.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            check(&mut log, &model, seed).await;
            // What survived beyond the acknowledged is the log's now.
            model.entries = all(&log).await.into_iter().map(|entry| (entry.log_id.index, entry)).collect();
            model.purged = log.get_log_state().await.expect("state").last_purged_log_id;
            model.vote = log.read_vote().await.expect("vote");
            model.term = model.term.max(model.vote.map_or(0, |vote| vote.leader_id.term));
            crash.fail_after(rng.random_range(0..120));
            while step(&mut log, &mut model, &mut rng).await.is_ok() {}
            crashes += 1;
            drop(log);
            crash.crash();
        }
    }
    assert_eq!(crashes, 400);
}
