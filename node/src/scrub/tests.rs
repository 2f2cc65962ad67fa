//! When the scrub reads, what it keeps, and that it can be told.

use std::sync::atomic::{AtomicU64, Ordering};

use expect_test::expect;
use maillage_store::PackId;

use super::*;

fn directory() -> (tempfile::TempDir, Disk) {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = Disk::real(directory.path());
    (directory, disk)
}

fn clock(now: &Arc<AtomicU64>) -> Clock {
    let now = Arc::clone(now);
    Clock::from_fn(move || UnixMillis(now.load(Ordering::Relaxed)))
}

fn example() -> Record {
    let position = ScrubPosition { pack: Some(PackId { number: 7, generation: 1 }), offset: 4096 };
    let last = Pass {
        began_at: 1000,
        ended_at: Some(2000),
        bytes: 5,
        found: 1,
        rewritten: 2,
        lost_packs: 0,
        ..Pass::default()
    };
    let under_way = Some(Pass { began_at: 3000, position, bytes: 4096, ..Pass::default() });
    Record { format: FORMAT, paused: true, under_way, last: Some(last) }
}

#[test]
fn the_file_is_what_it_was_and_another_format_is_refused() {
    let bytes = example().encode().expect("encoded");
    expect![[r#"{"format":1,"paused":true,"under_way":{"began_at":3000,"ended_at":null,"position":{"pack":{"number":7,"generation":1},"offset":4096},"bytes":4096,"found":0,"rewritten":0,"lost_packs":0},"last":{"began_at":1000,"ended_at":2000,"position":{"pack":null,"offset":0},"bytes":5,"found":1,"rewritten":2,"lost_packs":0}}"#]]
        .assert_eq(std::str::from_utf8(&bytes).expect("text"));
    assert_eq!(Record::decode(&bytes), Ok(example()));
    let newer = String::from_utf8(bytes.to_vec()).expect("text").replace("\"format\":1", "\"format\":2");
    assert!(Record::decode(newer.as_bytes()).is_err_and(|why| why.contains("format 2")));
    assert!(Record::decode(b"{").is_err());
}

#[test]
fn a_pass_is_due_a_week_after_the_last_began_or_when_the_clock_was_set_back() {
    let record = Record { under_way: None, ..example() };
    assert_eq!(record.due_in(1000 + PASS_EVERY_MS - 5), Duration::from_millis(5));
    assert_eq!(record.due_in(1000 + PASS_EVERY_MS), Duration::ZERO);
    assert_eq!(record.due_in(999), Duration::ZERO);
    assert_eq!(example().due_in(1001), Duration::ZERO, "one is under way");
    assert_eq!(Record::default().due_in(0), Duration::ZERO, "never read");
}

#[tokio::test]
async fn a_pause_and_the_place_survive_a_restart_and_a_broken_file_costs_a_pass() {
    let ((_directory, disk), now) = (directory(), Arc::new(AtomicU64::new(10_000)));
    let scrub = Scrub::open(disk.clone(), clock(&now), 20).await;
    assert_eq!((scrub.status().doing, scrub.status().rate), (Doing::Running, 20_000_000));
    let place = ScrubPosition { pack: Some(PackId { number: 3, generation: 0 }), offset: 77 };
    scrub.start().await.expect("started");
    let step = Scrubbed { next: Some(place), bytes: 100, lost: place.pack, ..Scrubbed::default() };
    scrub.note(&Metrics::new(), &step);
    scrub.pause().await.expect("paused");
    assert_eq!(scrub.next_position(), None);

    let scrub = Scrub::open(disk.clone(), clock(&now), 20).await;
    assert_eq!((scrub.status().doing, scrub.next_position()), (Doing::Paused, None));
    scrub.start().await.expect("started");
    assert_eq!(scrub.next_position(), Some(place));
    now.store(12_000, Ordering::Relaxed);
    scrub.note(&Metrics::new(), &Scrubbed { bytes: 11, ..Scrubbed::default() });
    let status = scrub.status();
    assert_eq!((status.doing, status.under_way), (Doing::Resting, None));
    assert_eq!(status.last.map(|pass| (pass.bytes, pass.lost_packs, pass.ended_at)), Some((111, 1, Some(12_000))));
    assert_eq!(status.age(UnixMillis(15_000)), Some(Duration::from_secs(3)));
    scrub.save().await.expect("saved");
    assert_eq!(Scrub::open(disk.clone(), clock(&now), 0).await.status().doing, Doing::Off);

    disk.replace(FILE, "rubbish".into()).await.expect("written");
    let scrub = Scrub::open(disk, clock(&now), 20).await;
    assert_eq!(scrub.next_position(), Some(ScrubPosition::default()), "begun anew");
}

#[tokio::test]
async fn reading_takes_the_time_that_the_rate_gives_it() {
    let ((_directory, disk), now) = (directory(), Arc::default());
    let scrub = Scrub::open(disk, clock(&now), 20).await;
    assert_eq!(scrub.time_of(STEP_BYTES), Duration::from_micros(209_715));
    assert_eq!(scrub.time_of(0), Duration::ZERO);
}
